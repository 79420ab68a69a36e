//! The token of a box, as its provisioning document describes it.
//!
//! A document never says which file a box loads: whoever writes documents is not whoever may run programs on the box. It names one of the
//! tokens that the box's system was built for, and the system knows where the module of that is.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Faulty;
use crate::{
    custody::ModeChoice,
    limits::{
        TOKEN_KIND_BYTES_MAX, TOKEN_LABEL_BYTES_MAX, TOKEN_SERIAL_BYTES_MAX, TOKEN_SESSIONS_MAX,
        TOKEN_TIMEOUT_MS_MAX, TOKEN_TIMEOUT_MS_MIN,
    },
};

/// The token of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Which of the tokens that the system was built for.
    pub kind: TokenKind,
    /// Its label, which is also given to it if it is blank. A software token has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its serial number, where several have the label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Where the PIN is from.
    #[serde(default)]
    pub pin: TokenPin,
    /// How event keys are kept.
    #[serde(default)]
    pub mode: ModeChoice,
    /// Sessions that work at once; by default what the box thinks best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u8>,
    /// Milliseconds that a single operation may take; by default what the box thinks best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Where the PIN of a token is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenPin {
    /// Somebody types it at the console after each start.
    #[default]
    Ask,
    /// Somebody types it at the token itself.
    Pad,
    /// Somebody types it at the console once; from then on the TPM of the machine gives it at each start.
    Sealed,
}

/// A kind of token by its name: small letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKind(String);

/// Text that names no kind of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a kind of token is named like \"opensc\": small letters, digits and hyphens")]
pub struct NotAKind;

impl TokenKind {
    /// The kind that is a file of the box, for development.
    pub const SOFTWARE: &str = "software";

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the keys are in a file of the box.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.0 == Self::SOFTWARE
    }
}

impl FromStr for TokenKind {
    type Err = NotAKind;

    fn from_str(text: &str) -> Result<Self, NotAKind> {
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let named = (1..=TOKEN_KIND_BYTES_MAX).contains(&text.len()) && text.bytes().all(known);
        if named { Ok(Self(text.to_owned())) } else { Err(NotAKind) }
    }
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TokenKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TokenKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Token {
    pub(super) fn check(&self, allow_software_keys: bool) -> Result<(), Faulty> {
        let wrong = |key, problem: &str| Err(Faulty::Value { key, problem: problem.to_owned() });
        if self.kind.is_software() {
            return if !allow_software_keys {
                wrong(
                    "token.kind",
                    "it is a file, which whoever reads the disk can copy: name a real token, or for development say allow_software_keys = true",
                )
            } else if self.label.is_some() || self.serial.is_some() {
                wrong("token.label", "leave it out, and the serial number: a file has neither")
            } else {
                Ok(())
            };
        }
        let fits = |text: &str, most| {
            (1..=most).contains(&text.len()) && !text.chars().any(char::is_control)
        };
        if !self.label.as_deref().is_some_and(|label| fits(label, TOKEN_LABEL_BYTES_MAX)) {
            return wrong("token.label", "write the label of the token, 1 to 32 bytes");
        }
        if !self.serial.as_deref().is_none_or(|serial| fits(serial, TOKEN_SERIAL_BYTES_MAX)) {
            return wrong("token.serial", "write the serial number of the token, 1 to 16 bytes");
        }
        if !self.sessions.is_none_or(|number| (1..=TOKEN_SESSIONS_MAX).contains(&number)) {
            return wrong("token.sessions", "write a number from 1 to 16");
        }
        let times = TOKEN_TIMEOUT_MS_MIN..=TOKEN_TIMEOUT_MS_MAX;
        if !self.timeout_ms.is_none_or(|time| times.contains(&time)) {
            return wrong("token.timeout_ms", "write a time from one second to five minutes");
        }
        Ok(())
    }
}
