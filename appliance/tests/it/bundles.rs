//! Two enclaves that share no network: pairing by cards, and bundles carried to and fro.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, RoomVersionId, UserId,
    events::room::member::MembershipState, server_name,
};
use sallyport::{
    app::App,
    config::Config,
    service::{
        bundle::{self, export::export, import::import},
        order::Order,
        own_keys, peers, signer,
    },
    shutdown,
};
use sallyport_core::{
    admin::{Authority, BundleImported, CardTerms},
    backup::RecoveryKey,
    card::{Card, Direction, Policy, Proposed},
    digest::Sha256,
    room::{self, Intent, create},
    sign::{KeyRole, Policy as SigningPolicy, SigningRequest},
    time::Millis,
};
use sallyport_hsm::{KeyKind, SoftwareToken, Token as _};
use sallyport_store::{Error, Outcome};

use crate::officers::Officers;

pub(crate) const NOW: Millis = Millis(1_000_000_000_000);
pub(crate) const ALICE: &str = "@alice:alpha.test";
/// The private half of the recovery officer's key.
pub(crate) const RECOVERY_SEED: [u8; 32] = [7; 32];
const BOB: &str = "@bob:bravo.test";

pub(crate) fn order() -> Order {
    let authority = Authority { actor: "alice".to_owned(), approvals: vec![] };
    Order { authority, evidence: "test".to_owned(), now: NOW }
}

pub(crate) struct Enclave {
    pub(crate) app: Arc<App>,
    pub(crate) card: Vec<u8>,
    pub(crate) officers: Officers,
    folder: tempfile::TempDir,
}

/// A box with a software token, two officers whose approval nothing needs, and a card that its enclave's root has signed.
pub(crate) fn enclave(name: &str) -> Enclave {
    let enclave = bare_enclave(name, 0, 0);
    peers::install_own_card(&enclave.app, enclave.card.clone(), &order()).unwrap();
    enclave
}

/// The same with the card beside it: so many officers must approve an export and an import.
pub(crate) fn bare_enclave(name: &str, export_approvals: u8, import_approvals: u8) -> Enclave {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let officers = Officers::new(name, folder.path());
    let text = format!(
        "server_name = '{name}'\ndata_dir = {:?}\nallow_software_keys = true\n{}[backup]\nrecovery_keys = ['{}']\n[token]\nkind = 'software'\npath = {:?}",
        data.display().to_string(),
        officers.config(),
        RecoveryKey::x_wing(&RECOVERY_SEED),
        folder.path().join("token").display().to_string(),
    );
    let config = Config::parse(&text, Path::new("test")).unwrap();
    let (_, shutdown) = shutdown::channel();
    let app = App::open(config, || NOW, shutdown).unwrap();
    own_keys::ensure(&app.store, &**app.token.as_ref().unwrap(), NOW).unwrap();

    let mut enclave = Enclave { app, card: Vec::new(), officers, folder };
    enclave.card = enclave.issue("safe", 1, (export_approvals, import_approvals));
    enclave
}

impl Enclave {
    /// A card for the box's keys as they are. Each safe has a root key of its own; so many officers must approve an export
    /// and an import.
    pub(crate) fn issue(&self, safe: &str, serial: u64, approvals: (u8, u8)) -> Vec<u8> {
        let name = &self.app.config.server_name;
        let policy = SigningPolicy { server_name: name.clone() };
        let safe = self.folder.path().join(safe);
        let root = SoftwareToken::open_or_create(&safe, Duration::ZERO, policy).unwrap();
        let key = root.keys().unwrap().into_iter().next();
        let key = key.unwrap_or_else(|| root.generate(KeyRole::Root, KeyKind::P256).unwrap());
        let content = peers::card_request(&self.app, NOW).unwrap().into_content(CardTerms {
            enclave: name.to_string(),
            serial,
            not_before: NOW,
            not_after: NOW.plus(Duration::from_secs(365 * 24 * 3600)),
            root: root.public_key(&key).unwrap(),
            policy: Policy {
                bundle_bytes_max: 1 << 30,
                room_versions: room::VERSIONS.to_vec(),
                direction: Direction::Both,
                export_approvals: approvals.0,
                import_approvals: approvals.1,
            },
        });
        let sign = |bytes: &[u8]| root.sign(&key, &SigningRequest::Card(bytes.to_vec()));
        Card::sign(&content, sign).unwrap()
    }

