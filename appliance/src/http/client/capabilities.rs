//! [Capabilities](https://spec.matrix.org/v1.19/client-server-api/#capabilities-negotiation).

use std::sync::Arc;

use ruma::api::client::discovery::get_capabilities::v3::{
    self as get_capabilities, Capabilities, RoomVersionStability, RoomVersionsCapability,
};

use crate::{
    app::App,
    config::SUPPORTED_ROOM_VERSIONS,
    http::{Routes, error::ApiError, route::route},
    service::sessions::Identity,
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(capabilities)]
}

async fn capabilities(
    app: Arc<App>,
    _: Identity,
    _: get_capabilities::Request,
) -> Result<get_capabilities::Response, ApiError> {
    let stable = SUPPORTED_ROOM_VERSIONS.map(|version| (version, RoomVersionStability::Stable));
    let default = app.config.rooms.default_version.clone();
    let mut capabilities = Capabilities::new();
    capabilities.room_versions = RoomVersionsCapability::new(default, stable.into());
    capabilities.thirdparty_id_changes.enabled = false;
    Ok(get_capabilities::Response::new(capabilities))
}
