//! The [server-server API](https://spec.matrix.org/v1.19/server-server-api/), as far as it needs
//! no connection to a peer.

use std::sync::Arc;

use ruma::api::federation::{
    discovery::get_server_version::v1::{self as get_server_version, Server},
    openid::get_openid_userinfo::v1 as openid_userinfo,
};

use super::{Routes, auth::Anonymous, error::ApiError, route::route};
use crate::app::App;

/// The endpoints of all sections.
pub(super) fn routes() -> Routes {
    vec![route(version), route(openid_user)]
}

async fn version(
    _: Arc<App>,
    _: Anonymous,
    _: get_server_version::Request,
) -> Result<get_server_version::Response, ApiError> {
    let mut server = Server::new();
    server.name = Some("Sallyport".to_owned());
    server.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = get_server_version::Response::new();
    response.server = Some(server);
    Ok(response)
}

/// Whose OpenID token it is: asked by a service that a member showed it to.
async fn openid_user(
    app: Arc<App>,
    _: Anonymous,
    request: openid_userinfo::Request,
) -> Result<openid_userinfo::Response, ApiError> {
    match app.openid.user(&request.access_token, (app.clock)()) {
        Some(user_id) => Ok(openid_userinfo::Response::new(user_id)),
        None => Err(ApiError::unknown_token(false)),
    }
}
