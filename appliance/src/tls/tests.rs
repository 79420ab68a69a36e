//! Tests of the certificates against a verifying client in the same process.

mod handshakes;
mod higher;
mod pluggable;
mod rotation;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};
use rustls_pki_types::{ServerName, UnixTime};
use sallyport_core::sign::Policy;
use sallyport_hsm::SoftwareToken;
use tempfile::TempDir;

use super::*;
use pluggable::Pluggable;

const NOW: Millis = Millis(1_800_000_000_000);
const A_SECOND: Duration = Duration::from_secs(1);

/// A box with what certificates need, and nothing else.
struct Fixture {
    folder: TempDir,
    vault: Arc<Vault>,
    store: Store,
    token: Option<Arc<Pluggable>>,
    made: Counter,
}

impl Fixture {
    /// Without a token.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path(), None, None).unwrap();
        let store = Store::open(sallyport_store::Options {
            path: &folder.path().join("sallyport.db"),
            server_name: "alpha.example".try_into().unwrap(),
            fresh_incarnation: [1; 16],
            on_commit: Box::new(|_| {}),
        });
        let (vault, store, made) = (Arc::new(vault), store.unwrap(), Counter::default());
        Self { folder, vault, store, token: None, made }
    }

    /// With a token that signs this slowly. It is plugged in.
    fn with_token(delay: Duration) -> Self {
        let mut fixture = Self::new();
        let policy = Policy { server_name: "alpha.example".try_into().unwrap() };
        let path = fixture.folder.path().join("keys");
        let token = SoftwareToken::open_or_create(&path, delay, policy).unwrap();
        fixture.token = Some(Arc::new(Pluggable::new(token)));
        fixture
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn token(&self) -> &Pluggable {
        self.token.as_deref().unwrap()
    }

    fn config(&self, more: &str) -> Config {
        let folder = self.path().display().to_string();
        let token = match self.token {
            Some(_) => "allow_software_keys = true\n[token]\nkind = 'software'\npath = '/unused'\n",
            None => "",
        };
        let text = format!("server_name = 'alpha.example'\ndata_dir = {folder:?}\n{token}{more}");
        Config::parse(&text, Path::new("test")).unwrap()
    }

    fn try_open(&self, more: &str, now: Millis) -> Result<Arc<Certificates>, Error> {
        let token = self.token.clone().map(|token| token as Arc<dyn Token>);
        let (vault, made) = (Arc::clone(&self.vault), self.made.clone());
        Certificates::open(&self.config(more), vault, token, &self.store, made, now)
    }

    /// Opens and makes what is missing, as far as that is possible now.
    fn open(&self, more: &str, now: Millis) -> Arc<Certificates> {
        let certificates = self.try_open(more, now).unwrap();
        if let Err(error) = certificates.refresh(&self.store, now) {
            assert!(error.waits_for_token(), "{error}");
        }
        certificates
    }

    fn handshake(
        &self,
        certificates: &Arc<Certificates>,
        name: &'static str,
        now: Millis,
    ) -> Result<(), rustls::Error> {
        let root = CertificateDer::from_pem_file(self.path().join("ca.pem")).unwrap();
        handshake(certificates, root, name, now)
    }
}

fn chain(certificates: &Certificates) -> Vec<CertificateDer<'static>> {
    certificates.current.borrow().as_ref().unwrap().cert.clone()
}

#[derive(Debug)]
struct At(Millis);

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.0)))
    }
}

