//! The database as a file: its schema, a copy of it, and whether every page of it is sound.

use std::{fs::File, path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, backup::Backup};

use crate::{
    error::{Error, Result},
    schema,
};

/// The schema that this version makes and needs.
#[must_use]
pub fn newest_schema() -> u32 {
    schema::newest()
}

/// The schema of a database; `None` if there is no file. Nobody else may have it open.
///
/// # Errors
/// If the file is no database.
pub fn schema_of(path: &Path) -> Result<Option<u32>> {
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(open(path)?.pragma_query_value(None, "user_version", |row| row.get(0))?))
}

/// Copies a database, also what is only in its write-ahead log, and waits until the copy is on the disk. The copy was read through once.
///
/// # Errors
/// If either file fails, or the copy is not sound.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    // Pages of 4 KiB: a megabyte at a time.
    const STEP_PAGES: i32 = 256;
    let source = open(from)?;
    let mut target = Connection::open(to)?;
    Backup::new(&source, &mut target)?.run_to_completion(STEP_PAGES, Duration::ZERO, None)?;
    check_connection(&target)?;
    target.close().map_err(|(_, error)| error)?;
    let synced = File::open(to).and_then(|file| file.sync_all());
    synced.map_err(|error| Error::corrupt("the copy of the database", error))
}

/// Reads a database through: every page, every index, and what refers to what.
///
/// # Errors
/// [`Error::Corrupt`] with the first thing that is wrong.
pub fn check(path: &Path) -> Result<()> {
    check_connection(&open(path)?)
}

fn check_connection(connection: &Connection) -> Result<()> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(Error::corrupt("the database", found));
    }
    let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
    let mut rows = statement.query([])?;
    match rows.next()? {
        None => Ok(()),
        Some(row) => {
            let table: String = row.get(0)?;
            Err(Error::corrupt("the database", format!("a row of {table} refers to none")))
        }
    }
}

/// Never makes a file.
fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}
