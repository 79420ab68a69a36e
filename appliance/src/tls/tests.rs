//! Tests of the certificates against a verifying client in the same process.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};
use rustls_pki_types::{ServerName, UnixTime};

use super::*;

const NOW: Millis = Millis(1_800_000_000_000);

fn config(folder: &Path, more: &str) -> Config {
    let folder = folder.display().to_string();
    let text = format!("server_name = 'alpha.example'\ndata_dir = {folder:?}\n{more}");
    Config::parse(&text, Path::new("test")).unwrap()
}

#[derive(Debug)]
struct At(Millis);

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.0)))
    }
}

/// Shakes hands as a device that trusts `ca.pem` and nothing else.
fn handshake(
    certificates: &Arc<Certificates>,
    folder: &Path,
    name: &'static str,
    now: Millis,
) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let client = ClientConfig::builder_with_details(provider, Arc::new(At(now)))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
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
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "[tls]\nnames = ['chat.alpha.example', '192.168.7.1']");
    let certificates = Certificates::open(&config, NOW).unwrap();
    for name in ["alpha.example", "chat.alpha.example", "192.168.7.1", "localhost", "::1"] {
        handshake(&certificates, folder.path(), name, NOW).unwrap();
    }
    handshake(&certificates, folder.path(), "bravo.example", NOW).unwrap_err();
}

#[test]
fn the_certificate_outlives_the_absence_of_the_ca() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::open(&config(folder.path(), ""), NOW).unwrap();
    let later = NOW.plus(RENEW_BEFORE);
    handshake(&certificates, folder.path(), "alpha.example", later).unwrap();
    let expired = NOW.plus(LEAF_VALIDITY).plus(Duration::from_secs(1));
    handshake(&certificates, folder.path(), "alpha.example", expired).unwrap_err();
    certificates.refresh(expired).unwrap();
    handshake(&certificates, folder.path(), "alpha.example", expired).unwrap();
}

#[test]
fn a_restart_keeps_the_ca_and_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let first = Certificates::open(&config(folder.path(), ""), NOW).unwrap();
    let again = Certificates::open(&config(folder.path(), ""), NOW).unwrap();
    let chain = |certificates: &Certificates| certificates.current.read().unwrap().cert.clone();
    assert_eq!(chain(&first), chain(&again));

    let named = config(folder.path(), "[tls]\nnames = ['10.0.0.9', 'chat.alpha.example']");
    let renamed = Certificates::open(&named, NOW).unwrap();
    assert_ne!(chain(&first)[0], chain(&renamed)[0]);
    assert_eq!(first.ca_fingerprint(), renamed.ca_fingerprint());
    handshake(&renamed, folder.path(), "10.0.0.9", NOW).unwrap();
}

#[test]
fn a_clock_that_was_ahead_does_not_outlast_its_correction() {
    let folder = tempfile::tempdir().unwrap();
    let ahead = NOW.plus(Duration::from_secs(300 * 24 * 60 * 60));
    drop(Certificates::open(&config(folder.path(), ""), NOW).unwrap());
    let certificates = Certificates::open(&config(folder.path(), ""), ahead).unwrap();
    handshake(&certificates, folder.path(), "alpha.example", NOW).unwrap_err();
    certificates.refresh(NOW).unwrap();
    handshake(&certificates, folder.path(), "alpha.example", NOW).unwrap();
}

#[test]
fn a_name_outside_the_constraints_is_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    drop(Certificates::open(&config(folder.path(), ""), NOW).unwrap());
    for name in ["bravo.example", "notalpha.example", "8.8.8.8"] {
        let config = config(folder.path(), &format!("[tls]\nnames = ['{name}']"));
        let error = Certificates::open(&config, NOW).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("ca.json"), "{error}");
    }
}

#[test]
fn secrets_are_for_this_user_only() {
    let folder = tempfile::tempdir().unwrap();
    drop(Certificates::open(&config(folder.path(), ""), NOW).unwrap());
    for (file, mode) in [("tls/ca.json", 0o600), ("tls/leaf.json", 0o600), ("ca.pem", 0o644)] {
        let metadata = std::fs::metadata(folder.path().join(file)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{file}");
    }
}
