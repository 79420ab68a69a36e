//! What can go wrong while remembering.

use rusqlite::ErrorCode;
use sallyport_core::limits::AUDIT_ROW_BYTES_MAX;

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while remembering.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// SQLite refused an operation.
    #[error("the database refused an operation")]
    Sqlite(#[source] rusqlite::Error),

    /// The disk that holds the database is full: nothing of the command was kept.
    #[error(
        "the disk that holds the database is full; nothing of this command was kept: free space or enlarge the data partition"
    )]
    DiskFull,

    /// The database file was written by a newer version of Sallyport.
    #[error(
        "the database was written by a newer version of Sallyport (schema {found}, this version knows {known}): start that version, or restore a backup made by this one"
    )]
    SchemaTooNew {
        /// Schema number found in the file.
        found: usize,
        /// Newest schema number that this version knows.
        known: usize,
    },

    /// The file belongs to another server.
    #[error("the database belongs to {found}, but the configuration says {wanted}")]
    OtherServer {
        /// Server name stored in the database.
        found: String,
        /// Server name that was asked for.
        wanted: String,
    },

    /// A migration failed.
    #[error("the database could not be brought to this version's schema")]
    Migration(#[source] rusqlite_migration::Error),

    /// A stored value is not what this version writes.
    #[error("the database holds a damaged value in {table}: {what}")]
    Corrupt {
        /// Table with the damaged row.
        table: &'static str,
        /// What is wrong with it.
        what: String,
    },

    /// A row for the audit log that is longer than any may be.
    #[error(
        "the row for the audit log has {bytes} bytes and may have {AUDIT_ROW_BYTES_MAX}; nothing of this command was kept"
    )]
    AuditRow {
        /// Its size.
        bytes: usize,
    },

    /// The group of commands that this one was committed with failed.
    #[error("the group of commands could not be committed: {0}")]
    GroupFailed(String),

    /// A command met a fault of this program: nothing of it was kept.
    #[error(
        "the command failed at a fault of this program, and nothing of it was kept: the lines of the log before this one name the place"
    )]
    Fault,

    /// The writer has stopped: the box is shutting down.
    #[error("the store is shutting down")]
    Closed,
}

impl Error {
    /// A damaged value in a table.
    pub fn corrupt(table: &'static str, what: impl ToString) -> Self {
        Self::Corrupt { table, what: what.to_string() }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            _ => Self::Sqlite(error),
        }
    }
}
