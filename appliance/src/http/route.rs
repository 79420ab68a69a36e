//! The one adapter from an endpoint's request type in ruma to a route.
//!
//! A handler is an async function `(Arc<App>, caller, Request) -> Result<Response, ApiError>`.
//! Method, paths (stable, unstable and old ones) and authentication scheme come from the request
//! type, so that a handler cannot be bound to a wrong path or served without authentication.
//! Handlers are type-erased early: little code is compiled once per endpoint.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::{RawPathParams, Request, State, rejection::RawPathParamsRejection},
    response::{IntoResponse as _, Response},
    routing::{MethodFilter, MethodRouter},
};
use futures_util::FutureExt as _;
use http::{HeaderMap, Method, StatusCode, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use ruma::api::{
    IncomingRequest, IncomingRequestExt as _, Metadata, OutgoingResponse, OutgoingResponseExt as _,
    path_builder::PathBuilder as _,
};

use super::{
    auth::{Admits, Caller},
    error::ApiError,
};
use crate::{app::App, telemetry::faults};
use sallyport_core::limits::{BODY_READ_MS_MAX, JSON_BODY_BYTES_MAX};

type Answer = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;
type Handler = dyn Fn(Arc<App>, Incoming) -> Answer + Send + Sync;

/// An endpoint whose body is JSON and is read before the handler runs.
pub fn route<Req, C, F, Fut>(handler: F) -> Endpoint
where
    Req: IncomingRequest + Send + 'static,
    Req::Authentication: Admits<C>,
    C: Caller,
    F: Fn(Arc<App>, C, Req) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Req::OutgoingResponse, ApiError>> + Send,
{
    Endpoint::new::<Req>(Arc::new(move |app, incoming| {
        let handler = handler.clone();
        Box::pin(async move {
            let caller = C::identify(&app, &incoming.head).await?;
            let (head, arguments, body) = incoming.read().await?;
            // matrix-nio joins without a body, and not every request type takes that for an empty object.
            let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
            let request = decode::<Req>(head, &arguments, body)?;
            encode(handler(app, caller, request).await?)
        })
    }))
}

/// An endpoint that reads its body or writes its answer as a stream, such as media.
///
/// The handler is `(Arc<App>, caller, Streamed<Request>) -> Result<Response, ApiError>` and
/// bounds the body itself.
pub fn stream<Req, C, F, Fut>(handler: F) -> Endpoint
where
    Req: IncomingRequest + Send + 'static,
    Req::Authentication: Admits<C>,
    C: Caller,
    F: Fn(Arc<App>, C, Streamed<Req>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, ApiError>> + Send,
{
    Endpoint::new::<Req>(Arc::new(move |app, incoming| {
        let handler = handler.clone();
        Box::pin(async move {
            let caller = C::identify(&app, &incoming.head).await?;
            let Incoming { head, arguments, body } = incoming;
            let headers = head.headers.clone();
            let request = decode::<Req>(head, &arguments, &[])?;
            handler(app, caller, Streamed { request, headers, body }).await
        })
    }))
}

/// A request whose body has not been read.
pub struct Streamed<Req> {
    /// Path, query and headers, typed. A field for the body is empty.
    pub request: Req,
    /// All headers.
    pub headers: HeaderMap,
    /// The body. Nothing bounds it yet.
    pub body: Body,
}

/// A handler with its method and all its paths.
pub struct Endpoint {
    method: Method,
    /// The path by which logs and metrics name the endpoint.
    name: &'static str,
    paths: Vec<String>,
    handler: Arc<Handler>,
}

impl Endpoint {
    fn new<Req: Metadata>(handler: Arc<Handler>) -> Self {
        let paths: Vec<&'static str> = Req::PATH_BUILDER.all_paths().collect();
        Self {
            method: Req::METHOD,
            name: paths.last().copied().unwrap_or_default(),
            paths: paths.into_iter().map(ToOwned::to_owned).collect(),
            handler,
        }
    }

    /// Serves each path also without its last segment, which is an argument that clients leave
    /// out when it is empty (`state_key`), with and without the slash before it.
    #[must_use]
    pub fn last_argument_optional(mut self) -> Self {
        let shorter: Vec<_> = self
            .paths
            .iter()
            .filter_map(|path| Some(path.rsplit_once('/')?.0.to_owned()))
            .collect();
        self.paths.extend(shorter.iter().map(|path| format!("{path}/")));
        self.paths.extend(shorter);
        self
    }

    /// Serves the endpoint under one more path, with the same arguments in the same order.
    #[must_use]
    pub fn also(mut self, path: &str) -> Self {
        self.paths.push(path.to_owned());
        self
    }

    /// Adds the endpoint to the methods of each of its paths.
    pub(super) fn register(self, mut add: impl FnMut(String, MethodRouter<Arc<App>>)) {
        // CONNECT has no filter, and no endpoint of Matrix uses it.
        let Ok(filter) = MethodFilter::try_from(self.method.clone()) else { return };
        let endpoint = Arc::new(self);
        for path in &endpoint.paths {
            let endpoint = Arc::clone(&endpoint);
            let handler = move |State(app): State<Arc<App>>,
                                arguments: Result<RawPathParams, RawPathParamsRejection>,
                                request: Request| {
                let endpoint = Arc::clone(&endpoint);
                async move { endpoint.answer(app, arguments, request).await }
            };
            add(positional(path), axum::routing::on(filter, handler));
        }
    }

    async fn answer(
        &self,
        app: Arc<App>,
        arguments: Result<RawPathParams, RawPathParamsRejection>,
        request: Request,
    ) -> Response {
        let started = Instant::now();
        let answer = match arguments {
            Ok(arguments) => {
                let arguments = arguments.iter().map(|(_, value)| value.to_owned()).collect();
                let (head, body) = request.into_parts();
                let incoming = Incoming { head, arguments, body };
                self.handle(Arc::clone(&app), incoming).await
            }
            Err(_) => Err(ApiError::invalid_param("The path is not UTF-8.")),
        };
        let response = answer.unwrap_or_else(|error| {
            self.log(&error);
            error.into_response()
        });
        app.metrics.request(&self.method, self.name, response.status(), started.elapsed());
        response
    }

    /// A request that meets a fault of this program ends alone; the others go on.
    async fn handle(&self, app: Arc<App>, incoming: Incoming) -> Result<Response, ApiError> {
        // What a request shares with others is behind locks and in the database, and both stand a panic.
        AssertUnwindSafe(async { (self.handler)(app, incoming).await })
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(ApiError::internal(Fault)))
    }

    fn log(&self, error: &ApiError) {
        let (method, endpoint) = (self.method.as_str(), self.name);
        if error.status().is_server_error() {
            log::error!(target: "http", method, endpoint, error = error.chain(); "request failed");
        } else {
            log::debug!(target: "http", method, endpoint, error = error.chain(); "request refused");
        }
    }
}

/// A fault of this program.
#[derive(Debug, thiserror::Error)]
#[error("the program failed at the place that stands above")]
struct Fault;

/// A request as it comes from the router.
struct Incoming {
    head: Parts,
    /// The path's arguments in order, percent-decoded.
    arguments: Vec<String>,
    body: Body,
}

impl Incoming {
    async fn read(self) -> Result<(Parts, Vec<String>, Bytes), ApiError> {
        let body = read(self.body, JSON_BODY_BYTES_MAX);
        let body = tokio::time::timeout(Duration::from_millis(BODY_READ_MS_MAX), body)
            .await
            .map_err(|_| slow_body())??;
        Ok((self.head, self.arguments, body))
    }
}

/// Reads a body of at most `bytes_max` bytes into memory.
pub async fn read(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let body = Limited::new(body, bytes_max).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            ApiError::too_large(bytes_max as u64)
        } else {
            ApiError::bad_json("The connection ended within the body.").with_source(error)
        }
    })?;
    Ok(body.to_bytes())
}

