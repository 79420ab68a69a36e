//! What a token says of a *working key*: one that it wraps but cannot hold, because it knows no such algorithm.
//!
//! A certificate is a COSE_Sign1 by a courier key of the token over deterministic CBOR. It ties the public half to the server, the name of the key and
//! the key that wraps the private half: a wrapped key that was put into the file by somebody else is not used, although
//! anybody can encrypt to a public wrapping key.
//!
//! ```cddl
//! working-key = { 0: 1          ; version
//!               , 1: tstr       ; server name
//!               , 2: tstr       ; name of the key, `event:0123456789abcdef`
//!               , 3: key        ; its public half, as in a card
//!               , 4: uint       ; when it was made (milliseconds since 1970)
//!               , 5: tstr }     ; name of the storage key that wraps it
//! ```

use minicbor::{Decode, Encode};
use ruma::OwnedServerName;

use crate::{
    cbor,
    cose::{self, KeyId, SignError},
    limits::WORKING_KEY_BYTES_MAX,
    sign::{PublicKey, Signature, context},
    time::Millis,
};

/// The version of certificates that this program writes and reads.
pub const VERSION: u32 = 1;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct WorkingKey {
    /// [`VERSION`].
    #[n(0)]
    pub version: u32,
    /// The server whose key it is.
    #[cbor(n(1), with = "cbor::id")]
    pub server_name: OwnedServerName,
    /// The name of the key.
    #[n(2)]
    pub name: String,
    /// Its public half.
    #[n(3)]
    pub public: PublicKey,
    /// When it was made.
    #[n(4)]
    pub created: Millis,
    /// The name of the storage key that wraps its private half.
    #[n(5)]
    pub wrapped_by: String,
}

/// Why a certificate was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// Not a certificate at all.
    #[error("the certificate is damaged")]
    Malformed,
    /// Not signed by the key that it should be.
    #[error("the certificate's signature is wrong")]
    BadSignature,
}

/// A certificate that was not verified yet.
#[derive(Debug)]
pub struct Unverified(cose::Unverified);

impl WorkingKey {
    /// Signs the certificate with a courier key. The signer gets the bytes that the signature covers.
    ///
    /// # Errors
    /// What the signer says, or that its signature is not by the key it should be.
    pub fn certify<E>(
        &self,
        courier: &PublicKey,
        signer: impl FnOnce(&[u8]) -> Result<Signature, E>,
    ) -> Result<Vec<u8>, SignError<E>> {
        let payload = cbor::to_bytes(self).map_err(|_| SignError::Encode)?;
        cose::sign(context::WORKING_KEY, courier, payload, signer)
    }

    /// Reads what a certificate says, signed or not.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, Invalid> {
        let said: Self = cbor::from_bytes(payload).map_err(|_| Invalid::Malformed)?;
        if said.version == VERSION { Ok(said) } else { Err(Invalid::Malformed) }
    }
}

impl Unverified {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`Invalid::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > WORKING_KEY_BYTES_MAX {
            return Err(Invalid::Malformed);
        }
        cose::Unverified::parse(bytes).map(Self).map_err(|_| Invalid::Malformed)
    }

    /// The courier key that is said to have signed it.
    #[must_use]
    pub fn signer(&self) -> KeyId {
        self.0.key_id()
    }

    /// What it says, if that courier key signed it.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn verify(self, courier: &PublicKey) -> Result<WorkingKey, Invalid> {
        let payload =
            self.0.verify(context::WORKING_KEY, courier).map_err(|_| Invalid::BadSignature)?;
        WorkingKey::decode(&payload)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use ed25519_dalek::Signer as _;

    use super::*;
    use crate::sign::Algorithm;

    fn courier(seed: u8) -> (ed25519_dalek::SigningKey, PublicKey) {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let public = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
        (secret, public)
    }

    fn certified(said: &WorkingKey) -> Vec<u8> {
        let (secret, public) = courier(1);
        said.certify(&public, |bytes| Ok::<_, Infallible>(secret.sign(bytes).to_bytes().into()))
            .unwrap()
    }

    fn said() -> WorkingKey {
        WorkingKey {
            version: VERSION,
            server_name: "alpha.example".try_into().unwrap(),
            name: "event:0123456789abcdef".to_owned(),
            public: courier(2).1,
            created: Millis(1_700_000_000_000),
            wrapped_by: "storage:0123456789abcdef".to_owned(),
        }
    }

    #[test]
    fn a_certificate_says_what_was_signed_and_only_by_that_key() {
        let bytes = certified(&said());
        let read = Unverified::parse(&bytes).unwrap();
        assert_eq!(read.signer(), KeyId::of(&courier(1).1));
        assert_eq!(read.verify(&courier(1).1).unwrap(), said());
        let other = Unverified::parse(&bytes).unwrap().verify(&courier(3).1);
        assert!(matches!(other, Err(Invalid::BadSignature)));
        let later = certified(&WorkingKey { version: 2, ..said() });
        let later = Unverified::parse(&later).unwrap().verify(&courier(1).1);
        assert!(matches!(later, Err(Invalid::Malformed)));
    }

    #[test]
    fn a_changed_certificate_is_refused() {
        let bytes = certified(&said());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let read = Unverified::parse(&changed).and_then(|read| read.verify(&courier(1).1));
            assert!(read.is_err(), "byte {at}");
        }
        assert!(Unverified::parse(&vec![0; WORKING_KEY_BYTES_MAX + 1]).is_err());
    }
}
