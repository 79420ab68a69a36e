//! Deferred signing: local events get their signatures after they were delivered.
//!
//! Only rooms with members from elsewhere are signed; a room that has only local members is signed when it is first exposed.
//! A slow token never stops local chat, and an absent one stops nothing but what leaves the box.

use std::{
    panic,
    sync::{Arc, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ruma::RoomId;
use sallyport_core::{
    event::Signed,
    room,
    sign::{KeyRole, Signature, SigningRequest},
    time::Millis,
};
use sallyport_hsm::Token;
use sallyport_store::{ChainEnd, SignedBatch, Unsigned, UnsignedEvent};

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
/// How long a turn lasts. A slow token's is two batches.
const TURN_TIME: Duration = Duration::from_secs(1);
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
/// [`App::signing`] is held for a turn, not in between: who signs at the same time goes on where the other one is, no event is signed twice, and
/// nobody waits for longer than a turn and a batch take. What is in it protects nothing, so a panic there does no harm.
///
/// # Errors
/// At the first failure; what was signed before is kept.
pub fn sign_pending(
    app: &App,
    token: &dyn Token,
    stop: impl Fn() -> bool + Sync,
) -> Result<(), Error> {
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
    stop: &(impl Fn() -> bool + Sync),
    turn: impl Fn() -> T,
) -> Result<(), Error> {
    let mut size = BATCH_MIN;
    while !stop() {
        let _turn = turn();
        let key = own_keys::required(&app.store, KeyRole::Event)?;
        if !(Turn { app, token, key, room_id }).sign(&mut size, stop)? {
            break;
        }
    }
    Ok(())
}

/// Batch after batch of one room, for as long as others can wait.
struct Turn<'a> {
    app: &'a App,
    token: &'a dyn Token,
    key: Current,
    room_id: &'a RoomId,
}

/// A batch that the token has answered.
struct Answered {
    unsigned: Unsigned,
    answers: Vec<Result<Signature, sallyport_hsm::Error>>,
}

impl Turn<'_> {
    /// While the token signs one batch, the one before is stored and the next one is read: a fast token does not wait for the disk.
    /// Answers whether there was something to sign.
    fn sign(&self, size: &mut usize, stop: &(impl Fn() -> bool + Sync)) -> Result<bool, Error> {
        let turn_began = Instant::now();
        let mut next = self.read(None, *size)?;
        let any = next.is_some();
        let mut answered = None;
        while let Some(unsigned) = next.take() {
            let began = Instant::now();
            let more =
                unsigned.events.len() == *size && turn_began.elapsed() < TURN_TIME && !stop();
            let after = unsigned.end().filter(|_| more);
            let requests = requests(&unsigned);
            let ahead = *size;
            let beside = || {
                answered.take().map_or(Ok(()), |answered| self.store(answered))?;
                after.map_or(Ok(None), |after| self.read(Some(&after), ahead))
            };
            let (answers, read) = thread::scope(|scope| {
                let beside = scope.spawn(beside);
                let answers = self.token.sign_many(&self.key.name, &requests);
                (answers, beside.join().unwrap_or_else(|fault| panic::resume_unwind(fault)))
            });
            let failed = answers.iter().any(Result::is_err);
            next = read?.filter(|_| !failed && !stop());
            answered = Some(Answered { unsigned, answers });
            if began.elapsed() < BATCH_TIME {
                *size = size.saturating_mul(2).min(BATCH_MAX);
            }
        }
        answered.map_or(Ok(()), |answered| self.store(answered))?;
        Ok(any)
    }

    fn read(&self, after: Option<&ChainEnd>, size: usize) -> Result<Option<Unsigned>, Error> {
        let App { store, event_mac, .. } = self.app;
        Ok(store.read(|read| read.unsigned(self.room_id, event_mac, after, size))?)
    }

    /// Keeps the signatures up to the first event that the token did not sign.
    fn store(&self, Answered { unsigned, answers }: Answered) -> Result<(), Error> {
        let damaged = || own_keys::Error::Damaged(KeyRole::Event);
        let rules = room::rules(&unsigned.room.version).ok_or_else(damaged)?;
        let key_id = self.key.key_id().ok_or_else(damaged)?;
        let public = self.key.key.public.as_slice();
        let public = <&[u8; 32]>::try_from(public).map_err(|_| damaged())?;
        let mut batch = SignedBatch {
            key: self.key.name.to_string(),
            at: (self.app.clock)(),
            room_id: unsigned.room.room_id,
            events: Vec::with_capacity(answers.len()),
            mac: Vec::new(),
        };
        let mut failed = None;
        for ((event, mac), answer) in unsigned.events.into_iter().zip(unsigned.macs).zip(answers) {
            match answer {
                Ok(signature) => {
                    let signature = signature.as_bytes();
                    let signed = Signed::attach(event.pdu, &key_id, public, signature, &rules)?;
                    batch.events.push((event.position, signed));
                    batch.mac = mac;
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if !batch.events.is_empty() {
            self.app.store.write(move |write| write.store_signatures(&batch))?;
        }
        failed.map_or(Ok(()), |error| Err(Error::Token(error)))
    }
}

fn requests(unsigned: &Unsigned) -> Vec<SigningRequest> {
    let request = |event: &UnsignedEvent| SigningRequest::Pdu {
        room_version: unsigned.room.version.clone(),
        json: event.pdu.json().to_owned(),
    };
    unsigned.events.iter().map(request).collect()
}
