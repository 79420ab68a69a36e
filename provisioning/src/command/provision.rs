//! `sallyctl provision`: the document that makes a machine the box of an enclave.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use sallyport_core::{
    admin::Consent,
    cose::KeyId,
    digest::Sha256,
    limits::STICK_PROVISION_BYTES_MAX,
    provision::{self, Code, Document, Provisioned, Token, TokenPin},
};
use sallyport_hsm::Modules;
use serde::Serialize;

use super::approve::Officer;
use crate::{
    approvals::Approvals,
    files,
    output::{self, Output},
    stick::settings::{self, Places, Settings},
};

/// What `sallyctl provision new` makes.
const EXAMPLE: &str = include_str!("../../provision.example.toml");

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make an example of a document, with comments, to be changed.
    New {
        /// Where to write it.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show what a box would make of a document, and whether enough officers signed it.
    Check {
        /// The document.
        file: PathBuf,
        #[command(flatten)]
        approvals: Approvals,
    },
    /// Sign a document with an officer's key. Prints the code that somebody types at the console of a new box: bring it there on paper,
    /// not on the stick.
    Sign {
        /// The document.
        file: PathBuf,
        #[command(flatten)]
        officer: Officer,
    },
    /// Show what is in force on this box, and how it was trusted.
    Status {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// At the start of the machine: write again what follows from the document in force, and the settings of the network.
    Settle {
        #[command(flatten)]
        settings: SettingsArgs,
        /// Where to write the settings of the network for systemd-networkd. An existing file is replaced.
        #[arg(long, value_name = "FILE")]
        network: Option<PathBuf>,
    },
}

/// Where the settings of a box are, and what no document decides.
#[derive(Args)]
pub(crate) struct SettingsArgs {
    /// The folder of the settings.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/sallyport-settings")]
    settings: PathBuf,
    /// The folder of the server's data.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/sallyport")]
    data_dir: PathBuf,
    /// The folder in which the system says which modules it has for tokens.
    #[arg(long, value_name = "FOLDER", default_value = Modules::FOLDER)]
    modules: PathBuf,
    /// The socket at which the token's helper is started.
    #[arg(long, value_name = "SOCKET", default_value = "/run/sallyport-token/helper.sock")]
    token_helper: PathBuf,
}

impl SettingsArgs {
    pub(crate) fn settings(&self, socket: &Path) -> Settings {
        let places = Places {
            data_dir: self.data_dir.clone(),
            socket: socket.to_owned(),
            helper: self.token_helper.clone(),
            modules: Modules::new(&self.modules),
        };
        Settings::new(&self.settings, places)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.settings
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

impl Command {
    pub(crate) fn run(self, socket: &Path, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::New { out: path } => {
                files::write_new(&path, EXAMPLE.as_bytes())?;
                out.note(&format!("An example is in {}: change it.", path.display()))
            }
            Self::Check { file, approvals } => {
                let (document, sha256) = read(&file)?;
                let approvers = if approvals.is_empty() {
                    Vec::new()
                } else {
                    provision::first(&document, sha256, &approvals.read()?)?.names()
                };
                out.show(&Shown::of(&document, sha256, approvers), Shown::text)
            }
            Self::Sign { file, officer } => {
                let (document, sha256) = read(&file)?;
                let consent = Consent::to_provision(document.server_name.clone(), sha256);
                let code = Code::of(&sha256);
                let what = format!(
                    "document {} of {} may be in force. Its SHA-256 is\n{sha256}\n\
                     Write down the code that a new box asks for, and bring it there on paper:\n{code}",
                    document.serial, document.server_name
                );
                officer.approve(&consent, &what, out)
            }
            Self::Status { settings } => {
                let record =
                    settings.settings(socket).read()?.context("this box is not provisioned")?;
                out.show(&InForce::of(&record), InForce::text)
            }
            Self::Settle { settings, network } => {
                let record = settings.settings(socket).settle()?;
                if let (Some(record), Some(path)) = (record, network) {
                    let text = settings::networkd(&record.document().network);
                    fs::write(&path, text)
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
                Ok(())
            }
        }
    }
}

fn read(file: &Path) -> anyhow::Result<(Document, Sha256)> {
    let shown = file.display();
    let text = files::read(file, STICK_PROVISION_BYTES_MAX)?;
    let (document, sha256) =
        Document::parse(&text).with_context(|| format!("{shown} cannot be used"))?;
    Ok((document, sha256))
}

/// What a document says, for people and scripts.
#[derive(Serialize)]
pub(crate) struct Shown {
    serial: u64,
    enclave: String,
    url: String,
    address: String,
    gateway: Option<String>,
    names: Vec<String>,
    officers: Vec<String>,
    provision_approvals: u8,
    recovery_keys: usize,
    token: Option<String>,
    unattended: bool,
    allow_software_keys: bool,
    sha256: Sha256,
    code: String,
    approved_by: Vec<String>,
}

impl Shown {
    pub(crate) fn of(document: &Document, sha256: Sha256, approved_by: Vec<String>) -> Self {
        let officers = &document.officers;
        Self {
            serial: document.serial,
            enclave: document.server_name.to_string(),
            url: document.url(),
            address: document.network.address.to_string(),
            gateway: document.network.gateway.map(|gateway| gateway.to_string()),
            names: document.tls.names.clone(),
            officers: officers.trusted_keys.iter().map(|key| KeyId::of(key).to_string()).collect(),
            provision_approvals: officers.provision_approvals,
            recovery_keys: officers.recovery_keys.len(),
            token: document.token.as_ref().map(token_text),
            unattended: document.unattended,
            allow_software_keys: document.allow_software_keys,
            sha256,
            code: Code::of(&sha256).to_string(),
            approved_by,
        }
    }

    fn text(&self) -> String {
        let mut text = self.pairs();
        if !self.unattended {
            text.push_str(&format!("code for the console of a new box: {}\n", self.code));
        }
        text
    }

    /// As [`Shown::text`], without the code: what a console shows that asks for it.
    pub(crate) fn pairs(&self) -> String {
        let words = |list: &[String], none: &str| {
            if list.is_empty() { none.to_owned() } else { list.join(" ") }
        };
        let network = match &self.gateway {
            Some(gateway) => format!("{}, gateway {gateway}", self.address),
            None => self.address.clone(),
        };
        let mut pairs = vec![
            ("enclave", self.enclave.clone()),
            ("document", format!("{}, SHA-256 {}", self.serial, self.sha256)),
            ("address", self.url.clone()),
            ("network", network),
            ("certificate for", words(&self.names, "the server name alone")),
            (
                "token",
                self.token.clone().unwrap_or_else(|| "NONE: nothing leaves the box".to_owned()),
            ),
            ("officers", words(&self.officers, "NONE")),
            ("changes", format!("need {} of them", self.provision_approvals)),
            ("backups", format!("can be opened by {} keys", self.recovery_keys)),
            ("signed by", words(&self.approved_by, "nobody yet, or not checked")),
        ];
        if self.unattended {
            pairs.push(("UNATTENDED", "a new box takes it from whoever brings it".to_owned()));
        }
        if self.allow_software_keys {
            pairs.push(("SOFTWARE KEYS", "whoever reads the disk may copy the keys".to_owned()));
        }
        output::pairs(&pairs)
    }
}

fn token_text(token: &Token) -> String {
    let pin = match token.pin {
        TokenPin::Ask => "PIN asked for at the console",
        TokenPin::Pad => "PIN typed at the token",
        TokenPin::Sealed => "PIN sealed to the TPM: WHOEVER SWITCHES THE BOX ON HAS IT SIGN",
    };
    match &token.label {
        Some(label) => format!("{} with the label {label}, {pin}", token.kind),
        None => token.kind.to_string(),
    }
}

/// What is in force.
#[derive(Serialize)]
struct InForce {
    #[serde(flatten)]
    shown: Shown,
    since: sallyport_core::time::Millis,
    trust: provision::Trust,
}

impl InForce {
    fn of(record: &Provisioned) -> Self {
        let shown = Shown::of(record.document(), record.sha256(), record.approvers().names());
        Self { shown, since: record.at(), trust: record.trust() }
    }

    fn text(&self) -> String {
        let more =
            [("since", output::time(self.since)), ("trust", self.trust.meaning().to_owned())];
        format!("{}{}", self.shown.pairs(), output::pairs(&more))
    }
}
