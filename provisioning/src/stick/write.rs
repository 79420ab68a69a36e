//! Gate 1, outwards: puts what gate 2 left in the quarantine onto a medium that is marked for it, and reads it back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use sallyport_core::{
    digest::{Hasher, Sha256},
    limits::STICK_FILES_MAX,
};
use sallyport_hsm::sandbox;
use sallyport_volume::{Entry, Error, Volume, Writer};

use super::{Folder, OUT, RESULT, RESULTS, TOP, device::Device, read};
use crate::{files, output::Output};

/// Results on one stick.
const RESULTS_MAX: usize = 1000;

/// A file that goes onto the stick.
struct Outgoing {
    source: PathBuf,
    folder: &'static str,
    name: String,
    bytes: u64,
    sha256: Sha256,
}

/// Writes everything in the folder `out` of the quarantine to a medium.
///
/// This process gives up everything else for good: nothing but the end of the program can come after it.
pub(crate) fn write(device: &Path, quarantine: &Path, out: &Output) -> anyhow::Result<()> {
    sandbox::close_inherited().context("cannot see which files are open")?;
    let device = Device::open(device, true)?;
    read::confine(&[quarantine.to_owned()], out)?;
    let mut outgoing = outgoing(&quarantine.join(OUT))?;
    if outgoing.is_empty() {
        return out.note("There is nothing to write.");
    }
    let mut volume = Volume::find(device, TOP)?;
    let marked = find(&mut volume, &[TOP, Folder::Out.name()])?.is_some_and(|e| e.is_folder);
    ensure!(
        marked,
        "the stick is not marked: make a folder {TOP}/{} on a stick that may be written to",
        Folder::Out
    );
    let mut there = Vec::new();
    for file in &mut outgoing {
        if file.name == RESULT {
            file.name = unused_result(&mut volume)?;
        }
        there.push(is_there(&mut volume, file)?);
    }
    let mut writer = Writer::new(volume)?;
    for (file, _) in outgoing.iter().zip(&there).filter(|(_, there)| !**there) {
        let mut source = files::open_foreign(&file.source)?;
        writer
            .put(&[TOP, file.folder], &file.name, file.bytes, &mut source)
            .with_context(|| format!("{} was not written", file.shown()))?;
    }
    let device = writer.finish()?;
    device.forget()?;
    let mut volume = Volume::find(device, TOP)?;
    for file in &outgoing {
        ensure!(
            is_there(&mut volume, file)?,
            "{} is not on the stick as it was written: take another stick",
            file.shown()
        );
        out.note(&format!("{}: {} bytes, read back", file.shown(), file.bytes))?;
    }
    Ok(())
}

impl Outgoing {
    fn shown(&self) -> String {
        format!("{}/{}", self.folder, self.name)
    }
}

/// The files that gate 2 left: in the folders that a stick has, and the result.
fn outgoing(out: &Path) -> anyhow::Result<Vec<Outgoing>> {
    let mut found = Vec::new();
    for folder in Folder::ALL {
        let path = out.join(folder.name());
        if !path.is_dir() {
            continue;
        }
        let shown = path.display();
        for entry in fs::read_dir(&path).with_context(|| format!("cannot list {shown}"))? {
            let name = entry.with_context(|| format!("cannot list {shown}"))?.file_name();
            let Some(name) = name.to_str() else { bail!("{shown} has a file without a name") };
            found.push((path.join(name), folder.name(), name.to_owned()));
            ensure!(found.len() <= STICK_FILES_MAX, "there are too many files in {shown}");
        }
    }
    let result = out.join(RESULT);
    if result.exists() {
        found.push((result, RESULTS, RESULT.to_owned()));
    }
    found.sort();
    let complete = found.into_iter().map(|(source, folder, name)| {
        let (sha256, bytes) = files::hash(files::open_foreign(&source)?, &source)?;
        Ok(Outgoing { source, folder, name, bytes, sha256 })
    });
    complete.collect()
}

/// Whether the stick has this very file. Another one of this name is an error: nothing on a stick is replaced.
fn is_there(volume: &mut Volume<Device>, file: &Outgoing) -> anyhow::Result<bool> {
    let Some(entry) = find(volume, &[TOP, file.folder, &file.name])? else { return Ok(false) };
    let mut hasher = Hasher::default();
    let read = volume.read(&entry, &mut |piece| {
        hasher.update(piece);
        Ok(())
    });
    let same = match read {
        Ok(()) => hasher.finish() == file.sha256,
        Err(Error::Damaged(_)) => false,
        Err(error) => return Err(error.into()),
    };
    ensure!(same, "the stick has another {}: remove that one, or take another stick", file.shown());
    Ok(true)
}

fn unused_result(volume: &mut Volume<Device>) -> anyhow::Result<String> {
    for number in 1..=RESULTS_MAX {
        let name = format!("RESULT-{number:03}.txt");
        if find(volume, &[TOP, RESULTS, &name])?.is_none() {
            return Ok(name);
        }
    }
    bail!("the stick has too many results: remove the folder {TOP}/{RESULTS}")
}

/// A file or folder by the names that lead to it.
pub(crate) fn find(volume: &mut Volume<Device>, path: &[&str]) -> anyhow::Result<Option<Entry>> {
    let mut at: Option<Entry> = None;
    for part in path {
        if at.as_ref().is_some_and(|entry| !entry.is_folder) {
            return Ok(None);
        }
        let entries = volume.list(at.as_ref())?;
        at = entries.into_iter().find(|entry| entry.name.eq_ignore_ascii_case(part));
        if at.is_none() {
            return Ok(None);
        }
    }
    Ok(at)
}
