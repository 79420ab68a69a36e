//! Deferred signing: which local events still need a signature, and where the signer stands.
//!
//! The watermark is per room. An HMAC chain over the ids of local events, written when they were accepted, is
//! recomputed before signing: the token never signs what somebody put into the database file.

use std::sync::Arc;

use ring::hmac;
use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use rusqlite::params;
use sallyport_core::event::{Pdu, Signed};

use crate::{
    error::{Error, Result},
    events::parse_pdu,
    pool::{Read, Write},
    room::{Room, parse_room_id},
    rooms::RoomChain,
    states::parse_event_id,
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

/// Signed events of a room, the oldest first, without gaps.
#[derive(Debug)]
pub struct SignedBatch {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Events with their stream positions.
    pub events: Vec<(i64, Signed)>,
    /// The HMAC chain after the newest of them.
    pub mac: Vec<u8>,
}

impl Read<'_> {
    /// Rooms with members from elsewhere that have local events without a signature.
    pub fn rooms_to_sign(&self) -> Result<Vec<OwnedRoomId>> {
        let mut statement = self.prepare(
            "SELECT room_id FROM rooms WHERE exposed = 1 AND mac <> signed_mac ORDER BY nid",
        )?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| parse_room_id(row?)).collect()
    }

    /// How many local events of rooms with members from elsewhere wait for a signature.
    pub fn unsigned_count(&self) -> Result<u64> {
        let count: i64 = self
            .prepare(
                "SELECT count(*) FROM rooms r JOIN events e ON e.room = r.nid
                 WHERE r.exposed = 1 AND r.mac <> r.signed_mac
                   AND e.position > r.signed_to AND e.local = 1",
            )?
            .query_row([], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// The next local events of a room to sign; `None` if there are none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if an event is not the one that was accepted: it must not be signed.
    pub fn unsigned(
        &self,
        room_id: &RoomId,
        key: &hmac::Key,
        limit: usize,
    ) -> Result<Option<Unsigned>> {
        let Some(room) = self.room(room_id)? else { return Ok(None) };
        let Some(rules) = sallyport_core::room::rules(&room.version) else { return Ok(None) };
        let (signed_to, signed_mac, newest_mac): (i64, Vec<u8>, Vec<u8>) = self
            .prepare("SELECT signed_to, signed_mac, mac FROM rooms WHERE nid = ?1")?
            .query_row([room.nid], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let rows = self.unsigned_rows(room.nid, signed_to, limit)?;
        if rows.is_empty() {
            return Ok(None);
        }
        let complete = rows.len() < limit;
        let mut chain = RoomChain { mac: signed_mac };
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
    /// Keeps the signatures of a batch and moves the room's watermark.
    pub fn store_signatures(&mut self, batch: &SignedBatch) -> Result<()> {
        let Some(room) = self.room(&batch.room_id)? else { return Ok(()) };
        for (_, signed) in &batch.events {
            if let Some(nid) = self.event_nid(signed.pdu().event_id())? {
                self.insert_signatures(nid, signed.signatures())?;
            }
        }
        if let Some((position, _)) = batch.events.last() {
            self.prepare(
                "UPDATE rooms SET signed_to = ?2, signed_mac = ?3 WHERE nid = ?1 AND signed_to < ?2",
            )?
            .execute(params![room.nid, position, batch.mac])?;
        }
        Ok(())
    }
}
