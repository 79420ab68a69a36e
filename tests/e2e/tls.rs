//! Real clients shake hands with a key that never leaves SoftHSM2.

use std::{fs, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    enclave::{Enclave, PIN, Plan, Token},
    http::Client,
    person::{Person, Software},
    place::Place,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::hsm::{STUCK_AFTER, current, keys};

/// Where Debian's package puts the browser.
const BROWSER: &str = "/usr/bin/chromium";

/// A box whose TLS key is in SoftHSM2.
fn boxed() -> Result<(Enclave, TempDir)> {
    let folder = tempfile::tempdir()?;
    let mut plan = Plan::for_test("alpha", folder.path());
    plan.token = Token::SoftHsm;
    let mut enclave = Enclave::create(plan, Place::Here)?;
    let configuration = enclave.plan().configuration();
    let text = fs::read_to_string(&configuration)?;
    fs::write(&configuration, text.replace("[tls]\n", "[tls]\nkey_in = \"token\"\n"))?;
    enclave.start()?;
    Ok((enclave, folder))
}

/// Handshakes that the token has signed.
fn signatures(enclave: &Enclave) -> Result<u64> {
    let plain = Client::new(enclave.plan().plain())?;
    let metrics = plain.request(http::Method::GET, "/metrics", None)?;
    let text = String::from_utf8(metrics.bytes.to_vec())?;
    let line = text.lines().find_map(|line| line.strip_prefix("sallyport_tls_signatures_total "));
    Ok(line.unwrap_or("0").parse()?)
}

#[test]
fn curl_trusts_the_enclave_ca_and_shakes_hands_with_the_token() -> Result<()> {
    let (enclave, _folder) = boxed()?;
    let shown = enclave.desk().sallyctl(&["certificate", "show"])?;
    ensure!(shown.contains("in the token, tls:") && shown.contains("in the token, ca:"), "{shown}");
    let url = format!("{}/_matrix/client/versions", enclave.plan().url());
    let get = |arguments: &[&str]| Command::new("curl").args(arguments).arg(&url).output();
    let authority = enclave.authority().display().to_string();
    let before = signatures(&enclave)?;
    let answer = get(&["--silent", "--show-error", "--tlsv1.3", "--cacert", &authority])?;
    let complaint = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.success(), "curl: {complaint}");
    ensure!(String::from_utf8_lossy(&answer.stdout).contains("\"versions\""), "no answer");
    let after = signatures(&enclave)?;
    ensure!(after == before + 1, "the token has signed {before} handshakes, and then {after}");
    ensure!(!get(&["--silent"])?.status.success(), "curl trusts a CA that nobody gave it");
    Ok(())
}

#[test]
fn the_keys_of_certificates_are_replaced_without_a_restart() -> Result<()> {
    let (enclave, folder) = boxed()?;
    let desk = enclave.desk();
    let url = format!("{}/_matrix/client/versions", enclave.plan().url());
    let reaches = |authority: &Path| -> Result<bool> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--tlsv1.3", "--cacert"]).arg(authority).arg(&url);
        Ok(curl.output()?.status.success())
    };
    let in_use = |role: &str| current(&keys(desk)?, role);
    let first = folder.path().join("first.pem");
    fs::copy(enclave.authority(), &first)?;
    let rotate = |role: &str| {
        let protocol = format!("{role}.txt");
        desk.sallyctl(&["hsm", "rotate", role, "--yes", "--protocol", &protocol])
    };

    let old = in_use("tls")?;
    let plan = desk.sallyctl(&["hsm", "rotate", "tls", "--plan"])?;
    ensure!(plan.contains("make a new tls key in the token") && plan.contains(&old), "{plan}");
    ensure!(in_use("tls")? == old, "a plan changed something");
    let protocol = rotate("tls")?;
    let new = in_use("tls")?;
    for part in [format!("retired {old}"), format!("made {new}")] {
        ensure!(protocol.contains(&part), "no {part} in:\n{protocol}");
    }
    ensure!(desk.sallyctl(&["certificate", "show"])?.contains(&new), "another key is served");
    let before = signatures(&enclave)?;
    ensure!(reaches(&first)?, "the CA is not the same");
    ensure!(signatures(&enclave)? == before + 1, "the new key signed nothing");
    is_destroyed(&enclave, &old)?;

    let (ca, leaf) = (in_use("ca")?, new);
    let plan = desk.sallyctl(&["hsm", "rotate", "ca", "--plan"])?;
    ensure!(plan.contains("EVERY DEVICE must trust it"), "{plan}");
    rotate("ca")?;
    ensure!(!reaches(&first)? && reaches(&enclave.authority())?, "the CA is not the new one");
    is_destroyed(&enclave, &ca)?;
    is_destroyed(&enclave, &leaf)
}

/// Waits until the box has destroyed a key, and looks for it in the token.
fn is_destroyed(enclave: &Enclave, name: &str) -> Result<()> {
    let started = Instant::now();
    let destroyed = |key: &Value| key["name"] == name && !key["destroyed"].is_null();
    while !keys(enclave.desk())?.iter().any(destroyed) {
        ensure!(started.elapsed() < STUCK_AFTER, "{name} is not destroyed");
    }
    let (_, id) = name.split_once(':').context("a name")?;
    let listed = enclave.softhsm().context("no SoftHSM2")?.listed("alpha", PIN)?;
    ensure!(!listed.contains(id), "{name} is in the token still:\n{listed}");
    Ok(())
}

#[test]
fn nio_speaks_tls_with_the_token() -> Result<()> {
    let (enclave, folder) = boxed()?;
    let diary = folder.path().join("alice.log");
    let authority = enclave.authority();
    let mut alice =
        Person::start("alice", Software::Nio, enclave.place(), Some(&authority), &diary)?;
    alice.register(&enclave.plan().url(), "alice", "correct horse battery staple", None)?;
    let room = alice.create_encrypted_room("Operations", &[])?;
    alice.say(&room, "over TLS")?;
    ensure!(signatures(&enclave)? > 0, "the token signed no handshake");
    Ok(())
}

#[test]
fn a_browser_shows_the_activation_page() -> Result<()> {
    if !Path::new(BROWSER).exists() {
        eprintln!("SKIPPED: {BROWSER} is not installed: no browser was tried");
        return Ok(());
    }
    let (enclave, folder) = boxed()?;
    let profile = folder.path().join("browser");
    let database = profile.join(".pki/nssdb");
    fs::create_dir_all(&database)?;
    let database = format!("sql:{}", database.display());
    let authority = enclave.authority().display().to_string();
    for arguments in
        [vec!["-N", "--empty-password"], vec!["-A", "-n", "enclave", "-t", "C,,", "-i", &authority]]
    {
        let done = Command::new("certutil").args(["-d", &database]).args(arguments).status()?;
        ensure!(done.success(), "certutil: {done}");
    }
    let page = Command::new(BROWSER)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("{}/activate", enclave.plan().url()))
        .env("HOME", &profile)
        .output()?;
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    ensure!(page.contains("<form"), "the browser shows: {page}");
    ensure!(signatures(&enclave)? > 0, "the token signed no handshake");
    Ok(())
}
