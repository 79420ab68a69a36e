//! A box dies, and another one goes on as it: from a backup, on an empty folder, with another token or the same.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use http::{Request, header};
use sallyport_e2e::{
    enclave::{Enclave, PIN, Token},
    http::Client,
    person::word,
    softhsm::MODULE,
};
use serde_json::{Value, json};

use crate::{
    hsm::keys,
    talk::{Talk, found, read, say},
};

const PASSWORD: &str = "correct horse battery staple";
/// The key of the recovery officer.
const OFFICER: [&str; 3] = ["--token", "recovery.toml", "--allow-software-keys"];

impl Talk {
    /// alpha's machine and its token are gone; another machine with another token is made of backups.
    fn lose_all_and_restore(&mut self, files: &[&str]) -> Result<Value> {
        self.alpha.lose_machine()?;
        let softhsm = self.alpha.softhsm().context("no token")?;
        softhsm.remove("alpha")?;
        softhsm.add("alpha-new", PIN)?;
        let plan = self.alpha.plan();
        let token = format!(
            "kind = \"pkcs11\"\nmodule = \"{MODULE}\"\ntoken_label = \"alpha-new\"\npin = \"file:{}\"\nwritable = [\"{}\"]\n",
            plan.pin_file().display(),
            plan.folder.join("softhsm").display(),
        );
        fs::write(self.alpha.desk().path("new-token.toml"), token)?;
        self.restore(files, &["--box-token", "new-token.toml"])
    }

    fn restore(&self, files: &[&str], more: &[&str]) -> Result<Value> {
        let desk = self.alpha.desk();
        let desk = self.alpha.softhsm().map_or_else(|| desk.clone(), |at| desk.with_softhsm(at));
        let fingerprint = desk.fingerprint("alpha.card")?;
        let data = self.alpha.plan().data().display().to_string();
        let settings = self.alpha.plan().folder.display().to_string();
        let arguments = [
            &["restore"],
            files,
            &OFFICER,
            &["--fingerprint", &fingerprint, "--data-dir", &data, "--settings", &settings],
            &["--json"],
            more,
        ]
        .concat();
        Ok(serde_json::from_str(&desk.sallyctl(&arguments)?)?)
    }
}

fn sorted(mut bodies: Vec<String>) -> Vec<String> {
    bodies.sort();
    bodies
}

/// Uploads a file; answers its `mxc://server/id` without the scheme.
pub(crate) fn upload(who: &Client, bytes: Vec<u8>) -> Result<String> {
    let request = Request::post("/_matrix/media/v3/upload")
        .header(header::HOST, "alpha.example")
        .header(header::CONTENT_TYPE, "application/octet-stream");
    let answer = who.send(request, bytes.into())?.ok("upload")?;
    Ok(word(&answer, "content_uri")?.trim_start_matches("mxc://").to_owned())
}

pub(crate) fn download(who: &Client, media: &str) -> Result<Vec<u8>> {
    let request = Request::get(format!("/_matrix/client/v1/media/download/{media}"))
        .header(header::HOST, "alpha.example");
    let answer = who.send(request, Vec::new().into())?;
    ensure!(answer.status == 200, "{}", answer.json);
    Ok(answer.bytes.to_vec())
}

