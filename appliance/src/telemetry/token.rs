//! How long the token takes: a token that measures another one.

use std::{sync::Arc, time::Instant};

use sallyport_core::sign::{KeyRole, PublicKey, Signature, SigningRequest};
use sallyport_hsm::{
    Caps, Error, Health, KeyKind, KeyName, Mode, P256_POINT_BYTES, Pin, Secret32, Token,
};

use super::metrics::Metrics;

/// A token whose operations are measured, those that fail included.
pub struct Measured {
    token: Arc<dyn Token>,
    metrics: Arc<Metrics>,
}

impl Measured {
    /// Measures a token.
    pub fn new(token: Arc<dyn Token>, metrics: Arc<Metrics>) -> Self {
        Self { token, metrics }
    }

    fn measure<T>(&self, operations: usize, work: impl FnOnce(&dyn Token) -> T) -> T {
        let began = Instant::now();
        let answer = work(&*self.token);
        self.metrics.token(operations, began.elapsed());
        answer
    }
}

impl Token for Measured {
    fn health(&self) -> Health {
        self.token.health()
    }

    fn caps(&self) -> Caps {
        self.token.caps()
    }

    fn mode(&self) -> Option<Mode> {
        self.token.mode()
    }

    fn custody(&self, key: &KeyName) -> Result<Mode, Error> {
        self.token.custody(key)
    }

    fn kind_for(&self, role: KeyRole) -> Option<KeyKind> {
        self.token.kind_for(role)
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        self.measure(1, |token| token.keys())
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        self.measure(1, |token| token.public_key(key))
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
        self.measure(1, |token| token.sign(key, request))
    }

    fn sign_many(
        &self,
        key: &KeyName,
        requests: &[SigningRequest],
    ) -> Vec<Result<Signature, Error>> {
        self.measure(requests.len(), |token| token.sign_many(key, requests))
    }

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        self.measure(1, |token| token.agree(key, peer))
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        self.measure(1, |token| token.generate(role, kind))
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        self.measure(1, |token| token.destroy(key))
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        self.measure(1, |token| token.wrap(key, secret, aad))
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        self.measure(1, |token| token.unwrap(key, wrapped, aad))
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.measure(1, |token| token.reopen(pin))
    }
}
