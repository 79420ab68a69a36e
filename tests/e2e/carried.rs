//! What may happen to a stick between two boxes: each gives one error that says what to do, and nothing is half-applied.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    enclave::{Enclave, Plan},
    http::Client,
    person::word,
    place::Place,
};
use serde_json::json;
use tempfile::TempDir;

const PASSWORD: &str = "correct horse battery staple";

/// Two paired boxes; alice@alpha has a room and has invited bob@bravo.
struct Pair {
    alpha: Enclave,
    bravo: Enclave,
    alice: Client,
    bob: Client,
    room: String,
    _folder: TempDir,
}

impl Pair {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let enclave = |name: &str| -> Result<Enclave> {
            let mut plan = Plan::for_test(name, folder.path());
            plan.ceremony = true;
            let mut enclave = Enclave::create(plan, Place::Here)?;
            enclave.start()?;
            enclave.desk().issue_card()?;
            Ok(enclave)
        };
        let (alpha, bravo) = (enclave("alpha")?, enclave("bravo")?);
        alpha.desk().pair_with(bravo.desk())?;
        bravo.desk().pair_with(alpha.desk())?;
        let alice = alpha.client()?.register("alice", PASSWORD)?;
        let bob = bravo.client()?.register("bob", PASSWORD)?;
        let invite = json!({"name": "Operations", "invite": ["@bob:bravo.example"]});
        let room = word(&alice.post("/_matrix/client/v3/createRoom", invite)?, "room_id")?;
        Ok(Self { alpha, bravo, alice, bob, room, _folder: folder })
    }

    /// Makes a bundle at alpha; it then lies on bravo's desk.
    fn export(&self, file: &str) -> Result<Vec<u8>> {
        self.alpha.desk().sallyctl(&["bundle", "export", "bravo.example", "--out", file])?;
        let bytes = fs::read(self.alpha.desk().path(file))?;
        fs::write(self.bravo.desk().path(file), &bytes)?;
        Ok(bytes)
    }

    fn import(&self, file: &str) -> Result<String> {
        self.bravo.desk().sallyctl(&["bundle", "import", file])
    }

    /// What bravo says about an import that it must refuse.
    fn refusal(&self, file: &str, bytes: &[u8]) -> Result<String> {
        let before = self.bravo.desk().sallyctl(&["bundle", "status"])?;
        fs::write(self.bravo.desk().path(file), bytes)?;
        let outcome = self.import(file);
        let refusal = format!("{:#}", outcome.err().with_context(|| format!("{file} was taken"))?);
        let after = self.bravo.desk().sallyctl(&["bundle", "status"])?;
        ensure!(before == after, "{file} was refused and yet changed\n{before}to\n{after}");
        ensure!(self.invites()? == 0, "{file} was refused and yet brought an invite");
        Ok(refusal)
    }

    /// How many invites bob sees.
    fn invites(&self) -> Result<usize> {
        let sync = self.bob.get("/_matrix/client/v3/sync?timeout=0")?;
        Ok(sync["rooms"]["invite"].as_object().map_or(0, |rooms| rooms.len()))
    }

    fn say(&self, body: &str) -> Result<()> {
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{body}", self.room);
        self.alice.put(&path, json!({"msgtype": "m.text", "body": body}))?;
        Ok(())
    }

    /// The messages that bob can read, newest last.
    fn read(&self) -> Result<Vec<String>> {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100", self.room);
        let page = self.bob.get(&path)?;
        let events = page["chunk"].as_array().context("no events")?;
        let bodies = events.iter().rev().filter_map(|event| event["content"]["body"].as_str());
        Ok(bodies.map(str::to_owned).collect())
    }
}

#[test]
fn damaged_bundles_are_refused_and_the_whole_one_is_taken() -> Result<()> {
    let pair = Pair::new()?;
    let bundle = pair.export("first.bundle")?;
    // Every part of the file: preamble, header, body, and the last byte.
    for at in [0, 9, 30, bundle.len() / 2, bundle.len() - 1] {
        let mut damaged = bundle.clone();
        damaged[at] ^= 1;
        let refusal = pair.refusal("flipped.bundle", &damaged)?;
        ensure!(refusal.contains("bundle"), "byte {at}: {refusal}");
    }
    for kept in [0, 20, 200, bundle.len() / 2, bundle.len() - 1] {
        let refusal = pair.refusal("cut.bundle", &bundle[..kept])?;
        ensure!(refusal.contains("bundle"), "{kept} bytes: {refusal}");
    }
    let mut longer = bundle.clone();
    longer.extend([0; 1000]);
    pair.refusal("longer.bundle", &longer)?;

    pair.import("first.bundle")?;
    ensure!(pair.invites()? == 1, "the whole bundle brought no invite");
    let again = pair.import("first.bundle")?;
    ensure!(again.contains("nothing changed"), "twice: {again}");
    Ok(())
}

#[test]
fn bundles_are_taken_in_order_by_their_recipient_only() -> Result<()> {
    let pair = Pair::new()?;
    let to_bravo = pair.export("1.bundle")?;
    let desk = pair.alpha.desk();
    fs::write(desk.path("own.bundle"), &to_bravo)?;
    let own = desk.sallyctl(&["bundle", "import", "own.bundle"]);
    ensure!(own.is_err(), "alpha takes its own bundle");

    pair.import("1.bundle")?;
    pair.bob.post(&format!("/_matrix/client/v3/join/{}", pair.room), json!({}))?;
    pair.say("one")?;
    pair.export("2.bundle")?;
    pair.say("two")?;
    pair.export("3.bundle")?;
    // A bundle holds everything since the last acknowledgement: the third one makes the second superfluous.
    pair.import("3.bundle")?;
    ensure!(pair.read()? == ["one", "two"], "bob reads {:?}", pair.read()?);
    let late = pair.import("2.bundle")?;
    ensure!(late.contains("nothing changed"), "the second bundle after the third: {late}");
    ensure!(pair.read()? == ["one", "two"], "bob reads {:?}", pair.read()?);
    Ok(())
}

#[test]
fn a_power_cut_during_an_import_is_made_good_by_importing_again() -> Result<()> {
    let mut pair = Pair::new()?;
    pair.export("1.bundle")?;
    pair.import("1.bundle")?;
    pair.bob.post(&format!("/_matrix/client/v3/join/{}", pair.room), json!({}))?;
    let bodies: Vec<String> = (0..300).map(|number| format!("message-{number}")).collect();
    for body in &bodies {
        pair.say(body)?;
    }
    pair.export("2.bundle")?;
    let importing = std::thread::scope(|scope| -> Result<bool> {
        let (desk, room) = (pair.bravo.desk().clone(), pair.room.clone());
        let import = scope.spawn(move || desk.sallyctl(&["bundle", "import", "2.bundle"]));
        let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1");
        // The power is cut as soon as the first slice can be seen.
        while !import.is_finished() {
            let newest = pair.bob.get(&path)?;
            let body = newest["chunk"][0]["content"]["body"].as_str().unwrap_or_default();
            if body.starts_with("message-") {
                break;
            }
        }
        pair.bravo.kill()?;
        Ok(import.join().is_ok_and(|outcome| outcome.is_ok()))
    })?;
    pair.bravo.start()?;
    pair.import("2.bundle")?;
    let read = pair
        .bob
        .get(&format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=400", pair.room))?;
    let count = read["chunk"].as_array().context("no events")?;
    let count = count.iter().filter(|event| event["type"] == "m.room.message").count();
    ensure!(
        count == bodies.len(),
        "{count} of {} messages, cut before the end: {importing}",
        bodies.len()
    );
    Ok(())
}
