//! What a room looks like from outside, and the tree of rooms below a space.
//!
//! [Client-Server API, "Spaces"](https://spec.matrix.org/v1.16/client-server-api/#spaces).

use std::collections::BTreeSet;

use ruma::{
    OwnedRoomId, RoomId, UInt, UserId,
    api::client::space::SpaceHierarchyRoomsChunk,
    events::{
        StateEventType,
        room::{
            guest_access::GuestAccess, history_visibility::HistoryVisibility,
            join_rules::RoomJoinRulesEventContent, member::MembershipState,
        },
    },
    room::{AllowRule, JoinRule, JoinRuleSummary, RoomSummary},
};
use sallyport_core::limits::{ROOMS_PAGE_MAX, SPACE_DEPTH_MAX};
use sallyport_store::{Error as StoreError, Read, Room, StoredEvent};
use serde::de::DeserializeOwned;

use super::{Error, access::history_visibility, format::stripped};

/// What a room looks like from outside.
///
/// # Errors
/// If the database fails.
pub fn summary(read: &Read<'_>, room: &Room) -> Result<RoomSummary, StoreError> {
    let joined = read.member_count(room, &MembershipState::Join)?;
    let guests = field::<GuestAccess>(read, room, StateEventType::RoomGuestAccess, "guest_access")?;
    let history = history_visibility(read, room, room.state)?;
    let mut summary = RoomSummary::new(
        room.room_id.clone(),
        summary_of(&join_rule(read, room)?),
        guests == Some(GuestAccess::CanJoin),
        UInt::new_saturating(joined),
        history == HistoryVisibility::WorldReadable,
    );
    summary.name = field(read, room, StateEventType::RoomName, "name")?;
    summary.topic = field(read, room, StateEventType::RoomTopic, "topic")?;
    summary.avatar_url = field(read, room, StateEventType::RoomAvatar, "url")?;
    summary.canonical_alias = field(read, room, StateEventType::RoomCanonicalAlias, "alias")?;
    summary.room_type = field(read, room, StateEventType::RoomCreate, "type")?;
    summary.encryption = field(read, room, StateEventType::RoomEncryption, "algorithm")?;
    summary.room_version = Some(room.version.clone());
    Ok(summary)
}

/// What a room looks like to a user, and what they are there.
///
/// # Errors
/// [`Error::NotFound`] if the user may not know of the room.
pub fn summary_for(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
) -> Result<(RoomSummary, Option<MembershipState>), Error> {
    const NOT_FOUND: Error = Error::NotFound("there is no such room, or you may not know of it");
    let room = read.room(room_id)?.ok_or(NOT_FOUND)?;
    if !may_know(read, &room, user_id)? {
        return Err(NOT_FOUND);
    }
    let place = read.membership(&room, user_id)?;
    Ok((summary(read, &room)?, place.map(|place| place.membership)))
}

/// Which rooms below a space are asked for.
#[derive(Debug, Clone, Copy)]
pub struct TreeQuery {
    /// Rooms of the tree to leave out, because an earlier page had them.
    pub skip: usize,
    /// How many rooms at most.
    pub limit: usize,
    /// Levels below the space.
    pub depth: usize,
    /// Only rooms that the space suggests.
    pub suggested_only: bool,
}

/// The rooms below a space, parents first, and whether there are more.
///
/// # Errors
/// If the user may not know of the space.
pub fn tree(
    read: &Read<'_>,
    space: &RoomId,
    user_id: &UserId,
    query: TreeQuery,
) -> Result<(Vec<SpaceHierarchyRoomsChunk>, bool), Error> {
    let root = read.room(space)?.ok_or(Error::NotInRoom)?;
    if !may_know(read, &root, user_id)? {
        return Err(Error::NotInRoom);
    }
    let depth_max = query.depth.min(SPACE_DEPTH_MAX);
    let limit = query.limit.clamp(1, ROOMS_PAGE_MAX);
    let mut seen: BTreeSet<OwnedRoomId> = BTreeSet::from([space.to_owned()]);
    let mut stack = vec![(root, 0)];
    let (mut chunks, mut skipped) = (Vec::new(), 0);
    while let Some((room, depth)) = stack.pop() {
        if chunks.len() == limit {
            return Ok((chunks, true));
        }
        let children = children(read, &room, query.suggested_only)?;
        if skipped < query.skip {
            skipped += 1;
        } else {
            let state = children.iter().map(|(_, event)| stripped(event));
            let state = state.collect::<Result<Vec<_>, _>>()?;
            chunks.push(SpaceHierarchyRoomsChunk::new(summary(read, &room)?, state));
        }
        if depth == depth_max {
            continue;
        }
        // The last one pushed is the next one looked at.
        for (room_id, _) in children.into_iter().rev() {
            if seen.insert(room_id.clone())
                && let Some(child) = read.room(&room_id)?
                && may_know(read, &child, user_id)?
            {
                stack.push((child, depth + 1));
            }
        }
    }
    Ok((chunks, false))
}

