//! Finding rooms: aliases, the public directory, and what is said of a room to those who are not in it.

use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, RoomOrAliasId, UserId,
    api::client::directory::get_public_rooms_filtered,
    directory::{PublicRoomsChunk, RoomTypeFilter},
    events::{StateEventType, room::member::MembershipState},
    room::RoomType,
};
use sallyport_core::{limits::ROOMS_PAGE_MAX, room::power_levels};
use sallyport_store::{Error as StoreError, Read};

use super::{Error, access::look, summary::summary};
use crate::app::App;

const NO_SUCH_ALIAS: Error = Error::NotFound("the alias names no room on this server");

/// The room that an id or an alias names.
///
/// # Errors
/// [`Error::NotFound`] if the alias names none here.
pub fn resolve(app: &App, id: &RoomOrAliasId) -> Result<OwnedRoomId, Error> {
    match <&RoomId>::try_from(id) {
        Ok(room_id) => Ok(room_id.to_owned()),
        Err(alias) => app
            .store
            .read(|read| read.alias(alias)?.map(|(room_id, _)| room_id).ok_or(NO_SUCH_ALIAS)),
    }
}

/// The room that an alias names, and servers with members in it.
///
/// # Errors
/// [`Error::NotFound`] if it names none here.
pub fn alias(app: &App, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
    app.store.read(|read| {
        let (room_id, _) = read.alias(alias)?.ok_or(NO_SUCH_ALIAS)?;
        let room = read.room(&room_id)?.ok_or(NO_SUCH_ALIAS)?;
        let mut servers = read.servers_in_room(&room)?;
        servers.insert(app.config.server_name.clone());
        Ok((room_id, servers.into_iter().collect()))
    })
}

/// Gives a room an alias.
///
/// # Errors
/// If the alias is of another server or taken, or the user is not in the room.
pub fn create_alias(
    app: &App,
    user_id: &UserId,
    alias: OwnedRoomAliasId,
    room_id: OwnedRoomId,
) -> Result<(), Error> {
    if alias.server_name() != app.config.server_name {
        return Err(Error::Invalid("an alias ends with this server's name"));
    }
    let user_id = user_id.to_owned();
    app.store.write(move |write| {
        super::joined_room(write, &room_id, &user_id)?;
        if write.insert_alias(&alias, &room_id, &user_id)? {
            Ok(())
        } else {
            Err(Error::AliasTaken)
        }
    })
}

/// Takes an alias away: whoever made it may, and whoever may set the room's canonical alias.
///
/// # Errors
/// If there is no such alias, or the user may not.
pub fn delete_alias(app: &App, user_id: &UserId, alias: OwnedRoomAliasId) -> Result<(), Error> {
    let user_id = user_id.to_owned();
    app.store.write(move |write| {
        let (room_id, creator) = write.alias(&alias)?.ok_or(NO_SUCH_ALIAS)?;
        let kind = StateEventType::RoomCanonicalAlias;
        if creator != user_id && !may_set(write, &room_id, &user_id, kind)? {
            return Err(Error::Forbidden("you may not take this alias away"));
        }
        write.delete_alias(&alias)?;
        Ok(())
    })
}

/// The aliases of a room.
///
/// # Errors
/// If the user may not look into the room.
pub fn aliases(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
) -> Result<Vec<OwnedRoomAliasId>, Error> {
    Ok(read.aliases(&look(read, room_id, user_id)?.room)?)
}

/// Shows a room in the directory, or no longer.
///
/// # Errors
/// If the user may not set the room's canonical alias.
pub fn publish(
    app: &App,
    user_id: &UserId,
    room_id: OwnedRoomId,
    published: bool,
) -> Result<(), Error> {
    let user_id = user_id.to_owned();
    app.store.write(move |write| {
        super::joined_room(write, &room_id, &user_id)?;
        if !may_set(write, &room_id, &user_id, StateEventType::RoomCanonicalAlias)? {
            return Err(Error::Forbidden("you may not say where this room is listed"));
        }
        Ok(write.publish(&room_id, published)?)
    })
}

/// Whether the directory shows a room.
///
/// # Errors
/// [`Error::NotFound`] if the box does not have the room.
pub fn is_published(read: &Read<'_>, room_id: &RoomId) -> Result<bool, Error> {
    let room = read.room(room_id)?.ok_or(Error::NotFound("there is no such room"))?;
    Ok(read.is_published(&room)?)
}

/// Which rooms of the directory are asked for.
#[derive(Debug, Clone, Default)]
pub struct DirectoryQuery {
    /// Where the page starts.
    pub since: Option<String>,
    /// How many rooms at most.
    pub limit: Option<usize>,
    /// What their name, topic or alias contains.
    pub search: Option<String>,
    /// Their types; empty for all.
    pub types: Vec<RoomTypeFilter>,
}

/// A page of the directory.
///
/// # Errors
/// If the page's token is not one of ours.
pub fn public_rooms(
    read: &Read<'_>,
    query: &DirectoryQuery,
) -> Result<get_public_rooms_filtered::v3::Response, Error> {
    let start: usize = match &query.since {
        Some(since) => since.parse().map_err(|_| Error::Invalid("since is not a page's token"))?,
        None => 0,
    };
    let limit = query.limit.unwrap_or(ROOMS_PAGE_MAX).clamp(1, ROOMS_PAGE_MAX);
    let rooms = read.published_rooms()?;
    let total = rooms.len();
    let search = query.search.as_ref().map(|term| term.to_lowercase());
    let mut chunk: Vec<PublicRoomsChunk> = Vec::new();
    let mut next = start;
    for room_id in rooms.iter().skip(start) {
        if chunk.len() == limit {
            break;
        }
        next += 1;
        let Some(room) = read.room(room_id)? else { continue };
        let room = PublicRoomsChunk::from(summary(read, &room)?);
        let kind = RoomTypeFilter::from(room.room_type.as_ref().map(RoomType::as_str));
        if (query.types.is_empty() || query.types.contains(&kind))
            && search.as_ref().is_none_or(|term| mentions(&room, term))
        {
            chunk.push(room);
        }
    }
    let mut response = get_public_rooms_filtered::v3::Response::new();
    response.next_batch = (next < total).then(|| next.to_string());
    response.prev_batch = (start > 0).then(|| start.saturating_sub(limit).to_string());
    response.total_room_count_estimate = Some(ruma::UInt::new_saturating(total as u64));
    response.chunk = chunk;
    Ok(response)
}

fn mentions(room: &PublicRoomsChunk, term: &str) -> bool {
    let alias = room.canonical_alias.as_ref().map(|alias| alias.as_str());
    [room.name.as_deref(), room.topic.as_deref(), alias]
        .into_iter()
        .flatten()
        .any(|text| text.to_lowercase().contains(term))
}

fn may_set(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
    kind: StateEventType,
) -> Result<bool, StoreError> {
    let view = read.view(room_id)?;
    let (Some(room), Some(rules)) = (view.room(), view.rules()) else { return Ok(false) };
    let joined = read
        .membership(room, user_id)?
        .is_some_and(|place| place.membership == MembershipState::Join);
    let levels = power_levels(&view, room.state, &rules)?;
    Ok(joined && levels.is_some_and(|levels| levels.user_can_send_state(user_id, kind)))
}
