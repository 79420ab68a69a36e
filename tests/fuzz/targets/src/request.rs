//! What a client may send, answered by a box in this process.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{Method, Request, StatusCode, header, request};
use http_body_util::{BodyExt as _, Full};
use sallyport::{
    app::App,
    config::{Api, Config},
    http::router,
    shutdown,
};
use sallyport_core::time::Millis;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tower::ServiceExt as _;

use super::NOW;

/// A request of a member: method and path on the first line, in which `ROOM` is a room of theirs; below it the body.
pub fn request(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (head, body) = bytes.split_at(end);
    let body = body.strip_prefix(b"\n").unwrap_or(body);
    let Ok(head) = str::from_utf8(head) else { return };
    let Some((method, path)) = head.split_once(' ') else { return };
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    let path = path.replace("ROOM", &BOX.room);
    let body = String::from_utf8_lossy(body).replace("ROOM", &BOX.room).into_bytes();
    let Some((status, answer)) = BOX.ask(&method, &path, body) else { return };
    assert!(!status.is_server_error(), "{method} {path}: {status} {answer}");
}

static BOX: LazyLock<Enclave> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for the box");
    let text = format!(
        "server_name = 'alpha.example'\ndata_dir = {:?}\n[registration]\nmode = 'open'",
        folder.path().display().to_string()
    );
    let config = Config::parse(&text, Path::new("fuzz")).expect("the configuration is sound");
    let app = App::open(config, now, shutdown::channel().1).expect("the box starts");
    let router = router(app, &BTreeSet::from([Api::Client]));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ask = move |head: request::Builder, body: Vec<u8>| {
        let request = head.body(Full::from(body)).ok()?;
        runtime.block_on(async {
            let response = router.clone().oneshot(request).await.ok()?;
            let status = response.status();
            let body = response.into_body().collect().await.ok()?.to_bytes();
            Some((status, serde_json::from_slice(&body).unwrap_or_default()))
        })
    };
    let (token, room) = (String::new(), String::new());
    let mut enclave = Enclave { ask: Box::new(ask), token, room, _folder: folder };
    let account = json!({
        "username": "alice", "password": "correct horse", "device_id": "PHONE",
        "auth": {"type": "m.login.dummy"},
    });
    enclave.token = enclave.field("register", &account, "access_token");
    enclave.room = enclave.field("createRoom", &json!({}), "room_id");
    enclave
});

/// Later by a millisecond each time: the id of a room comes from its first event, and so from the time.
fn now() -> Millis {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    Millis(NOW.0 + ASKED.fetch_add(1, Ordering::Relaxed))
}

/// Status and body of the answer, `null` if that is no JSON.
type Answer = Option<(StatusCode, Value)>;

struct Enclave {
    ask: Box<dyn Fn(request::Builder, Vec<u8>) -> Answer + Send + Sync>,
    token: String,
    room: String,
    _folder: TempDir,
}

impl Enclave {
    /// `None` if HTTP has no such request.
    fn ask(&self, method: &Method, path: &str, body: Vec<u8>) -> Answer {
        let head = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        (self.ask)(head, body)
    }

    fn field(&self, endpoint: &str, body: &Value, name: &str) -> String {
        let path = format!("/_matrix/client/v3/{endpoint}");
        let answer = self.ask(&Method::POST, &path, body.to_string().into_bytes());
        let field = answer.and_then(|(_, json)| Some(json.get(name)?.as_str()?.to_owned()));
        field.expect("the box answers")
    }
}
