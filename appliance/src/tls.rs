//! TLS of the listeners: version 1.3 only, with a certificate that the box issues from its own
//! enclave CA or one given as files.
//!
//! The CA is founded once, at the first start, with a key in the token; until the token answers there is no certificate, and the listeners with
//! TLS wait. Without a configured token its key lies in `tls/ca.json`. Its certificate lies in `ca.pem` for handing out. The leaf outlives the
//! tolerated absence of a token ([`RENEW_BEFORE`]) and is kept in the vault, so that a start without a token serves. If the operator wants it so, the leaf's key is in the token too,
//! which then signs each full handshake. The CA is constrained to the enclave's names and to private
//! addresses: who steals its key cannot impersonate anything else to the members' devices.

mod accept;
mod authority;
mod chain;
mod error;
mod key;
mod leaf;
mod rotate;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert},
    sign::{CertifiedKey, SigningKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use sallyport_core::{
    admin::{CaStatus, CertificateStatus, KeyPlace},
    limits::TLS_SIGNATURES_AT_ONCE,
    sign::KeyRole,
    time::Millis,
};
use sallyport_hsm::{KeyKind, KeyName, Token};
use sallyport_store::Store;
use tokio::sync::{Semaphore, watch};

use crate::{
    config::{Config, KeyIn, Tls},
    service::own_keys,
    telemetry,
    vault::Vault,
};
use authority::Authority;
use key::{HandshakeKey, TokenKey};
use leaf::{Leaf, LeafKey};

pub use accept::Acceptor;
pub use error::Error;
pub use rotate::{Held, Part};

/// How long an issued certificate is valid: devices refuse private ones of more than 825 days.
pub const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// A certificate that is valid for less than this is replaced. It is the time that the box can
/// do without its CA key.
pub const RENEW_BEFORE: Duration = Duration::from_secs(180 * 24 * 60 * 60);
/// Certificates are valid from this long before they are issued: the clocks of an isolated
/// network differ.
const BACKDATED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The serving certificate, replaced before it expires while connections go on.
pub struct Certificates {
    source: Source,
    provider: CryptoProvider,
    vault: Arc<Vault>,
    token: Option<Arc<dyn Token>>,
    signing: Signing,
    current: watch::Sender<Option<Arc<CertifiedKey>>>,
    /// Why there is no certificate, or none that fits.
    waits: Mutex<Option<String>>,
}

/// What bounds and counts signatures of handshakes in the token.
struct Signing {
    /// Handshakes that have the token sign at a time; the others wait in order.
    turns: Arc<Semaphore>,
    /// As many again for those that come to the signature by another way, and do not wait.
    places: Arc<Semaphore>,
    made: Counter,
    /// The keys that handshakes have, or had.
    used: Mutex<Vec<(KeyName, Weak<dyn SigningKey>)>>,
}

impl Signing {
    /// Has handshakes sign with this key from now on.
    fn begin(&self, key: TokenKey) -> Arc<dyn SigningKey> {
        let name = key.name().clone();
        let key = HandshakeKey::new(key, Arc::clone(&self.places), self.made.clone());
        let key: Arc<dyn SigningKey> = Arc::new(key);
        let mut used = self.used();
        used.retain(|(_, key)| key.strong_count() > 0);
        used.push((name, Arc::downgrade(&key)));
        key
    }

    /// Whether a handshake may still sign with this key.
    fn uses(&self, name: &KeyName) -> bool {
        self.used().iter().any(|(used, key)| used == name && key.strong_count() > 0)
    }

    fn used(&self) -> MutexGuard<'_, Vec<(KeyName, Weak<dyn SigningKey>)>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Source {
    Issued(Box<Issued>),
    Files { certificate: PathBuf, key: PathBuf },
}

/// A certificate of the enclave CA.
struct Issued {
    config: Config,
    names: Vec<String>,
    key_in: KeyIn,
    /// One looks after the certificate at a time.
    authority: Mutex<Option<Authority>>,
}

/// Where keys for certificates come from.
struct Keys<'a> {
    store: &'a Store,
    token: Option<&'a Arc<dyn Token>>,
    /// One that was made just now, and is not in the database yet.
    fresh: Option<TokenKey>,
}

