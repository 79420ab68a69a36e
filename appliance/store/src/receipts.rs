//! Receipts: how far each member has read, only the newest of each kind.

use ruma::{EventId, OwnedEventId, OwnedUserId, UserId};
use rusqlite::{OptionalExtension, Row, params};
use sallyport_core::time::Millis;

use crate::{
    error::Result,
    members::parse_user_id,
    pool::{Read, Write},
    room::Room,
    states::parse_event_id,
};

/// How far a member has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The member.
    pub user_id: OwnedUserId,
    /// `m.read` or `m.read.private`.
    pub kind: String,
    /// The thread's root, `main`, or `None` for the whole room.
    pub thread: Option<String>,
    /// The newest event that was read.
    pub event_id: OwnedEventId,
    /// Its stream position.
    pub read_to: i64,
    /// When it was read.
    pub ts: Millis,
}

/// What a member says that they have read.
#[derive(Debug, Clone, Copy)]
pub struct NewReceipt<'a> {
    /// The member.
    pub user_id: &'a UserId,
    /// `m.read` or `m.read.private`.
    pub kind: &'a str,
    /// The thread's root, `main`, or `None` for the whole room.
    pub thread: Option<&'a str>,
    /// The newest event that was read.
    pub event_id: &'a EventId,
    /// When it was read.
    pub ts: Millis,
}

impl Read<'_> {
    /// Receipts of a room that came after a position, the newest first, at most `limit`; other members' private ones are left out.
    pub fn receipts_since(
        &self,
        room: &Room,
        user_id: &UserId,
        since: i64,
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        let mut statement = self.prepare(
            "SELECT user_id, kind, thread, event_id, read_to, ts FROM receipts
             WHERE room = ?1 AND position > ?2 AND (kind = 'm.read' OR user_id = ?3)
             ORDER BY position DESC LIMIT ?4",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![room.nid, since, user_id.as_str(), limit], |row| {
                Ok(parse_receipt(row))
            })?;
        rows.map(|row| row?).collect()
    }

    /// All receipts of one member in a room.
    pub fn receipts_of(&self, room: &Room, user_id: &UserId) -> Result<Vec<Receipt>> {
        let mut statement = self.prepare(
            "SELECT user_id, kind, thread, event_id, read_to, ts FROM receipts
             WHERE room = ?1 AND user_id = ?2",
        )?;
        let rows = statement
            .query_map(params![room.nid, user_id.as_str()], |row| Ok(parse_receipt(row)))?;
        rows.map(|row| row?).collect()
    }
}

impl Write<'_> {
    /// Moves a member's receipt forward; answers whether it moved. The event must be in the room's timeline.
    pub fn store_receipt(&mut self, room: &Room, new: &NewReceipt<'_>) -> Result<bool> {
        let read_to: Option<i64> = self
            .prepare("SELECT position FROM events WHERE event_id = ?1 AND room = ?2")?
            .query_row(params![new.event_id.as_str(), room.nid], |row| row.get(0))
            .optional()?
            .flatten();
        let Some(read_to) = read_to else { return Ok(false) };
        let position = self.next_position();
        let moved = self
            .prepare(
                "INSERT INTO receipts
                     (room, user_id, kind, thread, event_id, read_to, ts, position)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (room, user_id, kind, thread) DO UPDATE SET
                     event_id = excluded.event_id, read_to = excluded.read_to,
                     ts = excluded.ts, position = excluded.position
                 WHERE excluded.read_to > receipts.read_to",
            )?
            .execute(params![
                room.nid,
                new.user_id.as_str(),
                new.kind,
                new.thread.unwrap_or_default(),
                new.event_id.as_str(),
                read_to,
                i64::try_from(new.ts.0).unwrap_or(i64::MAX),
                position,
            ])?;
        if moved == 0 {
            return Ok(false);
        }
        self.prepare("UPDATE rooms SET newest = ?2 WHERE nid = ?1")?
            .execute(params![room.nid, position])?;
        if new.kind == "m.read" {
            self.touch_room(&room.room_id);
        }
        self.touch_user(new.user_id);
        Ok(true)
    }
}

fn parse_receipt(row: &Row<'_>) -> Result<Receipt> {
    let thread: String = row.get(2)?;
    Ok(Receipt {
        user_id: parse_user_id(row.get(0)?)?,
        kind: row.get(1)?,
        thread: (!thread.is_empty()).then_some(thread),
        event_id: parse_event_id(row.get(3)?)?,
        read_to: row.get(4)?,
        ts: Millis(row.get::<_, i64>(5)?.unsigned_abs()),
    })
}
