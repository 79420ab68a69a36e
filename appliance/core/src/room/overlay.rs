//! A room with decisions that are not stored yet.
//!
//! A slice of an import is a chain: each event is judged by what the ones before it made of the room. The overlay holds their
//! decisions over the snapshot, so that the whole slice is judged outside the writer and stored in one command.
//!
//! States that are not stored yet have negative ids, numbered in the order in which [`Overlay::push`] and the writer meet them:
//! the state before an event if it had to be resolved, the state after it if the event sets state, the room's current state
//! if that had to be resolved.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use ruma::{EventId, OwnedEventId, events::StateEventType};

use super::{
    decide::state_key,
    verdict::{Change, CurrentState, StateRef},
    view::{Head, Known, RoomView, StateId, StateKey, StateMap},
};
use crate::event::Status;

/// A room with decisions that are not stored yet.
pub struct Overlay<'v, V: RoomView> {
    base: &'v V,
    head: Option<Head>,
    events: BTreeMap<OwnedEventId, Known>,
    states: Vec<Pending>,
    /// What the snapshot answered: the events of a slice ask for the same few entries.
    entries: RefCell<BTreeMap<(StateId, StateKey), Option<OwnedEventId>>>,
    maps: RefCell<BTreeMap<StateId, Arc<StateMap>>>,
    redactions: BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
}

/// A state that is not stored yet: what differs from its parent.
struct Pending {
    parent: StateId,
    entries: BTreeMap<StateKey, Option<OwnedEventId>>,
}

impl<'v, V: RoomView> Overlay<'v, V> {
    /// The room as the snapshot has it.
    ///
    /// # Errors
    /// The view's.
    pub fn new(base: &'v V) -> Result<Self, V::Error> {
        Ok(Self {
            base,
            head: base.head()?,
            events: BTreeMap::new(),
            states: Vec::new(),
            entries: RefCell::default(),
            maps: RefCell::default(),
            redactions: BTreeMap::new(),
        })
    }

    /// Takes a decision in: what follows is judged by it.
    pub fn push(&mut self, change: &Change) {
        let pdu = change.event.pdu();
        let before = self.state(&change.state_before);
        let after = match state_key(pdu).filter(|_| change.sets_state) {
            Some(key) => {
                let entries = BTreeMap::from([(key, Some(pdu.event_id().to_owned()))]);
                self.add(before, entries)
            }
            None => before,
        };
        let state = match &change.current {
            CurrentState::Unchanged => change.based_on.state,
            CurrentState::AfterEvent => after,
            CurrentState::Resolved(state) => self.state(state),
        };
        self.events.insert(
            pdu.event_id().to_owned(),
            Known {
                pdu: Arc::clone(pdu),
                status: change.status,
                gutted: change.gutted,
                state_after: Some(after),
            },
        );
        if let Some(target) = pdu.redacts() {
            self.redactions.entry(target.to_owned()).or_default().push(pdu.event_id().to_owned());
        }
        if change.status == Status::Accepted {
            self.head = Some(Head {
                state,
                extremities: change.extremities.clone(),
                ..change.based_on.clone()
            });
        }
    }

    fn state(&mut self, state: &StateRef) -> StateId {
        match state {
            StateRef::Stored(state) => *state,
            StateRef::Changed { parent, set, removed } => {
                let set = set.iter().map(|(key, id)| (key.clone(), Some(id.clone())));
                let removed = removed.iter().map(|key| (key.clone(), None));
                self.add(*parent, set.chain(removed).collect())
            }
        }
    }

    fn add(
        &mut self,
        parent: StateId,
        entries: BTreeMap<StateKey, Option<OwnedEventId>>,
    ) -> StateId {
        self.states.push(Pending { parent, entries });
        pending_id(self.states.len())
    }

    fn pending(&self, state: StateId) -> Option<&Pending> {
        self.states.get(pending_index(state)?)
    }
}

/// The id of the n-th pending state, counted from one.
#[must_use]
pub fn pending_id(number: usize) -> StateId {
    StateId(i64::try_from(number).map_or(i64::MIN, i64::wrapping_neg))
}

/// Which pending state an id names, counted from zero; `None` if it names a stored one.
#[must_use]
pub fn pending_index(state: StateId) -> Option<usize> {
    usize::try_from(state.0.checked_neg()?).ok()?.checked_sub(1)
}

impl<V: RoomView> RoomView for Overlay<'_, V> {
    type Error = V::Error;

    fn head(&self) -> Result<Option<Head>, V::Error> {
        Ok(self.head.clone())
    }

    fn event(&self, event_id: &EventId) -> Result<Option<Known>, V::Error> {
        match self.events.get(event_id) {
            Some(known) => Ok(Some(known.clone())),
            None => self.base.event(event_id),
        }
    }

    fn state_entry(
        &self,
        mut state: StateId,
        kind: &StateEventType,
        state_key: &str,
    ) -> Result<Option<OwnedEventId>, V::Error> {
        let key = (kind.clone(), state_key.to_owned());
        while let Some(pending) = self.pending(state) {
            if let Some(entry) = pending.entries.get(&key) {
                return Ok(entry.clone());
            }
            state = pending.parent;
        }
        let asked = (state, key);
        if let Some(entry) = self.entries.borrow().get(&asked) {
            return Ok(entry.clone());
        }
        let entry = self.base.state_entry(state, kind, state_key)?;
        self.entries.borrow_mut().insert(asked, entry.clone());
        Ok(entry)
    }

    fn state_map(&self, state: StateId) -> Result<Arc<StateMap>, V::Error> {
        let Some(pending) = self.pending(state) else { return self.base.state_map(state) };
        if let Some(map) = self.maps.borrow().get(&state) {
            return Ok(Arc::clone(map));
        }
        let mut map = (*self.state_map(pending.parent)?).clone();
        for (key, entry) in &pending.entries {
            match entry {
                Some(event_id) => map.insert(key.clone(), event_id.clone()),
                None => map.remove(key),
            };
        }
        let map = Arc::new(map);
        self.maps.borrow_mut().insert(state, Arc::clone(&map));
        Ok(map)
    }

    fn redactions_of(&self, event_id: &EventId) -> Result<Vec<OwnedEventId>, V::Error> {
        let mut redactions = self.base.redactions_of(event_id)?;
        redactions.extend(self.redactions.get(event_id).cloned().unwrap_or_default());
        Ok(redactions)
    }
}
