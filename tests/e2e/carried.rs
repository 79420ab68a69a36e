//! What may happen to a stick between two boxes: each gives one error that says what to do, and nothing is half-applied.

use std::{
    fs,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{enclave::Enclave, http::Client, person::word};
use serde_json::json;
use tempfile::TempDir;

/// How long a test waits for what must happen.
const STUCK_AFTER: Duration = Duration::from_secs(30);

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
        let (alpha, bravo) = Enclave::paired(folder.path(), "0")?;
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
    let own = format!("{:#}", own.err().context("alpha takes its own bundle")?);
    ensure!(own.contains("is for bravo.example, not for this enclave: give it to"), "{own}");

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

#[test]
fn a_stick_that_is_pulled_out_while_it_is_read_changes_nothing() -> Result<()> {
    let pair = Pair::new()?;
    // More than the pipes between sallyctl and the box hold.
    for number in 0..30 {
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{number}", pair.room);
        let body = noise(number, 60_000);
        pair.alice.put(&path, json!({"msgtype": "m.text", "body": body}))?;
    }
    pair.export("first.bundle")?;
    let desk = pair.bravo.desk();
    fs::create_dir(desk.path("stick"))?;
    desk.sallyctl(&["stick", "write", "stick", "--bundle", "first.bundle"])?;
    let folder = desk.path("stick/SALLYPORT/BUNDLES");
    let file = fs::read_dir(&folder)?.next().context("no file on the stick")??.path();
    let bundle = fs::read(&file)?;
    let before = desk.sallyctl(&["bundle", "status"])?;

    // The box stands still, so sallyctl is somewhere in the middle of the file when it is gone.
    pair.bravo.pause()?;
    let path = file.to_str().context("a path that is no text")?;
    let import = desk.start_sallyctl(&["bundle", "import", path])?;
    let read = position_once_reading(&import, &file)?;
    ensure!(read < bundle.len() as u64, "the whole bundle was read while the box stood still");
    fs::OpenOptions::new().write(true).open(&file)?.set_len(0)?;
    fs::remove_dir_all(desk.path("stick"))?;
    pair.bravo.resume()?;
    let output = import.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("was the stick pulled out?"), "{said}");
    ensure!(said.contains("nothing of it was imported"), "{said}");

    ensure!(pair.invites()? == 0, "half a bundle brought an invite");
    ensure!(desk.sallyctl(&["bundle", "status"])? == before, "half a bundle counts");
    let quarantine = pair.bravo.plan().data().join("quarantine");
    let started = Instant::now();
    while fs::read_dir(&quarantine)?.next().is_some() {
        ensure!(started.elapsed() < STUCK_AFTER, "half a bundle stays in quarantine");
    }
    // With no stick at all the answer is another one; with the stick everything is as if nothing had been.
    let gone = desk.sallyctl(&["stick", "import", "stick", "--codes", "."]);
    let gone = format!("{:#}", gone.err().context("a stick that is not there was imported")?);
    ensure!(gone.contains("is the stick mounted there?"), "{gone}");
    fs::create_dir_all(&folder)?;
    fs::write(&file, &bundle)?;
    desk.sallyctl(&["stick", "import", "stick", "--codes", "."])?;
    ensure!(pair.invites()? == 1, "the whole bundle brought no invite");
    Ok(())
}

/// Text that does not compress well.
fn noise(seed: u64, length: usize) -> String {
    let mut random = seed.wrapping_add(1);
    let mut next = || {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'0' + u8::try_from(random >> 58).unwrap_or_default())
    };
    (0..length).map(|_| next()).map(|c| if c == '\\' { '~' } else { c }).collect()
}

/// How much of a file a process has read, as soon as that is anything.
fn position_once_reading(process: &Child, file: &Path) -> Result<u64> {
    let started = Instant::now();
    let process = format!("/proc/{}", process.id());
    while started.elapsed() < STUCK_AFTER {
        let open = fs::read_dir(format!("{process}/fd"))?.filter_map(Result::ok);
        let of_file = open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == file));
        for descriptor in of_file {
            let number = descriptor.file_name().to_string_lossy().into_owned();
            let info = fs::read_to_string(format!("{process}/fdinfo/{number}"))?;
            let position = info.lines().find_map(|line| line.strip_prefix("pos:"));
            let position: u64 = position.context("no position")?.trim().parse()?;
            if position > 0 {
                return Ok(position);
            }
        }
    }
    anyhow::bail!("{} is not read", file.display())
}
