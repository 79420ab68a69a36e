//! The courier keys on a card.

use minicbor::{Decode, Encode};

use crate::{
    bundle::{is_x_wing_public, x_wing_public},
    cose::KeyId,
    sign::PublicKey,
    time::Millis,
};

/// A key that signs bundles.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CourierKey {
    /// The public half.
    #[n(0)]
    pub public: PublicKey,
    /// The last moment that a bundle signed by it may say it was made at.
    #[n(1)]
    pub not_after: Millis,
}

impl CourierKey {
    /// The key's id.
    pub fn id(&self) -> KeyId {
        KeyId::of(&self.public)
    }
}

/// How the key of a bundle is agreed on. A card may hold keys of suites that this program does not know: they are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionSuite {
    /// Code 1: HPKE (RFC 9180) with DHKEM(P-256, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM.
    P256HkdfSha256Aes256Gcm,
    /// Code 2: HPKE with X-Wing (X25519 and ML-KEM-768 together), HKDF-SHA256 and AES-256-GCM. What is copied from a
    /// stick today stays closed when quantum computers can break the curves.
    XWingHkdfSha256Aes256Gcm,
}

impl EncryptionSuite {
    /// The suite with a code.
    pub fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::P256HkdfSha256Aes256Gcm),
            2 => Some(Self::XWingHkdfSha256Aes256Gcm),
            _ => None,
        }
    }

    /// The code in cards and bundles.
    pub fn code(self) -> u16 {
        match self {
            Self::P256HkdfSha256Aes256Gcm => 1,
            Self::XWingHkdfSha256Aes256Gcm => 2,
        }
    }
}

/// A key that bundles are encrypted to. Its private half is destroyed some time after `not_after`, and with it the
/// means to read old sticks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct EncryptionKey {
    /// The code of an [`EncryptionSuite`].
    #[n(0)]
    pub suite: u16,
    /// The public half; an uncompressed point of 65 bytes in suite 1, 1216 bytes in suite 2.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub public: Vec<u8>,
    /// The last moment at which a sender may use it.
    #[n(2)]
    pub not_after: Millis,
}

impl EncryptionKey {
    /// The X-Wing key that a secret seed of 32 random bytes makes. The seed is the private half.
    pub fn x_wing(seed: &[u8; 32], not_after: Millis) -> Self {
        let suite = EncryptionSuite::XWingHkdfSha256Aes256Gcm.code();
        Self { suite, public: x_wing_public(seed), not_after }
    }

    /// The suite, if this program knows it.
    pub fn suite(&self) -> Option<EncryptionSuite> {
        EncryptionSuite::from_code(self.suite)
    }

    /// The key's id.
    pub fn id(&self) -> KeyId {
        KeyId::of_parts(&[b"encrypt", &self.suite.to_be_bytes(), &self.public])
    }

    /// Whether a sender may use the key now.
    pub fn is_usable(&self, now: Millis) -> bool {
        self.suite().is_some() && self.is_sound() && now <= self.not_after
    }

    /// Whether the public half is one of its suite, as far as this program can tell.
    pub(crate) fn is_sound(&self) -> bool {
        match self.suite() {
            Some(EncryptionSuite::P256HkdfSha256Aes256Gcm) => {
                self.public.len() == PublicKey::P256_BYTES
                    && p256::PublicKey::from_sec1_bytes(&self.public).is_ok()
            }
            Some(EncryptionSuite::XWingHkdfSha256Aes256Gcm) => is_x_wing_public(&self.public),
            None => true,
        }
    }
}
