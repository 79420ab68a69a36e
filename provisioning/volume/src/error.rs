//! Why a volume is not read or not written.

/// Why a volume is not read or not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device does not answer.
    #[error("the stick cannot be read or written: was it pulled out?")]
    Io(#[from] std::io::Error),
    /// No volume of a known kind.
    #[error("there is no FAT32 or exFAT volume on the stick: format it as one of them")]
    NoVolume(#[source] Option<Box<Error>>),
    /// What the medium says of itself cannot be.
    #[error("the stick's file system is damaged: check it at a desk, or format the stick again")]
    Damaged(#[source] Damage),
    /// Only FAT32 is written.
    #[error("files are written to FAT32 only: format the stick as FAT32")]
    NotWritable,
    /// No free space.
    #[error("the stick is full")]
    Full,
    /// Larger than any file of FAT32.
    #[error("a file on FAT32 has less than 4 GiB")]
    TooLarge,
    /// A file of this name is there.
    #[error("there is a file of this name already")]
    Exists,
    /// A name that is not written.
    #[error("not a name that is written to a stick")]
    Name,
    /// Somebody changed the source while it was copied.
    #[error("the file changed its size while it was copied")]
    Source,
    /// What comes without a known end was broken off.
    #[error("what was to be written broke off")]
    BrokenOff(#[source] std::io::Error),
}

/// What is wrong with a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The boot sector has a value that cannot be.
    #[error("the boot sector is not sound ({0})")]
    BootSector(&'static str),
    /// The volume says it is larger than the device.
    #[error(
        "the volume is larger than the device: the stick is counterfeit, or the image was cut short"
    )]
    Truncated,
    /// FAT12 or FAT16.
    #[error("the volume is FAT12 or FAT16, which is not read")]
    SmallFat,
    /// A chain of clusters leads out of the volume or to a free or bad cluster.
    #[error("a chain of clusters leads nowhere")]
    Chain,
    /// A chain of clusters comes back to itself.
    #[error("a chain of clusters loops")]
    Loop,
    /// A chain has more or fewer clusters than the size says.
    #[error("a file has more or fewer clusters than its size says")]
    Length,
    /// More entries than [`crate::FOLDER_ENTRIES_MAX`].
    #[error("a folder has too many entries")]
    Folder,
    /// A set of entries of exFAT is not complete, or its checksum is wrong.
    #[error("an entry of a folder is not sound")]
    Entry,
    /// A file of exFAT was not written to its end.
    #[error("a file was not written to its end")]
    Unfinished,
    /// The label of a raw volume is not as it should be.
    #[error("the label of the raw volume is not sound")]
    RawLabel,
    /// A folder where a file should be.
    #[error("not a file")]
    NotAFile,
    /// A file where a folder should be.
    #[error("not a folder")]
    NotAFolder,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl From<Damage> for Error {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}
