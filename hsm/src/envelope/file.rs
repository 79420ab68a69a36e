//! The file of the working keys: JSON, each key wrapped and certified on its own, replaced as a whole.
//!
//! It holds nothing that must be kept secret, and nothing that could be forged: a backup of it is worth as much as it is.

use std::{
    io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    Error, KeyName,
    private_file::{lock, read_private, write_atomically},
};

/// Name of the file in the box's folder.
const NAME: &str = "working-keys";
/// Bytes of the file: thousands of keys.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Version of the format.
const VERSION: u32 = 1;

/// Where the working keys are.
pub(super) struct WorkingKeys {
    path: PathBuf,
}

/// A working key as it is stored.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: KeyName,
    /// The private half, wrapped by a storage key of the token.
    pub(super) wrapped: Vec<u8>,
    /// What the token says of it ([`sallyport_core::working_key`]).
    pub(super) certificate: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    keys: Vec<Stored>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    name: KeyName,
    wrapped: String,
    certificate: String,
}

impl WorkingKeys {
    pub(super) fn new(folder: &Path) -> Self {
        Self { path: folder.join(NAME) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All of them; none if there is no file yet.
    pub(super) fn read(&self) -> Result<Vec<Entry>, Error> {
        let text = match read_private(&self.path, FILE_BYTES_MAX) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Vec::new());
            }
            other => other?,
        };
        Self::parse(&text).ok_or_else(|| Error::FileFormat { path: self.path.clone() })
    }

    fn parse(text: &[u8]) -> Option<Vec<Entry>> {
        let file: File = serde_json::from_slice(text).ok()?;
        let entry = |stored: Stored| {
            Some(Entry {
                name: stored.name,
                wrapped: STANDARD.decode(stored.wrapped).ok()?,
                certificate: STANDARD.decode(stored.certificate).ok()?,
            })
        };
        let entries: Option<Vec<_>> = file.keys.into_iter().map(entry).collect();
        entries.filter(|_| file.version == VERSION)
    }

    /// The one of a name.
    pub(super) fn find(&self, name: &KeyName) -> Result<Option<Entry>, Error> {
        Ok(self.read()?.into_iter().find(|entry| entry.name == *name))
    }

    /// Changes the file under a lock that other processes respect. A file that cannot be read is left as it is.
    pub(super) fn change(
        &self,
        act: impl FnOnce(&mut Vec<Entry>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _lock = lock(&self.path)?;
        let mut entries = self.read()?;
        act(&mut entries)?;
        let stored = |entry: Entry| Stored {
            name: entry.name,
            wrapped: STANDARD.encode(entry.wrapped),
            certificate: STANDARD.encode(entry.certificate),
        };
        let file = File { version: VERSION, keys: entries.into_iter().map(stored).collect() };
        let mut text = serde_json::to_vec_pretty(&file)
            .map_err(|_unserialisable| Error::FileFormat { path: self.path.clone() })?;
        text.push(b'\n');
        write_atomically(&self.path, &text)
    }
}
