//! Values of the configuration that have a form of their own: where the PIN is from, and how many sessions there are.

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Pin};

/// Where the PIN of a token is from, as the configuration says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PinSource {
    /// `credential:NAME`: a credential that systemd gives the service (`LoadCredentialEncrypted=NAME`), which may be sealed to
    /// the TPM of the machine.
    Credential(String),
    /// `file:/PATH`: a file that only its owner may read.
    File(PathBuf),
    /// `ask`: an operator gives it after each start.
    Ask,
    /// `pad`: somebody types it at the token itself (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    Pad,
}

/// Text that names no source of a PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PIN is from `credential:NAME`, `file:/PATH`, `ask` or `pad`")]
pub struct ParsePinSourceError;

/// systemd's variable with the folder of a service's credentials.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

impl PinSource {
    /// The PIN, if it can be had without a person: read anew each time, and kept by nobody here.
    pub(crate) fn read(&self) -> Result<Option<Pin>, Error> {
        match self {
            Self::Credential(name) => credential(name).map(Some),
            Self::File(path) => Pin::from_file(path).map(Some),
            Self::Ask => Err(Error::PinAsked),
            Self::Pad => Ok(None),
        }
    }
}

/// systemd keeps credentials in a folder that only the service sees. Their mode is its own affair: an entry for the service's user
/// in an access control list looks like a right of the group.
fn credential(name: &str) -> Result<Pin, Error> {
    let Some(folder) = env::var_os(CREDENTIALS) else {
        let source =
            io::Error::new(io::ErrorKind::NotFound, "the service was given no credentials");
        let path = Path::new("$CREDENTIALS_DIRECTORY").join(name);
        return Err(Error::PinFile { path, source });
    };
    Pin::from_credential(&Path::new(&folder).join(name))
}

impl FromStr for PinSource {
    type Err = ParsePinSourceError;

    fn from_str(text: &str) -> Result<Self, ParsePinSourceError> {
        match text.split_once(':') {
            None if text == "ask" => Ok(Self::Ask),
            None if text == "pad" => Ok(Self::Pad),
            Some(("credential", name))
                if !["", ".", ".."].contains(&name) && !name.contains('/') =>
            {
                Ok(Self::Credential(name.to_owned()))
            }
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            _ => Err(ParsePinSourceError),
        }
    }
}

impl fmt::Display for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Ask => f.write_str("ask"),
            Self::Pad => f.write_str("pad"),
        }
    }
}

impl TryFrom<String> for PinSource {
    type Error = ParsePinSourceError;

    fn try_from(text: String) -> Result<Self, ParsePinSourceError> {
        text.parse()
    }
}

impl From<PinSource> for String {
    fn from(source: PinSource) -> Self {
        source.to_string()
    }
}

/// How many sessions with a token work at once. With two, the token has work while an answer is on its way, which every token can
/// use; more are of use where each operation waits for a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Sessions(u8);

/// Too many sessions, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are 1 to 16 sessions with a token")]
pub struct SessionsError;

impl Sessions {
    /// The most that are configured.
    pub const MAX: u8 = 16;

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self(2)
    }
}

impl TryFrom<u8> for Sessions {
    type Error = SessionsError;

    fn try_from(number: u8) -> Result<Self, SessionsError> {
        if (1..=Self::MAX).contains(&number) { Ok(Self(number)) } else { Err(SessionsError) }
    }
}

impl From<Sessions> for u8 {
    fn from(sessions: Sessions) -> Self {
        sessions.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_a_pin_have_one_text_each() {
        let sources = [
            ("credential:pin", PinSource::Credential("pin".to_owned())),
            ("file:/etc/sallyport/pin", PinSource::File("/etc/sallyport/pin".into())),
            ("file:/with:colon", PinSource::File("/with:colon".into())),
            ("ask", PinSource::Ask),
            ("pad", PinSource::Pad),
        ];
        for (text, source) in sources {
            assert_eq!(text.parse(), Ok(source.clone()));
            assert_eq!(source.to_string(), text);
        }
        for text in [
            "",
            "1234",
            "/etc/pin",
            "file:",
            "file:pin",
            "ask:",
            "pad:x",
            "credential:",
            "credential:..",
            "credential:../pin",
            "Ask",
            " ask",
            "credential",
        ] {
            assert_eq!(text.parse::<PinSource>(), Err(ParsePinSourceError), "{text}");
        }
    }

    #[test]
    fn sessions_have_bounds() {
        for (number, good) in [(0, false), (1, true), (16, true), (17, false)] {
            assert_eq!(Sessions::try_from(number).is_ok(), good);
        }
    }
}
