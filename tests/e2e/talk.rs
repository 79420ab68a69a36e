//! Two enclaves that talk with each other: what the tests of handed over tokens and of restored boxes begin with.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    enclave::{Enclave, Plan, Token},
    http::Client,
    person::word,
    place::Place,
};
use serde_json::json;
use tempfile::TempDir;

use crate::hsm::keys;

const PASSWORD: &str = "correct horse battery staple";

/// Two paired boxes; alice@alpha and bob@bravo are in a room.
pub(crate) struct Talk {
    pub(crate) alpha: Enclave,
    pub(crate) bravo: Enclave,
    pub(crate) alice: Client,
    pub(crate) bob: Client,
    pub(crate) room: String,
    bundles: u32,
    said: Vec<String>,
    _folder: TempDir,
}

impl Talk {
    /// With alpha's keys in this kind of token.
    pub(crate) fn new(token: Token) -> Result<Self> {
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
        let room = found(&alice, "Operations")?;
        let (bundles, said) = (0, Vec::new());
        let mut talk = Self { alpha, bravo, alice, bob, room, bundles, said, _folder: folder };
        talk.carry_to_bravo()?;
        talk.bob.post(&format!("/_matrix/client/v3/join/{}", talk.room), json!({}))?;
        Ok(talk)
    }

    /// alice says something in the room that [`Talk::all_is_read`] looks for.
    pub(crate) fn say(&mut self, body: &str) -> Result<()> {
        say(&self.alice, &self.room, body)?;
        self.said.push(body.to_owned());
        Ok(())
    }

    /// bob reads everything that alice said.
    pub(crate) fn all_is_read(&self) -> Result<()> {
        let read = read(&self.bob, &self.room)?;
        ensure!(read == self.said, "bob reads {read:?}, alice said {:?}", self.said);
        Ok(())
    }

    /// Makes a bundle at alpha, which then lies on bravo's desk.
    pub(crate) fn export(&mut self) -> Result<String> {
        let file = self.next_bundle();
        export(&file, "bravo.example", &self.alpha, &self.bravo)?;
        Ok(file)
    }

    pub(crate) fn import(&self, file: &str) -> Result<()> {
        import(file, &self.bravo)
    }

    /// Carries what alpha has for bravo.
    pub(crate) fn carry_to_bravo(&mut self) -> Result<String> {
        let file = self.export()?;
        self.import(&file)?;
        Ok(file)
    }

    /// Carries what bravo has for alpha.
    pub(crate) fn carry_to_alpha(&mut self) -> Result<()> {
        let file = self.next_bundle();
        export(&file, "alpha.example", &self.bravo, &self.alpha)?;
        import(&file, &self.alpha)
    }

    fn next_bundle(&mut self) -> String {
        self.bundles += 1;
        format!("{}.bundle", self.bundles)
    }
}

fn export(file: &str, peer: &str, from: &Enclave, to: &Enclave) -> Result<()> {
    from.desk().sallyctl(&["bundle", "export", peer, "--out", file])?;
    fs::copy(from.desk().path(file), to.desk().path(file))?;
    Ok(())
}

fn import(file: &str, at: &Enclave) -> Result<()> {
    at.desk().sallyctl(&["bundle", "import", file])?;
    Ok(())
}

/// A room of alice's into which bob is invited.
pub(crate) fn found(alice: &Client, name: &str) -> Result<String> {
    let invite = json!({"name": name, "invite": ["@bob:bravo.example"]});
    word(&alice.post("/_matrix/client/v3/createRoom", invite)?, "room_id")
}

pub(crate) fn say(who: &Client, room: &str, body: &str) -> Result<()> {
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{body}");
    who.put(&path, json!({"msgtype": "m.text", "body": body}))?;
    Ok(())
}

/// What somebody reads in a room, the oldest first.
pub(crate) fn read(who: &Client, room: &str) -> Result<Vec<String>> {
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=100");
    let page = who.get(&path)?;
    let events = page["chunk"].as_array().context("no events")?;
    let bodies = events.iter().rev().filter_map(|event| event["content"]["body"].as_str());
    Ok(bodies.map(str::to_owned).collect())
}
