//! Taking a room over from a snapshot: how a carried invite brings its room along.
//!
//! The snapshot is what a resident server answers to `send_join`: the state after an anchor event and its auth chain.
//! Every event is verified by its signatures and by the rules, from the create event up; one that fails refuses the whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomVersionId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res,
};

use super::{
    decide::{state_key, version_of},
    draft::accepted,
    incoming::Checked,
    view::{StateKey, StateMap},
};
use crate::event::{Judged, Pdu, Signed};

/// A room as another enclave hands it over, signatures verified.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The room's version, as the bundle says; the create event must agree.
    pub version: RoomVersionId,
    /// The state after the anchor, the anchor itself included if it is a state event.
    pub state: Vec<Checked>,
    /// What authorises the state and is not in it.
    pub auth_chain: Vec<Checked>,
    /// The event at which the room is taken over: the forward extremity.
    pub anchor: Checked,
}

/// A verified snapshot, ready to be stored.
#[derive(Debug, Clone)]
pub struct Takeover {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its version.
    pub version: RoomVersionId,
    /// State and auth chain without the anchor, each after what authorises it; the flag says whether it is kept redacted.
    pub outliers: Vec<(Signed, bool)>,
    /// The state after the anchor.
    pub state: StateMap,
    /// The anchor.
    pub anchor: (Signed, bool),
}

/// Why a snapshot was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The version is not served here, or the create event names another.
    #[error("room version {0} is not the create event's, or is not supported here")]
    Version(RoomVersionId),
    /// There is no create event in the state.
    #[error("the snapshot has no create event")]
    NoCreate,
    /// An event is of another room.
    #[error("event {0} is of another room")]
    OtherRoom(OwnedEventId),
    /// Two state events have the same type and state key.
    #[error("two events claim the same place in the state: {0}")]
    DuplicateState(OwnedEventId),
    /// Something that authorises an event is missing, or events authorise each other in a circle.
    #[error("what authorises event {0} is not in the snapshot")]
    Incomplete(OwnedEventId),
    /// An event is against the rules.
    #[error("event {event_id} is against the rules of the room: {reason}")]
    Unauthorised {
        /// The event.
        event_id: OwnedEventId,
        /// What it violates.
        reason: String,
    },
    /// The anchor is a state event that the state does not hold.
    #[error("the state is not the one after the anchor")]
    AnchorNotInState,
}

/// Verifies a snapshot from the create event up.
///
/// # Errors
/// If anything is missing or against the rules: then nothing of it may be kept.
pub fn found(snapshot: Snapshot) -> Result<Takeover, SnapshotError> {
    let Snapshot { version, state, auth_chain, anchor } = snapshot;
    let rules = super::rules(&version).ok_or_else(|| SnapshotError::Version(version.clone()))?;
    let create = state
        .iter()
        .find(|event| *event.pdu().kind() == TimelineEventType::RoomCreate)
        .ok_or(SnapshotError::NoCreate)?;
    if version_of(create.pdu()).as_ref() != Some(&version) {
        return Err(SnapshotError::Version(version));
    }
    let room_id = create.pdu().room_id().to_owned();
    let create = accepted(create.pdu());
    let map = state_map(&state)?;
    if anchor.pdu().state_key().is_some() && !map.values().any(|id| id == anchor.pdu().event_id()) {
        return Err(SnapshotError::AnchorNotInState);
    }

    let mut events: BTreeMap<OwnedEventId, Checked> = BTreeMap::new();
    for event in state.into_iter().chain(auth_chain).chain([anchor.clone()]) {
        if event.pdu().room_id() != room_id {
            return Err(SnapshotError::OtherRoom(event.pdu().event_id().to_owned()));
        }
        events.insert(event.pdu().event_id().to_owned(), event);
    }
    let order = authorised_order(&events)?;
    for event_id in &order {
        if let Some(event) = events.get(event_id) {
            check(event.pdu(), &events, &create, &rules).map_err(|reason| {
                SnapshotError::Unauthorised { event_id: event_id.clone(), reason }
            })?;
        }
    }
    let anchor_id = anchor.pdu().event_id().to_owned();
    let outliers = order
        .iter()
        .filter(|id| **id != anchor_id)
        .filter_map(|id| events.remove(id))
        .map(|event| (event.event, event.gutted))
        .collect();
    Ok(Takeover { room_id, version, outliers, state: map, anchor: (anchor.event, anchor.gutted) })
}

fn state_map(state: &[Checked]) -> Result<StateMap, SnapshotError> {
    let mut map = StateMap::new();
    for event in state {
        let event_id = event.pdu().event_id().to_owned();
        let Some(key) = state_key(event.pdu()) else {
            return Err(SnapshotError::DuplicateState(event_id));
        };
        if map.insert(key, event_id.clone()).is_some() {
            return Err(SnapshotError::DuplicateState(event_id));
        }
    }
    Ok(map)
}

/// The events, each after those that authorise it.
fn authorised_order(
    events: &BTreeMap<OwnedEventId, Checked>,
) -> Result<Vec<OwnedEventId>, SnapshotError> {
    let mut order = Vec::with_capacity(events.len());
    let mut done: BTreeSet<&EventId> = BTreeSet::new();
    let mut open: BTreeSet<&EventId> = BTreeSet::new();
    for start in events.values() {
        let mut stack = vec![(start.pdu(), false)];
        while let Some((pdu, parents_done)) = stack.pop() {
            let event_id = pdu.event_id();
            if parents_done {
                if done.insert(event_id) {
                    order.push(event_id.to_owned());
                }
                continue;
            }
            if done.contains(event_id) {
                continue;
            }
            // Seen before and not done: its own auth chain leads back to it.
            if !open.insert(event_id) {
                return Err(SnapshotError::Incomplete(event_id.to_owned()));
            }
            stack.push((pdu, true));
            for parent in pdu.auth_events() {
                if done.contains(&**parent) {
                    continue;
                }
                match events.get(parent) {
                    Some(parent) => stack.push((parent.pdu(), false)),
                    None => return Err(SnapshotError::Incomplete(event_id.to_owned())),
                }
            }
        }
        open.clear();
    }
    Ok(order)
}

fn check(
    pdu: &Arc<Pdu>,
    events: &BTreeMap<OwnedEventId, Checked>,
    create: &Judged,
    rules: &RoomVersionRules,
) -> Result<(), String> {
    let subject = accepted(pdu);
    let mut state: BTreeMap<StateKey, Judged> = BTreeMap::new();
    state.insert((StateEventType::RoomCreate, String::new()), create.clone());
    for event_id in pdu.auth_events() {
        if let Some(event) = events.get(event_id)
            && let Some(key) = state_key(event.pdu())
        {
            state.insert(key, accepted(event.pdu()));
        }
    }
    let authorization = &rules.authorization;
    state_res::check_state_independent_auth_rules(authorization, &subject, |event_id| {
        if event_id == create.pdu.event_id() {
            return Some(create.clone());
        }
        events.get(event_id).map(|event| accepted(event.pdu()))
    })?;
    state_res::check_state_dependent_auth_rules(authorization, &subject, |kind, key| {
        state.get(&(kind.clone(), key.to_owned()))
    })
}
