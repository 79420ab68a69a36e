//! `sallyctl stick`: files on a USB stick.
//!
//! On the box `read`, `apply` and `write` are the two gates of [`crate::stick`]. At a desk, where the desk's own system mounts the stick,
//! `write`, `list` and `import` work on the folder where it is mounted:
//!
//! A stick holds a folder `SALLYPORT` with `ROSTER`, `CARDS` and `BUNDLES`. Names on a stick are chosen by this program
//! from the content, and only such names are looked at: nothing that a stranger wrote there is ever used as a path.
//! Only regular files of bounded size are read, and never through a link.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use http::Method;
use sallyport_core::{
    admin::{Approval, Consent, RosterImported, Status, path},
    backup::BackupId,
    bundle::{Header, unverified_header},
    card::Card,
    digest::Sha256,
    limits::{BACKUP_PART_BYTES_MAX, CARD_BYTES_MAX, ROSTER_BYTES_MAX, STICK_BYTES_MAX},
    roster::signed::RosterFile,
};
use serde::Serialize;

use super::{
    bundle::{self, Inspected},
    roster,
};
use crate::{
    approvals::Approvals,
    client::Box as TheBox,
    files,
    output::{self, Output},
    stick::{
        apply::{self, ApplyArgs},
        backup, read,
        restore::{self, FinishArgs},
        run::{self, RunArgs},
        state::StateFile,
        write,
    },
};

const FOLDER: &str = "SALLYPORT";
/// Files that are looked at in a folder of a stick.
const FILES_MAX: usize = 1000;
/// Bytes of a file from which its name is made: the header of a bundle, which is unique, lies in them.
const NAMING_BYTES: u64 = 64 * 1024;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Put files on a stick that is mounted; or, with --device, what lies in quarantine on one that is not.
    Write(WriteArgs),
    /// Gate 2: judge what lies in quarantine, and have the box do what officers approved.
    Apply(ApplyArgs),
    /// All of it: read a stick, do what it asks for, and write to it if it has a folder SALLYPORT/OUT.
    Run(RunArgs),
    /// Say no more of a stick that is gone.
    Forget {
        /// Where the console was told of it.
        #[arg(long, value_name = "FILE")]
        state: PathBuf,
    },
    /// Gate 1: copy what is known from a stick into quarantine, without the kernel's file systems and without a network.
    Read {
        /// The stick: a device, or an image of one.
        #[arg(long, value_name = "DEVICE")]
        device: PathBuf,
        /// The quarantine, a folder. It is emptied first.
        #[arg(long, value_name = "FOLDER")]
        quarantine: PathBuf,
        /// How many bytes the files may have together.
        #[arg(long, value_name = "BYTES", default_value_t = STICK_BYTES_MAX)]
        bytes_max: u64,
    },
    /// The box's end of the pipe through which a backup gets onto a stick.
    #[command(hide = true)]
    SendBackup {
        /// The newest on the stick.
        #[arg(long, value_name = "ID")]
        since: Option<BackupId>,
        /// Where to tell the console how it goes.
        #[arg(long, value_name = "FILE")]
        state: Option<PathBuf>,
    },
    /// The stick's end of that pipe.
    #[command(hide = true)]
    TakeBackup {
        /// The stick: a device, or an image of one.
        #[arg(long, value_name = "DEVICE")]
        device: PathBuf,
        /// Bytes of a file at most; what is larger comes in parts.
        #[arg(long, value_name = "BYTES", default_value_t = BACKUP_PART_BYTES_MAX)]
        part_bytes: u64,
    },
    /// Gate 1 for a machine that is restored: copy the backups that its grant opens into quarantine.
    #[command(hide = true)]
    CopyBackups {
        /// The stick: a device, or an image of one.
        #[arg(long, value_name = "DEVICE")]
        device: PathBuf,
        /// The quarantine, a folder.
        #[arg(long, value_name = "FOLDER")]
        quarantine: PathBuf,
    },
    /// Put what such backups hold into place.
    #[command(hide = true)]
    Restore(FinishArgs),
    /// List what is on a stick.
    List {
        /// Where the stick is mounted.
        stick: PathBuf,
    },
    /// Import the rosters and bundles of a stick. Pairing cards are only listed: they need a fingerprint, see `peer add`.
    Import {
        /// Where the stick is mounted.
        stick: PathBuf,
        /// Folder for the activation codes of new accounts; not on the stick.
        #[arg(long, value_name = "FOLDER")]
        codes: PathBuf,
        #[command(flatten)]
        approvals: Approvals,
    },
}

