//! [API standards and server discovery](https://spec.matrix.org/v1.19/client-server-api/#server-discovery):
//! where the box is and which versions of the specification it speaks.

use std::sync::Arc;

use ruma::api::client::discovery::{
    discover_homeserver::{self, HomeserverInfo},
    get_supported_versions,
};

use crate::{
    app::App,
    http::{Routes, auth::Anonymous, error::ApiError, route::route},
};

/// The versions of the specification whose client-server API is served.
const VERSIONS: [&str; 12] = [
    "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11",
    "v1.12",
];

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(well_known), route(versions)]
}

async fn well_known(
    app: Arc<App>,
    _: Anonymous,
    _: discover_homeserver::Request,
) -> Result<discover_homeserver::Response, ApiError> {
    let homeserver = HomeserverInfo::new(app.config.public_url.clone());
    Ok(discover_homeserver::Response::new(homeserver))
}

async fn versions(
    _: Arc<App>,
    _: Anonymous,
    _: get_supported_versions::Request,
) -> Result<get_supported_versions::Response, ApiError> {
    let versions = VERSIONS.iter().copied().map(ToOwned::to_owned).collect();
    Ok(get_supported_versions::Response::new(versions))
}
