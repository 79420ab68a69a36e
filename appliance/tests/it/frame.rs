//! What holds for every endpoint: CORS, errors, bounds, decoding of paths.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use axum::{Router, body::Body};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use ruma::api::client::{
    account::register, alias::get_alias, media::get_content, profile::get_profile_field,
};
use sallyport::{
    app::{self, App},
    config::{Api, Config},
    http::{
        auth::Anonymous,
        error::ApiError,
        matrix,
        route::{Streamed, route, stream},
        router,
    },
    shutdown,
};
use sallyport_core::{limits::JSON_BODY_BYTES_MAX, time::Millis};
use serde_json::{Value, json};
use tower::ServiceExt as _;

fn service(folder: &Path) -> Router {
    router(app(folder), &BTreeSet::from([Api::Client, Api::Metrics]))
}

/// Endpoints that answer what they understood.
fn echo(folder: &Path) -> Router {
    async fn alias(
        _: Arc<App>,
        _: Anonymous,
        request: get_alias::v3::Request,
    ) -> Result<get_alias::v3::Response, ApiError> {
        Err(ApiError::not_found(request.room_alias.to_string()))
    }
    async fn field(
        _: Arc<App>,
        _: Anonymous,
        request: get_profile_field::v3::Request,
    ) -> Result<get_profile_field::v3::Response, ApiError> {
        Err(ApiError::not_found(format!("{} {}", request.user_id, request.field)))
    }
    async fn register(
        _: Arc<App>,
        _: Anonymous,
        request: register::v3::Request,
    ) -> Result<register::v3::Response, ApiError> {
        Err(ApiError::forbidden(request.username.unwrap_or_default()))
    }
    #[expect(deprecated, reason = "the authenticated endpoint needs a session")]
    async fn media(
        _: Arc<App>,
        _: Anonymous,
        media: Streamed<get_content::v3::Request>,
    ) -> Result<Response<Body>, ApiError> {
        Ok(Response::new(Body::from(format!("\"{}\"", media.request.media_id))))
    }
    matrix(vec![route(alias), route(field), route(register), stream(media)]).with_state(app(folder))
}

fn app(folder: &Path) -> Arc<App> {
    let text =
        format!("server_name = 'alpha.example'\ndata_dir = {:?}", folder.display().to_string());
    let config = Config::parse(&text, Path::new("test")).unwrap();
    let (_, shutdown) = shutdown::channel();
    App::open(config, || Millis(1_000_000_000_000), shutdown).unwrap()
}

async fn send(method: &str, path: &str, body: &'static str) -> (StatusCode, HeaderMap, Value) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
    answer(request).await
}

async fn answer(request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
    let folder = tempfile::tempdir().unwrap();
    ask(service(folder.path()), request).await
}

async fn ask(router: Router, request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
    let (head, body) = router.oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    (head.status, head.headers, body)
}

#[tokio::test]
async fn discovery() {
    let (status, _, body) = send("GET", "/_matrix/client/versions", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["versions"][0], "v1.1");

    let (_, _, body) = send("GET", "/.well-known/matrix/client", "").await;
    assert_eq!(body, json!({ "m.homeserver": { "base_url": "https://alpha.example" } }));

    let (_, _, body) = send("GET", "/_matrix/federation/v1/version", "").await;
    assert_eq!(body["server"]["name"], "Sallyport");
}

