//! Officers with their keys, for boxes that trust them.

use std::{path::Path, time::Duration};

use sallyport_core::{
    admin::{Approval, Consent},
    cose::KeyId,
    roster::{Roster, signed},
    sign::{KeyRole, Policy, PublicKey},
};
use sallyport_hsm::{KeyKind, KeyName, SoftwareToken, Token as _};

use crate::bundles::NOW;

/// Two officers of an enclave, and the token with their keys.
pub(crate) struct Officers {
    token: SoftwareToken,
    keys: Vec<(KeyName, PublicKey)>,
}

impl Officers {
    pub(crate) fn new(server_name: &str, folder: &Path) -> Self {
        let policy = Policy { server_name: server_name.try_into().unwrap() };
        let token = SoftwareToken::open_or_create(&folder.join("officers"), Duration::ZERO, policy)
            .unwrap();
        let keys = [KeyKind::Ed25519, KeyKind::P256].map(|kind| {
            let name = token.generate(KeyRole::Officer, kind).unwrap();
            let public = token.public_key(&name).unwrap();
            (name, public)
        });
        Self { token, keys: keys.into() }
    }

    /// The part of the configuration that names them.
    pub(crate) fn config(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(|(_, key)| key.to_string()).collect();
        format!("[roster]\ntrusted_keys = {keys:?}\n")
    }

    /// A roster that the first officer signed.
    pub(crate) fn sign(&self, roster: &Roster) -> Vec<u8> {
        let (name, key) = &self.keys[0];
        signed::sign(roster, key, |request| self.token.sign(name, &request)).unwrap()
    }

    /// How the audit log names an officer; the first is 0.
    pub(crate) fn id(&self, officer: usize) -> String {
        KeyId::of(&self.keys[officer].1).to_string()
    }

    /// An officer's approval; the first is 0.
    pub(crate) fn approve(&self, officer: usize, consent: &Consent) -> Approval {
        let (name, key) = &self.keys[officer];
        consent.sign(NOW, key, |request| self.token.sign(name, &request)).unwrap()
    }
}
