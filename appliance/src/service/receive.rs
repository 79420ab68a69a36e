//! Events from elsewhere: the one loop behind bundle import and, later, live federation.
//!
//! `core` judges; this loop fetches what is missing and asks again. The two ways in differ only in their [`Fetcher`].
//! Events are taken in slices: signatures are checked on all cores, the slice is judged on a read snapshot, and the writer
//! stores it in one command; meanwhile the next slice's signatures are checked. If the room moved meanwhile, the slice is judged
//! again. Every step can be repeated: an event that is here already is passed over, so an import that was interrupted simply
//! starts again.

use std::{collections::VecDeque, num::NonZero, panic, sync::mpsc::sync_channel, thread};

use ruma::{OwnedEventId, OwnedServerName, RoomId, room_version_rules::RoomVersionRules};
use sallyport_core::{
    event::{KeySource, Status},
    limits,
    room::{self, Change, Checked, Hold, Overlay, Verdict},
    time::Millis,
};
use sallyport_store::{Outcome, Store};

/// Where missing events come from.
pub trait Fetcher {
    /// Events of the room that were asked for, as bytes in any order; those that cannot be had are left out.
    fn fetch(&mut self, room_id: &RoomId, wanted: &[OwnedEventId]) -> Vec<Vec<u8>>;
}

/// Nothing more can be had: everything came along.
pub struct NothingMore;

impl Fetcher for NothingMore {
    fn fetch(&mut self, _: &RoomId, _: &[OwnedEventId]) -> Vec<Vec<u8>> {
        Vec::new()
    }
}

/// What became of the events.
#[derive(Debug, Default)]
pub struct Report {
    /// Part of the room now.
    pub accepted: u64,
    /// Part of the room, in their redacted form only.
    pub redacted: u64,
    /// Were here already.
    pub known: u64,
    /// Valid where they stand, but not by the room's current state; hidden from clients.
    pub soft_failed: Vec<Refused>,
    /// Against the rules.
    pub rejected: Vec<Refused>,
    /// No events, or badly signed: why, for each.
    pub dropped: Vec<String>,
    /// To be tried again later, as they arrived.
    pub waiting: Vec<Waiting>,
}

/// An event that the rules refused.
#[derive(Debug)]
pub struct Refused {
    /// The event.
    pub event_id: OwnedEventId,
    /// Why.
    pub reason: String,
}

/// An event that must wait.
#[derive(Debug)]
pub struct Waiting {
    /// The event as it arrived.
    pub json: Vec<u8>,
    /// What it waits for.
    pub reason: WaitingFor,
}

/// What an event waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingFor {
    /// Its time, or an officer.
    Time(Millis),
    /// Keys of these servers: there are none, or none that are fresh enough.
    Keys(Vec<OwnedServerName>),
    /// Events that it builds on.
    Events(Vec<OwnedEventId>),
}

/// Why receiving stopped. What was stored before stays.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("events could not be stored")]
    Store(#[from] sallyport_store::Error),
    /// The box is not in the room.
    #[error("the room {0} is not known here")]
    UnknownRoom(ruma::OwnedRoomId),
    /// The room changed faster than it could be judged.
    #[error("the room {0} changed too often meanwhile: try again")]
    Busy(ruma::OwnedRoomId),
}

