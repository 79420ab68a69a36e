//! `sallyctl backup`: everything that another machine needs to go on as this box, on a stick.

use std::{
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use ruma::OwnedServerName;
use sallyport_core::{
    admin::{BACKUP_BYTES, BackupMade, BackupVerified, path},
    backup::{
        BackupId, Chain, ContentKeys, Contents, Grant, Head, Header, Link, RecoveryKey, Sealed,
        Section, Sink, WriteError,
    },
    digest::{Hasher, Sha256},
    limits::RESTORE_REQUEST_BYTES_MAX,
    provision::Code,
    time::Millis,
};
use sallyport_hsm::Secret32;
use serde::Serialize;
use zeroize::Zeroizing;

use super::recovery::{Recovery, RecoveryArgs};
use crate::{
    client::Box as TheBox,
    files,
    output::{self, Output},
    parts::Parts,
};

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1 << 20;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a backup while the box works, and read it back. It is encrypted to the recovery officers' keys.
    Create {
        /// A new file, or a folder such as that of a stick, in which the backup gets a name.
        #[arg(long, value_name = "FILE|DIR")]
        to: PathBuf,
        /// A backup that the box made before: bring only the media that came since. A restore needs both then.
        #[arg(long, value_name = "PREVIOUS")]
        since: Option<PathBuf>,
    },
    /// Show what a backup says of itself. Needs no key and believes nothing.
    Inspect {
        /// The backup.
        file: PathBuf,
    },
    /// Let a new machine open backups: give it their keys, without a recovery key coming near it. Everything in them is checked first.
    Grant(Box<GrantArgs>),
    /// Decrypt backups and check everything in them, without restoring anything.
    Verify {
        /// A full backup and those that follow it, in their order; or a single one.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        key: RecoveryArgs,
        /// The fingerprint of the enclave root as it was written down, in words or digits: then it is also checked whose the backups are.
        #[arg(long, value_name = "WORDS")]
        fingerprint: Option<String>,
    },
}

/// What a grant needs.
#[derive(Args)]
pub(crate) struct GrantArgs {
    /// A full backup and those that follow it, in their order.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    key: RecoveryArgs,
    /// The request that the machine wrote to the stick.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// The code of the request as it stands on the machine's console, brought on paper: it tells that nobody swapped the stick.
    #[arg(long, value_name = "CODE")]
    code: String,
    /// The fingerprint of the enclave root as it was written down, in words or digits: it tells whose the backups are.
    #[arg(long, value_name = "WORDS", required_unless_present = "unvouched")]
    fingerprint: Option<String>,
    /// The box had no card when the backup was made: take it although nobody vouches for the key that signed it.
    #[arg(long, conflicts_with = "fingerprint")]
    unvouched: bool,
    /// Where to write the grant. It belongs into SALLYPORT/PROVISION on the stick.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl GrantArgs {
    fn run(self, out: &Output) -> anyhow::Result<()> {
        let shown = self.request.display();
        let text = String::from_utf8(files::read(&self.request, RESTORE_REQUEST_BYTES_MAX)?)
            .with_context(|| format!("{shown} is not text"))?;
        let request: RecoveryKey =
            text.parse().with_context(|| format!("{shown} is no request"))?;
        ensure!(
            Code::of(&Grant::request_sha256(&request)).is(&self.code),
            "the code is not that of {shown}: somebody may have swapped the stick, or it is another machine's request"
        );
        let opened = Opened::open(self.files, &self.key)?;
        let contents = read_chain(&opened)?;
        let fingerprint = match &self.fingerprint {
            Some(typed) => Some(contents.signed.vouched(typed)?.fingerprint().words()),
            None => {
                ensure!(
                    contents.signed.card.is_none(),
                    "the backup has a card: give the root's --fingerprint instead of --unvouched"
                );
                None
            }
        };
        let keys: Vec<_> =
            opened.backups.iter().map(|(_, link, key)| (link.id, key.clone())).collect();
        let enclave = contents.signed.header.enclave.clone();
        let grant = Grant::new(enclave, fingerprint, &request, &keys, randomness)?;
        let bytes = grant.encode().context("the grant cannot be encoded")?;
        files::write_new(&self.out, &bytes)?;
        let code = Code::of(&Grant::sha256(&bytes));
        out.note(&format!(
            "The machine may go on as {}, by backup {}. Put {} into SALLYPORT/PROVISION on a stick with the backups, and take \
             the code to the machine on paper, not on the stick:\n{code}",
            grant.enclave,
            contents.signed.header.number,
            self.out.display(),
        ))
    }
}

