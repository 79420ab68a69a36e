//! [Relations](https://spec.matrix.org/v1.19/client-server-api/#forming-relationships-between-events) and
//! [threads](https://spec.matrix.org/v1.19/client-server-api/#threading).

use std::sync::Arc;

use ruma::{
    OwnedEventId, OwnedRoomId, UInt,
    api::{
        Direction,
        client::{
            relations::{
                get_relating_events::v1 as relating,
                get_relating_events_with_rel_type::v1 as relating_by_type,
                get_relating_events_with_rel_type_and_event_type::v1 as relating_by_types,
            },
            threads::get_threads::v1::{self as get_threads, IncludeThreads},
        },
    },
    events::AnyMessageLikeEvent,
    serde::Raw,
};
use sallyport_core::limits::RELATIONS_DEPTH_MAX;

use super::{
    state::format,
    timeline::{direction, limit},
    tokens::{page_token, position_of},
};
use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        rooms::{
            self,
            relations::{self, Relating},
        },
        sessions::Identity,
    },
};

/// Events of a page whose request names no limit.
const LIMIT_DEFAULT: u32 = 20;

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(all), route(by_type), route(by_types), route(threads)]
}

async fn all(
    app: Arc<App>,
    identity: Identity,
    request: relating::Request,
) -> Result<relating::Response, ApiError> {
    let page = Page::of(request.from, request.to, request.dir, request.limit, request.recurse);
    let depth = page.depth();
    let found = page.read(app, identity, request.room_id, request.event_id, None, None).await?;
    let mut response = relating::Response::new(found.0);
    response.next_batch = found.1;
    response.recursion_depth = depth;
    Ok(response)
}

async fn by_type(
    app: Arc<App>,
    identity: Identity,
    request: relating_by_type::Request,
) -> Result<relating_by_type::Response, ApiError> {
    let page = Page::of(request.from, request.to, request.dir, request.limit, request.recurse);
    let depth = page.depth();
    let rel_type = Some(request.rel_type.to_string());
    let found = page.read(app, identity, request.room_id, request.event_id, rel_type, None).await?;
    let mut response = relating_by_type::Response::new(found.0);
    response.next_batch = found.1;
    response.recursion_depth = depth;
    Ok(response)
}

async fn by_types(
    app: Arc<App>,
    identity: Identity,
    request: relating_by_types::Request,
) -> Result<relating_by_types::Response, ApiError> {
    let page = Page::of(request.from, request.to, request.dir, request.limit, request.recurse);
    let depth = page.depth();
    let rel_type = Some(request.rel_type.to_string());
    let kind = Some(request.event_type.to_string());
    let found = page.read(app, identity, request.room_id, request.event_id, rel_type, kind).await?;
    let mut response = relating_by_types::Response::new(found.0);
    response.next_batch = found.1;
    response.recursion_depth = depth;
    Ok(response)
}

/// What the three endpoints have in common.
struct Page {
    from: Option<String>,
    to: Option<String>,
    direction: Direction,
    limit: UInt,
    recurse: bool,
}

type Found = (Vec<Raw<AnyMessageLikeEvent>>, Option<String>);

impl Page {
    fn of(
        from: Option<String>,
        to: Option<String>,
        direction: Direction,
        limit: Option<UInt>,
        recurse: bool,
    ) -> Self {
        let limit = limit.unwrap_or_else(|| LIMIT_DEFAULT.into());
        Self { from, to, direction, limit, recurse }
    }

    /// How deep the server follows relations, if it is asked to.
    fn depth(&self) -> Option<UInt> {
        self.recurse.then(|| UInt::new_saturating(RELATIONS_DEPTH_MAX as u64))
    }

    async fn read(
        self,
        app: Arc<App>,
        identity: Identity,
        room_id: OwnedRoomId,
        event_id: OwnedEventId,
        rel_type: Option<String>,
        kind: Option<String>,
    ) -> Result<Found, ApiError> {
        let now = (app.clock)();
        app.run(move |app| {
            app.store.read(|read| {
                let wanted = Relating {
                    room_id: &room_id,
                    event_id: &event_id,
                    rel_type: rel_type.as_deref(),
                    kind: kind.as_deref(),
                    from: position_of(read, self.from.as_deref())?,
                    to: position_of(read, self.to.as_deref())?,
                    direction: direction(self.direction),
                    limit: limit(self.limit),
                    recurse: self.recurse,
                };
                let found = relations::relating(read, &identity.user_id, &wanted)?;
                let chunk = format(read, &found.room, &identity, now).events(&found.events)?;
                let next = found.next.map(|next| page_token(read, next)).transpose()?;
                Ok::<_, rooms::Error>((chunk, next))
            })
        })
        .await
    }
}

async fn threads(
    app: Arc<App>,
    identity: Identity,
    request: get_threads::Request,
) -> Result<get_threads::Response, ApiError> {
    let now = (app.clock)();
    app.run(move |app| {
        app.store.read(|read| {
            let found = relations::threads(
                read,
                &request.room_id,
                &identity.user_id,
                request.include == IncludeThreads::Participated,
                position_of(read, request.from.as_deref())?,
                limit(request.limit.unwrap_or_else(|| LIMIT_DEFAULT.into())),
            )?;
            let chunk = format(read, &found.room, &identity, now).events(&found.events)?;
            let mut response = get_threads::Response::new(chunk);
            response.next_batch = found.next.map(|next| page_token(read, next)).transpose()?;
            Ok::<_, rooms::Error>(response)
        })
    })
    .await
}
