//! Images of sticks, and the programs that make and check them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use sallyport_volume::{Entry, Error, Volume};
use tempfile::TempDir;

/// An image in a file, for programs, and in memory, for us.
pub(crate) struct Image {
    folder: TempDir,
}

/// Whether a program can be run; says so if it cannot.
pub(crate) fn have(program: &str) -> bool {
    let found = command(program).arg("--help").output().is_ok();
    if !found {
        eprintln!("SKIPPED: {program} is not installed, nothing was tested; run `make setup`");
    }
    found
}

fn command(program: &str) -> Command {
    let sbin = Path::new("/usr/sbin").join(program);
    Command::new(if sbin.exists() { sbin } else { PathBuf::from(program) })
}

impl Image {
    /// Of this size, without anything.
    pub(crate) fn blank(mib: u64) -> Self {
        let image = Self { folder: TempDir::new().unwrap() };
        fs::File::create(image.path()).unwrap().set_len(mib << 20).unwrap();
        image
    }

    /// FAT32, with what `mkfs.vfat` shall be told.
    pub(crate) fn fat32(mib: u64, options: &[&str]) -> Self {
        let image = Self::blank(mib);
        image.run("mkfs.vfat", &[&["-F", "32"], options].concat());
        image
    }

    /// exFAT, with what `mkfs.exfat` shall be told.
    pub(crate) fn exfat(mib: u64, options: &[&str]) -> Self {
        let image = Self::blank(mib);
        image.run("mkfs.exfat", options);
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    pub(crate) fn set(&self, bytes: &[u8]) {
        fs::write(self.path(), bytes).unwrap();
    }

    /// Runs a program on the image; the image is its last argument.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = command(program).args(arguments).arg(self.path()).output().unwrap();
        good(program, &output)
    }

    /// A program of mtools; `::` is the image.
    pub(crate) fn mtools(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = command(program);
        command.env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(self.path()).args(arguments);
        good(program, &command.output().unwrap())
    }

    /// Puts a file into a folder of the image, which is there.
    pub(crate) fn copy(&self, folder: &str, name: &str, content: &[u8]) {
        let file = self.folder.path().join(name);
        fs::write(&file, content).unwrap();
        self.mtools("mcopy", &[file.to_str().unwrap(), &format!("::{folder}/{name}")]);
    }
}

fn good(program: &str, output: &Output) -> String {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program}: {said}");
    said
}

/// The entry at the end of a path.
pub(crate) fn entry(volume: &mut Volume<Vec<u8>>, path: &[&str]) -> Result<Option<Entry>, Error> {
    let mut at = None;
    for part in path {
        let found = volume.list(at.as_ref())?.into_iter().find(|entry| entry.name == *part);
        let Some(found) = found else { return Ok(None) };
        at = Some(found);
    }
    Ok(at)
}

/// The content of a file.
pub(crate) fn content(volume: &mut Volume<Vec<u8>>, path: &[&str]) -> Result<Vec<u8>, Error> {
    let file = entry(volume, path)?.unwrap_or_else(|| panic!("{path:?} is not there"));
    let mut bytes = Vec::new();
    volume.read(&file, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    assert_eq!(bytes.len() as u64, file.bytes);
    Ok(bytes)
}

/// Bytes that are alike nowhere.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}