fn randomness() -> Result<[u8; 64], WriteError> {
    let (mut bytes, failed) = ([0; 64], |error| WriteError::Write(io::Error::other(error)));
    for half in bytes.chunks_exact_mut(Secret32::BYTES) {
        half.copy_from_slice(Secret32::random().map_err(failed)?.expose());
    }
    Ok(bytes)
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Create { to, since } => {
                let made = create(the_box, &to, since.as_deref())?;
                out.show(&made, Created::text)
            }
            Self::Inspect { file } => out.show(&Inspected::read(&file)?, Inspected::text),
            Self::Grant(args) => args.run(out),
            Self::Verify { files, key, fingerprint } => {
                let opened = Opened::open(files, &key)?;
                let verified = verify(&opened, fingerprint.as_deref())?;
                out.show(&verified, Verified::text)
            }
        }
    }
}

/// A backup that was made, written and read back.
#[derive(Serialize)]
struct Created {
    file: PathBuf,
    bytes: u64,
    sha256: Sha256,
    #[serde(flatten)]
    made: BackupMade,
}

impl Created {
    fn text(&self) -> String {
        let kind = if self.made.full { "full" } else { "what is new since the one before" };
        let file = self.file.display();
        format!(
            "Backup {} ({kind}) is in {file}: {} bytes, written and read back.\n{}",
            self.made.number,
            self.bytes,
            output::pairs(&[
                ("SHA-256", self.sha256.to_string()),
                ("id", self.made.id.to_string())
            ]),
        )
    }
}

fn create(the_box: &TheBox, to: &Path, since: Option<&Path>) -> anyhow::Result<Created> {
    let since = since.map(|path| link(path).map(|link| link.id)).transpose()?;
    let uri = match since {
        Some(id) => format!("{}?since={id}", path::BACKUP),
        None => path::BACKUP.to_owned(),
    };
    let partial = if to.is_dir() { to.join("sallyport.partial") } else { to.to_owned() };
    if to.is_dir() && partial.exists() {
        // Left of a stick that was pulled out: nobody else makes files of this name.
        std::fs::remove_file(&partial)
            .with_context(|| format!("cannot remove the unfinished {}", partial.display()))?;
    }
    let written = write(the_box, &uri, &partial).and_then(|(sha256, bytes)| {
        read_back(&partial, &sha256, bytes)?;
        Ok((sha256, bytes))
    });
    let (sha256, bytes) = match written {
        Ok(written) => written,
        Err(error) => {
            std::fs::remove_file(&partial).context("cannot remove the unfinished backup")?;
            return Err(error);
        }
    };
    let Link { id, header } = link(&partial)?;
    let file = if to.is_dir() { to.join(name(&header)) } else { partial.clone() };
    if file != partial {
        ensure!(!file.exists(), "{} is there already: it is not replaced", file.display());
        std::fs::rename(&partial, &file).context("cannot give the backup its name")?;
    }
    let made = the_box.command(path::BACKUP_VERIFIED, &BackupVerified { id })?;
    Ok(Created { file, bytes, sha256, made })
}

/// `alpha.example-12-full.backup`: sticks sort by it.
fn name(header: &Header) -> String {
    let kind = if header.is_full() { "full" } else { "since" };
    let enclave = header.enclave.as_str().replace([':', '[', ']'], "_");
    format!("{enclave}-{}-{kind}.backup", header.number)
}

fn write(the_box: &TheBox, uri: &str, to: &Path) -> anyhow::Result<(Sha256, u64)> {
    let file = files::create_secret(to)?;
    let mut output =
        Hashed { output: BufWriter::with_capacity(BUFFER_BYTES, file), hasher: Hasher::default() };
    let mut progress = Progress::default();
    let bytes = the_box
        .command_fetch_watched(uri, &mut output, BACKUP_BYTES, |bytes, of| progress.tell(bytes, of))
        .context("the backup was broken off; nothing is kept of it, and the box's log says why if it was the box")?;
    let Hashed { output, hasher } = output;
    let file = output.into_inner().map_err(io::IntoInnerError::into_error);
    let synced = file.and_then(|file| file.sync_all());
    synced.with_context(|| format!("cannot write {}", to.display()))?;
    Ok((hasher.finish(), bytes))
}

