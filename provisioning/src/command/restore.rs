//! `sallyctl restore`: a new box of backups.
//!
//! Everything is verified before the first byte is written. Then the content is collected in a folder of its own inside the box's folder, and put into place at
//! the end; while that folder is there no box starts, so that a power cut costs nothing but time. Last the box's own program
//! checks what only it can (the database, the rooms), and begins the new life.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use nix::unistd::geteuid;
use ruma::OwnedServerName;
use sallyport_core::{
    admin::RestoreReport,
    backup::{Contents, Head, RESTORED_FILE, RESTORING_FOLDER, Restored, Section, Sink},
    digest::Sha256,
    incarnation::Incarnation,
};
use sallyport_hsm::Secret32;

use super::{
    backup::{Opened, read_chain},
    recovery::RecoveryArgs,
};
use crate::{
    files,
    output::{self, Output},
};

/// The configuration of a box, in its folder of settings.
pub(crate) const CONFIGURATION: &str = "sallyport.toml";
/// Bytes of a configuration.
const CONFIGURATION_BYTES_MAX: usize = 1 << 20;
/// What a restore puts into the box's folder.
const PLACES: [&str; 8] =
    ["box.key", "ca.pem", "media", RESTORED_FILE, "sallyport.db", "tls", "vault", "working-keys"];

#[derive(Args)]
pub(crate) struct Restore {
    /// A full backup and those that follow it, in their order.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    key: RecoveryArgs,
    /// The fingerprint of the enclave root as it was written down, in words or digits: it tells whose the backups are.
    #[arg(long, value_name = "WORDS", required_unless_present = "unvouched")]
    fingerprint: Option<String>,
    /// The box had no card when the backup was made: take it although nobody vouches for the key that signed it.
    #[arg(long, conflicts_with = "fingerprint")]
    unvouched: bool,
    /// The folder of the new box's data: empty, or not there yet.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The folder of the new box's settings. What is there already stays.
    #[arg(long, value_name = "DIR")]
    settings: PathBuf,
    /// A file that describes the new box's token, like the `[token]` table of its configuration, to stand in the place of the old one's.
    #[arg(long, value_name = "FILE")]
    box_token: Option<PathBuf>,
    /// The program of the box, if it is not beside this one.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

impl Restore {
    pub(crate) fn run(self, out: &Output) -> anyhow::Result<()> {
        let data_dir = std::path::absolute(&self.data_dir).context("no such folder")?;
        let settings = std::path::absolute(&self.settings).context("no such folder")?;
        let program = self.program()?;
        check_empty(&data_dir)?;
        let token = self.box_token.as_deref().map(read_toml).transpose()?;
        let opened = Opened::open(self.files, &self.key)?;
        let contents = read_chain(&opened)?;
        if let Some(fingerprint) = &self.fingerprint {
            contents.signed.vouched(fingerprint)?;
        } else {
            ensure!(
                contents.signed.card.is_none(),
                "the backup has a card: give the root's --fingerprint instead of --unvouched"
            );
        }
        let configuration = settings.join(CONFIGURATION);
        check_settings(&configuration, &data_dir, &contents.signed.header.enclave)?;
        // Verified to the last byte: only now is anything written.
        let place = Place::begin(&data_dir)?;
        place.collect(&opened, &contents)?;
        place.finish(&contents)?;
        put_settings(&place, &settings, &data_dir, token)?;
        place.clear()?;
        let report = finish(&program, &configuration, &data_dir).with_context(|| {
            format!(
                "everything is in place, but the box does not begin: when that is mended, run `{} finish-restore --config {}`",
                program.display(),
                configuration.display()
            )
        })?;
        out.show(&report, text)
    }

    fn program(&self) -> anyhow::Result<PathBuf> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe()
                .context("cannot find this program")?
                .with_file_name("sallyport"),
        };
        ensure!(
            program.is_file(),
            "{} is not there: name the box's program with --program",
            program.display()
        );
        Ok(program)
    }
}

/// A folder that is empty but for what a restore that was interrupted left.
pub(crate) fn check_empty(data_dir: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", data_dir.display()));
        }
    };
    let names = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<BTreeSet<_>>>()
        .with_context(|| format!("cannot read {}", data_dir.display()))?;
    // No box has started here since: it refuses to while that folder is there.
    let interrupted = names.contains(RESTORING_FOLDER);
    let left = |name: &String| {
        name == RESTORING_FOLDER || (interrupted && PLACES.contains(&name.as_str()))
    };
    if let Some(name) = names.iter().find(|name| !left(name)) {
        bail!(
            "{} is not empty ({name} is in it): a restore never replaces a box; name an empty folder",
            data_dir.display()
        );
    }
    Ok(())
}

