//! `sallyctl approve`: an officer's signature for one command that somebody else gives.
//!
//! It needs the officer's token and the thing itself, and no box: what is shown here is read from the file, on a machine
//! that the officer trusts.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use ruma::OwnedServerName;
use sallyport_core::{
    admin::Consent,
    digest::Sha256,
    incarnation::Incarnation,
    limits::{CARD_BYTES_MAX, ROSTER_BYTES_MAX, STICK_ORDER_BYTES_MAX},
    provision,
    roster::signed::RosterFile,
    sign::KeyRole,
};
use sallyport_hsm::KeyName;

use super::{bundle::Inspected, card, signer::TokenArgs};
use crate::{files, output::Output, terminal};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Approve that a roster locks unusually many accounts. Not for the officer who signed it.
    Roster {
        /// The signed roster.
        file: PathBuf,
        #[command(flatten)]
        officer: Officer,
    },
    /// Approve one export: the bundle of this number for this peer. The box prints the whole command when approvals are missing.
    Export {
        /// Server name of the peer.
        peer: OwnedServerName,
        /// Server name of the enclave that exports.
        #[arg(long, value_name = "NAME")]
        enclave: OwnedServerName,
        /// The life of the box's database, 32 digits: an approval does not outlive a restore from a backup.
        #[arg(long, value_name = "DIGITS")]
        incarnation: Incarnation,
        /// Number of the bundle.
        #[arg(long)]
        number: u64,
        #[command(flatten)]
        officer: Officer,
    },
    /// Approve the import of a bundle. Look at it first: `sallyctl bundle inspect`.
    Import {
        /// The bundle.
        file: PathBuf,
        #[command(flatten)]
        officer: Officer,
    },
    /// Approve pairing with the enclave of a card. Its officer reads the fingerprint to you, over the telephone or in person; you type
    /// what you hear.
    Peer {
        /// The peer's pairing card.
        file: PathBuf,
        /// The fingerprint that the peer's officer read aloud: eight words, or all 64 digits.
        #[arg(long, value_name = "WORDS")]
        fingerprint: String,
        /// Server name of the enclave that pairs with it.
        #[arg(long, value_name = "NAME")]
        enclave: OwnedServerName,
        #[command(flatten)]
        officer: Officer,
    },
    /// Approve an order about the box's own keys: rotation, hand-over or destruction. The box prints the whole command.
    Keys {
        /// The keys that the order ends, as `sallyctl hsm status` names them.
        #[arg(required = true)]
        keys: Vec<KeyName>,
        /// What becomes of them.
        #[arg(long, value_parser = ["key.rotate", "key.hand-over", "key.destroy"])]
        action: String,
        /// Server name of the enclave.
        #[arg(long, value_name = "NAME")]
        enclave: OwnedServerName,
        /// The life of the box's database, 32 digits: an approval does not outlive a restore from a backup.
        #[arg(long, value_name = "DIGITS")]
        incarnation: Incarnation,
        #[command(flatten)]
        officer: Officer,
    },
    /// Approve that a version of the system is installed which is older than the box still takes. Look at it first: `sallyctl update inspect`.
    Update {
        /// The update.
        file: PathBuf,
        /// Server name of the enclave whose box it is for.
        #[arg(long, value_name = "NAME")]
        enclave: OwnedServerName,
        #[command(flatten)]
        officer: Officer,
    },
    /// Approve an order for activation codes, logs or a backup on a stick.
    Order {
        /// The order.
        file: PathBuf,
        #[command(flatten)]
        officer: Officer,
    },
    /// Approve that an enclave's own card is installed.
    Card {
        /// The card.
        file: PathBuf,
        #[command(flatten)]
        officer: Officer,
    },
}

