//! Gate 1, inwards: copies what is known from a medium into the quarantine.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use sallyport_core::limits::{BACKUP_HEAD_BYTES_MAX, STICK_FILES_MAX, STICK_LEFT_SHOWN_MAX};
use sallyport_hsm::sandbox::{self, Calls, Enforced, Files};
use sallyport_volume::{Entry, Error, Volume};

use super::{
    Folder, IN, TOP,
    device::Device,
    inventory::{self, Brought, Inventory, Left},
    kind_of, shown,
};
use crate::{files, output::Output, parts};

/// Reads a medium into the quarantine, which is emptied first. Files of more than `bytes_max` bytes together do not fit.
///
/// This process gives up everything else for good: nothing but the end of the program can come after it.
pub(crate) fn read(
    device: &Path,
    quarantine: &Path,
    bytes_max: u64,
    out: &Output,
) -> anyhow::Result<()> {
    sandbox::close_inherited().context("cannot see which files are open")?;
    let device = Device::open(device, false)?;
    inventory::prepare(quarantine)?;
    confine(&[quarantine.to_owned()], out)?;
    inventory::empty(quarantine)?;
    let volume = Volume::find(device, TOP)?;
    let mut gate = Gate {
        inventory: Inventory {
            volume: volume.kind().into(),
            marked_out: false,
            files: Vec::new(),
            left: Vec::new(),
            left_count: 0,
        },
        volume,
        quarantine,
        bytes_left: bytes_max,
        out,
    };
    gate.copy_all()?;
    gate.inventory.write(quarantine)?;
    files::sync_folder(&quarantine.join(IN)).context("cannot write to the quarantine")?;
    let Inventory { files, left_count, .. } = &gate.inventory;
    out.note(&format!("{} files are in quarantine, {left_count} were left alone.", files.len()))
}

/// Leaves this process nothing but the files that are open, these folders, and the calls that copying takes.
pub(crate) fn confine(folders: &[PathBuf], out: &Output) -> anyhow::Result<()> {
    let files = Files { reading_too: true, folders, devices: None };
    let confined = sandbox::settle().and_then(|()| sandbox::confine_files(&files));
    let enforced = confined.context("cannot enter the sandbox")?;
    if enforced == Enforced::NotAtAll {
        out.note("WARNING: this kernel has no landlock; the reader could open other files.")?;
    }
    sandbox::confine_calls(Calls::Copying).context("cannot enter the sandbox")
}

struct Gate<'a> {
    volume: Volume<Device>,
    quarantine: &'a Path,
    inventory: Inventory,
    bytes_left: u64,
    out: &'a Output,
}

impl Gate<'_> {
    fn copy_all(&mut self) -> anyhow::Result<()> {
        let root = self.volume.list(None)?;
        let Some(top) = root.into_iter().find(|entry| is_folder(entry, TOP)) else {
            return self.leave("the stick", "it has no folder SALLYPORT");
        };
        let mut entries = self.volume.list(Some(&top))?;
        for folder in Folder::ALL {
            let place = entries.iter().position(|entry| is_folder(entry, folder.name()));
            let Some(entry) = place.map(|place| entries.remove(place)) else { continue };
            if folder == Folder::Out {
                self.inventory.marked_out = true;
            }
            self.copy_folder(folder, &entry)?;
        }
        // Results of earlier visits are no surprise.
        entries.retain(|entry| !is_folder(entry, super::RESULTS));
        for entry in entries {
            self.leave(&shown(&entry.name), "it is not one of the folders that are looked at")?;
        }
        Ok(())
    }

    fn copy_folder(&mut self, folder: Folder, entry: &Entry) -> anyhow::Result<()> {
        let entries = match self.volume.list(Some(entry)) {
            Ok(entries) => entries,
            Err(Error::Damaged(damage)) => {
                return self.leave(folder.name(), &format!("the folder cannot be read: {damage}"));
            }
            Err(error) => return Err(error.into()),
        };
        let target = self.quarantine.join(IN).join(folder.name());
        inventory::make_folder(&target).context("cannot make a folder in the quarantine")?;
        for entry in entries {
            let name = format!("{folder}/{}", shown(&entry.name));
            if folder == Folder::Backup && parts::is_further(&entry.name) {
                continue;
            }
            match self.judge(folder, &entry) {
                Ok(kind) => self.copy(folder, kind, &entry)?,
                Err(why) => self.leave(&name, why)?,
            }
        }
        files::sync_folder(&target).context("cannot write to the quarantine")
    }

    /// The kind of a file that is to be copied, or why it is not.
    fn judge(&self, folder: Folder, entry: &Entry) -> Result<&'static str, &'static str> {
        if entry.is_folder {
            return Err("folders in there are not looked at");
        }
        let (kind, bytes_max) =
            kind_of(folder, &entry.name).ok_or("it is not a kind of file that belongs there")?;
        if self.inventory.files.len() == STICK_FILES_MAX {
            return Err("there are too many files on the stick: remove old ones");
        }
        if entry.bytes > bytes_max {
            return Err("it is larger than such a file may be");
        }
        if copied_bytes(folder, entry) > self.bytes_left {
            return Err("there is no room for it: bring fewer files at a time");
        }
        Ok(kind)
    }

    fn copy(&mut self, folder: Folder, kind: &str, entry: &Entry) -> anyhow::Result<()> {
        let number = self.inventory.files.iter().filter(|file| file.folder == folder).count() + 1;
        let name = entry.name.clone();
        let brought = Brought { folder, number, kind: kind.to_owned(), name, bytes: entry.bytes };
        let path = brought.path(self.quarantine);
        let mut file = files::create_secret(&path)?;
        let mut unwritten = None;
        let copied = self.volume.read_first(entry, copied_bytes(folder, entry), &mut |piece| {
            file.write_all(piece).map_err(|error| {
                let kind = error.kind();
                unwritten = Some(error);
                kind.into()
            })
        });
        if let Some(error) = unwritten {
            return Err(anyhow::Error::from(error).context("cannot write to the quarantine"));
        }
        match copied {
            Ok(()) => {
                file.sync_all().context("cannot write to the quarantine")?;
                self.bytes_left -= copied_bytes(folder, entry);
                self.out.note(&format!("{}: {} bytes", brought.shown(), brought.bytes))?;
                self.inventory.files.push(brought);
                Ok(())
            }
            Err(Error::Damaged(damage)) => {
                fs::remove_file(&path).context("cannot remove half a file from the quarantine")?;
                self.leave(&brought.shown(), &format!("{damage}: copy it to the stick again"))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn leave(&mut self, name: &str, why: &str) -> anyhow::Result<()> {
        self.inventory.left_count += 1;
        if self.inventory.left.len() < STICK_LEFT_SHOWN_MAX {
            self.inventory.left.push(Left { name: name.to_owned(), why: why.to_owned() });
            self.out.note(&format!("{name}: left alone, {why}"))?;
        }
        Ok(())
    }
}

/// How much of a file is copied: of backups, which may be as large as the stick, what tells which one it is.
fn copied_bytes(folder: Folder, entry: &Entry) -> u64 {
    let most = if folder == Folder::Backup { BACKUP_HEAD_BYTES_MAX as u64 } else { u64::MAX };
    entry.bytes.min(most)
}

fn is_folder(entry: &Entry, name: &str) -> bool {
    entry.is_folder && entry.name.eq_ignore_ascii_case(name)
}
