//! [Capabilities](https://spec.matrix.org/v1.19/client-server-api/#capabilities-negotiation).

use std::sync::Arc;

use axum::response::Response;
use ruma::api::client::discovery::get_capabilities::v3::{
    self as get_capabilities, Capabilities, RoomVersionStability, RoomVersionsCapability,
};

use serde_json::json;

use super::said_in_full;
use crate::{
    app::App,
    config::SUPPORTED_ROOM_VERSIONS,
    http::{
        Routes,
        error::ApiError,
        route::{Streamed, stream},
    },
    service::sessions::Identity,
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![stream(capabilities)]
}

/// Says also what clients would take for granted: ruma's response leaves that out, and not every client does.
async fn capabilities(
    app: Arc<App>,
    _: Identity,
    _: Streamed<get_capabilities::Request>,
) -> Result<Response, ApiError> {
    let stable = SUPPORTED_ROOM_VERSIONS.map(|version| (version, RoomVersionStability::Stable));
    let default = app.config.rooms.default_version.clone();
    let mut capabilities = Capabilities::new();
    capabilities.room_versions = RoomVersionsCapability::new(default, stable.into());
    capabilities.thirdparty_id_changes.enabled = false;
    let mut capabilities = serde_json::to_value(capabilities).map_err(ApiError::internal)?;
    if let Some(fields) = capabilities.as_object_mut() {
        fields.insert("m.change_password".to_owned(), json!({ "enabled": true }));
    }
    said_in_full(&json!({}), [("capabilities", capabilities)])
}
