//! A machine that goes on as a box that was lost: what it remembers between two visits of a stick, and what comes of the second.
//!
//! No recovery officer's key comes near the machine. On the first visit it makes a key of its own and writes the public half onto the stick; on the second
//! there is a *grant* ([`Grant`]) beside the backups, which opens them for that key. Then gate 1 copies the backups into the quarantine
//! ([`copy`]), and when the gates are closed [`finish`] puts the content into place, from a service of its own: it never sees a stick.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use sallyport_core::{
    admin::{Approval, Consent},
    backup::{Contents, Grant},
    limits::{
        ADMIN_AUTHORITY_BYTES_MAX, BACKUP_CHAIN_MAX, BACKUP_FILE_BYTES_MAX, BACKUP_PARTS_MAX,
        RESTORE_GRANT_BYTES_MAX, STICK_PROVISION_BYTES_MAX,
    },
    provision::{Document, Provisioned},
};
use sallyport_hsm::{Secret32, sandbox};
use sallyport_volume::Volume;
use serde::{Deserialize, Serialize};

use super::{Folder, TOP, device::Device, inventory, read, settings::Settings, write::find};
use crate::{
    command::{
        backup::{Opened, read_chain},
        provision::SettingsArgs,
        restore::{CONFIGURATION, Place, check_empty},
    },
    files, notice,
    output::{self, Output},
    parts, terminal,
};

/// In the settings: the secret half of the key of a request.
const KEY: &str = "restore.key";
/// In the quarantine: everything of a restore that is under way.
const FOLDER: &str = "restore";
/// In [`FOLDER`]: which backups of the stick are wanted, the grant, and the mark that they are all there.
const WANTED: &str = "wanted.json";
const GRANT: &str = "grant";
const READY: &str = "ready";
/// Bytes of the list of wanted backups: names have up to 255 characters.
const WANTED_BYTES_MAX: usize = 256 * 1024;
/// The notice at the console.
const NOTICE: &str = "restore.json";
/// Documents that may lie beside the grant.
pub(crate) const DOCUMENTS_MAX: usize = 8;
/// Approvals of these.
const APPROVALS_MAX: usize = 64;

/// What gate 2 found that gate 1 shall copy: names on the stick, a full backup and those that follow it in their order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    backups: Vec<String>,
}

/// The secret of the request that waits for its grant.
pub(crate) fn pending(settings: &Path) -> anyhow::Result<Option<Secret32>> {
    let path = settings.join(KEY);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = files::read(&path, Secret32::BYTES)?;
    let secret = Secret32::from_slice(&bytes);
    Ok(Some(secret.with_context(|| format!("{} is damaged: remove it", path.display()))?))
}

/// The secret of a request, which is made if there is none.
pub(crate) fn ask(settings: &Path) -> anyhow::Result<Secret32> {
    if let Some(pending) = pending(settings)? {
        return Ok(pending);
    }
    let secret = Secret32::random().context("there is no randomness")?;
    let mut file = files::create_secret(&settings.join(KEY))?;
    file.write_all(secret.expose())
        .and_then(|()| file.sync_all())
        .and_then(|()| files::sync_folder(settings))
        .context("cannot keep the key of the request")?;
    Ok(secret)
}

/// Waits for no grant any more: the machine became something else.
pub(crate) fn withdraw(settings: &Path, state: Option<&Path>) -> anyhow::Result<()> {
    notice::withdraw(&settings.join(KEY))?;
    state.map_or(Ok(()), |folder| notice::withdraw(&folder.join(NOTICE)))
}

/// Whether a restore was begun and has not come to its end.
pub(crate) fn is_under_way(quarantine: &Path) -> bool {
    quarantine.join(FOLDER).join(READY).exists()
}

/// Whether gate 1 is to copy backups.
pub(crate) fn is_wanted(quarantine: &Path) -> bool {
    !is_under_way(quarantine) && quarantine.join(FOLDER).join(WANTED).exists()
}

/// Notes which backups are wanted. `beside` are the grant's companions in the quarantine: documents and approvals.
pub(crate) fn want(
    quarantine: &Path,
    grant: &[u8],
    backups: Vec<String>,
    beside: &[PathBuf],
) -> anyhow::Result<()> {
    let folder = quarantine.join(FOLDER);
    forget(quarantine)?;
    inventory::make_folder(&folder).context("cannot make a folder in the quarantine")?;
    files::write_new(&folder.join(GRANT), grant)?;
    for path in beside {
        let name = path.file_name().context("a file without a name")?;
        files::write_new(&folder.join(name), &files::read(path, STICK_PROVISION_BYTES_MAX)?)?;
    }
    let json = serde_json::to_vec(&Wanted { backups }).context("cannot write the list")?;
    files::write_new(&folder.join(WANTED), &json)
}

