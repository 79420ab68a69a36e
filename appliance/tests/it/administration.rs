//! Rosters, activation codes and the audit log: from the administration socket to the activation page.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Instant};

use axum::{Router, body::Body};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use sallyport::{
    app::App,
    config::{Api, Config},
    http::{admin_router, router},
    listen::PeerUser,
    shutdown,
};
use sallyport_core::{
    admin::{
        AUTHORITY, Approval, AuditPage, Authority, CodesRequest, Consent, ErrorBody, ErrorCode,
        IssuedCode, RosterImported, RosterReport, Status, TokenStatus, path,
    },
    audit::{Tip, verify},
    digest::Sha256,
    limits::{ACTIVATION_MS_MAX, FAILED_LOGINS_PER_ADDRESS},
    roster::{Account, AccountState, Head, Localpart, Mode, Roster},
    time::Millis,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;

use crate::officers::Officers;

const NOW: Millis = Millis(1_795_000_000_000);

/// A box with two officers.
struct Fixture {
    folder: TempDir,
    officers: Officers,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let officers = Officers::new("alpha.example", folder.path());
        Self { folder, officers }
    }

    fn app(&self, more: &str, clock: fn() -> Millis) -> Arc<App> {
        let text = format!(
            "server_name = 'alpha.example'\ndata_dir = {:?}\n{}{more}",
            self.folder.path().join("data"),
            self.officers.config(),
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let (_, shutdown) = shutdown::channel();
        App::open(config, clock, shutdown).unwrap()
    }

    fn sign(&self, serial: u64, accounts: Vec<Account>) -> Vec<u8> {
        self.sign_for("alpha.example", serial, Mode::Full, accounts)
    }

    fn sign_for(&self, enclave: &str, serial: u64, mode: Mode, accounts: Vec<Account>) -> Vec<u8> {
        let head = Head {
            enclave: enclave.try_into().unwrap(),
            serial,
            mode,
            issued_at: NOW,
            levels: vec![],
        };
        self.officers.sign(&Roster { head, accounts, locks: vec![] })
    }

    fn approve(&self, officer: usize, subject: Sha256) -> Approval {
        let enclave = "alpha.example".try_into().unwrap();
        let consent = Consent::to_mass_lock(enclave, subject);
        self.officers.approve(officer, &consent)
    }
}

/// The administration socket, as one person uses it.
struct Admin(Router, Vec<Approval>);

impl Admin {
    fn of(app: &Arc<App>) -> Self {
        Self(admin_router(Arc::clone(app)), vec![])
    }

    fn with(&self, approval: Approval) -> Self {
        Self(self.0.clone(), vec![approval])
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
        let authority = Authority { actor: "Alice Ä.".to_owned(), approvals: self.1.clone() };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(AUTHORITY, serde_json::to_vec(&authority).unwrap())
            .body(Body::from(body))
            .unwrap();
        request.extensions_mut().insert(PeerUser { uid: 0 });
        let (head, body) = self.0.clone().oneshot(request).await.unwrap().into_parts();
        (head.status, body.collect().await.unwrap().to_bytes().to_vec())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.send(Method::GET, path, vec![]).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> T {
        let (status, body) = self.send(Method::POST, path, body.to_vec()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    async fn refused(&self, path: &str, body: &[u8]) -> (ErrorCode, String) {
        let (status, body) = self.send(Method::POST, path, body.to_vec()).await;
        let ErrorBody { code, error } = serde_json::from_slice(&body).unwrap();
        assert_eq!(status.as_u16(), code.http_status());
        (code, error)
    }

    async fn log(&self) -> Vec<(String, String)> {
        let page: AuditPage = self.get(path::AUDIT).await;
        assert_eq!(verify(Tip::default(), &page.rows), Ok(page.tip));
        let entries = page.rows.into_iter().map(|row| row.entry);
        entries.map(|entry| (entry.action, entry.actor)).collect()
    }
}

fn account(name: &str) -> Account {
    Account::new(name.parse().unwrap())
}

fn accounts(names: &[&str]) -> Vec<Account> {
    names.iter().map(|name| account(name)).collect()
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// The public side of a box, as a browser or a client uses it.
async fn ask(
    app: &Arc<App>,
    method: &str,
    path: &str,
    body: String,
) -> (StatusCode, HeaderMap, String) {
    let form =
        if path == "/activate" { "application/x-www-form-urlencoded" } else { "application/json" };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, form)
        .body(Body::from(body))
        .unwrap();
    let router = router(Arc::clone(app), &BTreeSet::from([Api::Client, Api::Activate]));
    let (head, body) = router.oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

async fn type_code(app: &Arc<App>, code: &str, password: &str) -> (StatusCode, String) {
    let form = format!("code={code}&password={password}&repeated={password}");
    let (status, _, page) = ask(app, "POST", "/activate", form).await;
    (status, page)
}

async fn log_in(app: &Arc<App>, name: &str, password: &str) -> StatusCode {
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": name },
        "password": password,
    });
    ask(app, "POST", "/_matrix/client/v3/login", body.to_string()).await.0
}

fn code_of<'c>(codes: &'c [IssuedCode], user_id: &str) -> &'c str {
    codes.iter().find(|code| code.user_id == user_id).map(|code| code.code.as_str()).unwrap()
}

#[tokio::test]
async fn from_a_roster_to_a_log_in() {
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let admin = Admin::of(&app);
    let roster = fixture.sign(1, accounts(&["alice", "bob"]));

    let report: RosterReport = admin.post(path::ROSTER_DRY_RUN, &roster).await;
    assert_eq!((report.counts.new, report.head.serial), (2, 1));
    let status: Status = admin.get(path::STATUS).await;
    assert_eq!((status.roster, status.audit.id, status.token.state), (None, 0, TokenStatus::None));

    let imported: RosterImported = admin.post(path::ROSTER, &roster).await;
    assert_eq!(imported.codes.len(), 2);
    assert_eq!(imported.codes[0].expires_at, Millis(NOW.0 + ACTIVATION_MS_MAX));
    let code = code_of(&imported.codes, "@alice:alpha.example").to_lowercase().replace('-', "+");
    assert_eq!(log_in(&app, "alice", "a%20long%20secret").await, StatusCode::FORBIDDEN);
    let (status, page) = type_code(&app, &code, "a+long+secret").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("<dd>@alice:alpha.example</dd>"), "{page}");
    assert_eq!(log_in(&app, "alice", "a long secret").await, StatusCode::OK);

    // Once is once.
    let (status, page) = type_code(&app, &code, "another+secret").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(page.contains("The code is not valid"), "{page}");
    let status: Status = admin.get(path::STATUS).await;
    assert_eq!((status.accounts.active, status.accounts.waiting), (1, 1));
    let person = || "Alice Ä.".to_owned();
    assert_eq!(
        admin.log().await,
        [
            ("roster.import".to_owned(), person()),
            ("roster.imported".to_owned(), person()),
            ("activation.redeem".to_owned(), "@alice:alpha.example".to_owned()),
        ]
    );
}

