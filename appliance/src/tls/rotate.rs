//! Certificates and their keys are replaced by order of a person: made first, then noted, then served. Connections go on.
//!
//! Whatever fails before it is noted leaves everything as it was. What is noted and not served yet, because the power went, is made up for by
//! [`Certificates::refresh`]: it serves a certificate of the keys that the database says are in use.

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use sallyport_core::{
    digest::Sha256,
    sign::{Algorithm, KeyRole, PublicKey},
    time::Millis,
};
use sallyport_hsm::KeyName;
use sallyport_store::Store;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{
    BACKDATED, Certificates, Error, Issued,
    authority::{Authority, Founded},
    key::TokenKey,
    leaf::{Leaf, LeafKey},
};
use crate::{
    config::KeyIn,
    service::own_keys::{self, Current},
};

/// What is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The serving certificate with its key.
    Leaf,
    /// The enclave CA with its key, and the serving certificate with its own.
    Authority,
}

/// A key of a certificate.
#[derive(Clone, Debug)]
pub struct Held {
    /// The key. One outside the token has a name made of its public half, and is not in the database.
    pub current: Current,
    /// Whether it is in the token; else it is in the vault, or, if it is the CA's, in `tls/ca.json`.
    pub in_token: bool,
}

/// What replaces certificates and keys.
struct Prepared {
    founded: Option<Founded>,
    leaf: Leaf,
}

impl Certificates {
    /// The keys in use that an order about this part replaces.
    ///
    /// # Errors
    /// If there is no CA, or its files are damaged.
    pub fn held(&self, part: Part, store: &Store) -> Result<Vec<Held>, Error> {
        let issued = self.issued()?;
        let authority = issued.lock();
        let authority = authority.as_ref().ok_or(Error::NoAuthority)?;
        let leaf = Leaf::load(&self.vault)?.ok_or(Error::NoAuthority)?;
        let mut held = Vec::new();
        if part == Part::Authority {
            held.push(match authority.file_key() {
                Some(public) => Held::outside(KeyRole::Ca, public, made(authority.certificate()))?,
                None => Held::in_token(own_keys::required(store, KeyRole::Ca)?),
            });
        }
        let current = own_keys::current(store, KeyRole::Tls)?;
        held.push(match (&leaf.key, current.filter(|_| issued.key_in == KeyIn::Token)) {
            (_, Some(current)) => Held::in_token(current),
            (LeafKey::Token(name), None) => Held::in_token(own_keys::named(store, name)?),
            (LeafKey::Box(_), None) => Held::of_box(&leaf)?,
        });
        Ok(held)
    }

    /// Where the keys that replace those of this part will be: in the token, or outside of it.
    ///
    /// # Errors
    /// If the certificate is given as a file.
    pub fn will_be_in_token(&self, role: KeyRole) -> Result<bool, Error> {
        let issued = self.issued()?;
        Ok(self.token.is_some() && (role == KeyRole::Ca || issued.key_in == KeyIn::Token))
    }

    /// Makes new keys and certificates for this part, has `note` note them, and serves them from then on.
    ///
    /// # Errors
    /// If the token does not make or certify keys, or `note` fails: then new keys are destroyed again, and nothing has changed.
    pub fn rotate<E: From<Error>>(
        &self,
        part: Part,
        store: &Store,
        now: Millis,
        note: impl FnOnce(&[Held]) -> Result<(), E>,
    ) -> Result<Vec<Held>, E> {
        let issued = self.issued()?;
        let mut authority = issued.lock();
        let before = authority.as_ref().ok_or(Error::NoAuthority)?;
        let mut keys = Vec::new();
        let prepared = self.prepare(issued, before, part, store, now, &mut keys);
        let noted = prepared.map_err(E::from).and_then(|prepared| {
            note(&keys)?;
            Ok(prepared)
        });
        let Prepared { founded, leaf } = match noted {
            Ok(prepared) => prepared,
            Err(error) => {
                self.discard(&keys);
                return Err(error);
            }
        };
        if let Some(founded) = founded {
            *authority = Some(founded.keep(&issued.config.data_dir)?);
        }
        leaf.keep(&self.vault)?;
        let authority = authority.as_ref().ok_or(Error::NoAuthority)?;
        self.serve(self.certified(&leaf, authority, &self.keys(store))?);
        Ok(keys)
    }

