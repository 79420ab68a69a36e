//! The [server-server API](https://spec.matrix.org/v1.19/server-server-api/), as far as it needs
//! no connection to a peer.

use std::sync::Arc;

use ruma::api::federation::discovery::get_server_version::v1::{
    self as get_server_version, Server,
};

use super::{Routes, auth::Anonymous, error::ApiError, route::route};
use crate::app::App;

/// The endpoints of all sections.
pub(super) fn routes() -> Routes {
    vec![route(version)]
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
