//! `make run`: the first thing that a newcomer sees.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sallyport_e2e::{
    enclave::Plan,
    person::{Person, Software},
    place::Place,
    repository,
};

#[test]
fn a_newcomer_gets_an_enclave_that_keeps_its_data() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = Plan::for_test("alpha", folder.path()).address.to_string();
    let url = format!("https://{address}");

    let (first, text) = start(folder.path(), &address)?;
    ensure!(text.contains("FOR DEVELOPMENT ONLY"), "no warning of the software token:\n{text}");
    ensure!(text.contains("CA fingerprint        SHA-256 "), "no fingerprint:\n{text}");
    let code = after("@alice:alpha.example", &text)?;
    let authority = folder.path().join("software/data/ca.pem");
    let diary = folder.path().join("alice.log");
    let mut alice = Person::start("alice", Software::Nio, &Place::Here, Some(&authority), &diary)?;
    alice.register(&url, "alice", "correct horse battery staple", Some(&code))?;
    let room = alice.create_encrypted_room("Notes", &[])?;
    alice.say(&room, "remember this")?;
    drop(alice);
    stop(first)?;

    let (second, text) = start(folder.path(), &address)?;
    ensure!(text.contains("goes on with its data"), "it began anew:\n{text}");
    let mut alice =
        Person::start("alice", Software::JsSdk, &Place::Here, Some(&authority), &diary)?;
    alice.login(&url, "alice", "correct horse battery staple")?;
    stop(second)
}

/// Starts it as `make run` does; answers what it printed until it was ready.
fn start(folder: &Path, address: &str) -> Result<(Child, String)> {
    let mut child = Command::new(repository::program("dev-enclave")?)
        .env("DEV_DIR", folder)
        .env("DEV_ADDRESS", address)
        .env("TOKEN", "software")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut text = String::new();
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    while !text.contains("Ctrl-C stops the box.") {
        text.push_str(&lines.next().with_context(|| format!("it ended after:\n{text}"))??);
        text.push('\n');
    }
    // Whoever reads no further must not break its pipe.
    std::thread::spawn(move || lines.count());
    Ok((child, text))
}

/// Ctrl-C.
fn stop(mut child: Child) -> Result<()> {
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGINT)?;
    let status = child.wait()?;
    ensure!(status.success(), "make run ended with {status}");
    Ok(())
}

/// The word that follows `name`.
fn after(name: &str, text: &str) -> Result<String> {
    let (_, rest) = text.split_once(name).with_context(|| format!("no {name} in:\n{text}"))?;
    Ok(rest.split_whitespace().next().context("nothing follows")?.to_owned())
}
