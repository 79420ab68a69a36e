//! Names and kinds of keys, and what a token can do with them.

use std::{fmt, str::FromStr};

use minicbor::{Decode, Encode};
use sallyport_core::sign::{Algorithm, KeyRole};
use serde::{Deserialize, Serialize};

/// The stable name of a key: its role and a random id (`CKA_ID`), for example `event:0123456789abcdef`.
///
/// Handles of PKCS#11 die with the login and are used again for other keys, so nothing outside a backend ever sees one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyName {
    role: KeyRole,
    id: [u8; Self::ID_BYTES],
}

impl KeyName {
    /// Bytes of a key's id.
    pub const ID_BYTES: usize = 8;

    /// Names the key of this role and id.
    pub fn new(role: KeyRole, id: [u8; Self::ID_BYTES]) -> Self {
        Self { role, id }
    }

    /// What the key is for.
    pub fn role(&self) -> KeyRole {
        self.role
    }

    /// The id as in `CKA_ID`.
    pub fn id(&self) -> &[u8; Self::ID_BYTES] {
        &self.id
    }

    /// The id in hexadecimal: the version of an event key in its Matrix key id, `ed25519:<version>`.
    pub fn version(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.role, self.version())
    }
}

/// Not the name of a key: `<role>:<16 hexadecimal digits>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a key, such as `event:0123456789abcdef`")]
pub struct ParseKeyNameError(String);

impl FromStr for KeyName {
    type Err = ParseKeyNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseKeyNameError(text.to_owned()))
    }
}

impl TryFrom<String> for KeyName {
    type Error = ParseKeyNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<KeyName> for String {
    fn from(name: KeyName) -> Self {
        name.to_string()
    }
}

fn parse(text: &str) -> Option<KeyName> {
    let (role, version) = text.split_once(':')?;
    let role = KeyRole::ALL.into_iter().find(|known| known.as_str() == role)?;
    let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if version.len() != 2 * KeyName::ID_BYTES || !version.bytes().all(hexadecimal) {
        return None;
    }
    let id = u64::from_str_radix(version, 16).ok()?.to_be_bytes();
    Some(KeyName { role, id })
}

/// What kind of key it is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode,
)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum KeyKind {
    /// An Ed25519 key pair: signs.
    #[n(0)]
    Ed25519,
    /// A P-256 key pair: signs, or agrees if its role [agrees](KeyRole::agrees) or wraps.
    #[n(1)]
    P256,
    /// An AES-256 key: wraps.
    #[n(2)]
    Aes256,
    /// An RSA key pair of 2048 bits: wraps, in tokens that can neither wrap with AES nor agree.
    #[n(3)]
    Rsa2048,
}

impl KeyKind {
    /// Whether a key of this kind can have this role.
    pub fn suits(self, role: KeyRole) -> bool {
        match role {
            KeyRole::Event => self == Self::Ed25519,
            KeyRole::CourierEncryption | KeyRole::Recovery | KeyRole::Ca | KeyRole::Tls => {
                self == Self::P256
            }
            KeyRole::Storage | KeyRole::CourierStorage => self != Self::Ed25519,
            KeyRole::Courier
            | KeyRole::Root
            | KeyRole::Officer
            | KeyRole::Audit
            | KeyRole::Release => {
                matches!(self, Self::Ed25519 | Self::P256)
            }
        }
    }

    /// What it signs with, if it can.
    pub fn algorithm(self) -> Option<Algorithm> {
        match self {
            Self::Ed25519 => Some(Algorithm::Ed25519),
            Self::P256 => Some(Algorithm::P256),
            Self::Aes256 | Self::Rsa2048 => None,
        }
    }

    /// The name in key files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::P256 => "p256",
            Self::Aes256 => "aes256",
            Self::Rsa2048 => "rsa2048",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Algorithm> for KeyKind {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Ed25519 => Self::Ed25519,
            Algorithm::P256 => Self::P256,
        }
    }
}

/// What a token can do, found out by trying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Caps {
    /// Signs with Ed25519.
    #[n(0)]
    pub ed25519: bool,
    /// Signs with ECDSA on P-256.
    #[n(1)]
    pub p256_sign: bool,
    /// Agrees with ECDH on P-256.
    #[n(2)]
    pub p256_agree: bool,
    /// Wraps with an AES-256 key.
    #[n(3)]
    pub wrap: bool,
    /// Decrypts with an RSA key of 2048 bits (RSA-OAEP). Looked at only where `wrap` and `p256_agree` are not there.
    #[n(4)]
    pub rsa_decrypt: bool,
    /// Agrees with X25519. No key of ours does so in a token; whoever chooses one wants to know.
    #[n(5)]
    pub x25519: bool,
}

