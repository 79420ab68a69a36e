//! [Client config](https://spec.matrix.org/v1.19/client-server-api/#client-config),
//! [room tagging](https://spec.matrix.org/v1.19/client-server-api/#room-tagging) and
//! [filters](https://spec.matrix.org/v1.19/client-server-api/#filtering).

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedRoomId, UserId,
    api::{
        client::{
            config::{
                get_global_account_data::v3 as get_global, get_room_account_data::v3 as get_room,
                set_global_account_data::v3 as set_global, set_room_account_data::v3 as set_room,
            },
            filter::{create_filter::v3 as create_filter, get_filter::v3 as get_filter},
            tag::{
                create_tag::v3 as create_tag, delete_tag::v3 as delete_tag,
                get_tags::v3 as get_tags,
            },
        },
        error::ErrorKind,
    },
    serde::Raw,
};
use sallyport_core::limits::{ACCOUNT_DATA_BYTES_MAX, FILTERS_MAX};
use serde_json::value::RawValue;

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::{
        account_data::{self, AccountDataError},
        push_rules,
        sessions::Identity,
    },
};

/// The endpoints of these sections.
pub(super) fn routes() -> Routes {
    vec![
        route(get_data),
        route(set_data),
        route(get_room_data),
        route(set_room_data),
        route(list_tags),
        route(add_tag),
        route(remove_tag),
        route(add_filter),
        route(find_filter),
    ]
}

async fn get_data(
    app: Arc<App>,
    identity: Identity,
    request: get_global::Request,
) -> Result<get_global::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let kind = request.event_type.to_string();
    let content = if kind == push_rules::ACCOUNT_DATA_TYPE {
        let rules =
            move |app: &App| app.store.read(|read| push_rules::rules(read, &identity.user_id));
        let content = ruma::events::push_rules::PushRulesEventContent::new(app.run(rules).await?);
        serde_json::to_string(&content).map_err(ApiError::internal)?
    } else {
        find(app, identity, None, kind).await?
    };
    Ok(get_global::Response::new(raw(content)?))
}

async fn set_data(
    app: Arc<App>,
    identity: Identity,
    request: set_global::Request,
) -> Result<set_global::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let kind = request.event_type.to_string();
    store(app, identity, None, kind, request.data).await?;
    Ok(set_global::Response::new())
}

async fn get_room_data(
    app: Arc<App>,
    identity: Identity,
    request: get_room::Request,
) -> Result<get_room::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let kind = request.event_type.to_string();
    let content = find(app, identity, Some(request.room_id), kind).await?;
    Ok(get_room::Response::new(raw(content)?))
}

async fn set_room_data(
    app: Arc<App>,
    identity: Identity,
    request: set_room::Request,
) -> Result<set_room::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let kind = request.event_type.to_string();
    store(app, identity, Some(request.room_id), kind, request.data).await?;
    Ok(set_room::Response::new())
}

async fn find(
    app: Arc<App>,
    identity: Identity,
    room_id: Option<OwnedRoomId>,
    kind: String,
) -> Result<String, ApiError> {
    let find = move |app: &App| {
        let user_id = &identity.user_id;
        app.store.read(|read| read.account_data(user_id, room_id.as_deref(), &kind))
    };
    let none = || ApiError::not_found("There is no account data of this type.");
    app.run(find).await?.ok_or_else(none)
}

async fn store<T>(
    app: Arc<App>,
    identity: Identity,
    room_id: Option<OwnedRoomId>,
    kind: String,
    data: Raw<T>,
) -> Result<(), ApiError> {
    let content = Box::<str>::from(data.into_json()).into_string();
    let set =
        move |app: &App| account_data::set(&app.store, &identity.user_id, room_id, kind, content);
    app.run(set).await
}

async fn list_tags(
    app: Arc<App>,
    identity: Identity,
    request: get_tags::Request,
) -> Result<get_tags::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let list = move |app: &App| {
        app.store.read(|read| account_data::tags(read, &identity.user_id, &request.room_id))
    };
    Ok(get_tags::Response::new(app.run(list).await?))
}

async fn add_tag(
    app: Arc<App>,
    identity: Identity,
    request: create_tag::Request,
) -> Result<create_tag::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let create_tag::Request { room_id, tag, tag_info, .. } = request;
    let set = move |app: &App| {
        let (user_id, info) = (&identity.user_id, Some(tag_info));
        account_data::set_tag(&app.store, user_id, room_id, tag.into(), info)
    };
    app.run(set).await?;
    Ok(create_tag::Response::new())
}

async fn remove_tag(
    app: Arc<App>,
    identity: Identity,
    request: delete_tag::Request,
) -> Result<delete_tag::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let delete_tag::Request { room_id, tag, .. } = request;
    let remove = move |app: &App| {
        account_data::set_tag(&app.store, &identity.user_id, room_id, tag.into(), None)
    };
    app.run(remove).await?;
    Ok(delete_tag::Response::new())
}

async fn add_filter(
    app: Arc<App>,
    identity: Identity,
    request: create_filter::Request,
) -> Result<create_filter::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let content = serde_json::to_string(&request.filter).map_err(ApiError::internal)?;
    if content.len() > ACCOUNT_DATA_BYTES_MAX {
        return Err(ApiError::too_large(ACCOUNT_DATA_BYTES_MAX as u64));
    }
    let add = move |app: &App| {
        app.store.write(move |write| write.add_filter(&identity.user_id, &content, FILTERS_MAX))
    };
    let id = app.run(add).await?.ok_or_else(too_many)?;
    Ok(create_filter::Response::new(id.to_string()))
}

async fn find_filter(
    app: Arc<App>,
    identity: Identity,
    request: get_filter::Request,
) -> Result<get_filter::Response, ApiError> {
    own(&identity, &request.user_id)?;
    let none = || ApiError::not_found("There is no such filter.");
    let id: i64 = request.filter_id.parse().map_err(|_| none())?;
    let find = move |app: &App| app.store.read(|read| read.filter(&identity.user_id, id));
    let content = app.run(find).await?.ok_or_else(none)?;
    let filter = serde_json::from_str(&content).map_err(ApiError::internal)?;
    Ok(get_filter::Response::new(filter))
}

/// Members only see and change what is their own.
pub(super) fn own(identity: &Identity, user_id: &UserId) -> Result<(), ApiError> {
    if identity.user_id == user_id {
        Ok(())
    } else {
        Err(ApiError::forbidden("This belongs to another user."))
    }
}

fn raw<T>(json: String) -> Result<Raw<T>, ApiError> {
    RawValue::from_string(json).map(Raw::from_json).map_err(ApiError::internal)
}

fn too_many() -> ApiError {
    ApiError::forbidden("There are too many of these already.")
}

impl From<AccountDataError> for ApiError {
    fn from(error: AccountDataError) -> Self {
        match error {
            AccountDataError::Reserved => {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                Self::new(status, ErrorKind::BadJson, "The server keeps data of this type itself.")
            }
            AccountDataError::NotAnObject => Self::bad_json("The content must be an object."),
            AccountDataError::TooLarge => Self::too_large(ACCOUNT_DATA_BYTES_MAX as u64),
            AccountDataError::TooMany => too_many(),
            error @ AccountDataError::Json(_) => Self::internal(error),
            AccountDataError::Store(error) => error.into(),
        }
    }
}
