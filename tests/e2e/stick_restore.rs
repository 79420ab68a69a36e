//! Backups on sticks, and another machine with another token that goes on from one: no recovery key ever comes near a box.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use sallyport_core::{roster::Date, time::Millis};
use sallyport_e2e::{
    enclave::Enclave,
    http::Client,
    medium::{self, Medium},
    person::word,
};
use serde_json::{Value, json};

use crate::{
    hsm::keys,
    restore::{download, upload},
    sticks::visit,
    talk::{read, say},
};

const PASSWORD: &str = "correct horse battery staple";
const SOFTWARE: &str = "--allow-software-keys";
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// An enclave whose box has the record that a stick leaves, as on a machine of the image.
struct Unit {
    enclave: Enclave,
}

impl Unit {
    fn new(folder: &Path) -> Result<Self> {
        let unit = Self { enclave: Enclave::with_officer("alpha", folder)? };
        keys(unit.enclave.desk())?;
        // The server runs on with what the harness gave it, which is the same and a way in without TLS.
        unit.document("box", 1)?;
        let stick = Medium::fat32(&folder.join("first"), &["PROVISION"])?;
        for file in ["box.toml", "box.approval"] {
            stick.put(&unit.enclave.desk().path(file), "PROVISION", file)?;
        }
        unit.visited(&stick, &[])?;
        Ok(unit)
    }

    /// A signed document on the desk. The token is a file among the data of the machine.
    fn document(&self, name: &str, serial: u32) -> Result<()> {
        let (plan, desk) = (self.enclave.plan(), self.enclave.desk());
        let officer = fs::read_to_string(desk.path("officer.public"))?;
        let recovery = desk.recovery_key("alpha.example")?;
        let text = format!(
            "serial = {serial}\nserver_name = \"alpha.example\"\npublic_url = \"{}\"\nlisten = [\"{}\"]\n\
             allow_software_keys = true\nunattended = true\n[tls]\nnames = [\"{}\"]\n[officers]\ntrusted_keys = [\"{officer}\"]\n\
             recovery_keys = [\"{recovery}\"]\n[token]\nkind = \"software\"\n",
            plan.url(),
            plan.address,
            plan.address.ip(),
        );
        fs::write(desk.path(&format!("{name}.toml")), text)?;
        let (file, approval) = (format!("{name}.toml"), format!("{name}.approval"));
        let officer = ["--token", "officer.toml", SOFTWARE, "--out", &approval];
        desk.sallyctl(&[&["provision", "sign", &file], &officer[..]].concat())?;
        Ok(())
    }

    /// What the box says of a stick.
    fn visited(&self, stick: &Medium, more: &[&str]) -> Result<String> {
        let arguments = visit(&self.enclave, stick.path(), more)?;
        self.enclave.desk().sallyctl(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn refused(&self, stick: &Medium, more: &[&str]) -> Result<String> {
        let said = self.visited(stick, more).err().context("it was taken")?;
        let results = stick.names("RESULT")?;
        let last = results.iter().max().context("no result")?;
        Ok(format!("{said:#}\n{}", stick.text("RESULT", last)?))
    }

    /// An approved order for a backup on a stick with room for orders.
    fn order_backup(&self, stick: &Medium) -> Result<()> {
        let desk = self.enclave.desk();
        let status: Value = serde_json::from_str(&desk.sallyctl(&["status", "--json"])?)?;
        let now = status["now"].as_u64().context("no time")?;
        let until = Date::of(Millis(now + 2 * DAY_MS));
        let text = format!("enclave = \"alpha.example\"\nbackup = true\nuntil = \"{until}\"\n");
        fs::write(desk.path("backup.order"), text)?;
        stick.put(&desk.path("backup.order"), "OUT", "backup.order")?;
        let officer = ["--token", "officer.toml", SOFTWARE, "--out", "order.approval"];
        desk.sallyctl(&[&["approve", "order", "backup.order"], &officer[..]].concat())?;
        stick.put(&desk.path("order.approval"), "OUT", "order.approval")
    }

    /// The newest verified backup, as the box tells.
    fn last_backup(&self) -> Result<Option<u64>> {
        let status: Value =
            serde_json::from_str(&self.enclave.desk().sallyctl(&["status", "--json"])?)?;
        Ok(status["backup"]["last"]["number"].as_u64())
    }

    /// Two people who talk, and a file.
    fn people(&self) -> Result<(Client, Client, String)> {
        let alice = self.enclave.client()?.register("alice", PASSWORD)?;
        let bob = self.enclave.client()?.register("bob", PASSWORD)?;
        let room = alice.post(
            "/_matrix/client/v3/createRoom",
            json!({"name": "Watch", "invite": ["@bob:alpha.example"]}),
        )?;
        let room = word(&room, "room_id")?;
        bob.post(&format!("/_matrix/client/v3/join/{room}"), json!({}))?;
        Ok((alice, bob, room))
    }

    /// Machine, token and settings are gone; what is left is the desk, and sticks.
    fn lose_all(&mut self) -> Result<()> {
        self.enclave.lose_machine()?;
        let folder = &self.enclave.plan().folder;
        for name in [
            "provision.cbor",
            "provision.cbor.before",
            "network.toml",
            "network.toml.before",
            "keys",
            "sallyport.toml.before",
        ] {
            let path = folder.join(name);
            if path.is_file() {
                fs::remove_file(path)?;
            }
        }
        fs::remove_dir_all(folder.join("quarantine"))?;
        fs::create_dir(self.enclave.plan().data())?;
        Ok(())
    }

    fn restore_arguments(&self) -> Vec<String> {
        let folder = &self.enclave.plan().folder;
        let options: [(&str, PathBuf); 4] = [
            ("--quarantine", folder.join("quarantine")),
            ("--settings", folder.clone()),
            ("--data-dir", self.enclave.plan().data()),
            ("--state", folder.join("state")),
        ];
        let mut arguments = vec!["stick".to_owned(), "restore".to_owned()];
        for (option, path) in options {
            arguments.extend([option.to_owned(), path.display().to_string()]);
        }
        arguments
    }

    /// What the machine's console shows of the restore.
    fn notice(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(
            self.enclave.plan().folder.join("state/restore.json"),
        )?)?)
    }
}

