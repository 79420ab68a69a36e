//! `sallyctl roster`: from the personnel office's list to accounts on the box.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use http::Method;
use ruma::OwnedServerName;
use sallyport_core::{
    admin::{RosterImported, RosterReport, path},
    cose::KeyId,
    limits::ROSTER_BYTES_MAX,
    roster::{Head, Mode, Problems, Roster, csv, scim, signed},
    sign::{KeyRole, PublicKey},
};
use sallyport_hsm::KeyName;
use serde::Serialize;

use super::signer::TokenArgs;
use crate::{
    approvals::Approvals,
    client::Box as TheBox,
    files,
    output::{self, Output},
    terminal,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Turn a list (CSV, or SCIM 2.0 JSON) into a roster that can be signed; reports every mistake by line.
    Make(MakeArgs),
    /// Sign a roster with an officer's key.
    Sign(SignArgs),
    /// Show what a roster says, and verify its signature.
    Check {
        /// A roster, signed or not.
        file: PathBuf,
        /// An officer's public key, as `ceremony officer-key` printed it; may be given several times.
        #[arg(long, value_name = "KEY")]
        officer_key: Vec<PublicKey>,
    },
    /// Ask the box what a roster would change, without changing anything.
    DryRun {
        /// A signed roster.
        file: PathBuf,
    },
    /// Import a roster: create, change and lock accounts.
    Import(ImportArgs),
}

#[derive(Args)]
pub(crate) struct MakeArgs {
    /// The list. CSV needs a first line with the names of the columns:
    /// localpart,display_name,unit,clearance,active,home_enclave,moved_from,moved_to,cert_sha256,external_id
    /// (only localpart must be there).
    list: PathBuf,
    /// Server name of the enclave.
    #[arg(long, value_name = "NAME")]
    enclave: OwnedServerName,
    /// Number of this roster; higher than that of the last one.
    #[arg(long)]
    serial: u64,
    /// Clearance levels, lowest first, separated by commas.
    #[arg(long, value_name = "LEVELS", value_delimiter = ',')]
    levels: Vec<String>,
    /// The CSV names only the accounts that change; without it, accounts that are absent are locked.
    #[arg(long)]
    delta: bool,
    /// Where to write the roster.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
pub(crate) struct SignArgs {
    /// The roster.
    file: PathBuf,
    #[command(flatten)]
    token: TokenArgs,
    /// The officer's key, if the token has several.
    #[arg(long, value_name = "NAME")]
    key: Option<KeyName>,
    /// Where to write the result.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// A signed roster.
    file: PathBuf,
    /// Where to write the activation codes of new accounts, for `sallyctl codes print`.
    #[arg(long, value_name = "FILE")]
    codes: PathBuf,
    #[command(flatten)]
    approvals: Approvals,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Make(args) => make(&args, out),
            Self::Sign(args) => sign(&args, out),
            Self::Check { file, officer_key } => check(&file, &officer_key, out),
            Self::DryRun { file } => dry_run(&file, the_box, out),
            Self::Import(args) => import(&args, the_box, out),
        }
    }
}

fn make(args: &MakeArgs, out: &Output) -> anyhow::Result<()> {
    let list = files::read(&args.list, ROSTER_BYTES_MAX)?;
    let head = Head {
        enclave: args.enclave.clone(),
        serial: args.serial,
        mode: if args.delta { Mode::Delta } else { Mode::Full },
        issued_at: terminal::now(),
        levels: args.levels.clone(),
    };
    let is_json = list.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let roster = if is_json { scim::parse(&list, head) } else { csv::parse(&list, head) }
        .map_err(|problems| faulty(&args.list, &problems))?;
    let json = serde_json::to_vec_pretty(&roster).context("cannot write the roster")?;
    files::write_new(&args.out, &json)?;
    out.show(&Summary::of(&roster, None), Summary::text)
}

fn sign(args: &SignArgs, out: &Output) -> anyhow::Result<()> {
    let roster = unsigned(&files::read(&args.file, ROSTER_BYTES_MAX)?, &args.file)?;
    let signer = args.token.open(roster.head.enclave.clone())?;
    let (name, key) = signer.key(KeyRole::Officer, args.key.as_ref())?;
    let file = signed::sign(&roster, &key, |request| signer.sign(&name, &request))
        .context("the roster was not signed")?;
    files::write_new(&args.out, &file)?;
    out.show(&Summary::of(&roster, Some(format!("key {}", KeyId::of(&key)))), Summary::text)
}

