//! `make demo`: two enclaves without a common network hold an encrypted conversation. Prints what happens as a transcript; every line
//! marked `[ok]` was checked, and the first thing that is not true ends the demo with an error.

use std::{net::SocketAddr, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use sallyport_e2e::{
    desk::{Code, STICK, Stick},
    enclave::{Enclave, Plan, Token},
    narrator::Narrator,
    person::{Person, Software},
    place::Place,
};

const TOLD: Narrator = Narrator::Loud;

const ALICE: &str = "@alice:alpha.example";
const BOB: &str = "@bob:bravo.example";

const PASSWORD: &str = "seven brown foxes under the bridge";

const ROOM: &str = "Crossing at Kilometre 12";
const BEFORE_THE_JOIN: &str = "The bridge at Kilometre 12 is closed. Take the ford.";
const ANSWER: &str = "Understood, we take the ford at 0400.";
const LAST: &str = "Good luck. I will report to the commander.";

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\n   [FAILED] {error:#}\n");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let folder = tempfile::tempdir()?;
    println!("SALLYPORT: a conversation between two networks that are never connected");
    let (alpha, bravo) = two_enclaves(folder.path())?;
    let (alices_code, bobs_code) = rosters(&alpha, &bravo)?;
    pair(&alpha, &bravo)?;
    let (mut alice, mut bob) = people(&alpha, &bravo, &alices_code, &bobs_code, folder.path())?;
    let mut courier = Courier { stick: Stick::new(&folder.path().join(STICK))?, trips: 0 };

    TOLD.chapter("5. The first trips: whom one can write to");
    TOLD.tell(
        "Public keys of people's devices travel as soon as two enclaves are paired. With them, Alice can encrypt to Bob \
         without asking his enclave first.",
    );
    courier.carry(&bravo, &alpha, &[BOB])?;
    courier.carry(&alpha, &bravo, &[ALICE])?;

    let room = invite(&mut alice)?;
    courier.carry(&alpha, &bravo, &[BEFORE_THE_JOIN, ROOM, ALICE, BOB])?;
    join(&mut bob, &room)?;
    courier.carry(&bravo, &alpha, &[ANSWER, ROOM, ALICE, BOB])?;
    read_answer(&mut alice, &room)?;
    courier.carry(&alpha, &bravo, &[LAST, ROOM, ALICE, BOB])?;
    read_last(&mut bob, &room)?;

    twice_is_once(&bravo)?;
    audit(&[&alpha, &bravo])?;
    println!("\nEvery line marked [ok] was checked. The two networks were never connected.\n");
    Ok(())
}

fn two_enclaves(folder: &Path) -> Result<(Enclave, Enclave)> {
    TOLD.chapter("1. Two enclaves");
    TOLD.tell("Alpha and Bravo are separate networks. Each has one box, a Matrix server of its own. The only network interface \
               in each of them is its loopback: there is no cable, no radio, no gateway.");
    let enclave = |name: &str, token, address: [u8; 4]| -> Result<Enclave> {
        let plan = Plan {
            name: name.to_owned(),
            folder: folder.join(name),
            token,
            token_mode: "auto",
            registration: "token",
            address: SocketAddr::from((address, 8448)),
            ceremony: true,
            narrator: Narrator::Silent,
            hears_the_terminal: true,
        };
        let mut enclave = Enclave::create(plan, Place::isolated()?)?;
        enclave.start()?;
        Ok(enclave)
    };
    let alpha = enclave("alpha", Token::SoftHsm, [127, 1, 0, 1])?;
    TOLD.checked(
        "alpha's box runs; its keys will be made in a PKCS#11 token (SoftHSM2) and never leave it",
    );
    let bravo = enclave("bravo", Token::Software { delay_ms: 0 }, [127, 2, 0, 1])?;
    TOLD.checked(
        "bravo's box runs; its keys are in the software token, which is for development only",
    );
    for (here, there) in [(&alpha, &bravo), (&bravo, &alpha)] {
        let (name, address) = (&here.plan().name, here.plan().address);
        ensure!(here.place().reaches(address)?, "{name} does not reach its own box at {address}");
        let (other, address) = (&there.plan().name, there.plan().address);
        ensure!(!here.place().reaches(address)?, "{name} REACHES {other} at {address}");
        let interfaces = here.place().interfaces()?;
        ensure!(interfaces == ["lo"], "{name} has the network interfaces {interfaces:?}");
        TOLD.checked(&format!("from {name}, {other}'s box at {address} cannot be reached"));
    }
    Ok((alpha, bravo))
}

fn rosters(alpha: &Enclave, bravo: &Enclave) -> Result<(Code, Code)> {
    TOLD.chapter("2. People come from signed rosters");
    TOLD.tell("The personnel office's list is signed by an officer and imported. Each person gets a slip with a code that works once.");
    let import = |enclave: &Enclave, list: &str, user: &str| -> Result<Code> {
        let codes = enclave.desk().loud().import_roster(&enclave.plan().server_name(), 1, list)?;
        let code = codes.into_iter().find(|code| code.user_id == user);
        code.with_context(|| format!("{user} got no activation code"))
    };
    let alices =
        import(alpha, "localpart,display_name,clearance\nalice,Alice Archer,SECRET\n", ALICE)?;
    let bobs = import(bravo, "localpart,display_name,clearance\nbob,Bob Baker,SECRET\n", BOB)?;
    Ok((alices, bobs))
}

fn pair(alpha: &Enclave, bravo: &Enclave) -> Result<()> {
    TOLD.chapter("3. Pairing");
    TOLD.tell("Each enclave's root key, which otherwise stays in a safe, signs a card with the box's public keys. The cards are \
               exchanged, and each officer reads the fingerprint of the own card to the other one, in person.");
    for enclave in [alpha, bravo] {
        enclave.desk().loud().issue_card()?;
    }
    let objects = alpha.softhsm().context("alpha has no PKCS#11 token")?.objects()?;
    ensure!(objects >= 4, "alpha's token holds {objects} objects only");
    TOLD.checked(&format!("alpha's PKCS#11 token holds {objects} objects: the keys whose public halves are on its card, and more"));
    for (here, there) in [(alpha, bravo), (bravo, alpha)] {
        let (name, card) = (&here.plan().name, format!("{}.card", there.plan().name));
        let wrong = here.desk().fingerprint(&format!("{name}.card"))?;
        std::fs::copy(there.desk().path(&card), here.desk().path(&card))?;
        let refused = here.desk().sallyctl(&["peer", "add", &card, "--fingerprint", &wrong]);
        ensure!(refused.is_err(), "{name} pairs although the fingerprint is another one's");
        TOLD.checked(&format!(
            "{name} refuses the card as long as the fingerprint is another one's"
        ));
        here.desk().loud().pair_with(there.desk())?;
    }
    Ok(())
}

fn people(
    alpha: &Enclave,
    bravo: &Enclave,
    alices: &Code,
    bobs: &Code,
    folder: &Path,
) -> Result<(Person, Person)> {
    TOLD.chapter("4. People and their apps");
    TOLD.tell("Alice and Bob take over their accounts with the codes of their slips, in stock Matrix clients over TLS, each in the own network.");
    let start = |enclave: &Enclave, software, code: &Code| -> Result<Person> {
        let user = code.user_id.trim_start_matches('@').split(':').next().unwrap_or_default();
        let diary = folder.join(format!("{user}.log"));
        let mut person =
            Person::start(user, software, enclave.place(), Some(&enclave.authority()), &diary)?;
        let device = person.register(&enclave.plan().url(), user, PASSWORD, Some(&code.code))?;
        TOLD.checked(&format!("{} signed in with {software}, device {device}", code.user_id));
        Ok(person)
    };
    Ok((start(alpha, Software::Nio, alices)?, start(bravo, Software::JsSdk, bobs)?))
}

fn invite(alice: &mut Person) -> Result<String> {
    TOLD.chapter("6. Alice invites Bob, whose network she cannot reach");
    let room = alice.create_encrypted_room(ROOM, &[])?;
    alice.invite(&room, BOB)?;
    TOLD.checked(&format!("Alice made the encrypted room \"{ROOM}\" and invited {BOB}"));
    alice.say(&room, BEFORE_THE_JOIN)?;
    TOLD.speech("Alice", BEFORE_THE_JOIN);
    TOLD.tell("The message stands in her app at once. Bob knows nothing of it yet.");
    Ok(room)
}

fn join(bob: &mut Person, room: &str) -> Result<()> {
    TOLD.chapter("7. Bob, in his own network");
    let inviter = bob.accept_invite(room)?;
    ensure!(inviter == ALICE, "the invite is from {inviter}");
    TOLD.checked(
        "Bob's app showed Alice's invite, and he joined at once: no trip was needed for that",
    );
    bob.read(room, ALICE, BEFORE_THE_JOIN)?;
    TOLD.speech("Alice, on Bob's screen", BEFORE_THE_JOIN);
    TOLD.checked(
        "Bob reads what Alice wrote before he had joined; it came encrypted from end to end",
    );
    bob.say(room, ANSWER)?;
    TOLD.speech("Bob", ANSWER);
    Ok(())
}

fn read_answer(alice: &mut Person, room: &str) -> Result<()> {
    TOLD.chapter("8. The answer");
    alice.see_member(room, BOB, "join")?;
    TOLD.checked("Alice's app shows that Bob has joined");
    alice.read(room, BOB, ANSWER)?;
    TOLD.speech("Bob, on Alice's screen", ANSWER);
    TOLD.checked("Alice reads Bob's answer; it came encrypted from end to end");
    alice.say(room, LAST)?;
    TOLD.speech("Alice", LAST);
    Ok(())
}

fn read_last(bob: &mut Person, room: &str) -> Result<()> {
    bob.read(room, ALICE, LAST)?;
    TOLD.speech("Alice, on Bob's screen", LAST);
    TOLD.checked("Bob reads it; it came encrypted from end to end");
    Ok(())
}

/// Somebody who carries the stick and holds no key.
struct Courier {
    stick: Stick,
    trips: u32,
}

impl Courier {
    /// Exports at `from`, carries, imports at `to`. None of `secrets` may be readable on the stick.
    fn carry(&mut self, from: &Enclave, to: &Enclave, secrets: &[&str]) -> Result<()> {
        self.trips += 1;
        let (here, there) = (&from.plan().name, &to.plan().name);
        TOLD.chapter(&format!("Trip {}: the stick goes from {here} to {there}", self.trips));
        self.stick.carry_to(from)?;
        let bundle = format!("{}-to-{there}.bundle", self.trips);
        let desk = from.desk().loud();
        desk.sallyctl(&["bundle", "export", &to.plan().server_name(), "--out", &bundle])?;
        desk.sallyctl(&["stick", "write", STICK, "--bundle", &bundle])?;
        let bytes = self.stick.bytes()?;
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            ensure!(!found, "{secret:?} can be read on the stick");
        }
        TOLD.checked(
            "the stick shows which enclave sends to which, but no person, no room and no word",
        );
        self.stick.carry_to(to)?;
        TOLD.tell(&format!("... the courier carries the stick to {there} ..."));
        import(to)
    }
}

