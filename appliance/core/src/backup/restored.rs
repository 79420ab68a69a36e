//! What a restore leaves in the box's folder, for the box to make a new life of it.

use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

use super::{BackupId, Signed};
use crate::{audit::Tip, incarnation::Incarnation, time::Millis};

/// The file with a [`Restored`] in it. The box removes it when its new life has begun.
pub const RESTORED_FILE: &str = "restored.json";
/// The folder in which a restore collects what it puts into place at its end. While it is there, the box does not start.
pub const RESTORING_FOLDER: &str = "restoring";

/// What was restored, and into which life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    /// Whose backup it was.
    pub enclave: OwnedServerName,
    /// Which one.
    pub backup: BackupId,
    /// Its number.
    pub number: u64,
    /// When it was made.
    pub made: Millis,
    /// Where the audit log ended.
    pub audit: Tip,
    /// Random name of the new life, in hexadecimal digits.
    pub incarnation: String,
}

impl Restored {
    /// Of a backup.
    #[must_use]
    pub fn new(signed: &Signed, incarnation: Incarnation) -> Self {
        let (header, manifest) = (&signed.header, &signed.manifest);
        Self {
            enclave: header.enclave.clone(),
            backup: manifest.id,
            number: header.number,
            made: header.created,
            audit: manifest.audit(),
            incarnation: incarnation.to_string(),
        }
    }
}
