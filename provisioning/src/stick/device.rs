//! The medium: a block device or an image in a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::{Context as _, ensure};
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use sallyport_volume::{Disk, DiskMut};

/// An open medium.
pub(crate) struct Device {
    file: File,
    bytes: u64,
}

impl Device {
    pub(crate) fn open(path: &Path, to_write: bool) -> anyhow::Result<Self> {
        let shown = path.display();
        let mut file = OpenOptions::new()
            .read(true)
            .write(to_write)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
            .open(path)
            .with_context(|| format!("cannot open {shown}: is the stick plugged in?"))?;
        let kind = file.metadata().with_context(|| format!("cannot look at {shown}"))?.file_type();
        ensure!(
            kind.is_block_device() || kind.is_file(),
            "{shown} is neither a device with blocks nor an image of one"
        );
        let bytes =
            file.seek(SeekFrom::End(0)).with_context(|| format!("cannot measure {shown}"))?;
        Ok(Self { file, bytes })
    }

    /// Forgets what was read and written, so that the next read asks the medium.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .context("the kernel does not forget what it wrote")
    }
}

impl Disk for Device {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl DiskMut for Device {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}
