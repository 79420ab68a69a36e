//! What holds for every endpoint: CORS, errors, bounds, decoding of paths.

use std::{collections::BTreeSet, path::Path};

use axum::{Router, body::Body};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use sallyport::{
    app::App,
    config::{Api, Config},
    http::router,
    shutdown,
};
use sallyport_core::time::Millis;
use serde_json::{Value, json};
use tower::ServiceExt as _;

fn service(folder: &Path) -> Router {
    let text =
        format!("server_name = 'alpha.example'\ndata_dir = {:?}", folder.display().to_string());
    let config = Config::parse(&text, Path::new("test")).unwrap();
    let (_, shutdown) = shutdown::channel();
    let app = App::open(config, || Millis(1_000_000_000_000), shutdown).unwrap();
    router(app, &BTreeSet::from([Api::Client, Api::Metrics]))
}

async fn send(method: &str, path: &str, body: &'static str) -> (StatusCode, HeaderMap, Value) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body)).unwrap();
    answer(request).await
}

async fn answer(request: Request<Body>) -> (StatusCode, HeaderMap, Value) {
    let folder = tempfile::tempdir().unwrap();
    let response = service(folder.path()).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
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

    // A token in the query string would end up in logs.
    let (_, _, body) = send("GET", &format!("{path}?access_token=unknown"), "").await;
    assert_eq!(body["errcode"], "M_MISSING_TOKEN");
}

#[tokio::test]
async fn metrics_have_no_cors_header() {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let response = service(folder.path()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("access-control-allow-origin"));
}
