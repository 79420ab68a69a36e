//! Deferred signing: which local events still need a signature, and where the signer stands.
//!
//! The watermark is per room. An HMAC chain over the ids of local events, written when they were accepted, is
//! recomputed before signing: the token never signs what somebody put into the database file.

use std::sync::Arc;

use ring::hmac;
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use rusqlite::{OptionalExtension, params};
use sallyport_core::{
    admin::Backlog,
    event::{Pdu, Signed},
    merkle::Tree,
    time::Millis,
};

use crate::{
    error::{Error, Result},
    events::parse_pdu,
    pool::{Read, Write},
    room::{Room, parse_room_id},
    rooms::RoomChain,
    states::parse_event_id,
    value::{millis, to_sql},
};

/// A local event that has no signature yet.
#[derive(Debug, Clone)]
pub struct UnsignedEvent {
    /// Its stream position.
    pub position: i64,
    /// The event. Its id was computed again from its JSON.
    pub pdu: Arc<Pdu>,
}

/// The next local events of a room to sign, in order.
#[derive(Debug, Clone)]
pub struct Unsigned {
    /// The room.
    pub room: Room,
    /// The events.
    pub events: Vec<UnsignedEvent>,
    /// The HMAC chain after each of them.
    pub macs: Vec<Vec<u8>>,
}

/// How far the local events of a room were read.
#[derive(Debug, Clone)]
pub struct ChainEnd {
    position: i64,
    mac: Vec<u8>,
}

impl Unsigned {
    /// Where the next ones begin.
    #[must_use]
    pub fn end(&self) -> Option<ChainEnd> {
        let (event, mac) = self.events.last().zip(self.macs.last())?;
        Some(ChainEnd { position: event.position, mac: mac.clone() })
    }
}

/// Signed events of a room, the oldest first, without gaps.
#[derive(Debug)]
pub struct SignedBatch {
    /// The name of the key that signed them.
    pub key: String,
    /// When.
    pub at: Millis,
    /// The room.
    pub room_id: OwnedRoomId,
    /// Events with their stream positions.
    pub events: Vec<(i64, Signed)>,
    /// The HMAC chain after the newest of them.
    pub mac: Vec<u8>,
}

/// Signatures of one key that no row of the audit log tells of yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningRun {
    /// The name of the key.
    pub key: String,
    /// In how many rooms.
    pub rooms: u64,
    /// The ids of the signed events, in the order in which they were signed.
    pub events: Tree,
    /// When the first of them was signed.
    pub began: Millis,
    /// When the last of them was signed.
    pub ended: Millis,
}

impl Read<'_> {
    /// Rooms with members from elsewhere that have local events without a signature.
    pub fn rooms_to_sign(&self) -> Result<Vec<OwnedRoomId>> {
        let mut statement = self.prepare(
            "SELECT room_id FROM rooms WHERE exposed = 1 AND unsigned > 0
             ORDER BY unsigned_since, room_id",
        )?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| parse_room_id(row?)).collect()
    }

    /// The local events of rooms with members from elsewhere that wait for a signature. It costs as much as there are rooms
    /// that wait, however many events there are. The disk is not looked at.
    pub fn backlog(&self) -> Result<Backlog> {
        let (events, rooms, since): (i64, i64, Option<i64>) = self
            .prepare(
                "SELECT coalesce(sum(unsigned), 0), count(*), min(unsigned_since) FROM rooms
                 WHERE exposed = 1 AND unsigned > 0",
            )?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(Backlog {
            events: events.unsigned_abs(),
            rooms: rooms.unsigned_abs(),
            since: since.map(millis),
            disk_free: None,
        })
    }

    /// Signatures that no row of the audit log tells of yet, by key.
    pub fn signing_runs(&self) -> Result<Vec<SigningRun>> {
        let mut statement = self.prepare(
            "SELECT key, events, roots, began, ended,
                    (SELECT count(*) FROM signing_run_rooms r WHERE r.key = signing_runs.key)
             FROM signing_runs ORDER BY key",
        )?;
        let mut rows = statement.query([])?;
        let mut runs = Vec::new();
        while let Some(row) = rows.next()? {
            let size = row.get::<_, i64>(1)?.unsigned_abs();
            let events = Tree::from_parts(size, &row.get::<_, Vec<u8>>(2)?)
                .ok_or_else(|| Error::corrupt("signing_runs", "the tree is not one"))?;
            runs.push(SigningRun {
                key: row.get(0)?,
                rooms: row.get::<_, i64>(5)?.unsigned_abs(),
                events,
                began: millis(row.get(3)?),
                ended: millis(row.get(4)?),
            });
        }
        Ok(runs)
    }

    /// The newest time that a local event has. It looks at all of them: not for every day.
    pub fn newest_local_time(&self) -> Result<Option<Millis>> {
        let newest: Option<i64> = self
            .prepare("SELECT max(origin_server_ts) FROM events WHERE local = 1")?
            .query_row([], |row| row.get(0))?;
        Ok(newest.map(millis))
    }

    /// The next local events of a room to sign; `None` if there are none. They follow what is signed, or `after`: what was read before and is
    /// being signed.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if an event is not the one that was accepted: it must not be signed.
    pub fn unsigned(
        &self,
        room_id: &RoomId,
        key: &hmac::Key,
        after: Option<&ChainEnd>,
        limit: usize,
    ) -> Result<Option<Unsigned>> {
        let Some(room) = self.room(room_id)? else { return Ok(None) };
        let Some(rules) = sallyport_core::room::rules(&room.version) else { return Ok(None) };
        let (signed_to, signed_mac, newest_mac): (i64, Vec<u8>, Vec<u8>) = self
            .prepare("SELECT signed_to, signed_mac, mac FROM rooms WHERE nid = ?1")?
            .query_row([room.nid], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let end = after.cloned().unwrap_or(ChainEnd { position: signed_to, mac: signed_mac });
        let rows = self.unsigned_rows(room.nid, end.position, limit)?;
        if rows.is_empty() {
            return Ok(None);
        }
        let complete = rows.len() < limit;
        let mut chain = RoomChain { mac: end.mac };
        let (mut events, mut macs) = (Vec::with_capacity(rows.len()), Vec::new());
        for (position, event_id, json) in rows {
            let pdu = parse_pdu(event_id.clone(), room.room_id.clone(), &room.version, json)?;
            let hashed = pdu
                .object()
                .and_then(|object| Pdu::new(object, &rules))
                .map_err(|error| Error::corrupt("events", error))?;
            if hashed.event_id() != event_id {
                return Err(Error::corrupt(
                    "events",
                    format!("{event_id} is not what its id names"),
                ));
            }
            chain.advance(key, &event_id);
            macs.push(chain.mac.clone());
            events.push(UnsignedEvent { position, pdu: Arc::new(pdu) });
        }
        if complete && chain.mac != newest_mac {
            return Err(Error::corrupt(
                "events",
                format!("the local events of {room_id} are not those that were accepted"),
            ));
        }
        Ok(Some(Unsigned { room, events, macs }))
    }

    fn unsigned_rows(
        &self,
        room: i64,
        after: i64,
        limit: usize,
    ) -> Result<Vec<(i64, OwnedEventId, String)>> {
        let mut statement = self.prepare(
            "SELECT position, event_id, json FROM events
             WHERE room = ?1 AND position > ?2 AND local = 1 ORDER BY position LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![room, after, limit], |row| {
            Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?))
        })?;
        rows.map(|row| {
            let (position, event_id, json) = row?;
            Ok((position, parse_event_id(event_id)?, json))
        })
        .collect()
    }
}