#[derive(Args)]
pub(crate) struct WriteArgs {
    /// Where the stick is mounted.
    #[arg(required_unless_present = "device")]
    stick: Option<PathBuf>,
    /// The stick: a device, or an image of one. It must have a folder SALLYPORT/OUT.
    #[arg(long, requires = "from", conflicts_with_all = ["stick", "roster", "card", "bundle"])]
    device: Option<PathBuf>,
    /// The quarantine, of which everything in the folder `out` is written to the device.
    #[arg(long, value_name = "FOLDER", requires = "device")]
    from: Option<PathBuf>,
    /// A signed roster; may be given several times, like the others.
    #[arg(long, value_name = "FILE")]
    roster: Vec<PathBuf>,
    /// A pairing card.
    #[arg(long, value_name = "FILE")]
    card: Vec<PathBuf>,
    /// A bundle.
    #[arg(long, value_name = "FILE")]
    bundle: Vec<PathBuf>,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Write(WriteArgs { device: Some(device), from: Some(from), .. }) => {
                write::write(&device, &from, out)
            }
            Self::Write(args) => put_all(&args, out),
            Self::Apply(args) => apply::apply(&args, the_box, out),
            Self::SendBackup { since, state } => backup::send(since, state, the_box, out),
            Self::TakeBackup { device, part_bytes } => backup::take(&device, part_bytes, out),
            Self::CopyBackups { device, quarantine } => restore::copy(&device, &quarantine, out),
            Self::Restore(args) => restore::finish(&args, the_box.socket(), out),
            Self::Forget { state } => StateFile::new(Some(state)).forget(),
            Self::Run(args) => run::run(&args, the_box, out),
            Self::Read { device, quarantine, bytes_max } => {
                read::read(&device, &quarantine, bytes_max, out)
            }
            Self::List { stick } => {
                let found = all(&stick)?;
                out.show(&found, |found| table(found))
            }
            Self::Import { stick, codes, approvals } => {
                import(&stick, &codes, &approvals, the_box, out)
            }
        }
    }
}

/// The kinds of files on a stick.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Roster,
    Card,
    Bundle,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Roster, Self::Card, Self::Bundle];

    fn folder(self) -> &'static str {
        match self {
            Self::Roster => "ROSTER",
            Self::Card => "CARDS",
            Self::Bundle => "BUNDLES",
        }
    }

    fn prefix_and_extension(self) -> (&'static str, &'static str) {
        match self {
            Self::Roster => ("SNR-", ".snr"),
            Self::Card => ("SNC-", ".snc"),
            Self::Bundle => ("SNB-", ".snb"),
        }
    }

    /// `SNB-` and its like, 16 hexadecimal digits, and the extension.
    fn has_name(self, name: &str) -> bool {
        let (prefix, extension) = self.prefix_and_extension();
        let id = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(extension));
        id.is_some_and(|id| {
            id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    }

    fn name_of(self, file: &mut File) -> io::Result<String> {
        let mut start = Vec::new();
        io::Read::take(&mut *file, NAMING_BYTES).read_to_end(&mut start)?;
        file.rewind()?;
        let length = file.metadata()?.len();
        let hash = Sha256::of_parts(&[&start, &length.to_be_bytes()]).to_string();
        let (prefix, extension) = self.prefix_and_extension();
        Ok(format!("{prefix}{hash:.16}{extension}"))
    }
}

/// The name of a bundle on sticks.
pub(crate) fn bundle_name(path: &Path) -> anyhow::Result<String> {
    let mut file = files::open_foreign(path)?;
    Kind::Bundle.name_of(&mut file).with_context(|| format!("cannot read {}", path.display()))
}

fn put_all(args: &WriteArgs, out: &Output) -> anyhow::Result<()> {
    let stick = args.stick.as_deref().context("no stick is named")?;
    let wanted =
        [(Kind::Roster, &args.roster), (Kind::Card, &args.card), (Kind::Bundle, &args.bundle)];
    ensure!(
        wanted.iter().any(|(_, files)| !files.is_empty()),
        "nothing to write: name files with --roster, --card or --bundle"
    );
    for (kind, paths) in wanted {
        for path in paths {
            let name = put(stick, kind, path)?;
            out.note(&format!("{} is on the stick as {name}", path.display()))?;
        }
    }
    out.note("Everything is written. Unmount the stick before you pull it out.")
}

/// Copies one file; half a copy never has a name that is looked at.
fn put(stick: &Path, kind: Kind, path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    describe(kind, path).with_context(|| format!("{shown} does not belong on a stick"))?;
    let mut source = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let name = kind.name_of(&mut source).with_context(|| format!("cannot read {shown}"))?;
    let folder = folder(stick, kind, true)?.context("the stick cannot be written")?;
    let (part, whole) = (folder.join("UNFINISHED"), folder.join(&name));
    if part.symlink_metadata().is_ok() {
        fs::remove_file(&part)
            .context("cannot remove what an earlier attempt left on the stick")?;
    }
    let mut target = files::create_secret(&part)?;
    let copied = io::copy(&mut source, &mut target)
        .and_then(|_| target.flush())
        .and_then(|()| target.sync_all())
        .and_then(|()| fs::rename(&part, &whole))
        .and_then(|()| files::sync_folder(&folder));
    copied.context("cannot write to the stick: is it full or write-protected?")?;
    Ok(name)
}