/// Reads the file from the medium, not from memory.
fn read_back(path: &Path, expected: &Sha256, bytes: u64) -> anyhow::Result<()> {
    let file = files::open_foreign(path)?;
    // Advice only: where it is not taken, what is read is what the system holds.
    let _advice = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let (found, length) = files::hash(file, path)?;
    ensure!(
        found == *expected && length == bytes,
        "{} is not what was written to it: take another stick",
        path.display()
    );
    Ok(())
}

/// Hashes what it hands on.
struct Hashed<W> {
    output: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Says now and then how far it is, to the person and not to the script.
#[derive(Default)]
struct Progress {
    told: u64,
}

impl Progress {
    const EVERY_BYTES: u64 = 64 << 20;

    fn tell(&mut self, bytes: u64, of: Option<u64>) {
        if bytes.saturating_sub(self.told) < Self::EVERY_BYTES {
            return;
        }
        self.told = bytes;
        let of = of.map(|of| format!(" of at most {} MiB", of >> 20)).unwrap_or_default();
        // Without stderr there is nobody to tell.
        let _nobody = writeln!(io::stderr(), "{} MiB{of} written", bytes >> 20);
    }
}

/// What a file says of itself.
pub(super) fn link(path: &Path) -> anyhow::Result<Link> {
    let sealed = sealed(path)?;
    Ok(Link { id: sealed.id(), header: sealed.header().clone() })
}

fn sealed(path: &Path) -> anyhow::Result<Sealed<BufReader<Parts>>> {
    let input = BufReader::with_capacity(BUFFER_BYTES, Parts::open(path)?);
    Sealed::open(input).with_context(|| format!("{} cannot be used", path.display()))
}

/// What a backup says of itself; nothing of it was verified.
#[derive(Serialize)]
struct Inspected {
    enclave: OwnedServerName,
    number: u64,
    made: Millis,
    id: BackupId,
    follows: Option<BackupId>,
    recovery_keys: Vec<String>,
    signed_by: String,
    bytes: u64,
}

impl Inspected {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let Link { id, header } = link(path)?;
        let bytes = Parts::open(path)?.length().context("cannot look at the file")?;
        Ok(Self {
            recovery_keys: header.recipients.iter().map(|stanza| stanza.key.to_string()).collect(),
            signed_by: header.signer.to_string(),
            enclave: header.enclave,
            number: header.number,
            made: header.created,
            id,
            follows: header.follows,
            bytes,
        })
    }

    fn text(&self) -> String {
        let kind = self
            .follows
            .map_or_else(|| "full".to_owned(), |id| format!("what was new since the backup {id}"));
        output::pairs(&[
            ("backup", format!("{} of {}", self.number, self.enclave)),
            ("made", output::time(self.made)),
            ("holds", kind),
            ("id", self.id.to_string()),
            ("opened by", self.recovery_keys.join(" ")),
            ("signed by", self.signed_by.clone()),
            ("bytes", self.bytes.to_string()),
        ])
    }
}

/// Backups whose content keys are known.
pub(crate) struct Opened {
    pub(super) backups: Vec<(PathBuf, Link, Zeroizing<[u8; 32]>)>,
}

impl Opened {
    /// Has the officer's token open each of them.
    pub(super) fn open(files: Vec<PathBuf>, key: &RecoveryArgs) -> anyhow::Result<Self> {
        let mut backups = Vec::with_capacity(files.len());
        let mut recovery: Option<(OwnedServerName, Recovery)> = None;
        for path in files {
            let sealed = sealed(&path)?;
            let link = Link { id: sealed.id(), header: sealed.header().clone() };
            let enclave = &link.header.enclave;
            let (of, recovery) = match &mut recovery {
                Some(recovery) => recovery,
                None => recovery.insert((enclave.clone(), key.open(enclave.clone())?)),
            };
            ensure!(*of == *enclave, "the backups are of {of} and of {enclave}");
            let content_key = recovery
                .content_key(&sealed)
                .with_context(|| format!("{} does not open", path.display()))?;
            backups.push((path, link, content_key));
        }
        Ok(Self { backups })
    }

    /// With content keys that a grant gave.
    pub(crate) fn granted(
        paths: impl Iterator<Item = PathBuf>,
        keys: ContentKeys,
    ) -> anyhow::Result<Self> {
        let mut backups = Vec::with_capacity(keys.len());
        for (path, (id, content_key)) in paths.zip(keys) {
            let link = link(&path)?;
            ensure!(link.id == id, "{} is another backup than the grant's", path.display());
            backups.push((path, link, content_key));
        }
        Ok(Self { backups })
    }