#[test]
fn a_lost_box_goes_on_with_another_token() -> Result<()> {
    let mut talk = Talk::new(Token::SoftHsm)?;
    say(&talk.alice, &talk.room, "before")?;
    let picture = upload(&talk.alice, vec![7; 100_000])?;
    talk.carry_to_bravo()?;
    talk.carry_to_alpha()?;
    let desk = talk.alpha.desk().clone();
    let status = desk.sallyctl(&["status"])?;
    ensure!(status.contains("there is no backup yet"), "{status}");
    let made = desk.sallyctl(&["backup", "create", "--to", "full.backup"])?;
    ensure!(made.contains("Backup 1 (full)") && made.contains("read back"), "{made}");
    let status = desk.sallyctl(&["status"])?;
    ensure!(!status.contains("no backup"), "{status}");

    // A second backup brings what is new, and the rest is told after it.
    say(&talk.alice, &talk.room, "between")?;
    let sketch = upload(&talk.alice, vec![8; 50_000])?;
    let made =
        desk.sallyctl(&["backup", "create", "--to", "next.backup", "--since", "full.backup"])?;
    ensure!(made.contains("what is new"), "{made}");
    say(&talk.alice, &talk.room, "after")?;
    let lost_room = found(&talk.alice, "Later")?;
    say(&talk.alice, &lost_room, "later")?;
    talk.carry_to_bravo()?;
    talk.bob.post(&format!("/_matrix/client/v3/join/{lost_room}"), json!({}))?;
    say(&talk.bob, &talk.room, "answer")?;
    talk.carry_to_alpha()?;
    say(&talk.alice, &talk.room, "carried")?;
    desk.sallyctl(&["bundle", "export", "bravo.example", "--out", "late.bundle"])?;
    fs::copy(desk.path("late.bundle"), talk.bravo.desk().path("late.bundle"))?;

    let report = talk.lose_all_and_restore(&["full.backup", "next.backup"])?;
    ensure!(report["keys_made"].as_array().is_some_and(|keys| keys.len() == 4), "{report}");
    ensure!(report["keys_kept"] == json!([]) && report["media"] == 2, "{report}");
    let again = talk.restore(&["full.backup"], &[]);
    let again = format!("{:#}", again.err().context("a box was replaced by a restore")?);
    ensure!(again.contains("is not empty"), "{again}");

    // Members go on where the backup was made.
    talk.alpha.start()?;
    keys(&desk)?;
    ensure!(read(&talk.alice, &talk.room)? == ["before", "between"]);
    ensure!(download(&talk.alice, &picture)? == vec![7; 100_000]);
    ensure!(download(&talk.alice, &sketch)? == vec![8; 50_000]);
    let verified = desk.sallyctl(&["audit", "verify"])?;
    ensure!(!verified.is_empty());

    exchange_again(&mut talk, &lost_room)
}

/// After a restore with new keys: bravo takes the card and gives everything back, a room that alpha had lost too.
fn exchange_again(talk: &mut Talk, lost_room: &str) -> Result<()> {
    let desk = talk.alpha.desk().clone();
    // Nothing leaves before the enclave root has said that this is a new life.
    let early = desk.sallyctl(&["bundle", "export", "bravo.example", "--out", "early.bundle"]);
    let early = format!("{:#}", early.err().context("a bundle left without a new card")?);
    ensure!(early.contains("its card is from before"), "{early}");
    desk.issue_card_numbered("3", "0")?;
    let unknown = talk.carry_to_bravo();
    ensure!(unknown.is_err(), "bravo took a bundle of keys that it does not know");

    // bravo still takes what a courier had, then the card; and gives everything back.
    talk.bravo.desk().sallyctl(&["bundle", "import", "late.bundle"])?;
    talk.bravo.desk().pair_with(&desk)?;
    talk.carry_to_alpha()?;
    let all = ["after", "answer", "before", "between", "carried"];
    ensure!(
        sorted(read(&talk.alice, &talk.room)?) == all,
        "alice reads {:?}",
        read(&talk.alice, &talk.room)?
    );
    ensure!(read(&talk.alice, lost_room)? == ["later"]);
    say(&talk.alice, &talk.room, "again")?;
    say(&talk.alice, lost_room, "found")?;
    talk.carry_to_bravo()?;
    ensure!(read(&talk.bob, &talk.room)?.last().is_some_and(|last| last == "again"));
    ensure!(read(&talk.bob, lost_room)? == ["later", "found"]);
    // The keys of the life before are on no card any more.
    let late = talk.bravo.desk().sallyctl(&["bundle", "import", "late.bundle"]);
    let late = format!("{:#}", late.err().context("a lost key still counts")?);
    ensure!(late.contains("no paired enclave has the signing key"), "{late}");
    say(&talk.bob, &talk.room, "welcome")?;
    talk.carry_to_alpha()?;
    ensure!(read(&talk.alice, &talk.room)?.last().is_some_and(|last| last == "welcome"));
    Ok(())
}

