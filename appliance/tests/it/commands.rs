//! What every administrative command leaves in the audit log, in the transaction of its change.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{Router, body::Body};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use ruma::{server_name, user_id};
use sallyport::{
    app::App,
    http::admin_router,
    listen::PeerUser,
    service::{
        activation, backup, bundle, certificates, clock, order::Order, own_keys, peers, roster,
        rotation, token,
    },
    telemetry::chain,
};
use sallyport_core::{
    admin::{
        AUTHORITY, Approval, Authority, BackupVerified, CodesRequest, Consent, FINGERPRINT,
        KeyAction, KeyOrder, path,
    },
    audit::{Row, Tip, verify},
    backup::Sealed,
    bundle::unverified_header,
    digest::Sha256,
    journal::Seal,
    limits::{AUDIT_PAGE_ROWS_MAX, AUDIT_ROW_BYTES_MAX},
    roster::{Account, Head, Mode, Roster, activation::RANDOM_BYTES, signed::RosterFile},
    sign::KeyRole,
};
use sallyport_hsm::Pin;
use sallyport_store::Progress;
use tower::ServiceExt as _;

use crate::bundles::{Enclave, NOW, bare_enclave, order};

pub(crate) const EXPORT: &str = "/admin/v1/bundles/export?peer=bravo.test";

/// One request to the administration socket.
pub(crate) struct Command {
    method: Method,
    path: String,
    fingerprint: String,
    approvals: Vec<Approval>,
    body: Vec<u8>,
}

impl Command {
    pub(crate) fn new(method: Method, path: &str, body: impl Into<Vec<u8>>) -> Self {
        let (path, body) = (path.to_owned(), body.into());
        Self { method, path, fingerprint: String::new(), approvals: vec![], body }
    }

    pub(crate) fn post(path: &str, body: &[u8]) -> Self {
        Self::new(Method::POST, path, body)
    }

    pub(crate) fn fingerprint(self, fingerprint: String) -> Self {
        Self { fingerprint, ..self }
    }

    pub(crate) fn approved(self, approvals: Vec<Approval>) -> Self {
        Self { approvals, ..self }
    }

    /// Gives the command; the answer to its end, because a bundle is there when all of it has come.
    pub(crate) async fn give(self, router: &Router, actor: Option<&str>) -> (StatusCode, Vec<u8>) {
        let mut request = Request::builder().method(self.method).uri(self.path);
        let headers: &mut HeaderMap = request.headers_mut().unwrap();
        headers.insert(FINGERPRINT, HeaderValue::from_str(&self.fingerprint).unwrap());
        if let Some(actor) = actor {
            let authority = Authority { actor: actor.to_owned(), approvals: self.approvals };
            let authority = serde_json::to_vec(&authority).unwrap();
            headers.insert(AUTHORITY, HeaderValue::from_bytes(&authority).unwrap());
        }
        let mut request = request.body(Body::from(self.body)).unwrap();
        request.extensions_mut().insert(PeerUser { uid: 0 });
        let answer = router.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        (status, answer.into_body().collect().await.unwrap().to_bytes().to_vec())
    }
}

pub(crate) fn log(app: &App) -> Vec<Row> {
    app.store.read(|read| read.audit_rows(0, AUDIT_PAGE_ROWS_MAX)).unwrap()
}

fn tip(app: &App) -> Tip {
    app.store.read(|read| read.audit_tip()).unwrap()
}

fn roster_of(enclave: &Enclave) -> Vec<u8> {
    let head = Head {
        enclave: enclave.app.config.server_name.clone(),
        serial: 1,
        mode: Mode::Full,
        issued_at: NOW,
        levels: vec![],
    };
    let accounts = vec![Account::new("alice".parse().unwrap())];
    enclave.officers.sign(&Roster { head, accounts, locks: vec![] })
}

fn codes() -> CodesRequest {
    CodesRequest { localparts: vec![], all_waiting: true }
}

/// Two paired enclaves, and a bundle of bravo for alpha. Alpha itself knows nobody yet.
fn pair() -> (Enclave, Enclave, PathBuf) {
    let (alpha, bravo) = (bare_enclave("alpha.test", 0, 0), bare_enclave("bravo.test", 0, 0));
    peers::install_own_card(&bravo.app, bravo.card.clone(), &order()).unwrap();
    bravo.pair(&alpha);
    let bundle = bravo.export(&alpha);
    (alpha, bravo, bundle)
}

