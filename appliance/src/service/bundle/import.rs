//! Import: a bundle of a peer, from quarantine to the last slice.
//!
//! Nothing changes before the whole file is authentic: header, manifest and every section are verified first, from a copy that nobody else can
//! change. Then records are taken in, slice by slice; each slice notes how far the import has come in its own transaction, and
//! every change can be repeated, so an import that was interrupted goes on where it stopped.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Seek as _, SeekFrom},
    path::Path,
};

use ring::digest;
use ruma::{
    OwnedRoomId, OwnedServerName, ServerName,
    api::federation::transactions::edu::DirectDeviceContent,
};
use sallyport_core::{
    admin::{BundleImported, Consent},
    bundle::{
        Ack, Authentic, ChunkReader, Entry, Gate, Header, Manifest, OneTimeKeyClaim, PduRole,
        Record, Records, Room, Sealed, Sequence, ToDevice,
    },
    card::Card,
    digest::Sha256,
    event::KeyDocument,
    incarnation::Incarnation,
    limits,
    room::snapshot::Takeover,
    time::Millis,
};
use sallyport_store::{KeyClaim, Outcome, Progress, Received, WaitingEvent, Write};
use serde::Deserialize;

use super::{
    Error, media,
    place::{check_prerequisites, new_life, place},
    rooms,
    tally::Tally,
    unlock::unlock,
    users,
};
use crate::{
    app::App,
    files,
    service::{
        clock,
        order::{Mandate, Order},
        own_keys, peers,
        receive::{self, NothingMore, receive},
    },
};

/// Records that are stored together, events apart.
const SLICE: usize = 64;
/// Events of a room that are handed to `receive` at once; it slices them further.
const EVENTS: usize = 1024;

/// Imports a bundle from a quarantined file, which has this hash. Importing one twice changes nothing.
///
/// The audit log gets a row in the transaction that begins the import, because one that is interrupted can be seen, and one in the transaction
/// after which the bundle counts as received.
///
/// # Errors
/// If it is not accepted or too few officers approved it, before anything has changed; or if the database or a disk fails in between: then the import goes on
/// where it stopped when it is tried again.
pub fn import(
    app: &App,
    path: &Path,
    sha256: Sha256,
    order: &Order,
) -> Result<BundleImported, Error> {
    let now = order.now;
    clock::check(&app.store, now)?;
    let ours = &app.config.server_name;
    let wanted = Consent::to_import(ours.clone(), sha256);
    let mandate = order.approved(&app.config.roster.trusted_keys, None, &wanted)?;
    let all = peers::list(&app.store)?;
    let cards: Vec<Card> = all.iter().map(|(_, card)| card.clone()).collect();
    let gate = Gate {
        me: ours,
        peers: &cards,
        now,
        bytes_max: limits::BUNDLE_BYTES_MAX,
        admit_expired: false,
        admit_future: false,
    };
    let sealed = Sealed::open(open(path)?, &gate)?;
    let header = sealed.header().clone();
    let (peer, _) = all
        .into_iter()
        .find(|(peer, _)| peer.server == header.from)
        .ok_or_else(|| Error::NotAPeer(header.from.clone()))?;
    let place = place(&app.store, &peer, &header)?;
    match place {
        Sequence::Next | Sequence::Gap { .. } | Sequence::NewIncarnation => {}
        Sequence::Duplicate | Sequence::Retired => return known(app, &header, sha256, &mandate),
        refused => return Err(Error::Sequence(refused)),
    }
    let authentic = unlock(app, sealed, now)?.authenticate()?;
    let new_life = new_life(&peer, &authentic, place)?;
    check_prerequisites(app, &peer, authentic.manifest(), place)?;
    check_approvers(app, &header, sha256, &mandate)?;
    if let Some(card) = new_life {
        peers::begin_new_life(app, &peer.server, card, &mandate)?;
    }

    let mut import = Import::begin(app, &authentic, sha256, &mandate)?;
    import.take_card(authentic.manifest())?;
    import.take_server_keys(authentic.manifest())?;
    let mut records = authentic.records(open(path)?)?;
    import.take_records(&mut records)?;
    import.finish(authentic.manifest())
}

