//! What may happen in a room, and what the room's state becomes.
//!
//! - [`draft()`] authorises what a local user wants; [`Draft::seal`] turns it into an event.
//! - [`create`](create::create) founds a room.
//! - [`decide()`] judges an event that came from elsewhere.
//! - [`found`](snapshot::found) takes a room over from a snapshot (a carried invite).

pub mod create;
mod decide;
mod draft;
mod incoming;
mod overlay;
mod resolve;
pub mod snapshot;
mod verdict;
mod view;
pub mod visibility;

use ruma::{RoomVersionId, room_version_rules::RoomVersionRules};

pub use self::{
    decide::{decide, version_of},
    draft::{Draft, Intent, Refusal, SealError, draft, may_redact, power_levels},
    incoming::{Checked, Incoming, parse},
    overlay::{Overlay, pending_id, pending_index},
    resolve::auth_chain,
    verdict::{Change, CurrentState, Hold, StateRef, Verdict},
    view::{Head, Known, RoomView, StateId, StateKey, StateMap},
};

/// Room versions that this box serves, newest last.
pub const VERSIONS: [RoomVersionId; 3] =
    [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12];

/// The rules of a room version that this box serves.
#[must_use]
pub fn rules(version: &RoomVersionId) -> Option<RoomVersionRules> {
    VERSIONS.contains(version).then(|| version.rules()).flatten()
}
