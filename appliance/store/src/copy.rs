//! A copy of the database for a backup, made while the box works.
//!
//! The copy is made from one snapshot, at the pace of the box's own disk, so that the snapshot is given back before a slow stick has taken anything: the
//! write-ahead log cannot be folded in as long as somebody looks at what was before. The writer never waits for it.

use std::path::{Path, PathBuf};

use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};
use sallyport_core::{audit::Tip, digest::Sha256};

use crate::{
    error::{Error, Result},
    media::FileHash,
    pool::{Read, Store, open_reader},
};

/// Pages that are copied between two looks at whether to go on: 1 MiB.
const PAGES: i32 = 256;

/// A copy of the database in a file of its own. The file stays when this is dropped.
pub struct DatabaseCopy {
    connection: Connection,
    /// Where the audit log ended.
    pub audit: Tip,
}

impl Store {
    /// Bytes that a copy of the database takes.
    ///
    /// # Errors
    /// If the database fails.
    pub fn bytes(&self) -> Result<u64> {
        let bytes = self.read(|read| {
            let pages: i64 = read.pragma("page_count")?;
            Ok::<_, Error>(pages.saturating_mul(read.pragma("page_size")?))
        })?;
        Ok(u64::try_from(bytes).unwrap_or_default())
    }

    /// Copies one snapshot of the database to a new file. It ends early if `stop` says so.
    ///
    /// # Errors
    /// If a disk fails or is full, or it was stopped; what was written so far stays.
    pub fn copy_to(&self, path: &Path, stop: impl Fn() -> bool) -> Result<DatabaseCopy> {
        let source = open_reader(self.path())?;
        let audit = {
            // Held until the copy is done: with it the snapshot stays the same from step to step.
            let snapshot = source.unchecked_transaction()?;
            let read = Read::uncached(&source, self.caches());
            let audit = read.audit_tip()?;
            let mut copy = Connection::open(path)?;
            // Whoever loses the copy makes another one.
            copy.pragma_update(None, "synchronous", "OFF")?;
            {
                let backup = Backup::new(&source, &mut copy)?;
                while backup.step(PAGES)? != StepResult::Done {
                    if stop() {
                        return Err(Error::Closed);
                    }
                }
            }
            copy.close().map_err(|(_, error)| error)?;
            snapshot.rollback()?;
            audit
        };
        Ok(DatabaseCopy { connection: open_still(path)?, audit })
    }
}

impl DatabaseCopy {
    /// How many different media files the copy refers to, and how many bytes they have.
    ///
    /// # Errors
    /// If the copy cannot be read.
    pub fn media(&self) -> Result<(u64, u64)> {
        let sql = format!("SELECT count(*), coalesce(sum(size), 0) FROM ({FILES})");
        let (count, bytes) = self
            .connection
            .query_row(&sql, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
        Ok((count.unsigned_abs(), bytes.unsigned_abs()))
    }

    /// Each of these files in the order of their hashes, with its size in bytes.
    ///
    /// # Errors
    /// If the copy cannot be read, or whatever `each` answers.
    pub fn each_media<E: From<Error>>(
        &self,
        mut each: impl FnMut(Sha256, u64) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let sql = format!("{FILES} ORDER BY 1");
        let mut statement = self.connection.prepare(&sql).map_err(Error::from)?;
        let mut rows = statement.query([]).map_err(Error::from)?;
        while let Some(row) = rows.next().map_err(Error::from)? {
            let sha256: FileHash = row.get(0).map_err(Error::from)?;
            let size: i64 = row.get(1).map_err(Error::from)?;
            each(Sha256(sha256), size.unsigned_abs())?;
        }
        Ok(())
    }
}

/// The files of media and thumbnails, each once.
const FILES: &str = "SELECT sha256, size FROM media WHERE sha256 IS NOT NULL AND size IS NOT NULL
     UNION SELECT sha256, size FROM thumbnails";

/// Opens a file that nobody changes: without a log and without locks.
fn open_still(path: &Path) -> Result<Connection> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    Ok(Connection::open_with_flags(PathBuf::from(uri), flags)?)
}