/// Gives up what was begun, but not the key: the stick can come again.
pub(crate) fn forget(quarantine: &Path) -> anyhow::Result<()> {
    let folder = quarantine.join(FOLDER);
    if folder.symlink_metadata().is_ok() {
        // Without its mark half a folder is none.
        let ready = folder.join(READY);
        if ready.exists() {
            fs::remove_file(&ready).context("cannot give up the restore")?;
        }
        fs::remove_dir_all(&folder).context("cannot give up the restore")?;
    }
    Ok(())
}

/// Says that all is there: from here on the service of the restore works, after a power cut as well.
pub(crate) fn ready(quarantine: &Path) -> anyhow::Result<()> {
    let folder = quarantine.join(FOLDER);
    files::write_new(&folder.join(READY), b"")?;
    files::sync_folder(&folder).context("cannot write to the quarantine")
}

/// Gate 1 once more: copies the wanted backups into the quarantine, each in one file.
///
/// This process gives up everything else for good: nothing but the end of the program can come after it.
pub(crate) fn copy(device: &Path, quarantine: &Path, out: &Output) -> anyhow::Result<()> {
    sandbox::close_inherited().context("cannot see which files are open")?;
    let device = Device::open(device, false)?;
    read::confine(&[quarantine.to_owned()], out)?;
    let folder = quarantine.join(FOLDER);
    let path = folder.join(WANTED);
    let json = files::read_all(files::open_foreign(&path)?, &path, WANTED_BYTES_MAX)?;
    let wanted: Wanted = serde_json::from_slice(&json).context("the list is not sound")?;
    ensure!(wanted.backups.len() <= BACKUP_CHAIN_MAX, "too many backups are wanted");
    let mut volume = Volume::find(device, TOP)?;
    for (number, name) in (1..).zip(&wanted.backups) {
        let mut file = files::create_secret(&copied(&folder, number))?;
        for part in 1..=BACKUP_PARTS_MAX {
            let name = format!("{name}{}", parts::suffix(part));
            let Some(entry) = find(&mut volume, &[TOP, Folder::Backup.name(), &name])? else {
                ensure!(part > 1, "{} is not on the stick any more", super::shown(&name));
                break;
            };
            volume
                .read(&entry, &mut |piece| file.write_all(piece))
                .with_context(|| format!("{} cannot be copied", super::shown(&name)))?;
        }
        file.sync_all().context("cannot write to the quarantine")?;
        out.note(&format!("{} is copied", super::shown(name)))?;
    }
    files::sync_folder(&folder).context("cannot write to the quarantine")
}

fn copied(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number:03}.backup"))
}

/// What the service of a restore is told.
#[derive(Args)]
pub(crate) struct FinishArgs {
    /// The quarantine, a folder.
    #[arg(long, value_name = "FOLDER")]
    quarantine: PathBuf,
    #[command(flatten)]
    settings: SettingsArgs,
    /// The folder with what the console shows.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
}

/// Puts what the backups hold into place: verified to the last byte, or not at all. The box's own start checks what only it can, and begins the new life.
pub(crate) fn finish(args: &FinishArgs, socket: &Path, out: &Output) -> anyhow::Result<()> {
    let console = Console(args.state.clone());
    console.tell("This machine is made a box again: do not switch it off", &[])?;
    let came = put(args, &args.settings.settings(socket), &console);
    let key = args.settings.folder().join(KEY);
    // Whatever came of it: it is not to be tried again by itself.
    forget(&args.quarantine)?;
    match came {
        Ok(lines) => {
            notice::withdraw(&key)?;
            console.tell("This machine is a box again", &lines)?;
            lines.iter().try_for_each(|line| out.note(line))
        }
        Err(why) => {
            let lines = [format!("{why:#}"), "Nothing was changed.".to_owned()];
            console.tell("The restore failed", &lines)?;
            Err(why)
        }
    }
}

/// The notice of a restore.
pub(crate) struct Console(pub(crate) Option<PathBuf>);

impl Console {
    pub(crate) fn tell(&self, title: &str, lines: &[String]) -> anyhow::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        let json = serde_json::json!({ "title": title, "lines": lines });
        files::replace(&folder.join(NOTICE), json.to_string().as_bytes())
    }
}

