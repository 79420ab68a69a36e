//! Sticks at a box: real images, the real gates, and a server that runs.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    desk::Desk,
    enclave::{Enclave, Plan},
    http::Client,
    medium::{self, Medium},
    person::word,
    place::Place,
};
use serde_json::{Value, json};

#[path = "../../provisioning/volume/tests/it/exfat.rs"]
mod exfat;

/// How long a test waits for what must happen.
const STUCK_AFTER: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

const PASSWORD: &str = "correct horse battery staple";
const SOFTWARE: &str = "--allow-software-keys";

/// A machine that is not provisioned: an enclave without its configuration.
struct Fresh {
    enclave: Enclave,
    officer: String,
}

impl Fresh {
    fn new(folder: &Path) -> Result<Self> {
        let mut plan = Plan::for_test("alpha", folder);
        plan.ceremony = true;
        let enclave = Enclave::create(plan, Place::Here)?;
        fs::remove_file(enclave.plan().configuration())?;
        let officer = fs::read_to_string(enclave.desk().path("officer.public"))?;
        Ok(Self { enclave, officer })
    }

    /// Writes a document onto the desk and has the officer sign it; answers the code.
    fn document(&self, name: &str, serial: u32, more: &str) -> Result<String> {
        let plan = self.enclave.plan();
        let recovery = self.enclave.desk().recovery_key("alpha.example")?;
        let text = format!(
            "serial = {serial}\nserver_name = \"alpha.example\"\npublic_url = \"{}\"\nlisten = [\"{}\"]\n\
             allow_software_keys = true\n{more}\n[tls]\nnames = [\"{}\"]\n[officers]\ntrusted_keys = [\"{}\"]\n\
             recovery_keys = [\"{recovery}\"]\n[token]\nkind = \"software\"\n",
            plan.url(),
            plan.address,
            plan.address.ip(),
            self.officer,
        );
        let desk = self.enclave.desk();
        fs::write(desk.path(&format!("{name}.toml")), text)?;
        let (file, approval) = (format!("{name}.toml"), format!("{name}.approval"));
        let said = desk.sallyctl(&[
            "provision",
            "sign",
            &file,
            "--token",
            "officer.toml",
            SOFTWARE,
            "--out",
            &approval,
        ])?;
        Ok(said.lines().last().context("no code")?.to_owned())
    }

    /// What `sallyctl stick run` is told here.
    fn arguments(&self, medium: &Medium, more: &[&str]) -> Result<Vec<String>> {
        visit(&self.enclave, medium.path(), more)
    }

    /// What the box says of a visit that it refuses.
    fn refusal(&self, medium: &Medium, more: &[&str]) -> Result<String> {
        let arguments = self.arguments(medium, more)?;
        let ended = self.enclave.desk().start_sallyctl(&strs(&arguments))?.wait_with_output()?;
        ensure!(
            !ended.status.success(),
            "it was taken: {}",
            String::from_utf8_lossy(&ended.stdout)
        );
        Ok(String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned())
    }

    fn state(&self) -> Result<Value> {
        state(&self.enclave)
    }
}

/// What `sallyctl stick run` is told at a box.
pub(crate) fn visit(enclave: &Enclave, device: &Path, more: &[&str]) -> Result<Vec<String>> {
    let folder = &enclave.plan().folder;
    let state = folder.join("state");
    fs::create_dir_all(&state)?;
    let options: [(&str, PathBuf); 5] = [
        ("--device", device.to_owned()),
        ("--quarantine", folder.join("quarantine")),
        ("--settings", folder.clone()),
        ("--data-dir", enclave.plan().data()),
        ("--state", state.join("stick.json")),
    ];
    let mut arguments = vec!["stick".to_owned(), "run".to_owned()];
    for (option, value) in options {
        arguments.extend([option.to_owned(), value.display().to_string()]);
    }
    arguments.extend(more.iter().map(|word| (*word).to_owned()));
    Ok(arguments)
}

pub(crate) fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn state(enclave: &Enclave) -> Result<Value> {
    let file = enclave.plan().folder.join("state/stick.json");
    Ok(serde_json::from_slice(&fs::read(file)?)?)
}

