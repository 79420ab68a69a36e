//! `sallyctl update`: what a box's system is updated with, and what its two slots are.

mod make;
mod report;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use sallyport_core::{
    admin::{Approval, Consent, verify},
    cose::KeyId,
    digest::Sha256,
    sign::PublicKey,
    update::{Direction, Manifest, NotAdmitted, Running, Version, entry::Entry},
};
use serde::Serialize;

use crate::{
    approvals::Approvals,
    files,
    output::{self, Output},
    terminal,
    update::{
        apply::{Plan, Step},
        boot::Boot,
        disk::{Access, Disk as _, LocalDisk},
        file::{self, UpdateFile, WholeFile},
        gpt::{Guid, Table},
        ledger::LedgerFile,
        news::News,
        slots::Layout,
        system::{Here, Release, System},
    },
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a signed update file from the parts of an image.
    Make(Box<make::MakeArgs>),
    /// Print the public half of a release key, as the system's list of release keys has it.
    PublicKey {
        /// The key: PKCS#8 in PEM.
        key: PathBuf,
    },
    /// Show what an update file is, and whether every byte of it is what was signed.
    Inspect {
        /// The update file.
        file: PathBuf,
        /// The release keys that are believed, one per line; those of the running system if it is not given.
        #[arg(long, value_name = "FILE")]
        keys: Option<PathBuf>,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Write an update to the slot that does not run. It runs after the next start; if it fails, this version comes back by itself.
    Apply(ApplyArgs),
    /// Show both slots, what starts next, and how the last update ended.
    Status {
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Read both slots to their last block, and hold them against their root hashes.
    Verify {
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Say whether the boot loader started this system to try it: ends with code 0 if it did, and with 1 if not.
    OnTrial {
        /// The other way round.
        #[arg(long)]
        not: bool,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Note that this start came to its health check: the system may start from now on. Run by the box itself.
    Bless {
        /// A file to make when it is done: the box opens when it is there.
        #[arg(long, value_name = "FILE")]
        signal: Option<PathBuf>,
        #[command(flatten)]
        place: PlaceArgs,
    },
}

/// Which system and which disk.
#[derive(Args)]
pub(crate) struct PlaceArgs {
    /// The disk, or an image of one; the one that the running system started from if it is not given.
    #[arg(long, value_name = "DISK")]
    disk: Option<PathBuf>,
    /// The root of the running system's folders.
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    system: PathBuf,
}

#[derive(Args)]
pub(crate) struct ApplyArgs {
    /// The update file; or a folder, in which the newest update is taken, with the approvals that are beside it.
    file: PathBuf,
    /// Verify everything, and write nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    approvals: Approvals,
    #[command(flatten)]
    place: PlaceArgs,
}

/// An update file as it is shown.
#[derive(Serialize)]
struct Shown<'a> {
    manifest: &'a Manifest,
    sha256: Sha256,
    signer: &'a PublicKey,
}

impl Command {
    pub(crate) fn run(self, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Make(args) => args.run(out),
            Self::PublicKey { key } => make::public_key(&key, out),
            Self::Inspect { file, keys, place } => {
                let keys = keys.unwrap_or_else(|| place.system().release_keys());
                let update = read(&file, &file::keys(&keys)?, &Progress::new(out, None))?;
                out.show(
                    &Shown {
                        manifest: update.manifest(),
                        sha256: update.sha256,
                        signer: update.signer(),
                    },
                    |shown| shown.text(),
                )
            }
            Self::Apply(args) => args.run(out),
            Self::Status { place } => report::status(&place, out),
            Self::Verify { place } => report::verify(&place, out),
            Self::OnTrial { not, place } => {
                let on_trial = place.system().is_on_trial()?;
                ensure!(
                    on_trial != not,
                    "this system is {}on trial",
                    if not { "" } else { "not " }
                );
                if on_trial {
                    // The unit that ends a trial runs this first: it is what the console says last.
                    out.note("This start is a trial of a new version.")?;
                }
                Ok(())
            }
            Self::Bless { signal, place } => bless(&place, signal, out),
        }
    }
}

impl PlaceArgs {
    fn system(&self) -> System {
        System(self.system.clone())
    }

    /// The disk that is named, or that the running system started from.
    fn disk(&self, here: &Here) -> anyhow::Result<LocalDisk> {
        match &self.disk {
            Some(path) => LocalDisk::at(path),
            None => LocalDisk::with_partition(&Guid::of_slot(&here.root_hash).0.to_string()),
        }
    }
}

impl ApplyArgs {
    fn run(&self, out: &Output) -> anyhow::Result<()> {
        let system = self.place.system();
        let progress = Progress::new(out, Some(system.clone()));
        let done = self.write(&system, &progress, out);
        let told = match &done {
            Ok(version) => News::written(*version),
            Err(error) => News::refused(error),
        };
        if !self.dry_run {
            told.tell(&system.news(), NEWS)?;
        }
        done.map(drop)
    }

    fn write(
        &self,
        system: &System,
        progress: &Progress<'_>,
        out: &Output,
    ) -> anyhow::Result<Version> {
        let here = system.here()?;
        let (path, approvals) = self.sources()?;
        let update = read(&path, &file::keys(&system.release_keys())?, progress)?;
        let version = update.manifest().version;
        let remembered = LedgerFile::in_folder(&system.state());
        let mut ledger = remembered.read()?;
        let direction = admit(system, &here.release, ledger.floor, &update, &approvals)?;
        let disk = self.place.disk(&here)?;
        let plan = Plan::make(&disk, &update, here, direction)?;
        let slot = plan.slot()?.name;
        if self.dry_run {
            out.note(&format!("Version {version} is genuine and would be written to slot {slot}. Nothing was written."))?;
            return Ok(version);
        }
        plan.carry_out(
            |step, done, all| progress.show(step, done, all),
            || {
                ledger.wrote(update.manifest(), terminal::now());
                remembered.write(&ledger)
            },
        )?;
        out.note(&format!(
            "Version {version} is in slot {slot}, every block was read back, and it is tried at the next start. \
             If it does not come to its health check, version {} comes back by itself.\nStart the box again when nobody minds.",
            here.release.version
        ))?;
        Ok(version)
    }

    /// The file, and the approvals that come with it.
    fn sources(&self) -> anyhow::Result<(PathBuf, Vec<Approval>)> {
        let approvals = self.approvals.read()?;
        if !self.file.is_dir() {
            return Ok((self.file.clone(), approvals));
        }
        let shown = self.file.display();
        let (mut updates, mut strangers) = (Vec::new(), Vec::new());
        let mut beside = Vec::new();
        let found = fs::read_dir(&self.file).with_context(|| format!("cannot list {shown}"))?;
        for path in found.take(FILES_MAX) {
            let path = path.with_context(|| format!("cannot list {shown}"))?.path();
            match path.extension().and_then(OsStr::to_str) {
                Some("update") => match file::open(&path) {
                    Ok((_, update)) => updates.push((update.manifest().version, path)),
                    Err(error) => strangers.push(error),
                },
                Some("approval") => beside.push(path),
                _ => {}
            }
        }
        let Some((_, newest)) = updates.into_iter().max() else {
            let none = || anyhow::anyhow!("{shown} has no update");
            return Err(strangers.pop().unwrap_or_else(none));
        };
        let beside = Approvals::of(beside).read()?;
        Ok((newest, approvals.into_iter().chain(beside).collect()))
    }
}

/// Files that are looked at in a folder.
const FILES_MAX: usize = 100;

/// Whether the box takes it; below the floor with the approval of an officer.
fn admit(
    system: &System,
    release: &Release,
    floor: Version,
    update: &WholeFile,
    approvals: &[Approval],
) -> anyhow::Result<Direction> {
    let running = Running { version: release.version, schema: release.schema, floor };
    match running.admit(update.manifest(), false) {
        Err(NotAdmitted::BelowFloor { .. }) if !approvals.is_empty() => {
            let settings = system.settings()?;
            let consent = Consent::to_downgrade(settings.server_name.clone(), update.sha256);
            verify(approvals, settings.officers(), None, &consent)
                .context("going below the floor is not approved")?;
            Ok(running.admit(update.manifest(), true)?)
        }
        Ok(_) if !approvals.is_empty() => {
            bail!("this update needs no approval: give the command without it")
        }
        answer => Ok(answer?),
    }
}

/// Whether an update that a stick brought is genuine, and one that this box takes with these approvals; its version. Nothing is written.
pub(crate) fn judge(
    path: &Path,
    approvals: &[Approval],
    system: &System,
) -> anyhow::Result<Version> {
    let update = UpdateFile::open(path, &file::keys(&system.release_keys())?)?;
    let update = update.read_through(|_, _| {})?;
    let floor = LedgerFile::in_folder(&system.state()).read()?.floor;
    admit(system, &system.release()?, floor, &update, approvals)?;
    Ok(update.manifest().version)
}

fn read(file: &Path, keys: &[PublicKey], progress: &Progress<'_>) -> anyhow::Result<WholeFile> {
    UpdateFile::open(file, keys)?.read_through(|done, all| progress.show(Step::Reading, done, all))
}

/// Renames the entry that started the running system, settles the ledger, and tells the box that it may open.
fn bless(place: &PlaceArgs, signal: Option<PathBuf>, out: &Output) -> anyhow::Result<()> {
    let system = place.system();
    let here = system.here()?;
    let disk = place.disk(&here)?;
    let mut whole = disk.whole(Access::Write)?;
    let table = Table::read(&mut whole)?;
    // A power cut may have torn one of its copies.
    table.write(&mut whole)?;
    let layout = Layout::of(&table)?;
    layout.sides(&here.root_hash)?;
    let mut boot = Boot::open(disk.partition(&layout.esp.place, Access::Write)?)?;
    let kernels = boot.kernels()?;
    ensure!(
        kernels.iter().any(|kernel| kernel.root_hash == Some(here.root_hash)),
        "the boot partition has no kernel of the running system"
    );
    let others = kernels.iter().filter(|kernel| kernel.root_hash != Some(here.root_hash));
    let others: Vec<Entry> = others.filter_map(|kernel| kernel.entry).collect();
    // Watched only if there is something to fall back to: otherwise a counter would help nobody.
    let watched = others.iter().any(|entry| entry.was_blessed());
    boot.set_entry(&here.root_hash, Entry::blessed(here.release.version, watched))?;
    let remembered = LedgerFile::in_folder(&system.state());
    let mut ledger = remembered.read()?;
    let settled = ledger.settle(&here.root_hash, terminal::now());
    if settled {
        remembered.write(&ledger)?;
    }
    let newest = others.into_iter().max_by_key(|entry| entry.version);
    if let Some(news) = News::of_start(&ledger, settled, newest, here.release.version) {
        news.tell(&system.news(), NEWS)?;
    }
    if let Some(signal) = signal {
        files::replace(&signal, format!("{}\n", here.release.version).as_bytes())?;
    }
    out.note(&format!("Version {} came to its health check and is blessed.", here.release.version))
}

/// The file by which others are told.
const NEWS: &str = "update.json";

/// Shows how far it is: a line per tenth, to people and to the console.
struct Progress<'a> {
    out: &'a Output,
    system: Option<System>,
    shown: std::cell::Cell<Option<(Step, u64)>>,
}

impl<'a> Progress<'a> {
    fn new(out: &'a Output, system: Option<System>) -> Self {
        Self { out, system, shown: std::cell::Cell::new(None) }
    }

    fn show(&self, step: Step, done: u64, all: u64) {
        let tenth = done.saturating_mul(10) / all.max(1);
        if self.shown.replace(Some((step, tenth))) == Some((step, tenth)) {
            return;
        }
        let percent = tenth * 10;
        self.out.progress(&format!("{percent:>3} %  {}", step.words()));
        if let Some(system) = &self.system {
            // Who cannot be told misses nothing but the progress.
            let _ = News::working(step, percent).tell(&system.news(), NEWS);
        }
    }
}

impl Shown<'_> {
    fn text(&self) -> String {
        let Manifest { version, floor, from, built, schema, notes, root_hash, .. } = self.manifest;
        output::pairs(&[
            ("version", version.to_string()),
            ("release", notes.clone()),
            ("built", output::time(*built)),
            ("installs over", format!("{from} and later")),
            ("then refuses", format!("versions before {floor}")),
            ("database", format!("schema {schema}")),
            ("root hash", root_hash.to_string()),
            ("SHA-256", self.sha256.to_string()),
            ("signed by", format!("{} ({})", self.signer, KeyId::of(self.signer))),
            ("genuine", "yes: signature, parts and hash tree were verified".to_owned()),
        ])
    }
}
