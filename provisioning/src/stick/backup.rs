//! A backup onto a stick, as large as it may be: no copy of it lies on the box.
//!
//! Here the two gates are open at the same time, as the two ends of a pipe. [`send`] is the one at the box: it has the administration socket and no device.
//! [`take`] is the one at the stick: it has the device and nothing else, not even the quarantine. What goes through the pipe goes
//! outwards and is encrypted; the stick's side cannot answer. A backup has its name on the stick once all of it is there, and counts once it was read back.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use sallyport_core::{
    admin::{BACKUP_BYTES, path},
    backup::{BackupId, Header, Sealed},
    digest::{Hasher, Sha256},
    limits::{BACKUP_PART_BYTES_MAX, BACKUP_PARTS_MAX},
};
use sallyport_hsm::sandbox;
use sallyport_volume::{Laid, Volume, Writer};
use serde::{Deserialize, Serialize};

use super::{
    Folder, OUT, TOP,
    apply::confine,
    device::Device,
    read,
    state::{Phase, StateFile},
    write::find,
};
use crate::{
    client::{self, Box as TheBox},
    files,
    output::Output,
    parts,
};

/// In [`OUT`]: what gate 2 found that shall be made.
const WISH: &str = "backup.json";
/// Bytes of a wish, and of what was written.
const SMALL_BYTES_MAX: usize = 4096;
/// Bytes between two words to the console.
const TELL_EVERY_BYTES: u64 = 4 << 20;
/// Characters of the enclave's name in that of a file: the whole has to be one that is written to sticks.
const NAME_CHARS: usize = 24;

/// A backup that shall be made.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// The newest one on the stick, with all that it follows.
    pub(crate) since: Option<BackupId>,
}

/// A backup that is on a stick, and was read back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    pub(crate) id: BackupId,
    pub(crate) name: String,
    pub(crate) parts: usize,
    pub(crate) bytes: u64,
    pub(crate) sha256: Sha256,
}

impl Wish {
    pub(crate) fn write(self, quarantine: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_vec(&self).context("cannot write the wish")?;
        files::replace(&quarantine.join(OUT).join(WISH), &json)
    }

    pub(crate) fn read(quarantine: &Path) -> anyhow::Result<Option<Self>> {
        let path = quarantine.join(OUT).join(WISH);
        if !path.exists() {
            return Ok(None);
        }
        let json = files::read_all(files::open_foreign(&path)?, &path, SMALL_BYTES_MAX)?;
        Ok(Some(serde_json::from_slice(&json).context("the wish for a backup is not sound")?))
    }
}

impl Written {
    /// Of the program at the stick, whose word counts as little as what is on the stick.
    pub(crate) fn parse(said: &[u8]) -> anyhow::Result<Self> {
        ensure!(said.len() <= SMALL_BYTES_MAX, "the writer says too much");
        serde_json::from_slice(said).context("the writer did not say what it wrote")
    }
}

/// The end at the box: has a backup made, and hands it to standard output in frames.
pub(crate) fn send(
    since: Option<BackupId>,
    state: Option<PathBuf>,
    the_box: &TheBox,
    out: &Output,
) -> anyhow::Result<()> {
    let folders: Vec<_> =
        state.iter().filter_map(|path| path.parent()).map(Path::to_owned).collect();
    confine(&folders, out)?;
    let state = StateFile::new(state);
    let pipe = standard(&io::stdout())?;
    let mut frames = Frames(BufWriter::with_capacity(1 << 20, pipe));
    let mut told = 0;
    let watch = |bytes: u64, of: Option<u64>| {
        if told == 0 || bytes - told >= TELL_EVERY_BYTES {
            told = bytes;
            let of = of.map(|of| format!(" of at most {}", mib(of))).unwrap_or_default();
            // The backup goes on, whether somebody sees it or not.
            let _unseen =
                state.tell(Phase::Writing, false, false, &[format!("backup: {}{of}", mib(bytes))]);
        }
    };
    let mut watch = watch;
    let uri = |since: Option<BackupId>| match since {
        Some(id) => format!("{}?since={id}", path::BACKUP),
        None => path::BACKUP.to_owned(),
    };
    let mut made =
        the_box.command_fetch_watched(&uri(since), &mut frames, BACKUP_BYTES, &mut watch);
    // A box that was restored, or made many since, does not remember the one on the stick. Nothing was sent yet.
    let refused =
        |error: &anyhow::Error| matches!(error.downcast_ref(), Some(client::Error::Refused(_)));
    if since.is_some() && made.as_ref().is_err_and(refused) {
        made = the_box.command_fetch_watched(&uri(None), &mut frames, BACKUP_BYTES, &mut watch);
    }
    let bytes = made?;
    frames.finish().context("the stick does not take it")?;
    let last = format!("backup: all {} are there; they are read back now", mib(bytes));
    state.tell(Phase::Writing, false, false, &[last])
}

