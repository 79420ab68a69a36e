//! A key on P-256 in the token: it signs certificates for rcgen and handshakes for rustls.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::metrics::counter::Counter;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::{
    SignatureAlgorithm, SignatureScheme,
    sign::{Signer, SigningKey},
};
use sallyport_core::sign::{Signature, SigningRequest};
use sallyport_hsm::{Health, KeyName, Token};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::block_in_place};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::Error;
use crate::service::own_keys::Current;

/// A key on P-256 in the token.
#[derive(Clone)]
pub(super) struct TokenKey {
    token: Arc<dyn Token>,
    name: KeyName,
    /// Uncompressed (SEC 1, section 2.3.3).
    point: Vec<u8>,
}

impl TokenKey {
    pub(super) fn new(token: Arc<dyn Token>, key: Current) -> Self {
        Self { token, name: key.name, point: key.key.public }
    }

    pub(super) fn name(&self) -> &KeyName {
        &self.name
    }

    fn sign(&self, request: &SigningRequest) -> Result<Vec<u8>, sallyport_hsm::Error> {
        Ok(der(self.token.sign(&self.name, request)?.as_bytes()))
    }
}

impl PublicKeyData for TokenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenKey").field(&self.name.to_string()).finish()
    }
}

/// The key as rcgen asks it, for one kind of document. rcgen's error has no room for the token's, so that is kept here.
pub(super) struct Asked<'k> {
    key: &'k TokenKey,
    request: fn(Vec<u8>) -> SigningRequest,
    failed: Mutex<Option<sallyport_hsm::Error>>,
}

impl<'k> Asked<'k> {
    pub(super) fn new(key: &'k TokenKey, request: fn(Vec<u8>) -> SigningRequest) -> Self {
        Self { key, request, failed: Mutex::default() }
    }

    /// What went wrong when rcgen says that something did.
    pub(super) fn error(self, error: rcgen::Error) -> Error {
        match self.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(source) => Error::Token { key: self.key.name.clone(), source },
            None => Error::Issue(error),
        }
    }
}

impl PublicKeyData for Asked<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.key.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.key.algorithm()
    }
}

impl rcgen::SigningKey for Asked<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(&(self.request)(message.to_vec())).map_err(|error| {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            rcgen::Error::RemoteKeyError
        })
    }
}

/// The key as rustls asks it. Only TLS 1.3 with ECDSA on P-256.
#[derive(Clone, Debug)]
pub(super) struct HandshakeKey {
    key: TokenKey,
    /// Signatures under way.
    places: Arc<Semaphore>,
    made: Counter,
}

impl HandshakeKey {
    /// `places` bounds how many signatures are under way, `made` counts them.
    pub(super) fn new(key: TokenKey, places: Arc<Semaphore>, made: Counter) -> Self {
        Self { key, places, made }
    }
}

impl SigningKey for HandshakeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.scheme()).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for HandshakeKey {
    /// Blocks as long as the token takes. Handshakes come here on a thread that may block ([`super::Acceptor`]); only the second try of a client whose key
    /// exchange we do not know comes on a thread of the reactor, which hands its other work on. An absent token fails at once.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let failed = |why: String| rustls::Error::General(why);
        if self.key.token.health() != Health::Ready {
            return Err(failed("the token with the TLS key does not answer".to_owned()));
        }
        let Ok(_place) = self.places.try_acquire() else {
            return Err(failed("the token has more handshakes to sign than it can".to_owned()));
        };
        let request = SigningRequest::TlsHandshake(message.to_vec());
        let signature = block_in_place(|| self.key.sign(&request));
        let signature = signature.map_err(|error| failed(crate::telemetry::chain(&error)))?;
        self.made.inc();
        Ok(signature)
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// A private key in PEM, wiped when it is dropped.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub(super) struct SecretPem(String);

impl SecretPem {
    pub(super) fn of(key: &KeyPair) -> Self {
        Self(key.serialize_pem())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

/// A signature as X.509 and TLS write it: a SEQUENCE of two INTEGERs (RFC 3279, section 2.2.3).
fn der(signature: &[u8; Signature::BYTES]) -> Vec<u8> {
    let (r, s) = signature.split_at(Signature::BYTES / 2);
    let body = [integer(r), integer(s)].concat();
    tagged(0x30, &body)
}

/// A positive INTEGER: no more leading zeros than the sign needs.
fn integer(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let digits = number.get(zeros..).unwrap_or_default();
    let sign: &[u8] = if digits.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
    tagged(0x02, &[sign, digits].concat())
}

/// Content of less than 128 bytes, whose length takes one.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap_or_default();
    [&[tag, length], content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_as_short_as_their_sign_allows() {
        let number = |last: &[u8]| {
            let mut number = [0; 32];
            number[32 - last.len()..].copy_from_slice(last);
            number
        };
        let cases: [(&[u8], &[u8]); 5] = [
            (&[], &[2, 1, 0]),
            (&[0x7f], &[2, 1, 0x7f]),
            (&[0x80], &[2, 2, 0, 0x80]),
            (&[1, 0], &[2, 2, 1, 0]),
            (&[0xff, 0], &[2, 3, 0, 0xff, 0]),
        ];
        for (last, expected) in cases {
            assert_eq!(integer(&number(last)), expected, "{last:02x?}");
        }
        let longest = der(&[0xff; 64]);
        assert_eq!((longest.len(), &longest[..5]), (72, [0x30, 70, 2, 33, 0].as_slice()));
        let mixed = [number(&[5]), number(&[0x90])].concat();
        assert_eq!(der(mixed.as_slice().try_into().unwrap()), [0x30, 7, 2, 1, 5, 2, 2, 0, 0x90]);
    }
}
