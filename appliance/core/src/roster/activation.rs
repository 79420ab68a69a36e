//! Activation codes: what a new person types once to take over an account.
//!
//! A code is 110 random bits in Crockford's base32 and two check digits, in six groups of four:
//! `7K3D-M0QZ-…`. The check digits are those of a Reed–Solomon code over GF(32): every one or two wrong digits, and every
//! two that changed places, are noticed where the code is typed. The box keeps only a keyed hash of [`ActivationCode::hash`]; with 110
//! bits no salt and no slow hash is needed, and looking the hash up tells an attacker who measures time nothing.

use std::{fmt, str::FromStr};

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::digest::Sha256;

/// Random bytes that a code is made of; the last two bits are not used.
pub const RANDOM_BYTES: usize = 14;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const DATA_DIGITS: usize = 22;
const DIGITS: usize = 24;
const GROUP: usize = 4;

/// A single-use secret that proves the right to set the first password of one account.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ActivationCode([u8; DIGITS]);

impl ActivationCode {
    /// The code made of random bytes.
    #[must_use]
    pub fn from_random(random: &[u8; RANDOM_BYTES]) -> Self {
        let mut bits = random.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1));
        let mut digits = [0; DIGITS];
        for digit in digits.iter_mut().take(DATA_DIGITS) {
            *digit = bits.by_ref().take(5).fold(0, |value, bit| value << 1 | bit);
        }
        let (last, check) = syndromes(&digits);
        // With the digits a and b at powers 1 and 0 of the generator g: a + b = check, g·a + b = last.
        let a = multiply(last ^ check, inverse(multiply_by_generator(1) ^ 1));
        let [.., first_check, second_check] = &mut digits;
        *first_check = a;
        *second_check = a ^ check;
        Self(digits)
    }

    /// What the box hashes with its pepper, stores and looks up.
    #[must_use]
    pub fn hash(&self) -> Sha256 {
        Sha256::of_parts(&[b"sallyport/activation/1", &self.0])
    }
}

impl fmt::Display for ActivationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, digit) in self.0.iter().enumerate() {
            if n > 0 && n % GROUP == 0 {
                f.write_str("-")?;
            }
            let sign = ALPHABET.get(usize::from(*digit)).copied().unwrap_or(b'?');
            write!(f, "{}", char::from(sign))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ActivationCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ActivationCode(…)")
    }
}

/// Why a text is not an activation code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotACode {
    /// Too few or too many digits.
    #[error("an activation code has {DIGITS} letters and digits")]
    Length,
    /// A sign that no code has.
    #[error("an activation code has no {0:?}")]
    Sign(char),
    /// The check digits do not fit: one was mistyped.
    #[error("the code was mistyped: compare it with the slip")]
    Mistyped,
}

impl FromStr for ActivationCode {
    type Err = NotACode;

    /// Takes either case, spaces and hyphens anywhere, `O` for `0` and `I` or `L` for `1`.
    fn from_str(text: &str) -> Result<Self, NotACode> {
        let mut code = Self([0; DIGITS]);
        let mut len = 0;
        for sign in text.chars().filter(|c| !c.is_whitespace() && *c != '-') {
            let value = value(sign).ok_or(NotACode::Sign(sign))?;
            *code.0.get_mut(len).ok_or(NotACode::Length)? = value;
            len += 1;
        }
        if len != DIGITS {
            return Err(NotACode::Length);
        }
        if syndromes(&code.0) == (0, 0) { Ok(code) } else { Err(NotACode::Mistyped) }
    }
}

fn value(sign: char) -> Option<u8> {
    let sign = match sign.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    ALPHABET.iter().position(|a| char::from(*a) == sign).and_then(|n| u8::try_from(n).ok())
}

/// The digits as coefficients of a polynomial, evaluated at the generator and at 1: both are zero for a code.
fn syndromes(digits: &[u8; DIGITS]) -> (u8, u8) {
    let at_generator = digits.iter().fold(0, |sum, digit| multiply_by_generator(sum) ^ digit);
    (at_generator, digits.iter().fold(0, |sum, digit| sum ^ digit))
}

