//! The files of the machine's journal: which there are, where each begins and ends, and the entries in them, which `journalctl` reads.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context as _, ensure};
use sallyport_core::journal::{Entries, Entry, SeqnumId};

/// Where the image keeps it.
pub(crate) const FOLDER: &str = "/var/log/journal";
const JOURNALCTL: &str = "journalctl";
/// Bytes of a header that we need ([Journal File Format](https://systemd.io/JOURNAL_FILE_FORMAT/), "Header").
const HEADER_BYTES: usize = 176;
const SIGNATURE: &[u8] = b"LPKSHHRH";
const SEQNUM_ID_AT: usize = 72;
const TAIL_SEQNUM_AT: usize = 160;

/// A file of the journal.
#[derive(Clone, Debug)]
pub(crate) struct JournalFile {
    pub(crate) path: PathBuf,
    pub(crate) changed: SystemTime,
    pub(crate) bytes: u64,
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
    let file = JournalFile { changed: metadata.modified()?, bytes: metadata.len(), path };
    Ok((named && metadata.is_file()).then_some(file))
}

impl JournalFile {
    /// How its entries are counted, and the number of the last.
    pub(crate) fn tail(&self) -> anyhow::Result<(SeqnumId, u64)> {
        let shown = self.path.display();
        let mut header = [0; HEADER_BYTES];
        let read = File::open(&self.path).and_then(|mut file| file.read_exact(&mut header));
        read.with_context(|| format!("cannot read the header of {shown}"))?;
        ensure!(header.starts_with(SIGNATURE), "{shown} is not a file of a journal");
        let id = number::<16>(&header, SEQNUM_ID_AT).map(u128::from_be_bytes);
        let tail = number::<8>(&header, TAIL_SEQNUM_AT).map(u64::from_le_bytes);
        let (id, tail) = id.zip(tail).context("the header is too short")?;
        Ok((SeqnumId(id), tail))
    }

    /// Hands out its entries, or those from one of them on.
    pub(crate) fn each(
        &self,
        from: Option<(SeqnumId, u64)>,
        mut take: impl FnMut(Entry),
    ) -> anyhow::Result<()> {
        let mut order = Command::new(JOURNALCTL);
        order.args(["--quiet", "--no-pager", "--output=export", "--file"]).arg(&self.path);
        if let Some((seqnum_id, seqnum)) = from {
            order.arg(format!("--cursor=s={seqnum_id};i={seqnum:x}"));
        }
        let mut reading = order
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run journalctl, which reads journals and comes with systemd")?;
        let entries = reading.stdout.take().context("journalctl has no output")?;
        let read = Entries::new(BufReader::new(entries)).try_for_each(|entry| entry.map(&mut take));
        // Its end comes first: what we no longer read must not keep it waiting.
        let ended = reading.wait().context("journalctl did not end")?;
        read.with_context(|| format!("cannot read {}", self.path.display()))?;
        ensure!(ended.success(), "journalctl cannot read {}: {ended}", self.path.display());
        Ok(())
    }
}

/// Has journald write what it has to the disk.
pub(crate) fn sync() -> anyhow::Result<()> {
    let synced = Command::new(JOURNALCTL).arg("--sync").stdin(Stdio::null()).status();
    let synced = synced.context("cannot run journalctl")?;
    ensure!(synced.success(), "the journal cannot be written to the disk: {synced}");
    Ok(())
}

fn number<const N: usize>(header: &[u8], at: usize) -> Option<[u8; N]> {
    header.get(at..)?.first_chunk().copied()
}
