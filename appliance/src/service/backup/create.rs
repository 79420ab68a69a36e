//! Making a backup while the box works.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufReader, Read as _, Write},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use sallyport_core::{
    admin::BackupMade,
    backup::{BackupId, Maker, Section, WRAPPED_FILES, WriteError, Writer, is_settings_name},
    card::Card,
    digest::Sha256,
    limits::{BACKUP_FILE_BYTES_MAX, BACKUP_FILES_MAX, BACKUP_MEDIA_MAX},
    sign::{KeyRole, SigningRequest},
};
use sallyport_store::DatabaseCopy;
use zeroize::Zeroizing;

use super::{Error, remembered};
use crate::{
    app::{App, random},
    files,
    service::{
        audit::{self, When},
        backlog::disk_free,
        order::{Mandate, Order},
        own_keys::{self, Current},
        peers,
    },
};

/// Bytes that are read of a file at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Bytes of the disk that a copy of the database leaves free.
const SPARE_BYTES: u64 = 64 << 20;
/// Where the number of the last backup stands in the table of single values.
const NUMBER: &str = "backup_number";

/// A backup that can be streamed: whatever can be known to fail before its first byte was tried.
pub struct Prepared {
    mandate: Mandate,
    maker: Maker,
    courier: Current,
    card: Option<Vec<u8>>,
    copy: DatabaseCopy,
    spool: Spool,
    /// Every media file that the database refers to and the box has, in order.
    media: Vec<(Sha256, u64)>,
    /// Those that the backup follows have already.
    before: Vec<Sha256>,
    missing: u64,
}

/// The copy of the database. It is removed when this is dropped.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        if let Err(error) = files::remove(&self.0) {
            log::error!(error:% = error; "the copy of the database stays on the disk");
        }
    }
}

impl Prepared {
    /// Begins a backup: notes it in the audit log, and copies the database with that row. With `since` it follows another backup, and brings only the media
    /// that came after that.
    ///
    /// # Errors
    /// If there is nobody to encrypt to, the token or a disk fails, or the box does not remember `since`.
    pub fn begin(app: &App, since: Option<BackupId>, order: &Order) -> Result<Self, Error> {
        let mandate = order.alone()?;
        if app.config.backup.recovery_keys.is_empty() {
            return Err(Error::NoRecoveryKeys);
        }
        let before = since.map(|id| remembered::media(app, id)).transpose()?.unwrap_or_default();
        let token = app.token.as_deref().ok_or(Error::NoToken)?;
        let card = app.store.read(|read| read.own_card())?;
        let courier = courier(app, card.as_deref())?;
        // Found out now, and not when the stick is full.
        token.public_key(&courier.name).map_err(Error::Token)?;
        let folder = remembered::folder(app);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(files::failed("make", &folder))?;
        let spool = Spool(folder.join("database"));
        files::remove(&spool.0).map_err(files::failed("remove", &spool.0))?;
        check_room(app, &folder)?;
        let maker = note_begun(app, &courier, since, &mandate)?;
        let copy = app.store.copy_to(&spool.0, || app.shutdown.is_requested())?;
        let (media, missing) = media(app, &copy)?;
        Ok(Self { mandate, maker, courier, card, copy, spool, media, before, missing })
    }

    /// Whether it brings every media file.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.maker.follows.is_none()
    }

    /// Bytes of its content, before they are compressed and encrypted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let database = fs::metadata(&self.spool.0).map_or(0, |database| database.len());
        let new =
            self.media.iter().filter(|(sha256, _)| self.before.binary_search(sha256).is_err());
        new.fold(database, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// Streams the backup, encrypted. It counts when it was read back: [`super::note_verified`].
    ///
    /// # Errors
    /// If the output, the token or a disk fails, or the box stops; what was written so far is worthless.
    pub fn stream(self, app: &App, output: impl Write) -> Result<BackupMade, Error> {
        let keys = &app.config.backup.recovery_keys;
        let content_key = Zeroizing::new(random()?);
        let fresh = || random().map_err(|error| WriteError::Write(io::Error::other(error)));
        let mut writer = Writer::new(output, self.maker.clone(), keys, &content_key, fresh)?;
        settings(app, &mut writer)?;
        self.wrapped(app, &mut writer)?;
        self.database(app, &mut writer)?;
        self.media(app, &mut writer)?;
        let id = writer.id();
        let token = app.token.as_deref().ok_or(Error::NoToken)?;
        let sign =
            |bytes: &[u8]| token.sign(&self.courier.name, &SigningRequest::Backup(bytes.to_vec()));
        let version = env!("CARGO_PKG_VERSION");
        writer.finish(self.copy.audit, version, self.missing, sign)?;
        let made = BackupMade {
            id,
            number: self.maker.number,
            full: self.is_full(),
            made: self.maker.created,
        };
        remembered::remember(app, &made, &self.media)?;
        let details = [("id", id.to_string()), ("full", made.full.to_string())];
        let entry = self.mandate.entry("backup.created", made.number, details);
        app.store.write::<_, sallyport_store::Error>(move |write| write.append_audit(entry))?;
        log::info!(number = made.number, full = made.full, id:%; "a backup was made");
        Ok(made)
    }

    fn wrapped<W: Write>(&self, app: &App, writer: &mut Writer<W>) -> Result<(), Error> {
        let (box_key, vault) = app.vault.copy()?;
        for name in WRAPPED_FILES {
            let path = app.config.data_dir.join(name);
            let content = match name {
                "box.key" => Some(Zeroizing::new(box_key.expose().to_vec())),
                "vault" => Some(vault.clone()),
                "card" => self.card.clone().map(Zeroizing::new),
                _ => files::read(&path, BACKUP_FILE_BYTES_MAX)
                    .map_err(files::failed("read", &path))?,
            };
            if let Some(content) = content {
                writer.file(Section::Wrapped, name, &content)?;
            }
        }
        Ok(())
    }

    fn database<W: Write>(&self, app: &App, writer: &mut Writer<W>) -> Result<(), Error> {
        let path = &self.spool.0;
        let bytes = fs::metadata(path).map_err(files::failed("look at", path))?.len();
        copy_file(app, path, bytes, writer, Section::Database, "")
    }

    fn media<W: Write>(&self, app: &App, writer: &mut Writer<W>) -> Result<(), Error> {
        let bytes = remembered::list_bytes(self.media.len());
        let mut list = writer.item(Section::MediaList, "", bytes)?;
        for (sha256, size) in &self.media {
            list.write_all(sha256.as_bytes()).map_err(WriteError::from)?;
            list.write_all(&size.to_be_bytes()).map_err(WriteError::from)?;
        }
        list.finish()?;
        for (sha256, size) in &self.media {
            if self.before.binary_search(sha256).is_err() {
                let path = app.files.path(sha256.as_bytes());
                copy_file(app, &path, *size, writer, Section::Media, &sha256.to_string())?;
            }
        }
        Ok(())
    }
}

