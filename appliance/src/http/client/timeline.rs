//! [Paging through a room's events](https://spec.matrix.org/v1.19/client-server-api/#syncing),
//! [event context](https://spec.matrix.org/v1.19/client-server-api/#event-context) and
//! [events by time](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event).

use std::sync::Arc;

use ruma::{
    UInt,
    api::{
        Direction as WireDirection,
        client::{
            context::get_context::v3 as get_context,
            message::get_message_events::v3 as get_messages,
            room::get_event_by_timestamp::v1 as get_event_by_timestamp,
        },
    },
};
use sallyport_core::limits::PAGE_EVENTS_MAX;
use sallyport_store::Direction;

use super::{
    state::format,
    tokens::{page_token, position_of},
};
use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{
            self,
            access::look,
            timeline::{self, PageQuery},
        },
        sessions::Identity,
        sync::filter::{is_lazy, passes},
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(messages), route(context), route(event_near)]
}

async fn messages(
    app: Arc<App>,
    identity: Identity,
    request: get_messages::Request,
) -> Result<get_messages::Response, ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        app.store.read(|read| {
            let user_id = &identity.user_id;
            let glimpse = look(read, &request.room_id, user_id)?;
            let query = PageQuery {
                from: position_of(read, request.from.as_deref())?,
                to: position_of(read, request.to.as_deref())?,
                direction: direction(request.dir),
                limit: limit(request.limit),
                filter: &request.filter,
            };
            let page = timeline::page(read, &glimpse, user_id, &query)?;
            let format = format(read, &glimpse.room, &identity, now);
            let mut response = get_messages::Response::new();
            // The end that nobody named is the end of what there is now.
            let start = if page.start == i64::MAX - 1 { read.position()? } else { page.start };
            response.start = page_token(read, start)?;
            response.end = page.end.map(|end| page_token(read, end)).transpose()?;
            response.chunk = format.events(&page.events)?;
            if is_lazy(&request.filter) {
                let members = timeline::speakers(read, &glimpse, &page.events)?;
                response.state = format.state(&members)?;
            }
            Ok::<_, rooms::Error>(response)
        })
    })
    .await
}

async fn context(
    app: Arc<App>,
    identity: Identity,
    request: get_context::Request,
) -> Result<get_context::Response, ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        app.store.read(|read| {
            let found = timeline::context(
                read,
                &request.room_id,
                &identity.user_id,
                &request.event_id,
                usize::try_from(u64::from(request.limit)).unwrap_or(PAGE_EVENTS_MAX),
                &request.filter,
            )?;
            let format = format(read, &found.room, &identity, now);
            let state: Vec<_> =
                found.state.into_iter().filter(|event| passes(&request.filter, event)).collect();
            let mut response = get_context::Response::new();
            let at = found.event.position.unwrap_or_default();
            let start = found.before.end.unwrap_or_else(|| first(&found.before.events, at));
            let end = found.after.end.unwrap_or_else(|| last(&found.after.events, at));
            response.start = Some(page_token(read, start)?);
            response.end = Some(page_token(read, end)?);
            response.events_before = format.events(&found.before.events)?;
            response.event = Some(format.event(&found.event)?);
            response.events_after = format.events(&found.after.events)?;
            response.state = format.state(&state)?;
            Ok::<_, rooms::Error>(response)
        })
    })
    .await
}

async fn event_near(
    app: Arc<App>,
    identity: Identity,
    request: get_event_by_timestamp::Request,
) -> Result<get_event_by_timestamp::Response, ApiError> {
    let event = app
        .run(move |app| {
            app.store.read(|read| {
                let direction = direction(request.dir);
                let (room_id, user_id) = (&request.room_id, &identity.user_id);
                timeline::event_near(read, room_id, user_id, request.ts.into(), direction)
            })
        })
        .await?;
    Ok(get_event_by_timestamp::Response::new(
        event.pdu.event_id().to_owned(),
        event.pdu.origin_server_ts().to_matrix(),
    ))
}

/// The specification's direction as the store's.
pub(super) fn direction(direction: WireDirection) -> Direction {
    match direction {
        WireDirection::Forward => Direction::Forward,
        WireDirection::Backward => Direction::Backward,
    }
}

/// A page's limit, bounded.
pub(super) fn limit(limit: UInt) -> usize {
    usize::try_from(u64::from(limit)).unwrap_or(PAGE_EVENTS_MAX).min(PAGE_EVENTS_MAX)
}

fn first(events: &[sallyport_store::StoredEvent], at: i64) -> i64 {
    events.last().and_then(|event| event.position).unwrap_or(at).saturating_sub(1)
}

fn last(events: &[sallyport_store::StoredEvent], at: i64) -> i64 {
    events.last().and_then(|event| event.position).unwrap_or(at)
}