#[tokio::test]
async fn old_paths_answer_too() {
    for version in ["r0", "v3"] {
        let path = format!("/_matrix/client/{version}/login");
        let (status, _, body) = send("GET", &path, "").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body, json!({ "flows": [{ "type": "m.login.password" }] }));
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_unrecognized() {
    for (method, path, expected) in [
        ("GET", "/", StatusCode::NOT_FOUND),
        ("GET", "/_matrix/client/v3/nothing", StatusCode::NOT_FOUND),
        ("GET", "/_matrix/client/v3/login/", StatusCode::NOT_FOUND),
        ("PATCH", "/_matrix/client/v3/login", StatusCode::METHOD_NOT_ALLOWED),
        ("DELETE", "/_matrix/client/versions", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let (status, headers, body) = send(method, path, "").await;
        assert_eq!(status, expected, "{method} {path}");
        assert_eq!(body["errcode"], "M_UNRECOGNIZED", "{method} {path}");
        assert_eq!(headers["content-type"], "application/json", "{method} {path}");
        assert_eq!(headers["access-control-allow-origin"], "*", "{method} {path}");
    }
}

#[tokio::test]
async fn preflight_answers_everywhere() {
    for path in ["/_matrix/client/v3/login", "/_matrix/client/v3/nothing", "/"] {
        let (status, headers, _) = send("OPTIONS", path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(headers["access-control-allow-origin"], "*");
        let allowed = headers["access-control-allow-headers"].to_str().unwrap();
        assert!(allowed.contains("Authorization"), "{allowed}");
        let methods = headers["access-control-allow-methods"].to_str().unwrap();
        assert!(methods.contains("PUT"), "{methods}");
    }
}

#[tokio::test]
async fn members_only_endpoints_ask_for_a_token() {
    let path = "/_matrix/client/v3/capabilities";
    let (status, _, body) = send("GET", path, "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(body["errcode"], "M_MISSING_TOKEN");

    let request = Request::get(path).header("authorization", "Bearer unknown");
    let (status, headers, body) = answer(request.body(Body::empty()).unwrap()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(body["errcode"], "M_UNKNOWN_TOKEN");
    assert_eq!(headers["access-control-allow-origin"], "*");

    let (_, _, body) = send("GET", &format!("{path}?access_token=unknown"), "").await;
    assert_eq!(body["errcode"], "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn metrics_have_no_cors_header() {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let response = service(folder.path()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn path_arguments_are_decoded_once() {
    let folder = tempfile::tempdir().unwrap();
    let router = echo(folder.path());
    let alias = "/_matrix/client/v3/directory/room/";
    for (path, status, expected) in [
        (format!("{alias}%23ops%3Aalpha.example"), 404, "#ops:alpha.example"),
        (format!("{alias}%23ops:alpha.example"), 404, "#ops:alpha.example"),
        (format!("{alias}%23a%2Fb%2520:alpha.example"), 404, "#a/b%20:alpha.example"),
        (format!("{alias}ops"), 400, "M_INVALID_PARAM"),
        (format!("{alias}%FF"), 400, "M_INVALID_PARAM"),
        ("/_matrix/client/r0/profile/@a:b/avatar_url".to_owned(), 404, "@a:b avatar_url"),
    ] {
        let request = Request::get(&path).body(Body::empty()).unwrap();
        let (found, _, body) = ask(router.clone(), request).await;
        assert_eq!(found.as_u16(), status, "{path}");
        assert!(body["errcode"] == expected || body["error"] == expected, "{path}: {body}");
    }
}

#[tokio::test]
async fn bodies_are_bounded_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let router = echo(folder.path());
    let long = format!(r#"{{"username":"{}"}}"#, "a".repeat(JSON_BODY_BYTES_MAX));
    for (body, status, errcode) in [
        (r#"{"username":"alice"}"#, 403, "M_FORBIDDEN"),
        ("", 403, "M_FORBIDDEN"),
        (r#"{"username":"alice""#, 400, "M_NOT_JSON"),
        (r#"{"username":7}"#, 400, "M_BAD_JSON"),
        ("[]", 400, "M_BAD_JSON"),
        (&long, 413, "M_TOO_LARGE"),
    ] {
        let request = Request::post("/_matrix/client/v3/register");
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let (found, _, answer) = ask(router.clone(), request).await;
        let start: String = body.chars().take(30).collect();
        assert_eq!(
            (found.as_u16(), answer["errcode"].as_str()),
            (status, Some(errcode)),
            "{start}"
        );
    }
}

#[tokio::test]
async fn a_folder_serves_one_box() {
    let folder = tempfile::tempdir().unwrap();
    let first = app(folder.path());
    let config = first.config.clone();
    let second = App::open(config, first.clock, first.shutdown.clone());
    assert!(matches!(second, Err(app::Error::Occupied { .. })));
}

#[tokio::test]
async fn streams_have_a_typed_head() {
    let folder = tempfile::tempdir().unwrap();
    let path = "/_matrix/media/v3/download/alpha.example/abc?allow_remote=false";
    let request = Request::get(path).body(Body::empty()).unwrap();
    let (status, headers, body) = ask(echo(folder.path()), request).await;
    assert_eq!((status, body), (StatusCode::OK, json!("abc")));
    assert_eq!(headers["access-control-allow-origin"], "*");
}