impl Caps {
    /// The kind of key to make for a role in this token, Ed25519 where there is a choice; `None` if the token can do none
    /// that suits.
    pub fn kind_for(&self, role: KeyRole) -> Option<KeyKind> {
        match role {
            KeyRole::Event => self.ed25519.then_some(KeyKind::Ed25519),
            KeyRole::CourierEncryption | KeyRole::Recovery => {
                self.p256_agree.then_some(KeyKind::P256)
            }
            KeyRole::Ca | KeyRole::Tls => self.p256_sign.then_some(KeyKind::P256),
            KeyRole::Storage | KeyRole::CourierStorage => self.storage_kind(),
            KeyRole::Courier
            | KeyRole::Root
            | KeyRole::Officer
            | KeyRole::Audit
            | KeyRole::Release => self.signing_kind(),
        }
    }

    /// What the token can do, in words for people.
    pub fn words(&self) -> Vec<&'static str> {
        let words = [
            (self.ed25519, "signs with Ed25519"),
            (self.p256_sign, "signs with ECDSA on P-256"),
            (self.p256_agree, "agrees with ECDH on P-256"),
            (self.wrap, "wraps with AES-256"),
            (self.rsa_decrypt, "decrypts with RSA-OAEP"),
            (self.x25519, "agrees with X25519"),
        ];
        words.into_iter().filter(|(can, _)| *can).map(|(_, words)| words).collect()
    }

    /// The kind of a key that signs what is not of Matrix or TLS.
    pub fn signing_kind(&self) -> Option<KeyKind> {
        let kinds = [(self.ed25519, KeyKind::Ed25519), (self.p256_sign, KeyKind::P256)];
        first(kinds)
    }

    /// The kind of a key that wraps. Secrets are safe under each; the order is that of speed.
    pub fn storage_kind(&self) -> Option<KeyKind> {
        first([
            (self.wrap, KeyKind::Aes256),
            (self.p256_agree, KeyKind::P256),
            (self.rsa_decrypt, KeyKind::Rsa2048),
        ])
    }
}

fn first(kinds: impl IntoIterator<Item = (bool, KeyKind)>) -> Option<KeyKind> {
    kinds.into_iter().find(|(can, _)| *can).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_survive_text(role in 0..KeyRole::ALL.len(), id: [u8; 8]) {
            let name = KeyName::new(KeyRole::ALL[role], id);
            prop_assert_eq!(name.to_string().parse::<KeyName>(), Ok(name));
        }

        #[test]
        fn text_that_is_a_name_is_its_only_text(text in "[a-z-]{0,9}:?[0-9a-fA-F+]{14,18}") {
            if let Ok(name) = text.parse::<KeyName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }

    #[test]
    fn text_that_is_no_name() {
        for text in [
            "",
            "event",
            "event:",
            "event:0123456789abcde",
            "event:0123456789ABCDEF",
            "event:+123456789abcdef",
            "evil:0123456789abcdef",
        ] {
            assert!(text.parse::<KeyName>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_kind_for_a_role_is_one_that_the_token_can_do() {
        let all = Caps {
            ed25519: true,
            p256_sign: true,
            p256_agree: true,
            wrap: true,
            rsa_decrypt: true,
            x25519: true,
        };
        let card = Caps { ed25519: false, wrap: false, ..all };
        let tpm = Caps { p256_agree: false, ..card };
        let cases = [
            (all, KeyRole::Event, Some(KeyKind::Ed25519)),
            (all, KeyRole::Root, Some(KeyKind::Ed25519)),
            (all, KeyRole::CourierEncryption, Some(KeyKind::P256)),
            (all, KeyRole::Storage, Some(KeyKind::Aes256)),
            (card, KeyRole::Event, None),
            (card, KeyRole::Root, Some(KeyKind::P256)),
            (card, KeyRole::Storage, Some(KeyKind::P256)),
            (tpm, KeyRole::Storage, Some(KeyKind::Rsa2048)),
            (tpm, KeyRole::Tls, Some(KeyKind::P256)),
            (tpm, KeyRole::CourierEncryption, None),
            (Caps { rsa_decrypt: false, ..tpm }, KeyRole::Storage, None),
            (Caps::default(), KeyRole::Audit, None),
        ];
        for (caps, role, kind) in cases {
            assert_eq!(caps.kind_for(role), kind, "{caps:?} {role}");
            assert!(kind.is_none_or(|kind| kind.suits(role)), "{caps:?} {role}");
        }
    }
}
