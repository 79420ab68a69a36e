//! Two enclaves go on talking while one of them replaces its keys, or its whole token, or waits for its PIN.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    enclave::{PIN, Token},
    softhsm::MODULE,
};
use serde_json::Value;

use crate::{
    hsm::{current, keys},
    talk::Talk,
};

impl Talk {
    /// A key of alpha as `sallyctl hsm status` shows it.
    fn key(&self, name: &str) -> Result<Value> {
        let found = keys(self.alpha.desk())?.into_iter().find(|key| key["name"] == name);
        found.with_context(|| format!("{name} is forgotten"))
    }
}

#[test]
fn nothing_leaves_a_box_that_starts_locked() -> Result<()> {
    let mut talk = Talk::new(Token::SoftHsm)?;
    talk.say("before")?;
    talk.alpha.restart_without_pin()?;
    talk.say("while-it-is-locked")?;
    let refused = talk.export().err().context("a locked box made a bundle")?.to_string();
    ensure!(refused.contains("sallyctl token unlock"), "nobody is told what to do: {refused}");
    ensure!(!talk.alpha.desk().path("2.bundle").exists(), "a bundle was made");
    talk.alpha.desk().sallyctl_answering(&["token", "unlock"], &format!("{PIN}\n"))?;
    talk.carry_to_bravo()?;
    talk.all_is_read()
}

#[test]
fn a_courier_key_changes_without_a_meeting() -> Result<()> {
    let mut talk = Talk::new(Token::Software { delay_ms: 0 })?;
    let desk = talk.alpha.desk().clone();
    let old = current(&keys(&desk)?, "courier")?;
    talk.say("before")?;
    let rotate = ["hsm", "rotate", "courier", "--yes", "--protocol", "rotation.txt"];
    let protocol = desk.sallyctl(&rotate)?;
    ensure!(protocol.contains(&format!("retired {old}")), "{protocol}");
    let destroy =
        |protocol: &str| desk.sallyctl(&["hsm", "destroy", &old, "--yes", "--protocol", protocol]);
    let needed = destroy("too-early.txt").err().context("the old key is needed, and gone")?;
    ensure!(needed.to_string().contains("does not name its successor"), "{needed}");
    // Under the card of before, and then with the new one in the bundle.
    talk.say("between")?;
    talk.carry_to_bravo()?;
    desk.issue_card_numbered("2", "0")?;
    talk.say("with-the-card")?;
    talk.carry_to_bravo()?;
    talk.all_is_read()?;
    talk.carry_to_alpha()?;
    destroy("destroyed.txt")?;
    ensure!(!talk.key(&old)?["destroyed"].is_null(), "{old} is not destroyed");
    talk.say("after")?;
    talk.carry_to_bravo()?;
    talk.all_is_read()
}

#[test]
fn a_box_is_handed_over_to_another_token_and_its_peer_goes_on() -> Result<()> {
    let mut talk = Talk::new(Token::SoftHsm)?;
    talk.say("before")?;
    let softhsm = talk.alpha.softhsm().context("no SoftHSM2")?.clone();
    softhsm.add("alpha-2", PIN)?;
    let desk = talk.alpha.desk().with_softhsm(&softhsm);
    let pin_file = talk.alpha.plan().pin_file();
    let description = format!(
        "kind = \"pkcs11\"\nmodule = \"{MODULE}\"\ntoken_label = \"alpha-2\"\npin = \"file:{}\"\n\
         writable = [\"{}\"]\n",
        pin_file.display(),
        talk.alpha.plan().folder.join("softhsm").display(),
    );
    fs::write(desk.path("new.toml"), description)?;
    let before = keys(&desk)?;
    let hand_over = ["hsm", "hand-over", "--token", "new.toml"];
    let plan = desk.sallyctl(&[&hand_over[..], &["--plan"]].concat())?;
    ensure!(plan.contains("sallyctl hsm rotate ca"), "the plan forgets the CA:\n{plan}");
    ensure!(keys(&desk)? == before, "a plan changed something");
    let protocol =
        desk.sallyctl(&[&hand_over[..], &["--yes", "--protocol", "hand-over.txt"]].concat())?;
    let after = keys(&desk)?;
    for role in ["event", "courier", "courier-encryption", "audit"] {
        let (old, new) = (current(&before, role)?, current(&after, role)?);
        ensure!(old != new && protocol.contains(&format!("retired {old}")), "{role}:\n{protocol}");
        ensure!(protocol.contains(&format!("made {new}")), "{role}:\n{protocol}");
    }
    ensure!(protocol.contains("the old audit key, in the audit log"), "{protocol}");
    talk.say("while-nobody-signs")?;

    // The old token is gone for good when the box starts with the new one.
    talk.alpha.stop()?;
    softhsm.remove("alpha")?;
    let configuration = talk.alpha.plan().configuration();
    let text = fs::read_to_string(&configuration)?;
    let text = text.replace("token_label = \"alpha\"", "token_label = \"alpha-2\"");
    fs::write(configuration, text)?;
    talk.alpha.start()?;
    talk.say("with-the-new-token")?;

    desk.issue_card_numbered("2", "0")?;
    let bundle = talk.export()?;
    let refused = talk.import(&bundle).err().context("bravo takes what a strange key signed")?;
    ensure!(refused.to_string().contains("bundle"), "{refused}");
    // The new card is carried to the peer.
    talk.bravo.desk().pair_with(&desk)?;
    talk.import(&bundle)?;
    talk.all_is_read()?;
    talk.carry_to_alpha()?;

    // The log is vouched for across the change, and the CA follows into the new token.
    desk.sallyctl(&["audit", "checkpoint"])?;
    let verified = desk.sallyctl(&["audit", "verify"])?;
    ensure!(verified.contains("The token vouches for it up to row"), "{verified}");
    let ca = current(&keys(&desk)?, "ca")?;
    desk.sallyctl(&["hsm", "rotate", "ca", "--old-key-is-lost", "--yes", "--protocol", "ca.txt"])?;
    ensure!(!talk.key(&ca)?["destroyed"].is_null(), "{ca} is not gone");
    let listed = softhsm.listed("alpha-2", PIN)?;
    let new = current(&keys(&desk)?, "ca")?;
    let (_, id) = new.split_once(':').context("a name")?;
    ensure!(listed.contains(id), "the CA's key is not in the new token:\n{listed}");
    talk.alpha.stop()
}