/// A configuration that is there already must be one for this box.
fn check_settings(
    configuration: &Path,
    data_dir: &Path,
    enclave: &OwnedServerName,
) -> anyhow::Result<()> {
    if !configuration.exists() {
        return Ok(());
    }
    let (shown, table) = (configuration.display(), read_toml(configuration)?);
    let said = |key: &str| table.get(key).and_then(toml::Value::as_str);
    let name = said("server_name").unwrap_or_default();
    ensure!(name == enclave.as_str(), "{shown} is for {name:?}, and the backup is of {enclave}");
    let folder = said("data_dir").unwrap_or("/var/lib/sallyport");
    ensure!(
        Path::new(folder) == data_dir,
        "{shown} says data_dir = {folder:?}, and the restore is to {}",
        data_dir.display()
    );
    Ok(())
}

fn read_toml(path: &Path) -> anyhow::Result<toml::Table> {
    let shown = path.display();
    let text = String::from_utf8(files::read(path, CONFIGURATION_BYTES_MAX)?)
        .with_context(|| format!("{shown} is not text"))?;
    toml::from_str(&text).with_context(|| format!("{shown} is not TOML"))
}

/// Where the content is put together.
pub(crate) struct Place {
    data_dir: PathBuf,
    restoring: PathBuf,
    /// Whom the folder belongs to, if not to us.
    owner: Option<(u32, u32)>,
}

impl Place {
    /// Whether a restore was begun and did not come to its end.
    pub(crate) fn is_begun(data_dir: &Path) -> bool {
        data_dir.join(RESTORING_FOLDER).exists()
    }

    /// Where the settings lie that were in the backup.
    pub(crate) fn settings(&self) -> PathBuf {
        self.restoring.join("settings")
    }

    /// Leaves the folder as empty as it was.
    pub(crate) fn abandon(&self) -> anyhow::Result<()> {
        let abandon = || -> io::Result<()> {
            for place in PLACES {
                remove(&self.data_dir.join(place))?;
            }
            fs::remove_dir_all(&self.restoring)?;
            files::sync_folder(&self.data_dir)
        };
        abandon().with_context(|| format!("cannot empty {}", self.data_dir.display()))
    }

    /// Begins anew, whatever an interrupted restore left.
    pub(crate) fn begin(data_dir: &Path) -> anyhow::Result<Self> {
        let restoring = data_dir.join(RESTORING_FOLDER);
        let make = || -> io::Result<Option<(u32, u32)>> {
            make_folder(data_dir)?;
            let folder = fs::metadata(data_dir)?;
            let foreign = geteuid().is_root() && folder.uid() != 0;
            if restoring.exists() {
                // Nothing that was put into place before is newer than what is put there now.
                for place in PLACES {
                    remove(&data_dir.join(place))?;
                }
                fs::remove_dir_all(&restoring)?;
            }
            make_folder(&restoring.join("data"))?;
            make_folder(&restoring.join("settings"))?;
            files::sync_folder(data_dir)?;
            Ok(foreign.then_some((folder.uid(), folder.gid())))
        };
        let owner = make().with_context(|| format!("cannot make {}", restoring.display()))?;
        Ok(Self { data_dir: data_dir.to_owned(), restoring, owner })
    }

    /// Reads the backups again and keeps what belongs to the last state.
    pub(crate) fn collect(&self, opened: &Opened, wanted: &Contents) -> anyhow::Result<()> {
        let media: BTreeSet<Sha256> = wanted.list.iter().map(|(sha256, _)| *sha256).collect();
        let last = opened.backups.len().saturating_sub(1);
        for at in 0..=last {
            let mut collector =
                Collector { place: self, media: &media, is_last: at == last, open: None };
            let again = opened.read(at, &mut collector)?;
            ensure!(
                at != last || again.signed.manifest == wanted.signed.manifest,
                "the backup was exchanged while it was read"
            );
        }
        Ok(())
    }

    /// Puts everything into place, and says which backup it was.
    pub(crate) fn finish(&self, contents: &Contents) -> anyhow::Result<()> {
        let random = Secret32::random().context("there is no randomness")?;
        let incarnation = random.expose().first_chunk().map(|bytes| Incarnation(*bytes));
        let incarnation = incarnation.context("there is no randomness")?;
        let restored = Restored::new(&contents.signed, incarnation);
        let json = serde_json::to_vec_pretty(&restored).context("cannot write JSON")?;
        let data = self.restoring.join("data");
        let put = || -> io::Result<()> {
            let mut file = new_file(&data.join(RESTORED_FILE))?;
            file.write_all(&json)?;
            file.sync_all()?;
            if let Some(owner) = self.owner {
                give(&data, owner)?;
            }
            for entry in fs::read_dir(&data)? {
                let entry = entry?;
                fs::rename(entry.path(), self.data_dir.join(entry.file_name()))?;
            }
            files::sync_folder(&self.data_dir)
        };
        put().with_context(|| format!("cannot put the files into {}", self.data_dir.display()))
    }

