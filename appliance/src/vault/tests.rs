//! Every way in which the vault opens, and every way in which it does not.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc};

use sallyport_core::sign::Policy;
use sallyport_hsm::SoftwareToken;

use super::*;

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> Result<Vault, Error> {
        Vault::open(self.folder.path(), None, None)
    }

    fn open_with_token(&self) -> Result<Vault, Error> {
        Vault::open(self.folder.path(), None, Some(&*self.token("keys")))
    }

    /// Opens it as a service that is given this box key.
    fn open_with_credential(&self, key: &[u8]) -> Result<Vault, Error> {
        let credentials = self.path("credentials");
        fs::create_dir_all(&credentials).unwrap();
        fs::write(credentials.join(BOX_KEY_CREDENTIAL), key).unwrap();
        Vault::open(self.folder.path(), Some(&credentials), None)
    }

    fn token(&self, name: &str) -> Arc<dyn Token> {
        let policy = Policy { server_name: "alpha.example".try_into().unwrap() };
        let path = self.path(name);
        Arc::new(SoftwareToken::open_or_create(&path, Duration::ZERO, policy).unwrap())
    }

    fn vault(&self) -> Vec<u8> {
        fs::read(self.path("vault")).unwrap()
    }
}

fn mac(vault: &Vault) -> [u8; 32] {
    *vault.key(Name::EventMac).unwrap().expose()
}

