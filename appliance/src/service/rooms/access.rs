//! What a user may see of a room: which state, and which events.

use std::collections::BTreeMap;

use ruma::{
    OwnedUserId, RoomId, UserId,
    events::{
        StateEventType, TimelineEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
};
use sallyport_core::room::{
    StateId,
    visibility::{Moment, may_see, shows_all_to_members},
};
use sallyport_store::{Membership, Read, Room, StoredEvent};

use super::Error;
use crate::service::ignored::Ignored;

/// Member events of a user that are looked at to find when they were last joined.
const MEMBER_EVENTS_READ: usize = 50;
/// Changes of a room's history visibility that are looked at before each event is judged on its own.
const VISIBILITY_CHANGES_READ: usize = 8;

/// A room that a user may look into.
#[derive(Debug, Clone)]
pub struct Glimpse {
    /// The room.
    pub room: Room,
    /// The user's place there, if they ever had one.
    pub place: Option<Membership>,
    /// The state that the user may see: the current one, or that of when they left.
    pub state: StateId,
}

impl Glimpse {
    /// Whether the user is joined.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.membership == MembershipState::Join)
    }

    /// The last position of the timeline that the user may see of.
    #[must_use]
    pub fn end(&self) -> i64 {
        match &self.place {
            Some(place) if self.state != self.room.state => place.position,
            _ => i64::MAX - 1,
        }
    }
}

/// Looks into a room: members see it as it is, former members as it was when they left, others
/// only a world-readable one.
///
/// # Errors
/// [`Error::NotInRoom`] if the user may not.
pub fn look(read: &Read<'_>, room_id: &RoomId, user_id: &UserId) -> Result<Glimpse, Error> {
    let room = read.room(room_id)?.ok_or(Error::NotInRoom)?;
    let place = read.membership(&room, user_id)?.filter(|place| !place.forgotten);
    let state = match place.as_ref().map(|place| &place.membership) {
        Some(MembershipState::Join) => room.state,
        _ if history_visibility(read, &room, room.state)? == HistoryVisibility::WorldReadable => {
            room.state
        }
        Some(MembershipState::Leave | MembershipState::Ban)
            if last_joined(read, &room, user_id)?.is_some() =>
        {
            let left = place.as_ref().map_or(i64::MIN, |place| place.position);
            read.state_at(&room, left)?.ok_or(Error::NotInRoom)?
        }
        _ => return Err(Error::NotInRoom),
    };
    Ok(Glimpse { room, place, state })
}

/// The history visibility in a state of a room.
///
/// # Errors
/// If the database fails.
pub fn history_visibility(
    read: &Read<'_>,
    room: &Room,
    state: StateId,
) -> Result<HistoryVisibility, sallyport_store::Error> {
    let event = read.state_event_at(room, state, &StateEventType::RoomHistoryVisibility, "")?;
    Ok(event.map_or(HistoryVisibility::Shared, |event| history_of(&event)))
}

/// Judges events of one room for one user.
pub struct Eyes<'r, 'c> {
    read: &'r Read<'c>,
    room: &'r Room,
    user_id: OwnedUserId,
    /// The newest position at which the user was joined.
    last_joined: Option<i64>,
    /// Whether nothing in the room was ever hidden from its members, and the user is one.
    sees_all: bool,
    ignored: Ignored,
    moments: BTreeMap<StateId, Moment>,
}

impl<'r, 'c> Eyes<'r, 'c> {
    /// Prepares to judge.
    ///
    /// # Errors
    /// If the database fails.
    pub fn new(
        read: &'r Read<'c>,
        room: &'r Room,
        user_id: &UserId,
    ) -> Result<Self, sallyport_store::Error> {
        let joined = read
            .membership(room, user_id)?
            .is_some_and(|place| place.membership == MembershipState::Join);
        let last_joined = if joined { Some(i64::MAX) } else { last_joined(read, room, user_id)? };
        let sees_all = joined && never_hid_from_members(read, room)?;
        let ignored = Ignored::by(read, user_id)?;
        let user_id = user_id.to_owned();
        let moments = BTreeMap::new();
        Ok(Self { read, room, user_id, last_joined, sees_all, ignored, moments })
    }

