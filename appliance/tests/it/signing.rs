//! Signing behind the conversation while the token comes and goes.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use ruma::server_name;
use sallyport::service::{
    audit,
    bundle::{self, export::export},
    own_keys, peers, signer,
};
use sallyport_core::{
    audit::{Row, Tip, Vouched, verify},
    limits::{CHECKPOINT_ROWS, SIGNING_RUN_MS_MAX},
    merkle::Tree,
    sign::{KeyRole, PublicKey, Signature, SigningRequest},
    time::Millis,
};
use sallyport_hsm::{
    Caps, Error, Health, KeyKind, KeyName, Mode, P256_POINT_BYTES, Pin, Secret32, Token,
};

use crate::bundles::{ALICE, Enclave, NOW, bare_enclave, enclave, message, order, shared_room};

/// A token that can be pulled out, also in the middle of a batch. Says when it was asked in vain.
struct Pluggable {
    token: Arc<dyn Token>,
    plugged: AtomicBool,
    /// Signatures after which it is pulled out.
    signs: AtomicUsize,
    missed: Mutex<Sender<()>>,
}

impl Pluggable {
    fn pulled_out(token: Arc<dyn Token>) -> (Arc<Self>, Receiver<()>) {
        let (missed, asked) = channel();
        let (plugged, signs) = (AtomicBool::new(false), AtomicUsize::new(usize::MAX));
        (Arc::new(Self { token, plugged, signs, missed: Mutex::new(missed) }), asked)
    }

    fn there(&self) -> Result<&dyn Token, Error> {
        if self.plugged.load(Ordering::SeqCst) {
            return Ok(&*self.token);
        }
        // Whoever no longer listens has heard enough.
        let _: Result<(), _> = self.missed.lock().unwrap().send(());
        Err(Error::Absent)
    }
}

impl Token for Pluggable {
    fn health(&self) -> Health {
        self.token.health()
    }

    fn caps(&self) -> Caps {
        self.token.caps()
    }

    fn mode(&self) -> Option<Mode> {
        self.token.mode()
    }

    fn custody(&self, key: &KeyName) -> Result<Mode, Error> {
        self.token.custody(key)
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        self.there()?.keys()
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        self.there()?.public_key(key)
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
        let left = self.signs.load(Ordering::SeqCst);
        if left == 0 {
            self.plugged.store(false, Ordering::SeqCst);
        }
        self.signs.store(left.saturating_sub(1), Ordering::SeqCst);
        self.there()?.sign(key, request)
    }

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        self.there()?.agree(key, peer)
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        self.there()?.generate(role, kind)
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        self.there()?.destroy(key)
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        self.there()?.wrap(key, secret, aad)
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        self.there()?.unwrap(key, wrapped, aad)
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.there()?.reopen(pin)
    }
}

/// One batch is stored and the next one read while the token signs: wherever that is cut off, the backlog goes on after the last signature.
#[test]
fn a_long_backlog_is_signed_across_batches_however_often_it_is_cut_off() {
    const MESSAGES: usize = 85;
    let (alpha, bravo) = (enclave("alpha.test"), enclave("bravo.test"));
    alpha.pair(&bravo);
    bravo.pair(&alpha);
    let room_id = shared_room(&alpha);
    for number in 0..MESSAGES {
        alpha.send(&room_id, message(ALICE, &number.to_string()));
    }
    let waiting = || alpha.app.store.read(|read| read.backlog()).unwrap().events;
    let (token, _asked) = Pluggable::pulled_out(alpha.app.token.clone().unwrap());
    // In the first batch, at the seam of two, in a later one, and not at all.
    for signs in [3, 8, 45, usize::MAX] {
        let before = waiting();
        token.signs.store(signs, Ordering::SeqCst);
        token.plugged.store(true, Ordering::SeqCst);
        let ended = signer::sign_pending(&alpha.app, &*token, || false);
        assert_eq!(ended.is_err(), signs != usize::MAX);
        assert_eq!(waiting(), before.saturating_sub(signs as u64), "after {signs}");
    }
    // Each has its signature: the peer takes all.
    let bundle = alpha.export(&bravo);
    bravo.import(&bundle).unwrap();
    assert_eq!(bravo.bodies(&room_id).len(), MESSAGES);
}

/// The signer sleeps for seconds after a failure; an export neither waits for that nor fails because of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_does_not_wait_for_a_signer_that_rests() {
    let (mut alpha, bravo) = (bare_enclave("alpha.test", 0, 0), bare_enclave("bravo.test", 0, 0));
    peers::install_own_card(&alpha.app, alpha.card.clone(), &order()).unwrap();
    alpha.pair(&bravo);
    shared_room(&alpha);
    let (token, asked) = Pluggable::pulled_out(alpha.app.token.clone().unwrap());
    Arc::get_mut(&mut alpha.app).unwrap().token = Some(Arc::clone(&token) as Arc<dyn Token>);

    let app = Arc::clone(&alpha.app);
    let signer = tokio::spawn(signer::run(Arc::clone(&app)));
    let exported = tokio::task::spawn_blocking(move || {
        asked.recv().unwrap();
        let export = || export(&app, server_name!("bravo.test"), &order());
        let error = export().unwrap_err();
        let bundle::Error::Unsigned(signer::Error::Token(error)) = error else {
            panic!("{error}");
        };
        assert!(matches!(error, Error::Absent), "{error}");
        token.plugged.store(true, Ordering::SeqCst);
        export().unwrap()
    });
    exported.await.unwrap();
    assert!(!signer.is_finished());
    signer.abort();
}

