//! What a person does about the enclave CA: asking a higher one for its certificate, and installing what that gave.

use sallyport_core::{admin::Unapproved, digest::Sha256};
use sallyport_store::Store;
use serde::Deserialize;

use super::order::Order;
use crate::tls::{self, Certificates};

/// Whose certificate is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// That of the enclave CA.
    Ca,
    /// That of the box itself, whose key is in the token.
    Tls,
}

impl Of {
    /// The name in queries and in the audit log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Tls => "tls",
        }
    }
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An approval does not count.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// The database failed, so the audit log does not tell of it.
    #[error("the audit log cannot be written")]
    Store(#[from] sallyport_store::Error),
    /// The certificate is refused, or the key does not sign.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// A request for a certificate (PKCS #10), in PEM. It is a signature and nothing else changes, so the row stands alone.
///
/// # Errors
/// If there is no such key, or the token does not sign.
pub fn request(
    store: &Store,
    certificates: &Certificates,
    of: Of,
    order: &Order,
) -> Result<String, Error> {
    let mandate = order.alone()?;
    let request = match of {
        Of::Ca => certificates.ca_request(store)?,
        Of::Tls => certificates.tls_request(store, mandate.now())?,
    };
    let hash = ("sha256", Sha256::of(request.as_bytes()).to_string());
    let entry = mandate.entry("certificate.request", of.as_str(), [hash]);
    store.write(move |write| write.append_audit(entry))?;
    Ok(request)
}

/// Installs the chain that a higher CA gave for ours. It changes a file and not the database, so no transaction can hold both: the log tells of
/// the attempt before it, once everything was checked, and of the success after it.
///
/// # Errors
/// If the chain is refused; then nothing has changed.
pub fn install(
    store: &Store,
    certificates: &Certificates,
    chain: &[u8],
    order: &Order,
) -> Result<(), Error> {
    let mandate = order.alone()?;
    let hash = Sha256::of(chain);
    let attempt = mandate.entry("certificate.install", hash, []);
    certificates.install(chain, store, mandate.now(), || {
        store.write(move |write| write.append_audit(attempt))?;
        Ok::<_, Error>(())
    })?;
    let success = mandate.entry("certificate.installed", hash, []);
    store.write(move |write| write.append_audit(success))?;
    Ok(())
}
