//! Gate 2: judges what lies in quarantine, and has the box do what officers approved.
//!
//! A box that is not provisioned takes a provisioning document and then, once its server answers, everything else. One that is takes
//! rosters, certificates, bundles and orders, and a changed document last, because the server starts again with it. What is refused
//! is refused alone: the rest is done, and the result says what is missing.

mod approvals;
mod bundles;
mod cards;
mod confirm;
mod orders;
mod provisioning;
mod restoring;
mod rosters;

use std::{
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use http::Method;
use sallyport_core::{
    admin::{CertificateStatus, Status, path},
    limits::CERTIFICATES_BYTES_MAX,
    provision::Provisioned,
};
use sallyport_hsm::sandbox::{self, Calls, Enforced, Files};

use self::approvals::Lying;
use super::{
    Folder, OUT,
    inventory::{self, Brought, Inventory},
    restore,
    settings::Settings,
    state::{Phase, Report, StateFile},
};
use crate::{
    approvals::Approvals,
    client::{self, Box as TheBox},
    command::{provision::SettingsArgs, update},
    files,
    output::Output,
    update::system::System,
};

/// How often we ask whether the server answers.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// What gate 2 is told.
#[derive(Args)]
pub(crate) struct ApplyArgs {
    /// The quarantine, a folder.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) quarantine: PathBuf,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Where to tell the console how it goes.
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// The code of the first provisioning document, as the officers' machine printed it.
    #[arg(long, value_name = "CODE", conflicts_with = "ask")]
    pub(crate) confirm: Option<String>,
    /// Ask for that code at the console: the question goes into the state, the answer comes through a named pipe beside it.
    #[arg(long, requires = "state")]
    pub(crate) ask: bool,
    /// How many seconds the server of a new box may take until it answers.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) wait: u64,
    /// The folder of the machine's journal, for orders that ask for it.
    #[arg(long, value_name = "FOLDER", default_value = crate::journal::FOLDER)]
    pub(crate) journal: PathBuf,
}

/// Something on the stick was not done.
#[derive(Debug, thiserror::Error)]
#[error("something on the stick was refused: {0} says what and why")]
pub(crate) struct SomethingRefused(String);

/// Does what the quarantine asks for. The result lies in its folder `out` afterwards, whatever came of it.
pub(crate) fn apply(args: &ApplyArgs, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
    let state = StateFile::new(args.state.clone());
    let mut folders = vec![args.quarantine.clone(), args.settings.folder().to_owned()];
    folders.extend(args.state.as_deref().and_then(Path::parent).map(Path::to_owned));
    confine(&folders, out)?;
    let inventory = Inventory::read(&args.quarantine)?;
    let settings = args.settings.settings(the_box.socket());
    let mut report = Report::default();
    // The backups that a grant opens are copied once it was judged.
    let has_grant = inventory.of(Folder::Provision, "grant").next().is_some();
    state.tell(Phase::Applying, !inventory.takes_files() && !has_grant, false, &[])?;
    let gate = Gate { args, the_box, inventory: &inventory, settings: &settings, state: &state };
    let record = gate.settle(&mut report)?;
    if let Some(record) = &record {
        gate.serve(record, &mut report);
    }
    if report.lines().is_empty() {
        report.done("There is nothing for this box on the stick.");
    }
    for left in &inventory.left {
        report.done(format!("Left alone: {}: {}", left.name, left.why));
    }
    let enclave = record.as_ref().map(|record| record.document().server_name.to_string());
    report.write(&args.quarantine, enclave.as_deref())?;
    let text: String = report.lines().iter().map(|line| format!("{line}\n")).collect();
    out.raw(&text)?;
    // One that is marked for it is written to next: nobody may pull it out now.
    let (phase, safe) = match inventory.takes_files() {
        true => (Phase::Writing, false),
        false if restore::is_wanted(&args.quarantine) => (Phase::Reading, false),
        false => (Phase::Done, true),
    };
    state.tell(phase, safe, report.has_refused(), report.lines())?;
    if report.has_refused() {
        let result = args.quarantine.join(OUT).join(super::RESULT);
        return Err(SomethingRefused(result.display().to_string()).into());
    }
    Ok(())
}

/// Leaves this process the right to write into these folders, and no way into a network.
pub(super) fn confine(folders: &[PathBuf], out: &Output) -> anyhow::Result<()> {
    for folder in folders {
        ensure!(folder.is_dir(), "{} is not a folder", folder.display());
    }
    let files = Files { reading_too: false, folders, devices: None };
    let enforced = sandbox::settle().and_then(|()| sandbox::confine_files(&files));
    if enforced.context("cannot enter the sandbox")? == Enforced::NotAtAll {
        out.note("WARNING: this kernel has no landlock; this program could write to other files.")?;
    }
    sandbox::confine_calls(Calls::Most { network: false }).context("cannot enter the sandbox")
}

/// Everything that judging needs.
struct Gate<'a> {
    args: &'a ApplyArgs,
    the_box: &'a TheBox,
    inventory: &'a Inventory,
    settings: &'a Settings,
    state: &'a StateFile,
}

