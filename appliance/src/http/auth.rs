//! Who sends a request: from the `Authorization` header to an [`Identity`].
//!
//! A handler states whom it serves by the type of its second argument, and [`Admits`] lets it be
//! stricter than the endpoint's authentication scheme in the specification, never laxer.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use axum::extract::Query;
use http::{header, request::Parts};
use ruma::api::auth_scheme::{
    AccessToken, AccessTokenOptional, AppserviceTokenOptional, AuthScheme, NoAccessToken,
    NoAuthentication,
};
use serde::Deserialize;

use super::error::ApiError;
use crate::{
    app::App,
    config::RegistrationMode,
    service::sessions::{self, Authenticated, Identity},
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
        let token = access_token(head)?.ok_or_else(ApiError::missing_token)?;
        admitted(authenticate(app, head, &token).await?)
    }
}

/// Somebody with a session, even of a locked account: for logging out.
#[derive(Clone, Debug)]
pub struct Leaving(pub Identity);

impl Caller for Leaving {
    async fn identify(app: &Arc<App>, head: &Parts) -> Result<Self, ApiError> {
        let token = access_token(head)?.ok_or_else(ApiError::missing_token)?;
        Ok(Self(authenticate(app, head, &token).await?.identity))
    }
}

impl Caller for Option<Identity> {
    async fn identify(app: &Arc<App>, head: &Parts) -> Result<Self, ApiError> {
        match access_token(head)? {
            Some(token) => admitted(authenticate(app, head, &token).await?).map(Some),
            None => Ok(None),
        }
    }
}

/// Somebody who may see what all members may: a member, and where everybody can make an account, anybody.
///
/// The specification leaves profiles and the room directory open to the whole network.
#[derive(Clone, Copy, Debug)]
pub struct Reader;

impl Caller for Reader {
    async fn identify(app: &Arc<App>, head: &Parts) -> Result<Self, ApiError> {
        let is_open = app.config.registration.mode == RegistrationMode::Open;
        match Option::<Identity>::identify(app, head).await? {
            None if !is_open => Err(ApiError::missing_token()),
            _ => Ok(Self),
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

impl Admits<Reader> for AccessTokenOptional {}

// An endpoint that the specification leaves open may ask for a token all the same.
impl Admits<Reader> for NoAccessToken {}
impl Admits<Identity> for NoAccessToken {}
impl Admits<Option<Identity>> for NoAccessToken {}
impl Admits<Anonymous> for NoAccessToken {}

impl Admits<Anonymous> for NoAuthentication {}

// There are no application services: their tokens are as unknown as any other.
impl Admits<Option<Identity>> for AppserviceTokenOptional {}
impl Admits<Anonymous> for AppserviceTokenOptional {}

/// The token of `Authorization: Bearer`, or the one in the query string, which the specification has deprecated
/// ([using access tokens](https://spec.matrix.org/v1.19/client-server-api/#using-access-tokens)). Queries are never logged.
fn access_token(head: &Parts) -> Result<Option<Cow<'_, str>>, ApiError> {
    #[derive(Deserialize)]
    struct Token {
        access_token: Option<String>,
    }
    let Some(value) = head.headers.get(header::AUTHORIZATION) else {
        let query = Query::<Token>::try_from_uri(&head.uri);
        return Ok(query.ok().and_then(|Query(query)| query.access_token).map(Cow::Owned));
    };
    let value = value.to_str().map_err(|_| ApiError::missing_token())?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Some(Cow::Borrowed(token.trim())))
        }
        _ => Err(ApiError::missing_token()),
    }
}

async fn authenticate(
    app: &Arc<App>,
    head: &Parts,
    token: &str,
) -> Result<Authenticated, ApiError> {
    let (hash, now) = (app.pepper.token(token), (app.clock)());
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

    fn check(uri: &str, header: Option<&str>, expected: Result<Option<&str>, ()>) {
        let mut request = http::Request::builder().uri(uri);
        if let Some(header) = header {
            request = request.header(header::AUTHORIZATION, header);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let token = access_token(&head).map_err(|_| ());
        assert_eq!(
            token.as_ref().map(Option::as_deref),
            expected.as_ref().copied(),
            "{uri} {header:?}"
        );
    }

    #[test]
    fn access_tokens() {
        check("/", Some("Bearer abc"), Ok(Some("abc")));
        check("/", Some("bearer  abc"), Ok(Some("abc")));
        check("/", Some("Basic abc"), Err(()));
        check("/", Some("Bearer"), Err(()));
        check("/", None, Ok(None));
        check("/?access_token=abc&x=y", None, Ok(Some("abc")));
        check("/?access_token=query", Some("Bearer header"), Ok(Some("header")));
        check("/?x=y", None, Ok(None));
    }
}
