//! [Login and sessions](https://spec.matrix.org/v1.19/client-server-api/#login).

use std::sync::Arc;

use ruma::api::client::session::get_login_types::v3::{self as get_login_types, LoginType};

use crate::{
    app::App,
    http::{Routes, auth::Anonymous, error::ApiError, route::route},
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(login_types)]
}

async fn login_types(
    _: Arc<App>,
    _: Anonymous,
    _: get_login_types::Request,
) -> Result<get_login_types::Response, ApiError> {
    Ok(get_login_types::Response::new(vec![LoginType::Password(Default::default())]))
}
