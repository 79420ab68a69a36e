//! Deferred signing: local events get their signatures after they were delivered.
//!
//! Only rooms with members from elsewhere are signed; a room that has only local members is signed when it is first exposed.
//! A slow token never stops local chat, and an absent one stops nothing but what leaves the box.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ruma::RoomId;
use sallyport_core::{
    event::Signed,
    room,
    sign::{KeyRole, SigningRequest},
    time::Millis,
};
use sallyport_hsm::Token;
use sallyport_store::{SignedBatch, Unsigned};

use super::{
    audit::{self, When},
    backlog::{Watch, backlog},
    hybrid,
    own_keys::{self, Current},
    rotation,
};
use crate::{app::App, telemetry};

/// Events that are signed and stored together at first. Small, so that a slow token's work is kept often and a stop is not delayed.
const BATCH_MIN: usize = 8;
/// Events that are signed and stored together at most, when the token is fast: then the disk would set the pace.
const BATCH_MAX: usize = 512;
/// How long a batch should take.
const BATCH_TIME: Duration = Duration::from_millis(100);
/// How long to wait before a token that failed is asked again.
const RETRY: Duration = Duration::from_secs(5);
/// How often to look at what waits and at what the audit log has to be told, while nothing is to be signed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Why the signer stopped before everything was signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keys are not to be had.
    #[error(transparent)]
    Keys(#[from] own_keys::Error),
    /// The database failed, or holds events that were not accepted here: those are never signed.
    #[error("events that wait for a signature cannot be read or kept")]
    Store(#[from] sallyport_store::Error),
    /// The token failed.
    #[error("the token does not sign")]
    Token(#[source] sallyport_hsm::Error),
    /// The audit log has no new checkpoint.
    #[error(transparent)]
    Audit(#[from] audit::Error),
    /// An old key could not be destroyed.
    #[error("a key that nobody uses any more is still there")]
    Superseded(#[source] Box<rotation::Error>),
    /// A signature does not fit its event.
    #[error("an event cannot be signed")]
    Attach(#[from] sallyport_core::event::AttachError),
}

/// Signs whatever waits, now and whenever more comes, until the box stops; has the audit log told of it, and warns of what waits too long.
pub async fn run(app: Arc<App>) {
    let mut trouble = None;
    let mut watch = Watch::default();
    while !app.shutdown.is_requested() {
        let worker = Arc::clone(&app);
        let work = tokio::task::spawn_blocking(move || {
            let now = (worker.clock)();
            let worked = worker.token.as_deref().map_or(Ok(()), |token| work(&worker, token, now));
            let seen = backlog(&worker.store, &worker.config.data_dir);
            let _new = seen.map(|backlog| watch.look(&backlog, now));
            (worked, watch)
        });
        let pause = match work.await {
            Ok((worked, seen)) => {
                watch = seen;
                let failed = worked.err().map(|error| telemetry::chain(&error));
                if failed.is_some() && trouble.is_none() {
                    log::warn!(error:? = failed; "events wait for their signatures; local chat goes on, nothing leaves the box");
                }
                trouble = failed;
                if trouble.is_some() { RETRY } else { LOOK_EVERY }
            }
            Err(_) => {
                watch = Watch::default();
                RETRY
            }
        };
        tokio::select! {
            () = app.shutdown.requested() => {}
            () = app.notify.unsigned(), if trouble.is_none() && app.token.is_some() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn work(app: &App, token: &dyn Token, now: Millis) -> Result<(), Error> {
    own_keys::ensure(&app.store, token, now)?;
    hybrid::ensure(&app.store, token, &app.config.server_name)?;
    sign_pending(app, token, || app.shutdown.is_requested())?;
    audit::tell_of_signatures(&app.store, When::Due, now)?;
    rotation::destroy_superseded(app, token, now)
        .map_err(|error| Error::Superseded(Box::new(error)))?;
    Ok(audit::checkpoint_if_due(&app.store, token, &app.config.server_name, now)?)
}

/// Signs the local events that wait, room by room, until none is left or `stop` says so.
///
/// [`App::signing`] is held for each batch, not in between: who signs at the same time goes on where the other one is, no event is signed twice, and
/// nobody waits for longer than a batch takes. What is in it protects nothing, so a panic there does no harm.
///
/// # Errors
/// At the first failure; what was signed before is kept.
pub fn sign_pending(app: &App, token: &dyn Token, stop: impl Fn() -> bool) -> Result<(), Error> {
    for room_id in app.store.read(|read| read.rooms_to_sign())? {
        sign_room(app, token, &room_id, &stop, || turn(app))?;
    }
    Ok(())
}

/// Whose turn it is to sign.
pub fn turn(app: &App) -> MutexGuard<'_, ()> {
    app.signing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`sign_pending`] until nothing waits, for who holds the turn and gives it back later: what comes meanwhile is signed by whoever is next.
///
/// # Errors
/// As [`sign_pending`].
pub fn drain(app: &App, token: &dyn Token, _turn: &MutexGuard<'_, ()>) -> Result<(), Error> {
    for room_id in app.store.read(|read| read.rooms_to_sign())? {
        sign_room(app, token, &room_id, &|| false, || ())?;
    }
    Ok(())
}

/// Signs the local events of one room that wait, the oldest first. The key is looked up in each turn: in between it may have been replaced.
fn sign_room<T>(
    app: &App,
    token: &dyn Token,
    room_id: &RoomId,
    stop: &impl Fn() -> bool,
    turn: impl Fn() -> T,
) -> Result<(), Error> {
    let mut size = BATCH_MIN;
    while !stop() {
        let _turn = turn();
        let began = Instant::now();
        let key = own_keys::required(&app.store, KeyRole::Event)?;
        let unsigned = app.store.read(|read| read.unsigned(room_id, &app.event_mac, size))?;
        let Some(unsigned) = unsigned else { break };
        let (batch, failed) = sign_batch(token, &key, unsigned, (app.clock)())?;
        if !batch.events.is_empty() {
            app.store.write(move |write| write.store_signatures(&batch))?;
        }
        if let Some(error) = failed {
            return Err(Error::Token(error));
        }
        if began.elapsed() < BATCH_TIME {
            size = size.saturating_mul(2).min(BATCH_MAX);
        }
    }
    Ok(())
}

/// Signs a batch up to the first event that the token does not sign.
fn sign_batch(
    token: &dyn Token,
    key: &Current,
    unsigned: Unsigned,
    at: Millis,
) -> Result<(SignedBatch, Option<sallyport_hsm::Error>), Error> {
    let damaged = || own_keys::Error::Damaged(KeyRole::Event);
    let rules = room::rules(&unsigned.room.version).ok_or_else(damaged)?;
    let key_id = key.key_id().ok_or_else(damaged)?;
    let public = <&[u8; 32]>::try_from(key.key.public.as_slice()).map_err(|_| damaged())?;
    let requests: Vec<_> = unsigned
        .events
        .iter()
        .map(|event| SigningRequest::Pdu {
            room_version: unsigned.room.version.clone(),
            json: event.pdu.json().to_owned(),
        })
        .collect();
    let mut batch = SignedBatch {
        key: key.name.to_string(),
        at,
        room_id: unsigned.room.room_id,
        events: Vec::with_capacity(requests.len()),
        mac: Vec::new(),
    };
    let answers = token.sign_many(&key.name, &requests);
    for ((event, mac), answer) in unsigned.events.into_iter().zip(unsigned.macs).zip(answers) {
        let signature = match answer {
            Ok(signature) => signature,
            Err(error) => return Ok((batch, Some(error))),
        };
        let signed = Signed::attach(event.pdu, &key_id, public, signature.as_bytes(), &rules)?;
        batch.events.push((event.position, signed));
        batch.mac = mac;
    }
    Ok((batch, None))
}