/// A file on a stick.
#[derive(Serialize)]
struct Found {
    kind: Kind,
    path: PathBuf,
    bytes: u64,
    /// What it is, or why it is left alone.
    says: String,
    good: bool,
}

fn all(stick: &Path) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    for kind in Kind::ALL {
        for path in paths(stick, kind)? {
            let bytes = path.symlink_metadata().map_or(0, |metadata| metadata.len());
            let (says, good) = match describe(kind, &path) {
                Ok(says) => (says, true),
                Err(error) => (format!("LEFT ALONE: {error:#}"), false),
            };
            found.push(Found { kind, path, bytes, says, good });
        }
    }
    Ok(found)
}

/// The files of a kind, in the order of their names.
fn paths(stick: &Path, kind: Kind) -> anyhow::Result<Vec<PathBuf>> {
    let Some(folder) = folder(stick, kind, false)? else { return Ok(Vec::new()) };
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let name = entry.with_context(|| format!("cannot list {}", folder.display()))?.file_name();
        names.extend(name.to_str().filter(|name| kind.has_name(name)).map(str::to_owned));
    }
    names.sort();
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

/// A folder of the stick; `None` if there is none and none is to be made.
fn folder(stick: &Path, kind: Kind, make: bool) -> anyhow::Result<Option<PathBuf>> {
    ensure!(stick.is_dir(), "{} is not a folder: is the stick mounted there?", stick.display());
    let mut path = stick.to_owned();
    for part in [FOLDER, kind.folder()] {
        path.push(part);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => bail!("{} on the stick is not a folder", path.display()),
            Err(_) if make => {
                fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
            }
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(path))
}

/// One line about a file, without trusting it.
fn describe(kind: Kind, path: &Path) -> anyhow::Result<String> {
    let file = files::open_foreign(path)?;
    match kind {
        Kind::Roster => {
            let bytes = files::read_all(file, path, ROSTER_BYTES_MAX)?;
            let roster = RosterFile::parse(&bytes)?;
            let statement = roster.statement();
            let head = &statement.head;
            let (serial, mode, enclave) = (head.serial, head.mode, &head.enclave);
            Ok(format!("roster {serial} ({mode}) of {enclave}, {} accounts", statement.accounts))
        }
        Kind::Card => {
            let bytes = files::read_all(file, path, CARD_BYTES_MAX)?;
            let card = Card::stored(&bytes)?;
            let content = card.content();
            Ok(format!("card {} of {} ({})", content.serial, content.server_name, content.enclave))
        }
        Kind::Bundle => {
            let Header { seq, from, to, created, .. } = unverified_header(file)?;
            let created = output::time(created);
            Ok(format!("bundle {seq} of {from} for {to}, made {created}"))
        }
    }
}

fn import(
    stick: &Path,
    codes: &Path,
    approvals: &Approvals,
    the_box: &TheBox,
    out: &Output,
) -> anyhow::Result<()> {
    let found = all(stick)?;
    out.note(&table(&found))?;
    let of = |kind: Kind| found.iter().filter(move |file| file.kind == kind && file.good);
    let mut rosters: Vec<_> = of(Kind::Roster).map(Approved::by_nobody).collect();
    let mut bundles: Vec<_> = of(Kind::Bundle).map(Approved::by_nobody).collect();
    if !approvals.is_empty() {
        let things: Vec<Consent> =
            of(Kind::Roster).chain(of(Kind::Bundle)).map(consent).collect::<anyhow::Result<_>>()?;
        let approved = rosters.iter_mut().chain(&mut bundles);
        for (file, approvals) in approved.zip(approvals.sorted(&things)?) {
            file.approvals = approvals;
        }
    }
    import_rosters(&rosters, codes, the_box, out)?;
    import_bundles(&bundles, the_box, out)?;
    for file in of(Kind::Card) {
        let path = file.path.display();
        out.note(&format!(
            "Not paired yet: sallyctl peer add {path} --fingerprint \"EIGHT WORDS\""
        ))?;
    }
    Ok(())
}

/// A file that is to be imported, with the approvals that are for it.
struct Approved<'f> {
    path: &'f Path,
    approvals: Vec<Approval>,
}

