//! [`App`]: the parts of a running box, built once, in order, here only.
//!
//! It also holds the one bridge from async handlers to synchronous use cases: [`App::run`].

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ring::hmac;
use sallyport_core::{
    backup::RESTORING_FOLDER,
    limits::{BLOCKING_CALLS_MAX, THUMBNAILS_AT_ONCE},
    sign::Policy,
    time::Millis,
};
use sallyport_hsm::{HelperProgram, Token};
use sallyport_store::Store;
use tokio::{
    sync::{AcquireError, Semaphore},
    task::{JoinError, spawn_blocking},
};

use crate::{
    config::Config,
    notify::Notify,
    service::{
        attempts::Attempts, interactive::Interactive, media::Files, openid::OpenIdTokens,
        pepper::Pepper, presence::Presences, sessions::SessionCache, sync::unread::Counts,
        typing::Typing,
    },
    shutdown::Shutdown,
    telemetry::{metrics::Metrics, token::Measured},
    tls::{self, Certificates},
    trial::{self, Boot, Start},
    vault::{self, Vault},
};

/// The parts of a running box.
pub struct App {
    /// What the operator decided.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// The keys. Without a token members chat, but nothing leaves the box.
    pub token: Option<Arc<dyn Token>>,
    /// The box's own secrets.
    pub vault: Arc<Vault>,
    /// The serving certificate, if a listener speaks TLS.
    pub certificates: Option<Arc<Certificates>>,
    /// Key of the stored hashes of tokens and codes.
    pub pepper: Pepper,
    /// Access tokens that were looked up before.
    pub sessions: Arc<SessionCache>,
    /// Failed log-ins.
    pub attempts: Attempts,
    /// Open sessions of user-interactive authentication.
    pub interactive: Interactive,
    /// Tokens by which members prove to other services who they are.
    pub openid: OpenIdTokens,
    /// Who is there.
    pub presences: Presences,
    /// The files of media.
    pub files: Files,
    /// How this start came about: a system on trial, or one that had to take the database back.
    pub start: Start,
    /// The time. Handlers read it once and pass it on.
    pub clock: fn() -> Millis,
    /// Numbers for monitoring.
    pub metrics: Arc<Metrics>,
    /// Whether the box is stopping; long-polls wait for it too.
    pub shutdown: Shutdown,
    /// Wakes those who wait for news.
    pub notify: Arc<Notify>,
    /// Key of the HMAC chain over local events.
    pub event_mac: hmac::Key,
    /// Whose turn it is to sign events: an export and the signer behind the conversation share the work.
    pub signing: Mutex<()>,
    /// Who is typing.
    pub typing: Typing,
    /// Unread counts, as far as they have been counted.
    pub unread: Counts,
    /// Use cases that may run at a time.
    pub(crate) calls: Arc<Semaphore>,
    /// Password hashes that may be computed at a time.
    pub(crate) password_checks: Arc<Semaphore>,
    /// Thumbnails that may be made at a time.
    pub(crate) thumbnails: Arc<Semaphore>,
    /// Held while the box runs: a second one would not see what this one has cached.
    _lock: File,
}

