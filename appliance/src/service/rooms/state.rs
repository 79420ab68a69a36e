//! Reading and setting the state of rooms.

use ruma::{
    CanonicalJsonObject, OwnedRoomAliasId, RoomId, UserId,
    events::{
        StateEventType, TimelineEventType,
        room::{canonical_alias::RoomCanonicalAliasEventContent, member::MembershipState},
    },
};
use sallyport_core::{room::Intent, time::Millis};
use sallyport_store::{Error as StoreError, Membership, Read, Room, StoredEvent};

use super::{
    Error,
    access::{Glimpse, look},
    membership::check_reachable,
    send::Wish,
};
use crate::app::App;

/// Parses the content of an event that a client wants to send.
///
/// # Errors
/// [`Error::BadJson`] if it is not an object in canonical JSON.
pub fn parse_content(json: &str) -> Result<CanonicalJsonObject, Error> {
    serde_json::from_str(json).map_err(|error| Error::BadJson(error.to_string()))
}

/// A checked wish to set state.
///
/// # Errors
/// If the event is one that only the server makes, or names aliases that are not the room's.
pub fn wish(
    app: &App,
    room_id: &RoomId,
    user_id: &UserId,
    kind: StateEventType,
    state_key: &str,
    content: CanonicalJsonObject,
    now: Millis,
) -> Result<Wish, Error> {
    if kind == StateEventType::RoomCreate {
        return Err(Error::Forbidden("a room has one create event only"));
    }
    if kind == StateEventType::RoomCanonicalAlias {
        check_aliases(app, room_id, &content)?;
    }
    if kind == StateEventType::RoomTombstone
        && content.get("replacement_room").and_then(|room| room.as_str()) == Some(room_id.as_str())
    {
        return Err(Error::Invalid("a room cannot replace itself"));
    }
    if kind == StateEventType::RoomMember
        && content.get("membership").and_then(|membership| membership.as_str()) == Some("invite")
        && let Ok(target) = <&UserId>::try_from(state_key)
    {
        check_reachable(app, target)?;
    }
    let intent = Intent::state(user_id, kind, state_key, content, now);
    Ok(Wish::new(room_id.to_owned(), intent))
}

/// Every alias that is newly announced must name the room.
fn check_aliases(app: &App, room_id: &RoomId, content: &CanonicalJsonObject) -> Result<(), Error> {
    let new = aliases_of(content)?;
    app.store.read(|read| {
        let room = read.room(room_id)?.ok_or(Error::NotInRoom)?;
        let current = read.state_event(&room, &StateEventType::RoomCanonicalAlias, "")?;
        let known = current
            .and_then(|event| parse_content(event.pdu.content().get()).ok())
            .and_then(|content| aliases_of(&content).ok())
            .unwrap_or_default();
        for alias in new {
            if known.contains(&alias) {
                continue;
            }
            match read.alias(&alias)? {
                Some((named, _)) if named == *room_id => {}
                _ => return Err(Error::BadAlias(alias)),
            }
        }
        Ok(())
    })
}

fn aliases_of(content: &CanonicalJsonObject) -> Result<Vec<OwnedRoomAliasId>, Error> {
    let json = ruma::CanonicalJsonValue::Object(content.clone()).to_string();
    let content: RoomCanonicalAliasEventContent =
        serde_json::from_str(&json).map_err(|_| Error::Invalid("an alias is not well-formed"))?;
    Ok(content.alias.into_iter().chain(content.alt_aliases).collect())
}

/// All state events that a user may see of a room.
///
/// # Errors
/// [`Error::NotInRoom`] if the user may not look into it.
pub fn all(read: &Read<'_>, glimpse: &Glimpse) -> Result<Vec<StoredEvent>, StoreError> {
    if glimpse.state == glimpse.room.state {
        return read.current_state(&glimpse.room);
    }
    let map = read.state_map(glimpse.state)?;
    read.events(map.values().cloned())
}

/// One state event that a user may see.
///
/// # Errors
/// If the user may not look into the room, or there is no such event.
pub fn one(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
    kind: &StateEventType,
    state_key: &str,
) -> Result<(Room, StoredEvent), Error> {
    let glimpse = look(read, room_id, user_id)?;
    let event = read
        .state_event_at(&glimpse.room, glimpse.state, kind, state_key)?
        .ok_or(Error::NotFound("the room has no such state"))?;
    Ok((glimpse.room, event))
}

/// Which member events are asked for.
#[derive(Debug, Clone, Default)]
pub struct MemberQuery {
    /// Those of a position of the timeline, instead of the present.
    pub at: Option<i64>,
    /// Only this membership.
    pub membership: Option<MembershipState>,
    /// Not this membership.
    pub not_membership: Option<MembershipState>,
}

/// Member events that a user may see of a room.
///
/// # Errors
/// [`Error::NotInRoom`] if the user may not look into it.
pub fn members(
    read: &Read<'_>,
    glimpse: &Glimpse,
    query: &MemberQuery,
) -> Result<Vec<StoredEvent>, StoreError> {
    let at = query.at.map(|at| at.min(glimpse.end()));
    let state = match at {
        Some(at) => match read.state_at(&glimpse.room, at)? {
            Some(state) => state,
            None => return Ok(Vec::new()),
        },
        None => glimpse.state,
    };
    let events = if state == glimpse.room.state {
        let ids = read.state_of_kind(&glimpse.room, &StateEventType::RoomMember)?;
        read.events(ids.into_iter().map(|(_, event_id)| event_id))?
    } else {
        let map = read.state_map(state)?;
        let members = map.iter().filter(|((kind, _), _)| *kind == StateEventType::RoomMember);
        read.events(members.map(|(_, event_id)| event_id.clone()))?
    };
    let wanted = |event: &StoredEvent| {
        let membership: Option<MembershipState> = event.pdu.content_field("membership");
        query.membership.as_ref().is_none_or(|wanted| membership.as_ref() == Some(wanted))
            && query.not_membership.as_ref().is_none_or(|not| membership.as_ref() != Some(not))
    };
    Ok(events.into_iter().filter(wanted).collect())
}

/// The joined members of a room that the user is joined to, each with the event that says so.
///
/// # Errors
/// [`Error::NotInRoom`] if the user is not.
pub fn joined_members(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
) -> Result<Vec<(Membership, StoredEvent)>, Error> {
    let room = super::joined_room(read, room_id, user_id)?;
    let mut members = Vec::new();
    for member in read.members(&room, &MembershipState::Join)? {
        if let Some(event) = read.event(&member.event_id)? {
            members.push((member, event));
        }
    }
    Ok(members)
}

/// Whether an event type is one that clients may send as a message.
///
/// # Errors
/// If it is not.
pub fn check_message_kind(kind: &TimelineEventType) -> Result<(), Error> {
    match kind {
        TimelineEventType::RoomCreate | TimelineEventType::RoomMember => {
            Err(Error::Forbidden("this event sets state: send it with a state key"))
        }
        _ => Ok(()),
    }
}