impl<'f> Approved<'f> {
    fn by_nobody(file: &'f Found) -> Self {
        Self { path: &file.path, approvals: Vec::new() }
    }
}

/// What an officer signs who approves the import of a file.
fn consent(file: &Found) -> anyhow::Result<Consent> {
    let path = file.path.as_path();
    if file.kind == Kind::Bundle {
        let bundle = Inspected::read(path)?;
        return Ok(Consent::to_import(bundle.to, bundle.sha256));
    }
    let bytes = files::read_all(files::open_foreign(path)?, path, ROSTER_BYTES_MAX)?;
    let roster = RosterFile::parse(&bytes)?;
    Ok(Consent::to_mass_lock(roster.statement().head.enclave.clone(), roster.subject()))
}

/// Those for this enclave that the box has not seen, oldest first.
fn import_rosters(
    approved: &[Approved<'_>],
    codes: &Path,
    the_box: &TheBox,
    out: &Output,
) -> anyhow::Result<()> {
    if approved.is_empty() {
        return Ok(());
    }
    let status: Status = the_box.ask(path::STATUS)?;
    let last = status.roster.map(|roster| roster.serial);
    let mut rosters = Vec::new();
    for Approved { path, approvals } in approved {
        let bytes = files::read_all(files::open_foreign(path)?, path, ROSTER_BYTES_MAX)?;
        let head = RosterFile::parse(&bytes)?.statement().head.clone();
        match head.admit(&status.server_name, last) {
            Ok(()) => rosters.push((head.serial, bytes, approvals.clone())),
            Err(why) => out.note(&format!("{}: {why}", path.display()))?,
        }
    }
    rosters.sort_by_key(|(serial, ..)| *serial);
    for (serial, bytes, approvals) in rosters {
        let path = codes.join(format!("codes-{serial}.json"));
        let mut file = files::create_secret(&path)?;
        let imported: anyhow::Result<RosterImported> =
            the_box.send_bytes(Method::POST, path::ROSTER, approvals, &[], bytes);
        if imported.is_err() {
            fs::remove_file(&path).context("cannot remove the empty file of codes")?;
        }
        let imported = imported?;
        let json = serde_json::to_vec_pretty(&imported.codes).context("cannot write the codes")?;
        file.write_all(&json)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("cannot write {}", path.display()))?;
        out.show(&imported.report, roster::report_text)?;
        out.note(&format!("{} activation codes are in {}.", imported.codes.len(), path.display()))?;
    }
    Ok(())
}

/// Those for this enclave, in the order in which their senders made them. After one that is refused, no later one of the same sender
/// is tried: it would only be refused for coming too early.
fn import_bundles(approved: &[Approved<'_>], the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
    if approved.is_empty() {
        return Ok(());
    }
    let status: Status = the_box.ask(path::STATUS)?;
    let order = |header: &Header| (header.from.clone(), header.created, header.seq);
    let mut bundles = Vec::new();
    for Approved { path, approvals } in approved {
        let header = unverified_header(files::open_foreign(path)?)?;
        if header.to == status.server_name {
            bundles.push((header, *path, approvals.clone()));
        } else {
            out.note(&format!("{}: left alone, it is for {}", path.display(), header.to))?;
        }
    }
    bundles.sort_by_key(|(header, ..)| order(header));
    let mut refused = BTreeMap::new();
    for (Header { from, .. }, path, approvals) in bundles {
        if refused.contains_key(&from) {
            continue;
        }
        match bundle::send(path, approvals, the_box) {
            Ok(imported) => out.show(&imported, bundle::imported_text)?,
            Err(error) => {
                refused.insert(from, error.context(path.display().to_string()));
            }
        }
    }
    match refused.into_values().reduce(|first, next| first.context(format!("{next:#}"))) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn table(found: &[Found]) -> String {
    if found.is_empty() {
        return "There is nothing of Sallyport on this stick.\n".to_owned();
    }
    let rows: Vec<_> = found
        .iter()
        .map(|file| [file.path.display().to_string(), file.bytes.to_string(), file.says.clone()])
        .collect();
    output::table(["file", "bytes", "content"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_own_making_are_looked_at() {
        let table = [
            ("SNB-0123456789abcdef.snb", true),
            ("SNB-0123456789abcdef.snr", false),
            ("SNB-0123456789ABCDEF.snb", false),
            ("SNB-0123456789abcde.snb", false),
            ("SNB-0123456789abcdef.snb~", false),
            ("../SNB-0123456789abcdef.snb", false),
            ("._SNB-0123456789abcdef.snb", false),
            ("autorun.inf", false),
            ("UNFINISHED", false),
        ];
        for (name, ours) in table {
            assert_eq!(Kind::Bundle.has_name(name), ours, "{name}");
        }
    }
}