impl Write<'_> {
    /// Keeps the signatures of a batch, moves the room's watermark and notes what the audit log has to tell.
    pub fn store_signatures(&mut self, batch: &SignedBatch) -> Result<()> {
        let Some(room) = self.room(&batch.room_id)? else { return Ok(()) };
        for (_, signed) in &batch.events {
            if let Some(nid) = self.event_nid(signed.pdu().event_id())? {
                self.insert_signatures(nid, signed.signatures())?;
            }
        }
        let Some((position, _)) = batch.events.last() else { return Ok(()) };
        let moved = self
            .prepare(
                "UPDATE rooms SET signed_to = ?2, signed_mac = ?3, unsigned = unsigned - ?4
                 WHERE nid = ?1 AND signed_to < ?2",
            )?
            .execute(params![
                room.nid,
                position,
                batch.mac,
                i64::try_from(batch.events.len()).unwrap_or(i64::MAX)
            ])?;
        if moved == 0 {
            return Ok(());
        }
        self.move_waiting_since(room.nid)?;
        self.note_signing_run(room.nid, batch)
    }

    /// The oldest event that waits has become another one. A room that was exposed late waits since then, however old its events are.
    fn move_waiting_since(&mut self, room: i64) -> Result<()> {
        let next: Option<i64> = self
            .prepare(
                "SELECT e.origin_server_ts FROM rooms r JOIN events e ON e.room = r.nid
                 WHERE r.nid = ?1 AND r.unsigned > 0 AND e.position > r.signed_to AND e.local = 1
                 ORDER BY e.position LIMIT 1",
            )?
            .query_row([room], |row| row.get(0))
            .optional()?;
        self.prepare(
            "UPDATE rooms SET unsigned_since =
                 CASE WHEN ?2 IS NOT NULL AND unsigned_since > ?2 THEN unsigned_since ELSE ?2 END
             WHERE nid = ?1",
        )?
        .execute(params![room, next])?;
        Ok(())
    }

    fn note_signing_run(&mut self, room: i64, batch: &SignedBatch) -> Result<()> {
        let run = self.signing_runs()?.into_iter().find(|run| run.key == batch.key);
        let (mut tree, began) =
            run.map_or_else(|| (Tree::default(), batch.at), |run| (run.events, run.began));
        for (_, signed) in &batch.events {
            tree.push(signed.pdu().event_id().as_bytes());
        }
        self.prepare(
            "INSERT INTO signing_runs (key, events, roots, began, ended) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (key) DO UPDATE SET events = excluded.events, roots = excluded.roots,
                 ended = excluded.ended",
        )?
        .execute(params![
            batch.key,
            i64::try_from(tree.size()).unwrap_or(i64::MAX),
            tree.to_bytes(),
            to_sql(began),
            to_sql(batch.at)
        ])?;
        self.prepare(
            "INSERT INTO signing_run_rooms (key, room) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute(params![batch.key, room])?;
        Ok(())
    }

    /// Forgets the signatures of a key that no row told of: the caller appends that row in the same command.
    pub fn end_signing_run(&mut self, key: &str) -> Result<()> {
        self.prepare("DELETE FROM signing_runs WHERE key = ?1")?.execute([key])?;
        self.prepare("DELETE FROM signing_run_rooms WHERE key = ?1")?.execute([key])?;
        Ok(())
    }
}