/// A signed roster on the desk.
fn roster(desk: &Desk, serial: &str, list: &str) -> Result<PathBuf> {
    let (csv, made, signed) =
        (format!("{serial}.csv"), format!("{serial}.json"), format!("{serial}.snr"));
    fs::write(desk.path(&csv), list)?;
    desk.sallyctl(&[
        "roster",
        "make",
        &csv,
        "--enclave",
        "alpha.example",
        "--serial",
        serial,
        "--out",
        &made,
    ])?;
    desk.sallyctl(&[
        "roster",
        "sign",
        &made,
        "--token",
        "officer.toml",
        SOFTWARE,
        "--out",
        &signed,
    ])?;
    Ok(desk.path(&signed))
}

#[test]
fn a_new_box_is_provisioned_and_changed_by_sticks() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut fresh = Fresh::new(folder.path())?;
    let configuration = fresh.enclave.plan().configuration();
    let code = fresh.document("box", 1, "")?;
    let desk = fresh.enclave.desk().clone();
    let signed = roster(&desk, "1", "localpart\nalice\nbob\n")?;
    let stick = Medium::fat32(&folder.path().join("stick"), &["PROVISION", "ROSTER", "OUT"])?;
    stick.put(&desk.path("box.toml"), "PROVISION", "box.toml")?;
    stick.put(&signed, "ROSTER", "personnel.snr")?;

    // Nobody signed it; nobody confirms it; somebody confirms another one.
    let refusal = fresh.refusal(&stick, &["--confirm", &code])?;
    ensure!(refusal.contains("too few officers approved the provisioning document 1"), "{refusal}");
    stick.put(&desk.path("box.approval"), "PROVISION", "the officer's.approval")?;
    let refusal = fresh.refusal(&stick, &[])?;
    ensure!(refusal.contains("nobody can type the code"), "{refusal}");
    let refusal = fresh.refusal(&stick, &["--confirm", "1234 5678 9012 3456"])?;
    ensure!(refusal.contains("somebody may have swapped the stick"), "{refusal}");
    ensure!(fresh.state()?["phase"] == "done" && fresh.state()?["refused"] == true);
    ensure!(!configuration.exists(), "refused, and yet provisioned");

    // The roster on the same stick waits until the server of the new box answers.
    let arguments = fresh.arguments(&stick, &["--confirm", &code, "--wait", "60"])?;
    let visit = desk.start_sallyctl(&strs(&arguments))?;
    let deadline = Instant::now() + STUCK_AFTER;
    while !configuration.exists() {
        ensure!(Instant::now() < deadline, "the box was not provisioned");
        sleep(LOOK_EVERY);
    }
    fresh.enclave.start()?;
    let ended = visit.wait_with_output()?;
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    ensure!(ended.status.success(), "{said}");
    for line in [
        "This is the box of alpha.example now, by document 1",
        "roster 1 is imported",
        "2 activation codes are in OUT/codes-1.json",
    ] {
        ensure!(said.contains(line), "no {line:?} in {said}");
    }
    let state = fresh.state()?;
    ensure!(state["phase"] == "done" && state["safe_to_remove"] == true, "{state}");
    stick.check()?;
    let codes: Value = serde_json::from_str(&stick.text("OUT", "codes-1.json")?)?;
    ensure!(codes.as_array().map(Vec::len) == Some(2), "{codes}");
    let results = stick.names("RESULT")?;
    ensure!(results.len() == 4, "{results:?}");
    ensure!(
        stick.text("RESULT", "RESULT-004.txt")?.contains("What alpha.example did with this stick")
    );
    ensure!(desk.sallyctl(&["status"])?.contains("2 not activated yet"));
    let recovery = desk.recovery_key("alpha.example")?;
    ensure!(
        fs::read_to_string(&configuration)?.contains(&recovery),
        "backups are encrypted to nobody"
    );

    changes(&mut fresh, &stick)
}

