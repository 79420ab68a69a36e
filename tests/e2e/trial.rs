//! An update from the server's side: a system on trial stays closed until it was blessed, and one that did not hold gives the database back.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sallyport_e2e::{enclave::Enclave, person::word};
use serde_json::json;

/// How long a box that was blessed may take to open.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the boot loader says of a start that it counts.
fn boot_count(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join("LoaderBootCountPath");
    let text = format!("\\EFI\\Linux\\{name}\0");
    let text = text.encode_utf16().flat_map(u16::to_le_bytes);
    fs::write(&path, [6, 0, 0, 0].into_iter().chain(text).collect::<Vec<u8>>())?;
    Ok(path)
}

#[test]
fn a_system_on_trial_opens_when_it_was_blessed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut enclave = Enclave::for_test("alpha", folder.path())?;
    let alice = enclave.client()?.register("alice", "correct horse battery staple")?;
    enclave.stop()?;
    let count = boot_count(folder.path(), "sallyport_0.2.0+2-1.efi")?;
    let blessed = folder.path().join("blessed");
    let options = [("--boot-count", count.as_path()), ("--blessed", blessed.as_path())];
    // Ready is what it says; open it is not.
    enclave.start_with(&options)?;
    ensure!(alice.get("/_matrix/client/v3/account/whoami").is_err(), "a listener is open");
    ensure!(enclave.desk().sallyctl(&["status"]).is_err(), "the administration socket is open");
    fs::write(&blessed, "")?;
    let asked = Instant::now();
    while alice.get("/_matrix/client/v3/account/whoami").is_err() {
        ensure!(asked.elapsed() < PATIENCE, "it was blessed and does not open");
    }
    let audit = enclave.desk().sallyctl(&["audit", "show"])?;
    ensure!(audit.contains("update.blessed"), "{audit}");
    enclave.stop()?;
    // Watched is not on trial: it opens at once.
    let count = boot_count(folder.path(), "sallyport_0.2.0+8-1.efi")?;
    fs::remove_file(&blessed)?;
    enclave.start_with(&[("--boot-count", count.as_path()), ("--blessed", blessed.as_path())])?;
    alice.get("/_matrix/client/v3/account/whoami")?;
    enclave.stop()
}

#[test]
fn a_system_on_trial_can_be_stopped() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut enclave = Enclave::for_test("alpha", folder.path())?;
    enclave.stop()?;
    let count = boot_count(folder.path(), "sallyport_0.2.0+0-3.efi")?;
    let blessed = folder.path().join("blessed");
    enclave.start_with(&[("--boot-count", count.as_path()), ("--blessed", blessed.as_path())])?;
    enclave.stop()
}

#[test]
fn the_version_before_takes_the_database_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut enclave = Enclave::for_test("alpha", folder.path())?;
    let alice = enclave.client()?.register("alice", "correct horse battery staple")?;
    let room = word(&alice.post("/_matrix/client/v3/createRoom", json!({}))?, "room_id")?;
    let message = json!({"msgtype": "m.text", "body": "before the update"});
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    let event = word(&alice.put(&path, message)?, "event_id")?;
    enclave.stop()?;
    // A newer version was on trial: it left its copy, and a database with a schema of its own.
    let (data, copy) = (enclave.plan().data(), enclave.plan().data().join("before-update"));
    fs::create_dir(&copy)?;
    for name in ["sallyport.db", "vault"] {
        fs::copy(data.join(name), copy.join(name))?;
    }
    let mut newer = fs::read(data.join("sallyport.db"))?;
    newer[60..64].copy_from_slice(&9999_u32.to_be_bytes());
    fs::write(data.join("sallyport.db"), newer)?;

    enclave.start()?;
    let kept = alice.get(&format!("/_matrix/client/v3/rooms/{room}/event/{event}"))?;
    ensure!(kept["content"]["body"] == "before the update", "{kept}");
    let log = fs::read_to_string(enclave.log())?;
    ensure!(log.contains("THE DATABASE WAS TAKEN BACK"), "the log does not say so");
    let status = enclave.desk().sallyctl(&["status"])?;
    ensure!(status.contains("an update did not hold"), "{status}");
    enclave.stop()?;
    enclave.start()?;
    let status = enclave.desk().sallyctl(&["status"])?;
    ensure!(!status.contains("an update did not hold"), "{status}");
    enclave.stop()
}
