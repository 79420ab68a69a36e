//! Secrets at rest, sealed so that one storage key of a token opens them.
//!
//! Tokens differ in what they can do with a key that never leaves them, and none binds a secret to what it is for. So the storage
//! key keeps a fresh key in a *capsule*, by whichever [`Method`] the token knows, and that key seals the secret with AES-256-GCM:
//!
//! ```text
//! wrapped = version (1 byte: 2) ‖ method (1 byte) ‖ capsule (of the length of its method) ‖ nonce (12) ‖ ciphertext (32) ‖ tag (16)
//! ```
//!
//! The additional data are the name of the storage key, everything before the nonce, and what the caller says the secret is for.

use minicbor::{Decode, Encode};
use ring::hkdf;
use sallyport_core::sign::{Algorithm, PublicKey};

use crate::{Error, KeyKind, KeyName, P256_POINT_BYTES, Secret32, keypair, seal};

const VERSION: u8 = 2;

/// How a storage key keeps the key that seals a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum Method {
    /// AES-256 key wrap (RFC 3394).
    #[n(1)]
    AesKw,
    /// ECDH on P-256 between the storage key and an ephemeral key, then HKDF-SHA256. The token does only the first.
    #[n(2)]
    EcdhP256,
    /// RSA-OAEP with a modulus of 2048 bits.
    #[n(3)]
    RsaOaep,
    /// The storage key itself is at hand and seals the secret: the software token.
    #[n(4)]
    Plain,
}

/// A fresh key as a storage key keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Capsule {
    #[n(0)]
    pub(crate) method: Method,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(crate) bytes: Vec<u8>,
}

impl Method {
    const ALL: [Self; 4] = [Self::AesKw, Self::EcdhP256, Self::RsaOaep, Self::Plain];

    /// The method for a storage key of a token.
    pub(crate) fn of(kind: KeyKind) -> Option<Self> {
        match kind {
            KeyKind::Aes256 => Some(Self::AesKw),
            KeyKind::P256 => Some(Self::EcdhP256),
            KeyKind::Rsa2048 => Some(Self::RsaOaep),
            KeyKind::Ed25519 => None,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::AesKw => 1,
            Self::EcdhP256 => 2,
            Self::RsaOaep => 3,
            Self::Plain => 4,
        }
    }

    /// Bytes of a capsule.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::AesKw => Secret32::BYTES + 8,
            Self::EcdhP256 => P256_POINT_BYTES,
            Self::RsaOaep => 256,
            Self::Plain => 0,
        }
    }
}

impl Capsule {
    /// For a key that is at hand.
    pub(crate) const PLAIN: Self = Self { method: Method::Plain, bytes: Vec::new() };

    /// Makes a fresh key that the holder of a P-256 key can make again.
    pub(crate) fn to_p256(public: &PublicKey) -> Result<(Secret32, Self), Error> {
        let peer = public.as_bytes().try_into().map_err(|_length| Error::InvalidPeer)?;
        let ephemeral = keypair::fresh(Algorithm::P256)?;
        let point = keypair::public_key(Algorithm::P256, &ephemeral).ok_or(Error::InvalidPeer)?;
        let shared = keypair::agree(ephemeral.expose(), peer)?.ok_or(Error::InvalidPeer)?;
        let key = p256_key(&shared, point.as_bytes(), public.as_bytes())?;
        Ok((key, Self { method: Method::EcdhP256, bytes: point.as_bytes().to_vec() }))
    }

    fn header(&self) -> Vec<u8> {
        [&[VERSION, self.method.code()], self.bytes.as_slice()].concat()
    }
}

/// The key from the shared x-coordinate. Both points are bound to it (SP 800-56A, section 5.8.2): another point with the same
/// x-coordinate gives another key.
pub(crate) fn p256_key(
    shared: &Secret32,
    ephemeral: &[u8],
    storage: &[u8],
) -> Result<Secret32, Error> {
    let info = [b"sallyport/wrap/2|ecdh-p256|".as_slice(), ephemeral, storage];
    let failed = |_unspecified| Error::Damaged;
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(shared.expose());
    let key = key.expand(&info, hkdf::HKDF_SHA256).map_err(failed)?;
    Secret32::fill(|bytes| key.fill(bytes)).map_err(failed)
}