    /// Whether the user may see an event.
    ///
    /// # Errors
    /// If the database fails.
    pub fn see(&mut self, event: &StoredEvent) -> Result<bool, sallyport_store::Error> {
        if self.ignored.hides(event) {
            return Ok(false);
        }
        if self.sees_all {
            return Ok(true);
        }
        let position = event.position.unwrap_or(i64::MIN);
        let joined_after = self.last_joined.is_some_and(|joined| joined > position);
        if may_see(&self.moment(event.state_before)?, joined_after) {
            return Ok(true);
        }
        match (event.pdu.kind(), event.pdu.state_key()) {
            (TimelineEventType::RoomHistoryVisibility, Some("")) => {
                Ok(may_see(&self.moment(event.state_after)?, joined_after))
            }
            // What becomes of them is told to everybody, also who rejects an invite or is banned.
            (TimelineEventType::RoomMember, Some(member)) => Ok(member == self.user_id.as_str()),
            _ => Ok(false),
        }
    }

    /// Leaves out the events that the user may not see.
    ///
    /// # Errors
    /// If the database fails.
    pub fn filter(
        &mut self,
        events: Vec<StoredEvent>,
    ) -> Result<Vec<StoredEvent>, sallyport_store::Error> {
        let mut seen = Vec::with_capacity(events.len());
        for event in events {
            if self.see(&event)? {
                seen.push(event);
            }
        }
        Ok(seen)
    }

    fn moment(&mut self, state: Option<StateId>) -> Result<Moment, sallyport_store::Error> {
        let Some(state) = state else {
            // History from before the room was taken over: its states are not known here, so that
            // the room's current visibility decides, as for someone who was not there.
            let history = history_visibility(self.read, self.room, self.room.state)?;
            return Ok(Moment { history, membership: MembershipState::Leave });
        };
        if let Some(moment) = self.moments.get(&state) {
            return Ok(moment.clone());
        }
        let member = self.read.state_event_at(
            self.room,
            state,
            &StateEventType::RoomMember,
            self.user_id.as_str(),
        )?;
        let membership = member.and_then(|event| event.pdu.content_field("membership"));
        let moment = Moment {
            history: history_visibility(self.read, self.room, state)?,
            membership: membership.unwrap_or(MembershipState::Leave),
        };
        self.moments.insert(state, moment.clone());
        Ok(moment)
    }
}

/// The position at which a user was last joined to a room, if they ever were.
///
/// # Errors
/// If the database fails.
pub fn last_joined(
    read: &Read<'_>,
    room: &Room,
    user_id: &UserId,
) -> Result<Option<i64>, sallyport_store::Error> {
    let events = read.state_history(
        room,
        &StateEventType::RoomMember,
        user_id.as_str(),
        i64::MAX,
        MEMBER_EVENTS_READ,
    )?;
    let joined = events.iter().find(|event| {
        event.pdu.content_field::<MembershipState>("membership") == Some(MembershipState::Join)
    });
    Ok(joined.and_then(|event| event.position))
}

fn never_hid_from_members(read: &Read<'_>, room: &Room) -> Result<bool, sallyport_store::Error> {
    let kind = StateEventType::RoomHistoryVisibility;
    let changes = read.state_history(room, &kind, "", i64::MAX, VISIBILITY_CHANGES_READ)?;
    Ok(changes.len() < VISIBILITY_CHANGES_READ
        && changes.iter().all(|event| shows_all_to_members(&history_of(event)))
        && shows_all_to_members(&history_visibility(read, room, room.state)?))
}

fn history_of(event: &StoredEvent) -> HistoryVisibility {
    event.pdu.content_field("history_visibility").unwrap_or(HistoryVisibility::Shared)
}