/// What a box that is provisioned makes of further documents.
fn changes(fresh: &mut Fresh, stick: &Medium) -> Result<()> {
    let desk = fresh.enclave.desk().clone();
    let configuration = fresh.enclave.plan().configuration();
    // The same stick again changes nothing: roster and document are known.
    let said = desk.sallyctl(&strs(&fresh.arguments(stick, &[])?))?;
    ensure!(said.contains("ROSTER/personnel.snr: left alone"), "{said}");

    fresh.document("next", 2, "[network]\naddress = \"10.0.0.1/8\"")?;
    let other = Medium::fat32(&fresh.enclave.plan().folder.join("other"), &["CONFIG"])?;
    other.put(&desk.path("next.toml"), "CONFIG", "next.toml")?;
    let before = fs::read(&configuration)?;
    let refusal = fresh.refusal(&other, &[])?;
    ensure!(refusal.contains("too few officers"), "{refusal}");
    ensure!(fs::read(&configuration)? == before, "refused, and yet changed");
    other.put(&desk.path("next.approval"), "CONFIG", "next.approval")?;
    let said = desk.sallyctl(&strs(&fresh.arguments(&other, &[])?))?;
    ensure!(said.contains("document 2 is in force now"), "{said}");
    ensure!(fs::read_to_string(&configuration)?.contains("provisioning document 2"));
    let network = fs::read_to_string(configuration.with_file_name("network.toml"))?;
    ensure!(network.contains("10.0.0.1/8"), "{network}");
    ensure!(fs::read(configuration.with_file_name("sallyport.toml.before"))? == before);
    // What follows from the document comes back at the next start of the machine.
    fs::write(&configuration, "half")?;
    let settings = fresh.enclave.plan().folder.display().to_string();
    let data = fresh.enclave.plan().data().display().to_string();
    desk.sallyctl(&[
        "provision",
        "settle",
        "--settings",
        &settings,
        "--data-dir",
        &data,
        "--network",
        "10-box.network",
    ])?;
    ensure!(fs::read_to_string(desk.path("10-box.network"))?.contains("Address=10.0.0.1/8"));
    fresh.enclave.stop()?;
    fresh.enclave.start()?;
    let said = desk.sallyctl(&["provision", "status", "--settings", &settings])?;
    ensure!(said.contains("was typed at the console"), "{said}");
    ensure!(!desk.sallyctl(&["status"])?.contains("UNATTENDED"));
    Ok(())
}

#[test]
fn a_box_that_nobody_watched_says_so_for_ever() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut fresh = Fresh::new(folder.path())?;
    fresh.document("box", 1, "unattended = true")?;
    let desk = fresh.enclave.desk().clone();
    let stick = Medium::fat32(&folder.path().join("stick"), &["PROVISION"])?;
    for file in ["box.toml", "box.approval"] {
        stick.put(&desk.path(file), "PROVISION", file)?;
    }
    let said = desk.sallyctl(&strs(&fresh.arguments(&stick, &[])?))?;
    ensure!(said.contains("UNATTENDED"), "{said}");
    fresh.enclave.start()?;
    ensure!(desk.sallyctl(&["status"])?.contains("WARNING: UNATTENDED: nobody compared"));
    Ok(())
}

/// Two paired boxes, of which one has something to tell.
struct Pair {
    alpha: Enclave,
    bravo: Enclave,
    bob: Client,
}

impl Pair {
    fn new(folder: &Path, approvals: &str) -> Result<Self> {
        let (alpha, bravo) = Enclave::paired(folder, approvals)?;
        let alice = alpha.client()?.register("alice", PASSWORD)?;
        let bob = bravo.client()?.register("bob", PASSWORD)?;
        let invite = json!({"name": "Operations", "invite": ["@bob:bravo.example"]});
        word(&alice.post("/_matrix/client/v3/createRoom", invite)?, "room_id")?;
        for enclave in [&alpha, &bravo] {
            provisioned(enclave)?;
        }
        Ok(Self { alpha, bravo, bob })
    }

    fn invites(&self) -> Result<usize> {
        let sync = self.bob.get("/_matrix/client/v3/sync?timeout=0")?;
        Ok(sync["rooms"]["invite"].as_object().map_or(0, |rooms| rooms.len()))
    }
}

/// Gives a box that the harness configured the record that a stick would have left. The server runs on with what it has.
pub(crate) fn provisioned(enclave: &Enclave) -> Result<()> {
    let (plan, desk) = (enclave.plan(), enclave.desk());
    let officer = fs::read_to_string(desk.path("officer.public"))?;
    let text = format!(
        "serial = 1\nserver_name = \"{}\"\nunattended = true\n[officers]\ntrusted_keys = [\"{officer}\"]\n",
        plan.server_name()
    );
    fs::write(desk.path("box.toml"), text)?;
    desk.sallyctl(&[
        "provision",
        "sign",
        "box.toml",
        "--token",
        "officer.toml",
        SOFTWARE,
        "--out",
        "box.approval",
    ])?;
    let stick = Medium::fat32(&plan.folder.join("first"), &["PROVISION"])?;
    for file in ["box.toml", "box.approval"] {
        stick.put(&desk.path(file), "PROVISION", file)?;
    }
    desk.sallyctl(&strs(&visit(enclave, stick.path(), &[])?))?;
    Ok(())
}

