//! Accounts: registering, changing the password, deactivating.

use ruma::{OwnedUserId, ServerName, UserId, events::room::member::MembershipState};
use sallyport_core::{limits::IDENTIFIER_BYTES_MAX, time::Millis};
use sallyport_store::{Membership, Store};

use super::{
    passwords,
    rooms::{self, membership},
    sessions::Identity,
};
use crate::app::App;

/// Why an account was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The name has characters that a user id must not have, or is too long.
    #[error("the name must have lower-case letters, digits and -._=/+ only")]
    InvalidName,
    /// The name was given out before.
    #[error("the name is taken")]
    Taken,
    /// The password cannot be used.
    #[error("the password cannot be used")]
    Password(#[from] passwords::Error),
    /// The database failed.
    #[error("the account could not be stored")]
    Store(#[from] sallyport_store::Error),
}

/// The user id that a new account of this name would have, if the name is free.
///
/// # Errors
/// If the name is malformed or was given out before.
pub fn available(
    store: &Store,
    server_name: &ServerName,
    name: &str,
) -> Result<OwnedUserId, AccountError> {
    let user_id = new_user_id(server_name, name)?;
    if store.read(|read| read.user_exists(&user_id))? {
        return Err(AccountError::Taken);
    }
    Ok(user_id)
}

/// Makes an account with a password.
///
/// # Errors
/// If the name was given out in between, or the password cannot be used.
pub fn register(
    app: &App,
    user_id: &UserId,
    password: &str,
    salt: &[u8; 16],
    now: Millis,
) -> Result<(), AccountError> {
    let characters_min = app.config.registration.password_characters_min();
    let hash = passwords::hash(password, characters_min, salt)?;
    let user_id = user_id.to_owned();
    app.store.write(move |write| {
        if !write.create_user(&user_id, now)? {
            return Err(AccountError::Taken);
        }
        write.set_password_hash(&user_id, Some(&hash))?;
        Ok(())
    })
}

/// Changes the password. With `log_out_others` all other devices of the account are deleted.
///
/// # Errors
/// If the password cannot be used.
pub fn change_password(
    app: &App,
    identity: Identity,
    password: &str,
    log_out_others: bool,
    salt: &[u8; 16],
) -> Result<(), AccountError> {
    let characters_min = app.config.registration.password_characters_min();
    let hash = passwords::hash(password, characters_min, salt)?;
    let Identity { user_id, device_id } = identity;
    app.store.write(move |write| {
        write.set_password_hash(&user_id, Some(&hash))?;
        if log_out_others {
            let mut others = write.device_ids(&user_id)?;
            others.retain(|id| *id != device_id);
            write.delete_devices(&user_id, Some(&others))?;
        }
        Ok(())
    })
}

/// Ends an account for good: it leaves its rooms, and its name is not given out again. What it said stays.
///
/// # Errors
/// If the database fails; then it may be done again.
pub fn deactivate(app: &App, user_id: OwnedUserId, now: Millis) -> Result<(), AccountError> {
    let places = app.store.read(|read| read.memberships_of(&user_id))?;
    let left = |place: &&Membership| {
        matches!(place.membership, MembershipState::Leave | MembershipState::Ban)
    };
    for Membership { room_id, .. } in places.iter().filter(|place| !left(place)) {
        let (sender, target) = (&*user_id, &*user_id);
        let change = membership::Change { room_id, sender, target, reason: None, now };
        match membership::leave(app, change) {
            Ok(()) => {}
            Err(rooms::Error::Store(error)) => return Err(error.into()),
            // The account ends all the same: nobody can speak for it in that room any more.
            Err(error) => log::warn!(room_id:% = room_id, error:% = error; "a room was not left"),
        }
    }
    let owner = user_id.clone();
    app.store.write(move |write| write.deactivate_user(&owner))?;
    super::backups::purge(&app.store, &user_id)?;
    Ok(())
}

/// New names are strict, whatever old servers allowed
/// ([user identifiers](https://spec.matrix.org/v1.16/appendices/#user-identifiers)).
fn new_user_id(server_name: &ServerName, name: &str) -> Result<OwnedUserId, AccountError> {
    let allowed = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '-' | '.' | '_' | '=' | '/' | '+');
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(AccountError::InvalidName);
    }
    let user_id = format!("@{name}:{server_name}");
    if user_id.len() > IDENTIFIER_BYTES_MAX {
        return Err(AccountError::InvalidName);
    }
    UserId::parse(user_id).map_err(|_| AccountError::InvalidName)
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    #[test]
    fn names() {
        let check = |name: &str, good: bool| {
            let result = new_user_id(server_name!("alpha.test"), name);
            assert_eq!(result.is_ok(), good, "{name:?}");
        };
        check("alice", true);
        check("a-b.c_d=e/f+1", true);
        check("", false);
        check("Alice", false);
        check("älice", false);
        check("a:b", false);
        check("@alice", false);
        check(&"a".repeat(255), false);
    }
}
