//! The life of a token and its keys at the desk: set up, looked at from outside, rotated, with protocols for witnesses.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    desk::Desk,
    enclave::{Enclave, PIN, Plan, Token},
    place::Place,
    softhsm::{MODULE, SoftHsm},
};
use serde_json::Value;

const OFFICER_PIN: &str = "officer-5678";

/// How long a box may take for what it does with its keys.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(30);

/// An enclave whose token `sallyctl hsm init` has set up, and the slot.
fn enclave(plan: Plan) -> Result<(Enclave, SoftHsm)> {
    let softhsm = SoftHsm::blank(&plan.folder.join("softhsm"))?;
    let folder = plan.folder.join("desk");
    let desk = Desk::new(&plan.name, folder, plan.admin_socket(), plan.narrator)?;
    let desk = desk.with_softhsm(&softhsm);
    let description = format!(
        "kind = \"pkcs11\"\nmodule = \"{MODULE}\"\ntoken_label = \"{}\"\npin = \"file:{}\"\n",
        plan.name,
        plan.pin_file().display()
    );
    fs::write(desk.path("token.toml"), description)?;
    let init = ["hsm", "init", "--token", "token.toml", "--write-pin-file"];
    let planned = desk.sallyctl(&[&init[..], &["--plan"]].concat())?;
    ensure!(planned.contains("Nothing was done"), "{planned}");
    ensure!(softhsm.objects()? == 0 && !plan.pin_file().exists(), "a plan touched something");

    // Nobody says yes: nothing is done, and the protocol says so.
    let refused = desk.sallyctl_answering(
        &[&init[..], &["--protocol", "refused.txt", "--witness", "Bob B."]].concat(),
        "no\n",
    );
    ensure!(refused.is_err() && !plan.pin_file().exists());
    let protocol = fs::read_to_string(desk.path("refused.txt"))?;
    ensure!(protocol.contains("NOT DONE"), "{protocol}");

    let answers =
        format!("Bob B.\nCarol C.\n\nyes\n{OFFICER_PIN}\n{OFFICER_PIN}\n{PIN}\n{PIN}\nyes\n");
    let protocol =
        desk.sallyctl_answering(&[&init[..], &["--protocol", "init.txt"]].concat(), &answers)?;
    for part in ["serial number", "1. done", "Carol C.", "______"] {
        ensure!(protocol.contains(part), "no {part} in:\n{protocol}");
    }
    ensure!(!protocol.contains(PIN) && !protocol.contains(OFFICER_PIN), "a PIN is in the protocol");
    ensure!(protocol.contains(fs::read_to_string(desk.path("init.txt"))?.trim()));
    // A token that is set up is left alone.
    let again = desk.sallyctl_answering(
        &[&init[..4], &["--yes", "--protocol", "again.txt"]].concat(),
        &format!("{OFFICER_PIN}\n{OFFICER_PIN}\n{PIN}\n{PIN}\n"),
    );
    let again = again.err().context("a token was set up twice")?;
    ensure!(again.to_string().contains("several tokens have the label"), "{again}");
    Ok((Enclave::create(plan, Place::Here)?, softhsm))
}

/// The box's keys, as soon as it has made all that it makes by itself.
pub(crate) fn keys(desk: &Desk) -> Result<Vec<Value>> {
    let started = Instant::now();
    loop {
        let status: Value = serde_json::from_str(&desk.sallyctl(&["hsm", "status", "--json"])?)?;
        let keys = status["keys"].as_array().context("no keys")?;
        let has_ca =
            keys.iter().any(|key| key["name"].as_str().is_some_and(|name| name.starts_with("ca:")));
        // The first ones are complete with the hybrid half of the encryption key; later ones have others before them.
        let complete = keys.iter().any(|key| !key["hybrid"].is_null() || !key["retired"].is_null());
        if keys.len() >= 5 && has_ca && complete {
            return Ok(keys.clone());
        }
        ensure!(started.elapsed() < STUCK_AFTER, "the box has no keys: {status}");
    }
}

/// The key of a role that is in use.
pub(crate) fn current(keys: &[Value], role: &str) -> Result<String> {
    let name = keys.iter().find_map(|key| {
        let name = key["name"].as_str().filter(|name| name.starts_with(&format!("{role}:")))?;
        key["retired"].is_null().then(|| name.to_owned())
    });
    name.with_context(|| format!("no {role} key in {keys:?}"))
}

