//! Relations: replacements, reactions, references and threads, by the event that they relate to.
//!
//! A row is written with its event, from `m.relates_to` in the clear part of its content.

use ruma::{EventId, OwnedEventId, UserId};
use rusqlite::{OptionalExtension, params};
use sallyport_core::{event::Pdu, limits::ANNOTATIONS_COMPARED_MAX};
use serde::Deserialize;

use crate::{
    error::Result,
    events::{Direction, StoredEvent},
    pool::{Read, Write},
    room::Room,
    states::parse_event_id,
};

/// Which relating events are asked for.
#[derive(Debug, Clone, Copy)]
pub struct RelationQuery<'a> {
    /// The event that they relate to.
    pub target: &'a EventId,
    /// Relation type, such as `m.thread`.
    pub rel_type: Option<&'a str>,
    /// Event type.
    pub kind: Option<&'a str>,
    /// Only events after this position.
    pub after: i64,
    /// Only events before this position.
    pub before: i64,
    /// The order.
    pub direction: Direction,
    /// How many at most.
    pub limit: usize,
    /// How many relations may lie between the event and one of these: 1 for those that relate to it themselves.
    pub depth: usize,
}

/// Something short that a user says of an event, such as a reaction.
#[derive(Debug, Clone, Copy)]
pub struct Annotation<'a> {
    /// The event that it is said of.
    pub target: &'a EventId,
    /// The user.
    pub sender: &'a UserId,
    /// Event type.
    pub kind: &'a str,
    /// What is said.
    pub key: &'a str,
}

/// What a thread's root says of its thread.
#[derive(Debug, Clone)]
pub struct ThreadSummary {
    /// Events in the thread, its root left out.
    pub count: u64,
    /// The newest of them.
    pub latest: StoredEvent,
    /// Whether the asking user wrote one of them.
    pub participated: bool,
}

