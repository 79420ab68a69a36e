//! What a private key of 32 bytes does in software. The keys of the libraries are made for one operation and wiped by
//! their own drop: nothing but the 32 bytes is ever kept.

use ed25519_dalek::Signer as _;
use sallyport_core::sign::{Algorithm, PublicKey, Signature};

use crate::{Error, P256_POINT_BYTES, Secret32};

/// A fresh private key.
pub(crate) fn fresh(algorithm: Algorithm) -> Result<Secret32, Error> {
    let mut secret = Secret32::random()?;
    // All but about one of 2^32 numbers is a scalar of P-256.
    while algorithm == Algorithm::P256 && scalar(&secret).is_none() {
        secret = Secret32::random()?;
    }
    Ok(secret)
}

/// The public half; `None` if the bytes are no private key.
pub(crate) fn public_key(algorithm: Algorithm, secret: &Secret32) -> Option<PublicKey> {
    match algorithm {
        Algorithm::Ed25519 => {
            let key = ed25519_dalek::SigningKey::from_bytes(secret.expose());
            PublicKey::new(algorithm, key.verifying_key().as_bytes()).ok()
        }
        Algorithm::P256 => {
            PublicKey::new(algorithm, &scalar(secret)?.public_key().to_sec1_bytes()).ok()
        }
    }
}

/// A signature; `None` if the bytes are no private key.
pub(crate) fn sign(algorithm: Algorithm, secret: &[u8; 32], bytes: &[u8]) -> Option<Signature> {
    match algorithm {
        Algorithm::Ed25519 => {
            Some(ed25519_dalek::SigningKey::from_bytes(secret).sign(bytes).to_bytes().into())
        }
        Algorithm::P256 => {
            let key = p256::ecdsa::SigningKey::from_slice(secret).ok()?;
            let signature: p256::ecdsa::Signature = key.sign(bytes);
            let bytes: [u8; Signature::BYTES] = signature.to_bytes().into();
            Some(bytes.into())
        }
    }
}

/// The x-coordinate of the point shared with `peer`; `None` if the bytes are no private key of P-256.
pub(crate) fn agree(
    secret: &[u8; 32],
    peer: &[u8; P256_POINT_BYTES],
) -> Result<Option<Secret32>, Error> {
    let peer = p256::PublicKey::from_sec1_bytes(peer).map_err(|_off_curve| Error::InvalidPeer)?;
    let Ok(secret) = p256::SecretKey::from_slice(secret) else { return Ok(None) };
    Ok(Some(Secret32::new(secret.diffie_hellman(&peer).raw_secret_bytes().as_ref())))
}

fn scalar(secret: &Secret32) -> Option<p256::SecretKey> {
    p256::SecretKey::from_slice(secret.expose()).ok()
}
