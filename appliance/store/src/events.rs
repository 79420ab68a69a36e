//! Events: what happened in rooms, in arrival order.

use std::sync::Arc;

use ruma::{
    DeviceId, EventId, OwnedEventId, OwnedRoomId, RoomId, RoomVersionId, TransactionId, UserId,
    room_version_rules::RoomVersionRules,
};
use rusqlite::{OptionalExtension, Row, params};
use sallyport_core::{
    event::{Pdu, Signatures, Signed, Status},
    room::{Known, StateId},
};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    room::{Room, parse_version},
    states::parse_event_id,
};

/// An event as clients may see it.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    /// Arrival order; `None` for an outlier.
    pub position: Option<i64>,
    /// The event; without what a redaction removed.
    pub pdu: Arc<Pdu>,
    /// What was decided about it.
    pub status: Status,
    /// The redaction that applied to it.
    pub redacted_by: Option<OwnedEventId>,
    /// Device and transaction id of the request that sent it, for a local event.
    pub transaction: Option<(String, String)>,
    /// The room state before it; `None` for an outlier.
    pub state_before: Option<StateId>,
    /// The room state after it; `None` for an outlier.
    pub state_after: Option<StateId>,
}

/// Which way to page through a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From old to new.
    Forward,
    /// From new to old.
    Backward,
}

/// The request that sent an event: asked again, it gets the same answer.
#[derive(Debug, Clone, Copy)]
pub struct Transaction<'a> {
    /// The device.
    pub device_id: &'a DeviceId,
    /// The transaction id that its client chose.
    pub txn_id: &'a TransactionId,
}

/// How to store an event.
pub(crate) struct NewEvent<'a> {
    pub(crate) pdu: &'a Pdu,
    pub(crate) position: Option<i64>,
    pub(crate) status: Status,
    pub(crate) gutted: bool,
    pub(crate) local: bool,
    pub(crate) before: Option<StateId>,
    pub(crate) after: Option<StateId>,
    pub(crate) transaction: Option<Transaction<'a>>,
}

const COLUMNS: &str = "e.event_id, e.position, e.status, e.redacted_by, e.device_id, e.txn_id, \
                       e.state_before, e.state_after, e.json, r.room_id, r.version";

