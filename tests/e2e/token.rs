//! A token that is locked or gone stops what leaves the box, and nothing else.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sallyport_e2e::{
    enclave::{Enclave, PIN, Plan, Token, write_secret},
    http::Client,
    person::word,
    place::Place,
};
use serde_json::json;
use tempfile::TempDir;

/// How long the box may take to notice what became of its token.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

struct Scene {
    enclave: Enclave,
    alice: Client,
    room: String,
    sent: u32,
    _folder: TempDir,
}

impl Scene {
    /// A box with its keys in SoftHSM2, which has been ready once, and alice in a room.
    fn new() -> Result<Self> {
        Self::with_mode("auto")
    }

    fn with_mode(token_mode: &'static str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut plan = Plan::for_test("alpha", folder.path());
        plan.token = Token::SoftHsm;
        plan.token_mode = token_mode;
        let mut enclave = Enclave::create(plan, Place::Here)?;
        enclave.start()?;
        let alice = enclave.client()?.register("alice", "correct horse battery staple")?;
        let room = word(&alice.post("/_matrix/client/v3/createRoom", json!({}))?, "room_id")?;
        let scene = Self { enclave, alice, room, sent: 0, _folder: folder };
        scene.token_becomes("ready")?;
        Ok(scene)
    }

    /// Waits until `sallyctl token status` says `state`; answers all that it says.
    fn token_becomes(&self, state: &str) -> Result<String> {
        let started = Instant::now();
        loop {
            let says = self.enclave.desk().sallyctl(&["token", "status"])?;
            if says.contains(state) {
                return Ok(says);
            }
            ensure!(started.elapsed() < NOTICED_WITHIN, "the token is not {state} but {says}");
        }
    }

    /// Local chat goes on.
    fn chat(&mut self) -> Result<()> {
        self.sent += 1;
        let path =
            format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{}", self.room, self.sent);
        self.alice.put(&path, json!({"msgtype": "m.text", "body": "still here"}))?;
        Ok(())
    }
}

#[test]
fn a_wrong_pin_is_tried_once_and_local_chat_goes_on() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.enclave.stop()?;
    let pin_file = scene.enclave.plan().pin_file();
    write_secret(&pin_file, "not the pin")?;
    scene.enclave.start()?;
    let says = scene.token_becomes("LOCKED")?;
    scene.chat()?;
    // It must say the same later: a retry would cost the token another of its few attempts.
    ensure!(scene.enclave.desk().sallyctl(&["token", "status"])? == says);
    let log = fs::read_to_string(scene.enclave.log())?;
    let complaints = log.lines().filter(|line| line.contains("PIN")).count();
    ensure!(complaints >= 1, "the log says nothing of the PIN:\n{log}");
    scene.enclave.desk().sallyctl_answering(&["token", "unlock"], &format!("{PIN}\n"))?;
    scene.token_becomes("ready")?;
    scene.chat()
}

#[test]
fn a_box_whose_pin_a_person_gives_serves_its_people_until_then() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.enclave.restart_without_pin()?;
    let says = scene.token_becomes("LOCKED")?;
    ensure!(says.contains("sallyctl token unlock"), "nobody is told what to do: {says}");
    scene.chat()?;
    let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1", scene.room);
    let read = scene.alice.get(&path)?;
    ensure!(read.to_string().contains("still here"), "alice reads {read}");
    scene.enclave.desk().sallyctl_answering(&["token", "unlock"], &format!("{PIN}\n"))?;
    scene.token_becomes("ready")?;
    scene.chat()
}

#[test]
fn a_token_that_vanishes_stops_no_chat_and_comes_back_by_itself() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.enclave.stop()?;
    let softhsm = scene.enclave.plan().folder.join("softhsm");
    let (tokens, drawer) = (softhsm.join("tokens"), softhsm.join("drawer"));
    fs::rename(&tokens, &drawer)?;
    fs::create_dir(&tokens)?;
    scene.enclave.start()?;
    scene.chat()?;
    let says = scene.enclave.desk().sallyctl(&["token", "status"])?;
    ensure!(!says.contains("ready"), "without its token the box says: {says}");
    fs::remove_dir(&tokens)?;
    fs::rename(&drawer, &tokens)?;
    scene.token_becomes("ready")?;
    scene.chat()
}

#[test]
fn a_working_key_signs_without_the_token_until_the_box_is_restarted() -> Result<()> {
    let mut scene = Scene::with_mode("envelope")?;
    let folder = scene.enclave.plan().folder.clone();
    // The key document in it is signed by the event key.
    let request = |enclave: &Enclave, name: &str| {
        let path = folder.join(name);
        let path = path.to_str().context("a path in UTF-8")?;
        enclave.desk().sallyctl(&["card", "request", "--out", path])
    };
    request(&scene.enclave, "first")?;
    let says = scene.token_becomes("event key, envelope")?;
    ensure!(says.contains("Who takes over the running box can copy the key"), "{says}");
    let status = scene.enclave.desk().sallyctl(&["status"])?;
    ensure!(status.contains("envelope: The key is on the disk, encrypted"), "{status}");

    let softhsm = scene.enclave.plan().folder.join("softhsm");
    let (tokens, drawer) = (softhsm.join("tokens"), softhsm.join("drawer"));
    fs::rename(&tokens, &drawer)?;
    fs::create_dir(&tokens)?;
    scene.token_becomes("ABSENT")?;
    request(&scene.enclave, "second")?;
    scene.enclave.stop()?;
    scene.enclave.start()?;
    scene.chat()?;
    ensure!(request(&scene.enclave, "third").is_err(), "signed without any token");
    let says = scene.token_becomes("ABSENT")?;
    ensure!(says.contains("event key, envelope"), "{says}");
    fs::remove_dir(&tokens)?;
    fs::rename(&drawer, &tokens)?;
    scene.token_becomes("ready")?;
    request(&scene.enclave, "third")?;
    Ok(())
}

#[test]
fn the_module_lives_in_a_process_that_may_die() -> Result<()> {
    let mut scene = Scene::new()?;
    ensure!(!scene.enclave.mapped_files()?.contains("softhsm"), "the box itself loaded the module");
    let first = scene.enclave.token_process()?;
    kill(first, Signal::SIGKILL)?;
    scene.chat()?;
    let started = Instant::now();
    while scene.enclave.token_process().is_ok_and(|now| now == first)
        || scene.enclave.token_process().is_err()
    {
        ensure!(started.elapsed() < NOTICED_WITHIN, "no other process serves the token");
        scene.chat()?;
    }
    scene.token_becomes("ready")?;
    let log = fs::read_to_string(scene.enclave.log())?;
    ensure!(log.contains("died (signal: 9"), "the log does not say what happened:\n{log}");
    scene.chat()?;

    let second = scene.enclave.token_process()?;
    scene.enclave.kill()?;
    let started = Instant::now();
    while is_running(second) {
        ensure!(started.elapsed() < NOTICED_WITHIN, "the token's process outlives the box");
    }
    Ok(())
}

/// Whether a process is there and is more than an entry in the kernel's table.
fn is_running(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
