//! Reading and writing files with care: bounded, never through a link, and never half.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use nix::fcntl::OFlag;
use sallyport_core::digest::{Hasher, Sha256};

/// Reads a file of at most `bytes_max` bytes.
pub(crate) fn read(path: &Path, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    read_all(file, path, bytes_max)
}

/// As [`read`], for a file that comes from outside: only a regular file, not through a symbolic link.
pub(crate) fn open_foreign(path: &Path) -> anyhow::Result<File> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
        .with_context(|| format!("cannot open {shown}"))?;
    let metadata = file.metadata().with_context(|| format!("cannot look at {shown}"))?;
    ensure!(metadata.is_file(), "{shown} is not a regular file: it is left alone");
    Ok(file)
}

/// Reads an open file of at most `bytes_max` bytes.
pub(crate) fn read_all(file: File, path: &Path, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() > bytes_max {
        bail!("{} is larger than the {bytes_max} bytes that such a file may have", path.display());
    }
    Ok(bytes)
}

/// The hash of an open file of any size, and how many bytes it has.
pub(crate) fn hash(mut file: File, path: &Path) -> anyhow::Result<(Sha256, u64)> {
    const PIECE_BYTES: usize = 256 * 1024;
    let (mut hasher, mut bytes) = (Hasher::default(), 0);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read =
            file.read(&mut piece).with_context(|| format!("cannot read {}", path.display()))?;
        let Some(read) = piece.get(..read).filter(|read| !read.is_empty()) else {
            return Ok((hasher.finish(), bytes));
        };
        hasher.update(read);
        bytes += read.len() as u64;
    }
}

/// Makes a new file that only its owner may read; refuses to replace one.
pub(crate) fn create_secret(path: &Path) -> anyhow::Result<File> {
    create(path, 0o600)
}

/// Writes a new file and waits until it is on the disk; refuses to replace one.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = create(path, 0o644)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces a file, so that after a power cut either the old or the new content is there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), sync_folder)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Waits until a folder's entries are on the disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn create(path: &Path, mode: u32) -> anyhow::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path).with_context(|| {
        format!("cannot make {} (an existing file is not replaced)", path.display())
    })
}