impl Read<'_> {
    /// An event of any room, whatever was decided about it.
    pub fn event(&self, event_id: &EventId) -> Result<Option<StoredEvent>> {
        self.prepare(&format!(
            "SELECT {COLUMNS} FROM events e JOIN rooms r ON r.nid = e.room WHERE e.event_id = ?1"
        ))?
        .query_row([event_id.as_str()], |row| Ok(stored_event(row)))
        .optional()?
        .transpose()
    }

    /// Events of a room's timeline strictly between two positions, in the given direction.
    pub fn timeline(
        &self,
        room: &Room,
        after: i64,
        before: i64,
        direction: Direction,
        limit: usize,
    ) -> Result<Vec<StoredEvent>> {
        let order = match direction {
            Direction::Forward => "ASC",
            Direction::Backward => "DESC",
        };
        let mut statement = self.prepare(&format!(
            "SELECT {COLUMNS} FROM events e JOIN rooms r ON r.nid = e.room
             WHERE e.room = ?1 AND e.position > ?2 AND e.position < ?3 AND e.status = 0
             ORDER BY e.position {order} LIMIT ?4"
        ))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![room.nid, after, before, limit], |row| Ok(stored_event(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Events of a room's timeline that have a text which is not encrypted, before a position, the newest first.
    pub fn texts(&self, room: &Room, before: i64, limit: usize) -> Result<Vec<StoredEvent>> {
        let mut statement = self.prepare(&format!(
            "SELECT {COLUMNS} FROM events e JOIN rooms r ON r.nid = e.room
             WHERE e.room = ?1 AND e.position < ?2 AND e.status = 0 AND e.redacted_by IS NULL
               AND e.kind IN ('m.room.message', 'm.room.name', 'm.room.topic')
             ORDER BY e.position DESC LIMIT ?3"
        ))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows =
            statement.query_map(params![room.nid, before, limit], |row| Ok(stored_event(row)))?;
        rows.map(|row| row?).collect()
    }

    /// The event that a request has sent before, if it did.
    pub fn sent_before(
        &self,
        sender: &UserId,
        transaction: &Transaction<'_>,
    ) -> Result<Option<OwnedEventId>> {
        self.prepare(
            "SELECT event_id FROM events WHERE sender = ?1 AND device_id = ?2 AND txn_id = ?3",
        )?
        .query_row(
            params![sender.as_str(), transaction.device_id.as_str(), transaction.txn_id.as_str()],
            |row| row.get(0),
        )
        .optional()?
        .map(parse_event_id)
        .transpose()
    }

    /// An event with its signatures, if it has one of its sender's server: the only form that may leave the box.
    pub fn signed(&self, event_id: &EventId) -> Result<Option<Signed>> {
        let Some(event) = self.event(event_id)? else { return Ok(None) };
        let Some(nid) = self.event_nid(event_id)? else { return Ok(None) };
        Ok(Signed::reload(event.pdu, self.signatures(nid)?))
    }

    /// An event of a room, as the rules see it.
    pub(crate) fn known(&self, room: &Room, event_id: &EventId) -> Result<Option<Known>> {
        if let Some(known) = self.caches().known.get(event_id) {
            return Ok((known.pdu.room_id() == room.room_id).then_some(known));
        }
        let found = self
            .prepare(
                "SELECT status, gutted, state_after, json FROM events
                 WHERE event_id = ?1 AND room = ?2",
            )?
            .query_row(params![event_id.as_str(), room.nid], |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, bool>(1)?,
                    row.get::<_, Option<i64>>(2)?,
                    row.get::<_, String>(3)?,
                ))
            })
            .optional()?;
        let Some((status, gutted, state_after, json)) = found else { return Ok(None) };
        let pdu = parse_pdu(event_id.to_owned(), room.room_id.clone(), &room.version, json)?;
        let known = Known {
            pdu: Arc::new(pdu),
            status: parse_status(status)?,
            gutted,
            state_after: state_after.map(StateId),
        };
        if self.fills_cache() && !gutted && state_after.is_some() {
            self.caches().known.insert(event_id.to_owned(), known.clone());
        }
        Ok(Some(known))
    }

    /// The row of an event.
    pub(crate) fn event_nid(&self, event_id: &EventId) -> Result<Option<i64>> {
        Ok(self
            .prepare("SELECT nid FROM events WHERE event_id = ?1")?
            .query_row([event_id.as_str()], |row| row.get(0))
            .optional()?)
    }

    /// The signatures of the event in a row.
    pub(crate) fn signatures(&self, nid: i64) -> Result<Signatures> {
        let mut statement = self
            .prepare("SELECT server, key_id, signature FROM event_signatures WHERE event = ?1")?;
        let mut rows = statement.query([nid])?;
        let mut signatures = Signatures::new();
        while let Some(row) = rows.next()? {
            let damaged = |error| Error::corrupt("event_signatures", error);
            let server = row.get::<_, String>(0)?.try_into().map_err(damaged)?;
            let key_id = row.get::<_, String>(1)?.try_into().map_err(damaged)?;
            let signature = ruma::serde::Base64::new(row.get::<_, Vec<u8>>(2)?);
            signatures.entry(server).or_default().insert(key_id, signature);
        }
        Ok(signatures)
    }
}