#[test]
fn a_bundle_travels_on_one_stick_once_it_is_approved() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let pair = Pair::new(folder.path(), "1")?;
    let (from, to) = (pair.alpha.desk(), pair.bravo.desk());
    let stick = Medium::fat32(&folder.path().join("stick"), &["OUT", "BUNDLES"])?;
    let order = "enclave = \"alpha.example\"\nexport = [\"bravo.example\"]\n";
    fs::write(from.path("export.order"), order)?;
    stick.put(&from.path("export.order"), "OUT", "export.order")?;
    let out = strs_of(&pair.alpha, &stick)?;
    let refusal = from.sallyctl(&strs(&out)).err().context("exported without an approval")?;
    ensure!(stick.names("BUNDLES")?.is_empty());
    let result = stick.text("RESULT", "RESULT-001.txt")?;
    let command = result.split('`').find(|part| part.starts_with("sallyctl approve export"));
    let command = command.with_context(|| format!("{refusal}: {result}"))?;
    let command = command.replace("TOKEN", "officer.toml").replace("APPROVAL", "export.approval");
    let mut words: Vec<_> = command.split(' ').skip(1).collect();
    words.push(SOFTWARE);
    from.sallyctl(&words)?;
    stick.put(&from.path("export.approval"), "OUT", "export.approval")?;
    let said = from.sallyctl(&strs(&out))?;
    ensure!(said.contains("bundle 1 for bravo.example"), "{said}");
    stick.check()?;
    let bundles = stick.names("BUNDLES")?;
    ensure!(bundles.len() == 1, "{bundles:?}");

    // At bravo the order is somebody else's, and the bundle waits for an officer there.
    let there = strs_of(&pair.bravo, &stick)?;
    ensure!(to.sallyctl(&strs(&there)).is_err() && pair.invites()? == 0);
    let bundle = pair.bravo.plan().folder.join("quarantine/in/BUNDLES/001.snb");
    fs::copy(bundle, to.path("it.snb"))?;
    to.sallyctl(&[
        "approve",
        "import",
        "it.snb",
        "--token",
        "officer.toml",
        SOFTWARE,
        "--out",
        "it.approval",
    ])?;
    stick.put(&to.path("it.approval"), "BUNDLES", "it.approval")?;
    let said = to.sallyctl(&strs(&there))?;
    ensure!(said.contains("Imported bundle 1 of alpha.example"), "{said}");
    ensure!(said.contains("left alone, it is for alpha.example"), "{said}");
    ensure!(pair.invites()? == 1, "the invite did not come");
    Ok(())
}

fn strs_of(enclave: &Enclave, stick: &Medium) -> Result<Vec<String>> {
    visit(enclave, stick.path(), &[])
}

#[test]
fn bundles_come_on_exfat_and_on_raw_volumes() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let pair = Pair::new(folder.path(), "0")?;
    pair.alpha.desk().sallyctl(&["bundle", "export", "bravo.example", "--out", "1.snb"])?;
    let bundle = fs::read(pair.alpha.desk().path("1.snb"))?;

    let image = folder.path().join("exfat");
    let mut bytes = medium::exfat(&image, 16)?;
    let mut volume = exfat::ExFat::new(&mut bytes);
    let root = volume.root();
    let top = volume.folder(root, "SALLYPORT");
    let bundles = volume.folder(top, "BUNDLES");
    volume.file(bundles, "a bundle for bravo.snb", &bundle, exfat::Layout::Chained);
    volume.file(bundles, "damaged.snb", &bundle[1..], exfat::Layout::SideBySide);
    fs::write(&image, &bytes)?;
    let said = pair.bravo.desk().sallyctl(&strs(&visit(&pair.bravo, &image, &[])?));
    let said = said.err().context("the damaged one was taken")?.to_string();
    ensure!(said.contains("something on the stick was refused"), "{said}");
    ensure!(pair.invites()? == 1, "the whole one was not");

    let raw = folder.path().join("raw");
    let label = format!("sallyport-raw/1\nBUNDLES/1.snb\n{}\n", bundle.len());
    let mut bytes = vec![0; 1 << 20];
    bytes[..label.len()].copy_from_slice(label.as_bytes());
    bytes.extend(bundle);
    fs::write(&raw, &bytes)?;
    let said = pair.bravo.desk().sallyctl(&strs(&visit(&pair.bravo, &raw, &[])?))?;
    ensure!(said.contains("was imported before; nothing changed"), "{said}");
    Ok(())
}

