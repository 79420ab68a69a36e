//! Two enclaves go on talking while one of them replaces its keys, or its whole token, or waits for its PIN.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    enclave::{Enclave, PIN, Plan, Token},
    http::Client,
    person::word,
    place::Place,
    softhsm::MODULE,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hsm::{current, keys};

const PASSWORD: &str = "correct horse battery staple";

/// Two paired boxes; alice@alpha and bob@bravo are in a room.
struct Talk {
    alpha: Enclave,
    bravo: Enclave,
    alice: Client,
    bob: Client,
    room: String,
    bundles: u32,
    said: Vec<String>,
    _folder: TempDir,
}

impl Talk {
    /// With alpha's keys in this kind of token.
    fn new(token: Token) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut plan = Plan::for_test("alpha", folder.path());
        (plan.token, plan.ceremony) = (token, true);
        let mut alpha = Enclave::create(plan, Place::Here)?;
        alpha.start()?;
        let bravo = Enclave::with_officer("bravo", folder.path())?;
        for enclave in [&alpha, &bravo] {
            keys(enclave.desk())?;
            enclave.desk().issue_card()?;
        }
        alpha.desk().pair_with(bravo.desk())?;
        bravo.desk().pair_with(alpha.desk())?;
        let alice = alpha.client()?.register("alice", PASSWORD)?;
        let bob = bravo.client()?.register("bob", PASSWORD)?;
        let invite = json!({"name": "Operations", "invite": ["@bob:bravo.example"]});
        let room = word(&alice.post("/_matrix/client/v3/createRoom", invite)?, "room_id")?;
        let (bundles, said) = (0, Vec::new());
        let mut talk = Self { alpha, bravo, alice, bob, room, bundles, said, _folder: folder };
        talk.carry()?;
        talk.bob.post(&format!("/_matrix/client/v3/join/{}", talk.room), json!({}))?;
        Ok(talk)
    }

    fn say(&mut self, body: &str) -> Result<()> {
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{body}", self.room);
        self.alice.put(&path, json!({"msgtype": "m.text", "body": body}))?;
        self.said.push(body.to_owned());
        Ok(())
    }

    /// Makes a bundle at alpha, which then lies on bravo's desk.
    fn export(&mut self) -> Result<String> {
        self.bundles += 1;
        let file = format!("{}.bundle", self.bundles);
        let (from, to) = (self.alpha.desk(), self.bravo.desk());
        from.sallyctl(&["bundle", "export", "bravo.example", "--out", &file])?;
        fs::copy(from.path(&file), to.path(&file))?;
        Ok(file)
    }

    fn import(&self, file: &str) -> Result<()> {
        self.bravo.desk().sallyctl(&["bundle", "import", file])?;
        Ok(())
    }

    fn carry(&mut self) -> Result<()> {
        let file = self.export()?;
        self.import(&file)
    }

    /// Carries what bravo has for alpha.
    fn carry_back(&self) -> Result<()> {
        let (from, to) = (self.bravo.desk(), self.alpha.desk());
        from.sallyctl(&["bundle", "export", "alpha.example", "--out", "back.bundle"])?;
        fs::copy(from.path("back.bundle"), to.path("back.bundle"))?;
        to.sallyctl(&["bundle", "import", "back.bundle"])?;
        Ok(())
    }

    /// bob reads everything that alice said.
    fn all_is_read(&self) -> Result<()> {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100", self.room);
        let page = self.bob.get(&path)?;
        let events = page["chunk"].as_array().context("no events")?;
        let bodies = events.iter().rev().filter_map(|event| event["content"]["body"].as_str());
        let read: Vec<&str> = bodies.collect();
        ensure!(read == self.said, "bob reads {read:?}, alice said {:?}", self.said);
        Ok(())
    }

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
    talk.carry()?;
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
    talk.carry()?;
    desk.issue_card_numbered("2", "0")?;
    talk.say("with-the-card")?;
    talk.carry()?;
    talk.all_is_read()?;
    talk.carry_back()?;
    destroy("destroyed.txt")?;
    ensure!(!talk.key(&old)?["destroyed"].is_null(), "{old} is not destroyed");
    talk.say("after")?;
    talk.carry()?;
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
    talk.carry_back()?;

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
