//! Tests of working keys, over a software token that plays the token.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use sallyport_core::sign::{Algorithm, verify};
use tempfile::TempDir;

use super::*;
use crate::{SoftwareToken, wiped::leaks};

/// A token that can be unplugged, and one that is another each time it is made.
struct Pluggable {
    inner: SoftwareToken,
    gone: AtomicBool,
}

impl Pluggable {
    fn there(&self) -> Result<&SoftwareToken, Error> {
        if self.gone.load(Ordering::SeqCst) { Err(Error::Absent) } else { Ok(&self.inner) }
    }
}

impl Token for Pluggable {
    fn health(&self) -> Health {
        self.inner.health()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Direct)
    }

    fn custody(&self, _key: &KeyName) -> Result<Mode, Error> {
        Ok(Mode::Direct)
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        self.there()?.keys()
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        self.there()?.public_key(key)
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
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

/// A box's folder and its token.
struct Desk {
    folder: TempDir,
    token: Arc<Pluggable>,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = pluggable(&folder.path().join("token.json"));
        Self { folder, token }
    }

    /// The box starts: nothing is open.
    fn start(&self) -> EnvelopeToken {
        self.start_with(Arc::clone(&self.token), ModeChoice::Envelope)
    }

    fn start_with(&self, token: Arc<Pluggable>, choice: ModeChoice) -> EnvelopeToken {
        EnvelopeToken::new(token, choice, self.folder.path(), policy("alpha.example"))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("working-keys")
    }

    fn unplug(&self, gone: bool) {
        self.token.gone.store(gone, Ordering::SeqCst);
    }
}

fn pluggable(path: &Path) -> Arc<Pluggable> {
    let inner =
        SoftwareToken::open_or_create(path, std::time::Duration::ZERO, policy("alpha.example"));
    Arc::new(Pluggable { inner: inner.unwrap(), gone: AtomicBool::new(false) })
}

fn policy(server_name: &str) -> Policy {
    Policy { server_name: server_name.try_into().unwrap() }
}

fn request() -> SigningRequest {
    let json = r#"{"method":"GET","uri":"/_matrix/x","origin":"alpha.example","destination":"bravo.example"}"#;
    SigningRequest::XMatrix { json: json.to_owned() }
}

fn signs(token: &dyn Token, key: &KeyName) {
    let signature = token.sign(key, &request()).unwrap();
    let bytes = request().bytes_to_sign(&policy("alpha.example")).unwrap();
    verify(&token.public_key(key).unwrap(), &bytes, &signature).unwrap();
}

fn event(token: &dyn Token) -> KeyName {
    token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap()
}

#[test]
fn a_working_key_is_opened_once_and_works_while_the_token_is_gone() {
    let desk = Desk::new();
    let token = desk.start();
    assert_eq!(token.mode(), Some(Mode::Envelope));
    let key = event(&token);
    signs(&token, &key);
    let public = token.public_key(&key).unwrap();
    drop(token);

    let token = desk.start();
    desk.unplug(true);
    assert!(matches!(token.sign(&key, &request()), Err(Error::Absent)));
    assert_eq!(token.custody(&key).unwrap(), Mode::Envelope);
    desk.unplug(false);
    signs(&token, &key);
    desk.unplug(true);
    signs(&token, &key);
    assert_eq!(token.public_key(&key).unwrap(), public);
    assert!(token.sign_many(&key, &[request(), request()]).iter().all(Result::is_ok));
}

