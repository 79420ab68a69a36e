//! [Room aliases](https://spec.matrix.org/v1.19/client-server-api/#room-aliases),
//! [the public directory](https://spec.matrix.org/v1.19/client-server-api/#published-room-directory),
//! [spaces](https://spec.matrix.org/v1.19/client-server-api/#spaces) and
//! [room summaries](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias).

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use ruma::{
    OwnedServerName, UInt,
    api::{
        client::{
            alias::{
                create_alias::v3 as create_alias, delete_alias::v3 as delete_alias,
                get_alias::v3 as get_alias,
            },
            directory::{
                get_public_rooms::v3 as get_public_rooms,
                get_public_rooms_filtered::v3 as get_public_rooms_filtered,
                get_room_visibility::v3 as get_room_visibility,
                set_room_visibility::v3 as set_room_visibility,
            },
            room::{Visibility, aliases::v3 as get_aliases, get_summary::v1 as get_summary},
            space::get_hierarchy::v1 as get_hierarchy,
        },
        error::ErrorKind,
    },
    events::room::member::MembershipState,
};
use sallyport_core::limits::{ROOMS_PAGE_MAX, SPACE_DEPTH_MAX};
use serde_json::json;

use super::said_in_full;
use crate::{
    app::App,
    http::{
        Routes,
        auth::Reader,
        error::ApiError,
        route::{Streamed, route, stream},
    },
    service::{
        rooms::{
            self,
            directory::{self, DirectoryQuery},
            summary::{self, TreeQuery},
        },
        sessions::Identity,
    },
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![
        route(set_alias),
        route(resolve_alias),
        route(remove_alias),
        route(aliases),
        route(visibility),
        route(set_visibility),
        route(public_rooms),
        route(search_public_rooms),
        route(hierarchy),
        stream(room_summary),
    ]
}

async fn set_alias(
    app: Arc<App>,
    identity: Identity,
    request: create_alias::Request,
) -> Result<create_alias::Response, ApiError> {
    let create_alias::Request { room_alias, room_id, .. } = request;
    let made = app
        .run(move |app| {
            Ok::<_, ApiError>(directory::create_alias(app, &identity.user_id, room_alias, room_id))
        })
        .await?;
    match made {
        // Only here the specification wants a conflict to be one.
        Err(error @ rooms::Error::AliasTaken) => {
            Err(ApiError::new(StatusCode::CONFLICT, ErrorKind::Unknown, error.to_string()))
        }
        made => Ok(made.map(|()| create_alias::Response::new())?),
    }
}

async fn resolve_alias(
    app: Arc<App>,
    _: Reader,
    request: get_alias::Request,
) -> Result<get_alias::Response, ApiError> {
    let (room_id, servers) = app.run(move |app| directory::alias(app, &request.room_alias)).await?;
    Ok(get_alias::Response::new(room_id, servers))
}

async fn remove_alias(
    app: Arc<App>,
    identity: Identity,
    request: delete_alias::Request,
) -> Result<delete_alias::Response, ApiError> {
    app.run(move |app| directory::delete_alias(app, &identity.user_id, request.room_alias)).await?;
    Ok(delete_alias::Response::new())
}

async fn aliases(
    app: Arc<App>,
    identity: Identity,
    request: get_aliases::Request,
) -> Result<get_aliases::Response, ApiError> {
    let aliases = app
        .run(move |app| {
            app.store.read(|read| directory::aliases(read, &request.room_id, &identity.user_id))
        })
        .await?;
    Ok(get_aliases::Response::new(aliases))
}

async fn visibility(
    app: Arc<App>,
    _: Reader,
    request: get_room_visibility::Request,
) -> Result<get_room_visibility::Response, ApiError> {
    let published = app
        .run(move |app| app.store.read(|read| directory::is_published(read, &request.room_id)))
        .await?;
    let visibility = if published { Visibility::Public } else { Visibility::Private };
    Ok(get_room_visibility::Response::new(visibility))
}

