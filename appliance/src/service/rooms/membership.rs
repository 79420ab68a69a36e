//! Invites, joins, leaves, kicks, bans and knocks.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, RoomId, UserId,
    events::{
        StateEventType,
        room::{join_rules::RoomJoinRulesEventContent, member::MembershipState},
    },
    room::{AllowRule, JoinRule},
};
use sallyport_core::{
    limits::REASON_BYTES_MAX,
    room::{Intent, Refusal, power_levels},
    time::Millis,
};
use sallyport_store::{Error as StoreError, Membership, Read, Room};

use super::{
    Error,
    send::{Wish, send},
    succession,
};
use crate::{app::App, service::peers};

/// A change of somebody's membership.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// Who wants it.
    pub sender: &'a UserId,
    /// Whose membership changes.
    pub target: &'a UserId,
    /// Why, as the sender says.
    pub reason: Option<&'a str>,
    /// When.
    pub now: Millis,
}

/// Invites a user.
///
/// # Errors
/// If the sender may not, or the user is on a server that this box is not paired with.
pub fn invite(app: &App, change: Change<'_>) -> Result<(), Error> {
    check_reachable(app, change.target)?;
    let content = app.store.read(|read| {
        super::joined_room(read, change.room_id, change.sender)?;
        content(read, change.target, MembershipState::Invite, change.reason)
    })?;
    set(app, change, content)
}

/// Joins a room: by invite, because it is public, or through membership of another room.
///
/// A room of another enclave is here once its invite has been carried in: the join is an event
/// like any other, and is carried back later.
///
/// # Errors
/// If the room is not known here, or its join rules refuse.
pub fn join(app: &App, change: Change<'_>) -> Result<(), Error> {
    let content = app.store.read(|read| {
        let room = read.room(change.room_id)?.ok_or(Error::NotFound(NO_SUCH_ROOM))?;
        let place = read.membership(&room, change.target)?.map(|place| place.membership);
        if place == Some(MembershipState::Join) {
            return Ok(None);
        }
        let mut content = content(read, change.target, MembershipState::Join, change.reason)?;
        if place != Some(MembershipState::Invite)
            && let Some(via) = authorising_user(read, &room, change.target)?
        {
            let via = CanonicalJsonValue::String(via.to_string());
            content.insert("join_authorised_via_users_server".to_owned(), via);
        }
        Ok::<_, Error>(Some(content))
    })?;
    let Some(content) = content else { return Ok(()) };
    set(app, change, content)?;
    succession::follow(app, change.target, change.room_id);
    Ok(())
}

/// Asks to be invited.
///
/// # Errors
/// If the room is not known here, or cannot be knocked on.
pub fn knock(app: &App, change: Change<'_>) -> Result<(), Error> {
    let content = app.store.read(|read| {
        read.room(change.room_id)?.ok_or(Error::NotFound(NO_SUCH_ROOM))?;
        content(read, change.target, MembershipState::Knock, change.reason)
    })?;
    set(app, change, content)
}

/// Leaves a room, or rejects an invite to it.
///
/// # Errors
/// If the user has no place in the room.
pub fn leave(app: &App, change: Change<'_>) -> Result<(), Error> {
    require(app, change, |membership| match membership {
        Some(MembershipState::Join | MembershipState::Invite | MembershipState::Knock) => Ok(()),
        _ => Err(Error::NotInRoom),
    })?;
    set(app, change, bare(MembershipState::Leave, change.reason)?)
}

/// Makes another user leave.
///
/// # Errors
/// If the sender may not, or the user has no place in the room.
pub fn kick(app: &App, change: Change<'_>) -> Result<(), Error> {
    require(app, change, |membership| match membership {
        Some(MembershipState::Join | MembershipState::Invite | MembershipState::Knock) => Ok(()),
        _ => Err(Error::Forbidden("the user is not in the room")),
    })?;
    set(app, change, bare(MembershipState::Leave, change.reason)?)
}

/// Bans a user.
///
/// # Errors
/// If the sender may not.
pub fn ban(app: &App, change: Change<'_>) -> Result<(), Error> {
    require(app, change, |_| Ok(()))?;
    set(app, change, bare(MembershipState::Ban, change.reason)?)
}

/// Lifts a ban.
///
/// # Errors
/// If the sender may not, or the user is not banned.
pub fn unban(app: &App, change: Change<'_>) -> Result<(), Error> {
    require(app, change, |membership| match membership {
        Some(MembershipState::Ban) => Ok(()),
        _ => Err(Error::Forbidden("the user is not banned")),
    })?;
    set(app, change, bare(MembershipState::Leave, change.reason)?)
}

/// Takes a room that the user has left out of their sight.
///
/// # Errors
/// If the user is still in the room.
pub fn forget(app: &App, room_id: &RoomId, user_id: &UserId) -> Result<(), Error> {
    let (room_id, user_id) = (room_id.to_owned(), user_id.to_owned());
    app.store.write(move |write| {
        let room = write.room(&room_id)?.ok_or(Error::NotInRoom)?;
        match write.membership(&room, &user_id)?.map(|place| place.membership) {
            Some(MembershipState::Leave | MembershipState::Ban) => {
                Ok(write.forget(&room, &user_id)?)
            }
            Some(_) => Err(Error::Invalid("leave the room before you forget it")),
            None => Err(Error::NotInRoom),
        }
    })
}

