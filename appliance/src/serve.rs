//! `sallyport serve`: the order in which a box starts and stops.
//!
//! Start: log, token, vault, database, sockets, then the service manager hears that the box is
//! ready. A system on trial says so before the sockets, and opens them once it was blessed ([`trial`]). Sockets with TLS open later if their first certificate needs a token that is not there. Stop: no new connections, long-polls return, begun requests are finished, the writer
//! commits what it has. A second signal ends the process at once.

use std::{
    process,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sallyport_core::{
    admin::{KeyPlace, RestoreReport},
    limits::{BLOCKING_CALLS_MAX, TLS_SIGNATURES_AT_ONCE},
    time::Millis,
};
use sd_notify::NotifyState;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    app::App,
    config::{Config, RegistrationMode},
    http,
    listen::{self, Connections},
    service::{backup::restore, signer},
    shutdown::{self, Trigger},
    telemetry,
    tls::Certificates,
    trial::{self, Boot},
    upkeep,
};

/// How long begun requests may take once the box is to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How long blocking calls may take after that.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// How long the box waits with the message that it is ready for its first certificate, which may need the token.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(5);
/// File descriptors besides connections: database, media, log.
const DESCRIPTORS_RESERVED: u64 = 256;

/// Runs the box until a signal stops it.
///
/// # Errors
/// Whatever keeps the box from starting, with what to do about it.
pub fn run(config: Config, boot: Boot) -> anyhow::Result<()> {
    telemetry::log::install(config.log.level);
    raise_descriptor_limit(config.limits.connections as u64);
    let runtime = runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("sallyport")
        .max_blocking_threads(
            BLOCKING_CALLS_MAX + config.limits.login_workers + 2 * TLS_SIGNATURES_AT_ONCE + 8,
        )
        .build()
        .context("cannot start the worker threads")?;
    let (trigger, shutdown) = shutdown::channel();
    let app = App::start(config, now, shutdown, &boot)?;
    if let Some(report) = restore::finish(&app)? {
        log::warn!(incarnation = report.incarnation; "the box begins a new life after a restore from backup");
        report.next.iter().for_each(|step| log::warn!("next: {step}"));
    }
    let served = runtime.block_on(serve(Arc::clone(&app), trigger, boot));
    // Calls that still run hold the app; the writer commits what it has when the last one goes.
    runtime.shutdown_timeout(LAST_CALLS);
    drop(app);
    log::info!("stopped");
    served
}

/// Finishes a restore without serving anybody, and answers what came of it; `None` if there was nothing to finish.
///
/// # Errors
/// Whatever keeps the box from starting, or what was restored from being sound.
pub fn finish_restore(config: Config) -> anyhow::Result<Option<RestoreReport>> {
    telemetry::log::install(config.log.level);
    // Nobody asks this box to stop: a signal ends the process.
    let (_trigger, shutdown) = shutdown::channel();
    let app = App::open(config, now, shutdown)?;
    Ok(restore::finish(&app)?)
}

async fn serve(app: Arc<App>, trigger: Trigger, boot: Boot) -> anyhow::Result<()> {
    warn_about(&app.config);
    tokio::spawn(stop_on_signal(trigger)?);
    if app.start.on_trial {
        let examined = Arc::clone(&app);
        spawn_blocking(move || trial::examine(&examined))
            .await
            .context("the health check broke off")??;
        tokio::spawn(feed_watchdog(Arc::clone(&app)));
        notify(NotifyState::Ready);
        log::info!(
            "the new system is healthy; it stays closed until the boot loader's entry was blessed"
        );
        if !trial::blessed(&app, &boot).await? {
            return Ok(());
        }
    }
    open(&app).await
}

/// Opens the box, until it is to stop.
async fn open(app: &Arc<App>) -> anyhow::Result<()> {
    trial::settle(app)?;
    let connections =
        Connections::new(u32::try_from(app.config.limits.connections).unwrap_or(u32::MAX));
    tokio::spawn(upkeep::run(Arc::clone(app)));
    open_sockets(app, &connections).await?;
    tokio::spawn(signer::run(Arc::clone(app)));
    tokio::spawn(trial::remember_token(Arc::clone(app)));
    if !app.start.on_trial {
        tokio::spawn(feed_watchdog(Arc::clone(app)));
    }
    notify(NotifyState::Ready);
    log::info!(server_name:% = app.config.server_name, version = env!("CARGO_PKG_VERSION"); "ready");

    app.shutdown.requested().await;
    notify(NotifyState::Stopping);
    log::info!("stopping");
    let left = connections.drain(DRAIN).await;
    if left > 0 {
        log::warn!(connections = left; "some connections did not end in time");
    }
    Ok(())
}

