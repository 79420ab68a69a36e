//! Key backups: what is more than one question or command to the store.

use ruma::UserId;
use sallyport_core::limits::BACKUP_KEYS_PURGED;
use sallyport_store::Store;

/// Deletes a version of a user's backup. Answers `false` if there never was such a version.
///
/// # Errors
/// If the database fails.
pub fn delete(store: &Store, user_id: &UserId, version: i64) -> sallyport_store::Result<bool> {
    let owner = user_id.to_owned();
    let known = store.write(move |write| write.delete_backup(&owner, version))?;
    purge(store, user_id)?;
    Ok(known)
}

/// Removes the keys of deleted backups in slices that do not hold the writer up.
///
/// # Errors
/// If the database fails.
pub(crate) fn purge(store: &Store, user_id: &UserId) -> sallyport_store::Result<()> {
    loop {
        let owner = user_id.to_owned();
        if store.write(move |write| write.purge_backups(&owner, BACKUP_KEYS_PURGED))? == 0 {
            return Ok(());
        }
    }
}