async fn set_visibility(
    app: Arc<App>,
    identity: Identity,
    request: set_room_visibility::Request,
) -> Result<set_room_visibility::Response, ApiError> {
    let published = request.visibility == Visibility::Public;
    app.run(move |app| directory::publish(app, &identity.user_id, request.room_id, published))
        .await?;
    Ok(set_room_visibility::Response::new())
}

async fn public_rooms(
    app: Arc<App>,
    _: Identity,
    request: get_public_rooms::Request,
) -> Result<get_public_rooms::Response, ApiError> {
    let query = DirectoryQuery {
        since: request.since,
        limit: request.limit.map(|limit| bounded(limit, ROOMS_PAGE_MAX)),
        search: None,
        types: Vec::new(),
    };
    let page = list(&app, request.server, query).await?;
    let mut response = get_public_rooms::Response::new(page.chunk);
    response.next_batch = page.next_batch;
    response.prev_batch = page.prev_batch;
    response.total_room_count_estimate = page.total_room_count_estimate;
    Ok(response)
}

async fn search_public_rooms(
    app: Arc<App>,
    _: Identity,
    request: get_public_rooms_filtered::Request,
) -> Result<get_public_rooms_filtered::Response, ApiError> {
    let query = DirectoryQuery {
        since: request.since,
        limit: request.limit.map(|limit| bounded(limit, ROOMS_PAGE_MAX)),
        search: request.filter.generic_search_term,
        types: request.filter.room_types,
    };
    list(&app, request.server, query).await
}

async fn list(
    app: &Arc<App>,
    server: Option<OwnedServerName>,
    query: DirectoryQuery,
) -> Result<get_public_rooms_filtered::Response, ApiError> {
    if server.is_some_and(|server| server != app.config.server_name) {
        return Err(ApiError::not_found("this server asks no other for its rooms"));
    }
    app.run(move |app| app.store.read(|read| directory::public_rooms(read, &query))).await
}

async fn hierarchy(
    app: Arc<App>,
    identity: Identity,
    request: get_hierarchy::Request,
) -> Result<get_hierarchy::Response, ApiError> {
    let skip = match &request.from {
        Some(from) => {
            from.parse().map_err(|_| ApiError::invalid_param("from is not a page's token"))?
        }
        None => 0,
    };
    let query = TreeQuery {
        skip,
        limit: request.limit.map_or(ROOMS_PAGE_MAX, |limit| bounded(limit, ROOMS_PAGE_MAX)),
        depth: request.max_depth.map_or(SPACE_DEPTH_MAX, |depth| bounded(depth, SPACE_DEPTH_MAX)),
        suggested_only: request.suggested_only,
    };
    let (rooms, more) = app
        .run(move |app| {
            app.store.read(|read| summary::tree(read, &request.room_id, &identity.user_id, query))
        })
        .await?;
    let mut response = get_hierarchy::Response::new();
    response.next_batch = more.then(|| (skip + rooms.len()).to_string());
    response.rooms = rooms;
    Ok(response)
}

async fn room_summary(
    app: Arc<App>,
    identity: Identity,
    Streamed { request, .. }: Streamed<get_summary::Request>,
) -> Result<Response, ApiError> {
    let (summary, membership) = app
        .run(move |app| {
            let room_id = directory::resolve(app, &request.room_id_or_alias)?;
            app.store.read(|read| summary::summary_for(read, &room_id, &identity.user_id))
        })
        .await?;
    let join_rule = json!(summary.join_rule.as_str());
    let membership = json!(membership.unwrap_or(MembershipState::Leave));
    said_in_full(&summary, [("join_rule", join_rule), ("membership", membership)])
}

fn bounded(value: UInt, most: usize) -> usize {
    usize::try_from(u64::from(value)).unwrap_or(most).min(most)
}
