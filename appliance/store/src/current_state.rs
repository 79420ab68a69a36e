//! The current state of rooms: each entry's event, and the stream position at which it became current.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    EventId, OwnedEventId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use rusqlite::{OptionalExtension, params};
use sallyport_core::{
    event::Pdu,
    room::{StateId, StateKey},
};

use crate::{
    error::Result,
    events::StoredEvent,
    pool::{Read, Write},
    room::Room,
    states::parse_event_id,
};

impl Read<'_> {
    /// The current state events of a room.
    pub fn current_state(&self, room: &Room) -> Result<Vec<StoredEvent>> {
        self.current_state_since(room, i64::MIN)
    }

    /// The current state events of a room that became current after a position.
    pub fn current_state_since(&self, room: &Room, since: i64) -> Result<Vec<StoredEvent>> {
        let mut statement =
            self.prepare("SELECT event_id FROM current_state WHERE room = ?1 AND position > ?2")?;
        let ids = statement
            .query_map(params![room.nid, since], |row| row.get::<_, String>(0))?
            .map(|id| parse_event_id(id?))
            .collect::<Result<Vec<_>>>()?;
        self.events(ids)
    }

    /// One current state event of a room.
    pub fn state_event(
        &self,
        room: &Room,
        kind: &StateEventType,
        state_key: &str,
    ) -> Result<Option<StoredEvent>> {
        let found = self
            .prepare(
                "SELECT event_id FROM current_state
                 WHERE room = ?1 AND kind = ?2 AND state_key = ?3",
            )?
            .query_row(params![room.nid, kind.to_string(), state_key], |row| row.get(0))
            .optional()?
            .map(parse_event_id)
            .transpose()?;
        found.map_or(Ok(None), |event_id| self.event(&event_id))
    }
}

impl Write<'_> {
    /// Brings `current_state` to a new current state; answers whether a user of another server now has a place in it.
    pub(crate) fn move_current(
        &mut self,
        room: &Room,
        state: StateId,
        key: Option<&StateKey>,
        pdu: &Pdu,
        position: i64,
    ) -> Result<bool> {
        if state == room.state {
            return Ok(false);
        }
        // The usual case: one state event further along a line.
        if let Some(key) = key
            && self.is_child(state, room.state)?
        {
            return self.set_current(room.nid, key, pdu.event_id(), pdu, position);
        }
        let (old, new) = (self.state_map(room.state)?, self.state_map(state)?);
        let set = new
            .iter()
            .filter(|(key, id)| old.get(*key) != Some(*id))
            .map(|(key, id)| (key.clone(), id.clone()))
            .collect();
        let removed = old.keys().filter(|key| !new.contains_key(*key)).cloned().collect();
        self.change_current(room.nid, &set, &removed, position)
    }

    fn is_child(&self, state: StateId, parent: StateId) -> Result<bool> {
        let found: Option<i64> = self
            .prepare("SELECT parent FROM states WHERE nid = ?1")?
            .query_row([state.0], |row| row.get(0))?;
        Ok(found == Some(parent.0))
    }

    fn change_current(
        &mut self,
        room: i64,
        set: &BTreeMap<StateKey, OwnedEventId>,
        removed: &BTreeSet<StateKey>,
        position: i64,
    ) -> Result<bool> {
        let mut exposed = false;
        for (key, event_id) in set {
            if let Some(event) = self.event(event_id)? {
                exposed |= self.set_current(room, key, event_id, &event.pdu, position)?;
            }
        }
        for (kind, state_key) in removed {
            self.prepare(
                "DELETE FROM current_state WHERE room = ?1 AND kind = ?2 AND state_key = ?3",
            )?
            .execute(params![room, kind.to_string(), state_key])?;
            if *kind == StateEventType::RoomMember {
                // State resolution took the member event away: to clients the user has left.
                self.prepare(
                    "UPDATE memberships SET membership = 'leave', position = ?3
                     WHERE user_id = ?1 AND room = ?2",
                )?
                .execute(params![state_key, room, position])?;
                self.touch_member(state_key);
            }
        }
        Ok(exposed)
    }

    /// Lets clients have a current state event again, whose content is complete only now.
    pub(crate) fn tell_again(
        &mut self,
        room: i64,
        event_id: &EventId,
        position: i64,
    ) -> Result<()> {
        self.prepare("UPDATE current_state SET position = ?3 WHERE room = ?1 AND event_id = ?2")?
            .execute(params![room, event_id.as_str(), position])?;
        Ok(())
    }

    /// Makes an event current; answers whether it gives a user of another server a place.
    pub(crate) fn set_current(
        &mut self,
        room: i64,
        (kind, state_key): &StateKey,
        event_id: &EventId,
        pdu: &Pdu,
        position: i64,
    ) -> Result<bool> {
        self.prepare(
            "INSERT INTO current_state (room, kind, state_key, event_id, position)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (room, kind, state_key)
             DO UPDATE SET event_id = excluded.event_id, position = excluded.position",
        )?
        .execute(params![
            room,
            kind.to_string(),
            state_key,
            event_id.as_str(),
            position
        ])?;
        if *kind != StateEventType::RoomMember {
            return Ok(false);
        }
        let membership =
            pdu.content_field::<MembershipState>("membership").unwrap_or(MembershipState::Leave);
        self.prepare(
            "INSERT INTO memberships (user_id, room, membership, event_id, position)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (user_id, room) DO UPDATE SET membership = excluded.membership,
                 event_id = excluded.event_id, position = excluded.position, forgotten = 0",
        )?
        .execute(params![
            state_key,
            room,
            membership.as_str(),
            event_id.as_str(),
            position
        ])?;
        self.touch_member(state_key);
        Ok(<&UserId>::try_from(state_key.as_str())
            .is_ok_and(|user| user.server_name() != self.server_name()))
    }

    fn touch_member(&mut self, state_key: &str) {
        if let Ok(user_id) = <&UserId>::try_from(state_key) {
            self.touch_user(user_id);
        }
    }
}
