//! A system on trial: a new version that the boot loader starts a few times, and leaves again if nobody blesses it.
//!
//! The database must be able to come back with the older version, so nothing may be accepted before the new one was blessed:
//!
//! 1. A start on trial that will change the schema first makes a copy of the database and the vault ([`COPY`]), once.
//! 2. It migrates and examines itself ([`examine`]) with everything closed, and says that it is ready. The service manager then has the boot loader's entry
//!    blessed ([`blessed`]).
//! 3. Only then the copy is removed ([`settle`]), and only then the box opens. From here on only a restore from a backup goes back.
//! 4. A version that finds the database newer than it knows, and the copy still there, takes the copy back ([`prepare`]): nothing was accepted in between.
//!
//! The power may go at any point: the copy appears and disappears by a change of its folder's name, and a return that was begun is finished by the next start.
//! Where it came from stays noted until the audit log has been told.

use std::{
    fmt, fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sallyport_core::{
    limits::UPDATE_BLESSING_MS_MAX,
    update::entry::{Standing, standing_of_boot},
};
use sallyport_hsm::{Health, Token};
use tokio::time::{Instant, sleep};

use crate::{
    app::App,
    files,
    service::{audit, backlog::disk_free},
};

/// The folder with the database and the vault as they were before an update.
pub const COPY: &str = "before-update";
/// The same folder while it is being made, and while it is being taken back.
const MAKING: &str = "before-update.making";
const RETURNING: &str = "before-update.returning";

/// In a copy that is taken back: the schema that the newer version had made.
const FROM: &str = "from-schema";

const DATABASE: &str = "sallyport.db";
const VAULT: &str = "vault";
/// What SQLite keeps beside a database.
const BESIDE: [&str; 2] = ["sallyport.db-wal", "sallyport.db-shm"];
/// Whether the token was there when the box was last open.
const TOKEN_SEEN: &str = "token-seen";

/// Bytes of the boot loader's word.
const VARIABLE_BYTES_MAX: usize = 4096;
/// Bytes that must be free besides those of a copy: the migration needs some as well.
const SPARE_BYTES: u64 = 64 << 20;
/// How often the box looks whether it was blessed, and whether the token is there.
const LOOK: Duration = Duration::from_millis(250);
/// How long a token that was there before may take to be there again.
const TOKEN_PATIENCE: Duration = Duration::from_secs(60);
/// How often the box notes whether the token is there.
const NOTE: Duration = Duration::from_secs(10);

/// What the machine says about this start.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// The EFI variable that is there if the boot loader counts this start.
    pub count: Option<PathBuf>,
    /// The file that is there once the system was blessed.
    pub blessed: Option<PathBuf>,
}

/// How this start came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Whether the system is on trial.
    pub on_trial: bool,
    /// The schema of the database when it was found; none if there was no database.
    pub found: Option<u32>,
    /// Present if the database was taken back from a newer version.
    pub rolled_back: Option<RolledBack>,
}

/// The database was taken back from a newer version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The schema that the newer version had made.
    pub from: u32,
    /// The schema that is there again.
    pub to: u32,
}

impl fmt::Display for RolledBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "an update did not hold, and the database was taken back to what it was before (schema {} to {}): nothing was lost, and the update is not installed",
            self.from, self.to
        )
    }
}

/// Why a start on trial, or one after it, comes to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be used.
    #[error("the copy of the database from before the update cannot be handled")]
    File(#[from] files::Error),
    /// The database or its copy cannot be read or written.
    #[error("the database cannot be looked at before it is opened")]
    Store(#[from] sallyport_store::Error),
    /// The copy does not fit on the disk.
    #[error(
        "a copy of the database from before the update needs {needed} bytes, and the disk has {free} free: make room (old backups, logs, media), then update again"
    )]
    NoRoom {
        /// Bytes of the copy and what a migration may need.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The copy is of a version that is newer as well.
    #[error(
        "the database has schema {found} and its copy {copy}, and this version knows {known}: start the version that wrote them, or restore a backup"
    )]
    CopyTooNew {
        /// The schema of the database.
        found: u32,
        /// The schema of the copy.
        copy: u32,
        /// The newest schema that this version knows.
        known: u32,
    },
    /// The token is gone since the update.
    #[error(
        "the token was there before the update and is not there now: the new system may not know it"
    )]
    TokenGone,
    /// Nobody blessed the system.
    #[error("the system was healthy, but nobody blessed it within {} minutes: the boot loader's entry could not be changed", UPDATE_BLESSING_MS_MAX / 60_000)]
    NotBlessed,
}

