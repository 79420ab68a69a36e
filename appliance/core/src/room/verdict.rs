//! What is decided about events, and how a decision changes the room.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedEventId, OwnedServerName};

use super::view::{Head, StateId, StateKey};
use crate::{
    event::{Signed, Status},
    time::Millis,
};

/// What was decided about an event.
#[derive(Debug)]
pub enum Verdict {
    /// It is part of the room.
    Accept(Change),
    /// It is part of the room, but only its redacted form: the content hash does not match.
    AcceptRedacted(Change),
    /// Valid where it stands, not by the current state: kept, hidden from clients, not an extremity.
    SoftFail(Change, String),
    /// Against the rules: kept, so that what builds on it can be judged; changes nothing.
    Reject(Change, String),
    /// Not an event, or badly signed. Never remembered by its event id: a genuine copy may follow.
    Drop(String),
    /// Not yet: ask again later.
    Hold(Hold),
    /// Some things must be fetched first.
    Missing {
        /// Events that it names and that are not here.
        events: Vec<OwnedEventId>,
        /// Events that are here, but without the room state after them.
        state: Vec<OwnedEventId>,
        /// Servers whose keys are not here.
        keys: Vec<OwnedServerName>,
    },
    /// It is here already, with whatever was decided about it.
    Known(Status),
}

/// Why an event must wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// It is dated in the future: wait until then, or until an officer releases it.
    Until(Millis),
    /// No key document of that server is fresh enough for the event's time.
    FreshKeys(OwnedServerName),
}

/// How a decision changes the room. Made on a snapshot; the writer compares [`Change::based_on`].
#[derive(Debug, Clone)]
pub struct Change {
    /// The event, as it is to be kept.
    pub event: Signed,
    /// Accepted, soft-failed or rejected.
    pub status: Status,
    /// Whether it is kept redacted because its content hash does not match.
    pub gutted: bool,
    /// The room state before it.
    pub state_before: StateRef,
    /// Whether the state after it differs from the one before by this very event.
    pub sets_state: bool,
    /// What the room's current state becomes.
    pub current: CurrentState,
    /// The forward extremities of the room after it.
    pub extremities: Vec<OwnedEventId>,
    /// Redactions that apply now: target and redaction.
    pub redactions: Vec<(OwnedEventId, OwnedEventId)>,
    /// Where the room stood when this was decided.
    pub based_on: Head,
}

/// A room state, named or described by its difference from a stored one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateRef {
    /// A stored state.
    Stored(StateId),
    /// A stored state with some entries set and some removed.
    Changed {
        /// The stored state.
        parent: StateId,
        /// Entries that differ.
        set: BTreeMap<StateKey, OwnedEventId>,
        /// Entries that are no longer there.
        removed: BTreeSet<StateKey>,
    },
}

/// What a decision makes of a room's current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CurrentState {
    /// It stays.
    Unchanged,
    /// It is the state after this event.
    AfterEvent,
    /// It is the resolution of the states after all extremities.
    Resolved(StateRef),
}