/// Imports what is on the stick. Shows what was imported; what else is on the stick is in nobody's way.
fn import(enclave: &Enclave) -> Result<()> {
    let output = enclave.desk().sallyctl(&["stick", "import", STICK, "--codes", "."])?;
    let told: Vec<&str> = output
        .lines()
        .skip_while(|line| !line.is_empty())
        .filter(|line| !line.is_empty() && !line.contains("left alone"))
        .collect();
    TOLD.command(&enclave.plan().name, "sallyctl stick import stick --codes .", &told.join("\n"));
    Ok(())
}

fn twice_is_once(bravo: &Enclave) -> Result<()> {
    TOLD.chapter("9. The same stick once more");
    let before = bravo.desk().sallyctl(&["bundle", "status"])?;
    import(bravo)?;
    let after = bravo.desk().sallyctl(&["bundle", "status"])?;
    ensure!(before == after, "importing again changed\n{before}to\n{after}");
    TOLD.checked("importing the same bundles again changes nothing");
    Ok(())
}

fn audit(enclaves: &[&Enclave]) -> Result<()> {
    TOLD.chapter("10. What the auditor sees");
    for enclave in enclaves {
        enclave.desk().loud().sallyctl(&["bundle", "status"])?;
        enclave.desk().loud().sallyctl(&["audit", "verify"])?;
        TOLD.checked(&format!("{}'s audit log is whole", enclave.plan().name));
    }
    Ok(())
}
