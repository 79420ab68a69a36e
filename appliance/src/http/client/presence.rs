//! [Presence](https://spec.matrix.org/v1.19/client-server-api/#presence).

use std::sync::Arc;

use ruma::{
    api::client::presence::{get_presence::v3 as get_presence, set_presence::v3 as set_presence},
    presence::PresenceState,
};

use super::account_data::own;
use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::sessions::Identity,
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(get), route(set)]
}

async fn get(
    app: Arc<App>,
    _: Identity,
    request: get_presence::Request,
) -> Result<get_presence::Response, ApiError> {
    let user_id = request.user_id;
    let now = (app.clock)();
    if let Some(presence) = app.presences.get(&user_id, now) {
        let mut response = get_presence::Response::new(presence.state.clone());
        response.status_msg = presence.status;
        response.last_active_ago = Some(now.since(presence.active));
        response.currently_active = Some(presence.state == PresenceState::Online);
        return Ok(response);
    }
    let known = move |app: &App| app.store.read(|read| read.user_exists(&user_id));
    if app.run(known).await? {
        Ok(get_presence::Response::new(PresenceState::Offline))
    } else {
        Err(ApiError::not_found("There is no such user."))
    }
}

async fn set(
    app: Arc<App>,
    identity: Identity,
    request: set_presence::Request,
) -> Result<set_presence::Response, ApiError> {
    own(&identity, &request.user_id)?;
    if matches!(request.presence, PresenceState::_Custom(_)) {
        return Err(ApiError::bad_json("Presence is online, unavailable or offline."));
    }
    let status = request.status_msg.as_deref();
    app.presences.set(&identity.user_id, request.presence, status, (app.clock)());
    Ok(set_presence::Response::new())
}
