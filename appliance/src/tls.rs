//! TLS of the listeners: version 1.3 only, with a certificate that the box issues from its own
//! enclave CA or one given as files.
//!
//! The CA is founded once, at the first start. Its certificate lies in `ca.pem` for handing out;
//! the key may later move into the token, because the leaf outlives the tolerated absence of a
//! token ([`RENEW_BEFORE`]). The CA is constrained to the enclave's names and to private
//! addresses: who steals its key cannot impersonate anything else to the members' devices.

mod authority;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};
use sallyport_core::time::Millis;

use crate::config::{Config, Tls};
use authority::Authority;

/// How long an issued certificate is valid: devices refuse private ones of more than 825 days.
const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// A certificate that is valid for less than this is replaced. It is the time that the box can
/// do without its CA key.
const RENEW_BEFORE: Duration = Duration::from_secs(180 * 24 * 60 * 60);
/// Certificates are valid from this long before they are issued: the clocks of an isolated
/// network differ.
const BACKDATED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Why no certificate can be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A PEM file given by the operator holds no certificate or no key.
    #[error("{} is not a PEM file with a certificate chain or a private key", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// The certificate and the key do not belong together, or are of an unknown kind.
    #[error("the certificate cannot be used")]
    Unusable(#[source] rustls::Error),
    /// A certificate cannot be made.
    #[error("a certificate cannot be issued")]
    Issue(#[source] rcgen::Error),
    /// A configured name is not one that the CA may certify.
    #[error(
        "tls.names: the enclave CA was founded for {permitted} and must not certify {name}; \
         use a name below these, or remove {} to found a new CA that all devices must trust anew",
        path.display()
    )]
    OutsideConstraints {
        /// The name that was asked for.
        name: String,
        /// The names that the CA was founded for.
        permitted: String,
        /// The CA's file.
        path: PathBuf,
    },
    /// The system's randomness failed.
    #[error("session tickets cannot be protected")]
    Tickets(#[source] rustls::Error),
}

/// The serving certificate, replaced before it expires while connections go on.
#[derive(Debug)]
pub struct Certificates {
    source: Source,
    provider: CryptoProvider,
    current: RwLock<Arc<CertifiedKey>>,
}

#[derive(Debug)]
enum Source {
    Issued { authority: Box<Authority>, names: Vec<String> },
    Files { certificate: PathBuf, key: PathBuf },
}

impl Certificates {
    /// Loads or makes the certificate.
    ///
    /// # Errors
    /// [`Error`] names the file and what to do.
    pub fn open(config: &Config, now: Millis) -> Result<Arc<Self>, Error> {
        let source = match &config.tls {
            Tls::Issued { .. } => {
                let names = names(config);
                let authority =
                    Authority::open(&config.data_dir, &config.server_name, &names, now)?;
                Source::Issued { authority: Box::new(authority), names }
            }
            Tls::Files { certificate, key } => {
                Source::Files { certificate: certificate.clone(), key: key.clone() }
            }
        };
        let provider = ring::default_provider();
        let current = RwLock::new(source.load(&provider, now)?);
        Ok(Arc::new(Self { source, provider, current }))
    }

    /// Issues a new certificate if the current one expires too soon or is not valid yet (the
    /// clock was set back), and reads given files again.
    ///
    /// # Errors
    /// As [`Certificates::open`]; the current certificate stays.
    pub fn refresh(&self, now: Millis) -> Result<(), Error> {
        let fresh = self.source.load(&self.provider, now)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// SHA-256 of the enclave CA's certificate, as devices show it; `None` with given files.
    pub fn ca_fingerprint(&self) -> Option<String> {
        match &self.source {
            Source::Issued { authority, .. } => Some(authority.fingerprint()),
            Source::Files { .. } => None,
        }
    }

    /// The settings of a listener.
    ///
    /// # Errors
    /// If the operating system has no randomness.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, Error> {
        let resolver = Arc::clone(self);
        let mut config = ServerConfig::builder_with_provider(Arc::new(self.provider.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(Error::Unusable)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = ring::Ticketer::new().map_err(Error::Tickets)?;
        Ok(config)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Source {
    fn load(&self, provider: &CryptoProvider, now: Millis) -> Result<Arc<CertifiedKey>, Error> {
        let (chain, key) = match self {
            Self::Issued { authority, names } => authority.leaf(names, now)?,
            Self::Files { certificate, key } => read_files(certificate, key)?,
        };
        let certified = CertifiedKey::from_der(chain, key, provider).map_err(Error::Unusable)?;
        Ok(Arc::new(certified))
    }
}

/// A chain, leaf first, and the leaf's key.
type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_files(certificate: &PathBuf, key: &PathBuf) -> Result<Pair, Error> {
    let pem = |path: &PathBuf| {
        let path = path.clone();
        move |source| Error::Pem { path, source }
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(pem(certificate))?;
    Ok((chain, PrivateKeyDer::from_pem_file(key).map_err(pem(key))?))
}

/// What clients may call the box: configured names, the server name, the host of the public
/// address, the listeners' own addresses, and this machine.
fn names(config: &Config) -> Vec<String> {
    let bare = |host: &str| host.trim_matches(['[', ']']).to_ascii_lowercase();
    let mut names = vec![bare(config.server_name.host())];
    if let Some(host) =
        config.public_url.parse::<http::Uri>().ok().as_ref().and_then(http::Uri::host)
    {
        names.push(bare(host));
    }
    if let Tls::Issued { names: configured } = &config.tls {
        names.extend(configured.iter().map(|name| bare(name)));
    }
    let addresses = config.listeners.iter().map(|listener| listener.address.ip());
    names.extend(addresses.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
    names.extend(["localhost", "127.0.0.1", "::1"].map(ToOwned::to_owned));
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests;