    /// Whether a certificate that is served, or would be after a restart, needs this key in the token.
    ///
    /// # Errors
    /// If the vault does not open.
    pub fn uses(&self, key: &KeyName) -> Result<bool, Error> {
        let Ok(issued) = self.issued() else { return Ok(false) };
        let authority = issued.lock();
        let certifies = authority.as_ref().is_some_and(|ca| ca.token_key() == Some(key));
        let leaf = Leaf::load(&self.vault)?;
        let is_kept =
            leaf.is_some_and(|leaf| matches!(&leaf.key, LeafKey::Token(name) if name == key));
        Ok(certifies || is_kept || self.signing.uses(key))
    }

    /// Makes everything, and takes nothing into use. `made` has every new key, also if this fails.
    fn prepare(
        &self,
        issued: &Issued,
        before: &Authority,
        part: Part,
        store: &Store,
        now: Millis,
        made: &mut Vec<Held>,
    ) -> Result<Prepared, Error> {
        let Issued { config, names, key_in, .. } = issued;
        let mut keys = self.keys(store);
        let founded = match part {
            Part::Leaf => None,
            Part::Authority => {
                keys.fresh = self.generate(KeyRole::Ca, now, made)?;
                let founded = Founded::make(&config.server_name, names, keys.fresh.clone(), now)?;
                if let Some(public) = founded.authority.file_key() {
                    made.push(Held::outside(KeyRole::Ca, public, now)?);
                }
                Some(founded)
            }
        };
        let key = match key_in {
            KeyIn::Box => None,
            KeyIn::Token => {
                Some(self.generate(KeyRole::Tls, now, made)?.ok_or(Error::NoAuthority)?)
            }
        };
        let authority = founded.as_ref().map_or(before, |founded| &founded.authority);
        let leaf = Leaf::issue(authority, names, key.as_ref(), &keys, now)?;
        if key.is_none() {
            made.push(Held::of_box(&leaf)?);
        }
        Ok(Prepared { founded, leaf })
    }

    /// A new key in the token; `None` if no token is configured.
    fn generate(
        &self,
        role: KeyRole,
        now: Millis,
        made: &mut Vec<Held>,
    ) -> Result<Option<TokenKey>, Error> {
        let Some(token) = &self.token else { return Ok(None) };
        let key = own_keys::make(&**token, role, now)?;
        let current = Current::of(key, role)?;
        made.push(Held::in_token(current.clone()));
        Ok(Some(TokenKey::new(token.clone(), current)))
    }

    fn discard(&self, keys: &[Held]) {
        let Some(token) = &self.token else { return };
        for Held { current, .. } in keys.iter().filter(|key| key.in_token) {
            own_keys::discard(&**token, &current.name);
        }
    }
}

impl Held {
    fn in_token(current: Current) -> Self {
        Self { current, in_token: true }
    }

    fn outside(role: KeyRole, public: &[u8], since: Millis) -> Result<Self, Error> {
        let digest = Sha256::of(public);
        let id = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        let public = PublicKey::new(Algorithm::P256, public);
        let public = public.map_err(|_| own_keys::Error::Damaged(role))?;
        let name = KeyName::new(role, id);
        let key = own_keys::of_public(&name, &public, since);
        Ok(Self { current: Current { name, key }, in_token: false })
    }

    /// The leaf's own key.
    fn of_box(leaf: &Leaf) -> Result<Self, Error> {
        let LeafKey::Box(pem) = &leaf.key else {
            return Err(own_keys::Error::Damaged(KeyRole::Tls).into());
        };
        let key = KeyPair::from_pem(pem.expose()).map_err(Error::Issue)?;
        Self::outside(KeyRole::Tls, key.der_bytes(), made(&leaf.certificate()?))
    }
}

/// When a certificate of ours was made, as far as it says so.
fn made(certificate: &CertificateDer<'_>) -> Millis {
    let parsed = X509Certificate::from_der(certificate);
    let from = parsed.map_or(0, |(_, certificate)| certificate.validity().not_before.timestamp());
    Millis(u64::try_from(from).unwrap_or_default().saturating_mul(1000)).plus(BACKDATED)
}