/// Shows a user's new name and picture in all rooms that they are joined to.
///
/// # Errors
/// If the database fails. Rooms whose rules do not let the user do it keep the old ones.
pub fn show_profile(app: &App, user_id: &UserId, now: Millis) -> Result<(), Error> {
    let rooms = app.store.read(|read| joined_rooms(read, user_id))?;
    for room_id in rooms {
        let content = app.store.read(|read| content(read, user_id, MembershipState::Join, None))?;
        let change =
            Change { room_id: &room_id, sender: user_id, target: user_id, reason: None, now };
        match set(app, change, content) {
            Ok(()) => {}
            Err(Error::Store(error)) => return Err(error.into()),
            Err(error) => {
                log::debug!(room_id:% = room_id, error:% = error; "a room keeps an old profile");
            }
        }
    }
    Ok(())
}

/// The content of a member event, with what the user calls themselves.
///
/// # Errors
/// If the reason is too long.
pub fn content(
    read: &Read<'_>,
    user_id: &UserId,
    membership: MembershipState,
    reason: Option<&str>,
) -> Result<CanonicalJsonObject, Error> {
    let mut content = bare(membership, reason)?;
    let profile = read.profile(user_id)?;
    for field in ["displayname", "avatar_url"] {
        let value = profile.get(field).and_then(|json| serde_json::from_str::<String>(json).ok());
        if let Some(value) = value {
            content.insert(field.to_owned(), CanonicalJsonValue::String(value));
        }
    }
    Ok(content)
}

/// The rooms that a user is joined to.
///
/// # Errors
/// If the database fails.
pub fn joined_rooms(
    read: &Read<'_>,
    user_id: &UserId,
) -> Result<Vec<ruma::OwnedRoomId>, StoreError> {
    let places = read.memberships_of(user_id)?;
    let joined = places.into_iter().filter(|place| place.membership == MembershipState::Join);
    Ok(joined.map(|place| place.room_id).collect())
}

/// Whether an invite can ever reach a user: they are here, or on a server that this box is paired with.
///
/// # Errors
/// [`Error::NotAPeer`] if not.
pub fn check_reachable(app: &App, user_id: &UserId) -> Result<(), Error> {
    let server = user_id.server_name();
    if server == app.config.server_name || peers::is_peer(&app.store, server)? {
        Ok(())
    } else {
        Err(Error::NotAPeer(user_id.to_owned()))
    }
}

const NO_SUCH_ROOM: &str = "this server does not have the room";

fn bare(membership: MembershipState, reason: Option<&str>) -> Result<CanonicalJsonObject, Error> {
    let mut content = CanonicalJsonObject::new();
    let membership = CanonicalJsonValue::String(membership.to_string());
    content.insert("membership".to_owned(), membership);
    if let Some(reason) = reason {
        if reason.len() > REASON_BYTES_MAX {
            return Err(Error::Invalid("the reason is too long"));
        }
        content.insert("reason".to_owned(), CanonicalJsonValue::String(reason.to_owned()));
    }
    Ok(content)
}

fn set(app: &App, change: Change<'_>, content: CanonicalJsonObject) -> Result<(), Error> {
    let intent = Intent::state(
        change.sender,
        StateEventType::RoomMember,
        change.target.as_str(),
        content,
        change.now,
    );
    send(app, Wish::new(change.room_id.to_owned(), intent)).map(|_| ())
}

/// Checks what the target is now. The rules of the room look at who may change it.
fn require(
    app: &App,
    change: Change<'_>,
    allowed: impl FnOnce(Option<&MembershipState>) -> Result<(), Error>,
) -> Result<(), Error> {
    app.store.read(|read| {
        let room = read.room(change.room_id)?.ok_or(Error::NotInRoom)?;
        if change.sender != change.target {
            super::joined_room(read, change.room_id, change.sender)?;
        }
        let place: Option<Membership> = read.membership(&room, change.target)?;
        allowed(place.as_ref().map(|place| &place.membership))
    })
}

/// A local member who vouches for a user that is joined to one of the rooms that a restricted room lets in.
fn authorising_user(
    read: &Read<'_>,
    room: &Room,
    user_id: &UserId,
) -> Result<Option<OwnedUserId>, Error> {
    let rules = read.state_event(room, &StateEventType::RoomJoinRules, "")?;
    let rules = rules.and_then(|event| {
        serde_json::from_str::<RoomJoinRulesEventContent>(event.pdu.content().get()).ok()
    });
    let allow = match rules.map(|rules| rules.join_rule) {
        Some(JoinRule::Restricted(restricted) | JoinRule::KnockRestricted(restricted)) => {
            restricted.allow
        }
        _ => return Ok(None),
    };
    if !joined_to_any(read, user_id, &allow)? {
        let message = "you are in none of the rooms whose members may join".to_owned();
        return Err(Error::Refused(Refusal::Forbidden(message)));
    }
    let view = read.view(&room.room_id)?;
    let Some(rules) = view.rules() else { return Ok(None) };
    let Some(levels) = power_levels(&view, room.state, &rules)? else { return Ok(None) };
    for member in read.members(room, &MembershipState::Join)? {
        if member.user_id.server_name() == user_id.server_name()
            && levels.user_can_invite(&member.user_id)
        {
            return Ok(Some(member.user_id));
        }
    }
    Err(Error::Refused(Refusal::Forbidden(
        "nobody on this server may let you in: ask to be invited".to_owned(),
    )))
}

fn joined_to_any(
    read: &Read<'_>,
    user_id: &UserId,
    allow: &[AllowRule],
) -> Result<bool, sallyport_store::Error> {
    for rule in allow {
        if let AllowRule::RoomMembership(other) = rule
            && let Some(room) = read.room(&other.room_id)?
            && read
                .membership(&room, user_id)?
                .is_some_and(|place| place.membership == MembershipState::Join)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
