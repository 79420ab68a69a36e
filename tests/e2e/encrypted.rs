//! Real clients chat encrypted on one box.

use anyhow::{Result, ensure};
use sallyport_e2e::{
    enclave::Enclave,
    person::{PATIENCE_MS, Person, Software, word},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const PASSWORD: &str = "correct horse battery staple";

/// A box and the folder of everything.
struct Scene {
    enclave: Enclave,
    folder: TempDir,
}

impl Scene {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        Ok(Self { enclave: Enclave::for_test("alpha", folder.path())?, folder })
    }

    fn server(&self) -> String {
        format!("http://{}", self.enclave.plan().plain())
    }

    fn user_id(&self, user: &str) -> String {
        format!("@{user}:{}", self.enclave.plan().server_name())
    }

    /// Starts a client that has no account yet. `diary` names what it prints.
    fn client(&self, diary: &str, software: Software) -> Result<Person> {
        let file = self.folder.path().join(format!("{diary}.log"));
        Person::start(diary, software, self.enclave.place(), None, &file)
    }

    /// Starts a client and registers; answers the device id too.
    fn newcomer(&self, user: &str, software: Software) -> Result<(Person, String)> {
        let mut person = self.client(user, software)?;
        let device = person.register(&self.server(), user, PASSWORD, None)?;
        Ok((person, device))
    }
}

#[test]
fn nio_and_js_sdk_read_each_other() -> Result<()> {
    let scene = Scene::new()?;
    let (alice, bob) = (scene.user_id("alice"), scene.user_id("bob"));
    let (mut at_alice, _) = scene.newcomer("alice", Software::Nio)?;
    let (mut at_bob, _) = scene.newcomer("bob", Software::JsSdk)?;

    let room = at_alice.create_encrypted_room("Operations", &[&bob])?;
    at_alice.say(&room, "written between the invite and the join")?;
    ensure!(at_bob.accept_invite(&room)? == alice);
    at_bob.read(&room, &alice, "written between the invite and the join")?;
    at_alice.see_member(&room, &bob, "join")?;
    at_bob.say(&room, "bob is here")?;
    at_alice.read(&room, &bob, "bob is here")?;
    at_alice.say(&room, "welcome")?;
    at_bob.read(&room, &alice, "welcome")?;

    // 3 000 bytes, in base64.
    let map = "c2FsbHlwb3J0".repeat(333) + "AAAA";
    exchange_file(&mut at_alice, &mut at_bob, &room, "map.bin", &map)?;
    exchange_file(&mut at_bob, &mut at_alice, &room, "plan.bin", &map)?;

    at_alice.call("logout", json!({}))?;
    at_bob.call("logout", json!({}))?;
    Ok(())
}

#[test]
fn js_sdk_trusts_a_second_device_and_restores_its_backup() -> Result<()> {
    let scene = Scene::new()?;
    let bob = scene.user_id("bob");
    let (mut first, _) = scene.newcomer("bob", Software::JsSdk)?;
    let room = first.create_encrypted_room("Notes", &[])?;
    first.say(&room, "remember this")?;
    let recovery = word(&first.call("bootstrap", json!({"password": PASSWORD}))?, "recovery")?;

    let mut second = scene.client("second", Software::JsSdk)?;
    let device = second.login(&scene.server(), "bob", PASSWORD)?;
    let restored = second.call("restore", json!({"recovery": recovery}))?;
    ensure!(restored["imported"].as_u64() >= Some(1), "the backup was empty: {restored}");
    second.call("read_back", json!({"room": room}))?;
    second.read(&room, &bob, "remember this")?;

    let which = json!({"user": bob, "device": device, "wait_ms": PATIENCE_MS});
    first.call("await_device", which)?;
    let trust = first.call("is_verified", json!({"user": bob, "device": device}))?;
    ensure!(trust["verified"] == true, "the first device does not trust the second");

    compare_codes(&mut first, &mut second, &bob, &device)
}

#[test]
fn nio_compares_codes() -> Result<()> {
    let scene = Scene::new()?;
    let (alice, carol) = (scene.user_id("alice"), scene.user_id("carol"));
    let (mut at_alice, alices) = scene.newcomer("alice", Software::Nio)?;
    let (mut at_carol, carols) = scene.newcomer("carol", Software::Nio)?;
    let room = at_alice.create_encrypted_room("Verify", &[&carol])?;
    at_carol.accept_invite(&room)?;
    at_alice.call("await_device", json!({"user": carol, "wait_ms": PATIENCE_MS}))?;
    at_carol.call("await_device", json!({"user": alice, "wait_ms": PATIENCE_MS}))?;
    compare_codes(&mut at_alice, &mut at_carol, &carol, &carols)?;
    for (person, user, device) in
        [(&mut at_alice, &carol, &carols), (&mut at_carol, &alice, &alices)]
    {
        let trust = person.call("is_verified", json!({"user": user, "device": device}))?;
        ensure!(trust["verified"] == true, "{user} is not trusted after the codes were equal");
    }
    Ok(())
}

fn exchange_file(
    from: &mut Person,
    to: &mut Person,
    room: &str,
    name: &str,
    data: &str,
) -> Result<()> {
    let file =
        json!({"room": room, "name": name, "type": "application/octet-stream", "data": data});
    from.call("send_file", file)?;
    let got = to.call("await_file", json!({"room": room, "name": name, "wait_ms": PATIENCE_MS}))?;
    ensure!(got["data"] == data, "{name} came out different");
    Ok(())
}

/// `one` verifies `device` of `user`, at which `other` sits.
fn compare_codes(one: &mut Person, other: &mut Person, user: &str, device: &str) -> Result<()> {
    let wait = || json!({"wait_ms": PATIENCE_MS});
    let started = one.ask("verify_start", json!({"user": user, "device": device}))?;
    other.call("verify_accept", wait())?;
    one.answer(started)?;
    both(one, other, "verify_code", &wait(), |mine, theirs| {
        ensure!(mine["decimals"] == theirs["decimals"], "the codes differ: {mine} {theirs}");
        Ok(())
    })?;
    both(one, other, "verify_confirm", &wait(), |_, _| Ok(()))
}

/// Gives both the same command at the same time.
fn both(
    one: &mut Person,
    other: &mut Person,
    command: &str,
    arguments: &Value,
    check: impl Fn(&Value, &Value) -> Result<()>,
) -> Result<()> {
    let (first, second) =
        (one.ask(command, arguments.clone())?, other.ask(command, arguments.clone())?);
    check(&one.answer(first)?, &other.answer(second)?)
}