impl Gate<'_> {
    /// What is in force, after a first document if the stick has one.
    fn settle(&self, report: &mut Report) -> anyhow::Result<Option<Provisioned>> {
        if let Some(record) = self.settings.settle()? {
            return Ok(Some(record));
        }
        if self.restores(report) {
            return Ok(None);
        }
        match self.provision() {
            Ok(record) => {
                self.withdraw_request()?;
                let document = record.document();
                report.done(format!(
                    "This is the box of {} now, by document {} ({}).",
                    document.server_name,
                    document.serial,
                    record.trust().meaning()
                ));
                Ok(Some(record))
            }
            Err(why) => {
                report.refused("provisioning", &why);
                Ok(None)
            }
        }
    }

    /// Everything that a provisioned box does.
    fn serve(&self, record: &Provisioned, report: &mut Report) {
        let wants_box = self.inventory.files.iter().any(|file| {
            !matches!(file.folder, Folder::Provision | Folder::Update | Folder::Backup)
                && file.kind != "approval"
        });
        if wants_box {
            match self.wait_for_box() {
                Ok(status) => {
                    self.rosters(&status, report);
                    self.certificates(report);
                    self.cards(record, &status, report);
                    self.bundles(&status, report);
                    self.orders(record, &status, report);
                }
                Err(why) => report.refused("everything but the provisioning", &why),
            }
        }
        self.updates(report);
        self.change(record, report);
    }

    /// Updates are written by a service of their own once the gates are closed; here it is said whether they will be.
    fn updates(&self, report: &mut Report) {
        let quarantine = &self.args.quarantine;
        let beside = self.inventory.of(Folder::Update, "approval");
        let beside = Approvals::of(beside.map(|file| file.path(quarantine)).collect());
        for file in self.inventory.of(Folder::Update, "update") {
            let judged = beside.read().and_then(|approvals| {
                update::judge(&file.path(quarantine), &approvals, &System(PathBuf::from("/")))
            });
            match judged {
                Ok(version) => report.done(format!(
                    "{}: version {version} is genuine; it is written to the slot that does not run, and the console says when it is there",
                    file.shown()
                )),
                Err(why) => report.refused(&file.shown(), &why),
            }
        }
    }

    /// The server of a new box takes a while.
    fn wait_for_box(&self) -> anyhow::Result<Status> {
        let patience = Instant::now() + Duration::from_secs(self.args.wait);
        loop {
            let asked: anyhow::Result<Status> = self.the_box.ask(path::STATUS);
            let Err(error) = asked else { return asked };
            let away = matches!(error.downcast_ref(), Some(client::Error::Unreachable { .. }));
            if !away || Instant::now() >= patience {
                return Err(error);
            }
            sleep(ASK_EVERY);
        }
    }

    /// A chain that a higher CA gave for the enclave's.
    fn certificates(&self, report: &mut Report) {
        for file in self.inventory.of(Folder::Config, "pem") {
            let install = || {
                let chain = self.content(file, CERTIFICATES_BYTES_MAX)?;
                let _: CertificateStatus =
                    self.the_box.send_bytes(Method::PUT, path::CERTIFICATE, vec![], &[], chain)?;
                Ok(vec![format!("{}: a higher CA vouches for the enclave's now.", file.shown())])
            };
            report.note(&file.shown(), install());
        }
    }

    fn content(&self, file: &Brought, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
        let path = file.path(&self.args.quarantine);
        files::read_all(files::open_foreign(&path)?, &path, bytes_max)
    }

    /// The approvals that lie in a folder of the stick.
    fn lying(&self, folder: Folder, report: &mut Report) -> Lying {
        Lying::read(self, folder, report)
    }

    /// A folder for what goes onto the stick.
    fn outgoing(&self, folder: Folder) -> anyhow::Result<PathBuf> {
        if !self.inventory.marked_out {
            bail!("make a folder SALLYPORT/OUT on the stick if the box may write to it");
        }
        if !self.inventory.takes_files() {
            bail!("the box writes to FAT32 only: format the stick as FAT32");
        }
        let path = self.args.quarantine.join(OUT).join(folder.name());
        if !path.is_dir() {
            inventory::make_folder(&path).context("cannot make a folder in the quarantine")?;
        }
        Ok(path)
    }
}