#[tokio::test]
async fn rosters_that_are_refused_change_nothing() {
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let admin = Admin::of(&app);
    let _: RosterImported = admin.post(path::ROSTER, &fixture.sign(5, accounts(&["alice"]))).await;
    let mut damaged = fixture.sign(6, accounts(&["alice"]));
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    let stranger = Fixture::new().sign(6, accounts(&["alice"]));
    let elsewhere = fixture.sign_for("bravo.example", 6, Mode::Full, accounts(&["alice"]));
    let table = [
        (
            fixture.sign(5, accounts(&["alice"])),
            "the roster has serial 5, but 5 was imported already",
        ),
        (
            fixture.sign(4, accounts(&["bob"])),
            "the roster has serial 4, but 5 was imported already",
        ),
        (damaged, "the accounts are not those that were signed"),
        (stranger, "which is not an officer's key here"),
        (elsewhere, "the roster is for bravo.example, this box is alpha.example"),
        (b"localpart\nalice\n".to_vec(), "the file is not a signed roster"),
    ];
    for (roster, says) in table {
        for path in [path::ROSTER, path::ROSTER_DRY_RUN] {
            let (code, error) = admin.refused(path, &roster).await;
            assert_eq!(code, ErrorCode::Refused);
            assert!(error.contains(says), "{error}");
        }
    }
    // Nothing but the attempts is on record.
    let log = admin.log().await;
    let attempts = log.iter().filter(|(action, _)| action == "roster.import.failed");
    assert_eq!((log.len(), attempts.count()), (2 + 6, 6));
}

