//! Recovery keys in their text form, and the stanzas that wrap the content key for them.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use minicbor::{Decode, Encode};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use super::{Error, WriteError};
use crate::{
    bundle::{
        PrivateHalf,
        hpke::{self, POINT_BYTES, RANDOMNESS_BYTES, SharedSecret},
    },
    card::{EncryptionKey, EncryptionSuite},
    cose::KeyId,
    time::Millis,
};

/// The public half of a recovery officer's key. Text form: `p256:` or `x-wing:` and unpadded base64.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryKey {
    suite: EncryptionSuite,
    public: Vec<u8>,
}

/// The text is not the text form of a recovery key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a recovery key: it is written p256:BASE64 or x-wing:BASE64, as `sallyctl ceremony recovery-key` prints it"
)]
pub struct NotARecoveryKey;

impl RecoveryKey {
    /// A key of a suite: an uncompressed point of P-256, or a public key of X-Wing.
    ///
    /// # Errors
    /// [`NotARecoveryKey`] if the bytes are not one.
    pub fn new(suite: EncryptionSuite, public: Vec<u8>) -> Result<Self, NotARecoveryKey> {
        let key = EncryptionKey { suite: suite.code(), public, not_after: Millis(u64::MAX) };
        if !key.is_usable(Millis(0)) {
            return Err(NotARecoveryKey);
        }
        Ok(Self { suite, public: key.public })
    }

    /// The X-Wing key that a secret seed of 32 random bytes makes.
    #[must_use]
    pub fn x_wing(seed: &[u8; 32]) -> Self {
        let suite = EncryptionSuite::XWingHkdfSha256Aes256Gcm;
        Self { suite, public: EncryptionKey::x_wing(seed, Millis(0)).public }
    }

    /// How content is encrypted to it.
    #[must_use]
    pub fn suite(&self) -> EncryptionSuite {
        self.suite
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// What stanzas name it by.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let (suite, public) = (self.suite.code(), self.public.clone());
        EncryptionKey { suite, public, not_after: Millis(0) }.id()
    }

    fn prefix(&self) -> &'static str {
        match self.suite {
            EncryptionSuite::P256HkdfSha256Aes256Gcm => "p256",
            EncryptionSuite::XWingHkdfSha256Aes256Gcm => "x-wing",
        }
    }
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.prefix(), STANDARD_NO_PAD.encode(&self.public))
    }
}

/// A key of X-Wing has a thousand characters; its id tells it apart.
impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.prefix(), self.id())
    }
}

impl FromStr for RecoveryKey {
    type Err = NotARecoveryKey;

    fn from_str(text: &str) -> Result<Self, NotARecoveryKey> {
        let (prefix, public) = text.trim().split_once(':').ok_or(NotARecoveryKey)?;
        let suite = match prefix {
            "p256" => EncryptionSuite::P256HkdfSha256Aes256Gcm,
            "x-wing" => EncryptionSuite::XWingHkdfSha256Aes256Gcm,
            _ => return Err(NotARecoveryKey),
        };
        Self::new(suite, STANDARD_NO_PAD.decode(public).map_err(|_| NotARecoveryKey)?)
    }
}

impl Serialize for RecoveryKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RecoveryKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The content key, wrapped for one recovery key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stanza {
    /// The code of the [`EncryptionSuite`].
    #[n(0)]
    pub suite: u16,
    /// The recovery key.
    #[n(1)]
    pub key: KeyId,
    /// The sender's ephemeral point, or the ciphertext of X-Wing.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub encapsulated: Vec<u8>,
    /// The content key under AES-256-GCM: 32 bytes and a tag.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub wrapped: Vec<u8>,
}

const PURPOSE: &[u8] = b"sallyport backup content key";

impl Stanza {
    /// Wraps a content key. `info` binds it to what it is the key of.
    pub(super) fn wrap(
        to: &RecoveryKey,
        content_key: &[u8; 32],
        info: &[u8],
        randomness: &[u8; RANDOMNESS_BYTES],
    ) -> Result<Self, WriteError> {
        let (encapsulated, secret) = hpke::encapsulate(to.suite, &to.public, randomness)
            .map_err(|_| WriteError::Recipient(to.clone()))?;
        let mut wrapped = content_key.to_vec();
        let key = wrapping_key(&secret, info).ok_or(WriteError::Encode)?;
        key.seal_in_place_append_tag(nonce(), Aad::from(info), &mut wrapped)
            .map_err(|_| WriteError::Encode)?;
        Ok(Self { suite: to.suite.code(), key: to.id(), encapsulated, wrapped })
    }

    /// Unwraps the content key with the private half, which may be a token's affair.
    pub(super) fn unwrap<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        &self,
        own: &RecoveryKey,
        info: &[u8],
        private: impl FnOnce(PrivateHalf<'_>) -> Result<Zeroizing<[u8; 32]>, E>,
    ) -> Result<Zeroizing<[u8; 32]>, Error> {
        let private =
            |asked: PrivateHalf<'_>| private(asked).map_err(|error| Error::Token(error.into()));
        let secret = match own.suite {
            EncryptionSuite::P256HkdfSha256Aes256Gcm => {
                let point = self.encapsulated.first_chunk::<POINT_BYTES>();
                let point = point.filter(|_| hpke::is_point(&self.encapsulated));
                let point = point.ok_or(Error::Header)?;
                let agreed = private(PrivateHalf::Agree(point))?;
                SharedSecret::agreed(agreed.as_slice(), point, &own.public)
            }
            EncryptionSuite::XWingHkdfSha256Aes256Gcm => {
                let seed = private(PrivateHalf::Seed)?;
                SharedSecret::decapsulated(&seed, &self.encapsulated).map_err(|_| Error::Header)?
            }
        };
        let key = wrapping_key(&secret, info).ok_or(Error::Header)?;
        let mut wrapped = Zeroizing::new(self.wrapped.clone());
        let opened = key
            .open_in_place(nonce(), Aad::from(info), wrapped.as_mut_slice())
            .map_err(|_| Error::WrongKey)?;
        Ok(Zeroizing::new((&*opened).try_into().map_err(|_| Error::Header)?))
    }
}

fn wrapping_key(secret: &SharedSecret, info: &[u8]) -> Option<LessSafeKey> {
    let key = secret.export(info, PURPOSE);
    UnboundKey::new(&AES_256_GCM, key.as_slice()).ok().map(LessSafeKey::new)
}

/// Each wrapping key is used once: it comes of a fresh encapsulation.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}