/// The last line that looks like a code.
fn code(text: &str) -> Result<String> {
    let groups = |line: &str| {
        let line = line.rsplit(": ").next().unwrap_or_default().trim().to_owned();
        let is = line.len() == 19 && line.bytes().all(|b| b.is_ascii_digit() || b == b' ');
        is.then_some(line)
    };
    text.lines().rev().find_map(groups).with_context(|| format!("no code in {text}"))
}

#[test]
fn backups_go_onto_a_stick_and_another_machine_goes_on_from_it() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut unit = Unit::new(folder.path())?;
    let (alice, bob, room) = unit.people()?;
    unit.enclave.desk().issue_card()?;
    say(&alice, &room, "first")?;
    let picture = upload(&alice, vec![7; 3_000_000])?;
    let stick = Medium::fat32(&folder.path().join("stick"), &["OUT"])?;

    // In parts, as if a file of FAT32 had room for no more.
    unit.order_backup(&stick)?;
    let said = unit.visited(&stick, &["--part-bytes", "1000000"])?;
    let result = stick.text("RESULT", "RESULT-001.txt")?;
    ensure!(result.contains("backup 1 (full)") && result.contains("read back"), "{said}{result}");
    stick.check()?;
    let names = stick.names("BACKUP")?;
    ensure!(names.contains(&"alpha.example-1-full.backup".to_owned()), "{names:?}");
    ensure!(names.contains(&"alpha.example-1-full.backup.002".to_owned()), "{names:?}");
    ensure!(unit.last_backup()? == Some(1));

    // The next one brings what is new.
    say(&bob, &room, "second")?;
    let sketch = upload(&bob, vec![8; 50_000])?;
    stick.remove("OUT", "order.approval")?;
    fs::remove_file(unit.enclave.desk().path("order.approval"))?;
    unit.order_backup(&stick)?;
    unit.visited(&stick, &[])?;
    let result = stick.text("RESULT", "RESULT-002.txt")?;
    ensure!(result.contains("backup 2 (what is new)"), "{result}");
    ensure!(unit.last_backup()? == Some(2));
    stick.check()?;
    let increment = stick.bytes("BACKUP", "alpha.example-2-since.backup")?;
    ensure!(increment.len() < 1_000_000, "the increment has {} bytes", increment.len());
    say(&alice, &room, "lost")?;

    unit.lose_all()?;
    restore(&mut unit, &stick)?;
    ensure!(read(&alice, &room)? == ["first", "second"] && read(&bob, &room)?.len() == 2);
    ensure!(download(&alice, &picture)? == vec![7; 3_000_000]);
    ensure!(download(&bob, &sketch)? == vec![8; 50_000]);
    say(&bob, &room, "back")?;
    unit.enclave.desk().sallyctl(&["audit", "verify"])?;
    // Nothing on the old stick can be followed in the new life.
    fs::remove_file(unit.enclave.desk().path("order.approval"))?;
    unit.order_backup(&stick)?;
    unit.visited(&stick, &[])?;
    let names = stick.names("BACKUP")?;
    ensure!(names.contains(&"alpha.example-3-full.backup".to_owned()), "{names:?}");
    Ok(())
}

