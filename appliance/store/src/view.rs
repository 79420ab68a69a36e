//! One room of a snapshot, for the rules to ask about.

use std::sync::Arc;

use ruma::{
    EventId, OwnedEventId, RoomId, events::StateEventType, room_version_rules::RoomVersionRules,
};
use rusqlite::{OptionalExtension, params};
use sallyport_core::room::{Head, Known, RoomView, StateId, StateMap};

use crate::{
    error::{Error, Result},
    pool::Read,
    room::Room,
    states::parse_event_id,
};

/// One room of a snapshot.
pub struct View<'r, 'c> {
    read: &'r Read<'c>,
    room: Option<Room>,
}

impl<'c> Read<'c> {
    /// One room, for the rules to ask about.
    pub fn view(&self, room_id: &RoomId) -> Result<View<'_, 'c>> {
        Ok(View { read: self, room: self.room(room_id)? })
    }
}

impl View<'_, '_> {
    /// The room, if the box has it.
    #[must_use]
    pub fn room(&self) -> Option<&Room> {
        self.room.as_ref()
    }

    /// The rules of the room's version.
    #[must_use]
    pub fn rules(&self) -> Option<RoomVersionRules> {
        self.room.as_ref().and_then(|room| sallyport_core::room::rules(&room.version))
    }

    fn current_entry(
        &self,
        room: i64,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Option<OwnedEventId>> {
        self.read
            .prepare(
                "SELECT event_id FROM current_state WHERE room = ?1 AND kind = ?2 AND state_key = ?3",
            )?
            .query_row(params![room, kind.to_string(), key], |row| row.get(0))
            .optional()?
            .map(parse_event_id)
            .transpose()
    }
}

impl RoomView for View<'_, '_> {
    type Error = Error;

    fn head(&self) -> Result<Option<Head>> {
        Ok(self.room.as_ref().map(|room| Head {
            version: room.version.clone(),
            state: room.state,
            extremities: room.extremities.clone(),
            exposed: room.exposed,
        }))
    }

    fn event(&self, event_id: &EventId) -> Result<Option<Known>> {
        let Some(room) = &self.room else { return Ok(None) };
        self.read.known(room, event_id)
    }

    fn state_entry(
        &self,
        state: StateId,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Option<OwnedEventId>> {
        match &self.room {
            Some(room) if room.state == state => self.current_entry(room.nid, kind, key),
            _ => self.read.state_entry(state, kind, key),
        }
    }

    fn state_map(&self, state: StateId) -> Result<Arc<StateMap>> {
        self.read.state_map(state)
    }

    fn redactions_of(&self, event_id: &EventId) -> Result<Vec<OwnedEventId>> {
        let mut statement =
            self.read.prepare("SELECT redaction FROM redactions WHERE target = ?1")?;
        let rows = statement.query_map([event_id.as_str()], |row| row.get::<_, String>(0))?;
        rows.map(|row| parse_event_id(row?)).collect()
    }
}