/// Children of a space in the order of the specification: by `order`, then by age, then by id.
fn children(
    read: &Read<'_>,
    room: &Room,
    suggested_only: bool,
) -> Result<Vec<(OwnedRoomId, StoredEvent)>, StoreError> {
    let is_space = field::<String>(read, room, StateEventType::RoomCreate, "type")?;
    if is_space.as_deref() != Some("m.space") {
        return Ok(Vec::new());
    }
    let mut children = Vec::new();
    for (state_key, event_id) in read.state_of_kind(room, &StateEventType::SpaceChild)? {
        let (Ok(room_id), Some(event)) = (OwnedRoomId::try_from(state_key), read.event(&event_id)?)
        else {
            continue;
        };
        // Without a server to ask it is no longer a child.
        let via: Option<Vec<String>> = event.pdu.content_field("via");
        let suggested = event.pdu.content_field("suggested").unwrap_or(false);
        if via.is_some_and(|via| !via.is_empty()) && (suggested || !suggested_only) {
            children.push((room_id, event));
        }
    }
    children.sort_by_cached_key(|(room_id, event)| {
        let order: Option<String> = event.pdu.content_field("order");
        let order = order.filter(|order| {
            order.len() <= 50 && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
        });
        (order.is_none(), order, event.pdu.origin_server_ts(), room_id.clone())
    });
    Ok(children)
}

/// Whether a user may know what a room looks like: it is open to them in one way or another.
fn may_know(read: &Read<'_>, room: &Room, user_id: &UserId) -> Result<bool, StoreError> {
    let place = read.membership(room, user_id)?.map(|place| place.membership);
    match place {
        Some(MembershipState::Join | MembershipState::Invite) => return Ok(true),
        Some(MembershipState::Ban) => return Ok(false),
        _ => {}
    }
    if history_visibility(read, room, room.state)? == HistoryVisibility::WorldReadable {
        return Ok(true);
    }
    match join_rule(read, room)? {
        JoinRule::Public | JoinRule::Knock | JoinRule::KnockRestricted(_) => Ok(true),
        JoinRule::Restricted(restricted) => {
            for rule in &restricted.allow {
                if let AllowRule::RoomMembership(other) = rule
                    && let Some(other) = read.room(&other.room_id)?
                    && read
                        .membership(&other, user_id)?
                        .is_some_and(|place| place.membership == MembershipState::Join)
                {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

fn join_rule(read: &Read<'_>, room: &Room) -> Result<JoinRule, StoreError> {
    let event = read.state_event(room, &StateEventType::RoomJoinRules, "")?;
    let content = event.and_then(|event| {
        serde_json::from_str::<RoomJoinRulesEventContent>(event.pdu.content().get()).ok()
    });
    Ok(content.map_or(JoinRule::Invite, |content| content.join_rule))
}

fn summary_of(rule: &JoinRule) -> JoinRuleSummary {
    JoinRuleSummary::from(rule.clone())
}

/// A field of the content of state with an empty key, if there is one of its type.
pub(super) fn field<T: DeserializeOwned>(
    read: &Read<'_>,
    room: &Room,
    kind: StateEventType,
    name: &str,
) -> Result<Option<T>, StoreError> {
    let event = read.state_event(room, &kind, "")?;
    Ok(event.and_then(|event| event.pdu.content_field(name)))
}
