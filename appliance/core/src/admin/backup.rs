//! What is said about backups over the administration socket, and what comes of a restore.

use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

use crate::{backup::BackupId, time::Millis};

/// A backup that the box made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupMade {
    /// Its id.
    pub id: BackupId,
    /// Its number.
    pub number: u64,
    /// Whether it brings every media file.
    pub full: bool,
    /// When it was made.
    pub made: Millis,
}

/// A backup was read back from where it was written, and verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupVerified {
    /// Which one.
    pub id: BackupId,
}

/// How the backups of a box stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupState {
    /// The newest that was verified after it was written.
    pub last: Option<BackupMade>,
    /// When the newest key of the box was made.
    pub newest_key: Option<Millis>,
}

/// What a restored box found and did before it began to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The enclave.
    pub server_name: OwnedServerName,
    /// The backup that it was made of.
    pub backup: BackupId,
    /// When that was made.
    pub made: Millis,
    /// The new life, in hexadecimal digits.
    pub incarnation: String,
    /// Rooms whose state was checked.
    pub rooms: u64,
    /// Media files whose content was checked.
    pub media: u64,
    /// Media files that the box had lost before the backup.
    pub missing_media: u64,
    /// Rows of the audit log that were checked.
    pub audit_rows: u64,
    /// Keys that the token still has.
    pub keys_kept: Vec<String>,
    /// Keys that were made or taken in the token in place of those that it does not have.
    pub keys_made: Vec<String>,
    /// What is to be done next, in sentences for people.
    pub next: Vec<String>,
}
