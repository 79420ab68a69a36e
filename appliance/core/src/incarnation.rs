//! Which life of a box's database something comes from.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};

use crate::hex::parse_u128;

/// One life of a box's database: random, renewed by every restore from a backup.
///
/// It stands in sync tokens, bundle manifests and pairing cards, so that nobody mistakes the numbering of a restored box for
/// the one before. Text form: 32 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Incarnation(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an incarnation: 32 hexadecimal digits are expected")]
pub struct NotAnIncarnation;

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Incarnation {
    type Err = NotAnIncarnation;

    fn from_str(text: &str) -> Result<Self, NotAnIncarnation> {
        parse_u128(text).map(|value| Self(value.to_be_bytes())).ok_or(NotAnIncarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_32_digits() {
        let incarnation = Incarnation([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff]);
        let text = "000102030405060708090a0b0c0d0eff";
        assert_eq!(incarnation.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(incarnation));
        for text in ["", &text[1..], &format!("{text}0"), &format!("+{}", &text[1..])] {
            assert_eq!(text.parse::<Incarnation>(), Err(NotAnIncarnation), "{text}");
        }
    }
}