fn check(file: &Path, officers: &[PublicKey], out: &Output) -> anyhow::Result<()> {
    let bytes = files::read(file, ROSTER_BYTES_MAX)?;
    let summary = if looks_signed(&bytes) {
        let parsed = signed::RosterFile::parse(&bytes)?;
        let key_id = parsed.key_id();
        if officers.is_empty() {
            let statement = parsed.statement();
            let signature = format!("key {key_id}, NOT VERIFIED: give --officer-key");
            Summary::new(&statement.head, statement.accounts, statement.locks, Some(signature))
        } else {
            let roster = parsed.verify(officers)?.roster;
            Summary::of(&roster, Some(format!("key {key_id}, verified")))
        }
    } else {
        Summary::of(&unsigned(&bytes, file)?, None)
    };
    out.show(&summary, Summary::text)
}

fn dry_run(file: &Path, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
    let bytes = files::read(file, ROSTER_BYTES_MAX)?;
    let report: RosterReport =
        the_box.send_bytes(Method::POST, path::ROSTER_DRY_RUN, vec![], &[], bytes)?;
    out.show(&report, |report| {
        format!("{}Nothing was changed: this was a dry run.\n", report_text(report))
    })
}

fn import(args: &ImportArgs, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
    let bytes = files::read(&args.file, ROSTER_BYTES_MAX)?;
    let approvals = args.approvals.read()?;
    // Before the import: the box gives the codes only once.
    let mut codes = files::create_secret(&args.codes)?;
    let imported: anyhow::Result<RosterImported> =
        the_box.send_bytes(Method::POST, path::ROSTER, approvals, &[], bytes);
    let imported = match imported {
        Ok(imported) => imported,
        Err(error) => {
            drop(codes);
            std::fs::remove_file(&args.codes).context("cannot remove the empty file of codes")?;
            return Err(error);
        }
    };
    let json = serde_json::to_vec_pretty(&imported.codes).context("cannot write the codes")?;
    codes.write_all(&json).and_then(|()| codes.sync_all()).with_context(|| {
        let shown = args.codes.display();
        format!("accounts were made, but their codes cannot be written to {shown}: renew them with `sallyctl codes renew --all-waiting`")
    })?;
    let count = imported.codes.len();
    out.show(&imported.report, |report| {
        let codes = args.codes.display();
        format!("{}Imported. {count} activation codes are in {codes}.\n", report_text(report))
    })
}

/// What a report says, for people.
pub(super) fn report_text(report: &RosterReport) -> String {
    let head = &report.head;
    let mut text = output::pairs(&[
        ("enclave", head.enclave.to_string()),
        (
            "roster",
            format!("{} ({}), made {}", head.serial, head.mode, output::time(head.issued_at)),
        ),
        ("signed by", format!("key {}", report.signer)),
        ("changes", report.counts.to_string()),
        ("unchanged", report.counts.unchanged.to_string()),
    ]);
    if !report.locked.is_empty() {
        let names: Vec<&str> = report.locked.iter().map(|name| name.as_str()).collect();
        let more = report.counts.locked.saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text.push_str(&format!("to be locked: {}{more}\n", names.join(", ")));
    }
    if let Some(stop) = report.mass_lock {
        text.push_str(&format!("HELD BACK: {stop}.\n"));
    }
    text
}

/// What a roster file says.
#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    head: Head,
    accounts: usize,
    locks: usize,
    signature: Option<String>,
}

impl Summary {
    fn new(head: &Head, accounts: usize, locks: usize, signature: Option<String>) -> Self {
        Self { head: head.clone(), accounts, locks, signature }
    }

    fn of(roster: &Roster, signature: Option<String>) -> Self {
        Self::new(&roster.head, roster.accounts.len(), roster.locks.len(), signature)
    }

    fn text(&self) -> String {
        let head = &self.head;
        let levels =
            if head.levels.is_empty() { "none".to_owned() } else { head.levels.join(" < ") };
        output::pairs(&[
            ("enclave", head.enclave.to_string()),
            ("serial", head.serial.to_string()),
            ("mode", head.mode.to_string()),
            ("made", output::time(head.issued_at)),
            ("levels", levels),
            ("accounts", self.accounts.to_string()),
            ("locks", self.locks.to_string()),
            ("signature", self.signature.clone().unwrap_or_else(|| "none yet".to_owned())),
        ])
    }
}

/// An unsigned roster, checked as if it came from a stranger: somebody may have edited it.
fn unsigned(bytes: &[u8], file: &Path) -> anyhow::Result<Roster> {
    let shown = file.display();
    if looks_signed(bytes) {
        bail!("{shown} is signed already");
    }
    let roster: Roster = serde_json::from_slice(bytes).with_context(|| {
        format!("{shown} is not a roster: make one with `sallyctl roster make`")
    })?;
    Roster::decode(roster.head.clone(), &roster.encode())
        .with_context(|| format!("{shown} is not sound"))
}

/// JSON begins with a brace, a signed roster with the head of a CBOR array.
fn looks_signed(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x83)
}

fn faulty(file: &Path, problems: &Problems) -> anyhow::Error {
    anyhow::anyhow!("{} has mistakes; no roster was made\n{problems}", file.display())
}