/// Takes events of one room in, in the order of their arrival.
///
/// # Errors
/// If the box does not have the room, or the database fails; what was stored before stays.
pub fn receive(
    store: &Store,
    room_id: &RoomId,
    pdus: Vec<Vec<u8>>,
    keys: &(impl KeySource + Sync),
    fetcher: &mut dyn Fetcher,
    now: Millis,
) -> Result<Report, Error> {
    let room = store.read(|read| read.room(room_id))?;
    let rules = room
        .and_then(|room| room::rules(&room.version))
        .ok_or_else(|| Error::UnknownRoom(room_id.to_owned()))?;
    let verifier = &Verifier { rules, keys };
    let report = Report::default();
    let mut reception = Reception { store, room_id, verifier, fetcher, now, report };
    thread::scope(|scope| {
        // One slice ahead: while one is judged and stored, the signatures of the next are checked.
        let (verified, slices) = sync_channel(1);
        scope.spawn(move || {
            for slice in pdus.chunks(limits::RECEIVE_SLICE_EVENTS) {
                // Nobody takes the rest if an earlier slice failed.
                if verified.send(verifier.verify(slice)).is_err() {
                    return;
                }
            }
        });
        slices.into_iter().try_for_each(|slice| reception.take(slice, limits::FETCH_ROUNDS_MAX))
    })?;
    Ok(reception.report)
}

struct Reception<'a, K> {
    store: &'a Store,
    room_id: &'a RoomId,
    verifier: &'a Verifier<'a, K>,
    fetcher: &'a mut dyn Fetcher,
    now: Millis,
    report: Report,
}

/// What signatures are checked with.
struct Verifier<'a, K> {
    rules: RoomVersionRules,
    keys: &'a K,
}

/// An event whose signatures are good, with the bytes that it came in.
#[derive(Clone)]
struct Arrival {
    json: Vec<u8>,
    checked: Checked,
}

/// What a slice makes of the room, and what could not be judged.
struct Judged {
    changes: Vec<Change>,
    notes: Vec<Note>,
}

/// One line of the report.
enum Note {
    Accepted,
    Redacted,
    Known,
    SoftFailed(Refused),
    Rejected(Refused),
    Dropped(String),
    Waiting(Waiting),
}

impl<K: KeySource + Sync> Verifier<'_, K> {
    /// Checks signatures and hashes, on all cores.
    fn verify(&self, slice: &[Vec<u8>]) -> Vec<Result<Arrival, Note>> {
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let chunk = slice.len().div_ceil(workers).max(1);
        thread::scope(|scope| {
            let handles: Vec<_> = slice
                .chunks(chunk)
                .map(|chunk| {
                    scope.spawn(move || {
                        chunk.iter().map(|json| self.verify_one(json)).collect::<Vec<_>>()
                    })
                })
                .collect();
            handles
                .into_iter()
                .flat_map(|handle| handle.join().unwrap_or_else(|why| panic::resume_unwind(why)))
                .collect()
        })
    }

    fn verify_one(&self, json: &[u8]) -> Result<Arrival, Note> {
        let incoming =
            room::parse(json, &self.rules).map_err(|error| Note::Dropped(error.to_string()))?;
        match incoming.verify(self.keys, &self.rules) {
            Ok(checked) => Ok(Arrival { json: json.to_vec(), checked }),
            Err(verdict) => Err(unverified(*verdict, json)),
        }
    }
}

