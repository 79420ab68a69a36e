//! What was true of a room at an earlier position of the stream.

use ruma::{
    EventId, OwnedEventId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use rusqlite::{OptionalExtension, params};
use sallyport_core::{room::StateId, time::Millis};

use crate::{
    error::Result,
    events::{Direction, StoredEvent},
    pool::Read,
    room::Room,
    states::parse_event_id,
};

impl Read<'_> {
    /// The room state at a position; `None` before the first event.
    pub fn state_at(&self, room: &Room, position: i64) -> Result<Option<StateId>> {
        if position >= room.newest {
            return Ok(Some(room.state));
        }
        Ok(self
            .prepare(
                "SELECT state_after FROM events
                 WHERE room = ?1 AND position <= ?2 AND state_after IS NOT NULL
                 ORDER BY position DESC LIMIT 1",
            )?
            .query_row(params![room.nid, position], |row| row.get(0))
            .optional()?
            .map(StateId))
    }

    /// One entry of a stored state of a room.
    pub fn state_event_at(
        &self,
        room: &Room,
        state: StateId,
        kind: &StateEventType,
        state_key: &str,
    ) -> Result<Option<StoredEvent>> {
        if state == room.state {
            return self.state_event(room, kind, state_key);
        }
        match self.state_entry(state, kind, state_key)? {
            Some(event_id) => self.event(&event_id),
            None => Ok(None),
        }
    }

    /// Accepted events of the timeline that set one entry of the state, up to a position, the newest first.
    pub fn state_history(
        &self,
        room: &Room,
        kind: &StateEventType,
        state_key: &str,
        up_to: i64,
        limit: usize,
    ) -> Result<Vec<StoredEvent>> {
        let mut statement = self.prepare(
            "SELECT event_id FROM events
             WHERE room = ?1 AND kind = ?2 AND state_key = ?3 AND position <= ?4
               AND position IS NOT NULL AND status = 0
             ORDER BY position DESC LIMIT ?5",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let ids = statement
            .query_map(params![room.nid, kind.to_string(), state_key, up_to, limit], |row| {
                row.get::<_, String>(0)
            })?
            .map(|id| parse_event_id(id?))
            .collect::<Result<Vec<_>>>()?;
        self.events(ids)
    }

    /// What a user was in a room at a position, by the timeline.
    pub fn membership_at(
        &self,
        room: &Room,
        user_id: &UserId,
        position: i64,
    ) -> Result<Option<MembershipState>> {
        let newest =
            self.state_history(room, &StateEventType::RoomMember, user_id.as_str(), position, 1)?;
        Ok(newest.first().and_then(|event| event.pdu.content_field("membership")))
    }

    /// The event of a timeline nearest to a time: the first at or after it, or the last at or before it.
    pub fn event_near(
        &self,
        room: &Room,
        time: Millis,
        direction: Direction,
    ) -> Result<Option<StoredEvent>> {
        let (compare, order) = match direction {
            Direction::Forward => (">=", "ASC"),
            Direction::Backward => ("<=", "DESC"),
        };
        let found = self
            .prepare(&format!(
                "SELECT event_id FROM events
                 WHERE room = ?1 AND position IS NOT NULL AND status = 0
                   AND origin_server_ts {compare} ?2
                 ORDER BY origin_server_ts {order}, position {order} LIMIT 1"
            ))?
            .query_row(params![room.nid, i64::try_from(time.0).unwrap_or(i64::MAX)], |row| {
                row.get(0)
            })
            .optional()?
            .map(parse_event_id)
            .transpose()?;
        found.map_or(Ok(None), |event_id| self.event(&event_id))
    }

    /// Ids of the current state events of one type, with their state keys.
    pub fn state_of_kind(
        &self,
        room: &Room,
        kind: &StateEventType,
    ) -> Result<Vec<(String, OwnedEventId)>> {
        let mut statement = self.prepare(
            "SELECT state_key, event_id FROM current_state WHERE room = ?1 AND kind = ?2",
        )?;
        let rows = statement.query_map(params![room.nid, kind.to_string()], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        rows.map(|row| {
            let (state_key, event_id) = row?;
            Ok((state_key, parse_event_id(event_id)?))
        })
        .collect()
    }

    /// Entries of the current state that changed after a position: type, state key and event, without reading the events.
    pub fn current_state_changes(
        &self,
        room: &Room,
        since: i64,
    ) -> Result<Vec<(StateEventType, String, OwnedEventId)>> {
        let mut statement = self.prepare(
            "SELECT kind, state_key, event_id FROM current_state
             WHERE room = ?1 AND position > ?2",
        )?;
        let rows = statement.query_map(params![room.nid, since], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        })?;
        rows.map(|row| {
            let (kind, state_key, event_id) = row?;
            Ok((StateEventType::from(kind), state_key, parse_event_id(event_id)?))
        })
        .collect()
    }

    /// The joined and invited members of longest standing, for a room without a name; `except` is left out.
    pub fn heroes(
        &self,
        room: &Room,
        except: &UserId,
        limit: usize,
    ) -> Result<Vec<ruma::OwnedUserId>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        for standing in ["('join', 'invite')", "('leave', 'ban')"] {
            let mut statement = self.prepare(&format!(
                "SELECT user_id FROM memberships
                 WHERE room = ?1 AND user_id <> ?2 AND membership IN {standing}
                 ORDER BY position LIMIT ?3"
            ))?;
            let rows = statement.query_map(params![room.nid, except.as_str(), limit], |row| {
                row.get::<_, String>(0)
            })?;
            let heroes =
                rows.map(|row| crate::members::parse_user_id(row?)).collect::<Result<Vec<_>>>()?;
            if !heroes.is_empty() {
                return Ok(heroes);
            }
        }
        Ok(Vec::new())
    }

    /// The position of an event in its room's timeline.
    pub fn position_of(&self, room: &Room, event_id: &EventId) -> Result<Option<i64>> {
        Ok(self
            .prepare(
                "SELECT position FROM events WHERE event_id = ?1 AND room = ?2 AND status = 0",
            )?
            .query_row(params![event_id.as_str(), room.nid], |row| row.get(0))
            .optional()?
            .flatten())
    }
}
