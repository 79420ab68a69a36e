//! Signed envelopes: COSE_Sign1 (RFC 9052, section 4.2) with one accepted form.
//!
//! The protected header holds the algorithm and the id of the key, nothing else; the unprotected header is empty. What
//! kind of document it is stands in `external_aad` ([`sign::context`]): a signature over one kind
//! is never one over another. An envelope is rebuilt from what was read and compared with the bytes, so that there is
//! no second encoding of it.

use coset::{
    CoseSign1, CoseSign1Builder, HeaderBuilder, RegisteredLabelWithPrivate::Assigned,
    TaggedCborSerializable as _, iana,
};
use minicbor::{Decode, Encode};

use crate::{
    digest::Sha256,
    sign::{self, Algorithm, PublicKey, Signature},
};

/// Names a key in an envelope: the first 8 bytes of SHA-256 over its algorithm and its bytes. A hint, never a proof.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct KeyId(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 8]);

/// Why an envelope was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a COSE_Sign1 of the one accepted form, or of another content type.
    #[error("not a signed document of the expected kind")]
    Malformed,
    /// The signature is not one of the expected key over this document.
    #[error("signature does not verify")]
    BadSignature,
}

/// Why a document was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError<E> {
    /// The holder of the key did not sign.
    #[error("signing key did not sign")]
    Signer(#[source] E),
    /// The holder answered with something that its own public key does not verify: a wrong slot, or a fault.
    #[error("signature does not verify against the key it should be of")]
    WrongKey,
    /// The envelope cannot be encoded.
    #[error("signed document cannot be encoded")]
    Encode,
}

impl KeyId {
    /// The id of a signing key.
    pub fn of(key: &PublicKey) -> Self {
        let algorithm = match key.algorithm() {
            Algorithm::Ed25519 => b"ed25519",
            Algorithm::P256 => b"es256\0\0",
        };
        Self::of_parts(&[algorithm, key.as_bytes()])
    }

    /// The id of a key that is these parts, the first of which names its kind.
    pub(crate) fn of_parts(parts: &[&[u8]]) -> Self {
        let mut id = [0; 8];
        id.iter_mut().zip(Sha256::of_parts(parts).0).for_each(|(to, from)| *to = from);
        Self(id)
    }
}

impl std::fmt::Debug for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Signs a payload. The signer gets the `Sig_structure`, which is what the signature covers; its answer is verified
/// before it is used.
pub fn sign<E>(
    context: &[u8],
    key: &PublicKey,
    payload: Vec<u8>,
    signer: impl FnOnce(&[u8]) -> Result<Signature, E>,
) -> Result<Vec<u8>, SignError<E>> {
    let mut envelope = unsigned(key.algorithm(), KeyId::of(key), payload);
    let to_be_signed = envelope.tbs_data(context);
    let signature = signer(&to_be_signed).map_err(SignError::Signer)?;
    sign::verify(key, &to_be_signed, &signature).map_err(|_| SignError::WrongKey)?;
    envelope.signature = signature.as_bytes().to_vec();
    envelope.to_tagged_vec().map_err(|_| SignError::Encode)
}

/// An envelope whose signature was not checked yet.
#[derive(Debug)]
pub struct Unverified {
    algorithm: Algorithm,
    key_id: KeyId,
    signature: Signature,
    envelope: CoseSign1,
}

impl Unverified {
    /// Reads an envelope. The caller bounds the length of the bytes first.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let read = CoseSign1::from_tagged_slice(bytes).map_err(|_| Error::Malformed)?;
        let header = &read.protected.header;
        let algorithm = match header.alg {
            Some(Assigned(iana::Algorithm::EdDSA)) => Algorithm::Ed25519,
            Some(Assigned(iana::Algorithm::ES256)) => Algorithm::P256,
            _ => return Err(Error::Malformed),
        };
        let key_id = KeyId(header.key_id.as_slice().try_into().map_err(|_| Error::Malformed)?);
        let signature =
            Signature::try_from(read.signature.as_slice()).map_err(|_| Error::Malformed)?;
        let mut envelope = unsigned(algorithm, key_id, read.payload.ok_or(Error::Malformed)?);
        envelope.signature = read.signature;
        match envelope.clone().to_tagged_vec() {
            Ok(rebuilt) if rebuilt == bytes => Ok(Self { algorithm, key_id, signature, envelope }),
            _ => Err(Error::Malformed),
        }
    }

    /// The key that the envelope says it was signed by.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// The payload, if a key signed it as this kind of document.
    pub fn verify(self, context: &[u8], key: &PublicKey) -> Result<Vec<u8>, Error> {
        if self.algorithm != key.algorithm() || self.key_id != KeyId::of(key) {
            return Err(Error::BadSignature);
        }
        sign::verify(key, &self.envelope.tbs_data(context), &self.signature)
            .map_err(|_| Error::BadSignature)?;
        self.envelope.payload.ok_or(Error::Malformed)
    }

    /// The payload before anything was verified: for a document that carries the key to verify it with.
    pub(crate) fn unverified_payload(&self) -> &[u8] {
        self.envelope.payload.as_deref().unwrap_or_default()
    }
}

