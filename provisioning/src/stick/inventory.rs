//! What a stick brought: the list that gate 1 leaves in the quarantine for gate 2.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use sallyport_core::limits::{STICK_FILES_MAX, STICK_INVENTORY_BYTES_MAX};
use sallyport_volume::Kind;
use serde::{Deserialize, Serialize};

use super::{Folder, IN, OUT};
use crate::files;

/// The list's own file, in [`IN`].
const FILE: &str = "inventory.json";

/// What a stick brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inventory {
    /// The kind of volume.
    pub(crate) volume: VolumeKind,
    /// Whether it has the folder that permits to write to it.
    pub(crate) marked_out: bool,
    /// What was copied, in order.
    pub(crate) files: Vec<Brought>,
    /// What was left alone, up to a bound.
    pub(crate) left: Vec<Left>,
    /// How much was left alone.
    pub(crate) left_count: usize,
}

/// As [`Kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VolumeKind {
    Fat32,
    #[serde(rename = "exfat")]
    ExFat,
    Raw,
}

/// A file in the quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Brought {
    /// Its folder, on the stick and in the quarantine.
    pub(crate) folder: Folder,
    /// Its number in the folder, which its name in the quarantine is made of.
    pub(crate) number: usize,
    /// What kind of file it is, by its extension.
    pub(crate) kind: String,
    /// The name on the stick, for people only.
    pub(crate) name: String,
    /// Its size.
    pub(crate) bytes: u64,
}

/// What was not copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Left {
    /// Folder and name on the stick, for people only.
    pub(crate) name: String,
    /// Why.
    pub(crate) why: String,
}

impl Brought {
    /// Where it is in the quarantine.
    pub(crate) fn path(&self, quarantine: &Path) -> PathBuf {
        let name = format!("{:03}.{}", self.number, self.kind);
        quarantine.join(IN).join(self.folder.name()).join(name)
    }

    /// How people call it.
    pub(crate) fn shown(&self) -> String {
        format!("{}/{}", self.folder, super::shown(&self.name))
    }
}

impl Inventory {
    /// Writes the list; it is the last file of the quarantine, so that half a quarantine has none.
    pub(crate) fn write(&self, quarantine: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(self).context("cannot write the list of files")?;
        let path = quarantine.join(IN).join(FILE);
        let mut file = files::create_secret(&path)?;
        file.write_all(&json)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the list, as foreign as everything beside it.
    pub(crate) fn read(quarantine: &Path) -> anyhow::Result<Self> {
        let path = quarantine.join(IN).join(FILE);
        let shown = path.display();
        let file = files::open_foreign(&path)
            .context("no stick was read: run `sallyctl stick read` first")?;
        let json = files::read_all(file, &path, STICK_INVENTORY_BYTES_MAX)?;
        let inventory: Self =
            serde_json::from_slice(&json).with_context(|| format!("{shown} is not sound"))?;
        let known = |file: &Brought| file.folder.kinds().iter().any(|(kind, _)| file.kind == *kind);
        ensure!(
            inventory.files.len() <= STICK_FILES_MAX && inventory.files.iter().all(known),
            "{shown} is not sound"
        );
        Ok(inventory)
    }

    /// The files of a kind in a folder.
    pub(crate) fn of(&self, folder: Folder, kind: &str) -> impl Iterator<Item = &Brought> {
        let kind = kind.to_owned();
        self.files.iter().filter(move |file| file.folder == folder && file.kind == kind)
    }

    /// Whether files can be written back.
    pub(crate) fn takes_files(&self) -> bool {
        self.marked_out && self.volume == VolumeKind::Fat32
    }
}

impl From<Kind> for VolumeKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Fat32 => Self::Fat32,
            Kind::ExFat => Self::ExFat,
            Kind::Raw => Self::Raw,
        }
    }
}

/// Makes the quarantine if it is not there.
pub(crate) fn prepare(quarantine: &Path) -> anyhow::Result<()> {
    let shown = quarantine.display();
    match quarantine.symlink_metadata() {
        Ok(metadata) => ensure!(metadata.is_dir(), "{shown} is not a folder"),
        Err(_) => make_folder(quarantine).with_context(|| format!("cannot make {shown}"))?,
    }
    Ok(())
}

/// Removes everything that an earlier stick brought, and what was to go out with it.
pub(crate) fn empty(quarantine: &Path) -> anyhow::Result<()> {
    for part in [IN, OUT] {
        let folder = quarantine.join(part);
        let shown = folder.display();
        if folder.symlink_metadata().is_ok() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {shown}"))?;
        }
        make_folder(&folder).with_context(|| format!("cannot make {shown}"))?;
    }
    Ok(())
}

/// A new folder that only its owner sees.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}
