//! The software token: what it does, what its file withstands, and what it refuses.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sallyport_core::sign::{Algorithm, PublicKey, verify};
use sallyport_hsm::{
    Class, Error, Health, HelperProgram, KeyKind, KeyName, KeyRole, Mode, ModeChoice, Pin,
    PinSource, Secret32, Sessions, SoftwareToken, Token, TokenConfig, open,
};

use crate::requests::{foreign, manifest, policy, x_matrix};

#[test]
fn keys_of_every_kind_do_what_their_role_says() {
    let directory = tempfile::tempdir().unwrap();
    let token = software(&directory.path().join("keys.json"));
    every_kind_of_key(&*token, &[KeyKind::Aes256, KeyKind::P256]);
    assert_eq!(token.mode(), Some(Mode::Software));
    let rsa = token.generate(KeyRole::Storage, KeyKind::Rsa2048);
    assert!(matches!(rsa, Err(Error::Unsupported(_))));
}

/// What every token must do, with storage keys of these kinds; the PKCS#11 tests call it too.
pub(crate) fn every_kind_of_key(token: &dyn Token, storage: &[KeyKind]) {
    let event = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    let public = token.public_key(&event).unwrap();
    assert_eq!(public.algorithm(), Algorithm::Ed25519);
    let signature = token.sign(&event, &x_matrix(1)).unwrap();
    verify(&public, &x_matrix(1).bytes_to_sign(&policy()).unwrap(), &signature).unwrap();

    for kind in [KeyKind::Ed25519, KeyKind::P256] {
        let courier = token.generate(KeyRole::Courier, kind).unwrap();
        let signature = token.sign(&courier, &manifest()).unwrap();
        let public = token.public_key(&courier).unwrap();
        verify(&public, &manifest().bytes_to_sign(&policy()).unwrap(), &signature).unwrap();
        assert!(matches!(token.sign(&courier, &x_matrix(1)), Err(Error::WrongRole { .. })));
    }
    assert!(matches!(token.sign(&event, &manifest()), Err(Error::WrongRole { .. })));
    assert!(matches!(token.sign(&event, &foreign()), Err(Error::Refused(_))));

    agreement(token, &event);
    let agreement = token.keys().unwrap().pop().unwrap();
    for kind in storage {
        wrapping(token, &event, &agreement, *kind);
    }

    let names = token.keys().unwrap();
    assert_eq!(names.len(), 4 + storage.len());
    assert!(names.is_sorted());
    token.destroy(&event).unwrap();
    assert!(matches!(token.sign(&event, &x_matrix(1)), Err(Error::NoSuchKey(_))));
    assert!(matches!(token.public_key(&event), Err(Error::NoSuchKey(_))));
    assert!(matches!(token.destroy(&event), Err(Error::NoSuchKey(_))));
    assert_eq!(token.keys().unwrap().len(), 3 + storage.len());
    let wrong = token.generate(KeyRole::Event, KeyKind::P256);
    assert!(matches!(wrong, Err(Error::WrongKind { .. })));
}

fn agreement(token: &dyn Token, event: &KeyName) {
    let key = token.generate(KeyRole::CourierEncryption, KeyKind::P256).unwrap();
    let ours = token.public_key(&key).unwrap();
    let peer = p256::SecretKey::from_slice(&[9; 32]).unwrap();
    let point: [u8; 65] = peer.public_key().to_sec1_bytes().as_ref().try_into().unwrap();

    let shared = token.agree(&key, &point).unwrap();
    let theirs = peer.diffie_hellman(&p256::PublicKey::from_sec1_bytes(ours.as_bytes()).unwrap());
    assert_eq!(shared.expose().as_slice(), theirs.raw_secret_bytes().as_slice());

    let mut off_curve = point;
    off_curve[64] ^= 1;
    assert!(matches!(token.agree(&key, &off_curve), Err(Error::InvalidPeer)));
    assert!(matches!(token.agree(&key, &[0; 65]), Err(Error::InvalidPeer)));
    assert!(matches!(token.agree(event, &point), Err(Error::WrongRole { .. })));
}

