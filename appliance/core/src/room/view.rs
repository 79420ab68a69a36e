//! The questions that the rules may ask about a room.

use std::sync::Arc;

use ruma::{EventId, OwnedEventId, RoomVersionId, events::StateEventType};

use crate::event::{Judged, Pdu, Status};

/// Names a stored room state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateId(pub i64);

/// Event type and state key.
pub type StateKey = (StateEventType, String);

/// A room state: for each event type and state key, the event.
pub type StateMap = ruma::state_res::StateMap<OwnedEventId>;

/// Where a room stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Version of the room.
    pub version: RoomVersionId,
    /// The current state: the resolution of the states after all forward extremities.
    pub state: StateId,
    /// The forward extremities: accepted events that no accepted event follows.
    pub extremities: Vec<OwnedEventId>,
    /// Whether users of other servers are, or have been, members or invited.
    pub exposed: bool,
}

/// An event that the box holds.
#[derive(Debug, Clone)]
pub struct Known {
    /// The event.
    pub pdu: Arc<Pdu>,
    /// What was decided about it.
    pub status: Status,
    /// Whether only a copy with a wrong content hash arrived, so that it is kept redacted.
    pub gutted: bool,
    /// The room state after it; `None` for an outlier, whose place in the room is not known.
    pub state_after: Option<StateId>,
}

impl Known {
    /// The event with what was decided about it.
    #[must_use]
    pub fn judged(&self) -> Judged {
        Judged { pdu: Arc::clone(&self.pdu), status: self.status }
    }
}

/// The questions that the rules may ask about one room. Answers come from one snapshot.
pub trait RoomView {
    /// Why a question could not be answered.
    type Error;

    /// Where the room stands; `None` if the box does not have it.
    fn head(&self) -> Result<Option<Head>, Self::Error>;

    /// An event of this room.
    fn event(&self, event_id: &EventId) -> Result<Option<Known>, Self::Error>;

    /// One entry of a stored state.
    fn state_entry(
        &self,
        state: StateId,
        kind: &StateEventType,
        state_key: &str,
    ) -> Result<Option<OwnedEventId>, Self::Error>;

    /// A whole stored state. Its cost grows with the room's members: only state resolution may ask.
    fn state_map(&self, state: StateId) -> Result<Arc<StateMap>, Self::Error>;

    /// Redactions that arrived before the event that they redact.
    fn redactions_of(&self, event_id: &EventId) -> Result<Vec<OwnedEventId>, Self::Error>;
}