#[test]
fn a_restored_box_with_its_own_token_is_taken_in_by_a_bundle() -> Result<()> {
    let mut talk = Talk::new(Token::Software { delay_ms: 0 })?;
    say(&talk.alice, &talk.room, "before")?;
    let desk = talk.alpha.desk().clone();
    fs::copy(talk.alpha.plan().configuration(), desk.path("configuration.copy"))?;
    desk.sallyctl(&["backup", "create", "--to", "."])?;
    say(&talk.alice, &talk.room, "after")?;
    talk.carry_to_bravo()?;
    talk.carry_to_alpha()?;
    desk.sallyctl(&["bundle", "export", "bravo.example", "--out", "late.bundle"])?;
    fs::copy(desk.path("late.bundle"), talk.bravo.desk().path("late.bundle"))?;
    talk.alpha.lose_machine()?;
    // A restore that the power cut: no box starts on it, and the same command makes it good.
    let left = talk.alpha.plan().data().join("restoring/data");
    fs::create_dir_all(&left)?;
    fs::write(left.join("sallyport.db"), "half of it")?;
    let text = fs::read_to_string(desk.path("configuration.copy"))?;
    fs::write(talk.alpha.plan().configuration(), text)?;
    let early = talk.alpha.start();
    let early = format!("{:#}", early.err().context("a box started on half a restore")?);
    ensure!(early.contains("run `sallyctl restore` again"), "{early}");
    let report = talk.restore(&["alpha.example-1-full.backup"], &[])?;
    ensure!(report["keys_made"] == json!([]), "{report}");
    talk.alpha.start()?;
    ensure!(read(&talk.alice, &talk.room)? == ["before"]);
    desk.issue_card_numbered("3", "0")?;
    // The bundle brings the card, and what is left of the life before comes too late.
    talk.carry_to_bravo()?;
    let late = talk.bravo.desk().sallyctl(&["bundle", "import", "late.bundle"])?;
    ensure!(late.contains("nothing changed"), "{late}");
    talk.carry_to_alpha()?;
    ensure!(sorted(read(&talk.alice, &talk.room)?) == ["after", "before"]);
    say(&talk.alice, &talk.room, "again")?;
    talk.carry_to_bravo()?;
    ensure!(read(&talk.bob, &talk.room)? == ["before", "after", "again"]);
    Ok(())
}

#[test]
fn what_is_not_a_whole_backup_of_the_enclave_is_refused_whole() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut alpha = Enclave::with_officer("alpha", folder.path())?;
    let bravo = Enclave::with_officer("bravo", folder.path())?;
    for enclave in [&alpha, &bravo] {
        keys(enclave.desk())?;
        enclave.desk().issue_card()?;
        enclave.desk().sallyctl(&["backup", "create", "--to", "own.backup"])?;
    }
    let desk = alpha.desk().clone();
    let fingerprint = desk.fingerprint("alpha.card")?;
    let whole = fs::read(desk.path("own.backup"))?;
    let verify = |file: &str| desk.sallyctl(&[&["backup", "verify", file][..], &OFFICER].concat());
    verify("own.backup")?;
    let shown = desk.sallyctl(&["backup", "inspect", "own.backup"])?;
    ensure!(shown.contains("1 of alpha.example") && shown.contains("full"), "{shown}");
    fs::copy(bravo.desk().path("own.backup"), desk.path("foreign.backup"))?;

    alpha.lose_machine()?;
    let (data, settings) = (alpha.plan().data(), alpha.plan().folder.join("settings"));
    let folders = [&data, &settings].map(|folder| folder.display().to_string());
    let refused = |file: &str, fingerprint: &str| -> Result<String> {
        let [data_dir, settings_dir] = &folders;
        let arguments = [
            &["restore", file],
            &OFFICER[..],
            &["--fingerprint", fingerprint],
            &["--data-dir", data_dir],
            &["--settings", settings_dir],
        ]
        .concat();
        let refusal = desk.sallyctl(&arguments).err();
        let refusal = format!("{:#}", refusal.with_context(|| format!("{file} was restored"))?);
        ensure!(!data.exists() && !settings.exists(), "{file} left something: {refusal}");
        Ok(refusal)
    };
    for at in [0, 30, 600, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(desk.path("damaged.backup"), damaged)?;
        refused("damaged.backup", &fingerprint)?;
        fs::write(desk.path("cut.backup"), &whole[..at])?;
        refused("cut.backup", &fingerprint)?;
    }
    fs::write(desk.path("longer.backup"), [&whole[..], &[0; 100]].concat())?;
    refused("longer.backup", &fingerprint)?;
    let foreign = refused("foreign.backup", &fingerprint)?;
    ensure!(foreign.contains("not encrypted to the recovery key"), "{foreign}");
    let other = bravo.desk().fingerprint("bravo.card")?;
    let other = refused("own.backup", &other)?;
    ensure!(other.contains("another root key"), "{other}");
    Ok(())
}