fn unsigned(algorithm: Algorithm, key_id: KeyId, payload: Vec<u8>) -> CoseSign1 {
    let algorithm = match algorithm {
        Algorithm::Ed25519 => iana::Algorithm::EdDSA,
        Algorithm::P256 => iana::Algorithm::ES256,
    };
    let protected = HeaderBuilder::new().algorithm(algorithm).key_id(key_id.0.to_vec()).build();
    CoseSign1Builder::new().protected(protected).payload(payload).build()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use ed25519_dalek::Signer as _;

    use super::*;

    const KIND: &[u8] = b"sallyport/test/1";

    fn ed25519(seed: u8) -> (ed25519_dalek::SigningKey, PublicKey) {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let public = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
        (secret, public)
    }

    fn signed() -> (PublicKey, Vec<u8>) {
        let (secret, public) = ed25519(7);
        let bytes = sign(KIND, &public, b"payload".to_vec(), |tbs| {
            Ok::<_, Infallible>(secret.sign(tbs).to_bytes().into())
        })
        .unwrap();
        (public, bytes)
    }

    #[test]
    fn both_algorithms_sign_and_verify() {
        let (public, bytes) = signed();
        let payload = Unverified::parse(&bytes).unwrap().verify(KIND, &public).unwrap();
        assert_eq!(payload, b"payload");

        let secret = p256::ecdsa::SigningKey::from_slice(&[9; 32]).unwrap();
        let point = secret.verifying_key().to_sec1_point(false);
        let public = PublicKey::new(Algorithm::P256, point.as_bytes()).unwrap();
        let bytes = sign(KIND, &public, b"payload".to_vec(), |tbs| {
            let signature: p256::ecdsa::Signature = secret.sign(tbs);
            Signature::try_from(signature.to_bytes().as_slice())
        })
        .unwrap();
        let payload = Unverified::parse(&bytes).unwrap().verify(KIND, &public).unwrap();
        assert_eq!(payload, b"payload");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let (public, bytes) = signed();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let result = Unverified::parse(&damaged).and_then(|e| e.verify(KIND, &public));
                assert!(result.is_err(), "byte {at}, bit {bit}");
            }
            assert!(Unverified::parse(&bytes[..at]).is_err(), "first {at} bytes");
        }
    }

    #[test]
    fn another_context_key_or_form_is_refused() {
        let (public, bytes) = signed();
        let verify = |context, key| Unverified::parse(&bytes).unwrap().verify(context, key);
        assert!(matches!(verify(b"sallyport/other/1", &public), Err(Error::BadSignature)));
        assert!(matches!(verify(KIND, &ed25519(8).1), Err(Error::BadSignature)));
        // The same envelope without its tag, which other readers would accept.
        assert!(matches!(Unverified::parse(&bytes[1..]), Err(Error::Malformed)));
        // A payload that is not attached.
        let mut detached = CoseSign1::from_tagged_slice(&bytes).unwrap();
        detached.payload = None;
        let detached = detached.to_tagged_vec().unwrap();
        assert!(matches!(Unverified::parse(&detached), Err(Error::Malformed)));
    }

    #[test]
    fn a_signature_of_the_wrong_slot_is_noticed() {
        let other = ed25519(8).0;
        let result = sign(KIND, &ed25519(7).1, vec![], |tbs| {
            Ok::<_, Infallible>(other.sign(tbs).to_bytes().into())
        });
        assert!(matches!(result, Err(SignError::WrongKey)));
    }
}
