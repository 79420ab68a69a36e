//! Versions of the system: three numbers, compared as such.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A version: `MAJOR.MINOR.PATCH`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes when something that worked does not any more.
    pub major: u32,
    /// Changes with what is new.
    pub minor: u32,
    /// Changes with what is mended.
    pub patch: u32,
}

/// The text is no version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a version: three numbers are expected, as in 1.2.3")]
pub struct NotAVersion;

impl FromStr for Version {
    type Err = NotAVersion;

    /// Takes the one text form of each version: no signs, no zeros in front, nothing behind.
    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let mut numbers = text.split('.').map(|number| number.parse().map_err(|_| NotAVersion));
        let mut next = || numbers.next().unwrap_or(Err(NotAVersion));
        let version = Self { major: next()?, minor: next()?, patch: next()? };
        if version.to_string() == text { Ok(version) } else { Err(NotAVersion) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_text_form() {
        for good in ["0.0.0", "0.1.0", "10.20.4294967295"] {
            assert_eq!(good.parse::<Version>().unwrap().to_string(), good);
        }
        for bad in ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.3-rc", "+1.2.3", "1.2.4294967296"] {
            assert_eq!(bad.parse::<Version>(), Err(NotAVersion), "{bad}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let of = |text: &str| text.parse::<Version>().unwrap();
        assert!(of("0.10.0") > of("0.9.99"));
        assert!(of("1.0.0") > of("0.99.99"));
    }
}