/// The certificate of an enclave's CA, which vouches for itself.
fn ca_of(enclave: &Enclave) -> Vec<u8> {
    let app = &enclave.app;
    app.certificates.as_ref().unwrap().refresh(&app.store, NOW).unwrap();
    fs::read(app.config.data_dir.join("ca.pem")).unwrap()
}

const SEQNUM_ID: &str = "739ad463348b4ceba5a9e69c95a3c93f";

/// A seal of seven entries of a journal, as the machine's unit sends it.
fn seal_after(after: u64) -> Vec<u8> {
    let merkle_root = Sha256([3; 32]);
    let seqnum_id = SEQNUM_ID.parse().unwrap();
    let seal = Seal { seqnum_id, after, last: after + 7, entries: 7, merkle_root };
    serde_json::to_vec(&seal).unwrap()
}

/// The commands that change something, each with the rows that it leaves: action and subject.
fn commands(
    alpha: &Enclave,
    bravo: &Enclave,
    bundle: Vec<u8>,
) -> Vec<(Command, Vec<(&'static str, String)>)> {
    let roster = roster_of(alpha);
    let statement = RosterFile::parse(&roster).unwrap().subject();
    let card = Sha256::of(&alpha.card);
    let peer = || "bravo.test".to_owned();
    let none = String::new;
    let post = Command::post;
    let json = serde_json::to_vec(&codes()).unwrap();
    let ours = || alpha.app.config.server_name.clone();
    let by_the_second = |consent: &Consent| vec![alpha.officers.approve(1, consent)];
    let incarnation = alpha.app.store.read(|read| read.incarnation()).unwrap();
    let to_export = Consent::to_export(ours(), incarnation, server_name!("bravo.test"), 1);
    let audit_key = own_keys::required(&alpha.app.store, KeyRole::Audit).unwrap().key.name;
    let names = std::slice::from_ref(&audit_key);
    let to_rotate = Consent::to_keys(ours(), incarnation, "key.rotate", names);
    vec![
        (
            Command::new(Method::PUT, path::CARD, alpha.card.clone())
                .approved(by_the_second(&Consent::to_own_card(ours(), card))),
            vec![("card.install", card.to_string())],
        ),
        (
            post(path::PEERS, &bravo.card)
                .fingerprint(bravo.fingerprint())
                .approved(by_the_second(&Consent::to_pairing(ours(), Sha256::of(&bravo.card)))),
            vec![("peer.add", peer())],
        ),
        (
            post(path::ROSTER, &roster)
                .approved(by_the_second(&Consent::to_mass_lock(ours(), statement))),
            vec![
                ("roster.import", statement.to_string()),
                ("roster.imported", statement.to_string()),
            ],
        ),
        (
            post(path::ACTIVATION_CODES, &json),
            vec![("activation.renew", "@alice:alpha.test".to_owned())],
        ),
        (post(path::CLOCK_ACCEPT, b""), vec![("clock.accept", NOW.0.to_string())]),
        (
            post(&format!("{}?of=ca", path::CERTIFICATE_REQUEST), b""),
            vec![("certificate.request", "ca".to_owned())],
        ),
        (
            Command::new(Method::PUT, path::CERTIFICATE, ca_of(alpha)),
            vec![
                ("certificate.install", Sha256::of(&ca_of(alpha)).to_string()),
                ("certificate.installed", Sha256::of(&ca_of(alpha)).to_string()),
            ],
        ),
        (
            post(path::TOKEN_UNLOCK, br#"{"pin":"1234"}"#),
            vec![("token.unlock", none()), ("token.unlocked", none())],
        ),
        (post(path::AUDIT_CHECKPOINT, b""), vec![("audit.checkpoint", none())]),
        (post(path::JOURNAL, &seal_after(0)), vec![("journal.seal", SEQNUM_ID.to_owned())]),
        (post(path::JOURNAL, &seal_after(7)), vec![("journal.seal", SEQNUM_ID.to_owned())]),
        (
            post(path::KEYS, br#"{"action":{"action":"rotate","role":"audit"}}"#)
                .approved(by_the_second(&to_rotate)),
            vec![("key.rotate", audit_key)],
        ),
        (post(EXPORT, b"").approved(by_the_second(&to_export)), vec![("bundle.export", peer())]),
        (
            post(path::BUNDLES_IMPORT, &bundle)
                .approved(by_the_second(&Consent::to_import(ours(), Sha256::of(&bundle)))),
            vec![("bundle.import", peer()), ("bundle.imported", peer())],
        ),
        (post(path::BUNDLES_IMPORT, &bundle), vec![("bundle.known", peer())]),
    ]
}

#[tokio::test]
async fn every_command_leaves_just_its_rows() {
    let (alpha, bravo, bundle) = pair();
    let router = admin_router(Arc::clone(&alpha.app));
    let mut paths = BTreeSet::new();
    for (command, expected) in commands(&alpha, &bravo, fs::read(bundle).unwrap()) {
        let before = log(&alpha.app).len();
        let path = command.path.clone();
        let approvers: Vec<_> = command.approvals.iter().map(|_| alpha.officers.id(1)).collect();
        let (status, body) = command.give(&router, Some("Alice Ä.")).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        let rows = log(&alpha.app).split_off(before);
        let left: Vec<_> =
            rows.iter().map(|row| (row.entry.action.as_str(), row.entry.subject.clone())).collect();
        assert_eq!(left, expected, "{path}");
        for row in rows.into_iter().filter(|row| row.entry.actor != "the box") {
            let entry = row.entry;
            assert_eq!((entry.actor.as_str(), entry.at), ("Alice Ä.", NOW), "{path}");
            assert_eq!(entry.approvals, approvers, "{path}");
            assert!(entry.evidence.starts_with("administration socket, uid 0"), "{path}");
        }
        paths.insert(path.split('?').next().unwrap().to_owned());
    }
    backup_counts_once_it_was_verified(&alpha, &router).await;
    paths.extend([path::BACKUP, path::BACKUP_VERIFIED].map(str::to_owned));
    assert_eq!(verify(Tip::default(), &log(&alpha.app)), Ok(tip(&alpha.app)));

    // The table is complete: whatever else asks who gives the command would be a command that is not in it.
    let constants = include_str!("../../core/src/admin.rs").split('"');
    let all: BTreeSet<&str> = constants.filter(|text| text.starts_with("/admin/v1/")).collect();
    assert!(all.len() > paths.len());
    for path in all {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let uri = format!("{path}?peer=bravo.test");
            let (status, _) = Command::new(method.clone(), &uri, "").give(&router, None).await;
            if status == StatusCode::METHOD_NOT_ALLOWED {
                continue;
            }
            let dry_run = path == path::ROSTER_DRY_RUN;
            assert!(paths.contains(path) || dry_run, "{method} {path} is not in the table");
            let expected = if dry_run { StatusCode::CONFLICT } else { StatusCode::BAD_REQUEST };
            assert_eq!(status, expected, "{method} {path}");
        }
    }
}

/// The id of a backup is known when it is there.
async fn backup_counts_once_it_was_verified(alpha: &Enclave, router: &Router) {
    let last = || backup::state(&alpha.app.store).unwrap().last;
    let before = log(&alpha.app).len();
    let (_, file) = Command::post(path::BACKUP, b"").give(router, Some("alice")).await;
    assert_eq!(last(), None);
    let id = Sealed::open(file.as_slice()).unwrap().id();
    let verified = serde_json::to_vec(&BackupVerified { id }).unwrap();
    let (status, _) =
        Command::post(path::BACKUP_VERIFIED, &verified).give(router, Some("alice")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(last().unwrap().id, id);
    let rows = log(&alpha.app).split_off(before);
    let left = rows.iter().map(|row| (row.entry.action.as_str(), row.entry.subject.as_str()));
    let left: Vec<_> = left.collect();
    assert_eq!(left, [("backup.create", "1"), ("backup.created", "1"), ("backup.verified", "1")]);
}

#[tokio::test]
async fn a_command_that_fails_leaves_a_row_that_says_so() {
    let (alpha, bravo, _) = pair();
    let router = admin_router(Arc::clone(&alpha.app));
    let post = Command::post;
    let hash = |bytes: &[u8]| Sha256::of(bytes).to_string();
    let unknown = CodesRequest { localparts: vec!["bob".parse().unwrap()], all_waiting: false };
    let swapped = post(path::PEERS, &bravo.card).fingerprint(alpha.fingerprint());
    let table = [
        (
            Command::new(Method::PUT, path::CARD, bravo.card.clone()),
            "card.install.failed",
            hash(&bravo.card),
            "another server",
        ),
        (swapped, "peer.add.failed", hash(&bravo.card), "fingerprint"),
        (post(path::ROSTER, b"x"), "roster.import.failed", hash(b"x"), "not a signed roster"),
        (
            post(path::ACTIVATION_CODES, &serde_json::to_vec(&unknown).unwrap()),
            "activation.renew.failed",
            String::new(),
            "bob is not an active account",
        ),
        (
            Command::new(Method::PUT, path::CERTIFICATE, b"x".to_vec()),
            "certificate.install.failed",
            hash(b"x"),
            "there is none in the file",
        ),
        (
            post(path::JOURNAL, &seal_after(1)),
            "journal.seal.failed",
            SEQNUM_ID.to_owned(),
            "sealed up to entry 0",
        ),
        (post(EXPORT, b""), "bundle.export.failed", "bravo.test".to_owned(), "is not a peer"),
        (post(path::BUNDLES_IMPORT, b"x"), "bundle.import.failed", hash(b"x"), "not accepted"),
        (
            post(path::KEYS, br#"{"action":{"action":"destroy","name":"event:0000000000000000"}}"#),
            "key.destroy.failed",
            "event:0000000000000000".to_owned(),
            "has no key",
        ),
    ];
    for (command, action, subject, says) in table {
        let before = log(&alpha.app).len();
        assert!(!command.give(&router, Some("alice")).await.0.is_success(), "{action}");
        let rows = log(&alpha.app).split_off(before);
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.entry.action.as_str(), &row.entry.subject), (action, &subject));
        let error = &row.entry.details["error"];
        assert!(error.contains(says), "{error}");
    }
}

/// An order whose row is longer than the audit log takes: the transaction fails after the change.
fn unrecordable() -> Order {
    Order { evidence: "x".repeat(AUDIT_ROW_BYTES_MAX), ..order() }
}

/// What went wrong, with all sources.
fn said<T>(done: Result<T, impl std::error::Error + 'static>) -> Result<(), String> {
    done.map(drop).map_err(|error| chain(&error))
}

/// A command, and what of the box shows that it was carried out.
type Attempt<'a> =
    (&'static str, Box<dyn Fn(&Order) -> Result<(), String> + 'a>, Box<dyn Fn() -> String + 'a>);

/// What the attempts need.
struct Scene {
    alpha: Enclave,
    bravo: Enclave,
    bundle: PathBuf,
    roster: Vec<u8>,
}

impl Scene {
    fn cards_and_accounts(&self) -> Vec<Attempt<'_>> {
        let Self { alpha, bravo, roster, .. } = self;
        let (app, store, ours) = (&alpha.app, &alpha.app.store, &alpha.app.config.server_name);
        let alice = user_id!("@alice:alpha.test");
        let code = || Ok(app.pepper.new_code(&[7; RANDOM_BYTES]));
        vec![
            (
                "card.install",
                Box::new(move |order| {
                    said(peers::install_own_card(app, alpha.card.clone(), order))
                }),
                Box::new(move || format!("{:?}", store.read(|read| read.own_card()).unwrap())),
            ),
            (
                "peer.add",
                Box::new(move |order| {
                    said(peers::pair(app, bravo.card.clone(), &bravo.fingerprint(), order))
                }),
                Box::new(move || format!("{:?}", store.read(|read| read.peers()).unwrap())),
            ),
            (
                "roster.import",
                Box::new(move |order| {
                    let officers = &app.config.roster.trusted_keys;
                    said(roster::import(store, ours, officers, roster, order, &code))
                }),
                Box::new(move || {
                    format!("{:?}", store.read(|read| read.roster_account(alice)).unwrap())
                }),
            ),
            (
                "activation.renew",
                Box::new(move |order| {
                    let fresh = || Ok(app.pepper.new_code(&[1; RANDOM_BYTES]));
                    said(activation::renew(store, ours, &codes(), order, &fresh))
                }),
                Box::new(move || {
                    let hash = app.pepper.new_code(&[7; RANDOM_BYTES]).hash;
                    format!(
                        "{:?}",
                        store.read(|read| read.activation_code_owner(hash, NOW)).unwrap()
                    )
                }),
            ),
            (
                "clock.accept",
                Box::new(move |order| said(clock::accept(store, order))),
                Box::new(move || format!("{:?}", store.read(|read| read.last_time()).unwrap())),
            ),
            (
                "token.unlock",
                Box::new(move |order| {
                    let token = app.token.as_deref().unwrap();
                    said(token::unlock(store, token, Pin::new("1234".to_owned()), order))
                }),
                // The token was not asked.
                Box::new(move || {
                    let metrics = app.metrics.encode().unwrap();
                    let count =
                        metrics.lines().find(|line| line.contains("token_operation_seconds_count"));
                    count.unwrap().to_owned()
                }),
            ),
        ]
    }

    fn certificates(&self) -> Vec<Attempt<'_>> {
        let alpha = &self.alpha;
        let (app, store) = (&alpha.app, &alpha.app.store);
        vec![(
            "certificate.install",
            Box::new(move |order| {
                let tls = app.certificates.as_ref().unwrap();
                said(certificates::install(store, tls, &ca_of(alpha), order))
            }),
            Box::new(move || {
                ca_of(alpha);
                fs::read_to_string(app.config.data_dir.join("tls/ca.json")).unwrap()
            }),
        )]
    }

    fn keys(&self) -> Vec<Attempt<'_>> {
        let (app, store) = (&self.alpha.app, &self.alpha.app.store);
        vec![(
            "key.rotate",
            Box::new(move |order| {
                let action = KeyAction::Rotate { role: KeyRole::Audit };
                let wish = KeyOrder { action, old_is_lost: false, plan: false };
                said(rotation::carry_out(app, &wish, order))
            }),
            Box::new(move || {
                let kept = store.read(|read| read.own_keys(KeyRole::Audit.as_str())).unwrap();
                format!("{kept:?} {:?}", app.token.as_ref().unwrap().keys().unwrap())
            }),
        )]
    }

    fn bundles(&self) -> Vec<Attempt<'_>> {
        let Self { alpha, bundle, .. } = self;
        let (app, store, peer) = (&alpha.app, &alpha.app.store, server_name!("bravo.test"));
        let sha256 = Sha256::of(&fs::read(bundle).unwrap());
        vec![
            (
                "bundle.export",
                Box::new(move |order| said(bundle::export::export(app, peer, order))),
                Box::new(move || {
                    let peer = store.read(|read| read.peer(peer)).unwrap().unwrap();
                    let files = fs::read_dir(app.config.data_dir.join("bundles"));
                    format!("{} {}", peer.sent_seq, files.map_or(0, Iterator::count))
                }),
            ),
            (
                "bundle.import",
                Box::new(move |order| said(bundle::import::import(app, bundle, sha256, order))),
                Box::new(move || {
                    let peer = store.read(|read| read.peer(peer)).unwrap().unwrap();
                    format!("{:?} {:?}", peer.received, progress(app, bundle))
                }),
            ),
        ]
    }
}