impl<K: KeySource + Sync> Reception<'_, K> {
    /// Takes one slice in. What it misses is fetched, and both are taken in again, as often as `rounds` says.
    fn take(&mut self, slice: Vec<Result<Arrival, Note>>, rounds: usize) -> Result<(), Error> {
        let mut arrivals = Vec::with_capacity(slice.len());
        for verified in slice {
            match verified {
                Ok(arrival) => arrivals.push(arrival),
                Err(note) => self.note(note),
            }
        }
        let notes = self.store_slice(&arrivals)?;
        let mut missing = Vec::new();
        let mut retry = VecDeque::new();
        for note in notes {
            match note {
                Note::Waiting(Waiting { json, reason: WaitingFor::Events(ids) }) if rounds > 0 => {
                    missing.extend(ids);
                    retry.push_back(json);
                }
                other => self.note(other),
            }
        }
        if retry.is_empty() {
            return Ok(());
        }
        missing.sort();
        missing.dedup();
        let fetched = self.fetcher.fetch(self.room_id, &missing);
        let rounds = if fetched.is_empty() { 0 } else { rounds - 1 };
        for json in fetched.into_iter().rev() {
            retry.push_front(json);
        }
        self.take(self.verifier.verify(retry.make_contiguous()), rounds)
    }

    /// Judges a slice on a snapshot and stores it; again if the room moved meanwhile.
    fn store_slice(&self, arrivals: &[Arrival]) -> Result<Vec<Note>, Error> {
        for _ in 0..limits::DECIDE_ATTEMPTS_MAX {
            let judged = self.judge(arrivals)?;
            if judged.changes.is_empty() {
                return Ok(judged.notes);
            }
            let room_id = self.room_id.to_owned();
            let changes = judged.changes;
            let outcome = self.store.write(move |write| write.apply(&room_id, &changes))?;
            if let Outcome::Done(_) = outcome {
                return Ok(judged.notes);
            }
        }
        Err(Error::Busy(self.room_id.to_owned()))
    }

    fn judge(&self, arrivals: &[Arrival]) -> Result<Judged, Error> {
        self.store.read(|read| {
            let view = read.view(self.room_id)?;
            let mut overlay = Overlay::new(&view)?;
            let mut judged = Judged { changes: Vec::new(), notes: Vec::new() };
            for arrival in arrivals {
                let verdict = room::decide(&overlay, arrival.checked.clone(), self.now)?;
                let (change, note) = sort(verdict, arrival);
                if let Some(change) = change {
                    overlay.push(&change);
                    judged.changes.push(change);
                }
                judged.notes.push(note);
            }
            Ok(judged)
        })
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Accepted => self.report.accepted += 1,
            Note::Redacted => self.report.redacted += 1,
            Note::Known => self.report.known += 1,
            Note::SoftFailed(refused) => self.report.soft_failed.push(refused),
            Note::Rejected(refused) => self.report.rejected.push(refused),
            Note::Dropped(reason) => self.report.dropped.push(reason),
            Note::Waiting(waiting) => self.report.waiting.push(waiting),
        }
    }
}

fn unverified(verdict: Verdict, json: &[u8]) -> Note {
    match verdict {
        Verdict::Hold(hold) => waiting(json, hold),
        Verdict::Missing { keys, .. } => {
            Note::Waiting(Waiting { json: json.to_vec(), reason: WaitingFor::Keys(keys) })
        }
        Verdict::Drop(reason) => Note::Dropped(reason),
        other => Note::Dropped(format!("not verified: {other:?}")),
    }
}

/// What a verdict means for the room and for the report.
fn sort(verdict: Verdict, arrival: &Arrival) -> (Option<Change>, Note) {
    let refused =
        |reason| Refused { event_id: arrival.checked.pdu().event_id().to_owned(), reason };
    match verdict {
        Verdict::Accept(change) => (Some(change), Note::Accepted),
        Verdict::AcceptRedacted(change) => (Some(change), Note::Redacted),
        Verdict::SoftFail(change, reason) => (Some(change), Note::SoftFailed(refused(reason))),
        Verdict::Reject(change, reason) => (Some(change), Note::Rejected(refused(reason))),
        Verdict::Drop(reason) => (None, Note::Dropped(reason)),
        Verdict::Hold(hold) => (None, waiting(&arrival.json, hold)),
        Verdict::Missing { mut events, state, .. } => {
            events.extend(state);
            let reason = WaitingFor::Events(events);
            (None, Note::Waiting(Waiting { json: arrival.json.clone(), reason }))
        }
        Verdict::Known(Status::Accepted | Status::SoftFailed | Status::Rejected) => {
            (None, Note::Known)
        }
    }
}

fn waiting(json: &[u8], hold: Hold) -> Note {
    let reason = match hold {
        Hold::Until(time) => WaitingFor::Time(time),
        Hold::FreshKeys(server) => WaitingFor::Keys(vec![server]),
    };
    Note::Waiting(Waiting { json: json.to_vec(), reason })
}
