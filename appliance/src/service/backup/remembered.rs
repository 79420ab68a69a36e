//! What the box remembers of the backups that it made, so that a next one can leave out the media that they brought.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use sallyport_core::{
    admin::BackupMade,
    backup::{BackupId, MEDIA_ENTRY_BYTES},
    digest::Sha256,
    limits::{BACKUP_MEDIA_MAX, BACKUPS_REMEMBERED},
};

use super::Error;
use crate::{
    app::App,
    files::{self, Readers},
};

/// Bytes of what is remembered of one backup besides its media.
const MADE_BYTES_MAX: usize = 4096;

/// Bytes of the hashes of as many media as there may be.
const LIST_BYTES_MAX: u64 = 32 * BACKUP_MEDIA_MAX as u64;

/// The folder with the copy of the database that is being streamed, and with what is remembered.
pub(super) fn folder(app: &App) -> PathBuf {
    app.config.data_dir.join("backups")
}

/// A backup that was made.
pub(super) fn made(app: &App, id: BackupId) -> Result<Option<BackupMade>, Error> {
    let path = folder(app).join(format!("{id}.json"));
    let json = files::read(&path, MADE_BYTES_MAX).map_err(files::failed("read", &path))?;
    Ok(json.and_then(|json| serde_json::from_slice(&json).ok()))
}

/// The media that a backup and those before it brought, in the order of their hashes.
pub(super) fn media(app: &App, id: BackupId) -> Result<Vec<Sha256>, Error> {
    let path = folder(app).join(format!("{id}.media"));
    let mut list = Vec::new();
    match File::open(&path) {
        Ok(input) => input
            .take(LIST_BYTES_MAX)
            .read_to_end(&mut list)
            .map_err(files::failed("read", &path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotRemembered(id));
        }
        Err(error) => return Err(files::failed("read", &path)(error).into()),
    };
    Ok(list.as_chunks().0.iter().map(|sha256| Sha256(*sha256)).collect())
}

/// Remembers a backup, and forgets the oldest.
pub(super) fn remember(app: &App, made: &BackupMade, media: &[(Sha256, u64)]) -> Result<(), Error> {
    let folder = folder(app);
    let list: Vec<u8> = media.iter().flat_map(|(sha256, _)| sha256.0).collect();
    let path = folder.join(format!("{}.media", made.id));
    files::replace(&path, &list, Readers::None).map_err(files::failed("write", &path))?;
    let path = folder.join(format!("{}.json", made.id));
    let json =
        serde_json::to_vec(made).map_err(|error| files::failed("write", &path)(error.into()))?;
    files::replace(&path, &json, Readers::None).map_err(files::failed("write", &path))?;
    Ok(forget(&folder).map_err(files::failed("tidy", &folder))?)
}

fn forget(folder: &Path) -> io::Result<()> {
    let mut made = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            made.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    made.sort();
    let many = made.len().saturating_sub(BACKUPS_REMEMBERED);
    for (_, path) in made.into_iter().take(many) {
        files::remove(&path.with_extension("media"))?;
        files::remove(&path)?;
    }
    Ok(())
}

/// Bytes of the list of media in a backup.
pub(super) fn list_bytes(entries: usize) -> u64 {
    u64::try_from(entries.saturating_mul(MEDIA_ENTRY_BYTES)).unwrap_or(u64::MAX)
}
