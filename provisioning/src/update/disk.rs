//! The disk of a box, or an image of one in a file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, OFlag, fallocate},
    sys::stat::{major, minor},
};

use super::{
    gpt::Extent,
    medium::{Medium, SECTOR_BYTES, Window},
};

/// What a partition is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To look at it, in use or not.
    Read,
    /// To write to it: fails if it is in use.
    Write,
    /// To write to it whoever uses it.
    Destroy,
}

/// A disk with partitions.
pub(crate) trait Disk {
    /// What its parts are.
    type Medium: Medium;

    /// All of it: where the partition table is.
    fn whole(&self, access: Access) -> anyhow::Result<Self::Medium>;

    /// One partition.
    fn partition(&self, place: &Extent, access: Access) -> anyhow::Result<Self::Medium>;
}

/// A block device or an image file.
pub(crate) struct LocalDisk {
    path: PathBuf,
    /// The folder of the device in sysfs; none for an image file.
    sysfs: Option<PathBuf>,
}

impl LocalDisk {
    /// Looks at what the path names.
    pub(crate) fn at(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let found = fs::metadata(path).with_context(|| format!("there is no disk {shown}"))?;
        let kind = found.file_type();
        ensure!(
            kind.is_file() || kind.is_block_device(),
            "{shown} is neither a disk nor an image of one"
        );
        let sysfs = kind.is_block_device().then(|| {
            let device = found.rdev();
            PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
        });
        Ok(Self { path: path.to_owned(), sysfs })
    }

    /// The disk that a partition is on, which is named by its id.
    pub(crate) fn with_partition(id: &str) -> anyhow::Result<Self> {
        let link = Path::new("/dev/disk/by-partuuid").join(id);
        let found = fs::canonicalize(&link).with_context(|| {
            format!(
                "the running system's partition {} is not there: name the disk with --disk",
                link.display()
            )
        })?;
        let name = found.file_name().context("a partition without a name")?;
        let sysfs = fs::canonicalize(Path::new("/sys/class/block").join(name));
        let sysfs = sysfs.with_context(|| format!("{} is no partition", found.display()))?;
        let disk =
            sysfs.parent().and_then(Path::file_name).context("a partition without a disk")?;
        Self::at(&Path::new("/dev").join(disk))
    }

    /// The device of a partition; of an image file, the file itself.
    pub(crate) fn device_of(&self, place: &Extent) -> anyhow::Result<PathBuf> {
        match &self.sysfs {
            Some(sysfs) => self.device(sysfs, place),
            None => Ok(self.path.clone()),
        }
    }

    /// Has the medium forget a partition, whoever uses it; answers whether it can. What is read there afterwards are zeros.
    pub(crate) fn discard(&self, place: &Extent) -> anyhow::Result<bool> {
        let path = self.device_of(place)?;
        let start = if self.sysfs.is_some() { 0 } else { place.start };
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&file, hole, i64::try_from(start)?, i64::try_from(place.bytes)?) {
            Err(Errno::EOPNOTSUPP) => Ok(false),
            done => done.map(|()| true).context("the partition cannot be discarded"),
        }
    }

    /// The device of a partition, if it lies where the table says.
    fn device(&self, sysfs: &Path, place: &Extent) -> anyhow::Result<PathBuf> {
        let number = |folder: &Path, name: &str| -> Option<u64> {
            fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        let folders =
            fs::read_dir(sysfs).with_context(|| format!("cannot read {}", sysfs.display()))?;
        for folder in folders {
            let folder = folder.context("cannot list partitions")?.path();
            let sector = SECTOR_BYTES as u64;
            let start = number(&folder, "start").map(|start| start * sector);
            let bytes = number(&folder, "size").map(|size| size * sector);
            if number(&folder, "partition").is_some()
                && (start, bytes) == (Some(place.start), Some(place.bytes))
                && let Some(name) = folder.file_name()
            {
                return Ok(Path::new("/dev").join(name));
            }
        }
        anyhow::bail!(
            "the kernel knows no partition at byte {} of {}: start the box again, then try once more",
            place.start,
            self.path.display()
        )
    }
}

impl Disk for LocalDisk {
    type Medium = Window;

    fn whole(&self, access: Access) -> anyhow::Result<Window> {
        // Never exclusively: its other partitions are in use.
        let mut file = open(&self.path, access, OFlag::empty())?;
        let bytes = file.seek(SeekFrom::End(0)).context("the disk has no size")?;
        Ok(Window::new(file, 0, bytes))
    }

    fn partition(&self, place: &Extent, access: Access) -> anyhow::Result<Window> {
        let Some(sysfs) = &self.sysfs else {
            let file = open(&self.path, access, OFlag::empty())?;
            return Ok(Window::new(file, place.start, place.bytes));
        };
        let device = self.device(sysfs, place)?;
        // For a device this means: fail if anybody has mounted or mapped it.
        let exclusive = if access == Access::Write { OFlag::O_EXCL } else { OFlag::empty() };
        Ok(Window::new(open(&device, access, exclusive)?, 0, place.bytes))
    }
}

/// Opens past the kernel's cache, which would answer from memory what is to be read from the medium; with it where a file system cannot do otherwise.
fn open(path: &Path, access: Access, flags: OFlag) -> anyhow::Result<File> {
    let with = |flags: OFlag| {
        let mut options = OpenOptions::new();
        options.read(true).write(access != Access::Read).custom_flags(flags.bits()).open(path)
    };
    let opened = match with(flags | OFlag::O_DIRECT) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => with(flags),
        opened => opened,
    };
    let shown = path.display();
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            anyhow::Error::new(error).context(format!("{shown} is in use, so it is not written to"))
        }
        _ => anyhow::Error::new(error).context(format!("cannot open {shown}")),
    })
}
