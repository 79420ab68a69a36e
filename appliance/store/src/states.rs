//! Room states: full copies and deltas.
//!
//! A new state is written as what differs from its parent. Once the deltas since the last full copy outnumber that copy, the next
//! state is a full copy again: writing stays O(1) rows per change (amortised), reading a whole state O(its size).

use std::{collections::BTreeMap, sync::Arc};

use ruma::{OwnedEventId, events::StateEventType};
use rusqlite::{OptionalExtension, params};
use sallyport_core::room::{StateId, StateKey, StateMap, StateRef};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
};

/// Deltas below this number never cause a full copy.
const DELTAS_MIN: i64 = 32;

impl Read<'_> {
    /// One entry of a stored state.
    pub(crate) fn state_entry(
        &self,
        state: StateId,
        kind: &StateEventType,
        state_key: &str,
    ) -> Result<Option<OwnedEventId>> {
        let found: Option<Option<String>> = self
            .prepare(
                "WITH RECURSIVE chain (nid, parent, step) AS (
                     SELECT nid, parent, 0 FROM states WHERE nid = ?1
                     UNION ALL
                     SELECT s.nid, s.parent, c.step + 1 FROM chain c JOIN states s ON s.nid = c.parent
                 )
                 SELECT e.event_id FROM chain c
                 JOIN state_entries e ON e.state = c.nid AND e.kind = ?2 AND e.state_key = ?3
                 ORDER BY c.step LIMIT 1",
            )?
            .query_row(params![state.0, kind.to_string(), state_key], |row| row.get(0))
            .optional()?;
        found.flatten().map(parse_event_id).transpose()
    }

    /// A whole stored state.
    pub fn state_map(&self, state: StateId) -> Result<Arc<StateMap>> {
        if let Some(map) = self.caches().states.get(&state) {
            return Ok(map);
        }
        let mut map: BTreeMap<StateKey, Option<OwnedEventId>> = BTreeMap::new();
        let mut statement = self.prepare(
            "WITH RECURSIVE chain (nid, parent, step) AS (
                 SELECT nid, parent, 0 FROM states WHERE nid = ?1
                 UNION ALL
                 SELECT s.nid, s.parent, c.step + 1 FROM chain c JOIN states s ON s.nid = c.parent
             )
             SELECT e.kind, e.state_key, e.event_id FROM chain c
             JOIN state_entries e ON e.state = c.nid ORDER BY c.step",
        )?;
        let mut rows = statement.query([state.0])?;
        while let Some(row) = rows.next()? {
            let key = (StateEventType::from(row.get::<_, String>(0)?), row.get(1)?);
            let event_id = row.get::<_, Option<String>>(2)?.map(parse_event_id).transpose()?;
            // Nearest first: what an older state says of the same key no longer counts.
            map.entry(key).or_insert(event_id);
        }
        let map: StateMap =
            map.into_iter().filter_map(|(key, event_id)| Some((key, event_id?))).collect();
        let map = Arc::new(map);
        if self.fills_cache() {
            self.caches().states.insert(state, Arc::clone(&map));
        }
        Ok(map)
    }
}

impl Write<'_> {
    /// Stores a state that is described by its difference; answers its name.
    pub(crate) fn store_state(&mut self, room: i64, state: &StateRef) -> Result<StateId> {
        match state {
            StateRef::Stored(state) => Ok(*state),
            StateRef::Changed { parent, set, removed } => {
                let set = set.iter().map(|(key, event_id)| (key, Some(event_id)));
                let removed = removed.iter().map(|key| (key, None));
                self.store_delta(room, *parent, set.chain(removed))
            }
        }
    }

    /// Stores a state that differs from its parent in these entries.
    pub(crate) fn store_delta<'e>(
        &mut self,
        room: i64,
        parent: StateId,
        entries: impl Iterator<Item = (&'e StateKey, Option<&'e OwnedEventId>)>,
    ) -> Result<StateId> {
        let entries: Vec<_> = entries.collect();
        let (deltas, copied): (i64, i64) = self
            .prepare("SELECT deltas, copied FROM states WHERE nid = ?1")?
            .query_row([parent.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let deltas = deltas + i64::try_from(entries.len()).unwrap_or(i64::MAX);
        if deltas > copied.max(DELTAS_MIN) {
            let mut map = (*self.state_map(parent)?).clone();
            for (key, event_id) in entries {
                match event_id {
                    Some(event_id) => map.insert(key.clone(), event_id.clone()),
                    None => map.remove(key),
                };
            }
            return self.store_copy(room, &map);
        }
        let state = self.insert_state(room, Some(parent), deltas, copied)?;
        for (key, event_id) in entries {
            self.insert_entry(state, key, event_id)?;
        }
        Ok(state)
    }

    /// Stores a full copy of a state.
    pub(crate) fn store_copy(&mut self, room: i64, map: &StateMap) -> Result<StateId> {
        let copied = i64::try_from(map.len()).unwrap_or(i64::MAX);
        let state = self.insert_state(room, None, 0, copied)?;
        for (key, event_id) in map {
            self.insert_entry(state, key, Some(event_id))?;
        }
        Ok(state)
    }

    fn insert_state(
        &mut self,
        room: i64,
        parent: Option<StateId>,
        deltas: i64,
        copied: i64,
    ) -> Result<StateId> {
        self.prepare("INSERT INTO states (room, parent, deltas, copied) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![room, parent.map(|parent| parent.0), deltas, copied])?;
        Ok(StateId(self.last_insert_rowid()))
    }

    fn insert_entry(
        &mut self,
        state: StateId,
        (kind, state_key): &StateKey,
        event_id: Option<&OwnedEventId>,
    ) -> Result<()> {
        self.prepare(
            "INSERT INTO state_entries (state, kind, state_key, event_id) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            state.0,
            kind.to_string(),
            state_key,
            event_id.map(|event_id| event_id.as_str())
        ])?;
        Ok(())
    }
}

pub(crate) fn parse_event_id(text: String) -> Result<OwnedEventId> {
    OwnedEventId::try_from(text).map_err(|error| Error::corrupt("events", error))
}
