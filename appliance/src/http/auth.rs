//! Who sends a request: from the `Authorization` header to an [`Identity`].
//!
//! A handler states whom it serves by the type of its second argument, and [`Admits`] lets it be
//! stricter than the endpoint's authentication scheme in the specification, never laxer.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, header, request::Parts};
use ruma::api::auth_scheme::{
    AccessToken, AccessTokenOptional, AppserviceTokenOptional, AuthScheme, NoAccessToken,
    NoAuthentication,
};

use super::error::ApiError;
use crate::{
    app::App,
    service::sessions::{self, Authenticated, Identity, TokenHash},
};

/// A request without an identity.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous {
    /// The peer's address; absent on a Unix socket.
    pub address: Option<IpAddr>,
}

/// The peer's address, put into a request's extensions by the accept loop.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub IpAddr);

/// Those whom a handler serves.
pub trait Caller: Sized + Send + 'static {
    /// Finds out who sends a request with this head.
    fn identify(
        app: &Arc<App>,
        head: &Parts,
    ) -> impl Future<Output = Result<Self, ApiError>> + Send;
}

impl Caller for Identity {
    async fn identify(app: &Arc<App>, head: &Parts) -> Result<Self, ApiError> {
        let token = bearer_token(&head.headers)?.ok_or_else(ApiError::missing_token)?;
        admitted(authenticate(app, head, token).await?)
    }
}

/// Somebody with a session, even of a locked account: for logging out.
#[derive(Clone, Debug)]
pub struct Leaving(pub Identity);

impl Caller for Leaving {
    async fn identify(app: &Arc<App>, head: &Parts) -> Result<Self, ApiError> {
        let token = bearer_token(&head.headers)?.ok_or_else(ApiError::missing_token)?;
        Ok(Self(authenticate(app, head, token).await?.identity))
    }
}

impl Caller for Option<Identity> {
    async fn identify(app: &Arc<App>, head: &Parts) -> Result<Self, ApiError> {
        match bearer_token(&head.headers)? {
            Some(token) => admitted(authenticate(app, head, token).await?).map(Some),
            None => Ok(None),
        }
    }
}

impl Caller for Anonymous {
    async fn identify(_: &Arc<App>, head: &Parts) -> Result<Self, ApiError> {
        Ok(Self { address: address(head) })
    }
}

/// An authentication scheme of the specification under which a handler may serve `C`.
pub trait Admits<C: Caller>: AuthScheme {}

impl Admits<Identity> for AccessToken {}
impl Admits<Leaving> for AccessToken {}

impl Admits<Identity> for AccessTokenOptional {}
impl Admits<Option<Identity>> for AccessTokenOptional {}
impl Admits<Anonymous> for AccessTokenOptional {}

// An endpoint that the specification leaves open may ask for a token all the same.
impl Admits<Identity> for NoAccessToken {}
impl Admits<Option<Identity>> for NoAccessToken {}
impl Admits<Anonymous> for NoAccessToken {}

impl Admits<Anonymous> for NoAuthentication {}

// There are no application services: their tokens are as unknown as any other.
impl Admits<Option<Identity>> for AppserviceTokenOptional {}
impl Admits<Anonymous> for AppserviceTokenOptional {}

/// The token of `Authorization: Bearer`. A token in the query string is not accepted: it would
/// end up in logs and histories.
fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().map_err(|_| ApiError::missing_token())?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(ApiError::missing_token()),
    }
}

async fn authenticate(
    app: &Arc<App>,
    head: &Parts,
    token: &str,
) -> Result<Authenticated, ApiError> {
    let (hash, now) = (TokenHash::of(token), (app.clock)());
    if let Some(authenticated) = app.sessions.get(&hash, now) {
        return Ok(authenticated);
    }
    let address = address(head);
    app.run(move |app| sessions::authenticate(&app.store, &app.sessions, hash, address, now)).await
}

fn admitted(authenticated: Authenticated) -> Result<Identity, ApiError> {
    if authenticated.locked { Err(ApiError::user_locked()) } else { Ok(authenticated.identity) }
}

fn address(head: &Parts) -> Option<IpAddr> {
    head.extensions.get().map(|PeerAddress(address)| *address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &'static str, expected: Result<Option<&str>, ()>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        assert_eq!(bearer_token(&headers).map_err(|_| ()), expected, "{value}");
    }

    #[test]
    fn bearer_tokens() {
        check("Bearer abc", Ok(Some("abc")));
        check("bearer  abc", Ok(Some("abc")));
        check("Basic abc", Err(()));
        check("Bearer", Err(()));
        assert_eq!(bearer_token(&HeaderMap::new()).map_err(|_| ()), Ok(None));
    }
}