    /// From here on the box can start.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        let clear = || -> io::Result<()> {
            fs::remove_dir_all(&self.restoring)?;
            files::sync_folder(&self.data_dir)
        };
        clear().with_context(|| format!("cannot remove {}", self.restoring.display()))
    }

    /// Where an item goes, if it is kept.
    fn path(&self, head: &Head, is_last: bool, media: &BTreeSet<Sha256>) -> Option<PathBuf> {
        let data = self.restoring.join("data");
        match head.section {
            Section::Media => {
                let sha256 = head.media().filter(|sha256| media.contains(sha256))?;
                let name = sha256.to_string();
                let (folder, rest) = name.split_at_checked(2)?;
                Some(data.join("media").join(folder).join(rest))
            }
            _ if !is_last => None,
            Section::Settings => Some(self.restoring.join("settings").join(&head.name)),
            // It is in the database as well.
            Section::Wrapped if head.name == "card" => None,
            Section::Wrapped => Some(data.join(&head.name)),
            Section::Database => Some(data.join("sallyport.db")),
            Section::MediaList | Section::Manifest => None,
        }
    }
}

/// Writes items to their files.
struct Collector<'a> {
    place: &'a Place,
    media: &'a BTreeSet<Sha256>,
    is_last: bool,
    open: Option<BufWriter<File>>,
}

impl Sink for Collector<'_> {
    fn begin(&mut self, head: &Head) -> io::Result<()> {
        self.open = None;
        let Some(path) = self.place.path(head, self.is_last, self.media) else { return Ok(()) };
        // Two backups may bring the same file.
        if head.section == Section::Media && path.exists() {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        self.open = Some(BufWriter::with_capacity(256 * 1024, new_file(&path)?));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(file) = self.open.take() else { return Ok(()) };
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// Puts the settings into their folder, the configuration with what is new about this machine in it.
fn put_settings(
    place: &Place,
    settings: &Path,
    data_dir: &Path,
    token: Option<toml::Table>,
) -> anyhow::Result<()> {
    fs::create_dir_all(settings).with_context(|| format!("cannot make {}", settings.display()))?;
    let from = place.settings();
    let entries = fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let to = settings.join(entry.file_name());
        if to.exists() {
            continue;
        }
        let mut bytes = files::read(&entry.path(), CONFIGURATION_BYTES_MAX)?;
        if entry.file_name() == CONFIGURATION {
            bytes = adapted(bytes, data_dir, token.as_ref())?;
        }
        files::write_new(&to, &bytes)?;
    }
    let configuration = settings.join(CONFIGURATION);
    ensure!(
        configuration.exists(),
        "the backup has no {CONFIGURATION}: put one into {} and restore again",
        settings.display()
    );
    Ok(())
}

/// The configuration for this machine. It is as it was if nothing about it is new.
fn adapted(
    bytes: Vec<u8>,
    data_dir: &Path,
    token: Option<&toml::Table>,
) -> anyhow::Result<Vec<u8>> {
    let text = String::from_utf8(bytes).context("the configuration in the backup is not text")?;
    let mut table: toml::Table =
        toml::from_str(&text).context("the configuration in the backup is not TOML")?;
    let before = table.clone();
    let folder = data_dir.to_str().context("the name of the data folder is not text")?;
    let default = toml::Value::from("/var/lib/sallyport");
    if table.get("data_dir").unwrap_or(&default).as_str() != Some(folder) {
        table.insert("data_dir".to_owned(), toml::Value::from(folder));
    }
    if let Some(token) = token {
        table.insert("token".to_owned(), toml::Value::Table(token.clone()));
    }
    if table == before {
        return Ok(text.into_bytes());
    }
    Ok(toml::to_string(&table).context("the configuration cannot be written")?.into_bytes())
}

/// Has the box's program check everything and begin the new life, as the user whose the data are.
fn finish(program: &Path, configuration: &Path, data_dir: &Path) -> anyhow::Result<RestoreReport> {
    let mut process = Process::new(program);
    process.arg("finish-restore").arg("--config").arg(configuration);
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let folder = fs::metadata(data_dir).context("the data folder is gone")?;
    if geteuid().is_root() && folder.uid() != 0 {
        process.uid(folder.uid()).gid(folder.gid());
    }
    let output = process.output().context("the box's program does not start")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    ensure!(output.status.success(), "{}", last.trim_start_matches("sallyport: "));
    serde_json::from_slice(&output.stdout)
        .context("the box's program says something else than expected: is it of another version?")
}

fn text(report: &RestoreReport) -> String {
    let keys = |keys: &[String]| {
        if keys.is_empty() { "none".to_owned() } else { keys.join(" ") }
    };
    let mut text = format!(
        "{} is restored.\n{}\nNext:\n",
        report.server_name,
        output::pairs(&[
            ("backup", format!("of {}, {}", output::time(report.made), report.backup)),
            ("new life", report.incarnation.clone()),
            ("rooms", format!("{} checked", report.rooms)),
            (
                "media",
                format!(
                    "{} files checked, {} were lost before",
                    report.media, report.missing_media
                )
            ),
            ("audit log", format!("{} rows checked", report.audit_rows)),
            ("keys kept", keys(&report.keys_kept)),
            ("new keys", keys(&report.keys_made)),
        ]),
    );
    for (number, step) in (1..).zip(&report.next) {
        text.push_str(&format!("{number}. {step}.\n"));
    }
    text
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn give(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    chown(path, Some(user), Some(group))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), (user, group))?;
        }
    }
    Ok(())
}