fn wrapping(token: &dyn Token, event: &KeyName, agreement: &KeyName, kind: KeyKind) {
    let key = token.generate(KeyRole::Storage, kind).unwrap();
    let secret = Secret32::new(&[42; 32]);
    let wrapped = token.wrap(&key, &secret, b"tls leaf").unwrap();
    assert_eq!(token.unwrap(&key, &wrapped, b"tls leaf").unwrap().expose(), secret.expose());
    assert_ne!(token.wrap(&key, &secret, b"tls leaf").unwrap(), wrapped);

    assert!(matches!(token.unwrap(&key, &wrapped, b"pepper"), Err(Error::Damaged)));
    for at in 0..wrapped.len() {
        let mut damaged = wrapped.clone();
        damaged[at] ^= 1;
        let refused = token.unwrap(&key, &damaged, b"tls leaf");
        assert!(matches!(refused, Err(Error::Damaged)), "{kind} {at} {refused:?}");
    }
    assert!(matches!(token.unwrap(&key, &[], b"tls leaf"), Err(Error::Damaged)));
    assert!(matches!(token.unwrap(&key, &wrapped[..20], b""), Err(Error::Damaged)));
    let other = token.generate(KeyRole::Storage, kind).unwrap();
    assert!(matches!(token.unwrap(&other, &wrapped, b"tls leaf"), Err(Error::Damaged)));
    token.destroy(&other).unwrap();

    // No key stands for one of another role, although all of P-256 can do the same.
    for not_storage in [event, agreement] {
        let wrong = token.wrap(not_storage, &secret, b"");
        assert!(matches!(wrong, Err(Error::WrongRole { .. })), "{kind}");
        let wrong = token.unwrap(not_storage, &wrapped, b"tls leaf");
        assert!(matches!(wrong, Err(Error::WrongRole { .. })), "{kind}");
    }
    let point = p256::SecretKey::from_slice(&[9; 32]).unwrap().public_key().to_sec1_bytes();
    let agreed = token.agree(&key, point.as_ref().try_into().unwrap());
    assert!(matches!(agreed, Err(Error::WrongRole { .. })), "{kind}");
    assert!(matches!(token.sign(&key, &manifest()), Err(Error::WrongRole { .. })), "{kind}");
    assert_eq!(token.public_key(&key).is_ok(), kind == KeyKind::P256);
}

#[test]
fn keys_outlive_the_process_and_are_seen_by_another() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    let first = software(&path);
    let second = software(&path);
    let event = first.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    let root = second.generate(KeyRole::Root, KeyKind::P256).unwrap();

    assert_eq!(
        second.sign(&event, &x_matrix(1)).unwrap(),
        first.sign(&event, &x_matrix(1)).unwrap()
    );
    assert_eq!(first.public_key(&root).unwrap(), second.public_key(&root).unwrap());
    assert_eq!(software(&path).keys().unwrap(), [event, root]);
}

#[test]
fn the_files_are_private_and_the_key_file_alone_opens_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    software(&path).generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    for name in ["keys.json", "keys.json.key", "keys.json.lock"] {
        let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }

    let master = directory.path().join("keys.json.key");
    let saved = fs::read(&master).unwrap();
    fs::write(&master, [0; 32]).unwrap();
    assert!(matches!(try_software(&path), Err(Error::FileFormat { .. })));
    fs::write(&master, &saved).unwrap();
    fs::set_permissions(&master, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(try_software(&path), Err(Error::FileMode { mode: 0o644, .. })));
    fs::remove_file(&master).unwrap();
    assert!(matches!(try_software(&path), Err(Error::File { .. })));
}

#[test]
fn a_changed_key_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    let token = software(&path);
    let name = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let other = KeyName::new(KeyRole::Audit, *name.id());
    let changes = [
        good.replace(&name.to_string(), &other.to_string()),
        good.replace("\"ed25519\"", "\"p256\""),
        good.replace("\"version\": 1", "\"version\": 2"),
        good.replace("\"keys\"", "\"more\": 1, \"keys\""),
        good.replace("\"sealed\": \"", "\"sealed\": \"AAAA"),
        String::new(),
    ];
    for changed in changes {
        assert_ne!(changed, good);
        fs::write(&path, &changed).unwrap();
        assert!(matches!(try_software(&path), Err(Error::FileFormat { .. })), "{changed}");
    }
}

#[test]
fn a_pin_protects_a_file_until_it_is_given() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.json");
    let pin = || Pin::new("correct horse".to_owned());
    let made = SoftwareToken::create_with_pin(&path, &pin(), policy()).unwrap();
    let root = made.generate(KeyRole::Root, KeyKind::P256).unwrap();
    let again = SoftwareToken::create_with_pin(&path, &pin(), policy());
    assert!(matches!(again, Err(Error::FileExists { .. })));

    let token = software(&path);
    assert!(matches!(token.health(), Health::Locked { .. }));
    let locked = token.public_key(&root).unwrap_err();
    assert_eq!(locked.class(), Class::Operator);
    let wrong = token.reopen(Pin::new("battery staple".to_owned()));
    assert!(matches!(wrong, Err(Error::PinIncorrect)));
    assert!(matches!(token.health(), Health::Locked { .. }));
    token.reopen(pin()).unwrap();
    assert_eq!(token.health(), Health::Ready);
    assert_eq!(token.public_key(&root).unwrap(), made.public_key(&root).unwrap());
}