#[test]
fn a_start_without_any_token_opens_everything() {
    let fixture = Fixture::new();
    let first = fixture.open().unwrap();
    assert_eq!(first.holder(), BoxKeyPlace::File);
    assert_eq!(first.wrapped_by(), None);
    assert!(first.get(Name::TlsLeaf).unwrap().is_none());
    first.put(Name::TlsLeaf, b"certificate").unwrap();
    let again = fixture.open().unwrap();
    assert_eq!(mac(&first), mac(&again));
    assert_ne!(&mac(&first), first.key(Name::Pepper).unwrap().expose());
    assert_eq!(**again.get(Name::TlsLeaf).unwrap().unwrap(), *b"certificate");
    for file in ["vault", "box.key"] {
        let mode = fs::metadata(fixture.path(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[test]
fn nothing_in_the_file_can_be_read_without_the_box_key() {
    let fixture = Fixture::new();
    let vault = fixture.open().unwrap();
    vault.put(Name::TlsLeaf, b"a very private key").unwrap();
    let json: serde_json::Value = serde_json::from_slice(&fixture.vault()).unwrap();
    for sealed in json["secrets"].as_object().unwrap().values() {
        let sealed = sealed.as_str().unwrap();
        let bytes: Base64 = Base64::parse(sealed).unwrap();
        for secret in [mac(&vault).as_slice(), b"a very private key"] {
            assert!(!bytes.as_bytes().windows(secret.len()).any(|window| window == secret));
        }
    }
}

#[test]
fn the_service_managers_key_takes_the_place_of_the_file() {
    let fixture = Fixture::new();
    let first = mac(&fixture.open().unwrap());
    let sealed = fixture.open_with_credential(&[7; 32]).unwrap();
    assert_eq!((mac(&sealed), sealed.holder()), (first, BoxKeyPlace::Credential));
    assert!(!fixture.path("box.key").exists());
    assert_eq!(mac(&fixture.open_with_credential(&[7; 32]).unwrap()), first);

    let fresh = Fixture::new();
    fresh.open_with_credential(&[7; 32]).unwrap();
    assert!(!fresh.path("box.key").exists());
}

#[test]
fn a_wrong_or_missing_box_key_is_told_and_changes_nothing() {
    let fixture = Fixture::new();
    drop(fixture.open().unwrap());
    let (vault, key) = (fixture.vault(), fs::read(fixture.path("box.key")).unwrap());
    let cases: [(&str, Option<&[u8]>, &str); 4] = [
        ("gone", None, "there is no box key"),
        ("another", Some(&[9; 32]), "box.key is the key of another vault"),
        ("short", Some(&[9; 31]), "is no box key of 32 bytes"),
        ("long", Some(&[9; 33]), "is no box key of 32 bytes"),
    ];
    for (case, bytes, expected) in cases {
        match bytes {
            Some(bytes) => fs::write(fixture.path("box.key"), bytes).unwrap(),
            None => fs::remove_file(fixture.path("box.key")).unwrap(),
        }
        let error = fixture.open().err().unwrap().to_string();
        assert!(error.contains(expected), "{case}: {error}");
        assert_eq!(fixture.vault(), vault, "{case}");
        assert_eq!(fs::read(fixture.path("box.key")).ok().as_deref(), bytes, "{case}");
    }
    fs::remove_file(fixture.path("box.key")).unwrap();
    let error = fixture.open_with_credential(&[3; 32]).err().unwrap().to_string();
    assert!(error.contains(BOX_KEY_CREDENTIAL) && error.contains("no token can"), "{error}");
    fs::write(fixture.path("box.key"), key).unwrap();
    fixture.open().unwrap();
}

#[test]
fn every_damaged_byte_is_noticed_and_nothing_is_overwritten() {
    let fixture = Fixture::new();
    fixture.open().unwrap().put(Name::TlsLeaf, b"certificate").unwrap();
    let whole = fixture.vault();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        // Another sign of the same kind, so that the JSON stays one.
        damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
        fs::write(fixture.path("vault"), &damaged).unwrap();
        assert!(fixture.open().is_err(), "byte {at}");
        assert_eq!(fixture.vault(), damaged);
    }
    for damaged in [&whole[..whole.len() / 2], b"", b"{}"] {
        fs::write(fixture.path("vault"), damaged).unwrap();
        assert!(matches!(fixture.open(), Err(Error::Damaged { .. })));
    }
    fs::write(fixture.path("vault"), vec![b' '; VAULT_BYTES_MAX + 1]).unwrap();
    assert!(matches!(fixture.open(), Err(Error::File(_))));
    fs::write(fixture.path("vault"), br#"{"version": 2, "more": true}"#).unwrap();
    assert!(matches!(fixture.open(), Err(Error::Version { version: 2, .. })));
}

#[test]
fn secrets_that_changed_places_do_not_open() {
    let fixture = Fixture::new();
    drop(fixture.open().unwrap());
    let mut json: serde_json::Value = serde_json::from_slice(&fixture.vault()).unwrap();
    let secrets = json["secrets"].as_object_mut().unwrap();
    let (mac, pepper) = (secrets["event-mac"].clone(), secrets["pepper"].clone());
    secrets.insert("event-mac".to_owned(), pepper);
    secrets.insert("pepper".to_owned(), mac);
    fs::write(fixture.path("vault"), serde_json::to_vec(&json).unwrap()).unwrap();
    assert!(matches!(fixture.open(), Err(Error::Damaged { .. })));
}

#[test]
fn a_vault_that_is_gone_is_not_made_again_beside_its_database() {
    let fixture = Fixture::new();
    drop(fixture.open().unwrap());
    fs::write(fixture.path("sallyport.db"), b"").unwrap();
    fs::remove_file(fixture.path("vault")).unwrap();
    assert!(matches!(fixture.open(), Err(Error::Missing { .. })));
    assert!(!fixture.path("vault").exists());
}

#[test]
fn on_new_hardware_the_token_opens_it_and_it_is_sealed_again() {
    let fixture = Fixture::new();
    let first = fixture.open().unwrap();
    let token = fixture.token("keys");
    assert!(first.wrap_with(&*token).unwrap());
    assert!(!first.wrap_with(&*token).unwrap(), "it is wrapped already");
    let key = first.wrapped_by().unwrap();
    assert_eq!(token.keys().unwrap(), std::slice::from_ref(&key));

    fs::remove_file(fixture.path("box.key")).unwrap();
    let error = fixture.open().err().unwrap().to_string();
    assert!(error.contains(&key.to_string()), "{error}");
    let recovered = fixture.open_with_token().unwrap();
    assert_eq!(mac(&recovered), mac(&first));
    assert_eq!(mac(&fixture.open().unwrap()), mac(&first), "sealed to this box again");

    // A key of another box is no hindrance either.
    fs::write(fixture.path("box.key"), [9; 32]).unwrap();
    assert_eq!(mac(&fixture.open_with_token().unwrap()), mac(&first));
    assert_eq!(mac(&fixture.open().unwrap()), mac(&first));
}

#[test]
fn another_token_does_not_open_it_but_can_be_made_to() {
    let fixture = Fixture::new();
    let first = fixture.open().unwrap();
    first.wrap_with(&*fixture.token("keys")).unwrap();
    let key = fs::read(fixture.path("box.key")).unwrap();
    fs::remove_file(fixture.path("box.key")).unwrap();
    fs::rename(fixture.path("keys"), fixture.path("old")).unwrap();
    fs::rename(fixture.path("keys.key"), fixture.path("old.key")).unwrap();
    let before = fixture.vault();
    assert!(matches!(fixture.open_with_token(), Err(Error::Token { .. })));
    assert_eq!(fixture.vault(), before);

    fs::write(fixture.path("box.key"), key).unwrap();
    let vault = fixture.open().unwrap();
    assert!(vault.wrap_with(&*fixture.token("keys")).unwrap(), "the old key is not in this token");
    fs::remove_file(fixture.path("box.key")).unwrap();
    assert_eq!(mac(&fixture.open_with_token().unwrap()), mac(&first));
}
