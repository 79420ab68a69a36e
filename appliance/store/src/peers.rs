//! Enclaves that this one is paired with, and where the exchange of bundles with each stands.
//!
//! Every bundle tells everything since the last one that the peer acknowledged. What a bundle tells is bounded by a stream position
//! and by the numbers of the queues in it, so an acknowledgement is one number, and a lost stick is made up for by the next.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId, ServerName};
use rusqlite::{OptionalExtension, Row, params};
use sallyport_core::{event::Signed, incarnation::Incarnation, time::Millis};

use crate::{
    error::{Error, Result},
    events::parse_pdu,
    pool::{Read, Write},
    room::{Room, parse_room_id},
    states::parse_event_id,
    value::{millis, to_sql},
};

/// A peer and where the exchange with it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its Matrix server name.
    pub server: OwnedServerName,
    /// Its pairing card, as an officer confirmed it.
    pub card: Vec<u8>,
    /// When it was confirmed.
    pub paired: Millis,
    /// Number of the last bundle made for it; 0 if there is none.
    pub sent_seq: u64,
    /// SHA-256 of that bundle's manifest.
    pub sent_manifest: Option<[u8; 32]>,
    /// What it acknowledged.
    pub acked: Told,
    /// The last of its bundles that was imported.
    pub received: Option<Received>,
    /// Since it was restored from a backup it is told everything up to this position again, its own users' events included.
    pub returns_to: Option<i64>,
}

/// What a bundle tells: everything up to here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Number of the bundle.
    pub seq: u64,
    /// Stream position.
    pub position: i64,
    /// Number of the last one-time key.
    pub pool: i64,
    /// Number of the last claim of the peer's one-time keys.
    pub claims: i64,
    /// When it was made.
    pub created: Millis,
}

/// A bundle of a peer that was imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The life of the peer's database that it came from.
    pub incarnation: Incarnation,
    /// Its number.
    pub seq: u64,
    /// SHA-256 of its manifest.
    pub manifest: [u8; 32],
    /// When it was imported.
    pub time: Millis,
}

/// A room that is shared with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRoom {
    /// The room.
    pub room: Room,
    /// Where the peer takes it over, if it does not have the room yet: the event and its position.
    pub anchor: Option<(OwnedEventId, i64)>,
}

/// How far the import of a bundle has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The section of the next record.
    pub section: usize,
    /// The number of the next record in it.
    pub record: u64,
    /// What became of the records so far, as the importer wrote it.
    pub report: String,
}

/// An event of a room that waits for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingEvent {
    /// The event as it arrived.
    pub json: Vec<u8>,
    /// SHA-256 of that: an event id would let a bad copy stand in for the good one.
    pub sha256: [u8; 32],
}

const COLUMNS: &str = "server, card, paired, sent_seq, sent_manifest, acked_seq, acked_position, \
                       acked_pool, acked_claims, acked_time, incarnation, received_seq, \
                       received_manifest, received_time, returns_to";

