//! The serving certificate, kept in the vault with its key, or with the name of its key in the token.

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use sallyport_core::time::Millis;
use sallyport_hsm::KeyName;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Error, Keys, RENEW_BEFORE,
    authority::Authority,
    key::{SecretPem, TokenKey},
};
use crate::{
    config::KeyIn,
    vault::{Name, Vault},
};

/// The serving certificate with what decides whether it still fits.
#[derive(Serialize, Deserialize)]
pub(super) struct Leaf {
    certificate: String,
    pub(super) key: LeafKey,
    pub(super) names: Vec<String>,
    not_before: Millis,
    pub(super) not_after: Millis,
    ca_fingerprint: String,
}

/// Its private key.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LeafKey {
    /// Here, in PEM.
    Box(SecretPem),
    /// In the token.
    Token(KeyName),
}

impl Leaf {
    /// The one that was issued last.
    pub(super) fn load(vault: &Vault) -> Result<Option<Self>, Error> {
        let Some(stored) = vault.get(Name::TlsLeaf)? else { return Ok(None) };
        // What opened was written here: only another version of the box can have written something else. That is replaced.
        Ok(serde_json::from_slice(&stored).ok())
    }

    /// Issues a new one for this key in the token, or for one that it makes and has itself. It is not kept yet.
    pub(super) fn issue(
        authority: &Authority,
        names: &[String],
        key: Option<&TokenKey>,
        keys: &Keys<'_>,
        now: Millis,
    ) -> Result<Self, Error> {
        let (issued, key) = match key {
            None => {
                let key = KeyPair::generate().map_err(Error::Issue)?;
                let issued = authority.issue(names, &key, keys, now)?;
                (issued, LeafKey::Box(SecretPem::of(&key)))
            }
            Some(key) => {
                let issued = authority.issue(names, key, keys, now)?;
                (issued, LeafKey::Token(key.name().clone()))
            }
        };
        let (certificate, not_before, not_after) = issued;
        let ca_fingerprint = authority.fingerprint();
        let names = names.to_vec();
        Ok(Self { certificate, key, names, not_before, not_after, ca_fingerprint })
    }

    /// Keeps it in place of the one before.
    pub(super) fn keep(&self, vault: &Vault) -> Result<(), Error> {
        let json = serde_json::to_vec(self).map(Zeroizing::new).map_err(Error::Leaf)?;
        Ok(vault.put(Name::TlsLeaf, &json)?)
    }

    /// Whether it can be served until the box looks again. `current` is the token's key that is in use.
    pub(super) fn fits(
        &self,
        authority: &Authority,
        names: &[String],
        key_in: KeyIn,
        current: Option<&KeyName>,
        now: Millis,
    ) -> bool {
        let right_key = match (&self.key, key_in) {
            (LeafKey::Box(_), KeyIn::Box) => true,
            (LeafKey::Token(name), KeyIn::Token) => current == Some(name),
            (LeafKey::Box(_), KeyIn::Token) | (LeafKey::Token(_), KeyIn::Box) => false,
        };
        right_key
            && self.names == names
            && self.ca_fingerprint == authority.fingerprint()
            && self.not_before <= now
            && now.plus(RENEW_BEFORE) < self.not_after
    }

    pub(super) fn certificate(&self) -> Result<CertificateDer<'static>, Error> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(Error::NoPem)
    }
}