    /// Reads one of them to its end.
    pub(super) fn read(&self, at: usize, sink: &mut impl Sink) -> anyhow::Result<Contents> {
        let (path, link, content_key) = self.backups.get(at).context("no such backup")?;
        let sealed = sealed(path)?;
        let shown = path.display();
        ensure!(sealed.id() == link.id, "{shown} was exchanged while it was read");
        let read = sealed.unlock_with(content_key).and_then(|opened| opened.read(sink));
        read.with_context(|| format!("{shown} is refused"))
    }

    /// Whether they are a full backup and those that follow it.
    pub(super) fn check_chain(&self) -> Result<(), sallyport_core::backup::Error> {
        let links: Vec<_> = self.backups.iter().map(|(_, link, _)| link.clone()).collect();
        Chain::check(&links)
    }
}

/// What was found in backups.
#[derive(Serialize)]
pub(super) struct Verified {
    enclave: OwnedServerName,
    number: u64,
    made: Millis,
    /// Whether they are enough for a restore.
    pub(super) complete: bool,
    vouched_for: bool,
    database_bytes: u64,
    media: u64,
    media_bytes: u64,
    missing_media: u64,
    audit_row: u64,
    version: String,
}

impl Verified {
    fn text(&self) -> String {
        let complete = if self.complete {
            "everything that a restore needs"
        } else {
            "sound, but a restore needs the full backup and all that follow it as well"
        };
        let whose = if self.vouched_for {
            "the enclave root vouches for the key that signed it"
        } else {
            "not compared: give the root's --fingerprint"
        };
        output::pairs(&[
            ("backup", format!("{} of {}", self.number, self.enclave)),
            ("made", format!("{} by version {}", output::time(self.made), self.version)),
            ("complete", complete.to_owned()),
            ("whose", whose.to_owned()),
            ("database", format!("{} bytes", self.database_bytes)),
            ("media", format!("{} files, {} bytes", self.media, self.media_bytes)),
            ("lost media", format!("{} files were not on the box's disk", self.missing_media)),
            ("audit log", format!("up to row {}", self.audit_row)),
        ])
    }
}

/// Decrypts and checks everything, and keeps nothing.
fn verify(opened: &Opened, fingerprint: Option<&str>) -> anyhow::Result<Verified> {
    let (last, complete) = read_all(opened)?;
    if let Some(fingerprint) = fingerprint {
        last.signed.vouched(fingerprint)?;
    }
    let (header, manifest) = (&last.signed.header, &last.signed.manifest);
    Ok(Verified {
        enclave: header.enclave.clone(),
        number: header.number,
        made: header.created,
        complete,
        vouched_for: fingerprint.is_some(),
        database_bytes: manifest.content(Section::Database).map_or(0, |content| content.bytes),
        media: u64::try_from(last.list.len()).unwrap_or(u64::MAX),
        media_bytes: last.list.iter().fold(0, |sum: u64, (_, size)| sum.saturating_add(*size)),
        missing_media: manifest.missing_media,
        audit_row: manifest.audit_row,
        version: manifest.version.clone(),
    })
}

/// The last backup, and whether together they are enough for a restore.
fn read_all(opened: &Opened) -> anyhow::Result<(Contents, bool)> {
    let single = opened.backups.len() == 1;
    let complete = match opened.check_chain() {
        Err(sallyport_core::backup::Error::NotFull { .. }) if single => false,
        checked => {
            checked?;
            true
        }
    };
    if !complete {
        return Ok((opened.read(0, &mut Nowhere)?, false));
    }
    Ok((read_chain(opened)?, true))
}

/// Reads a full backup and those that follow it to their ends, and keeps nothing; answers what the last one holds.
pub(crate) fn read_chain(opened: &Opened) -> anyhow::Result<Contents> {
    opened.check_chain()?;
    let mut chain = Chain::default();
    for at in 0..opened.backups.len() {
        chain.push(opened.read(at, &mut Nowhere)?);
    }
    Ok(chain.finish()?)
}

/// Takes everything and keeps nothing.
struct Nowhere;

impl Sink for Nowhere {
    fn begin(&mut self, _: &Head) -> io::Result<()> {
        Ok(())
    }

    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}