#[tokio::test]
async fn commands_name_who_gives_them() {
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let request = Request::post(path::ROSTER).body(Body::from(fixture.sign(1, vec![]))).unwrap();
    let answer = admin_router(Arc::clone(&app)).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let ErrorBody { error, .. } = serde_json::from_slice(&body).unwrap();
    assert!(error.contains("does not say who gives it"), "{error}");
}

#[tokio::test]
async fn locking_many_needs_a_second_officer() {
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let admin = Admin::of(&app);
    let all = accounts(&["alice", "bob", "carol"]);
    let _: RosterImported = admin.post(path::ROSTER, &fixture.sign(1, all)).await;
    let smaller = fixture.sign(2, accounts(&["alice"]));
    let report: RosterReport = admin.post(path::ROSTER_DRY_RUN, &smaller).await;
    assert_eq!(report.locked, ["bob", "carol"].map(|name| name.parse::<Localpart>().unwrap()));
    assert!(report.mass_lock.is_some());

    let (code, error) = admin.refused(path::ROSTER, &smaller).await;
    assert_eq!(code, ErrorCode::NeedsApproval);
    assert!(error.contains("would lock 2 of 3 active accounts"), "{error}");
    let own = admin.with(fixture.approve(0, report.subject));
    assert!(own.refused(path::ROSTER, &smaller).await.1.contains("ask another one"));
    let other = admin.with(fixture.approve(1, Sha256::default()));
    assert!(
        other
            .refused(path::ROSTER, &smaller)
            .await
            .1
            .contains("and this command is roster.mass-lock of")
    );

    let approved = admin.with(fixture.approve(1, report.subject));
    let imported: RosterImported = approved.post(path::ROSTER, &smaller).await;
    assert_eq!(imported.report.counts.locked, 2);
    let page: AuditPage = admin.get(&format!("{}?after=5", path::AUDIT)).await;
    assert_eq!(page.rows[0].entry.approvals.len(), 1);
    assert!(page.rows[0].entry.evidence.starts_with("administration socket, uid 0"));
}