/// GF(32) with the polynomial x⁵ + x² + 1, of which x is a generator: its powers differ for 31 places.
fn multiply_by_generator(a: u8) -> u8 {
    let shifted = a << 1;
    if shifted & 0x20 == 0 { shifted } else { shifted ^ 0x25 }
}

fn multiply(a: u8, b: u8) -> u8 {
    (0..5).rev().fold(0, |product, bit| {
        multiply_by_generator(product) ^ if b >> bit & 1 == 1 { a } else { 0 }
    })
}

/// a³⁰, because a³¹ = 1 for all a but 0.
fn inverse(a: u8) -> u8 {
    (0..30).fold(1, |power, _| multiply(power, a))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_code() {
        let code = ActivationCode::from_random(&[0; RANDOM_BYTES]);
        assert_eq!(code.to_string(), "0000-0000-0000-0000-0000-0000");
        let code = ActivationCode::from_random(
            b"\x00\x44\x32\x14\xc7\x42\x54\xb6\x35\xcf\x84\x65\x3a\x56",
        );
        assert!(code.to_string().starts_with("0123-4567-89AB-CDEF-GHJK-MN"), "{code}");
        assert_eq!(format!("{code:?}"), "ActivationCode(…)");
    }

    #[test]
    fn what_is_not_a_code() {
        let table = [
            ("", NotACode::Length),
            ("0000-0000-0000-0000-0000-000", NotACode::Length),
            ("0000-0000-0000-0000-0000-0000-0", NotACode::Length),
            ("U000-0000-0000-0000-0000-0000", NotACode::Sign('U')),
            ("0000-0000-0000-0000-0000-0001", NotACode::Mistyped),
        ];
        for (text, why) in table {
            assert_eq!(text.parse::<ActivationCode>(), Err(why), "{text}");
        }
    }

    fn code() -> impl Strategy<Value = ActivationCode> {
        any::<[u8; RANDOM_BYTES]>().prop_map(|random| ActivationCode::from_random(&random))
    }

    proptest! {
        #[test]
        fn typing_is_forgiven(code in code()) {
            let text = code.to_string();
            let sloppy = text.to_lowercase().replace('0', "O").replace('1', "l").replace('-', "  ");
            prop_assert_eq!(sloppy.parse::<ActivationCode>(), Ok(code.clone()));
            prop_assert_eq!(text.replace('1', "I").parse(), Ok(code));
        }

        #[test]
        fn different_bits_give_different_codes(a: [u8; RANDOM_BYTES], bit in 0_usize..110) {
            let mut b = a;
            b[bit / 8] ^= 0x80 >> (bit % 8);
            let (a, b) = (ActivationCode::from_random(&a), ActivationCode::from_random(&b));
            prop_assert_ne!(a.hash(), b.hash());
        }

        #[test]
        fn one_or_two_wrong_digits_are_noticed(
            code in code(), places in (0..DIGITS, 0..DIGITS), errors in (1_u8..32, 0_u8..32),
        ) {
            let mut wrong = code.clone();
            wrong.0[places.0] ^= errors.0;
            if places.1 != places.0 {
                wrong.0[places.1] ^= errors.1;
            }
            prop_assert_eq!(wrong.to_string().parse::<ActivationCode>(), Err(NotACode::Mistyped));
        }

        #[test]
        fn swapped_digits_are_noticed(code in code(), place in 0..DIGITS - 1) {
            prop_assume!(code.0[place] != code.0[place + 1]);
            let mut wrong = code.clone();
            wrong.0.swap(place, place + 1);
            prop_assert_eq!(wrong.to_string().parse::<ActivationCode>(), Err(NotACode::Mistyped));
        }

        #[test]
        fn any_text_is_parsed_without_harm(text in ".{0,64}") {
            let _ = text.parse::<ActivationCode>();
        }
    }
}
