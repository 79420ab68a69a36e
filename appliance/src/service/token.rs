//! The PIN of the token, which a person gives when the box has none that works.

use sallyport_core::{admin::Unapproved, sign::KeyRole};
use sallyport_hsm::{Mode, Pin, Token};
use sallyport_store::Store;

use super::{order::Order, own_keys};

/// Why the token was not opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An approval does not count, or some are missing.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// The database failed, so the audit log does not tell of it.
    #[error("the audit log cannot be written")]
    Store(#[from] sallyport_store::Error),
    /// The token refused, or does not answer.
    #[error("the token does not open")]
    Token(#[source] sallyport_hsm::Error),
}

/// Opens the token with a PIN. It changes the token and not the database, so no transaction can hold both: the log tells of the attempt
/// before the token sees the PIN, because a wrong one costs an attempt that somebody must answer for, and of the success after it.
///
/// # Errors
/// If the log cannot be written, before the PIN is used; or if the token does not open.
pub fn unlock(store: &Store, token: &dyn Token, pin: Pin, order: &Order) -> Result<(), Error> {
    let mandate = order.alone()?;
    let attempt = mandate.entry("token.unlock", "", []);
    store.write(move |write| write.append_audit(attempt))?;
    token.reopen(pin).map_err(Error::Token)?;
    let success = mandate.entry("token.unlocked", "", []);
    store.write(move |write| write.append_audit(success))?;
    Ok(())
}

/// Where the key of a role lives that is in use. For a role without one: where an event key would, if the token was open once.
#[must_use]
pub fn custody(store: &Store, token: &dyn Token, role: KeyRole) -> Option<Mode> {
    let current = own_keys::current(store, role).ok().flatten();
    let custody = current.and_then(|key| token.custody(&key.name).ok());
    custody.or_else(|| token.mode().filter(|_| role == KeyRole::Event))
}
