//! HTTP: the list of all routes in the order of the specification, and what holds for each answer.
//!
//! From the outside in, a request passes: connection bounds ([`crate::listen`]), CORS
//! ([`cors`]), the router, then in [`route`] authentication, the bound of the body, decoding,
//! the handler. Handlers only translate; use cases are in [`crate::service`].

mod activate;
pub mod auth;
mod calls;
mod client;
mod cors;
pub mod error;
mod federation;
pub(crate) mod file;
pub mod route;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Router,
    extract::State,
    middleware,
    response::{IntoResponse as _, Response},
    routing::{MethodRouter, get},
};
use http::{HeaderValue, StatusCode, header};
use sallyport_core::sign::KeyRole;

use crate::{
    app::App,
    config::Api,
    service::{backup, token},
};
use error::ApiError;
use route::Endpoint;

/// The routes of the given APIs.
pub fn router(app: Arc<App>, apis: &BTreeSet<Api>) -> Router {
    let mut endpoints = Vec::new();
    if apis.contains(&Api::Client) {
        endpoints.extend(client::routes());
        endpoints.extend(federation::routes());
    }
    let mut router = matrix(endpoints);
    // Without CORS too: other sites' pages must not use codes.
    if apis.contains(&Api::Activate) {
        router = router.merge(activate::routes());
    }
    // Without CORS: a page in a browser on this machine has no business with the metrics.
    if apis.contains(&Api::Metrics) {
        router = router.route("/metrics", get(metrics));
    }
    router.with_state(app)
}

/// Endpoints, with the answers and headers that the specification wants everywhere.
pub fn matrix(endpoints: Vec<Endpoint>) -> Router<Arc<App>> {
    let mut paths: BTreeMap<String, MethodRouter<Arc<App>>> = BTreeMap::new();
    for endpoint in endpoints {
        endpoint.register(|path, methods| {
            let merged = match paths.remove(&path) {
                Some(others) => others.merge(methods),
                None => methods,
            };
            paths.insert(path, merged);
        });
    }
    paths
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| router.route(&path, methods))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(cors::allow_any_origin))
}

/// The routes of the administration socket.
pub fn admin_router(app: Arc<App>) -> Router {
    crate::admin::router()
        .route("/metrics", get(metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// The current metrics, in the text format of Prometheus.
async fn metrics(State(app): State<Arc<App>>) -> Response {
    const OPENMETRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    let now = (app.clock)();
    // Counted now: the signer may be at work for a long time.
    let counted = app.run(|app| {
        let token = app.token.as_deref();
        let mode = token.and_then(|token| token::custody(&app.store, token, KeyRole::Event));
        let backlog = app.store.read(|read| read.backlog())?;
        backup::state(&app.store).map(|backup| (backlog, backup, mode))
    });
    match counted.await {
        Ok((backlog, backup, mode)) => {
            app.metrics.token_mode(mode);
            app.metrics.backup(backup.last.map(|last| last.made));
            app.metrics.backlog(&backlog, now);
            app.metrics.token_health(app.token.as_ref().map(|token| token.health()));
            let waiters = app.notify.waiters();
            app.metrics.sync_waiters.set(i64::try_from(waiters).unwrap_or(i64::MAX));
        }
        Err(error) => return error.into_response(),
    }
    match app.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => ApiError::internal(error).into_response(),
    }
}

async fn unknown_path() -> ApiError {
    ApiError::unrecognized(StatusCode::NOT_FOUND)
}

async fn wrong_method() -> ApiError {
    ApiError::unrecognized(StatusCode::METHOD_NOT_ALLOWED)
}

/// The endpoints of one section of the specification.
type Routes = Vec<Endpoint>;
