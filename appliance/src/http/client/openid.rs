//! [OpenID](https://spec.matrix.org/v1.19/client-server-api/#openid): a member shows a service beside the box who they are.

use std::{sync::Arc, time::Duration};

use ruma::{
    api::client::account::request_openid_token::v3 as openid_token, authentication::TokenType,
};
use sallyport_core::limits::OPENID_TOKEN_MS;

use crate::{
    app::{App, random},
    http::{Routes, error::ApiError, route::route},
    service::sessions::Identity,
};

/// The endpoint of this section; the service asks [the other one](crate::http::federation).
pub(super) fn routes() -> Routes {
    vec![route(issue)]
}

async fn issue(
    app: Arc<App>,
    identity: Identity,
    request: openid_token::Request,
) -> Result<openid_token::Response, ApiError> {
    if request.user_id != identity.user_id {
        return Err(ApiError::forbidden("Tokens are issued to their own user only."));
    }
    let token = app.openid.issue(&identity.user_id, (app.clock)(), random()?);
    let server = app.config.server_name.clone();
    let lives = Duration::from_millis(OPENID_TOKEN_MS);
    Ok(openid_token::Response::new(token, TokenType::Bearer, server, lives))
}