/// Who approves, and where the approval goes.
#[derive(Args)]
pub(crate) struct Officer {
    #[command(flatten)]
    token: TokenArgs,
    /// The officer's key, if the token has several.
    #[arg(long, value_name = "NAME")]
    key: Option<KeyName>,
    /// Where to write the approval. Bring it to whoever gives the command.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Command {
    pub(crate) fn run(self, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Roster { file, officer } => {
                let bytes = files::read(&file, ROSTER_BYTES_MAX)?;
                let roster = RosterFile::parse(&bytes)?;
                let head = &roster.statement().head;
                let consent = Consent::to_mass_lock(head.enclave.clone(), roster.subject());
                let what = format!("roster {} may lock unusually many accounts.", head.serial);
                officer.approve(&consent, &what, out)
            }
            Self::Export { peer, enclave, incarnation, number, officer } => {
                let what = format!("bundle {number} of {enclave} for {peer} may be exported.");
                let consent = Consent::to_export(enclave, incarnation, &peer, number);
                officer.approve(&consent, &what, out)
            }
            Self::Import { file, officer } => {
                let bundle = Inspected::read(&file)?;
                let Inspected { sequence, from, to, sha256, .. } = &bundle;
                let what = format!(
                    "bundle {sequence} of {from} for {to} may be imported. Its SHA-256 is\n{sha256}"
                );
                officer.approve(&Consent::to_import(to.clone(), *sha256), &what, out)
            }
            Self::Peer { file, fingerprint, enclave, officer } => {
                let card = card::read(&file)?;
                let peer = card.content().server_name.clone();
                ensure!(
                    peer != enclave,
                    "this is {enclave}'s own card: use `sallyctl approve card`"
                );
                card.confirm(&fingerprint)?;
                let what = format!("{enclave} may pair with {peer}.");
                officer.approve(&Consent::to_pairing(enclave, hash_of_card(&file)?), &what, out)
            }
            Self::Keys { keys, action, enclave, incarnation, officer } => {
                let names: Vec<_> = keys.iter().map(ToString::to_string).collect();
                let what = format!("{action} of {} in {enclave}.", names.join(", "));
                let consent = Consent::to_keys(enclave, incarnation, &action, &names);
                officer.approve(&consent, &what, out)
            }
            Self::Update { file, enclave, officer } => {
                let (_, update) = crate::update::file::open(&file)?;
                let (sha256, _) = files::hash(files::open_foreign(&file)?, &file)?;
                let version = update.manifest().version;
                let what = format!(
                    "version {version} may be installed in {enclave} although it is older than the box still takes. \
                     Its SHA-256 is\n{sha256}"
                );
                officer.approve(&Consent::to_downgrade(enclave, sha256), &what, out)
            }
            Self::Order { file, officer } => {
                let text = files::read(&file, STICK_ORDER_BYTES_MAX)?;
                let (order, sha256) = provision::Order::parse(&text)?;
                ensure!(order.needs_officer(), "this order needs no approval");
                let what = format!("{} may do what {} says.", order.enclave, file.display());
                officer.approve(&Consent::to_take_out(order.enclave, sha256), &what, out)
            }
            Self::Card { file, officer } => {
                let card = card::read(&file)?;
                let (enclave, serial) = (&card.content().server_name, card.content().serial);
                let what = format!("card {serial} of {enclave} may be installed.");
                let consent = Consent::to_own_card(enclave.clone(), hash_of_card(&file)?);
                officer.approve(&consent, &what, out)
            }
        }
    }
}

fn hash_of_card(file: &Path) -> anyhow::Result<Sha256> {
    Ok(Sha256::of(&files::read(file, CARD_BYTES_MAX)?))
}

impl Officer {
    pub(super) fn approve(
        &self,
        consent: &Consent,
        what: &str,
        out: &Output,
    ) -> anyhow::Result<()> {
        let signer = self.token.open(consent.enclave.clone())?;
        let (name, key) = signer.key(KeyRole::Officer, self.key.as_ref())?;
        let approval = consent
            .sign(terminal::now(), &key, |request| signer.sign(&name, &request))
            .context("the approval was not signed")?;
        files::write_new(&self.out, format!("{}\n", approval.as_text()).as_bytes())?;
        out.note(&format!("Approved: {what}"))
    }
}
