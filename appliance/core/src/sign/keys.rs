//! Public keys and signatures, and the one place that verifies them: cards, manifests, rosters, our own signatures.
//!
//! Both algorithms give 64 bytes, so that no format needs a length. An ECDSA signature can be changed into another valid
//! one for the same message by anyone: never use a signature as an identity.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Signature algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Pure Ed25519 (RFC 8032).
    Ed25519,
    /// ECDSA on P-256 with SHA-256 (FIPS 186-5), signature r ‖ s.
    P256,
}

impl Algorithm {
    /// The name in key files and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::P256 => "p256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A public key that was checked to be a point of its curve and usable.
#[derive(Clone)]
pub struct PublicKey(Point);

/// Keys are few and each verifies many signatures, so that the point is unpacked once.
#[derive(Clone)]
enum Point {
    Ed25519(Box<ed25519_dalek::VerifyingKey>),
    P256(Box<[u8; PublicKey::P256_BYTES]>),
}

/// The bytes are not a usable public key of the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a public key of {0}")]
pub struct InvalidKey(pub Algorithm);

/// The signature is not one of this key for this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match the message and the key")]
pub struct SignatureMismatch;

impl PublicKey {
    /// Bytes of an Ed25519 public key.
    pub const ED25519_BYTES: usize = 32;
    /// Bytes of an uncompressed point of P-256 (SEC 1, section 2.3.3).
    pub const P256_BYTES: usize = 65;

    /// Takes 32 bytes for Ed25519 or an uncompressed 65-byte point for P-256. Points off the curve and the weak points
    /// of Ed25519, under which anything verifies, are refused.
    pub fn new(algorithm: Algorithm, bytes: &[u8]) -> Result<Self, InvalidKey> {
        let point = match algorithm {
            Algorithm::Ed25519 => bytes
                .try_into()
                .ok()
                .and_then(|bytes| ed25519_dalek::VerifyingKey::from_bytes(bytes).ok())
                .filter(|key| !key.is_weak())
                .map(|key| Point::Ed25519(Box::new(key))),
            Algorithm::P256 => bytes
                .try_into()
                .ok()
                .filter(|_| p256::PublicKey::from_sec1_bytes(bytes).is_ok())
                .map(|bytes| Point::P256(Box::new(bytes))),
        };
        point.map(Self).ok_or(InvalidKey(algorithm))
    }

    /// The algorithm of this key.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Point::Ed25519(_) => Algorithm::Ed25519,
            Point::P256(_) => Algorithm::P256,
        }
    }

    /// The bytes that [`PublicKey::new`] takes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Point::Ed25519(key) => key.as_bytes(),
            Point::P256(bytes) => &**bytes,
        }
    }

    /// Unpadded base64, as in `verify_keys` of a Matrix key document.
    pub fn to_base64(&self) -> String {
        STANDARD_NO_PAD.encode(self.as_bytes())
    }
}

/// Equal if algorithm and bytes are, and ordered by them.
impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PublicKey {}

impl PartialOrd for PublicKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PublicKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.algorithm(), self.as_bytes()).cmp(&(other.algorithm(), other.as_bytes()))
    }
}

impl Hash for PublicKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.algorithm(), self.as_bytes()).hash(state);
    }
}

/// Text form: `ed25519:` or `p256:` and unpadded base64, as configuration files and the command line write it.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.to_base64())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not the text form of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a public key: it is written ed25519:BASE64 or p256:BASE64")]
pub struct NotAPublicKey;

impl FromStr for PublicKey {
    type Err = NotAPublicKey;

    fn from_str(text: &str) -> Result<Self, NotAPublicKey> {
        let (algorithm, bytes) = text.trim().split_once(':').ok_or(NotAPublicKey)?;
        let algorithm = match algorithm {
            "ed25519" => Algorithm::Ed25519,
            "p256" => Algorithm::P256,
            _ => return Err(NotAPublicKey),
        };
        let bytes = STANDARD_NO_PAD.decode(bytes).map_err(|_| NotAPublicKey)?;
        Self::new(algorithm, &bytes).map_err(|_| NotAPublicKey)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// 64 bytes of signature; which algorithm made them is a property of the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; Self::BYTES]);

impl Signature {
    /// Bytes of a signature of either algorithm.
    pub const BYTES: usize = 64;

    /// The bytes: R ‖ S of Ed25519, r ‖ s of ECDSA.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// Unpadded base64, as in `signatures` of a Matrix event.
    pub fn to_base64(&self) -> String {
        STANDARD_NO_PAD.encode(self.0)
    }
}

impl From<[u8; Self::BYTES]> for Signature {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }
}

impl TryFrom<&[u8]> for Signature {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

/// Verifies one signature. Ed25519 strictly: no small-order points, no other encodings of the same signature.
pub fn verify(
    key: &PublicKey,
    message: &[u8],
    signature: &Signature,
) -> Result<(), SignatureMismatch> {
    match &key.0 {
        Point::Ed25519(key) => key
            .verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0))
            .map_err(|_mismatch| SignatureMismatch),
        Point::P256(bytes) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &**bytes)
            .verify(message, &signature.0)
            .map_err(|_mismatch| SignatureMismatch),
    }
}
