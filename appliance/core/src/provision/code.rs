//! The confirmation code of a document: what the officers' machine prints and somebody types at the console of a new box.
//!
//! Eight digits would not do: whoever swaps the stick has the right document too, and can write others until one has the same code,
//! which takes minutes for 10^8. Sixteen digits are 53 bits, and each try costs [`ROUNDS`] rounds of PBKDF2.

use std::{fmt, num::NonZeroU32};

use ring::pbkdf2;

use crate::digest::Sha256;

/// Rounds of PBKDF2: about 20 ms.
const ROUNDS: NonZeroU32 = NonZeroU32::new(1 << 16).unwrap();
/// Digits of a code.
const DIGITS: usize = 16;

/// A confirmation code. Text form: four groups of four digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(u64);

impl Code {
    /// The code of the document with this hash.
    #[must_use]
    pub fn of(document: &Sha256) -> Self {
        let mut bytes = [0; 8];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            ROUNDS,
            b"sallyport/provision-code/1",
            document.as_bytes(),
            &mut bytes,
        );
        Self(u64::from_be_bytes(bytes) % 10_u64.pow(DIGITS as u32))
    }

    /// Whether somebody typed this code. Only digits count.
    #[must_use]
    pub fn is(&self, typed: &str) -> bool {
        let digits: String = typed.chars().filter(char::is_ascii_digit).collect();
        digits == format!("{:0DIGITS$}", self.0)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = |place: u32| self.0 / 10_u64.pow(place * 4) % 10_000;
        write!(f, "{:04} {:04} {:04} {:04}", group(3), group(2), group(1), group(0))
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