#[tokio::test]
async fn locked_people_neither_log_in_nor_use_their_code() {
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let admin = Admin::of(&app);
    let names: Vec<String> = (0..21).map(|n| format!("u{n:02}")).collect();
    let everyone = |state: AccountState| {
        let mut all: Vec<Account> = names.iter().map(|name| account(name)).collect();
        all[0].state = state;
        all[1].state = state;
        all
    };
    let imported: RosterImported =
        admin.post(path::ROSTER, &fixture.sign(1, everyone(AccountState::Active))).await;
    let (zero, one) = (
        code_of(&imported.codes, "@u00:alpha.example"),
        code_of(&imported.codes, "@u01:alpha.example"),
    );
    assert_eq!(type_code(&app, zero, "a+long+secret").await.0, StatusCode::OK);
    let _: RosterImported =
        admin.post(path::ROSTER, &fixture.sign(2, everyone(AccountState::Locked))).await;
    assert_ne!(log_in(&app, "u00", "a long secret").await, StatusCode::OK);
    assert_eq!(type_code(&app, one, "a+long+secret").await.0, StatusCode::FORBIDDEN);
    // Unlocked again: the password is still there, the code is not.
    let _: RosterImported =
        admin.post(path::ROSTER, &fixture.sign(3, everyone(AccountState::Active))).await;
    assert_eq!(log_in(&app, "u00", "a long secret").await, StatusCode::OK);
    assert_eq!(type_code(&app, one, "a+long+secret").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn codes_are_renewed() {
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let admin = Admin::of(&app);
    let imported: RosterImported =
        admin.post(path::ROSTER, &fixture.sign(1, accounts(&["alice", "bob"]))).await;
    let old = code_of(&imported.codes, "@alice:alpha.example");
    let bobs = code_of(&imported.codes, "@bob:alpha.example");
    assert_eq!(type_code(&app, bobs, "a+long+secret").await.0, StatusCode::OK);

    let waiting = json(&CodesRequest { localparts: vec![], all_waiting: true });
    let codes: Vec<IssuedCode> = admin.post(path::ACTIVATION_CODES, &waiting).await;
    assert_eq!(
        codes.iter().map(|code| &code.user_id).collect::<Vec<_>>(),
        ["@alice:alpha.example"]
    );
    assert_eq!(type_code(&app, old, "a+long+secret").await.0, StatusCode::FORBIDDEN);
    assert_eq!(type_code(&app, &codes[0].code, "a+long+secret").await.0, StatusCode::OK);

    // A forgotten password.
    let bob = json(&CodesRequest { localparts: vec!["bob".parse().unwrap()], all_waiting: false });
    let codes: Vec<IssuedCode> = admin.post(path::ACTIVATION_CODES, &bob).await;
    assert_eq!(type_code(&app, &codes[0].code, "a+new+secret").await.0, StatusCode::OK);
    assert_eq!(log_in(&app, "bob", "a long secret").await, StatusCode::FORBIDDEN);
    assert_eq!(log_in(&app, "bob", "a new secret").await, StatusCode::OK);

    let nobody =
        json(&CodesRequest { localparts: vec!["carol".parse().unwrap()], all_waiting: true });
    let (code, error) = admin.refused(path::ACTIVATION_CODES, &nobody).await;
    assert_eq!(
        (code, error.as_str()),
        (ErrorCode::NotFound, "carol is not an active account of a roster")
    );
}

#[tokio::test]
async fn the_page_is_careful_and_says_what_to_correct() {
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let admin = Admin::of(&app);
    let (status, headers, page) = ask(&app, "GET", "/activate", String::new()).await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("<h1>alpha.example</h1>") && !page.contains("<script"), "{page}");
    assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    assert_eq!(headers["cache-control"], "no-store");
    assert!(!headers.contains_key("access-control-allow-origin"));
    let (_, headers, _) = ask(&app, "GET", "/activate/style.css", String::new()).await;
    assert_eq!(headers["content-type"], "text/css; charset=utf-8");

    let imported: RosterImported =
        admin.post(path::ROSTER, &fixture.sign(1, accounts(&["alice"]))).await;
    let code = &imported.codes[0].code;
    let table = [
        (
            format!("code={code}&password=a+long+secret&repeated=another"),
            "The two passwords differ",
        ),
        (format!("code={code}&password=short&repeated=short"), "The password has fewer than"),
        (
            format!("code={}&password=a+long+secret&repeated=a+long+secret", &code[1..]),
            "An activation code has 24 letters and digits",
        ),
        (
            "code=%3Cb%3E&password=a+long+secret&repeated=a+long+secret".to_owned(),
            "value=\"&#60;b&#62;\"",
        ),
        (format!("code={code}"), "Fill in the whole form."),
    ];
    for (form, says) in table {
        let (status, _, page) = ask(&app, "POST", "/activate", form).await;
        assert!(status.is_client_error(), "{status}");
        assert!(page.contains(says), "{page}\n does not say {says}");
    }
    let huge = format!("code={}", "x".repeat(20_000));
    assert!(ask(&app, "POST", "/activate", huge).await.0.is_client_error());
    assert_eq!(type_code(&app, code, "a+long+secret").await.0, StatusCode::OK);
}

#[tokio::test]
async fn guessing_from_one_address_is_slowed_down() {
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let guess = || async {
        let mut request = Request::post("/activate")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Body::from(
                "code=0000-0000-0000-0000-0000-0000&password=a+long+secret&repeated=a+long+secret",
            ))
            .unwrap();
        request.extensions_mut().insert(sallyport::http::auth::PeerAddress([10, 0, 0, 1].into()));
        let router = router(Arc::clone(&app), &BTreeSet::from([Api::Activate]));
        router.oneshot(request).await.unwrap()
    };
    for _ in 0..FAILED_LOGINS_PER_ADDRESS {
        assert_eq!(guess().await.status(), StatusCode::FORBIDDEN);
    }
    let slowed = guess().await;
    assert_eq!(slowed.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(slowed.headers().contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn codes_expire() {
    let fixture = Fixture::new();
    let code = {
        let app = fixture.app("", || NOW);
        let roster = fixture.sign(1, accounts(&["alice"]));
        let imported: RosterImported = Admin::of(&app).post(path::ROSTER, &roster).await;
        imported.codes[0].code.clone()
    };
    let app = fixture.app("", || Millis(NOW.0 + ACTIVATION_MS_MAX));
    assert_eq!(type_code(&app, &code, "a+long+secret").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_code_is_a_registration_token_for_its_account_only() {
    let fixture = Fixture::new();
    let app = fixture.app("[registration]\nmode = 'token'", || NOW);
    let imported: RosterImported =
        Admin::of(&app).post(path::ROSTER, &fixture.sign(1, accounts(&["alice", "bob"]))).await;
    let code = code_of(&imported.codes, "@alice:alpha.example");

    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
    for (token, valid) in [(code, true), ("0000-0000-0000-0000-0000-0000", false), ("x", false)] {
        let (_, _, body) = ask(&app, "GET", &format!("{validity}{token}"), String::new()).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["valid"], valid, "{token}");
    }
    let register = |name: &str, auth: Value| {
        let body = json!({ "username": name, "password": "a long secret", "auth": auth });
        ask(&app, "POST", "/_matrix/client/v3/register", body.to_string())
    };
    let session = |body: &str| {
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["flows"][0]["stages"][0], "m.login.registration_token", "{body}");
        body["session"].as_str().unwrap().to_owned()
    };
    let token = |session: String| json!({ "type": "m.login.registration_token", "token": code, "session": session });
    let (_, _, body) = register("bob", Value::Null).await;
    let (status, _, _) = register("bob", token(session(&body))).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (_, _, body) = register("alice", Value::Null).await;
    let (status, _, body) = register("alice", token(session(&body))).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!(body.contains("\"user_id\":\"@alice:alpha.example\""), "{body}");
    assert_eq!(log_in(&app, "alice", "a long secret").await, StatusCode::OK);
}

/// A large enclave. Ten seconds is the bound of a build with optimisation; the time is printed with `--nocapture`.
#[tokio::test]
async fn ten_thousand_accounts_in_slices() {
    const USERS: usize = 10_000;
    let fixture = Fixture::new();
    let app = fixture.app("", || NOW);
    let admin = Admin::of(&app);
    let all = (0..USERS).map(|n| Account {
        display_name: Some(format!("Person {n}")),
        ..account(&format!("u{n:06}"))
    });
    let roster = fixture.sign(1, all.collect());
    let start = Instant::now();
    let imported: RosterImported = admin.post(path::ROSTER, &roster).await;
    println!("import of {USERS} accounts: {:?}", start.elapsed());
    assert_eq!(imported.codes.len(), USERS);
    let status: Status = admin.get(path::STATUS).await;
    assert_eq!(status.accounts.waiting, USERS as u64);
    let user_id = ruma::user_id!("@u000007:alpha.example");
    let name = app.store.read(|read| read.profile_field(user_id, "displayname")).unwrap();
    assert_eq!(name.as_deref(), Some("\"Person 7\""));
}
