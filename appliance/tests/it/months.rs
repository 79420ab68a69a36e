//! Months without a token: the box starts, serves and chats, and what waits is signed when the token is back.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConnection, crypto::ring,
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use sallyport::{
    app::App,
    config::{Api, Config},
    http::router,
    service::{own_keys, peers, signer},
    shutdown,
};
use sallyport_core::{sign::Policy, time::Millis};
use sallyport_hsm::{Health, Pin, SoftwareToken};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::bundles::{bare_enclave, order};

const FOUNDED: u64 = 1_795_000_000_000;
const A_DAY_MS: u64 = 24 * 60 * 60 * 1000;
const PASSWORD: &str = "correct horse battery";

/// The box's clock. Only the test of this file moves it.
static CLOCK: AtomicU64 = AtomicU64::new(FOUNDED);

fn clock() -> Millis {
    Millis(CLOCK.load(Ordering::SeqCst))
}

fn pin() -> Pin {
    Pin::new("1234".to_owned())
}

/// One run of the box, from its start to its end. The token is locked, and so as good as away, until somebody gives its PIN.
struct Run {
    app: Arc<App>,
}

impl Run {
    fn start(folder: &Path) -> Self {
        let text = format!(
            "server_name = 'alpha.test'\ndata_dir = {:?}\nallow_software_keys = true\n\
             [registration]\nmode = 'open'\n[token]\nkind = 'software'\npath = {:?}",
            folder.join("data"),
            folder.join("token"),
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let app = App::open(config, clock, shutdown::channel().1).unwrap();
        let health = app.token.as_ref().unwrap().health();
        assert!(matches!(health, Health::Locked { .. }), "{health:?}");
        Self { app }
    }

    fn give_pin(&self) {
        self.app.token.as_ref().unwrap().reopen(pin()).unwrap();
    }

    async fn ask(&self, method: &str, path: &str, token: Option<&str>, body: Value) -> Value {
        let uri = format!("/_matrix/client/v3/{path}");
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let router = router(Arc::clone(&self.app), &BTreeSet::from([Api::Client]));
        let answer = router.oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(head.status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    async fn log_in(&self) -> String {
        let login = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": "alice" },
            "password": PASSWORD,
        });
        let answer = self.ask("POST", "login", None, login).await;
        answer["access_token"].as_str().unwrap().to_owned()
    }

    async fn say(&self, token: &str, room: &str, body: &str) {
        let path = format!("rooms/{room}/send/m.room.message/{body}");
        let message = json!({ "msgtype": "m.text", "body": body });
        self.ask("PUT", &path, Some(token), message).await;
    }

    async fn sees(&self, token: &str, room: &str, body: &str) {
        let sync = self.ask("GET", "sync?timeout=0", Some(token), Value::Null).await;
        let events = &sync["rooms"]["join"][room]["timeline"]["events"];
        let seen = events.as_array().unwrap().iter().any(|event| event["content"]["body"] == body);
        assert!(seen, "{body} is not in {events}");
    }

    fn unsigned(&self) -> u64 {
        self.app.store.read(|read| read.backlog()).unwrap().events
    }

    /// A device that trusts the enclave CA and has the right time connects.
    fn shakes_hands(&self) {
        let root = self.app.config.data_dir.join("ca.pem");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(root).unwrap()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let device = ClientConfig::builder_with_details(provider, Arc::new(Now))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("alpha.test").unwrap();
        let mut client = ClientConnection::new(Arc::new(device), name).unwrap();
        let server = self.app.certificates.as_ref().unwrap().server_config().unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
    }
}

#[derive(Debug)]
struct Now;

impl TimeProvider for Now {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(clock().0)))
    }
}

/// The box as its upkeep leaves it on the first day; answers a session and a room with a member of another enclave.
async fn first_day(run: &Run) -> (String, String) {
    run.give_pin();
    let app = &run.app;
    let token = app.token.as_deref().unwrap();
    own_keys::ensure(&app.store, token, clock()).unwrap();
    assert!(app.vault.wrap_with(token).unwrap());
    assert!(app.certificates.as_ref().unwrap().refresh(&app.store, clock()).unwrap());
    let bravo = bare_enclave("bravo.test", 0, 0);
    peers::pair(app, bravo.card.clone(), &bravo.fingerprint(), &order()).unwrap();
    let wish = json!({
        "username": "alice", "password": PASSWORD, "auth": { "type": "m.login.dummy" },
    });
    let made = run.ask("POST", "register", None, wish).await;
    let alice = made["access_token"].as_str().unwrap().to_owned();
    let invite = json!({ "invite": ["@bob:bravo.test"] });
    let room = run.ask("POST", "createRoom", Some(&alice), invite).await;
    let room = room["room_id"].as_str().unwrap().to_owned();
    let done = signer::sign_pending(app, token, || false);
    done.unwrap();
    (alice, room)
}

#[tokio::test]
async fn a_box_serves_for_months_without_its_token_and_signs_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let policy = Policy { server_name: "alpha.test".try_into().unwrap() };
    SoftwareToken::create_with_pin(&folder.path().join("token"), &pin(), policy).unwrap();
    let run = Run::start(folder.path());
    let (session, room) = first_day(&run).await;
    assert_eq!(run.unsigned(), 0);
    run.shakes_hands();
    drop(run);

    let days = [1, 30, 60, 90, 120];
    for (count, day) in (1..).zip(days) {
        CLOCK.store(FOUNDED + day * A_DAY_MS, Ordering::SeqCst);
        let run = Run::start(folder.path());
        run.shakes_hands();
        let certificates = run.app.certificates.as_ref().unwrap();
        assert!(certificates.refresh(&run.app.store, clock()).unwrap(), "day {day}: it still fits");
        // The session of the first day is known, and another is made with the password.
        let body = format!("day-{day}");
        run.say(&session, &room, &body).await;
        let fresh = run.log_in().await;
        run.sees(&fresh, &room, &body).await;
        assert_eq!(run.unsigned(), count, "day {day}");
    }

    let run = Run::start(folder.path());
    run.give_pin();
    let app = &run.app;
    let token = app.token.as_deref().unwrap();
    let done = signer::sign_pending(app, token, || false);
    done.unwrap();
    assert_eq!(run.unsigned(), 0);
    run.sees(&session, &room, "day-120").await;
}