/// Seals a secret with a fresh key, whose capsule goes before it.
pub(crate) fn seal(
    name: &KeyName,
    fresh: &Secret32,
    capsule: &Capsule,
    secret: &Secret32,
    aad: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut wrapped = capsule.header();
    let sealed = seal::seal(fresh, &bound(name, &wrapped, aad), secret.expose())?;
    wrapped.extend(sealed);
    Ok(wrapped)
}

/// Opens what [`seal()`] made; `key` gives the key for the capsule.
pub(crate) fn open(
    name: &KeyName,
    wrapped: &[u8],
    aad: &[u8],
    key: impl FnOnce(Capsule) -> Result<Secret32, Error>,
) -> Result<Secret32, Error> {
    let (&[version, code], body) = wrapped.split_first_chunk().ok_or(Error::Damaged)?;
    let method = Method::ALL.into_iter().find(|method| method.code() == code);
    let method = method.filter(|_| version == VERSION).ok_or(Error::Damaged)?;
    let (capsule, sealed) = body.split_at_checked(method.bytes()).ok_or(Error::Damaged)?;
    let capsule = Capsule { method, bytes: capsule.to_vec() };
    let aad = bound(name, &capsule.header(), aad);
    let secret = seal::unseal(&key(capsule)?, &aad, sealed)?;
    Secret32::from_slice(&secret).ok_or(Error::Damaged)
}

/// The header has the length that its second byte says, and names have no `|`: no two triples give the same bytes.
fn bound(name: &KeyName, header: &[u8], aad: &[u8]) -> Vec<u8> {
    [b"sallyport/wrap/2|", name.to_string().as_bytes(), b"|", header, aad].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyRole;

    #[test]
    fn the_holder_of_the_p256_key_opens_what_was_sealed_to_it() {
        let name = KeyName::new(KeyRole::Storage, [7; 8]);
        let storage = keypair::fresh(Algorithm::P256).unwrap();
        let public = keypair::public_key(Algorithm::P256, &storage).unwrap();
        let secret = Secret32::new(&[42; 32]);
        let (fresh, capsule) = Capsule::to_p256(&public).unwrap();
        let wrapped = seal(&name, &fresh, &capsule, &secret, b"test").unwrap();
        let open_with = |wrapped: &[u8], x: &dyn Fn(&[u8; 65]) -> Result<Secret32, Error>| {
            open(&name, wrapped, b"test", |capsule| {
                let point = capsule.bytes.as_slice().try_into().map_err(|_| Error::Damaged)?;
                p256_key(&x(point)?, point, public.as_bytes())
            })
        };
        let token = |point: &[u8; 65]| keypair::agree(storage.expose(), point).map(Option::unwrap);
        assert_eq!(open_with(&wrapped, &token).unwrap().expose(), secret.expose());

        // The other point with the same x-coordinate gives the same shared x-coordinate, and must not open it.
        let mut mirrored = wrapped.clone();
        let point = p256::PublicKey::from_sec1_bytes(&wrapped[2..67]).unwrap();
        let negative = p256::PublicKey::from_affine((-point.to_projective()).to_affine()).unwrap();
        mirrored[2..67].copy_from_slice(&negative.to_sec1_bytes());
        let shared = |bytes: &[u8]| token(bytes.try_into().unwrap()).unwrap();
        assert_eq!(shared(&wrapped[2..67]).expose(), shared(&mirrored[2..67]).expose());
        assert!(matches!(open_with(&mirrored, &token), Err(Error::Damaged)));
    }

    #[test]
    fn another_version_or_method_is_refused_before_any_key_is_used() {
        let name = KeyName::new(KeyRole::Storage, [7; 8]);
        let secret = Secret32::new(&[42; 32]);
        let wrapped = seal(&name, &secret, &Capsule::PLAIN, &secret, b"").unwrap();
        for (at, value) in [(0, 1), (0, 3), (1, 0), (1, 3), (1, 5)] {
            let mut other = wrapped.clone();
            other[at] = value;
            let opened = open(&name, &other, b"", |_| panic!("a key was asked for"));
            assert!(matches!(opened, Err(Error::Damaged)), "{at} {value}");
        }
    }
}
