//! Modules of the specification that the box has no use for, and that clients ask about all the same:
//! [voice over IP](https://spec.matrix.org/v1.19/client-server-api/#voice-over-ip) without a relay, and
//! [third-party networks](https://spec.matrix.org/v1.19/client-server-api/#third-party-networks), of which there are none.

use std::{collections::BTreeMap, sync::Arc};

use axum::response::{IntoResponse as _, Response};
use ruma::api::client::{
    thirdparty::get_protocols::v3 as get_protocols, voip::get_turn_server_info::v3 as get_turn,
};

use crate::{
    app::App,
    http::{
        Routes,
        error::ApiError,
        route::{Streamed, route, stream},
    },
    service::sessions::Identity,
};

/// The endpoints of these sections.
pub(super) fn routes() -> Routes {
    vec![route(protocols), stream(turn_server)]
}

async fn protocols(
    _: Arc<App>,
    _: Identity,
    _: get_protocols::Request,
) -> Result<get_protocols::Response, ApiError> {
    Ok(get_protocols::Response::new(BTreeMap::new()))
}

/// An empty object says that there is none; ruma's response cannot.
async fn turn_server(
    _: Arc<App>,
    _: Identity,
    _: Streamed<get_turn::Request>,
) -> Result<Response, ApiError> {
    Ok(axum::Json(serde_json::json!({})).into_response())
}