/// Opens what needs no certificate at once, and the rest as soon as there is one.
async fn open_sockets(app: &Arc<App>, connections: &Connections) -> anyhow::Result<()> {
    let mut waiting = Vec::new();
    for listener in &app.config.listeners {
        let socket = listen::reserve(listener)?;
        let router = http::router(Arc::clone(app), &listener.apis);
        if listener.tls {
            waiting.push((listener.address, socket, router));
            continue;
        }
        log::info!(address:% = listener.address, tls = false; "listening");
        let (app, connections) = (Arc::clone(app), connections.clone());
        tokio::spawn(listen::accept_tcp(app, socket.listen()?, None, router, connections));
    }
    let socket = listen::bind_unix(&app.config.admin.socket).await?;
    let router = http::admin_router(Arc::clone(app));
    // Not bounded by the clients' connections: an administrator must get in when they are many.
    let admins = Connections::new(ADMIN_CONNECTIONS);
    tokio::spawn(listen::accept_unix(Arc::clone(app), socket, router, admins));
    let Some(certificates) = &app.certificates else { return Ok(()) };
    let tls = certificates.acceptor()?;
    let certified = timeout(FIRST_CERTIFICATE, certificates.ready()).await;
    if certified.is_ok() {
        tell_authority(certificates);
    } else {
        log::error!(
            "NO CERTIFICATE YET: its key is to be made in the token, which does not answer. Connect the token and look at `sallyctl token status`; \
             listeners with TLS open as soon as it answers."
        );
    }
    for (address, socket, router) in waiting {
        let serving = move |app, socket, connections, tls| {
            log::info!(address:% = address, tls = true; "listening");
            listen::accept_tcp(app, socket, Some(tls), router, connections)
        };
        let (app, connections, tls) = (Arc::clone(app), connections.clone(), tls.clone());
        if certified.is_ok() {
            tokio::spawn(serving(app, socket.listen()?, connections, tls));
            continue;
        }
        let certificates = Arc::clone(certificates);
        tokio::spawn(async move {
            certificates.ready().await;
            tell_authority(&certificates);
            match socket.listen() {
                Ok(socket) => serving(app, socket, connections, tls).await,
                Err(error) => log::error!(error:err = error; "a listener cannot be opened"),
            }
        });
    }
    Ok(())
}

fn tell_authority(certificates: &Certificates) {
    if let Some(ca) = certificates.status().ok().and_then(|status| status.ca) {
        log::info!(sha256 = ca.sha256; "devices must trust the enclave CA in ca.pem");
        if ca.key == KeyPlace::File {
            log::warn!(
                "the key of the enclave CA lies in a file: whoever copies the disk can make certificates of this enclave"
            );
        }
    }
}

/// Connections to the administration socket at a time.
const ADMIN_CONNECTIONS: u32 = 32;

fn warn_about(config: &Config) {
    if config.registration.mode == RegistrationMode::Open {
        log::warn!(
            "REGISTRATION IS OPEN: whoever reaches this box can create an account. \
             Set registration.mode to \"closed\" or \"token\"."
        );
    }
    if config.allow_software_keys {
        log::warn!(
            "KEYS LIE IN A FILE: whoever copies the disk is this box. For development only."
        );
    }
    if config.token.is_none() {
        log::warn!("no token is configured: members can chat, but nothing can leave the box");
    }
}

/// The time, for everything below. The only clock that is read.
fn now() -> Millis {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(0).plus(elapsed)
}

/// Stops in order at the first SIGTERM or SIGINT and at once at the second.
fn stop_on_signal(trigger: Trigger) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next().await;
        trigger.stop();
        next().await;
        log::warn!("stopped at once by a second signal");
        process::exit(1);
    })
}

/// Tells the service manager that the box is alive as long as the database answers.
async fn feed_watchdog(app: Arc<App>) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = interval(period / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !app.shutdown.is_requested() {
        ticks.tick().await;
        let asked = app.run(|app| app.store.read(|read| read.position()));
        match timeout(period / 3, asked).await {
            Ok(Ok(_)) => notify(NotifyState::Watchdog),
            Ok(Err(error)) => log::error!(error = error.chain(); "the database does not answer"),
            Err(_) => log::error!("the database does not answer in time"),
        }
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!(error:% = error; "the service manager cannot be told");
    }
}

/// Asks for as many file descriptors as connections need.
fn raise_descriptor_limit(connections: u64) {
    let wanted = connections + DESCRIPTORS_RESERVED;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft >= wanted {
            return Ok(soft);
        }
        let possible = wanted.min(hard);
        setrlimit(Resource::RLIMIT_NOFILE, possible, hard).map(|()| possible)
    });
    match raised {
        Ok(possible) if possible >= wanted => {}
        Ok(possible) => {
            log::warn!(possible, wanted; "too few file descriptors for limits.connections");
        }
        Err(error) => log::warn!(error:% = error; "the number of file descriptors is unknown"),
    }
}