/// The courier key that signs: one that the box's card names, because for that the root vouches. Without one the newest.
fn courier(app: &App, card: Option<&[u8]>) -> Result<Current, Error> {
    let current = own_keys::required(&app.store, KeyRole::Courier)?;
    let Some(card) = card else { return Ok(current) };
    let card = Card::stored(card).map_err(peers::Error::from)?;
    let on_card = |courier: &Current| {
        let names =
            |on: &sallyport_core::card::CourierKey| on.public.as_bytes() == courier.key.public;
        card.content().signing_keys.iter().any(names)
    };
    let usable = own_keys::usable(&app.store, KeyRole::Courier)?;
    Ok(usable.into_iter().find(on_card).unwrap_or(current))
}

fn check_room(app: &App, folder: &Path) -> Result<(), Error> {
    let needed = app.store.bytes()?.saturating_add(SPARE_BYTES);
    match disk_free(folder) {
        Ok(free) if free < needed => Err(Error::NoRoom { needed, free }),
        _ => Ok(()),
    }
}

/// The number is used up, and the row is in the copy: a restored box knows of the backup that it is made of.
fn note_begun(
    app: &App,
    courier: &Current,
    since: Option<BackupId>,
    mandate: &Mandate,
) -> Result<Maker, Error> {
    let signer = own_keys::public_key(&courier.key)?;
    let (enclave, created, mandate) =
        (app.config.server_name.clone(), mandate.now(), mandate.clone());
    let maker = app.store.write::<_, sallyport_store::Error>(move |write| {
        let number = write.meta(NUMBER)?.and_then(|bytes| bytes.first_chunk().copied());
        let number = number.map_or(0, u64::from_be_bytes).saturating_add(1);
        write.set_meta(NUMBER, &number.to_be_bytes())?;
        let follows = since.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
        audit::append_signatures(write, When::Now, created)?;
        write.append_audit(mandate.entry("backup.create", number, [("follows", follows)]))?;
        let incarnation = write.incarnation()?;
        Ok(Maker { enclave, incarnation, number, created, follows: since, signer })
    })?;
    Ok(maker)
}

/// What of the media that the copy refers to is on the disk, and how many are not.
fn media(app: &App, copy: &DatabaseCopy) -> Result<(Vec<(Sha256, u64)>, u64), Error> {
    let (count, _) = copy.media()?;
    let count = usize::try_from(count).ok().filter(|count| *count <= BACKUP_MEDIA_MAX);
    let mut media = Vec::with_capacity(count.ok_or(Error::TooManyMedia)?);
    let mut missing = 0_u64;
    copy.each_media(|sha256, size| {
        let there = fs::metadata(app.files.path(sha256.as_bytes()));
        if there.is_ok_and(|there| there.is_file() && there.len() == size) {
            media.push((sha256, size));
        } else {
            log::error!(sha256:%; "a media file is not on the disk, and so not in the backup");
            missing = missing.saturating_add(1);
        }
        Ok::<_, sallyport_store::Error>(())
    })?;
    Ok((media, missing))
}

/// The files of the settings folder.
fn settings<W: Write>(app: &App, writer: &mut Writer<W>) -> Result<(), Error> {
    let path = &app.config.file;
    let Some(folder) = path.parent().filter(|folder| folder.is_absolute()) else { return Ok(()) };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(files::failed("read", folder))? {
        let entry = entry.map_err(files::failed("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && is_settings_name(&name) && names.len() < BACKUP_FILES_MAX {
            names.push(name);
        }
    }
    names.sort();
    for name in names {
        let path = folder.join(&name);
        let content =
            files::read(&path, BACKUP_FILE_BYTES_MAX).map_err(files::failed("read", &path))?;
        if let Some(content) = content {
            writer.file(Section::Settings, &name, &content)?;
        }
    }
    Ok(())
}

fn copy_file<W: Write>(
    app: &App,
    path: &Path,
    bytes: u64,
    writer: &mut Writer<W>,
    section: Section,
    name: &str,
) -> Result<(), Error> {
    let mut input = BufReader::new(File::open(path).map_err(files::failed("read", path))?);
    let mut item = writer.item(section, name, bytes)?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        if app.shutdown.is_requested() {
            return Err(Error::Store(sallyport_store::Error::Closed));
        }
        let length = input.read(&mut piece).map_err(files::failed("read", path))?;
        let Some(read) = piece.get(..length).filter(|read| !read.is_empty()) else { break };
        item.write_all(read).map_err(WriteError::from)?;
    }
    Ok(item.finish()?)
}