#[test]
fn software_keys_must_be_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    let config = TokenConfig::Software { path: path.clone(), delay_ms: 0 };
    let refused = open(&config, false, policy(), HelperProgram::this_one(), None).err().unwrap();
    assert!(refused.to_string().contains("allow_software_keys = true"), "{refused}");
    assert!(!path.exists());
}

#[test]
fn a_delay_is_spent_on_each_signature_but_not_on_opening() {
    let directory = tempfile::tempdir().unwrap();
    let delay = Duration::from_millis(30);
    let start = Instant::now();
    let path = directory.path().join("keys.json");
    let token = SoftwareToken::open_or_create(&path, delay, policy()).unwrap();
    let event = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));

    let start = Instant::now();
    let requests: Vec<_> = (0..4).map(x_matrix).collect();
    let signatures = token.sign_many(&event, &requests);
    assert!(start.elapsed() >= 4 * delay);
    let public = token.public_key(&event).unwrap();
    for (request, signature) in requests.iter().zip(signatures) {
        let bytes = request.bytes_to_sign(&policy()).unwrap();
        verify(&public, &bytes, &signature.unwrap()).unwrap();
    }
}

#[test]
fn a_batch_answers_in_order_and_each_on_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let token = software(&directory.path().join("keys.json"));
    let event = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    batch(&*token, &event);
}

/// What every token must do; the PKCS#11 tests call it too.
pub(crate) fn batch(token: &dyn Token, event: &KeyName) {
    let mut requests: Vec<_> = (0..40).map(x_matrix).collect();
    requests[7] = foreign();
    requests[20] = manifest();
    let public: PublicKey = token.public_key(event).unwrap();
    let answers = token.sign_many(event, &requests);
    assert_eq!(answers.len(), requests.len());
    for (i, (request, answer)) in requests.iter().zip(answers).enumerate() {
        match i {
            7 => assert!(matches!(answer, Err(Error::Refused(_)))),
            20 => assert!(matches!(answer, Err(Error::WrongRole { .. }))),
            _ => {
                let bytes = request.bytes_to_sign(&policy()).unwrap();
                verify(&public, &bytes, &answer.unwrap()).unwrap();
            }
        }
    }
    assert!(token.sign_many(event, &[]).is_empty());
}

#[test]
fn the_configuration_is_strict() {
    let software: TokenConfig =
        serde_json::from_str(r#"{"kind":"software","path":"/var/lib/keys"}"#).unwrap();
    let path = PathBuf::from("/var/lib/keys");
    assert_eq!(software, TokenConfig::Software { path, delay_ms: 0 });
    let token: TokenConfig = serde_json::from_str(
        r#"{"kind":"pkcs11","module":"/m.so","token_label":"alpha","pin":"file:/pin"}"#,
    )
    .unwrap();
    let expected = TokenConfig::Pkcs11 {
        module: PathBuf::from("/m.so"),
        token_label: "alpha".to_owned(),
        token_serial: None,
        pin: PinSource::File(PathBuf::from("/pin")),
        timeout_ms: 10_000,
        environment: Vec::new(),
        mode: ModeChoice::Auto,
        sessions: Sessions::default(),
        network: false,
        writable: Vec::new(),
    };
    assert_eq!(token, expected);
    let service = r#"{"kind":"pkcs11-service","helper":"/run/helper.sock","pin":"credential:pin"}"#;
    let expected = TokenConfig::Pkcs11Service {
        helper: PathBuf::from("/run/helper.sock"),
        pin: PinSource::Credential("pin".to_owned()),
        timeout_ms: 10_000,
        mode: ModeChoice::Auto,
    };
    assert_eq!(serde_json::from_str::<TokenConfig>(service).unwrap(), expected);
    for text in [
        r#"{"kind":"software"}"#,
        r#"{"kind":"software","path":"/k","dealy_ms":1}"#,
        r#"{"kind":"hardware","path":"/k"}"#,
        r#"{"kind":"pkcs11","module":"/m","token_label":"a","pin":"ask","mode":"software"}"#,
        r#"{"kind":"pkcs11","module":"/m.so","token_label":"alpha","pin":"1234"}"#,
        r#"{"kind":"pkcs11","module":"/m.so","token_label":"alpha","pin":"ask","sessions":17}"#,
    ] {
        assert!(serde_json::from_str::<TokenConfig>(text).is_err(), "{text}");
    }
}

fn software(path: &Path) -> std::sync::Arc<dyn Token> {
    try_software(path).unwrap()
}

fn try_software(path: &Path) -> Result<std::sync::Arc<dyn Token>, Error> {
    let config = TokenConfig::Software { path: path.to_owned(), delay_ms: 0 };
    open(&config, true, policy(), HelperProgram::this_one(), None)
}