impl Keys<'_> {
    /// The token's key of a role, made if there is none; `None` if no token is configured.
    fn make(&self, role: KeyRole, now: Millis) -> Result<Option<TokenKey>, Error> {
        let Some(token) = self.token else { return Ok(None) };
        let key = own_keys::ensure_one(self.store, &**token, role, KeyKind::P256, now)?;
        Ok(Some(TokenKey::new(Arc::clone(token), key)))
    }

    /// The key of this name, which the box has made before.
    fn of(&self, name: &KeyName) -> Result<TokenKey, Error> {
        if let Some(fresh) = self.fresh.as_ref().filter(|fresh| fresh.name() == name) {
            return Ok(fresh.clone());
        }
        let token = self.token.ok_or_else(|| Error::NoToken(name.clone()))?;
        let key = own_keys::named(self.store, name)?;
        Ok(TokenKey::new(Arc::clone(token), key))
    }
}

impl Certificates {
    /// Loads the certificate, or makes it if that needs no token; else it is made by [`Certificates::refresh`]. Never waits for the token.
    ///
    /// # Errors
    /// [`Error`] names the file and what to do.
    pub fn open(
        config: &Config,
        vault: Arc<Vault>,
        token: Option<Arc<dyn Token>>,
        store: &Store,
        signatures: Counter,
        now: Millis,
    ) -> Result<Arc<Self>, Error> {
        let source = match &config.tls {
            Tls::Issued { key_in, .. } => {
                let names = names(config);
                let authority = Authority::load(&config.data_dir, &config.server_name, &names)?;
                let (config, authority) = (config.clone(), Mutex::new(authority));
                Source::Issued(Box::new(Issued { config, names, key_in: *key_in, authority }))
            }
            Tls::Files { certificate, key } => {
                Source::Files { certificate: certificate.clone(), key: key.clone() }
            }
        };
        let certificates = Self {
            source,
            provider: ring::default_provider(),
            vault,
            token,
            signing: Signing {
                turns: Arc::new(Semaphore::new(TLS_SIGNATURES_AT_ONCE)),
                places: Arc::new(Semaphore::new(2 * TLS_SIGNATURES_AT_ONCE)),
                made: signatures,
                used: Mutex::default(),
            },
            current: watch::Sender::new(None),
            waits: Mutex::default(),
        };
        if let Source::Issued(issued) = &certificates.source {
            certificates.serve_stored(issued, store)?;
        }
        if certificates.token.is_none() || matches!(certificates.source, Source::Files { .. }) {
            certificates.refresh(store, now)?;
        }
        Ok(Arc::new(certificates))
    }

    /// Issues a new certificate if there is none, if the current one expires too soon or is not valid yet (the
    /// clock was set back), and reads given files again. `true` if what is served now fits: otherwise it is served because the token is not
    /// there to sign a better one.
    ///
    /// # Errors
    /// As [`Certificates::open`]; the current certificate stays.
    pub fn refresh(&self, store: &Store, now: Millis) -> Result<bool, Error> {
        let refreshed = match &self.source {
            Source::Issued(issued) => self.reissue(issued, store, now),
            Source::Files { certificate, key } => {
                let (chain, key) = read_files(certificate, key)?;
                CertifiedKey::from_der(chain, key, &self.provider).map_err(Error::Unusable)
            }
        };
        match refreshed {
            Ok(certified) => {
                self.serve(certified);
                Ok(true)
            }
            Err(error) => {
                *self.waiting() = Some(telemetry::chain(&error));
                if error.waits_for_token() && self.is_ready() { Ok(false) } else { Err(error) }
            }
        }
    }

    /// Serves this from now on; connections that are there go on.
    fn serve(&self, certified: CertifiedKey) {
        *self.waiting() = None;
        self.current.send_replace(Some(Arc::new(certified)));
    }