#[test]
fn keys_are_listed_together_and_keep_their_roles() {
    let desk = Desk::new();
    let token = desk.start();
    let key = event(&token);
    let mode = fs::metadata(desk.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let roles: Vec<_> = token.keys().unwrap().iter().map(KeyName::role).collect();
    assert_eq!(roles, [KeyRole::Event, KeyRole::Courier, KeyRole::Storage]);
    assert!(matches!(token.agree(&key, &[4; 65]), Err(Error::WrongRole { .. })));
    let foreign = SigningRequest::XMatrix {
        json: r#"{"method":"GET","uri":"/_matrix/x","origin":"bravo.example","destination":"alpha.example"}"#.to_owned(),
    };
    assert!(matches!(token.sign(&key, &foreign), Err(Error::Refused(_))));
    let manifest = SigningRequest::Manifest(Vec::new());
    assert!(matches!(token.sign(&key, &manifest), Err(Error::WrongRole { .. })));
    assert!(matches!(token.generate(KeyRole::Event, KeyKind::P256), Err(Error::WrongKind { .. })));
}

#[test]
fn a_destroyed_working_key_is_gone_for_good() {
    let desk = Desk::new();
    let token = desk.start();
    let (key, other) = (event(&token), event(&token));
    token.destroy(&key).unwrap();
    assert!(matches!(token.sign(&key, &request()), Err(Error::NoSuchKey(_))));
    assert!(!fs::read_to_string(desk.file()).unwrap().contains(&key.to_string()));
    assert!(matches!(desk.start().sign(&key, &request()), Err(Error::NoSuchKey(_))));
    signs(&token, &other);
}

#[test]
fn a_key_of_the_token_from_before_goes_on() {
    let desk = Desk::new();
    let direct = event(&*desk.token);
    let token = desk.start();
    signs(&token, &direct);
    assert_eq!(token.custody(&direct).unwrap(), Mode::Direct);
    assert_eq!(token.custody(&event(&token)).unwrap(), Mode::Envelope);
    // And back: what was made as a working key stays one.
    let auto = desk.start_with(Arc::clone(&desk.token), ModeChoice::Auto);
    assert_eq!(auto.mode(), Some(Mode::Direct));
    assert_eq!(auto.keys().unwrap(), token.keys().unwrap());
    assert_eq!(auto.custody(&event(&auto)).unwrap(), Mode::Direct);
}

#[test]
fn the_keys_behind_a_working_key_are_not_destroyed_before_others_take_over() {
    let desk = Desk::new();
    let token = desk.start();
    let key = event(&token);
    for role in [KeyRole::Storage, KeyRole::Courier] {
        let old = token.keys().unwrap().into_iter().find(|key| key.role() == role).unwrap();
        let refused = token.destroy(&old).unwrap_err();
        assert!(matches!(refused, Error::KeyInUse { .. }), "{refused}");
        let new = token.generate(role, token.kind_for(role).unwrap()).unwrap();
        token.destroy(&old).unwrap();
        signs(&token, &key);
        let after = desk.start();
        signs(&after, &key);
        assert!(matches!(after.destroy(&new), Err(Error::KeyInUse { .. })));
    }
}

#[test]
fn a_damaged_file_is_reported_and_left_as_it_is() {
    let desk = Desk::new();
    let key = event(&desk.start());
    let good = fs::read_to_string(desk.file()).unwrap();
    let damages = [
        String::new(),
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace("\"wrapped\": \"", "\"wrapped\": \"!"),
        good.replace("\"keys\"", "\"more\": 1, \"keys\""),
    ];
    for damaged in damages {
        assert_ne!(damaged, good);
        fs::write(desk.file(), &damaged).unwrap();
        let token = desk.start();
        let tries = [
            token.sign(&key, &request()).err(),
            token.keys().err(),
            token.generate(KeyRole::Event, KeyKind::Ed25519).err(),
            token.destroy(&key).err(),
        ];
        for error in tries {
            let error = error.unwrap();
            assert_eq!(error.class(), crate::Class::Operator, "{error}");
            assert!(error.to_string().contains("restore it from a backup"), "{error}");
        }
        assert_eq!(fs::read_to_string(desk.file()).unwrap(), damaged);
    }
    fs::write(desk.file(), &good).unwrap();
    signs(&desk.start(), &key);
}

#[test]
fn what_the_token_did_not_certify_is_not_used() {
    let desk = Desk::new();
    let token = desk.start();
    let (key, other) = (event(&token), event(&token));
    let file = WorkingKeys::new(desk.folder.path());
    let (ours, theirs) = (file.find(&key).unwrap().unwrap(), file.find(&other).unwrap().unwrap());

    // What anybody can do who knows the public halves: another certificate, another wrapped key, another name.
    let elsewhere = Desk::new();
    let stranger = elsewhere.start();
    let strange = event(&stranger);
    let strange = WorkingKeys::new(elsewhere.folder.path()).find(&strange).unwrap().unwrap();
    let forged = [
        (Entry { wrapped: theirs.wrapped.clone(), ..ours.clone() }, "cannot decrypt"),
        (Entry { certificate: theirs.certificate.clone(), ..ours.clone() }, "as another key"),
        (Entry { name: key.clone(), ..theirs.clone() }, "as another key"),
        (Entry { name: key.clone(), ..strange }, "is not in this token"),
        (Entry { certificate: vec![1, 2, 3], ..ours.clone() }, "damaged"),
    ];
    for (entry, why) in forged {
        file.change(|entries| {
            *entries = vec![entry, theirs.clone()];
            Ok(())
        })
        .unwrap();
        let token = desk.start();
        let refused = token.sign(&key, &request()).unwrap_err();
        assert!(
            matches!(&refused, Error::WorkingKey { why: told, .. } if told.contains(why)),
            "{refused}"
        );
        assert_eq!(refused.class(), crate::Class::Operator);
        // The others are as good as before.
        signs(&token, &other);
    }
    file.change(|entries| {
        *entries = vec![ours.clone()];
        Ok(())
    })
    .unwrap();
    signs(&desk.start(), &key);
    let bravo = EnvelopeToken::new(
        Arc::clone(&desk.token) as Arc<dyn Token>,
        ModeChoice::Envelope,
        desk.folder.path(),
        policy("bravo.example"),
    );
    assert!(matches!(bravo.public_key(&key), Err(Error::WorkingKey { .. })));
}

#[test]
fn a_key_that_the_token_wraps_for_somebody_else_is_not_taken_for_a_working_key() {
    let desk = Desk::new();
    let token = desk.start();
    let key = event(&token);
    let file = WorkingKeys::new(desk.folder.path());
    let entry = file.find(&key).unwrap().unwrap();
    // Somebody who has the token once, but no courier key, wraps a key of their own in the same way.
    let opened = token.working(&key).unwrap().unwrap();
    let storage: KeyName = opened.certified.wrapped_by.parse().unwrap();
    let theirs = keypair::fresh(Algorithm::Ed25519).unwrap();
    let wrapped = desk.token.wrap(&storage, &theirs, &aad(&opened.certified)).unwrap();
    file.change(|entries| {
        *entries = vec![Entry { wrapped, ..entry }];
        Ok(())
    })
    .unwrap();
    let refused = desk.start().sign(&key, &request()).unwrap_err();
    assert!(refused.to_string().contains("another key than the certified one"), "{refused}");
}

#[test]
fn working_keys_leave_nothing_in_the_heap() {
    let desk = Desk::new();
    let token = desk.start();
    let key = event(&token);
    let secret = *token.working(&key).unwrap().unwrap().secret.expose();
    drop(token);
    let a_day = || {
        let token = desk.start();
        signs(&token, &key);
        let storage = token.keys().unwrap().into_iter().find(|key| key.role() == KeyRole::Storage);
        token.generate(KeyRole::Storage, KeyKind::P256).unwrap();
        token.destroy(&storage.unwrap()).unwrap();
        signs(&token, &key);
        token.destroy(&key).unwrap();
    };
    assert_eq!(leaks(&secret, a_day), 0);
}