/// Nothing changes; that somebody brought the bundle is on record.
fn known(
    app: &App,
    header: &Header,
    sha256: Sha256,
    mandate: &Mandate,
) -> Result<BundleImported, Error> {
    let entry = mandate.entry("bundle.known", &header.from, details(header.seq, sha256));
    app.store.write::<_, sallyport_store::Error>(move |write| write.append_audit(entry))?;
    Ok(BundleImported {
        peer: header.from.clone(),
        sequence: header.seq,
        known: true,
        report: Vec::new(),
    })
}

/// What the rows of the audit log tell of a bundle.
fn details(sequence: u64, sha256: Sha256) -> [(&'static str, String); 2] {
    [("sequence", sequence.to_string()), ("sha256", sha256.to_string())]
}

fn open(path: &Path) -> Result<BufReader<File>, Error> {
    let mut input = File::open(path).map_err(files::failed("open", path))?;
    input.seek(SeekFrom::Start(0)).map_err(files::failed("read", path))?;
    Ok(BufReader::with_capacity(1 << 17, input))
}

/// Officers approve the very file: what they looked at is what is imported.
fn check_approvers(
    app: &App,
    header: &Header,
    sha256: Sha256,
    mandate: &Mandate,
) -> Result<(), Error> {
    let needed = super::own_policy(&app.store)?.import_approvals.into();
    let Header { seq, from, .. } = header;
    let what = || format!("the import of bundle {seq} of {from}, SHA-256 {sha256}");
    let command = || "sallyctl approve import BUNDLE --token TOKEN --out APPROVAL".to_owned();
    Ok(mandate.approvers().require(needed, what, command)?)
}

/// An import in progress.
struct Import<'a> {
    app: &'a App,
    peer: OwnedServerName,
    incarnation: Incarnation,
    seq: u64,
    created: Millis,
    manifest: [u8; 32],
    progress: Progress,
    tally: Tally,
    sha256: Sha256,
    mandate: &'a Mandate,
    now: Millis,
    pending: Vec<Change>,
    room: Option<OpenRoom>,
    /// The file that is being received.
    file: Option<media::Incoming>,
    /// Every server's keys, those of this bundle included.
    keys: BTreeMap<OwnedServerName, KeyDocument>,
}

/// A change that the next slice makes.
enum Change {
    User(users::Verified),
    Pool(Box<sallyport_core::bundle::Pool>),
    ToDevice(i64, Box<DirectDeviceContent>),
    Claim(KeyClaim),
}

/// The room whose section is being read.
struct OpenRoom {
    room_id: OwnedRoomId,
    snapshot: Option<rooms::Incoming>,
    events: Vec<Vec<u8>>,
}

impl<'a> Import<'a> {
    fn begin(
        app: &'a App,
        authentic: &Authentic,
        sha256: Sha256,
        mandate: &'a Mandate,
    ) -> Result<Self, Error> {
        let header = authentic.header();
        let peer = header.from.clone();
        let manifest = *header.manifest.as_bytes();
        let progress = app.store.read(|read| read.import_progress(&peer, header.seq, &manifest))?;
        let progress = progress.unwrap_or_default();
        let entry = mandate.entry("bundle.import", &peer, details(header.seq, sha256));
        let mut import = Self {
            app,
            incarnation: header.incarnation,
            seq: header.seq,
            created: header.created,
            manifest,
            tally: serde_json::from_str(&progress.report).unwrap_or_default(),
            progress,
            peer,
            sha256,
            mandate,
            now: mandate.now(),
            pending: Vec::new(),
            room: None,
            file: None,
            keys: BTreeMap::new(),
        };
        import.write(move |write, _| write.append_audit(entry).map(drop))?;
        Ok(import)
    }

    /// Keeps the peer's card if it is newer than the one we have. It takes effect with the next bundle.
    fn take_card(&mut self, manifest: &Manifest) -> Result<(), Error> {
        let Some(card) = &manifest.card else { return Ok(()) };
        let renewal = peers::renewal(&self.app.store, &self.peer, card, self.mandate)?;
        let Some(peers::Renewal { entry, taken }) = renewal else { return Ok(()) };
        let (peer, card, now) = (self.peer.clone(), card.clone(), self.now);
        self.write(move |write, tally| {
            if taken {
                write.set_peer(&peer, &card, now)?;
                tally.cards += 1;
            }
            write.append_audit(entry).map(drop)
        })
    }