#[test]
fn a_backup_takes_little_memory_and_disturbs_nobody() -> Result<()> {
    const MIB: usize = 1 << 20;
    let folder = tempfile::tempdir()?;
    let enclave = Enclave::with_officer("alpha", folder.path())?;
    keys(enclave.desk())?;
    let alice = enclave.client()?.register("alice", PASSWORD)?;
    let room = word(&alice.post("/_matrix/client/v3/createRoom", json!({}))?, "room_id")?;
    upload(&alice, vec![5; 90 * MIB])?;
    enclave.forget_peak_memory()?;
    let before = enclave.memory_kib("VmRSS")?;
    let desk = enclave.desk();
    let backup = std::thread::scope(|scope| {
        let backup = scope.spawn(|| desk.sallyctl(&["backup", "create", "--to", "large.backup"]));
        for number in 0.. {
            say(&alice, &room, &format!("message-{number}"))?;
            if backup.is_finished() {
                break;
            }
        }
        backup.join().map_err(|_| anyhow::anyhow!("the backup panicked"))?
    })?;
    let peak = enclave.memory_kib("VmHWM")?;
    ensure!(backup.contains("read back"), "{backup}");
    ensure!(fs::metadata(desk.path("large.backup"))?.len() > 90 * MIB as u64);
    let grown = peak.saturating_sub(before);
    ensure!(grown < 32 * 1024, "the box grew by {grown} KiB for a file of 90 MiB");
    desk.sallyctl(&[&["backup", "verify", "large.backup"][..], &OFFICER].concat())?;
    Ok(())
}

#[test]
fn a_key_that_the_token_wraps_opens_backups_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut enclave = Enclave::with_officer("alpha", folder.path())?;
    let desk = enclave.desk().clone();
    let made = desk.sallyctl(
        &[&["ceremony", "recovery-key", "--enclave", "alpha.example"], &OFFICER[..]]
            .concat()
            .into_iter()
            .chain(["--hybrid", "hybrid.toml"])
            .collect::<Vec<_>>(),
    )?;
    let public = made.lines().find(|line| line.starts_with("recovery_keys"));
    let public = public.context("no line for the configuration")?;
    ensure!(public.contains("x-wing:"), "{public}");
    let configuration = enclave.plan().configuration();
    let text = fs::read_to_string(&configuration)?;
    let named = |line: &str| {
        if line.starts_with("recovery_keys") { public.to_owned() } else { line.to_owned() }
    };
    fs::write(&configuration, text.lines().map(named).collect::<Vec<_>>().join("\n"))?;
    enclave.stop()?;
    enclave.start()?;
    keys(&desk)?;
    desk.issue_card()?;
    desk.sallyctl(&["backup", "create", "--to", "own.backup"])?;
    let verify = [&["backup", "verify", "own.backup"], &OFFICER[..]].concat();
    let other = desk.sallyctl(&verify).err().context("another key opened the backup")?;
    ensure!(format!("{other:#}").contains("not encrypted to the recovery key"), "{other:#}");
    let fingerprint = desk.fingerprint("alpha.card")?;
    let more = ["--hybrid", "hybrid.toml", "--fingerprint", &fingerprint];
    let verified = desk.sallyctl(&[&verify[..], &more].concat())?;
    ensure!(verified.contains("the enclave root vouches"), "{verified}");
    Ok(())
}
