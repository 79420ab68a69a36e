//! [Profiles](https://spec.matrix.org/v1.19/client-server-api/#profiles) and the
//! [user directory](https://spec.matrix.org/v1.19/client-server-api/#user-directory).

use std::sync::Arc;

use http::StatusCode;
use ruma::{
    OwnedMxcUri, OwnedUserId,
    api::{
        client::{
            profile::{
                delete_profile_field::v3 as delete_field, get_profile::v3 as get_profile,
                get_profile_field::v3 as get_field, set_profile_field::v3 as set_field,
            },
            user_directory::search_users::v3::{self as search_users, User},
        },
        error::ErrorKind,
    },
    profile::ProfileFieldValue,
};
use serde_json::Value;

use super::account_data::own;
use crate::{
    app::App,
    http::{Routes, auth::Reader, error::ApiError, route::route},
    service::{
        profiles::{self, ProfileError},
        rooms,
        sessions::Identity,
    },
};

/// The endpoints of these sections.
pub(super) fn routes() -> Routes {
    vec![route(profile), route(field), route(set), route(delete), route(search)]
}

async fn profile(
    app: Arc<App>,
    _: Reader,
    request: get_profile::Request,
) -> Result<get_profile::Response, ApiError> {
    let fields = app.run(move |app| profiles::profile(&app.store, &request.user_id)).await?;
    Ok(fields.into_iter().collect())
}

async fn field(
    app: Arc<App>,
    _: Reader,
    request: get_field::Request,
) -> Result<get_field::Response, ApiError> {
    let get_field::Request { user_id, field, .. } = request;
    let name = field.to_string();
    let find = move |app: &App| profiles::field(&app.store, &user_id, field.as_str());
    let value = ProfileFieldValue::new(&name, app.run(find).await?);
    Ok(get_field::Response::new(value.map_err(ApiError::internal)?))
}

async fn set(
    app: Arc<App>,
    identity: Identity,
    request: set_field::Request,
) -> Result<set_field::Response, ApiError> {
    let field = request.value.field_name().to_string();
    let value = request.value.value().into_owned();
    change(app, identity, request.user_id, field, Some(value)).await?;
    Ok(set_field::Response::new())
}

async fn delete(
    app: Arc<App>,
    identity: Identity,
    request: delete_field::Request,
) -> Result<delete_field::Response, ApiError> {
    change(app, identity, request.user_id, request.field.to_string(), None).await?;
    Ok(delete_field::Response::new())
}

async fn change(
    app: Arc<App>,
    identity: Identity,
    user_id: OwnedUserId,
    field: String,
    value: Option<Value>,
) -> Result<(), ApiError> {
    own(&identity, &user_id)?;
    let now = (app.clock)();
    let of = user_id.clone();
    let change = move |app: &App| profiles::set_field(&app.store, &of, &field, value.as_ref());
    if app.run(change).await? {
        app.run(move |app| rooms::membership::show_profile(app, &user_id, now)).await?;
    }
    Ok(())
}

async fn search(
    app: Arc<App>,
    _: Identity,
    request: search_users::Request,
) -> Result<search_users::Response, ApiError> {
    let search = move |app: &App| {
        profiles::search(&app.store, &request.search_term, u64::from(request.limit))
    };
    let (found, limited) = app.run(search).await?;
    let users = found.into_iter().map(|found| {
        let mut user = User::new(found.user_id);
        user.display_name = found.display_name;
        user.avatar_url = found.avatar_url.map(OwnedMxcUri::from);
        user
    });
    Ok(search_users::Response::new(users.collect(), limited))
}

impl From<ProfileError> for ApiError {
    fn from(error: ProfileError) -> Self {
        let status = StatusCode::BAD_REQUEST;
        match error {
            ProfileError::NotFound => Self::not_found("There is no such user or field."),
            ProfileError::BadValue => Self::invalid_param(error.to_string()),
            ProfileError::KeyTooLarge => {
                Self::new(status, ErrorKind::KeyTooLarge, error.to_string())
            }
            ProfileError::TooLarge => {
                Self::new(status, ErrorKind::ProfileTooLarge, error.to_string())
            }
            error @ ProfileError::Json(_) => Self::internal(error),
            ProfileError::Store(error) => error.into(),
        }
    }
}
