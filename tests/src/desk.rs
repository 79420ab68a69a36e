//! An admin's desk: a folder with their files, a terminal with `sallyctl`, and a slot for the stick. And what admins do at it.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{enclave::Enclave, narrator::Narrator, place::Place, repository, softhsm::SoftHsm};

/// The clearance levels of the sample enclaves.
const LEVELS: &str = "OPEN,RESTRICTED,SECRET";

/// Where the stick appears when it is plugged in.
pub const STICK: &str = "stick";

/// The desk.
#[derive(Clone, Debug)]
pub struct Desk {
    name: String,
    folder: PathBuf,
    socket: PathBuf,
    narrator: Narrator,
    /// Where SoftHSM2 has its tokens, if there is one at the desk.
    softhsm: Option<PathBuf>,
}

/// An activation code, as `sallyctl roster import --codes` writes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Code {
    /// The account.
    pub user_id: String,
    /// The code on the slip.
    pub code: String,
}

/// A directory that stands for a USB stick. It is in one place at a time.
#[derive(Debug)]
pub struct Stick {
    at: PathBuf,
}

impl Desk {
    /// The desk in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(name: &str, folder: PathBuf, socket: PathBuf, narrator: Narrator) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { name: name.to_owned(), folder, socket, narrator, softhsm: None })
    }

    /// The same desk, with tokens of SoftHSM2 plugged in.
    #[must_use]
    pub fn with_softhsm(&self, softhsm: &SoftHsm) -> Self {
        Self { softhsm: Some(softhsm.configuration().to_owned()), ..self.clone() }
    }

    /// The same desk, with somebody who tells what is done at it.
    #[must_use]
    pub fn loud(&self) -> Self {
        Self { narrator: Narrator::Loud, ..self.clone() }
    }

    /// A file on the desk.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Runs `sallyctl` at the desk and answers what it prints.
    ///
    /// # Errors
    /// When it fails; with what it says.
    pub fn sallyctl(&self, arguments: &[&str]) -> Result<String> {
        self.sallyctl_answering(arguments, "")
    }

    /// Runs `sallyctl` and answers its questions with the lines of `input`.
    ///
    /// # Errors
    /// When it fails; with what it says.
    pub fn sallyctl_answering(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = self.start_sallyctl(arguments)?;
        let mut questions = child.stdin.take().context("no input of sallyctl")?;
        match questions.write_all(input.as_bytes()) {
            // It asked nothing and has gone.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            answered => answered?,
        }
        drop(questions);
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let shown = shown(arguments);
        ensure!(output.status.success(), "{}$ {shown}\n{}", self.name, said.trim());
        let output = String::from_utf8(output.stdout)?;
        self.narrator.command(&self.name, &shown, &output);
        Ok(output)
    }

    /// Starts `sallyctl` and leaves it running; its streams are pipes.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_sallyctl(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Place::Here.command(repository::sallyctl()?);
        command.current_dir(&self.folder).args(arguments);
        command.env("SALLYPORT_ADMIN_SOCKET", &self.socket).env("SALLYPORT_ACTOR", "admin");
        if let Some(configuration) = &self.softhsm {
            command.env(SoftHsm::VARIABLE, configuration);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// Makes the enclave's root key and an officer's key in software tokens, unless an earlier call did. Answers the
    /// officer's public key, which the box's configuration must name.
    ///
    /// # Errors
    /// When a key cannot be made.
    pub fn hold_ceremony(&self, enclave: &str) -> Result<String> {
        let remembered = self.path("officer.public");
        if remembered.exists() {
            return Ok(fs::read_to_string(remembered)?);
        }
        for role in ["root", "officer"] {
            let keys = self.path(&format!("{role}.keys"));
            let token = format!("kind = \"software\"\npath = \"{}\"\n", keys.display());
            fs::write(self.path(&format!("{role}.toml")), token)?;
        }
        let software = "--allow-software-keys";
        self.sallyctl(&[
            "ceremony",
            "init-root",
            "--token",
            "root.toml",
            software,
            "--enclave",
            enclave,
        ])?;
        let said = self.sallyctl(&[
            "ceremony",
            "officer-key",
            "--token",
            "officer.toml",
            software,
            "--enclave",
            enclave,
        ])?;
        let public = after("public key", &said)?;
        fs::write(remembered, &public)?;
        Ok(public)
    }

    /// Makes a recovery officer's key in a software token, unless an earlier call did. Answers its public half, which the box's configuration must
    /// name.
    ///
    /// # Errors
    /// When the key cannot be made.
    pub fn recovery_key(&self, enclave: &str) -> Result<String> {
        let remembered = self.path("recovery.public");
        if remembered.exists() {
            return Ok(fs::read_to_string(remembered)?);
        }
        let keys = self.path("recovery.keys");
        let token = format!("kind = \"software\"\npath = \"{}\"\n", keys.display());
        fs::write(self.path("recovery.toml"), token)?;
        let said = self.sallyctl(&[
            "ceremony",
            "recovery-key",
            "--token",
            "recovery.toml",
            "--allow-software-keys",
            "--enclave",
            enclave,
        ])?;
        let public = after("public key", &said)?;
        fs::write(remembered, &public)?;
        Ok(public)
    }

    /// Makes, signs and imports a roster; answers the activation codes of new accounts. `list` is CSV.
    ///
    /// # Errors
    /// When a step is refused.
    pub fn import_roster(&self, enclave: &str, serial: u32, list: &str) -> Result<Vec<Code>> {
        let serial = serial.to_string();
        let file = |extension: &str| format!("personnel-{serial}.{extension}");
        let (csv, made, signed, codes) =
            (file("csv"), file("roster"), file("signed"), file("codes"));
        fs::write(self.path(&csv), list)?;
        // What an interrupted call left; `sallyctl` never overwrites.
        for left in [&made, &signed, &codes].map(|file| self.path(file)) {
            if left.exists() {
                fs::remove_file(left)?;
            }
        }
        self.sallyctl(&[
            "roster",
            "make",
            &csv,
            "--enclave",
            enclave,
            "--serial",
            &serial,
            "--levels",
            LEVELS,
            "--out",
            &made,
        ])?;
        let (token, software) = ("officer.toml", "--allow-software-keys");
        self.sallyctl(&["roster", "sign", &made, "--token", token, software, "--out", &signed])?;
        self.sallyctl(&["roster", "dry-run", &signed])?;
        self.sallyctl(&["roster", "import", &signed, "--codes", &codes])?;
        let codes = fs::read(self.path(&codes))?;
        serde_json::from_slice(&codes).context("the file of codes")
    }

    /// Has the enclave root sign the box's pairing card and gives it to the box. The card stays on the desk. No officer need approve
    /// bundles.
    ///
    /// # Errors
    /// When a step is refused.
    pub fn issue_card(&self) -> Result<()> {
        self.issue_card_with("0")
    }

    /// As [`Desk::issue_card`]; so many officers must approve each export and each import.
    ///
    /// # Errors
    /// When a step is refused.
    pub fn issue_card_with(&self, approvals: &str) -> Result<()> {
        self.issue_card_numbered("1", approvals)
    }

    /// As [`Desk::issue_card_with`], for the card of this serial number. It lies in the place of the one before.
    ///
    /// # Errors
    /// When a step is refused.
    pub fn issue_card_numbered(&self, serial: &str, approvals: &str) -> Result<()> {
        let name = &self.name;
        let (request, card) = (format!("card-{serial}.request"), format!("card-{serial}.signed"));
        let said = self.sallyctl(&["card", "request", "--out", &request])?;
        let hash = said.split_whitespace().last().context("no hash of the request")?;
        let (token, software) = ("root.toml", "--allow-software-keys");
        self.sallyctl(&[
            "ceremony",
            "sign-card",
            &request,
            "--request-hash",
            hash,
            "--token",
            token,
            software,
            "--name",
            name,
            "--serial",
            serial,
            "--export-approvals",
            approvals,
            "--import-approvals",
            approvals,
            "--out",
            &card,
        ])?;
        self.sallyctl(&["card", "install", &card])?;
        fs::rename(self.path(&card), self.path(&format!("{name}.card")))?;
        Ok(())
    }

    /// Pairs with the enclave at `other`, whose officer reads the fingerprint of its card aloud.
    ///
    /// # Errors
    /// When the card or the fingerprint is refused.
    pub fn pair_with(&self, other: &Self) -> Result<()> {
        let card = format!("{}.card", other.name);
        fs::copy(other.path(&card), self.path(&card))?;
        let read_aloud = other.fingerprint(&card)?;
        self.sallyctl(&["peer", "add", &card, "--fingerprint", &read_aloud])?;
        Ok(())
    }

    /// The fingerprint of a card, in words, as an officer reads it to the other one.
    ///
    /// # Errors
    /// When it is no card.
    pub fn fingerprint(&self, card: &str) -> Result<String> {
        let said = self.sallyctl(&["card", "fingerprint", card])?;
        Ok(said.lines().next().context("no fingerprint")?.to_owned())
    }
}

impl Stick {
    /// A new stick, not plugged in anywhere.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        Ok(Self { at: at.to_owned() })
    }

    /// Takes the stick from where it is and plugs it in at `enclave`.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn carry_to(&mut self, enclave: &Enclave) -> Result<()> {
        let there = enclave.desk().path(STICK);
        if there != self.at {
            fs::rename(&self.at, &there)?;
        }
        self.at = there;
        Ok(())
    }

    /// Every byte on the stick.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut folders = vec![self.at.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    bytes.extend(fs::read(path)?);
                }
            }
        }
        Ok(bytes)
    }
}

/// A command as a person would type it.
fn shown(arguments: &[&str]) -> String {
    let mut line = "sallyctl".to_owned();
    for argument in arguments {
        let quote = if argument.contains(' ') { "\"" } else { "" };
        line.push_str(&format!(" {quote}{argument}{quote}"));
    }
    line
}

/// The value that stands after `name` in what `sallyctl` prints.
fn after(name: &str, text: &str) -> Result<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(value.with_context(|| format!("no {name} in:\n{text}"))?.trim().to_owned())
}
