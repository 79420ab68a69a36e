//! Reads volumes of strangers without the kernel: FAT32, exFAT, and *raw* ones without a file system. Writes files to FAT32.
//!
//! A stick is the one thing that anybody can hand to a box, and file systems in a kernel were not written for media made to break
//! them. Here every number that a medium gives is held against the size of the device before it is used, chains of clusters
//! that loop or end early are errors, folders and names have bounds, memory does not depend on the medium, and there is no `unsafe`.
//!
//! [`Volume::find`] looks for the volume with the folder that is asked for: on the whole device, then in the partitions of an MBR or a
//! GPT. [`Volume::list`] and [`Volume::read`] read, [`Writer`] writes.
//!
//! # A raw volume
//! For a medium that an officer writes with nothing but `dd`: one file, without a file system.
//!
//! | place | content |
//! |---|---|
//! | byte 0 | `sallyport-raw/1`, line feed; `FOLDER/NAME` of the file, line feed; its bytes in decimal digits, line feed; ASCII, at most 512 bytes |
//! | byte 1 048 576 (LBA 2048) | the file |

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod bytes;
mod disk;
mod error;
mod exfat;
mod fat32;
mod heap;
mod partition;
mod raw;

use disk::Window;
pub use disk::{Disk, DiskMut};
use error::Result;
pub use error::{Damage, Error};
use exfat::ExFat;
use fat32::Fat32;
pub use fat32::{Laid, Writer};
use heap::Chain;
use raw::Raw;

/// Entries of one folder that are looked at, deleted ones included. (A folder of FAT32 cannot have more than 65 536.)
pub const FOLDER_ENTRIES_MAX: usize = 65_536;
/// Bytes of such entries.
const FOLDER_BYTES_MAX: u64 = FOLDER_ENTRIES_MAX as u64 * 32;
/// Bytes of a file that are handed over at a time.
pub const PIECE_BYTES: usize = 256 * 1024;
/// Partitions that are looked at.
const PARTITIONS_MAX: usize = 128;

/// A volume that files can be read from.
pub struct Volume<D> {
    disk: Window<D>,
    system: System,
}

/// How files lie on it.
enum System {
    Fat32(Fat32),
    ExFat(ExFat),
    Raw(Raw),
}

/// The kinds of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// FAT with 32-bit entries.
    Fat32,
    /// exFAT.
    ExFat,
    /// One file without a file system.
    Raw,
}

/// A file or a folder on a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name as the medium has it: nothing that may be used as a path.
    pub name: String,
    /// Its size in bytes; of a folder 0.
    pub bytes: u64,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Where its content is.
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Clusters(Chain),
    Raw { folder: bool },
}

impl<D: Disk> Volume<D> {
    /// The first volume on a device whose root has a folder of this name, in whatever case; without one the first volume that can be
    /// read at all.
    ///
    /// # Errors
    /// [`Error::NoVolume`] if there is none, with what is wrong with the most likely place; [`Error::Io`] if the device cannot be read.
    pub fn find(disk: D, folder: &str) -> Result<Self> {
        let mut window = Window::whole(disk);
        let (mut first, mut why) = (None, None);
        for extent in partition::extents(&mut window)? {
            window.set(extent);
            let opened = System::open(&mut window)
                .and_then(|system| Ok((list(&mut window, &system, None)?, system)));
            match opened {
                Ok((entries, system)) => {
                    let wanted =
                        |entry: &Entry| entry.is_folder && entry.name.eq_ignore_ascii_case(folder);
                    if entries.iter().any(wanted) {
                        return Ok(Self { disk: window, system });
                    }
                    first.get_or_insert((extent, system));
                }
                Err(Error::Io(error)) => return Err(Error::Io(error)),
                // Nothing at all in one place says less than a fault in another.
                Err(error) => match why {
                    None | Some(Error::NoVolume(None)) => why = Some(error),
                    Some(_) => {}
                },
            }
        }
        let Some((extent, system)) = first else {
            return Err(Error::NoVolume(match why {
                None | Some(Error::NoVolume(None)) => None,
                Some(error) => Some(Box::new(error)),
            }));
        };
        window.set(extent);
        Ok(Self { disk: window, system })
    }

    /// What kind of volume it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.system {
            System::Fat32(_) => Kind::Fat32,
            System::ExFat(_) => Kind::ExFat,
            System::Raw(_) => Kind::Raw,
        }
    }

    /// What is in a folder, in the order of the medium; `None` is the root.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the folder is not sound or has more than [`FOLDER_ENTRIES_MAX`] entries.
    pub fn list(&mut self, folder: Option<&Entry>) -> Result<Vec<Entry>> {
        list(&mut self.disk, &self.system, folder)
    }

    /// Hands the content of a file over, piece by piece of at most [`PIECE_BYTES`].
    ///
    /// # Errors
    /// [`Error::Damaged`] if its clusters are not as many as its size says; what was handed over before is then not the file. And
    /// whatever `each` answers.
    pub fn read(
        &mut self,
        file: &Entry,
        each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        self.read_first(file, u64::MAX, each)
    }

    /// As [`Volume::read`], but no more than the first so many bytes.
    ///
    /// # Errors
    /// As [`Volume::read`], as far as was read.
    pub fn read_first(
        &mut self,
        file: &Entry,
        most: u64,
        each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        match (&self.system, &file.place) {
            (System::Fat32(fat), Place::Clusters(chain)) => {
                fat.heap.read(&mut self.disk, chain, file.bytes, most, each)
            }
            (System::ExFat(exfat), Place::Clusters(chain)) => {
                exfat.heap.read(&mut self.disk, chain, file.bytes, most, each)
            }
            (System::Raw(raw), Place::Raw { folder: false }) => {
                raw.read(&mut self.disk, most, each)
            }
            _ => Err(Error::Damaged(Damage::NotAFile)),
        }
    }

    /// The device, back.
    pub fn into_disk(self) -> D {
        self.disk.into_inner()
    }
}

impl System {
    fn open<D: Disk>(disk: &mut Window<D>) -> Result<Self> {
        let mut sector = [0; 512];
        disk.read_at(0, &mut sector)?;
        if raw::is_one(&sector) {
            return Raw::open(disk, &sector).map(Self::Raw);
        }
        if exfat::is_one(&sector) {
            return ExFat::open(disk, &sector).map(Self::ExFat);
        }
        Fat32::open(disk, &sector).map(Self::Fat32)
    }
}

fn list<D: Disk>(
    disk: &mut Window<D>,
    system: &System,
    folder: Option<&Entry>,
) -> Result<Vec<Entry>> {
    let clusters = |folder: &Entry| match &folder.place {
        Place::Clusters(chain) if folder.is_folder => Ok(chain.clone()),
        _ => Err(Error::Damaged(Damage::NotAFolder)),
    };
    match system {
        System::Fat32(fat) => fat.list(disk, folder.map(clusters).transpose()?),
        System::ExFat(exfat) => exfat.list(disk, folder.map(clusters).transpose()?),
        System::Raw(raw) => raw.list(folder),
    }
}