impl Read<'_> {
    /// Events that relate to another.
    pub fn relations(&self, room: &Room, query: &RelationQuery<'_>) -> Result<Vec<StoredEvent>> {
        let order = match query.direction {
            Direction::Forward => "ASC",
            Direction::Backward => "DESC",
        };
        let mut statement = self.prepare(&format!(
            "WITH RECURSIVE related (event_id, position, rel_type, kind, depth) AS (
                 SELECT event_id, position, rel_type, kind, 1 FROM relations
                 WHERE room = ?1 AND target = ?2
                 UNION ALL
                 SELECT next.event_id, next.position, next.rel_type, next.kind, depth + 1
                 FROM related JOIN relations next ON next.room = ?1 AND next.target = related.event_id
                 WHERE depth < ?8
             )
             SELECT event_id FROM related
             WHERE position > ?3 AND position < ?4
               AND (?5 IS NULL OR rel_type = ?5) AND (?6 IS NULL OR kind = ?6)
             ORDER BY position {order} LIMIT ?7"
        ))?;
        let ids = statement
            .query_map(
                params![
                    room.nid,
                    query.target.as_str(),
                    query.after,
                    query.before,
                    query.rel_type,
                    query.kind,
                    i64::try_from(query.limit).unwrap_or(i64::MAX),
                    i64::try_from(query.depth).unwrap_or(i64::MAX)
                ],
                |row| row.get::<_, String>(0),
            )?
            .map(|id| parse_event_id(id?))
            .collect::<Result<Vec<_>>>()?;
        self.events(ids)
    }

    /// Whether anything relates to an event.
    pub fn has_relations(&self, room: &Room, target: &EventId) -> Result<bool> {
        Ok(self
            .prepare("SELECT EXISTS (SELECT 1 FROM relations WHERE room = ?1 AND target = ?2)")?
            .query_row(params![room.nid, target.as_str()], |row| row.get(0))?)
    }

    /// Whether any event after a position relates to another.
    pub fn has_relations_after(&self, room: &Room, position: i64) -> Result<bool> {
        Ok(self
            .prepare("SELECT EXISTS (SELECT 1 FROM relations WHERE room = ?1 AND position > ?2)")?
            .query_row(params![room.nid, position], |row| row.get(0))?)
    }

    /// Whether a user has put this annotation on an event already. Only their newest ones there are looked at.
    pub fn has_annotation(&self, room: &Room, annotation: &Annotation<'_>) -> Result<bool> {
        let mut statement = self.prepare(
            "SELECT event_id FROM relations
             WHERE room = ?1 AND target = ?2 AND rel_type = 'm.annotation' AND sender = ?3
               AND kind = ?4
             ORDER BY position DESC LIMIT ?5",
        )?;
        let ids = statement
            .query_map(
                params![
                    room.nid,
                    annotation.target.as_str(),
                    annotation.sender.as_str(),
                    annotation.kind,
                    i64::try_from(ANNOTATIONS_COMPARED_MAX).unwrap_or(i64::MAX)
                ],
                |row| row.get::<_, String>(0),
            )?
            .map(|id| parse_event_id(id?))
            .collect::<Result<Vec<_>>>()?;
        let known = self.events(ids)?;
        Ok(known.iter().any(|event| annotation_key(event).as_deref() == Some(annotation.key)))
    }

    /// The newest replacement of an event by its own sender.
    pub fn newest_replacement(
        &self,
        room: &Room,
        target: &StoredEvent,
    ) -> Result<Option<StoredEvent>> {
        let found = self
            .prepare(
                "SELECT event_id FROM relations
                 WHERE room = ?1 AND target = ?2 AND rel_type = 'm.replace' AND sender = ?3
                   AND kind = ?4
                 ORDER BY position DESC LIMIT 1",
            )?
            .query_row(
                params![
                    room.nid,
                    target.pdu.event_id().as_str(),
                    target.pdu.sender().as_str(),
                    target.pdu.kind().to_string()
                ],
                |row| row.get(0),
            )
            .optional()?
            .map(parse_event_id)
            .transpose()?;
        found.map_or(Ok(None), |event_id| self.event(&event_id))
    }

    /// What is to say of the thread below an event; `None` if there is none.
    pub fn thread_summary(
        &self,
        room: &Room,
        root: &EventId,
        user_id: &UserId,
    ) -> Result<Option<ThreadSummary>> {
        let (count, participated, newest): (i64, bool, Option<i64>) = self
            .prepare(
                "SELECT count(*), coalesce(max(sender = ?3), 0), max(position) FROM relations
                 WHERE room = ?1 AND target = ?2 AND rel_type = 'm.thread'",
            )?
            .query_row(params![room.nid, root.as_str(), user_id.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        let Some(newest) = newest else { return Ok(None) };
        let latest = self.timeline(
            room,
            newest.saturating_sub(1),
            newest.saturating_add(1),
            Direction::Forward,
            1,
        )?;
        Ok(latest.into_iter().next().map(|latest| ThreadSummary {
            count: count.unsigned_abs(),
            latest,
            participated,
        }))
    }

    /// Roots of a room's threads with the position of each thread's newest event, the newest first.
    pub fn threads(
        &self,
        room: &Room,
        before: i64,
        participant: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<(i64, OwnedEventId)>> {
        let mut statement = self.prepare(
            "SELECT target, max(position) AS newest FROM relations
             WHERE room = ?1 AND rel_type = 'm.thread'
             GROUP BY target
             HAVING newest < ?2 AND (?3 IS NULL OR max(sender = ?3) = 1
                 OR target IN (SELECT event_id FROM events WHERE event_id = target AND sender = ?3))
             ORDER BY newest DESC LIMIT ?4",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let participant = participant.map(UserId::as_str);
        let rows = statement.query_map(params![room.nid, before, participant, limit], |row| {
            Ok((row.get::<_, i64>(1)?, row.get::<_, String>(0)?))
        })?;
        rows.map(|row| {
            let (position, event_id) = row?;
            Ok((position, parse_event_id(event_id)?))
        })
        .collect()
    }
}

impl Write<'_> {
    /// Notes what an event relates to, if it does.
    pub(crate) fn insert_relation(&mut self, room: i64, pdu: &Pdu, position: i64) -> Result<()> {
        // Looked for in the text first: most events relate to nothing, and parsing costs more.
        if pdu.state_key().is_some() || !pdu.content().get().contains("\"m.relates_to\"") {
            return Ok(());
        }
        let Ok(Content { relates_to: Some(RelatesTo { rel_type, event_id }) }) =
            serde_json::from_str(pdu.content().get())
        else {
            return Ok(());
        };
        self.prepare(
            "INSERT INTO relations (room, target, position, event_id, rel_type, kind, sender)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            room,
            event_id.as_str(),
            position,
            pdu.event_id().as_str(),
            rel_type,
            pdu.kind().to_string(),
            pdu.sender().as_str()
        ])?;
        Ok(())
    }

    /// Forgets what a redacted event related to.
    pub(crate) fn delete_relation(&mut self, room: i64, event: &StoredEvent) -> Result<()> {
        let Some(position) = event.position else { return Ok(()) };
        let Ok(Content { relates_to: Some(RelatesTo { event_id, .. }) }) =
            serde_json::from_str(event.pdu.content().get())
        else {
            return Ok(());
        };
        self.prepare("DELETE FROM relations WHERE room = ?1 AND target = ?2 AND position = ?3")?
            .execute(params![room, event_id.as_str(), position])?;
        Ok(())
    }
}

fn annotation_key(event: &StoredEvent) -> Option<String> {
    #[derive(Deserialize)]
    struct Annotating {
        key: String,
    }
    event.pdu.content_field::<Annotating>("m.relates_to").map(|annotation| annotation.key)
}

#[derive(Deserialize)]
struct Content {
    #[serde(rename = "m.relates_to")]
    relates_to: Option<RelatesTo>,
}

#[derive(Deserialize)]
struct RelatesTo {
    rel_type: String,
    event_id: OwnedEventId,
}
