//! SHA-256 values: how the project names files, certificates, codes and audit rows.

use std::{fmt, str::FromStr};

use ring::digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A SHA-256 value (FIPS 180-4). Text form: 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The hash of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_parts(&[bytes])
    }

    /// The hash of several byte strings, one after the other.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = Hasher::default();
        parts.iter().for_each(|part| hasher.update(part));
        hasher.finish()
    }

    /// The value itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A hash in the making, for what is too large to be in memory at once.
pub struct Hasher(digest::Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Hasher {
    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes that were taken in.
    #[must_use]
    pub fn finish(self) -> Sha256 {
        let mut value = Sha256::default();
        value.0.copy_from_slice(self.0.finish().as_ref());
        value
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 value: 64 hexadecimal digits are expected")]
pub struct NotSha256;

impl FromStr for Sha256 {
    type Err = NotSha256;

    /// Takes upper case and the colons that certificate viewers print (`AB:CD:…`) as well.
    fn from_str(text: &str) -> Result<Self, NotSha256> {
        let mut value = Self::default();
        let mut digits = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16));
        for byte in &mut value.0 {
            let mut nibble =
                || digits.next().flatten().and_then(|d| u8::try_from(d).ok()).ok_or(NotSha256);
            *byte = nibble()? << 4 | nibble()?;
        }
        if digits.next().is_some() { Err(NotSha256) } else { Ok(value) }
    }
}

impl TryFrom<&[u8]> for Sha256 {
    type Error = NotSha256;

    fn try_from(bytes: &[u8]) -> Result<Self, NotSha256> {
        bytes.try_into().map(Self).map_err(|_| NotSha256)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl Serialize for Sha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_the_empty_string_is_the_published_one() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Sha256::of(b"").to_string(), empty);
        assert_eq!(Sha256::of_parts(&[b"a", b"bc"]), Sha256::of(b"abc"));
    }

    #[test]
    fn text_forms() {
        let value = Sha256([0xab; 32]);
        let table = [
            ("ab".repeat(32), true),
            ("AB".repeat(32), true),
            (vec!["AB"; 32].join(":"), true),
            ("ab".repeat(31), false),
            ("ab".repeat(33), false),
            ("ab".repeat(31) + "a", false),
            ("zz".repeat(32), false),
            (String::new(), false),
        ];
        for (text, good) in table {
            assert_eq!(text.parse() == Ok(value), good, "{text}");
        }
    }
}
