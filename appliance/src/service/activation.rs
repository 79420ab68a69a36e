//! Activation codes: giving out new ones, and using one to set the first password.

use ruma::{OwnedUserId, ServerName, UserId};
use sallyport_core::{
    admin::{CodesRequest, IssuedCode, Unapproved},
    audit::Entry,
    limits::{ACTIVATION_CODES_MAX, PASSWORD_CHARACTERS_MIN},
    roster::{Localpart, activation::NotACode},
    time::Millis,
};
use sallyport_store::Store;

use super::{
    order::Order,
    passwords,
    pepper::{NewCode, Pepper},
    roster::give,
};
use crate::app::Interrupted;

/// Accounts in one transaction.
const SLICE: usize = 500;

/// Why a code does not work, or is not given out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no code.
    #[error(transparent)]
    NotACode(#[from] NotACode),
    /// It was never given out, was used, has expired, or its account is locked. Which of these is nobody's business.
    #[error("the code is not valid: it works once, and for fourteen days; ask for a new slip")]
    Unknown,
    /// The password cannot be used.
    #[error(transparent)]
    Password(#[from] passwords::Error),
    /// An account for which a code is wanted is not there, or is locked.
    #[error("{0} is not an active account of a roster")]
    NoAccount(Localpart),
    /// More codes than one command gives out.
    #[error("more than {ACTIVATION_CODES_MAX} codes at once: name fewer accounts")]
    TooMany,
    /// An approval does not count, or some are missing.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// No randomness for codes.
    #[error("no activation codes can be made")]
    NoRandomness(#[from] Interrupted),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] sallyport_store::Error),
}

/// The account that a code is for, if it may be used now. Also tells whether it is a registration token.
///
/// # Errors
/// If it is mistyped or not valid.
pub fn owner(
    store: &Store,
    pepper: &Pepper,
    code: &str,
    now: Millis,
) -> Result<OwnedUserId, Error> {
    let hash = pepper.code(&code.parse()?);
    store.read(|read| read.activation_code_owner(hash, now))?.ok_or(Error::Unknown)
}

/// Uses a code up: its account gets this password. With `wanted`, only if it is the code of that account. Argon2id runs only for a code that is valid; call this in
/// [`App::run_password_check`](crate::app::App::run_password_check).
///
/// # Errors
/// If the code or the password cannot be used; then the code still works.
pub fn activate(
    store: &Store,
    pepper: &Pepper,
    wanted: Option<&UserId>,
    code: &str,
    password: &str,
    salt: &[u8; 16],
    now: Millis,
) -> Result<OwnedUserId, Error> {
    let hash = pepper.code(&code.parse()?);
    let owner = store.read(|read| read.activation_code_owner(hash, now))?.ok_or(Error::Unknown)?;
    if wanted.is_some_and(|wanted| wanted != owner) {
        return Err(Error::Unknown);
    }
    let password_hash = passwords::hash(password, PASSWORD_CHARACTERS_MIN, salt)?;
    store.write(move |write| {
        let user_id = write.redeem_activation_code(hash, now)?.ok_or(Error::Unknown)?;
        write.set_password_hash(&user_id, Some(&password_hash))?;
        write.append_audit(redeemed(&user_id, now))?;
        Ok(user_id)
    })
}

/// Gives accounts new codes; their old ones end.
///
/// # Errors
/// If an account is not there or locked; then none has changed.
pub fn renew(
    store: &Store,
    ours: &ServerName,
    request: &CodesRequest,
    order: &Order,
    new_code: &dyn Fn() -> Result<NewCode, Interrupted>,
) -> Result<Vec<IssuedCode>, Error> {
    let mandate = order.alone()?;
    let accounts = wanted(store, ours, request)?;
    let mut codes = Vec::with_capacity(accounts.len());
    for accounts in accounts.chunks(SLICE) {
        let mut work = Vec::with_capacity(accounts.len());
        for user_id in accounts {
            work.push((user_id.clone(), new_code()?));
        }
        let (now, mandate) = (order.now, mandate.clone());
        let given: Result<Vec<IssuedCode>, Error> = store.write(move |write| {
            let mut codes = Vec::with_capacity(work.len());
            for (user_id, code) in &work {
                // Locked or gone since it was looked up.
                let Some(account) = write.roster_account(user_id)? else { continue };
                codes.push(give(write, user_id, &account, code, now)?);
                write.append_audit(mandate.entry("activation.renew", user_id, []))?;
            }
            Ok(codes)
        });
        codes.extend(given?);
    }
    Ok(codes)
}

fn wanted(
    store: &Store,
    ours: &ServerName,
    request: &CodesRequest,
) -> Result<Vec<OwnedUserId>, Error> {
    store.read(|read| {
        let mut accounts = if request.all_waiting { read.waiting_accounts()? } else { Vec::new() };
        for localpart in &request.localparts {
            let missing = || Error::NoAccount(localpart.clone());
            let user_id = localpart.user_id(ours).ok_or_else(missing)?;
            let usable = read.user(&user_id)?.is_some_and(|user| !user.locked && !user.deactivated);
            if !usable || read.roster_account(&user_id)?.is_none() {
                return Err(missing());
            }
            accounts.push(user_id);
        }
        accounts.sort();
        accounts.dedup();
        if accounts.len() > ACTIVATION_CODES_MAX { Err(Error::TooMany) } else { Ok(accounts) }
    })
}

fn redeemed(user_id: &OwnedUserId, now: Millis) -> Entry {
    Entry {
        at: now,
        actor: user_id.to_string(),
        evidence: "activation code".to_owned(),
        approvals: Vec::new(),
        action: "activation.redeem".to_owned(),
        subject: user_id.to_string(),
        details: [].into(),
    }
}