fn slow_body() -> ApiError {
    let message = "The body did not arrive in time.";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, ruma::api::error::ErrorKind::Unknown, message)
}

fn decode<Req: IncomingRequest>(
    head: Parts,
    arguments: &[String],
    body: &[u8],
) -> Result<Req, ApiError> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let request = http::Request::from_parts(head, body);
    // Ruma panics when a log-in has no `type`.
    faults::expected(AssertUnwindSafe(|| Req::try_from_http_request(request, &arguments)))
        .ok_or_else(|| ApiError::bad_json("The body lacks what this endpoint needs."))?
        .map_err(Into::into)
}

fn encode(response: impl OutgoingResponse) -> Result<Response, ApiError> {
    let response = response.try_into_http_response::<Vec<u8>>().map_err(ApiError::internal)?;
    Ok(response.map(Body::from))
}

/// Names a path's arguments by their position: endpoints that share a prefix may name the same
/// segment differently, which the router refuses.
fn positional(path: &str) -> String {
    let segments = path.split('/').enumerate().map(|(index, segment)| {
        if segment.starts_with('{') { format!("{{{index}}}") } else { segment.to_owned() }
    });
    segments.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use axum::Router;
    use http::header;
    use ruma::api::client::{discovery::get_supported_versions, state::send_state_event};
    use sallyport_core::time::Millis;
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        config::{Api, Config},
        http::{auth::Anonymous, client, matrix, router},
        shutdown,
    };

    #[test]
    fn a_last_argument_can_be_left_out() {
        let handler: Arc<Handler> = Arc::new(|_, _| Box::pin(async { Err(slow_body()) }));
        let endpoint = Endpoint::new::<send_state_event::v3::Request>(handler);
        let paths = endpoint.last_argument_optional().paths;
        for version in ["r0", "v3"] {
            for end in ["{event_type}/{state_key}", "{event_type}/", "{event_type}"] {
                let path = format!("/_matrix/client/{version}/rooms/{{room_id}}/state/{end}");
                assert!(paths.contains(&path), "{path} is not in {paths:?}");
            }
        }
    }

    #[test]
    fn arguments_are_named_by_position() {
        assert_eq!(positional("/rooms/{room_id}/send/{type}/"), "/rooms/{2}/send/{4}/");
    }

    fn open(folder: &Path) -> Arc<App> {
        let text = format!(
            "server_name = 'alpha.test'\ndata_dir = {:?}\n[registration]\nmode = 'open'",
            folder.display().to_string()
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        App::open(config, || Millis(1_000_000_000_000), shutdown::channel().1).unwrap()
    }

    async fn send(
        router: &Router,
        method: &Method,
        path: &str,
        token: &str,
        body: impl Into<Body>,
    ) -> (StatusCode, Value) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .body(body.into())
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn a_fault_of_an_endpoint_ends_its_request_alone() {
        async fn faulty(
            _: Arc<App>,
            _: Anonymous,
            _: get_supported_versions::Request,
        ) -> Result<get_supported_versions::Response, ApiError> {
            panic!("for the test")
        }
        let folder = tempfile::tempdir().unwrap();
        let router = matrix(vec![route(faulty)]).with_state(open(folder.path()));
        for _ in 0..2 {
            let path = "/_matrix/client/versions";
            let (status, json) = send(&router, &Method::GET, path, "", Body::empty()).await;
            assert_eq!((status.as_u16(), &json["errcode"]), (500, &json!("M_UNKNOWN")));
        }
    }

    /// Whatever comes, an endpoint answers: with what was asked for, or with an error in the specification's form.
    #[tokio::test]
    async fn no_endpoint_fails_at_a_body_of_another_shape() {
        let folder = tempfile::tempdir().unwrap();
        let router = router(open(folder.path()), &BTreeSet::from([Api::Client]));
        let account = json!({
            "username": "alice", "password": "correct horse battery", "auth": {"type": "m.login.dummy"}
        });
        let path = "/_matrix/client/v3/register";
        let (_, alice) = send(&router, &Method::POST, path, "", account.to_string()).await;
        let (user_id, token) = (alice["user_id"].as_str().unwrap(), &alice["access_token"]);
        let token = token.as_str().unwrap();
        let path = "/_matrix/client/v3/createRoom";
        let (_, room) = send(&router, &Method::POST, path, token, "{}").await;
        let room_id = room["room_id"].as_str().unwrap();
        let nested = "[".repeat(50_000);
        let confused = r#"{"type":7,"user_id":[],"identifier":3,"auth":{"type":{}},"session":1,
            "room_id":{},"events":{},"invite":{"a":1},"content":5,"messages":[1],"device_keys":"x"}"#;
        let bodies =
            ["", "{}", "[]", "null", "7", "\"\"", "nonsense", "{\"", "\u{fffe}", &nested, confused];
        let mut endpoints = client::routes();
        // What ends the session comes last.
        endpoints.sort_by_key(|endpoint| endpoint.name.contains("/logout"));
        for endpoint in endpoints {
            let segment = |segment: &str| match segment {
                "{room_id}" | "{room_id_or_alias}" => room_id.to_owned(),
                "{user_id}" => user_id.to_owned(),
                "{event_id}" => "$event".to_owned(),
                other => other.replace(['{', '}'], ""),
            };
            let path: Vec<_> = endpoint.name.split('/').map(segment).collect();
            let path = path.join("/");
            for body in bodies {
                let body = body.to_owned();
                let (status, json) = send(&router, &endpoint.method, &path, token, body).await;
                assert!(!status.is_server_error(), "{} {path}: {status} {json}", endpoint.method);
                if status.is_client_error() {
                    let interactive = json["flows"].is_array();
                    assert!(interactive || json["errcode"].is_string(), "{path}: {status} {json}");
                }
            }
        }
    }
}
