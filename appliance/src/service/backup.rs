//! Backups of the box, encrypted to the recovery officers' keys, and the new life that begins when one was restored.
//!
//! [`create`](create::Prepared) copies the database at the pace of the box's disk, then streams it with everything else at the pace of the stick. `sallyctl restore`
//! verifies backups and puts them into an empty folder on new hardware; [`restore`] makes a box of that.

pub mod create;
mod remembered;
pub mod restore;

use std::path::PathBuf;

use sallyport_core::{
    admin::{BackupMade, BackupState, Unapproved},
    backup::{self, BackupId},
    limits::BACKUP_AGE_MS_WARNING,
    time::Millis,
};
use sallyport_store::Store;

use super::{order::Order, own_keys, peers};
use crate::{app::App, files};

/// Why there is no backup, or it is not taken note of.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the database cannot be copied, or did not take note of the backup")]
    Store(#[from] sallyport_store::Error),
    /// Approvals came with it.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// The box has no courier key.
    #[error(transparent)]
    Keys(#[from] own_keys::Error),
    /// The box's card is not to be had.
    #[error(transparent)]
    Peers(#[from] peers::Error),
    /// There is no token.
    #[error(
        "the box has no token, so that nobody could tell whose a backup is: set [token] in the configuration"
    )]
    NoToken,
    /// The token does not answer.
    #[error("the token that signs the backup does not answer: see `sallyctl token status`")]
    Token(#[source] sallyport_hsm::Error),
    /// There is nobody to encrypt to.
    #[error(
        "the configuration names no recovery officer: make a key with `sallyctl ceremony recovery-key` and name it in [backup] recovery_keys"
    )]
    NoRecoveryKeys,
    /// What should be followed is not known.
    #[error(
        "the box does not remember the backup {0}, so that none can follow it: make a full one, without --since"
    )]
    NotRemembered(BackupId),
    /// The disk has no room for the copy of the database.
    #[error(
        "the copy of the database needs {needed} bytes on the box's disk, and {free} are free: free some"
    )]
    NoRoom {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The backup that was verified is not the one that was made last.
    #[error("the backup {0} is not one that the box made lately: make a new one")]
    Unknown(BackupId),
    /// There are more media than a backup holds.
    #[error("the box has more media files than a backup holds")]
    TooManyMedia,
    /// A file failed.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The secrets of the box cannot be copied.
    #[error("the vault cannot be copied")]
    Vault(#[from] crate::vault::Error),
    /// It could not be written.
    #[error("the backup could not be made")]
    Write(#[from] backup::WriteError),
    /// What was restored is not sound.
    #[error("what was restored is not sound, and was left as it is: {}; restore another backup", .0.join("; "))]
    Faulty(Vec<String>),
    /// What a restore left is not read.
    #[error("{} is not what `sallyctl restore` writes: restore again into an empty folder", path.display())]
    NotRestored {
        /// The file.
        path: PathBuf,
    },
    /// The token must be there to make keys.
    #[error(
        "the token is not there ({0}): connect it and give the command again; the restore is finished then"
    )]
    TokenAbsent(String),
    /// No randomness, or the box stops.
    #[error(transparent)]
    Interrupted(#[from] crate::app::Interrupted),
}

/// Key of the newest verified backup in the table of single values.
const LAST: &str = "last_backup";

/// The newest backup that was read back and verified.
///
/// # Errors
/// If the database fails.
pub fn state(store: &Store) -> Result<BackupState, sallyport_store::Error> {
    let last = store.read(|read| read.meta(LAST))?;
    let newest_key =
        store.read(|read| read.all_own_keys())?.into_iter().map(|key| key.created).max();
    let last: Option<BackupMade> = last.and_then(|last| serde_json::from_slice(&last).ok());
    Ok(BackupState { last, newest_key })
}

/// What somebody should look after. A box without recovery keys makes no backups, and its configuration says so.
#[must_use]
pub fn warnings(app: &App, state: &BackupState, now: Millis) -> Vec<String> {
    if app.config.backup.recovery_keys.is_empty() {
        return vec![
            "there are no backups: no recovery officer is named in [backup] recovery_keys"
                .to_owned(),
        ];
    }
    let Some(last) = &state.last else {
        return vec!["there is no backup yet: make one with `sallyctl backup create`".to_owned()];
    };
    let age = now.0.saturating_sub(last.made.0);
    let mut warnings = Vec::new();
    if age > BACKUP_AGE_MS_WARNING {
        let days = age / 86_400_000;
        warnings.push(format!(
            "the last backup is {days} days old: make one with `sallyctl backup create`"
        ));
    }
    if state.newest_key.is_some_and(|made| made > last.made) {
        warnings.push(
            "a key of the box is newer than the last backup: make one with `sallyctl backup create`, or peers could not give back what it signs"
                .to_owned(),
        );
    }
    warnings
}

/// Takes note that a backup was read back from where it was written and verified: only now does it count.
///
/// # Errors
/// If it is none of the last ones that the box made, or the database fails.
pub fn note_verified(app: &App, id: BackupId, order: &Order) -> Result<BackupMade, Error> {
    let mandate = order.alone()?;
    let made = remembered::made(app, id)?.ok_or(Error::Unknown(id))?;
    let details = [("id", id.to_string()), ("full", made.full.to_string())];
    let entry = mandate.entry("backup.verified", made.number, details);
    let json = serde_json::to_vec(&made)
        .map_err(|error| sallyport_store::Error::corrupt("meta", error))?;
    app.store.write::<_, sallyport_store::Error>(move |write| {
        write.set_meta(LAST, &json)?;
        write.append_audit(entry).map(drop)
    })?;
    Ok(made)
}