    /// Keeps the key documents: the peer's own, made when the bundle was made; those of others only if we have none by themselves.
    fn take_server_keys(&mut self, manifest: &Manifest) -> Result<(), Error> {
        let paired: Vec<OwnedServerName> =
            self.app.store.read(|read| read.peers())?.into_iter().map(|peer| peer.server).collect();
        for bytes in &manifest.server_keys {
            let json = String::from_utf8_lossy(bytes).into_owned();
            let Some(server) = named_server(&json) else { continue };
            let second_hand = server != self.peer;
            if server == self.app.config.server_name || (second_hand && paired.contains(&server)) {
                continue;
            }
            let document = KeyDocument::verify(&json, &server, self.created.min(self.now))
                .map_err(|error| Error::Content(format!("the keys of {server}: {error}")))?;
            self.app.store.write(move |write| write.keep_server_keys(&document))?;
        }
        self.keys = self.app.store.read(|read| read.server_keys())?;
        self.add_own_keys()
    }

    /// After a restore peers give back what we had said: it is ours by our own keys, current and old, and by nobody else's word.
    fn add_own_keys(&mut self) -> Result<(), Error> {
        if !self.app.store.read(|read| read.was_restored())? {
            return Ok(());
        }
        let token = self.app.token.as_deref().ok_or(peers::Error::NoToken)?;
        let ours = &self.app.config.server_name;
        let json = own_keys::key_document(&self.app.store, token, ours, self.now)?;
        let document = KeyDocument::verify(&json, ours, self.now).map_err(peers::Error::from)?;
        self.keys.insert(ours.clone(), document);
        Ok(())
    }

    fn take_records(
        &mut self,
        records: &mut Records<ChunkReader<BufReader<File>>>,
    ) -> Result<(), Error> {
        let (section, record) = (self.progress.section, self.progress.record);
        self.resume(records, section, record)?;
        for entry in records {
            let entry = entry?;
            if entry.section != self.progress.section {
                self.end_section()?;
                self.progress.section = entry.section;
                self.progress.record = 0;
            }
            self.take(entry)?;
        }
        self.end_section()
    }

    /// Goes on where the import stopped. In a room's section its head is read again: it says which room it is.
    fn resume(
        &mut self,
        records: &mut Records<ChunkReader<BufReader<File>>>,
        section: usize,
        record: u64,
    ) -> Result<(), Error> {
        if record == 0 {
            return Ok(records.resume(section, 0)?);
        }
        records.resume(section, 0)?;
        let Some(first) = records.next().transpose()? else { return Ok(()) };
        if let Record::Room(Room::Head(head)) = first.record {
            self.room =
                Some(OpenRoom { room_id: head.room_id, snapshot: None, events: Vec::new() });
        }
        for _ in 1..record {
            records.next().transpose()?;
        }
        Ok(())
    }

    fn take(&mut self, entry: Entry) -> Result<(), Error> {
        let next = entry.number.saturating_add(1);
        match entry.record {
            Record::User(user) => {
                self.tally.users += 1;
                self.pending.push(Change::User(users::verify(user, &self.peer)?));
            }
            Record::OneTimeKeys(pool) => self.pending.push(Change::Pool(Box::new(pool))),
            Record::ToDevice(message) => self.pending.push(to_device(message)?),
            Record::Claim(claim) => self.pending.push(Change::Claim(key_claim(claim))),
            Record::Room(record) => return self.take_room(record, next),
            Record::Media(record) => {
                let (app, peer) = (self.app, &self.peer);
                let kept = media::take(app, peer, &mut self.file, record, self.now)?;
                self.tally.media += u64::from(kept);
            }
            Record::Keys(_) | Record::Card(_) | Record::Receipt(_) | Record::Want(_) => {}
        }
        if self.pending.len() >= SLICE {
            self.store_slice(next)?;
        }
        Ok(())
    }

    /// Makes the pending changes and notes the progress, in one command.
    fn store_slice(&mut self, next: u64) -> Result<(), Error> {
        self.progress.record = next;
        let pending = std::mem::take(&mut self.pending);
        let (origin, incarnation) = (self.peer.clone(), self.incarnation);
        self.write(move |write, tally| apply(write, &origin, incarnation, &pending, tally))
    }