/// The end at the stick: writes what comes through standard input, in parts of at most so many bytes, and reads it back.
///
/// This process gives up everything else for good: nothing but the end of the program can come after it.
pub(crate) fn take(device: &Path, part_bytes: u64, out: &Output) -> anyhow::Result<()> {
    sandbox::close_inherited().context("cannot see which files are open")?;
    let device = Device::open(device, true)?;
    read::confine(&[], out)?;
    let pipe = standard(&io::stdin())?;
    let mut source = Source {
        frames: Unframed { input: BufReader::with_capacity(1 << 20, pipe), left: 0, ended: false },
        hasher: Hasher::default(),
        bytes: 0,
    };
    let mut head = Vec::new();
    let sealed = Sealed::open(Tee { input: &mut source, copy: &mut head })
        .context("nothing came from the box that is a backup")?;
    let (id, header) = (sealed.id(), sealed.header().clone());
    let mut volume = Volume::find(device, TOP)?;
    let marked = find(&mut volume, &[TOP, Folder::Out.name()])?.is_some_and(|e| e.is_folder);
    ensure!(marked, "the stick is not marked with a folder {TOP}/{}", Folder::Out);
    let name = unused_name(&mut volume, &header, id)?;
    let mut writer = Writer::new(volume)?;
    let rest = &mut source;
    let parts =
        lay(&mut writer, &mut head.as_slice().chain(rest), part_bytes.min(BACKUP_PART_BYTES_MAX))?;
    // The first part comes last: what has its name is complete.
    for (number, part) in (1..).zip(&parts).collect::<Vec<_>>().into_iter().rev() {
        writer.name_laid(&FOLDER, &format!("{name}{}", parts::suffix(number)), part)?;
    }
    let device = writer.finish()?;
    device.forget()?;
    let (sha256, bytes) = (source.hasher.finish(), source.bytes);
    read_back(&mut Volume::find(device, TOP)?, &name, parts.len(), sha256, bytes)?;
    let written = Written { id, name, parts: parts.len(), bytes, sha256 };
    out.raw(&serde_json::to_string(&written).context("cannot say what was written")?)
}

const FOLDER: [&str; 2] = [TOP, "BACKUP"];

fn lay(
    writer: &mut Writer<Device>,
    source: &mut dyn Read,
    part_bytes: u64,
) -> anyhow::Result<Vec<Laid>> {
    let mut parts: Vec<Laid> = Vec::new();
    loop {
        let laid = match writer.lay(source, part_bytes) {
            Ok(laid) if parts.len() < BACKUP_PARTS_MAX as usize => laid,
            failed => {
                for part in parts {
                    // A stick that is gone has lost some space; why it is gone is what counts.
                    let _lost = writer.release(part);
                }
                failed.context("the backup was not written")?;
                anyhow::bail!("the backup has too many parts");
            }
        };
        let is_last = laid.bytes() < part_bytes;
        if laid.bytes() > 0 {
            parts.push(laid);
        }
        if is_last {
            return Ok(parts);
        }
    }
}

/// Reads all parts from the medium again.
fn read_back(
    volume: &mut Volume<Device>,
    name: &str,
    parts: usize,
    sha256: Sha256,
    bytes: u64,
) -> anyhow::Result<()> {
    let (mut hasher, mut length) = (Hasher::default(), 0_u64);
    for number in (1..).take(parts) {
        let name = format!("{name}{}", parts::suffix(number));
        let entry = find(volume, &[TOP, Folder::Backup.name(), &name])?;
        let entry = entry.with_context(|| format!("{name} is not on the stick"))?;
        length += entry.bytes;
        volume.read(&entry, &mut |piece| {
            hasher.update(piece);
            Ok(())
        })?;
    }
    ensure!(
        hasher.finish() == sha256 && length == bytes,
        "the backup is not on the stick as it was written: take another stick"
    );
    Ok(())
}

/// `alpha.example-12-full.backup`, which nothing on the stick is called. A box that was restored counts on where its backup was made.
fn unused_name(
    volume: &mut Volume<Device>,
    header: &Header,
    id: BackupId,
) -> anyhow::Result<String> {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let enclave: String = header.enclave.as_str().chars().take(NAME_CHARS).map(fits).collect();
    let kind = if header.is_full() { "full" } else { "since" };
    let name = format!("{enclave}-{}-{kind}", header.number);
    let short: String = id.to_string().chars().take(8).collect();
    for name in [format!("{name}.backup"), format!("{name}-{short}.backup")] {
        if find(volume, &[TOP, Folder::Backup.name(), &name])?.is_none() {
            return Ok(name);
        }
    }
    anyhow::bail!("the stick has this backup already")
}

/// Standard input or output as a file: what Rust has for them looks at lines.
fn standard(of: &impl AsFd) -> anyhow::Result<File> {
    Ok(of.as_fd().try_clone_to_owned().context("there is no pipe")?.into())
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Bytes on their way into a pipe. Each frame says how long it is, and one of nothing is the end: so whoever reads knows whether all has come.
struct Frames<W>(W);

impl<W: Write> Frames<W> {
    fn finish(mut self) -> io::Result<()> {
        self.0.write_all(&0_u32.to_be_bytes())?;
        self.0.flush()
    }
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.0.write_all(&length.to_be_bytes())?;
        self.0.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The other side of [`Frames`].
struct Unframed<R> {
    input: R,
    left: usize,
    ended: bool,
}

impl<R: Read> Read for Unframed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut length = [0; 4];
            self.input.read_exact(&mut length)?;
            self.left = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
            self.ended = self.left == 0;
        }
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let room = buffer.len().min(self.left);
        let read = self.input.read(buffer.get_mut(..room).unwrap_or_default())?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}

/// Hashes and counts what passes.
struct Source<R> {
    frames: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.frames.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Keeps a copy of what passes.
struct Tee<'a, R> {
    input: R,
    copy: &'a mut Vec<u8>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.copy.extend_from_slice(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_end_where_they_say() {
        let mut pipe = Vec::new();
        let mut frames = Frames(&mut pipe);
        for piece in ["one ", "", "and two"] {
            frames.write_all(piece.as_bytes()).unwrap();
        }
        frames.finish().unwrap();
        let read = |pipe: &[u8]| {
            let mut text = String::new();
            let mut unframed = Unframed { input: pipe, left: 0, ended: false };
            unframed.read_to_string(&mut text).map(|_| text)
        };
        assert_eq!(read(&pipe).unwrap(), "one and two");
        for end in 0..pipe.len() {
            let error = read(&pipe[..end]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
    }
}