#[test]
fn what_tells_of_people_needs_an_officer_and_a_day() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let alpha = Enclave::with_officer("alpha", folder.path())?;
    provisioned(&alpha)?;
    let desk = alpha.desk();
    let stick = Medium::fat32(&folder.path().join("stick"), &["OUT"])?;
    let ordered = |until: &str| -> Result<()> {
        let text = format!(
            "enclave = \"alpha.example\"\naudit = true\ncard_request = true\nuntil = \"{until}\"\n"
        );
        fs::write(desk.path("logs.order"), text)?;
        stick.put(&desk.path("logs.order"), "OUT", "logs.order")
    };
    ordered("2020-01-01")?;
    let arguments = strs_of(&alpha, &stick)?;
    ensure!(desk.sallyctl(&strs(&arguments)).is_err());
    ensure!(
        stick.names("OUT")?.contains(&"card.request".to_owned()),
        "public keys need no officer"
    );
    ensure!(stick.text("RESULT", "RESULT-001.txt")?.contains("sallyctl approve order"));
    let approve = |out: &str| {
        desk.sallyctl(&[
            "approve",
            "order",
            "logs.order",
            "--token",
            "officer.toml",
            SOFTWARE,
            "--out",
            out,
        ])
    };
    approve("old.approval")?;
    stick.put(&desk.path("old.approval"), "OUT", "old.approval")?;
    stick.remove("OUT", "card.request")?;
    ensure!(desk.sallyctl(&strs(&arguments)).is_err());
    ensure!(stick.text("RESULT", "RESULT-002.txt")?.contains("its last day has passed"));

    let status: Value = serde_json::from_str(&desk.sallyctl(&["status", "--json"])?)?;
    let day = 24 * 60 * 60 * 1000;
    let now = status["now"].as_u64().context("no time")?;
    let until = sallyport_core::roster::Date::of(sallyport_core::time::Millis(now + 2 * day));
    ordered(&until.to_string())?;
    approve("new.approval")?;
    stick.put(&desk.path("new.approval"), "OUT", "new.approval")?;
    stick.remove("OUT", "card.request")?;
    let said = desk.sallyctl(&strs(&arguments))?;
    ensure!(said.contains("OUT/audit.jsonl") && said.contains("which is not there"), "{said}");
    fs::write(desk.path("audit.jsonl"), stick.text("OUT", "audit.jsonl")?)?;
    desk.sallyctl(&["audit", "verify", "--file", "audit.jsonl"])?;
    Ok(())
}

/// The question is a notice, the answer comes through a pipe, and a keyboard is let in meanwhile.
#[test]
fn somebody_types_the_code_at_the_console() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let fresh = Fresh::new(folder.path())?;
    let code = fresh.document("box", 1, "")?;
    let desk = fresh.enclave.desk().clone();
    let stick = Medium::fat32(&folder.path().join("stick"), &["PROVISION"])?;
    for file in ["box.toml", "box.approval"] {
        stick.put(&desk.path(file), "PROVISION", file)?;
    }
    let arguments = fresh.arguments(&stick, &["--ask"])?;
    let visit = desk.start_sallyctl(&strs(&arguments))?;
    let state = fresh.enclave.plan().folder.join("state");
    for (typed, lines) in [("0000 0000 0000 0000", 0), (code.as_str(), 1)] {
        let asked = |notice: &Value| {
            let remarks = notice["lines"].as_array().into_iter().flatten();
            let wrong = remarks
                .filter(|line| line.as_str() == Some("That was not the code of this document."));
            notice["ask"].is_string() && wrong.count() == lines
        };
        let deadline = Instant::now() + STUCK_AFTER;
        while !fresh.state().is_ok_and(|notice| asked(&notice)) {
            ensure!(Instant::now() < deadline, "nobody was asked");
            sleep(LOOK_EVERY);
        }
        ensure!(state.join("keyboard-wanted").exists(), "no keyboard is let in");
        ensure!(
            !fs::read_to_string(state.join("stick.json"))?.contains(&code),
            "it tells the code"
        );
        fs::write(state.join("answers/stick"), format!("{typed}\n"))?;
    }
    let ended = visit.wait_with_output()?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    ensure!(!state.join("keyboard-wanted").exists(), "the keyboard stays");
    desk.sallyctl(&[
        "stick",
        "forget",
        "--state",
        &state.join("stick.json").display().to_string(),
    ])?;
    ensure!(!state.join("stick.json").exists());
    Ok(())
}