    fn reissue(&self, issued: &Issued, store: &Store, now: Millis) -> Result<CertifiedKey, Error> {
        let keys = self.keys(store);
        let Issued { config, names, key_in, .. } = issued;
        let mut authority = issued.lock();
        let key_of_ca = own_keys::current(store, KeyRole::Ca)?.map(|key| key.name);
        let authority = match &mut *authority {
            // A new key comes into the database before its certificate into the file (`Certificates::rotate`): what a power cut left undone is done now.
            Some(authority)
                if key_of_ca.is_none() || authority.token_key() == key_of_ca.as_ref() =>
            {
                authority
            }
            empty => {
                let (folder, server) = (&config.data_dir, &config.server_name);
                empty.insert(Authority::found(folder, server, names, &keys, now)?)
            }
        };
        let current = match key_in {
            KeyIn::Box => None,
            KeyIn::Token => own_keys::current(store, KeyRole::Tls)?.map(|key| key.name),
        };
        let leaf = match Leaf::load(&self.vault)? {
            Some(leaf) if leaf.fits(authority, names, *key_in, current.as_ref(), now) => leaf,
            _ => {
                let key = match key_in {
                    KeyIn::Box => None,
                    KeyIn::Token => Some(keys.make(KeyRole::Tls, now)?.ok_or(Error::NoAuthority)?),
                };
                let leaf = Leaf::issue(authority, names, key.as_ref(), &keys, now)?;
                leaf.keep(&self.vault)?;
                leaf
            }
        };
        self.certified(&leaf, authority, &keys)
    }