impl Boot {
    /// Whether the boot loader starts this system to try it, and nobody blessed it yet: the server may have been started again since.
    ///
    /// # Errors
    /// If its word is there and cannot be read.
    pub fn is_trial(&self) -> Result<bool, Error> {
        let Some(path) = &self.count else { return Ok(false) };
        let variable =
            files::read(path, VARIABLE_BYTES_MAX).map_err(files::failed("read", path))?;
        let tried = variable.is_some_and(|variable| standing_of_boot(&variable) == Standing::Trial);
        Ok(tried && !self.is_blessed())
    }

    fn is_blessed(&self) -> bool {
        self.blessed.as_ref().is_some_and(|path| path.exists())
    }
}

/// Puts the files of the database in order before they are opened: makes the copy, takes it back, or removes it. `known` is the newest schema of this version.
///
/// # Errors
/// [`Error`] says what to do; the database is as it was.
pub fn prepare(data_dir: &Path, on_trial: bool, known: u32) -> Result<Start, Error> {
    let place = Files(data_dir);
    place.discard(MAKING)?;
    place.finish_return()?;
    let database = data_dir.join(DATABASE);
    let found = sallyport_store::schema_of(&database)?;
    let copy = sallyport_store::schema_of(&data_dir.join(COPY).join(DATABASE))?;
    match (found, copy) {
        (Some(found), Some(copy)) if found > known => {
            if copy > known {
                return Err(Error::CopyTooNew { found, copy, known });
            }
            place.note_origin(found)?;
            place.rename(COPY, RETURNING)?;
            place.finish_return()?;
        }
        // Of several starts on trial the first one's copy is the one from before.
        (Some(found), None) if on_trial && found < known => place.make_copy()?,
        (_, Some(_)) if !on_trial => place.discard(COPY)?,
        _ => {}
    }
    let found = sallyport_store::schema_of(&database)?;
    let rolled_back = match (place.origin()?, found) {
        (Some(from), Some(to)) => Some(RolledBack { from, to }),
        _ => None,
    };
    if let Some(rolled_back) = rolled_back {
        log::error!("THE DATABASE WAS TAKEN BACK: {rolled_back}");
    }
    Ok(Start { on_trial, found, rolled_back })
}

/// Whether the new system can do what the one before could: every page of the database is sound, the vault is open (or the box would not have started),
/// and the token is there if it was there before.
///
/// # Errors
/// What is wrong. The system is then not blessed, and the one before comes back.
pub fn examine(app: &App) -> Result<(), Error> {
    sallyport_store::check(&app.config.data_dir.join(DATABASE))?;
    let was_there = app.config.data_dir.join(TOKEN_SEEN).exists();
    let Some(token) = app.token.as_deref().filter(|_| was_there) else { return Ok(()) };
    let mut waited = Duration::ZERO;
    while !is_there(token) {
        if waited >= TOKEN_PATIENCE || app.shutdown.is_requested() {
            return Err(Error::TokenGone);
        }
        std::thread::sleep(LOOK);
        waited += LOOK;
    }
    Ok(())
}

/// Waits until the system was blessed; `false` if the box is to stop before.
///
/// # Errors
/// [`Error::NotBlessed`] after a time.
pub async fn blessed(app: &App, boot: &Boot) -> Result<bool, Error> {
    let end = Instant::now() + Duration::from_millis(UPDATE_BLESSING_MS_MAX);
    while !boot.is_blessed() {
        if Instant::now() >= end {
            return Err(Error::NotBlessed);
        }
        tokio::select! {
            () = app.shutdown.requested() => return Ok(false),
            () = sleep(LOOK) => {}
        }
    }
    Ok(true)
}

/// From here on the box accepts what people write: the copy of before goes first. The audit log is told what became of the update.
///
/// # Errors
/// If the copy cannot be removed, or the audit log cannot be written.
pub fn settle(app: &App) -> Result<(), Error> {
    let place = Files(&app.config.data_dir);
    place.discard(COPY)?;
    let Start { on_trial, found, rolled_back } = app.start;
    let now = (app.clock)();
    let row = match (rolled_back, found) {
        (Some(RolledBack { from, to }), _) => audit::rolled_back(from, to, now),
        (None, Some(found)) if on_trial => {
            audit::updated(found, sallyport_store::newest_schema(), now)
        }
        _ => return Ok(()),
    };
    app.store.write(move |write| write.append_audit(row))?;
    place.discard(RETURNING)
}