impl Write<'_> {
    /// Inserts an event; answers its row.
    pub(crate) fn insert_event(&mut self, room: i64, new: &NewEvent<'_>) -> Result<i64> {
        let pdu = new.pdu;
        self.prepare(
            "INSERT INTO events (event_id, room, position, status, gutted, local, depth,
                 origin_server_ts, sender, kind, state_key, state_before, state_after,
                 device_id, txn_id, json)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?
        .execute(params![
            pdu.event_id().as_str(),
            room,
            new.position,
            status_number(new.status),
            new.gutted,
            new.local,
            clamp(pdu.depth()),
            clamp(pdu.origin_server_ts().0),
            pdu.sender().as_str(),
            pdu.kind().to_string(),
            pdu.state_key(),
            new.before.map(|state| state.0),
            new.after.map(|state| state.0),
            new.transaction.map(|transaction| transaction.device_id.as_str()),
            new.transaction.map(|transaction| transaction.txn_id.as_str()),
            pdu.json(),
        ])?;
        if new.position.is_some() {
            self.count_event();
        }
        let nid = self.last_insert_rowid();
        self.note_redaction(pdu)?;
        if let Some(position) = new.position {
            self.insert_relation(room, pdu, position)?;
        }
        Ok(nid)
    }

    fn note_redaction(&mut self, pdu: &Pdu) -> Result<()> {
        if let Some(target) = pdu.redacts() {
            self.prepare(
                "INSERT INTO redactions (target, redaction) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            )?
            .execute(params![target.as_str(), pdu.event_id().as_str()])?;
        }
        Ok(())
    }

    /// Gives an outlier its place and its verdict, or a gutted copy the content that it lacks: its place it keeps. Answers its position.
    pub(crate) fn replace_event(&mut self, nid: i64, new: &NewEvent<'_>) -> Result<Option<i64>> {
        self.note_redaction(new.pdu)?;
        let position = self
            .prepare(
                "UPDATE events SET position = coalesce(position, ?2), status = ?3, gutted = ?4,
                 state_before = coalesce(state_before, ?5),
                 state_after = coalesce(state_after, ?6),
                 json = CASE WHEN redacted_by IS NULL THEN ?7 ELSE json END
             WHERE nid = ?1 RETURNING position",
            )?
            .query_row(
                params![
                    nid,
                    new.position,
                    status_number(new.status),
                    new.gutted,
                    new.before.map(|state| state.0),
                    new.after.map(|state| state.0),
                    new.pdu.json(),
                ],
                |row| row.get(0),
            )?;
        Ok(position)
    }

    /// Keeps the signatures of an event.
    pub(crate) fn insert_signatures(&mut self, nid: i64, signatures: &Signatures) -> Result<()> {
        for (server, keys) in signatures {
            for (key_id, signature) in keys {
                self.prepare(
                    "INSERT INTO event_signatures (event, server, key_id, signature)
                     VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    nid,
                    server.as_str(),
                    key_id.as_str(),
                    signature.as_bytes()
                ])?;
            }
        }
        Ok(())
    }

    /// Applies a redaction: what it removes is removed from the disk.
    pub(crate) fn redact(
        &mut self,
        room: &RoomId,
        target: &EventId,
        redaction: &EventId,
        rules: &RoomVersionRules,
    ) -> Result<()> {
        let Some(event) = self.event(target)? else { return Ok(()) };
        if event.redacted_by.is_some() || event.pdu.room_id() != room {
            return Ok(());
        }
        let redacted =
            event.pdu.redacted(rules).map_err(|error| Error::corrupt("events", error))?;
        if let Some(row) = self.room(room)? {
            self.delete_relation(row.nid, &event)?;
        }
        self.prepare("UPDATE events SET json = ?2, redacted_by = ?3 WHERE event_id = ?1")?
            .execute(params![target.as_str(), redacted.json(), redaction.as_str()])?;
        Ok(())
    }
}

fn stored_event(row: &Row<'_>) -> Result<StoredEvent> {
    let event_id = parse_event_id(row.get(0)?)?;
    let room_id = OwnedRoomId::try_from(row.get::<_, String>(9)?)
        .map_err(|error| Error::corrupt("rooms", error))?;
    let version = parse_version(&row.get::<_, String>(10)?)?;
    let device_id: Option<String> = row.get(4)?;
    let txn_id: Option<String> = row.get(5)?;
    Ok(StoredEvent {
        position: row.get(1)?,
        pdu: Arc::new(parse_pdu(event_id, room_id, &version, row.get(8)?)?),
        status: parse_status(row.get(2)?)?,
        redacted_by: row.get::<_, Option<String>>(3)?.map(parse_event_id).transpose()?,
        transaction: device_id.zip(txn_id),
        state_before: row.get::<_, Option<i64>>(6)?.map(StateId),
        state_after: row.get::<_, Option<i64>>(7)?.map(StateId),
    })
}

pub(crate) fn parse_pdu(
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    version: &RoomVersionId,
    json: String,
) -> Result<Pdu> {
    let rules = sallyport_core::room::rules(version)
        .ok_or_else(|| Error::corrupt("rooms", format!("room version {version}")))?;
    Pdu::from_stored(event_id, room_id, json.into_boxed_str(), &rules)
        .map_err(|error| Error::corrupt("events", error))
}

fn parse_status(number: i64) -> Result<Status> {
    match number {
        0 => Ok(Status::Accepted),
        1 => Ok(Status::SoftFailed),
        2 => Ok(Status::Rejected),
        _ => Err(Error::corrupt("events", format!("status {number}"))),
    }
}

fn status_number(status: Status) -> i64 {
    match status {
        Status::Accepted => 0,
        Status::SoftFailed => 1,
        Status::Rejected => 2,
    }
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