    /// Serves what the last run has left, whatever it is worth: clients see for themselves, and a clock may be wrong.
    fn serve_stored(&self, issued: &Issued, store: &Store) -> Result<(), Error> {
        let authority = issued.lock();
        let (Some(authority), Some(leaf)) = (&*authority, Leaf::load(&self.vault)?) else {
            return Ok(());
        };
        match self.certified(&leaf, authority, &self.keys(store)) {
            Ok(certified) => {
                self.current.send_replace(Some(Arc::new(certified)));
                Ok(())
            }
            // Its key is in a token that is no longer configured: another one is issued.
            Err(error) if error.waits_for_token() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn certified(
        &self,
        leaf: &Leaf,
        authority: &Authority,
        keys: &Keys<'_>,
    ) -> Result<CertifiedKey, Error> {
        let mut chain = vec![leaf.certificate()?];
        chain.extend_from_slice(authority.chain());
        match &leaf.key {
            LeafKey::Box(pem) => {
                let key =
                    PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(Error::NoPem)?;
                CertifiedKey::from_der(chain, key, &self.provider).map_err(Error::Unusable)
            }
            LeafKey::Token(name) => {
                Ok(CertifiedKey::new(chain, self.signing.begin(keys.of(name)?)))
            }
        }
    }

    /// A request to a higher CA for a certificate of our CA, in PEM.
    ///
    /// # Errors
    /// If there is no CA yet, or the token does not sign.
    pub fn ca_request(&self, store: &Store) -> Result<String, Error> {
        let authority = self.issued()?.lock();
        authority.as_ref().ok_or(Error::NoAuthority)?.request(&self.keys(store))
    }

    /// A request to another CA for a certificate of the TLS key in the token, in PEM.
    ///
    /// # Errors
    /// If the key is not in the token, or the token does not sign.
    pub fn tls_request(&self, store: &Store, now: Millis) -> Result<String, Error> {
        let Issued { config, names, key_in, .. } = self.issued()?;
        let KeyIn::Token = key_in else { return Err(Error::PassingKey) };
        let key = self.keys(store).make(KeyRole::Tls, now)?.ok_or(Error::NoAuthority)?;
        authority::server_request(config.server_name.as_str(), names, &key)
    }

    /// Checks the chain that a higher CA gave for ours ([`chain::check`]), and serves it from now on. `note` is called in between.
    ///
    /// # Errors
    /// If it does not stand in the place of our CA's own certificate; then nothing has changed.
    pub fn install<E: From<Error>>(
        &self,
        pem: &[u8],
        store: &Store,
        now: Millis,
        note: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let issued = self.issued()?;
        let chain = chain::parse(pem)?;
        {
            let mut authority = issued.lock();
            let ours = authority.as_ref().ok_or(Error::NoAuthority)?;
            let leaf = Leaf::load(&self.vault).and_then(|leaf| leaf.ok_or(Error::NoAuthority))?;
            let (names, certificate) = (&issued.names, leaf.certificate()?);
            chain::check(&chain, ours.certificate(), &certificate, names, now)?;
            note()?;
            let (folder, server) = (&issued.config.data_dir, &issued.config.server_name);
            authority::keep_chain(folder, &chain::without_root(chain))?;
            *authority = Authority::load(folder, server, names)?;
        }
        self.refresh(store, now)?;
        Ok(())
    }

    /// Whether there is a certificate to serve.
    pub fn is_ready(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// Why there is no certificate, or none that fits.
    pub fn waits(&self) -> Option<String> {
        self.waiting().clone()
    }

    /// Waits until there is a certificate to serve.
    pub async fn ready(&self) {
        // The sender is ours, so that waiting never fails.
        let _: Result<_, _> = self.current.subscribe().wait_for(Option::is_some).await.map(drop);
    }

    /// How certificate, CA and their keys are.
    ///
    /// # Errors
    /// If the vault does not open.
    pub fn status(&self) -> Result<CertificateStatus, Error> {
        let waits = self.waits();
        let Source::Issued(issued) = &self.source else {
            let (ca, not_after, names) = (None, None, Vec::new());
            let (tls_key, vouched_for) = (Some(KeyPlace::File), false);
            return Ok(CertificateStatus { ca, tls_key, names, not_after, vouched_for, waits });
        };
        let authority = issued.lock();
        let leaf = Leaf::load(&self.vault)?;
        Ok(CertificateStatus {
            ca: authority.as_ref().map(|authority| CaStatus {
                sha256: authority.fingerprint(),
                certificate: authority.pem().to_owned(),
                key: match authority.token_key() {
                    Some(name) => KeyPlace::Token { key: name.to_string() },
                    None => KeyPlace::File,
                },
            }),
            vouched_for: authority.as_ref().is_some_and(Authority::is_vouched_for),
            not_after: leaf.as_ref().map(|leaf| leaf.not_after),
            tls_key: leaf.as_ref().map(|leaf| match &leaf.key {
                LeafKey::Box(_) => KeyPlace::Vault,
                LeafKey::Token(name) => KeyPlace::Token { key: name.to_string() },
            }),
            names: leaf.map(|leaf| leaf.names).unwrap_or_default(),
            waits,
        })
    }

    /// The settings of all listeners; made once, so that a session of one can be resumed on another.
    ///
    /// # Errors
    /// If the operating system has no randomness.
    pub fn acceptor(self: &Arc<Self>) -> Result<Acceptor, Error> {
        let in_token = self.issued().is_ok_and(|issued| issued.key_in == KeyIn::Token);
        let turns = in_token.then(|| Arc::clone(&self.signing.turns));
        Ok(Acceptor::new(self.server_config()?, turns))
    }

    /// The settings of a listener.
    ///
    /// # Errors
    /// If the operating system has no randomness.
    pub fn server_config(self: &Arc<Self>) -> Result<ServerConfig, Error> {
        let resolver = Arc::new(Resolver(Arc::clone(self)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(self.provider.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(Error::Unusable)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = ring::Ticketer::new().map_err(Error::Tickets)?;
        Ok(config)
    }

    fn issued(&self) -> Result<&Issued, Error> {
        match &self.source {
            Source::Issued(issued) => Ok(issued),
            Source::Files { .. } => Err(Error::GivenAsFiles),
        }
    }

    fn keys<'a>(&'a self, store: &'a Store) -> Keys<'a> {
        Keys { store, token: self.token.as_ref(), fresh: None }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<String>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issued {
    fn lock(&self) -> MutexGuard<'_, Option<Authority>> {
        self.authority.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The certificate for rustls.
struct Resolver(Arc<Certificates>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.current.borrow().clone()
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
    if let Tls::Issued { names: configured, .. } = &config.tls {
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