/// Notes whether the token is there, until the box stops: the next system on trial is held against that.
pub async fn remember_token(app: Arc<App>) {
    let Some(token) = app.token.clone() else { return };
    let path = app.config.data_dir.join(TOKEN_SEEN);
    while !app.shutdown.is_requested() {
        let is_there = is_there(&*token);
        if is_there != path.exists() {
            let noted = if is_there {
                files::replace(&path, b"", files::Readers::None)
            } else {
                files::remove(&path)
            };
            if let Err(error) = noted {
                log::warn!(error:% = error; "it cannot be noted whether the token is there");
            }
        }
        tokio::select! {
            () = app.shutdown.requested() => {}
            () = sleep(NOTE) => {}
        }
    }
}

/// A token that waits for its PIN is there.
fn is_there(token: &dyn Token) -> bool {
    matches!(token.health(), Health::Ready | Health::Locked { .. })
}

/// The folder of the box's data.
struct Files<'a>(&'a Path);

impl Files<'_> {
    /// Copies database and vault into a folder that has its name only when all of it is there.
    fn make_copy(&self) -> Result<(), Error> {
        let making = self.0.join(MAKING);
        self.check_room()?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&making)
            .map_err(files::failed("make", &making))?;
        sallyport_store::copy(&self.0.join(DATABASE), &making.join(DATABASE))?;
        let (vault, copied) = (self.0.join(VAULT), making.join(VAULT));
        let content = files::read(&vault, sallyport_core::limits::VAULT_BYTES_MAX)
            .map_err(files::failed("read", &vault))?;
        if let Some(content) = content {
            files::replace(&copied, &content, files::Readers::None)
                .map_err(files::failed("write", &copied))?;
        }
        files::sync(&making).map_err(files::failed("write", &making))?;
        self.rename(MAKING, COPY)?;
        log::info!("the database from before the update is kept until the new system was blessed");
        Ok(())
    }

    fn check_room(&self) -> Result<(), Error> {
        let sizes = [DATABASE, BESIDE[0]].map(|name| {
            fs::metadata(self.0.join(name)).map(|found| found.len()).unwrap_or_default()
        });
        // Once for the copy, once for a migration that writes every table anew.
        let database: u64 = sizes.iter().sum();
        let needed = database.saturating_mul(2).saturating_add(SPARE_BYTES);
        let free = disk_free(self.0).map_err(files::failed("look at", self.0))?;
        if free < needed { Err(Error::NoRoom { needed, free }) } else { Ok(()) }
    }

    /// Puts back what is to be put back, if a return was begun.
    fn finish_return(&self) -> Result<(), Error> {
        let returning = self.0.join(RETURNING);
        if !returning.exists() {
            return Ok(());
        }
        // The database last: as long as its copy is here, all of this is done again.
        self.put_back(VAULT)?;
        if returning.join(DATABASE).exists() {
            for name in BESIDE {
                let path = self.0.join(name);
                files::remove(&path).map_err(files::failed("remove", &path))?;
            }
            self.put_back(DATABASE)?;
        }
        Ok(())
    }

    fn note_origin(&self, schema: u32) -> Result<(), Error> {
        let path = self.0.join(COPY).join(FROM);
        let text = schema.to_string();
        Ok(files::replace(&path, text.as_bytes(), files::Readers::None)
            .map_err(files::failed("write", &path))?)
    }

    /// Where the database was taken back from, if the audit log has yet to be told.
    fn origin(&self) -> Result<Option<u32>, Error> {
        const NUMBER_BYTES_MAX: usize = 16;
        let path = self.0.join(RETURNING).join(FROM);
        let text = files::read(&path, NUMBER_BYTES_MAX).map_err(files::failed("read", &path))?;
        Ok(text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()))
    }

    fn put_back(&self, name: &str) -> Result<(), Error> {
        let (from, to) = (self.0.join(RETURNING).join(name), self.0.join(name));
        if from.exists() {
            fs::rename(&from, &to)
                .and_then(|()| files::sync(self.0))
                .map_err(files::failed("put back", &to))?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let to = self.0.join(to);
        fs::rename(self.0.join(from), &to)
            .and_then(|()| files::sync(self.0))
            .map_err(|source| files::failed("make", &to)(source).into())
    }

    /// Removes a folder with what is in it: it loses its name first, so that half of it is never taken for all of it.
    fn discard(&self, name: &str) -> Result<(), Error> {
        let path = self.0.join(name);
        if !path.exists() {
            return Ok(());
        }
        if name == COPY {
            self.discard(MAKING)?;
            self.rename(COPY, MAKING)?;
            return self.discard(MAKING);
        }
        fs::remove_dir_all(&path)
            .and_then(|()| files::sync(self.0))
            .map_err(|source: io::Error| files::failed("remove", &path)(source).into())
    }
}