#[test]
fn a_token_is_set_up_used_and_its_keys_replaced_before_witnesses() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut plan = Plan::for_test("alpha", folder.path());
    plan.token = Token::SoftHsm;
    let (mut enclave, softhsm) = enclave(plan)?;
    enclave.start()?;
    let desk = enclave.desk();
    let before = keys(desk)?;
    let old = current(&before, "event")?;

    let planned = desk.sallyctl(&["hsm", "rotate", "event", "--plan"])?;
    ensure!(planned.contains(&format!("retire {old}")), "{planned}");
    ensure!(keys(desk)? == before, "a plan changed something");
    let rotate =
        ["hsm", "rotate", "event", "--yes", "--witness", "Bob B.", "--protocol", "rotation.txt"];
    let protocol = desk.sallyctl(&rotate)?;
    let after = keys(desk)?;
    let new = current(&after, "event")?;
    ensure!(new != old, "{after:?}");
    for part in [format!("retired {old}"), format!("made {new}"), "Bob B.".to_owned()] {
        ensure!(protocol.contains(&part), "no {part} in:\n{protocol}");
    }
    // The private half of the retired key is not needed any more.
    desk.sallyctl(&["hsm", "destroy", &old, "--yes", "--protocol", "destruction.txt"])?;
    let in_use = desk.sallyctl(&["hsm", "destroy", &new, "--yes", "--protocol", "refused-2.txt"]);
    ensure!(in_use.is_err_and(|error| error.to_string().contains("is the one in use")));

    // From outside: one private key for each of ours, none of which can leave the token.
    let listed = softhsm.listed("alpha", PIN)?;
    ensure!(!listed.contains(old.split_once(':').context("a name")?.1), "{listed}");
    let private: Vec<_> = listed.split("Private Key Object").skip(1).collect();
    ensure!(private.len() >= 4, "{listed}");
    for key in private {
        let key = key.split(" Object").next().unwrap_or_default();
        ensure!(key.contains("sensitive") && key.contains("never extractable"), "{key}");
    }

    desk.sallyctl(&["audit", "checkpoint"])?;
    let verified = desk.sallyctl(&["audit", "verify"])?;
    ensure!(verified.contains("The token vouches for it up to row"), "{verified}");
    enclave.stop()
}

#[test]
fn keys_are_generated_backed_up_and_restored() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let plan = Plan::for_test("alpha", folder.path());
    let (token, copy) = (plan.folder.join("keys"), "copy.keys");
    let mut enclave = Enclave::create(plan, Place::Here)?;
    let desk = enclave.desk().clone();
    let description = format!("kind = \"software\"\npath = \"{}\"\n", token.display());
    fs::write(desk.path("token.toml"), description)?;
    let in_token = ["--token", "token.toml", "--allow-software-keys"];
    let generate = [
        &["hsm", "generate", "--enclave", "alpha.example", "--role"],
        &["event"][..],
        &in_token[..],
    ]
    .concat();
    let planned = desk.sallyctl(&[&generate[..], &["--plan"]].concat())?;
    ensure!(planned.contains("Nothing was done") && !token.exists(), "{planned}");
    let made = desk.sallyctl(&[&generate[..], &["--yes", "--protocol", "made.txt"]].concat())?;

    // The box takes that key into use.
    enclave.start()?;
    let before = keys(&desk)?;
    let event = current(&before, "event")?;
    ensure!(made.contains(&format!("made {event}")), "{event} is in use, and not\n{made}");
    enclave.stop()?;

    let answers = format!("{PIN}\n{PIN}\n");
    let backup =
        [&["hsm", "backup", "--out", copy, "--yes", "--protocol", "backup.txt"], &in_token[..]]
            .concat();
    let protocol = desk.sallyctl_answering(&backup, &answers)?;
    ensure!(protocol.contains(copy) && !protocol.contains(PIN), "{protocol}");
    for file in fs::read_dir(&enclave.plan().folder)? {
        let file = file?;
        if file.file_name().to_string_lossy().starts_with("keys") {
            fs::remove_file(file.path())?;
        }
    }
    let restore = |protocol: &str, pin: &str| {
        let named = ["hsm", "restore", copy, "--yes", "--protocol", protocol];
        desk.sallyctl_answering(&[&named[..], &in_token[..]].concat(), &format!("{pin}\n"))
    };
    let refused = restore("refused.txt", "not the PIN");
    ensure!(refused.is_err() && !token.exists(), "a wrong PIN made a token");
    restore("restored.txt", PIN)?;

    // The box goes on with the same keys, and they sign.
    enclave.start()?;
    ensure!(keys(&desk)? == before, "the keys are others");
    desk.sallyctl(&["audit", "checkpoint"])?;
    let verified = desk.sallyctl(&["audit", "verify"])?;
    ensure!(verified.contains("The token vouches for it up to row"), "{verified}");
    let over = restore("again.txt", PIN);
    ensure!(over.is_err(), "a token that is there was made anew");
    enclave.stop()
}
