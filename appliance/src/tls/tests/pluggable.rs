//! A token that can be pulled out.

use std::sync::atomic::{AtomicBool, Ordering};

use sallyport_core::sign::{KeyRole, PublicKey, Signature, SigningRequest};
use sallyport_hsm::{
    Caps, Error, Health, KeyKind, KeyName, Mode, P256_POINT_BYTES, Pin, Secret32, SoftwareToken,
    Token,
};

pub(super) struct Pluggable {
    token: SoftwareToken,
    plugged: AtomicBool,
}

impl Pluggable {
    pub(super) fn new(token: SoftwareToken) -> Self {
        Self { token, plugged: AtomicBool::new(true) }
    }

    pub(super) fn pull_out(&self) {
        self.plugged.store(false, Ordering::SeqCst);
    }

    pub(super) fn plug_in(&self) {
        self.plugged.store(true, Ordering::SeqCst);
    }

    fn there(&self) -> Result<&SoftwareToken, Error> {
        if self.plugged.load(Ordering::SeqCst) { Ok(&self.token) } else { Err(Error::Absent) }
    }
}

impl Token for Pluggable {
    fn health(&self) -> Health {
        match self.there() {
            Ok(token) => token.health(),
            Err(error) => Health::Absent { why: error.to_string(), attempts: 1 },
        }
    }

    fn caps(&self) -> Caps {
        self.token.caps()
    }

    fn mode(&self) -> Option<Mode> {
        self.token.mode()
    }

    fn custody(&self, key: &KeyName) -> Result<Mode, Error> {
        self.there()?.custody(key)
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        self.there()?.keys()
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        self.there()?.public_key(key)
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
        self.there()?.sign(key, request)
    }

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        self.there()?.agree(key, peer)
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        self.there()?.generate(role, kind)
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        self.there()?.destroy(key)
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        self.there()?.wrap(key, secret, aad)
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        self.there()?.unwrap(key, wrapped, aad)
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.there()?.reopen(pin)
    }
}
