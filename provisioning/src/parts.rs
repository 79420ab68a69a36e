//! A backup in a file, or in parts where a file system has no files of its size: `NAME.backup`, `NAME.backup.002` and so on.
//!
//! The parts one after the other are the backup: `cat` puts them together as well.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::ensure;
use sallyport_core::limits::BACKUP_PARTS_MAX;

use crate::files;

/// All parts of a backup, open, as one.
pub(crate) struct Parts {
    /// Those that are not read to their ends, the first one last.
    files: Vec<File>,
}

impl Parts {
    /// Opens the first part, and those that lie beside it.
    pub(crate) fn open(first: &Path) -> anyhow::Result<Self> {
        let mut files = vec![files::open_foreign(first)?];
        for number in 2.. {
            let path = part(first, number);
            if path.symlink_metadata().is_err() {
                break;
            }
            ensure!(number <= BACKUP_PARTS_MAX, "{} has too many parts", first.display());
            files.push(files::open_foreign(&path)?);
        }
        files.reverse();
        Ok(Self { files })
    }

    /// How many bytes they have together.
    pub(crate) fn length(&self) -> io::Result<u64> {
        let sizes = self.files.iter().map(|file| Ok(file.metadata()?.len()));
        sizes.sum()
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(file) = self.files.last_mut() {
            let read = file.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.files.pop();
        }
        Ok(0)
    }
}

/// The name of a part, counted from 1, in a folder.
fn part(first: &Path, number: u32) -> PathBuf {
    let mut name: OsString = first.into();
    name.push(suffix(number));
    name.into()
}

/// What is behind the name of a backup for its part of this number, counted from 1.
pub(crate) fn suffix(number: u32) -> String {
    if number == 1 { String::new() } else { format!(".{number:03}") }
}

/// Whether a name is that of a further part of a backup.
pub(crate) fn is_further(name: &str) -> bool {
    let (head, digits) = name.rsplit_once('.').unwrap_or_default();
    digits.len() == 3
        && digits.bytes().all(|b| b.is_ascii_digit())
        && Path::new(head).extension().is_some_and(|e| e.eq_ignore_ascii_case("backup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("a.backup");
        for (name, text) in [("", "one"), (".002", ""), (".003", "three"), (".005", "five")] {
            std::fs::write(folder.path().join(format!("a.backup{name}")), text).unwrap();
        }
        let mut text = String::new();
        let mut parts = Parts::open(&first).unwrap();
        assert_eq!(parts.length().unwrap(), 8);
        parts.read_to_string(&mut text).unwrap();
        assert_eq!(text, "onethree");
        assert!(Parts::open(&folder.path().join("b.backup")).is_err());
    }

    #[test]
    fn names_of_parts() {
        assert_eq!([1, 2, 45].map(suffix), ["", ".002", ".045"]);
        for (name, further) in [
            ("a.backup.002", true),
            ("a.BACKUP.117", true),
            ("a.backup", false),
            ("a.backup.2", false),
            ("a.backup.00x", false),
            ("a.002", false),
            ("", false),
        ] {
            assert_eq!(is_further(name), further, "{name}");
        }
    }
}