/// Why a blocking call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// The box stops and takes no more calls.
    #[error("the box is stopping")]
    Stopping(#[source] AcquireError),
    /// The call panicked or was cancelled.
    #[error("a call did not finish")]
    Lost(#[source] JoinError),
    /// The operating system gave no random bytes.
    #[error("no randomness is available")]
    NoRandomness(#[source] getrandom::Error),
}

/// Why a box does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder for the box's data cannot be used.
    #[error("cannot use the folder {}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A restore did not come to its end.
    #[error("{} is left of a restore that was interrupted: run `sallyctl restore` again", path.display())]
    Restoring {
        /// The folder.
        path: PathBuf,
    },
    /// Another process works on the same data.
    #[error("another box already works in {}; stop it first", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
    },
    /// The configured token is not usable and will not be by waiting.
    #[error("cannot use the token")]
    Token(#[source] sallyport_hsm::Error),
    /// The database cannot be opened.
    #[error("cannot open the database {}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What the database says.
        #[source]
        source: sallyport_store::Error,
    },
    /// The secrets of the box cannot be read or made.
    #[error("the secrets of the box are not to be had")]
    Vault(#[from] vault::Error),
    /// There is no certificate for the listeners with TLS.
    #[error("no certificate can be served")]
    Tls(#[from] tls::Error),
    /// What a change of the system leaves of the database cannot be put right.
    #[error(transparent)]
    Trial(#[from] trial::Error),
    /// The operating system gave no random bytes.
    #[error("no randomness is available")]
    NoRandomness(#[source] Interrupted),
}

impl App {
    /// Opens the database and builds the parts.
    ///
    /// # Errors
    /// [`Error`] names the file that could not be used.
    pub fn open(
        config: Config,
        clock: fn() -> Millis,
        shutdown: Shutdown,
    ) -> Result<Arc<Self>, Error> {
        Self::start(config, clock, shutdown, &Boot::default())
    }

    /// As [`Self::open`], on a machine whose boot loader counts the starts of a new system.
    ///
    /// # Errors
    /// [`Error`] names the file that could not be used.
    pub fn start(
        config: Config,
        clock: fn() -> Millis,
        shutdown: Shutdown,
        boot: &Boot,
    ) -> Result<Arc<Self>, Error> {
        let data_dir = &config.data_dir;
        let restoring = data_dir.join(RESTORING_FOLDER);
        if restoring.exists() {
            return Err(Error::Restoring { path: restoring });
        }
        let lock = lock(data_dir)?;
        let start = trial::prepare(data_dir, boot.is_trial()?, sallyport_store::newest_schema())?;
        let metrics = Arc::new(Metrics::new());
        let path = data_dir.join("sallyport.db");
        let token = open_token(&config, &metrics).map_err(Error::Token)?;
        let credentials = env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let vault = Vault::open(data_dir, credentials.as_deref(), token.as_deref())?;
        let event_mac = vault.key(vault::Name::EventMac)?;
        let pepper = Pepper::new(&vault.key(vault::Name::Pepper)?);
        let sessions = Arc::new(SessionCache::default());
        let ended = Arc::clone(&sessions);
        let notify = Arc::new(Notify::default());
        let (commits, news) = (Arc::clone(&metrics), Arc::clone(&notify));
        let store = Store::open(sallyport_store::Options {
            path: &path,
            server_name: &config.server_name,
            fresh_incarnation: random().map_err(Error::NoRandomness)?,
            on_commit: Box::new(move |committed| {
                if committed.sessions {
                    ended.clear();
                }
                news.publish(committed);
                commits.commit(committed);
            }),
        });
        let store = store.map_err(|source| Error::Store { path, source })?;
        let vault = Arc::new(vault);
        let certificates = if config.listeners.iter().any(|listener| listener.tls) {
            let (vault, token) = (Arc::clone(&vault), token.clone());
            let made = metrics.tls_signatures.clone();
            Some(Certificates::open(&config, vault, token, &store, made, clock())?)
        } else {
            None
        };
        let media = data_dir.join("media");
        let files =
            Files::open(media.clone()).map_err(|source| Error::DataDir { path: media, source })?;
        Ok(Arc::new(Self {
            token,
            vault,
            pepper,
            sessions,
            attempts: Attempts::default(),
            interactive: Interactive::default(),
            openid: OpenIdTokens::default(),
            presences: Presences::default(),
            files,
            store,
            certificates,
            clock,
            metrics,
            calls: Arc::new(Semaphore::new(BLOCKING_CALLS_MAX)),
            password_checks: Arc::new(Semaphore::new(config.limits.login_workers)),
            notify,
            event_mac: hmac::Key::new(hmac::HMAC_SHA256, event_mac.expose()),
            signing: Mutex::default(),
            thumbnails: Arc::new(Semaphore::new(THUMBNAILS_AT_ONCE)),
            typing: Typing::starting_at(clock()),
            unread: Counts::default(),
            shutdown,
            start,
            config,
            _lock: lock,
        }))
    }

    /// Runs a call on a thread that may block, once the pool has room for it.
    pub(crate) async fn run_in<T, F>(
        self: &Arc<Self>,
        pool: &Arc<Semaphore>,
        call: F,
    ) -> Result<T, Interrupted>
    where
        F: FnOnce(&Self) -> T + Send + 'static,
        T: Send + 'static,
    {
        let permit = Arc::clone(pool).acquire_owned().await.map_err(Interrupted::Stopping)?;
        let app = Arc::clone(self);
        let call = spawn_blocking(move || {
            // Held by the call, not by its caller: a client that goes away frees nothing early.
            let _permit = permit;
            call(&app)
        });
        call.await.map_err(Interrupted::Lost)
    }
}

/// Opens the token, or starts to.
fn open_token(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<dyn Token>>, sallyport_hsm::Error> {
    let Some(token) = &config.token else { return Ok(None) };
    let policy = Policy { server_name: config.server_name.clone() };
    let program = HelperProgram::this_one();
    let (software, folder) = (config.allow_software_keys, Some(config.data_dir.as_path()));
    let token = sallyport_hsm::open(token, software, policy, program, folder)?;
    Ok(Some(Arc::new(Measured::new(token, Arc::clone(metrics)))))
}

/// Makes the folder for the box's data, for this user only, and takes it for this process.
fn lock(folder: &Path) -> Result<File, Error> {
    let failed = |source| Error::DataDir { path: folder.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let lock = File::create(folder.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(Error::Occupied { path: folder.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Fresh random bytes from the operating system.
///
/// # Errors
/// [`Interrupted::NoRandomness`] if the operating system has none.
pub fn random<const N: usize>() -> Result<[u8; N], Interrupted> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Interrupted::NoRandomness)?;
    Ok(bytes)
}