fn log(enclave: &Enclave) -> Vec<Row> {
    enclave.app.store.read(|read| read.audit_rows(0, 1000)).unwrap()
}

#[test]
fn the_audit_log_tells_of_signatures_once_they_are_many_old_or_leave_the_box() {
    let (alpha, bravo) = (bare_enclave("alpha.test", 0, 0), bare_enclave("bravo.test", 0, 0));
    peers::install_own_card(&alpha.app, alpha.card.clone(), &order()).unwrap();
    alpha.pair(&bravo);
    let store = &alpha.app.store;
    let room_id = shared_room(&alpha);
    let mut tree = Tree::default();
    for room_id in store.read(|read| read.rooms_to_sign()).unwrap() {
        let unsigned = store.read(|read| read.unsigned(&room_id, &alpha.app.event_mac, None, 100));
        for event in unsigned.unwrap().unwrap().events {
            tree.push(event.pdu.event_id().as_bytes());
        }
    }
    let token = alpha.app.token.clone().unwrap();
    signer::sign_pending(&alpha.app, &*token, || false).unwrap();
    let told = || log(&alpha).into_iter().filter(|row| row.entry.action == "events.sign").count();
    let tell = |ms| audit::tell_of_signatures(store, audit::When::Due, Millis(NOW.0 + ms)).unwrap();
    tell(SIGNING_RUN_MS_MAX - 1);
    assert_eq!(told(), 0);
    tell(SIGNING_RUN_MS_MAX);
    tell(SIGNING_RUN_MS_MAX);
    assert_eq!(told(), 1);
    let entry = log(&alpha).pop().unwrap().entry;
    assert_eq!(entry.actor, "the box");
    assert!(entry.subject.starts_with("event:"), "{}", entry.subject);
    assert_eq!(entry.details["events"], tree.size().to_string());
    assert_eq!(entry.details["rooms"], "1");
    assert_eq!(entry.details["merkle_root"], tree.root().to_string());

    // What an export signs is on record before the bundle is.
    alpha.send(&room_id, message(ALICE, "more"));
    alpha.export(&bravo);
    let actions: Vec<_> = log(&alpha).into_iter().map(|row| row.entry.action).collect();
    assert_eq!(&actions[actions.len() - 2..], ["events.sign", "bundle.export"]);
}

#[test]
fn the_token_vouches_for_the_audit_log_after_many_rows_or_a_day() {
    let alpha = bare_enclave("alpha.test", 0, 0);
    let (store, token) = (&alpha.app.store, alpha.app.token.clone().unwrap());
    let days = |days: u64| NOW.plus(Duration::from_secs(24 * 3600 * days));
    let name = server_name!("alpha.test");
    let checkpoints = |now| {
        audit::checkpoint_if_due(store, &*token, name, now).unwrap();
        store.read(|read| read.checkpoints(0, u64::MAX)).unwrap()
    };
    let rows = |count: u64| {
        let entry = order().alone().unwrap().entry("clock.accept", "", []);
        store
            .write(move |write| {
                (0..count).try_for_each(|_| write.append_audit(entry.clone()).map(drop))
            })
            .unwrap();
    };
    assert_eq!(checkpoints(NOW), []);
    rows(1);
    assert_eq!(checkpoints(NOW).len(), 1);
    assert_eq!(checkpoints(days(9)).len(), 1, "nothing is new");
    rows(CHECKPOINT_ROWS - 1);
    assert_eq!(checkpoints(NOW).len(), 1);
    rows(1);
    assert_eq!(checkpoints(NOW).len(), 2);
    rows(1);
    assert_eq!(checkpoints(NOW).len(), 2);
    let all = checkpoints(days(1));
    assert_eq!(all.len(), 3);
    assert_eq!(audit::checkpoint_on_order(store, &*token, name, &order()).unwrap().id, 259);

    let key = own_keys::required(store, KeyRole::Audit).unwrap().key;
    let mut vouched = Vouched::new([own_keys::public_key(&key).unwrap()].into(), None);
    let mut tip = Tip::default();
    for row in log(&alpha) {
        tip = verify(tip, [&row]).unwrap();
        for checkpoint in all.iter().filter(|checkpoint| checkpoint.row == row.id) {
            vouched.checkpoint(tip, &checkpoint.bytes).unwrap();
        }
    }
    assert_eq!(vouched.up_to(), Some((258, days(1))));
}

/// The source files below a folder, by their names from there.
fn sources(folder: &Path, prefix: &str, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            sources(&path, &format!("{name}/"), found);
        } else {
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_way_out_for_events_is_known_and_takes_signed_ones() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut found);
    let ways_out: BTreeSet<_> = found
        .iter()
        .filter(|(_, text)| text.contains(".to_wire()"))
        .map(|(name, _)| name.as_str())
        .collect();
    let table = include_str!("../../ARCHITECTURE.md").split("| file | way out |").nth(1).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| "));
    let known: BTreeSet<_> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    assert_eq!(ways_out, known, "left: the code, right: ARCHITECTURE.md");
    // Records of bundles hold events as bytes: nothing else but these files fills them.
    for (name, text) in &found {
        let fills = text.contains("Room::Pdu(Pdu {");
        assert!(!fills || known.contains(name.as_str()), "{name} fills records with events");
    }
}
