//! [Reading a room's state, members and single events](https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room).

use std::{collections::BTreeMap, sync::Arc};

use ruma::{
    OwnedRoomId,
    api::client::{
        membership::{
            get_member_events::v3 as get_members,
            joined_members::v3::{self as joined_members, RoomMember},
        },
        peeking::get_current_state::v3 as initial_sync,
        room::get_room_event::v3 as get_event,
        state::{
            get_state_event_for_key::v3::{self as get_state_event, StateEventFormat},
            get_state_events::v3 as get_state,
        },
    },
};
use sallyport_store::{Read, Room};
use serde_json::value::RawValue;

use super::tokens::position_of;
use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{
            self,
            access::look,
            format::{Format, MembershipThen},
            state::{self, MemberQuery},
            timeline,
        },
        sessions::Identity,
    },
};
use sallyport_core::time::Millis;

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(event),
        route(joined),
        route(members),
        route(all_state),
        route(one_state).last_argument_optional(),
        route(peek),
    ]
}

/// Writes events of one room that each name it.
pub(super) fn format<'r, 'c>(
    read: &'r Read<'c>,
    room: &'r Room,
    identity: &'r Identity,
    now: Millis,
) -> Format<'r, 'c> {
    let Identity { user_id, device_id } = identity;
    let membership = MembershipThen::default();
    Format { read, room, user_id, device_id, now, names_room: true, membership }
}

async fn event(
    app: Arc<App>,
    identity: Identity,
    request: get_event::Request,
) -> Result<get_event::Response, ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        app.store.read(|read| {
            let get_event::Request { room_id, event_id, .. } = &request;
            let (room, event) = timeline::event(read, room_id, &identity.user_id, event_id)?;
            let event = format(read, &room, &identity, now).event(&event)?;
            Ok::<_, rooms::Error>(get_event::Response::new(event))
        })
    })
    .await
}

async fn joined(
    app: Arc<App>,
    identity: Identity,
    request: joined_members::Request,
) -> Result<joined_members::Response, ApiError> {
    let members = app
        .run(move |app| {
            app.store.read(|read| state::joined_members(read, &request.room_id, &identity.user_id))
        })
        .await?;
    let joined: BTreeMap<_, _> = members
        .into_iter()
        .map(|(place, event)| {
            let mut member = RoomMember::new();
            member.display_name = event.pdu.content_field("displayname");
            member.avatar_url = event.pdu.content_field("avatar_url");
            (place.user_id, member)
        })
        .collect();
    Ok(joined_members::Response::new(joined))
}

async fn members(
    app: Arc<App>,
    identity: Identity,
    request: get_members::Request,
) -> Result<get_members::Response, ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        app.store.read(|read| {
            let get_members::Request { room_id, at, membership, not_membership, .. } = request;
            let at = position_of(read, at.as_deref())?;
            let glimpse = look(read, &room_id, &identity.user_id)?;
            let query = MemberQuery { at, membership, not_membership };
            let events = state::members(read, &glimpse, &query)?;
            let chunk = format(read, &glimpse.room, &identity, now).state(&events)?;
            Ok::<_, rooms::Error>(get_members::Response::new(chunk))
        })
    })
    .await
}

async fn all_state(
    app: Arc<App>,
    identity: Identity,
    request: get_state::Request,
) -> Result<get_state::Response, ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        app.store.read(|read| {
            let glimpse = look(read, &request.room_id, &identity.user_id)?;
            let events = state::all(read, &glimpse)?;
            let state = format(read, &glimpse.room, &identity, now).state(&events)?;
            Ok::<_, rooms::Error>(get_state::Response::new(state))
        })
    })
    .await
}

async fn one_state(
    app: Arc<App>,
    identity: Identity,
    request: get_state_event::Request,
) -> Result<get_state_event::Response, ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        app.store.read(|read| {
            let get_state_event::Request { room_id, event_type, state_key, format: wanted, .. } =
                &request;
            let user_id = &identity.user_id;
            let (room, event) = state::one(read, room_id, user_id, event_type, state_key)?;
            let json: Box<RawValue> = match wanted {
                StateEventFormat::Event => format(read, &room, &identity, now)
                    .event::<ruma::events::AnyStateEvent>(&event)?
                    .into_json(),
                _ => event.pdu.content().to_owned(),
            };
            Ok::<_, rooms::Error>(get_state_event::Response::new(json))
        })
    })
    .await
}

/// Peeking is not offered: clients ask before they offer to join, and take the refusal as "not yet".
async fn peek(
    _: Arc<App>,
    _: Identity,
    request: initial_sync::Request,
) -> Result<initial_sync::Response, ApiError> {
    let _: OwnedRoomId = request.room_id;
    Err(ApiError::forbidden("join the room to see what is in it"))
}