/// A device that trusts this certificate and no other.
fn device(root: CertificateDer<'static>, now: Millis) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root).unwrap();
    let provider = Arc::new(ring::default_provider());
    ClientConfig::builder_with_details(provider, Arc::new(At(now)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn handshake(
    certificates: &Arc<Certificates>,
    root: CertificateDer<'static>,
    name: &'static str,
    now: Millis,
) -> Result<(), rustls::Error> {
    let client = device(root, now);
    let name = ServerName::try_from(name).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let server = certificates.server_config().unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    Ok(())
}

#[test]
fn a_device_that_trusts_the_ca_connects_by_every_name() {
    let fixture = Fixture::new();
    let names = "[tls]\nnames = ['chat.alpha.example', '192.168.7.1']";
    let certificates = fixture.try_open(names, NOW).unwrap();
    for name in ["alpha.example", "chat.alpha.example", "192.168.7.1", "localhost", "::1"] {
        fixture.handshake(&certificates, name, NOW).unwrap();
    }
    fixture.handshake(&certificates, "bravo.example", NOW).unwrap_err();
}

#[test]
fn the_certificate_outlives_the_absence_of_the_ca() {
    let fixture = Fixture::new();
    let certificates = fixture.try_open("", NOW).unwrap();
    let later = NOW.plus(RENEW_BEFORE);
    fixture.handshake(&certificates, "alpha.example", later).unwrap();
    let expired = NOW.plus(LEAF_VALIDITY).plus(Duration::from_secs(1));
    fixture.handshake(&certificates, "alpha.example", expired).unwrap_err();
    certificates.refresh(&fixture.store, expired).unwrap();
    fixture.handshake(&certificates, "alpha.example", expired).unwrap();
}

#[test]
fn a_restart_keeps_the_ca_and_the_certificate() {
    let fixture = Fixture::new();
    let first = fixture.try_open("", NOW).unwrap();
    let again = fixture.try_open("", NOW).unwrap();
    assert_eq!(chain(&first), chain(&again));

    let named = "[tls]\nnames = ['10.0.0.9', 'chat.alpha.example']";
    let renamed = fixture.try_open(named, NOW).unwrap();
    assert_ne!(chain(&first)[0], chain(&renamed)[0]);
    assert_eq!(first.status().unwrap().ca, renamed.status().unwrap().ca);
    fixture.handshake(&renamed, "10.0.0.9", NOW).unwrap();
}

#[test]
fn a_clock_that_was_ahead_does_not_outlast_its_correction() {
    let fixture = Fixture::new();
    let ahead = NOW.plus(Duration::from_secs(300 * 24 * 60 * 60));
    drop(fixture.try_open("", NOW).unwrap());
    let certificates = fixture.try_open("", ahead).unwrap();
    fixture.handshake(&certificates, "alpha.example", NOW).unwrap_err();
    certificates.refresh(&fixture.store, NOW).unwrap();
    fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
}

#[test]
fn a_name_outside_the_constraints_is_refused_with_a_way_out() {
    let fixture = Fixture::new();
    drop(fixture.try_open("", NOW).unwrap());
    for name in ["bravo.example", "notalpha.example", "8.8.8.8"] {
        let names = format!("[tls]\nnames = ['{name}']");
        let error = fixture.try_open(&names, NOW).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("ca.json"), "{error}");
    }
}

#[test]
fn secrets_are_for_this_user_only() {
    let fixture = Fixture::new();
    drop(fixture.try_open("", NOW).unwrap());
    for (file, mode) in [("tls/ca.json", 0o600), ("vault", 0o600), ("ca.pem", 0o644)] {
        let metadata = fs::metadata(fixture.path().join(file)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{file}");
    }
}

#[test]
fn with_a_token_no_file_has_a_key_of_the_ca() {
    let fixture = Fixture::with_token(Duration::ZERO);
    let certificates = fixture.open("", NOW);
    fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
    let stored = fs::read_to_string(fixture.path().join("tls/ca.json")).unwrap();
    assert!(stored.contains("\"token_key\"") && !stored.contains("PRIVATE KEY"), "{stored}");
    let status = certificates.status().unwrap();
    let key = own_keys::current(&fixture.store, KeyRole::Ca).unwrap().unwrap().name.to_string();
    assert_eq!(status.ca.unwrap().key, KeyPlace::Token { key });
    assert_eq!((status.tls_key, status.waits), (Some(KeyPlace::Vault), None));
    assert_eq!(fixture.made.get(), 0, "the leaf's key is the box's own");
}

#[test]
fn a_first_start_waits_for_its_token_and_founds_the_ca_when_it_comes() {
    let fixture = Fixture::with_token(Duration::ZERO);
    fixture.token().pull_out();
    let certificates = fixture.try_open("", NOW).unwrap();
    for _ in 0..2 {
        let error = certificates.refresh(&fixture.store, NOW).unwrap_err();
        assert!(error.waits_for_token() && !certificates.is_ready(), "{error}");
    }
    assert!(certificates.status().unwrap().waits.is_some());
    assert!(!fixture.path().join("tls/ca.json").exists());
    fixture.token().plug_in();
    assert!(certificates.refresh(&fixture.store, NOW).unwrap());
    fixture.handshake(&certificates, "alpha.example", NOW).unwrap();
    assert_eq!(certificates.status().unwrap().waits, None);
}

#[test]
fn without_its_token_the_certificate_serves_to_its_last_day() {
    let fixture = Fixture::with_token(Duration::ZERO);
    let first = chain(&fixture.open("", NOW));
    fixture.token().pull_out();
    let end = NOW.plus(LEAF_VALIDITY);
    let renewal = NOW.plus(LEAF_VALIDITY - RENEW_BEFORE);
    assert!(renewal.since(NOW) > Duration::from_secs(90 * 24 * 60 * 60));
    let before = |time: Millis| Millis(time.0 - 1000);
    for (now, fits) in [(before(renewal), true), (renewal, false), (before(end), false)] {
        // Each a start of its own.
        let certificates = fixture.try_open("", now).unwrap();
        fixture.handshake(&certificates, "alpha.example", now).unwrap();
        assert_eq!(certificates.refresh(&fixture.store, now).unwrap(), fits, "{now:?}");
        assert_eq!(certificates.waits().is_none(), fits);
        fixture.handshake(&certificates, "alpha.example", now).unwrap();
        assert_eq!(chain(&certificates), first);
    }
    let late = end.plus(A_SECOND);
    let certificates = fixture.open("", late);
    fixture.handshake(&certificates, "alpha.example", late).unwrap_err();
    fixture.token().plug_in();
    assert!(certificates.refresh(&fixture.store, late).unwrap());
    fixture.handshake(&certificates, "alpha.example", late).unwrap();
    assert_ne!(chain(&certificates)[0], first[0]);
    assert_eq!(chain(&certificates)[1], first[1], "devices trust it");
}

#[test]
fn without_a_configured_token_what_is_there_is_served_on() {
    let mut fixture = Fixture::with_token(Duration::ZERO);
    drop(fixture.open("", NOW));
    fixture.token = None;
    let late = NOW.plus(LEAF_VALIDITY - A_SECOND);
    let certificates = fixture.try_open("", late).unwrap();
    fixture.handshake(&certificates, "alpha.example", late).unwrap();
    assert!(certificates.waits().unwrap().contains("configure that token"));
}

#[test]
fn a_ca_whose_key_lies_in_a_file_stays_when_a_token_comes() {
    let mut fixture = Fixture::new();
    let first = fixture.open("", NOW).status().unwrap();
    fixture.token = Fixture::with_token(Duration::ZERO).token;
    let certificates = fixture.open("", NOW.plus(LEAF_VALIDITY));
    let status = certificates.status().unwrap();
    assert_eq!(status.ca, first.ca);
    assert_eq!(status.ca.unwrap().key, KeyPlace::File);
    fixture.handshake(&certificates, "alpha.example", NOW.plus(LEAF_VALIDITY)).unwrap();
}