#[test]
fn what_cannot_be_recorded_is_not_done() {
    let (alpha, bravo, bundle) = pair();
    let roster = roster_of(&alpha);
    let scene = Scene { alpha, bravo, bundle, roster };
    let app = &scene.alpha.app;
    let attempts =
        [scene.cards_and_accounts(), scene.certificates(), scene.keys(), scene.bundles()];
    for (name, attempt, shows) in attempts.into_iter().flatten() {
        let (before, tip_before) = (shows(), tip(app));
        let error = attempt(&unrecordable()).unwrap_err();
        assert!(error.contains("the row for the audit log has"), "{name}: {error}");
        assert_eq!((shows(), tip(app)), (before.clone(), tip_before), "{name}");
        attempt(&order()).unwrap();
        assert_ne!(shows(), before, "{name}");
        assert_ne!(tip(app), tip_before, "{name}");
    }
}

#[test]
fn an_import_whose_end_cannot_be_recorded_goes_on_later() {
    let (alpha, bravo, bundle) = pair();
    peers::install_own_card(&alpha.app, alpha.card.clone(), &order()).unwrap();
    alpha.pair(&bravo);
    let app = &alpha.app;
    let sha256 = Sha256::of(&fs::read(&bundle).unwrap());
    let details = [("sequence", "1".to_owned()), ("sha256", sha256.to_string())];
    let begin = order().alone().unwrap().entry("bundle.import", "bravo.test", details);
    // The first row has just as many bytes as a row may have; the last one has two more.
    let room = AUDIT_ROW_BYTES_MAX - begin.bytes() + begin.evidence.len();
    let tight = Order { evidence: "x".repeat(room), ..order() };
    let before = log(app).len();
    let received = || {
        let peer = app.store.read(|read| read.peer(server_name!("bravo.test"))).unwrap();
        peer.unwrap().received.map(|received| received.seq)
    };
    bundle::import::import(app, &bundle, sha256, &tight).unwrap_err();
    assert_eq!((received(), log(app).len()), (None, before + 1));
    assert!(progress(app, &bundle).is_some(), "the import has begun");
    bundle::import::import(app, &bundle, sha256, &order()).unwrap();
    assert_eq!((received(), log(app).len()), (Some(1), before + 3));
}

/// How far the import of bravo's first bundle has come.
fn progress(app: &App, bundle: &Path) -> Option<Progress> {
    let manifest = unverified_header(fs::File::open(bundle).unwrap()).unwrap().manifest;
    let peer = server_name!("bravo.test");
    app.store.read(|read| read.import_progress(peer, 1, manifest.as_bytes())).unwrap()
}