fn put(args: &FinishArgs, settings: &Settings, console: &Console) -> anyhow::Result<Vec<String>> {
    let data_dir = std::path::absolute(args.settings.data_dir()).context("no such folder")?;
    if settings.settle()?.is_some() && !Place::is_begun(&data_dir) {
        return Ok(vec!["Everything was in place before the machine went off.".to_owned()]);
    }
    check_empty(&data_dir)?;
    let folder = args.quarantine.join(FOLDER);
    let seed = pending(args.settings.folder())?.context("the key of the request is gone")?;
    let grant = Grant::parse(&files::read(&folder.join(GRANT), RESTORE_GRANT_BYTES_MAX)?)?;
    let keys = grant.open(seed.expose())?;
    let paths = (1..=keys.len()).map(|number| copied(&folder, number));
    let opened = Opened::granted(paths, keys)?;
    console.tell("This machine is made a box again: the backups are verified", &[])?;
    let contents = read_chain(&opened)?;
    check_whose(&grant, &contents)?;
    console
        .tell("This machine is made a box again: the backups are sound and put into place", &[])?;
    let place = Place::begin(&data_dir)?;
    let record = place
        .collect(&opened, &contents)
        .and_then(|()| record(&place.settings(), &folder, &grant, settings))
        .and_then(|record| {
            place.finish(&contents)?;
            put_settings(&place.settings(), args.settings.folder())?;
            settings.install(&record)?;
            Ok(record)
        });
    let record = match record {
        Ok(record) => record,
        Err(why) => {
            place.abandon()?;
            return Err(why);
        }
    };
    place.clear()?;
    let header = &contents.signed.header;
    Ok(vec![
        format!("It is {} as of {}, by backup {} and document {}.", header.enclave, output::time(header.created), header.number, record.document().serial),
        "The box checks everything now and begins a new life; bundles leave it once the enclave root has signed a new card.".to_owned(),
        "What to do then: SALLYPORT/OUT on a stick with an order `card_request = true`; the steps are in the documents of the image.".to_owned(),
    ])
}

/// The backups are of the enclave and the root that the desk saw.
fn check_whose(grant: &Grant, contents: &Contents) -> anyhow::Result<()> {
    ensure!(contents.signed.header.enclave == grant.enclave, "the backups are of another enclave");
    match &grant.fingerprint {
        Some(fingerprint) => contents.signed.vouched(fingerprint).map(drop)?,
        None => ensure!(
            contents.signed.card.is_none(),
            "the backup has a card, and the grant no fingerprint"
        ),
    }
    Ok(())
}

/// What was in force when the backup was made; or the newest document beside the grant that follows it, approved by those officers.
fn record(
    restored: &Path,
    folder: &Path,
    grant: &Grant,
    settings: &Settings,
) -> anyhow::Result<Provisioned> {
    let path = restored.join(super::settings::RECORD);
    if !path.exists() {
        bail!(
            "the backup is of a box that no stick provisioned: restore it with `sallyctl restore`"
        );
    }
    let record = Provisioned::decode(&files::read(&path, 2 * STICK_PROVISION_BYTES_MAX)?)?;
    ensure!(record.document().server_name == grant.enclave, "the settings are of another enclave");
    let mut approvals = Vec::new();
    for path in with_extension(folder, "approval", APPROVALS_MAX)? {
        let text = files::read(&path, ADMIN_AUTHORITY_BYTES_MAX)?;
        approvals.push(Approval::from_text(&String::from_utf8_lossy(&text)));
    }
    let mut newest = record.clone();
    for path in with_extension(folder, "toml", DOCUMENTS_MAX)? {
        let text = files::read(&path, STICK_PROVISION_BYTES_MAX)?;
        let (document, sha256) = Document::parse(&text)?;
        let refused = || format!("the document {} on the stick is refused", document.serial);
        settings.check(&document).with_context(refused)?;
        let wanted = Consent::to_provision(document.server_name.clone(), sha256);
        let of_it = approvals.iter().filter(|a| a.unverified_consent().as_ref() == Some(&wanted));
        let of_it: Vec<_> = of_it.cloned().collect();
        let approvers = record.admit(&document, sha256, &of_it).with_context(refused)?;
        if let Some(approvers) = approvers
            && document.serial > newest.document().serial
        {
            newest = record.follow(&text, approvers, terminal::now())?;
        }
    }
    Ok(newest)
}

fn with_extension(folder: &Path, extension: &str, most: usize) -> anyhow::Result<Vec<PathBuf>> {
    let shown = folder.display();
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {shown}"))? {
        let path = entry.with_context(|| format!("cannot list {shown}"))?.path();
        if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
    ensure!(paths.len() <= most, "there are too many files beside the grant");
    paths.sort();
    Ok(paths)
}

/// Settings that do not follow from the record.
fn put_settings(restored: &Path, settings: &Path) -> anyhow::Result<()> {
    use super::settings::{NETWORK, RECORD, TOKEN};
    const FOLLOW: [&str; 4] = [CONFIGURATION, NETWORK, RECORD, TOKEN];
    let shown = restored.display();
    for entry in fs::read_dir(restored).with_context(|| format!("cannot list {shown}"))? {
        let entry = entry.with_context(|| format!("cannot list {shown}"))?;
        let name = entry.file_name();
        let to = settings.join(&name);
        if FOLLOW.iter().any(|follows| name == *follows) || to.exists() {
            continue;
        }
        // The server reads them, as they were.
        files::write_new(&to, &files::read(&entry.path(), BACKUP_FILE_BYTES_MAX)?)?;
    }
    Ok(())
}