    /// Runs a command that also notes the progress.
    fn write(
        &mut self,
        command: impl FnOnce(&mut Write<'_>, &mut Tally) -> Result<(), sallyport_store::Error>
        + Send
        + 'static,
    ) -> Result<(), Error> {
        let mut tally = std::mem::take(&mut self.tally);
        let mut progress = self.progress.clone();
        let (peer, seq, manifest) = (self.peer.clone(), self.seq, self.manifest);
        self.tally = self.app.store.write(move |write| {
            command(write, &mut tally)?;
            progress.report = serde_json::to_string(&tally)
                .map_err(|error| sallyport_store::Error::corrupt("imports", error))?;
            write.note_import(&peer, seq, &manifest, &progress)?;
            Ok::<_, sallyport_store::Error>(tally)
        })?;
        Ok(())
    }

    fn take_room(&mut self, record: Room, next: u64) -> Result<(), Error> {
        match record {
            Room::Head(head) => {
                let snapshot = head.snapshot.then(|| rooms::Incoming::new(head.version));
                self.room = Some(OpenRoom { room_id: head.room_id, snapshot, events: Vec::new() });
                Ok(())
            }
            Room::Pdu(pdu) if pdu.role == PduRole::Timeline => {
                self.end_snapshot()?;
                let Some(room) = &mut self.room else { return Ok(()) };
                room.events.push(pdu.json);
                if room.events.len() >= EVENTS { self.store_events(next) } else { Ok(()) }
            }
            Room::Pdu(pdu) => {
                let snapshot = self.room.as_mut().and_then(|room| room.snapshot.as_mut());
                snapshot.map_or(Ok(()), |snapshot| snapshot.push(&pdu, &self.keys))
            }
            // The judgement of an event is made here again, and a hole shows as events that wait.
            Room::Gap(_) | Room::Withheld(_) => Ok(()),
        }
    }

    /// Takes the room over once its snapshot is complete.
    fn end_snapshot(&mut self) -> Result<(), Error> {
        let Some(room) = &mut self.room else { return Ok(()) };
        let Some(snapshot) = room.snapshot.take() else { return Ok(()) };
        let room_id = room.room_id.clone();
        if self.app.store.read(|read| read.room(&room_id))?.is_some() {
            return Ok(());
        }
        let takeover: Takeover = snapshot.finish()?;
        if takeover.room_id != room_id {
            return Err(Error::Content(format!("the snapshot of {room_id} is of another room")));
        }
        let peer = self.peer.clone();
        self.write(move |write, tally| {
            if let Outcome::Done(_) = write.take_over(&takeover)? {
                tally.invitations += 1;
            }
            write.note_peer_has_room(&peer, &room_id)
        })
    }

    fn store_events(&mut self, next: u64) -> Result<(), Error> {
        let Some(room) = &mut self.room else { return Ok(()) };
        let events = std::mem::take(&mut room.events);
        let room_id = room.room_id.clone();
        self.receive(&room_id, events)?;
        self.progress.record = next;
        let peer = self.peer.clone();
        self.write(move |write, _| write.note_peer_has_room(&peer, &room_id))
    }

    fn receive(&mut self, room_id: &OwnedRoomId, events: Vec<Vec<u8>>) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        let store = &self.app.store;
        let report = receive(store, room_id, events, &self.keys, &mut NothingMore, self.now)?;
        self.tally.count(&report);
        let waiting: Vec<_> = report.waiting.into_iter().map(waiting_event).collect();
        if !waiting.is_empty() {
            let (room_id, now) = (room_id.clone(), self.now);
            store.write(move |write| {
                waiting.iter().try_for_each(|event| write.keep_waiting(&room_id, event, now))
            })?;
        }
        Ok(())
    }

    fn end_section(&mut self) -> Result<(), Error> {
        self.end_snapshot()?;
        if !self.pending.is_empty() {
            self.store_slice(self.progress.record)?;
        }
        if self.room.is_some() {
            self.store_events(self.progress.record)?;
            self.room = None;
        }
        Ok(())
    }