impl Read<'_> {
    /// The box's own pairing card.
    pub fn own_card(&self) -> Result<Option<Vec<u8>>> {
        Ok(self
            .prepare("SELECT card FROM own_card WHERE only_row = 1")?
            .query_row([], |row| row.get(0))
            .optional()?)
    }

    /// The box's own pairing card, and since when it is installed.
    pub fn own_card_since(&self) -> Result<Option<(Vec<u8>, Millis)>> {
        Ok(self
            .prepare("SELECT card, installed FROM own_card WHERE only_row = 1")?
            .query_row([], |row| Ok((row.get(0)?, millis(row.get(1)?))))
            .optional()?)
    }

    /// A peer.
    pub fn peer(&self, server: &ServerName) -> Result<Option<Peer>> {
        self.prepare(&format!("SELECT {COLUMNS} FROM peers WHERE server = ?1"))?
            .query_row([server.as_str()], |row| Ok(parse_peer(row)))
            .optional()?
            .transpose()
    }

    /// All peers.
    pub fn peers(&self) -> Result<Vec<Peer>> {
        let mut statement =
            self.prepare(&format!("SELECT {COLUMNS} FROM peers ORDER BY server"))?;
        let rows = statement.query_map([], |row| Ok(parse_peer(row)))?;
        rows.map(|row| row?).collect()
    }

    /// The rooms in which a peer's users have, or had, a place.
    pub fn rooms_shared_with(&self, peer: &Peer) -> Result<Vec<SharedRoom>> {
        let mut statement = self.prepare(
            "SELECT r.room_id, p.anchor, p.bundle FROM rooms r
             LEFT JOIN peer_rooms p ON p.room = r.nid AND p.server = ?1
             WHERE r.exposed = 1 AND (p.room IS NOT NULL OR EXISTS (
                 SELECT 1 FROM memberships m
                 WHERE m.room = r.nid AND m.user_id LIKE '%:' || ?1 AND m.membership IN ('join', 'invite')))
             ORDER BY r.nid",
        )?;
        let rows = statement
            .query_map([peer.server.as_str()], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, Option<String>>(1)?,
                    row.get::<_, Option<i64>>(2)?,
                ))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut shared = Vec::with_capacity(rows.len());
        for (room_id, anchor, bundle) in rows {
            let Some(room) = self.room(&parse_room_id(room_id)?)? else { continue };
            let anchor = match (anchor, bundle) {
                _ if peer.returns_to.is_some() => self.whole_room(&room, &peer.server)?,
                // Never told of, or told of in a bundle that may be lost.
                (None, None) => self.first_member_event(&room, &peer.server)?,
                (Some(anchor), Some(bundle)) if number(bundle) > peer.acked.seq => {
                    self.anchor(&room, anchor)?
                }
                _ => None,
            };
            shared.push(SharedRoom { room, anchor });
        }
        Ok(shared)
    }

    /// Accepted events of a room between two positions (`after` excluded, `up_to` included) with their signatures, in arrival
    /// order, without those of a server's own users after the position up to which they are `returned`; at most `limit`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if one of them has no signature: sign before asking.
    pub fn signed_events(
        &self,
        room: &Room,
        after: i64,
        up_to: i64,
        (except, returned): (&ServerName, Option<i64>),
        limit: usize,
    ) -> Result<Vec<(i64, Signed)>> {
        let mut statement = self.prepare(
            "SELECT position, event_id, sender, json, nid FROM events
             WHERE room = ?1 AND position > ?2 AND position <= ?3 AND status = 0
             ORDER BY position LIMIT ?4",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![room.nid, after, up_to, limit])?;
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            let sender: String = row.get(2)?;
            let event_id = parse_event_id(row.get(1)?)?;
            let goes_back =
                returned.is_some_and(|returned| row.get(0).is_ok_and(|at: i64| at <= returned));
            if !goes_back
                && sender.split_once(':').is_some_and(|(_, server)| server == except.as_str())
            {
                continue;
            }
            let room_id = room.room_id.clone();
            let pdu = parse_pdu(event_id.clone(), room_id, &room.version, row.get(3)?)?;
            let signatures = self.signatures(row.get(4)?)?;
            let signed = Signed::reload(Arc::new(pdu), signatures)
                .ok_or_else(|| Error::corrupt("events", format!("{event_id} has no signature")))?;
            events.push((row.get(0)?, signed));
        }
        Ok(events)
    }

    /// The newest position among the first `limit` accepted events of a room after a position: where the next page begins.
    pub fn page_end(
        &self,
        room: &Room,
        after: i64,
        up_to: i64,
        limit: usize,
    ) -> Result<Option<i64>> {
        Ok(self
            .prepare(
                "SELECT max(position) FROM (SELECT position FROM events
                 WHERE room = ?1 AND position > ?2 AND position <= ?3 AND status = 0
                 ORDER BY position LIMIT ?4)",
            )?
            .query_row(
                params![room.nid, after, up_to, i64::try_from(limit).unwrap_or(i64::MAX)],
                |row| row.get(0),
            )?)
    }

    /// How far the import of a bundle has come, if it has begun and is the same bundle.
    pub fn import_progress(
        &self,
        server: &ServerName,
        seq: u64,
        manifest: &[u8; 32],
    ) -> Result<Option<Progress>> {
        Ok(self
            .prepare(
                "SELECT section, record, report FROM imports
                 WHERE server = ?1 AND seq = ?2 AND manifest = ?3 AND done = 0",
            )?
            .query_row(params![server.as_str(), signed(seq), manifest], |row| {
                Ok(Progress {
                    section: usize::try_from(row.get::<_, i64>(0)?).unwrap_or_default(),
                    record: number(row.get(1)?),
                    report: row.get(2)?,
                })
            })
            .optional()?)
    }

    /// SHA-256 of the manifest of a bundle that was imported before.
    pub fn imported_manifest(&self, server: &ServerName, seq: u64) -> Result<Option<[u8; 32]>> {
        Ok(self
            .prepare("SELECT manifest FROM imports WHERE server = ?1 AND seq = ?2 AND done = 1")?
            .query_row(params![server.as_str(), signed(seq)], |row| row.get(0))
            .optional()?)
    }

    /// Rooms with events that wait for something.
    pub fn rooms_with_waiting_events(&self) -> Result<Vec<OwnedRoomId>> {
        let mut statement = self.prepare("SELECT DISTINCT room_id FROM waiting_events")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| parse_room_id(row?)).collect()
    }

    /// Events of a room that wait for something, the oldest first.
    pub fn waiting_events(&self, room_id: &RoomId) -> Result<Vec<WaitingEvent>> {
        let mut statement = self
            .prepare("SELECT json, sha256 FROM waiting_events WHERE room_id = ?1 ORDER BY nid")?;
        let rows = statement.query_map([room_id.as_str()], |row| {
            Ok(WaitingEvent { json: row.get(0)?, sha256: row.get(1)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn anchor(&self, room: &Room, event_id: String) -> Result<Option<(OwnedEventId, i64)>> {
        let position: Option<Option<i64>> = self
            .prepare("SELECT position FROM events WHERE room = ?1 AND event_id = ?2")?
            .query_row(params![room.nid, event_id], |row| row.get(0))
            .optional()?;
        match position.flatten() {
            Some(position) => Ok(Some((parse_event_id(event_id)?, position))),
            None => Ok(None),
        }
    }

    /// Where a server that may have lost a room takes it over again: at the first event that is here, if it had a place in the room then.
    fn whole_room(&self, room: &Room, server: &ServerName) -> Result<Option<(OwnedEventId, i64)>> {
        let had_a_place: bool = self
            .prepare(
                "SELECT EXISTS (SELECT 1 FROM events
                 WHERE room = ?1 AND coalesce(position, 0) <= 0 AND status = 0
                   AND kind = 'm.room.member' AND state_key LIKE '%:' || ?2)",
            )?
            .query_row(params![room.nid, server.as_str()], |row| row.get(0))?;
        if !had_a_place {
            return self.first_member_event(room, server);
        }
        let found: Option<(String, i64)> = self
            .prepare(
                "SELECT event_id, position FROM events
                 WHERE room = ?1 AND position > 0 AND status = 0 ORDER BY position LIMIT 1",
            )?
            .query_row([room.nid], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        found.map(|(id, position)| Ok((parse_event_id(id)?, position))).transpose()
    }

    /// The event that first gave one of a server's users a place in a room.
    fn first_member_event(
        &self,
        room: &Room,
        server: &ServerName,
    ) -> Result<Option<(OwnedEventId, i64)>> {
        let found: Option<(String, i64)> = self
            .prepare(
                "SELECT event_id, position FROM events
                 WHERE room = ?1 AND position > 0 AND status = 0 AND kind = 'm.room.member'
                   AND state_key LIKE '%:' || ?2
                 ORDER BY position LIMIT 1",
            )?
            .query_row(params![room.nid, server.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        found.map(|(id, position)| Ok((parse_event_id(id)?, position))).transpose()
    }
}

impl Write<'_> {
    /// Keeps the box's own pairing card. The same one again is installed since the first time.
    pub fn set_own_card(&mut self, card: &[u8], now: Millis) -> Result<()> {
        self.prepare(
            "INSERT INTO own_card (only_row, card, installed) VALUES (1, ?1, ?2)
             ON CONFLICT (only_row) DO UPDATE SET card = excluded.card, installed = excluded.installed
             WHERE own_card.card <> excluded.card",
        )?
        .execute(params![card, to_sql(now)])?;
        Ok(())
    }

    /// Keeps the card of a peer; the exchange of bundles goes on where it was.
    pub fn set_peer(&mut self, server: &ServerName, card: &[u8], now: Millis) -> Result<()> {
        self.prepare(
            "INSERT INTO peers (server, card, paired) VALUES (?1, ?2, ?3)
             ON CONFLICT (server) DO UPDATE SET card = excluded.card",
        )?
        .execute(params![server.as_str(), card, to_sql(now)])?;
        Ok(())
    }

    /// Notes a bundle that is about to leave: its number is never used again.
    pub fn note_sent(
        &mut self,
        server: &ServerName,
        told: &Told,
        manifest: &[u8; 32],
        snapshots: &[(OwnedRoomId, OwnedEventId)],
    ) -> Result<()> {
        self.prepare("UPDATE peers SET sent_seq = ?2, sent_manifest = ?3 WHERE server = ?1")?
            .execute(params![server.as_str(), signed(told.seq), manifest])?;
        self.prepare(
            "INSERT INTO sent_bundles (server, seq, position, pool, claims, created)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            server.as_str(),
            signed(told.seq),
            told.position,
            told.pool,
            told.claims,
            to_sql(told.created)
        ])?;
        for (room_id, anchor) in snapshots {
            self.prepare(
                "INSERT INTO peer_rooms (server, room, anchor, bundle)
                 SELECT ?1, nid, ?3, ?4 FROM rooms WHERE room_id = ?2
                 ON CONFLICT (server, room) DO NOTHING",
            )?
            .execute(params![
                server.as_str(),
                room_id.as_str(),
                anchor.as_str(),
                signed(told.seq)
            ])?;
        }
        Ok(())
    }

    /// Notes that a peer has everything up to a bundle.
    pub fn note_acknowledged(&mut self, server: &ServerName, seq: u64) -> Result<()> {
        let told: Option<Told> = self
            .prepare(
                "SELECT seq, position, pool, claims, created FROM sent_bundles
                 WHERE server = ?1 AND seq <= ?2 ORDER BY seq DESC LIMIT 1",
            )?
            .query_row(params![server.as_str(), signed(seq)], |row| {
                Ok(Told {
                    seq: number(row.get(0)?),
                    position: row.get(1)?,
                    pool: row.get(2)?,
                    claims: row.get(3)?,
                    created: millis(row.get(4)?),
                })
            })
            .optional()?;
        let Some(told) = told else { return Ok(()) };
        self.prepare(
            "UPDATE peers SET acked_seq = ?2, acked_position = ?3, acked_pool = ?4,
                 acked_claims = ?5, acked_time = ?6
             WHERE server = ?1 AND acked_seq < ?2",
        )?
        .execute(params![
            server.as_str(),
            signed(told.seq),
            told.position,
            told.pool,
            told.claims,
            to_sql(told.created)
        ])?;
        self.prepare("DELETE FROM sent_bundles WHERE server = ?1 AND seq <= ?2")?
            .execute(params![server.as_str(), signed(told.seq)])?;
        self.prepare(
            "UPDATE peers SET returns_to = NULL WHERE server = ?1 AND returns_to <= acked_position",
        )?
        .execute([server.as_str()])?;
        self.forget_key_claims(server, told.claims)
    }

    /// Notes that a peer has a room: it told us of it.
    pub fn note_peer_has_room(&mut self, server: &ServerName, room_id: &RoomId) -> Result<()> {
        self.prepare(
            "INSERT INTO peer_rooms (server, room, anchor, bundle)
             SELECT ?1, nid, NULL, 0 FROM rooms WHERE room_id = ?2
             ON CONFLICT (server, room) DO NOTHING",
        )?
        .execute([server.as_str(), room_id.as_str()])?;
        Ok(())
    }

    /// Notes how far the import of a bundle has come.
    pub fn note_import(
        &mut self,
        server: &ServerName,
        seq: u64,
        manifest: &[u8; 32],
        progress: &Progress,
    ) -> Result<()> {
        self.prepare(
            "INSERT INTO imports (server, seq, manifest, section, record, report)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (server, seq) DO UPDATE SET manifest = excluded.manifest,
                 section = excluded.section, record = excluded.record, report = excluded.report",
        )?
        .execute(params![
            server.as_str(),
            signed(seq),
            manifest,
            i64::try_from(progress.section).unwrap_or(i64::MAX),
            signed(progress.record),
            progress.report
        ])?;
        Ok(())
    }

    /// Notes that a bundle was imported completely: the next acknowledgement says so.
    pub fn note_received(&mut self, server: &ServerName, received: &Received) -> Result<()> {
        self.prepare("UPDATE imports SET done = 1 WHERE server = ?1 AND seq = ?2")?
            .execute(params![server.as_str(), signed(received.seq)])?;
        self.prepare(
            "UPDATE peers SET incarnation = ?2, received_seq = ?3, received_manifest = ?4,
                 received_time = ?5 WHERE server = ?1",
        )?
        .execute(params![
            server.as_str(),
            received.incarnation.0,
            signed(received.seq),
            received.manifest,
            to_sql(received.time)
        ])?;
        Ok(())
    }

    /// Keeps an event that waits for something.
    pub fn keep_waiting(
        &mut self,
        room_id: &RoomId,
        event: &WaitingEvent,
        now: Millis,
    ) -> Result<()> {
        self.prepare(
            "INSERT INTO waiting_events (room_id, sha256, since, json) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (sha256) DO NOTHING",
        )?
        .execute(params![room_id.as_str(), event.sha256, to_sql(now), event.json])?;
        Ok(())
    }

    /// Forgets an event that no longer waits.
    pub fn forget_waiting(&mut self, sha256: &[u8; 32]) -> Result<()> {
        self.prepare("DELETE FROM waiting_events WHERE sha256 = ?1")?.execute([sha256])?;
        Ok(())
    }
}

fn parse_peer(row: &Row<'_>) -> Result<Peer> {
    let incarnation: Option<[u8; 16]> = row.get(10)?;
    let manifest: Option<[u8; 32]> = row.get(12)?;
    let received_seq = number(row.get(11)?);
    let received_time = row.get::<_, Option<i64>>(13)?.map(millis).unwrap_or_default();
    Ok(Peer {
        server: row
            .get::<_, String>(0)?
            .try_into()
            .map_err(|error| Error::corrupt("peers", error))?,
        card: row.get(1)?,
        paired: millis(row.get(2)?),
        sent_seq: number(row.get(3)?),
        sent_manifest: row.get(4)?,
        acked: Told {
            seq: number(row.get(5)?),
            position: row.get(6)?,
            pool: row.get(7)?,
            claims: row.get(8)?,
            created: millis(row.get(9)?),
        },
        received: incarnation.zip(manifest).map(|(incarnation, manifest)| Received {
            incarnation: Incarnation(incarnation),
            seq: received_seq,
            manifest,
            time: received_time,
        }),
        returns_to: row.get(14)?,
    })
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
