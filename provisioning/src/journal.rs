//! The files of the machine's journal: which there are, where each begins and ends, and the entries in them, which `journalctl` reads.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufReader},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context as _, bail, ensure};
use sallyport_core::journal::{Entries, Entry, SeqnumId};

use crate::files;

/// Where the image keeps it.
pub(crate) const FOLDER: &str = "/var/log/journal";
const JOURNALCTL: &str = "journalctl";
/// Bytes of a header that we need ([Journal File Format](https://systemd.io/JOURNAL_FILE_FORMAT/), "Header").
const HEADER_BYTES: usize = 176;
const SIGNATURE: &[u8] = b"LPKSHHRH";
const SEQNUM_ID_AT: usize = 72;
const TAIL_SEQNUM_AT: usize = 160;

/// Listings of a journal that changes meanwhile, before it is left for another time.
const LISTINGS_MAX: usize = 8;

/// A file of the journal.
#[derive(Clone, Debug)]
pub(crate) struct JournalFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    changed: SystemTime,
    inode: u64,
}

/// The files in a folder and in those below it, which are one for each machine; the newest last.
pub(crate) fn list(folder: &Path) -> anyhow::Result<Vec<JournalFile>> {
    let listed = || -> io::Result<Vec<JournalFile>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                for file in fs::read_dir(entry.path())? {
                    found.extend(journal_file(&file?)?);
                }
            } else {
                found.extend(journal_file(&entry)?);
            }
        }
        found.sort_by_key(|file: &JournalFile| file.changed);
        Ok(found)
    };
    listed().with_context(|| format!("the journal in {} cannot be listed", folder.display()))
}

fn journal_file(entry: &fs::DirEntry) -> io::Result<Option<JournalFile>> {
    let (path, metadata) = (entry.path(), entry.metadata()?);
    // The latter ended with a power cut.
    let named = path.extension().is_some_and(|e| e == "journal" || e == "journal~");
    let (bytes, changed, inode) = (metadata.len(), metadata.modified()?, metadata.ino());
    Ok((named && metadata.is_file()).then_some(JournalFile { path, bytes, changed, inode }))
}

/// The files of a journal that is being written, each opened; the newest last. journald renames a file when it is full, and a listing may
/// then miss it: so it counts once the next one has the same files.
pub(crate) fn open_all(folder: &Path) -> anyhow::Result<Vec<OpenJournal>> {
    let inodes =
        |files: &[JournalFile]| files.iter().map(|file| file.inode).collect::<BTreeSet<_>>();
    for _ in 0..LISTINGS_MAX {
        let files = list(folder)?;
        let opened = files.iter().map(JournalFile::open).collect();
        if inodes(&list(folder)?) == inodes(&files) {
            return opened;
        }
    }
    bail!("the files of the journal in {} change all the time", folder.display())
}

/// An opened file of the journal: it stays the same under another name.
pub(crate) struct OpenJournal {
    path: PathBuf,
    file: File,
}

impl JournalFile {
    /// Opens it.
    pub(crate) fn open(&self) -> anyhow::Result<OpenJournal> {
        let path = self.path.clone();
        let file = files::open_foreign(&path)?;
        Ok(OpenJournal { path, file })
    }
}

impl OpenJournal {
    /// How its entries are counted, and the number of the last.
    pub(crate) fn tail(&self) -> anyhow::Result<(SeqnumId, u64)> {
        let shown = self.path.display();
        let mut header = [0; HEADER_BYTES];
        let read = self.file.read_exact_at(&mut header, 0);
        read.with_context(|| format!("cannot read the header of {shown}"))?;
        ensure!(header.starts_with(SIGNATURE), "{shown} is not a file of a journal");
        let id = number::<16>(&header, SEQNUM_ID_AT).map(u128::from_be_bytes);
        let tail = number::<8>(&header, TAIL_SEQNUM_AT).map(u64::from_le_bytes);
        let (id, tail) = id.zip(tail).context("the header is too short")?;
        Ok((SeqnumId(id), tail))
    }

    /// Has the kernel write to the disk what journald put into it. `journalctl --sync` would do so as well, and leave an entry about it.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        let synced = self.file.sync_all();
        synced.with_context(|| format!("cannot write {} to the disk", self.path.display()))
    }

    /// Hands out its entries, or those from one of them on.
    pub(crate) fn each(
        &self,
        from: Option<(SeqnumId, u64)>,
        mut take: impl FnMut(Entry),
    ) -> anyhow::Result<()> {
        let shown = self.path.display();
        let file = self.file.try_clone().with_context(|| format!("cannot read {shown}"))?;
        let mut order = Command::new(JOURNALCTL);
        // The file is its standard input.
        order.args(["--quiet", "--no-pager", "--output=export", "--file=-"]);
        if let Some((seqnum_id, seqnum)) = from {
            order.arg(format!("--cursor=s={seqnum_id};i={seqnum:x}"));
        }
        let mut reading = order
            .stdin(file)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run journalctl, which reads journals and comes with systemd")?;
        let entries = reading.stdout.take().context("journalctl has no output")?;
        let read = Entries::new(BufReader::new(entries)).try_for_each(|entry| entry.map(&mut take));
        // Its end comes first: what we no longer read must not keep it waiting.
        let ended = reading.wait().context("journalctl did not end")?;
        read.with_context(|| format!("cannot read {shown}"))?;
        ensure!(ended.success(), "journalctl cannot read {shown}: {ended}");
        Ok(())
    }
}

fn number<const N: usize>(header: &[u8], at: usize) -> Option<[u8; N]> {
    header.get(at..)?.first_chunk().copied()
}