    /// Tries again what waited, and notes the bundle as received: the next one to the peer acknowledges it.
    fn finish(mut self, manifest: &Manifest) -> Result<BundleImported, Error> {
        self.retry_waiting()?;
        let received = Received {
            incarnation: self.incarnation,
            seq: self.seq,
            manifest: self.manifest,
            time: self.now,
        };
        let (peer, ack) = (self.peer.clone(), manifest.ack.clone());
        let details = details(self.seq, self.sha256);
        let entry = self.mandate.entry("bundle.imported", &peer, details);
        self.write(move |write, _| {
            if let Some(ack) = &ack {
                acknowledge(write, &peer, ack)?;
            }
            write.note_received(&peer, &received)?;
            write.append_audit(entry).map(drop)
        })?;
        log::info!(peer:% = self.peer, sequence = self.seq, events = self.tally.accepted; "a bundle was imported");
        Ok(BundleImported {
            peer: self.peer,
            sequence: self.seq,
            known: false,
            report: self.tally.sentences(),
        })
    }

    fn retry_waiting(&mut self) -> Result<(), Error> {
        for room_id in self.app.store.read(|read| read.rooms_with_waiting_events())? {
            if self.app.store.read(|read| read.room(&room_id))?.is_none() {
                continue;
            }
            let waiting = self.app.store.read(|read| read.waiting_events(&room_id))?;
            let hashes: Vec<_> = waiting.iter().map(|event| event.sha256).collect();
            self.app.store.write(move |write| {
                hashes.iter().try_for_each(|sha256| write.forget_waiting(sha256))
            })?;
            let events = waiting.into_iter().map(|event| event.json).collect();
            self.tally.waiting = 0;
            self.receive(&room_id, events)?;
        }
        Ok(())
    }
}

fn apply(
    write: &mut Write<'_>,
    origin: &ServerName,
    incarnation: Incarnation,
    pending: &[Change],
    tally: &mut Tally,
) -> Result<(), sallyport_store::Error> {
    for change in pending {
        match change {
            Change::User(user) => {
                let alarming = users::store(write, std::slice::from_ref(user))?;
                tally.master_keys_changed.extend(alarming.iter().map(ToString::to_string));
            }
            Change::Pool(pool) => {
                tally.one_time_keys += users::store_pool(write, origin, incarnation, pool)?;
            }
            Change::ToDevice(n, edu) => {
                tally.to_device +=
                    u64::from(write.receive_to_device(origin, incarnation, *n, edu)?);
            }
            Change::Claim(claim) => {
                write.peer_claimed_keys(origin, std::slice::from_ref(claim))?;
            }
        }
    }
    Ok(())
}

/// The peer has everything up to a bundle of ours.
fn acknowledge(
    write: &mut Write<'_>,
    peer: &ServerName,
    ack: &Ack,
) -> Result<(), sallyport_store::Error> {
    // Numbers from before a restore say nothing about what was sent since.
    if write.incarnation()? != ack.incarnation {
        return Ok(());
    }
    write.note_acknowledged(peer, ack.seq)?;
    write.forget_outgoing_to_device(peer, i64::try_from(ack.to_device).unwrap_or(i64::MAX))
}

fn to_device(message: ToDevice) -> Result<Change, Error> {
    let unsound = |error: serde_json::Error| {
        Error::Content(format!("to-device message {}: {error}", message.n))
    };
    let mut edu = DirectDeviceContent::new(
        message.sender.clone(),
        message.event_type.clone().into(),
        message.message_id.clone().into(),
    );
    edu.messages = serde_json::from_slice(&message.messages).map_err(unsound)?;
    let n = i64::try_from(message.n)
        .map_err(|_| Error::Content("a to-device message has no number".to_owned()))?;
    Ok(Change::ToDevice(n, Box::new(edu)))
}

fn key_claim(claim: OneTimeKeyClaim) -> KeyClaim {
    KeyClaim {
        n: i64::try_from(claim.n).unwrap_or(i64::MAX),
        user_id: claim.user_id,
        device_id: claim.device_id,
        key_id: claim.key_id,
    }
}

fn waiting_event(waiting: receive::Waiting) -> WaitingEvent {
    let hash = digest::digest(&digest::SHA256, &waiting.json);
    let sha256 = <[u8; 32]>::try_from(hash.as_ref()).unwrap_or_default();
    WaitingEvent { json: waiting.json, sha256 }
}

fn named_server(json: &str) -> Option<OwnedServerName> {
    #[derive(Deserialize)]
    struct Named {
        server_name: OwnedServerName,
    }
    serde_json::from_str::<Named>(json).ok().map(|named| named.server_name)
}
