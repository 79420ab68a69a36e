//! [Reporting content](https://spec.matrix.org/v1.19/client-server-api/#reporting-content): a line in the log, for the people who run the box.

use std::sync::Arc;

use ruma::api::client::{
    reporting::report_user::v3 as report_user,
    room::{report_content::v3 as report_event, report_room::v3 as report_room},
};
use sallyport_core::limits::REASON_BYTES_MAX;

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{self, timeline},
        sessions::Identity,
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(event), route(room), route(user)]
}

async fn event(
    app: Arc<App>,
    identity: Identity,
    request: report_event::Request,
) -> Result<report_event::Response, ApiError> {
    let reason = bounded(request.reason.as_deref().unwrap_or_default())?.to_owned();
    let (room_id, event_id, user_id) = (request.room_id, request.event_id, identity.user_id);
    app.run(move |app| {
        let read = |read: &sallyport_store::Read<'_>| {
            rooms::joined_room(read, &room_id, &user_id)?;
            timeline::event(read, &room_id, &user_id, &event_id)
        };
        // To whoever is not in the room there is no such event.
        let (_, event) = app.store.read(read).map_err(|error| match error {
            rooms::Error::NotInRoom => rooms::Error::NotFound("there is no such event"),
            error => error,
        })?;
        log::warn!(
            target: "report", user_id:% = user_id, room_id:% = room_id, event_id:% = event_id,
            sender:% = event.pdu.sender(), reason:? = reason; "a member reports an event"
        );
        Ok::<_, rooms::Error>(report_event::Response::new())
    })
    .await
}

async fn room(
    app: Arc<App>,
    identity: Identity,
    request: report_room::Request,
) -> Result<report_room::Response, ApiError> {
    let (room_id, user_id) = (request.room_id, identity.user_id);
    let reason = bounded(&request.reason)?.to_owned();
    app.run(move |app| {
        const UNKNOWN: rooms::Error = rooms::Error::NotFound("there is no such room");
        app.store.read(|read| read.room(&room_id))?.ok_or(UNKNOWN)?;
        log::warn!(
            target: "report", user_id:% = user_id, room_id:% = room_id, reason:? = reason;
            "a member reports a room"
        );
        Ok::<_, rooms::Error>(report_room::Response::new())
    })
    .await
}

/// Answers the same whether there is such a user or not, as the specification asks.
async fn user(
    _: Arc<App>,
    identity: Identity,
    request: report_user::Request,
) -> Result<report_user::Response, ApiError> {
    let reason = bounded(&request.reason)?;
    log::warn!(
        target: "report", user_id:% = identity.user_id, reported:% = request.user_id,
        reason:? = reason; "a member reports a user"
    );
    Ok(report_user::Response::new())
}

fn bounded(reason: &str) -> Result<&str, ApiError> {
    if reason.len() > REASON_BYTES_MAX {
        return Err(ApiError::invalid_param("the reason is too long"));
    }
    Ok(reason)
}