/// The visits of a stick that make another machine the box, with another token.
fn restore(unit: &mut Unit, stick: &Medium) -> Result<()> {
    let desk = unit.enclave.desk().clone();
    for name in stick.names("OUT")? {
        stick.remove("OUT", &name)?;
    }
    let said = unit.visited(stick, &[])?;
    ensure!(said.contains("this machine asks to go on"), "{said}");
    let shown = unit.notice()?.to_string().replace(['"', ',', ']'], "\n");
    let request_code = code(&shown)?;
    ensure!(
        !stick.text("RESULT", "RESULT-003.txt")?.contains(&request_code),
        "the stick tells the code"
    );

    let grant_code = grant(unit, stick, &request_code)?;

    // Back at the machine, with a later document.
    stick.mkdir("PROVISION")?;
    stick.put(&desk.path("restore.grant"), "PROVISION", "restore.grant")?;
    let refusal = unit.refused(stick, &["--confirm", "0000 0000 0000 0000"])?;
    ensure!(refusal.contains("another grant"), "{refusal}");
    unit.document("next", 2)?;
    stick.put(&desk.path("next.toml"), "PROVISION", "next.toml")?;
    // A document that nobody approved: nothing is restored, and the machine is as empty as before.
    unit.visited(stick, &["--confirm", &grant_code])?;
    let arguments = unit.restore_arguments();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let refusal = desk.sallyctl(&arguments).err().context("a document of nobody's was taken")?;
    ensure!(
        format!("{refusal:#}").contains("the document 2 on the stick is refused"),
        "{refusal:#}"
    );
    ensure!(fs::read_dir(unit.enclave.plan().data())?.next().is_none(), "something is left");
    ensure!(!unit.enclave.plan().configuration().exists(), "refused, and yet a box");

    stick.put(&desk.path("next.approval"), "PROVISION", "next.approval")?;
    let said = unit.visited(stick, &["--confirm", &grant_code])?;
    ensure!(said.contains("goes on as the box of alpha.example, by backup 2"), "{said}");
    ensure!(unit.visited(stick, &[])?.contains("is being restored"));
    // The power went in the middle: what is half there is made anew.
    let half = unit.enclave.plan().data().join("restoring/data");
    fs::create_dir_all(&half)?;
    fs::write(half.join("sallyport.db"), "half of it")?;
    let said = desk.sallyctl(&arguments)?;
    ensure!(said.contains("by backup 2 and document 2"), "{said}");
    ensure!(unit.notice()?["title"] == "This machine is a box again");
    ensure!(!unit.enclave.plan().folder.join("restore.key").exists(), "the key stays");
    ensure!(!unit.enclave.plan().folder.join("quarantine/restore").exists(), "the copies stay");
    // The power went before the copies were removed: the next start of the machine finds everything in place.
    let folder = unit.enclave.plan().folder.join("quarantine/restore");
    fs::create_dir(&folder)?;
    fs::write(folder.join("ready"), "")?;
    ensure!(desk.sallyctl(&arguments)?.contains("Everything was in place"), "restored twice");
    // A way in without TLS, as before.
    let configuration = unit.enclave.plan().configuration();
    let plain = unit.enclave.plan().plain();
    let text = fs::read_to_string(&configuration)?;
    let listener =
        format!("\n[[listeners]]\naddress = \"{plain}\"\napis = [\"client\"]\ntls = false\n");
    fs::write(&configuration, text + &listener)?;
    unit.enclave.start()?;
    keys(&desk)?;
    Ok(())
}

/// At the desk: a grant for whoever has the request's code on paper. Answers the grant's.
fn grant(unit: &Unit, stick: &Medium, request_code: &str) -> Result<String> {
    let desk = unit.enclave.desk();
    fs::write(desk.path("restore.request"), stick.text("OUT", "restore.request")?)?;
    let files = stick.names("BACKUP")?;
    for name in &files {
        fs::write(desk.path(name), stick.bytes("BACKUP", name)?)?;
    }
    let fingerprint = desk.fingerprint("alpha.card")?;
    let grant = |code: &str, out: &str| {
        desk.sallyctl(&[
            "backup",
            "grant",
            "alpha.example-1-full.backup",
            "alpha.example-2-since.backup",
            "--request",
            "restore.request",
            "--code",
            code,
            "--token",
            "recovery.toml",
            SOFTWARE,
            "--fingerprint",
            &fingerprint,
            "--out",
            out,
        ])
    };
    let swapped = grant("0000 0000 0000 0000", "none.grant").err().context("granted to anybody")?;
    ensure!(format!("{swapped:#}").contains("somebody may have swapped the stick"), "{swapped:#}");
    code(&grant(request_code, "restore.grant")?)
}

#[test]
fn what_cannot_be_a_backup_on_the_stick_says_why() -> Result<()> {
    if !medium::can_be_made() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let unit = Unit::new(folder.path())?;
    let (alice, ..) = unit.people()?;
    upload(&alice, vec![3; 60 << 20])?;
    let small = Medium::fat32(&folder.path().join("small"), &["OUT"])?;
    unit.order_backup(&small)?;
    let refusal = unit.refused(&small, &[])?;
    ensure!(
        refusal.contains("REFUSED: the backup") && refusal.contains("the stick is full"),
        "{refusal}"
    );
    ensure!(small.names("BACKUP").is_err() && unit.last_backup()?.is_none(), "half a backup");
    small.check()?;
    // Nobody approved it.
    small.remove("OUT", "order.approval")?;
    let refusal = unit.refused(&small, &[])?;
    ensure!(refusal.contains("sallyctl approve order"), "{refusal}");
    Ok(())
}
