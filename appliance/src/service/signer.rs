//! Deferred signing: local events get their signatures after they were delivered.
//!
//! Only rooms with members from elsewhere are signed; a room that has only local members is signed when it is first exposed.
//! A slow token never stops local chat, and an absent one stops nothing but what leaves the box.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ring::hmac;
use ruma::RoomId;
use sallyport_core::{
    event::Signed,
    room,
    sign::{KeyRole, SigningRequest},
};
use sallyport_hsm::Token;
use sallyport_store::{SignedBatch, Store, Unsigned};

use super::own_keys::{self, Current};
use crate::app::App;

/// Events that are signed and stored together at first. Small, so that a slow token's work is kept often and a stop is not delayed.
const BATCH_MIN: usize = 8;
/// Events that are signed and stored together at most, when the token is fast: then the disk would set the pace.
const BATCH_MAX: usize = 512;
/// How long a batch should take.
const BATCH_TIME: Duration = Duration::from_millis(100);
/// How long to wait before a token that failed is asked again.
const RETRY: Duration = Duration::from_secs(5);

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
    /// A signature does not fit its event.
    #[error("an event cannot be signed")]
    Attach(#[from] sallyport_core::event::AttachError),
}

/// Signs whatever waits, now and whenever more comes, until the box stops.
pub async fn run(app: Arc<App>) {
    let Some(token) = app.token.clone() else { return };
    let mut told = false;
    while !app.shutdown.is_requested() {
        let (worker, token) = (Arc::clone(&app), Arc::clone(&token));
        let done = tokio::task::spawn_blocking(move || {
            let now = (worker.clock)();
            own_keys::ensure(&worker.store, &*token, now)?;
            let stop = || worker.shutdown.is_requested();
            sign_pending(&worker.store, &*token, &worker.event_mac, &worker.signing, stop)
        });
        let wait = match done.await {
            Ok(Ok(())) => {
                told = false;
                None
            }
            Ok(Err(error)) => {
                if !told {
                    let error = anyhow::Error::from(error);
                    log::warn!(error:% = format!("{error:#}"); "events wait for their signatures; local chat goes on, nothing leaves the box");
                }
                told = true;
                Some(RETRY)
            }
            Err(_) => Some(RETRY),
        };
        tokio::select! {
            () = app.shutdown.requested() => {}
            () = app.notify.unsigned(), if wait.is_none() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

/// Signs the local events that wait, room by room, until none is left or `stop` says so.
///
/// `turn` is held for each batch, not in between: who signs at the same time goes on where the other one is, no event is signed twice, and
/// nobody waits for longer than a batch takes. What is in it protects nothing, so a panic there does no harm.
///
/// # Errors
/// At the first failure; what was signed before is kept.
pub fn sign_pending(
    store: &Store,
    token: &dyn Token,
    mac: &hmac::Key,
    turn: &Mutex<()>,
    stop: impl Fn() -> bool,
) -> Result<(), Error> {
    let key = own_keys::required(store, KeyRole::Event)?;
    for room_id in store.read(|read| read.rooms_to_sign())? {
        sign_room(store, token, &key, mac, turn, &room_id, &stop)?;
    }
    Ok(())
}

/// Signs the local events of one room that wait, the oldest first.
fn sign_room(
    store: &Store,
    token: &dyn Token,
    key: &Current,
    mac: &hmac::Key,
    turn: &Mutex<()>,
    room_id: &RoomId,
    stop: &impl Fn() -> bool,
) -> Result<(), Error> {
    let mut size = BATCH_MIN;
    while !stop() {
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let Some(unsigned) = store.read(|read| read.unsigned(room_id, mac, size))? else {
            break;
        };
        let (batch, failed) = sign_batch(token, key, unsigned)?;
        if !batch.events.is_empty() {
            store.write(move |write| write.store_signatures(&batch))?;
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