    pub(crate) fn pair(&self, other: &Self) {
        peers::pair(&self.app, other.card.clone(), &other.fingerprint(), &order()).unwrap();
    }

    pub(crate) fn fingerprint(&self) -> String {
        Proposed::parse(&self.card, NOW).unwrap().fingerprint().words()
    }

    pub(crate) fn send(&self, room_id: &OwnedRoomId, intent: Intent) {
        let draft = self
            .app
            .store
            .read(|read| room::draft(&read.view(room_id)?, room_id, intent))
            .unwrap()
            .unwrap();
        let mac = self.app.event_mac.clone();
        let outcome = self.app.store.write(move |write| write.append(draft, None, &mac)).unwrap();
        assert!(matches!(outcome, Outcome::Done(Ok(_))));
    }

    fn found(&self) -> OwnedRoomId {
        let founded = create::create(
            &RoomVersionId::V12,
            "!unused:alpha.test".try_into().unwrap(),
            user(ALICE),
            CanonicalJsonObject::new(),
            NOW,
            vec![
                member(ALICE, ALICE, "join"),
                state(ALICE, "m.room.power_levels", "", r#"{"users":{}}"#),
                state(ALICE, "m.room.join_rules", "", r#"{"join_rule":"invite"}"#),
            ],
        )
        .unwrap();
        let (room_id, mac) = (founded.room_id.clone(), self.app.event_mac.clone());
        self.app.store.write(move |write| write.found_room(&founded, &mac)).unwrap();
        room_id
    }

    pub(crate) fn export(&self, to: &Self) -> PathBuf {
        export(&self.app, &to.app.config.server_name, &order()).unwrap().path
    }

    pub(crate) fn import(&self, bundle: &Path) -> Result<BundleImported, bundle::Error> {
        import(&self.app, bundle, Sha256::of(&fs::read(bundle).unwrap()), &order())
    }

    pub(crate) fn bodies(&self, room_id: &OwnedRoomId) -> Vec<String> {
        self.app
            .store
            .read(|read| {
                let room = read.room(room_id)?.unwrap();
                let events = read.timeline(
                    &room,
                    i64::MIN,
                    i64::MAX,
                    sallyport_store::Direction::Forward,
                    100,
                )?;
                Ok::<_, Error>(
                    events.iter().filter_map(|event| event.pdu.content_field("body")).collect(),
                )
            })
            .unwrap()
    }

    fn membership(&self, room_id: &OwnedRoomId, user_id: &str) -> Option<MembershipState> {
        self.app
            .store
            .read(|read| match read.room(room_id)? {
                Some(room) => read.membership(&room, user(user_id)),
                None => Ok(None),
            })
            .unwrap()
            .map(|membership| membership.membership)
    }
}

/// A room of alpha's in which bravo's bob is invited.
pub(crate) fn shared_room(alpha: &Enclave) -> OwnedRoomId {
    let room_id = alpha.found();
    alpha.send(&room_id, member(ALICE, BOB, "invite"));
    room_id
}

fn user(id: &str) -> &UserId {
    id.try_into().unwrap()
}

fn state(sender: &str, kind: &str, key: &str, json: &str) -> Intent {
    let content = match serde_json::from_str(json).unwrap() {
        CanonicalJsonValue::Object(object) => object,
        _ => panic!("not an object"),
    };
    Intent::state(user(sender), kind.into(), key, content, NOW)
}

fn member(sender: &str, target: &str, membership: &str) -> Intent {
    state(sender, "m.room.member", target, &format!(r#"{{"membership":"{membership}"}}"#))
}

pub(crate) fn message(sender: &str, body: &str) -> Intent {
    Intent {
        state_key: None,
        ..state(sender, "m.room.message", "", &format!(r#"{{"body":"{body}"}}"#))
    }
}

#[test]
fn a_conversation_crosses_by_carried_bundles() {
    let (alpha, bravo) = (enclave("alpha.test"), enclave("bravo.test"));
    alpha.pair(&bravo);
    bravo.pair(&alpha);
    let room_id = alpha.found();
    alpha.send(&room_id, message(ALICE, "only here"));
    alpha.send(&room_id, member(ALICE, BOB, "invite"));
    alpha.send(&room_id, message(ALICE, "between invite and join"));

    let first = alpha.export(&bravo);
    let imported = bravo.import(&first).unwrap();
    assert!(!imported.known);
    assert_eq!(bravo.membership(&room_id, BOB), Some(MembershipState::Invite));
    assert_eq!(bravo.bodies(&room_id), ["between invite and join"]);

    // Twice is a no-op.
    assert!(bravo.import(&first).unwrap().known);
    assert_eq!(bravo.bodies(&room_id), ["between invite and join"]);

    // Bob joins and answers without a word from alpha.
    bravo.send(&room_id, member(BOB, BOB, "join"));
    bravo.send(&room_id, message(BOB, "an answer"));
    let back = bravo.export(&alpha);
    alpha.import(&back).unwrap();
    assert_eq!(alpha.membership(&room_id, BOB), Some(MembershipState::Join));
    assert_eq!(alpha.bodies(&room_id), ["only here", "between invite and join", "an answer"]);
    let acked =
        alpha.app.store.read(|read| read.peer(server_name!("bravo.test"))).unwrap().unwrap();
    assert_eq!(acked.acked.seq, 1);

    alpha.send(&room_id, message(ALICE, "more"));
    let third = alpha.export(&bravo);
    assert!(fs::metadata(&third).unwrap().len() < fs::metadata(&first).unwrap().len());
    bravo.import(&third).unwrap();
    assert_eq!(bravo.bodies(&room_id), ["between invite and join", "an answer", "more"]);
}

#[test]
fn a_lost_stick_is_made_up_for_by_the_next() {
    let (alpha, bravo) = (enclave("alpha.test"), enclave("bravo.test"));
    alpha.pair(&bravo);
    bravo.pair(&alpha);
    let room_id = shared_room(&alpha);
    alpha.send(&room_id, message(ALICE, "one"));
    let lost = alpha.export(&bravo);
    alpha.send(&room_id, message(ALICE, "two"));
    let second = alpha.export(&bravo);
    bravo.import(&second).unwrap();
    assert_eq!(bravo.bodies(&room_id), ["one", "two"]);
    // The lost one turns up: nothing to do.
    assert!(bravo.import(&lost).unwrap().known);
    assert_eq!(bravo.bodies(&room_id), ["one", "two"]);
}

#[test]
fn what_is_wrong_with_a_bundle_is_said_and_changes_nothing() {
    let (alpha, bravo, carol) =
        (enclave("alpha.test"), enclave("bravo.test"), enclave("charlie.test"));
    alpha.pair(&bravo);
    bravo.pair(&alpha);
    carol.pair(&alpha);
    let room_id = shared_room(&alpha);
    let good = alpha.export(&bravo);
    let bytes = fs::read(&good).unwrap();
    let bad = good.with_extension("bad");
    let refused = |bytes: &[u8]| {
        fs::write(&bad, bytes).unwrap();
        let error = bravo.import(&bad).unwrap_err();
        assert!(matches!(error, bundle::Error::Refused(_)), "{error}");
    };
    refused(&bytes[..bytes.len() - 1]);
    refused(&bytes[..100]);
    refused(b"");
    for at in [0, 30, 200, bytes.len() / 2, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        refused(&flipped);
    }
    let error = carol.import(&good).unwrap_err();
    assert!(matches!(error, bundle::Error::Refused(_)), "{error}");
    assert_eq!(bravo.membership(&room_id, BOB), None);
    bravo.import(&good).unwrap();
    assert_eq!(bravo.membership(&room_id, BOB), Some(MembershipState::Invite));
    let late = Order { now: NOW.plus(Duration::from_secs(100 * 24 * 3600)), ..order() };
    let late = import(&bravo.app, &good, Sha256::of(&bytes), &late);
    assert!(matches!(late, Err(bundle::Error::Refused(_))));
}

#[test]
fn a_refusal_says_what_to_do() {
    let (alpha, bravo, charlie) =
        (enclave("alpha.test"), enclave("bravo.test"), enclave("charlie.test"));
    alpha.pair(&bravo);
    bravo.pair(&alpha);
    charlie.pair(&alpha);
    let room_id = alpha.found();
    alpha.send(&room_id, member(ALICE, BOB, "invite"));
    let good = alpha.export(&bravo);
    let hash = Sha256::of(&fs::read(&good).unwrap());
    let days = |days: u32| Duration::from_secs(24 * 3600) * days;
    let earlier = Millis(NOW.0 - 3_600_000);
    bravo.app.store.write(|write| write.note_time(NOW)).unwrap();
    for (at, now, expected) in [
        (&charlie, NOW, "is for bravo.test, not for this enclave: give it to its recipient"),
        (&alpha, NOW, "is for bravo.test, not for this enclave: give it to its recipient"),
        (&bravo, earlier, "60 minutes behind the newest time this box has seen: set the clock"),
        (&bravo, NOW.plus(days(100)), "has expired: ask the sender for a new one"),
    ] {
        let order = Order { now, ..order() };
        let error = import(&at.app, &good, hash, &order).unwrap_err();
        let text = sallyport::telemetry::chain(&error);
        assert!(text.contains(expected), "{text}");
        assert_eq!(bravo.membership(&room_id, BOB), None);
        // The far future of the last case was seen by nobody but that case.
        bravo.app.store.write(|write| write.note_time(NOW)).unwrap();
    }
    let error = export(&alpha.app, server_name!("bravo.test"), &Order { now: earlier, ..order() });
    assert!(matches!(error, Err(bundle::Error::Clock(_))), "{error:?}");
    bravo.import(&good).unwrap();
    assert_eq!(bravo.membership(&room_id, BOB), Some(MembershipState::Invite));
}

#[test]
fn two_who_sign_at_the_same_time_share_the_work() {
    let (alpha, bravo) = (enclave("alpha.test"), enclave("bravo.test"));
    alpha.pair(&bravo);
    let room_id = shared_room(&alpha);
    for n in 0..100 {
        alpha.send(&room_id, message(ALICE, &n.to_string()));
    }
    let app = &alpha.app;
    let unsigned = || app.store.read(|read| read.backlog()).unwrap().events;
    let operations = || {
        let text = app.metrics.encode().unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("sallyport_token_operation_seconds_count "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let (waiting, before) = (unsigned(), operations());
    assert!(waiting > 100);
    let token = app.token.as_deref().unwrap();
    let sign = || {
        signer::sign_pending(app, token, || false).unwrap();
        // Whoever is ready first knows that everything is signed: an export goes on from here.
        assert_eq!(unsigned(), 0);
    };
    std::thread::scope(|scope| {
        scope.spawn(sign);
        sign();
    });
    assert_eq!(operations() - before, waiting);
}

#[test]
fn a_wrong_fingerprint_pairs_with_nobody() {
    let (alpha, bravo) = (enclave("alpha.test"), enclave("bravo.test"));
    let error =
        peers::pair(&alpha.app, bravo.card.clone(), &alpha.fingerprint(), &order()).unwrap_err();
    assert!(matches!(error, peers::Error::Fingerprint(_)), "{error}");
    assert!(peers::list(&alpha.app.store).unwrap().is_empty());
    let error = export(&alpha.app, server_name!("bravo.test"), &order()).unwrap_err();
    assert!(matches!(error, bundle::Error::NotAPeer(_)), "{error}");
}
