//! Rosters: what one would change, and changing it.
//!
//! An import is made in slices, each a transaction, so that members keep chatting while a hundred thousand accounts are
//! made. The roster counts as imported with the last slice. If the box stops in between, importing the same or a newer
//! roster goes on: what is there already needs no change, and accounts whose codes nobody has seen get new ones.

use ruma::{OwnedUserId, ServerName};
use sallyport_core::{
    admin::{Consent, IssuedCode, RosterImported, RosterReport, RosterState, Unapproved},
    cose::KeyId,
    limits::{ACTIVATION_MS_MAX, ROSTER_REPORT_NAMES_MAX},
    roster::{
        Account, AccountState, Current, Head, Localpart, MassLock, NotAdmitted, Plan, Step,
        UnknownLocks, diff,
        signed::{Refused, RosterFile, Verified},
    },
    sign::PublicKey,
    time::Millis,
};
use sallyport_store::{Store, Write};

use super::{
    order::{Mandate, Order},
    pepper::NewCode,
};
use crate::app::Interrupted;

/// Officers who must approve that unusually many accounts are locked, beside the one who signed the roster.
const MASS_LOCK_APPROVALS: usize = 1;
/// Accounts in one transaction: about 20 ms of the writer.
const SLICE: usize = 250;

/// Why a roster is not imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not a roster of one of our officers.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It is for another enclave, or old.
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    /// It locks accounts that do not exist.
    #[error(transparent)]
    UnknownLocks(#[from] UnknownLocks),
    /// An approval does not count.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// It locks unusually many accounts, and no officer approved that.
    #[error("{stop}")]
    MassLock {
        /// What is to be approved.
        stop: MassLock,
        /// How that is done.
        #[source]
        why: Unapproved,
    },
    /// Another import was finished since this one was planned.
    #[error("another roster was imported at the same time: look what is left to do with a dry run")]
    Overtaken,
    /// An account cannot be named on this server.
    #[error("{0} is too long for a user id on this server: choose a shorter localpart")]
    TooLong(Localpart),
    /// No randomness for the codes.
    #[error("no activation codes can be made")]
    NoRandomness(#[from] Interrupted),
    /// The database failed.
    #[error("the database failed; what was imported so far is kept, import the roster again")]
    Store(#[from] sallyport_store::Error),
}

/// What a roster would change.
///
/// # Errors
/// If the roster is refused; a mass lock is reported, not refused.
pub fn dry_run(
    store: &Store,
    ours: &ServerName,
    officers: &[PublicKey],
    file: &[u8],
) -> Result<RosterReport, Error> {
    let verified = RosterFile::parse(file)?.verify(officers)?;
    let (_, current) = situation(store)?;
    verified.roster.head.admit(ours, current.last)?;
    let plan = diff(&verified.roster, current.accounts)?;
    let mass_lock = plan.counts.mass_lock();
    Ok(report(&verified, &plan, mass_lock))
}

/// Carries a roster out and answers the activation codes of new accounts.
///
/// # Errors
/// If the roster is refused nothing has changed; if the database fails in between, see the module.
pub fn import(
    store: &Store,
    ours: &ServerName,
    officers: &[PublicKey],
    file: &[u8],
    order: &Order,
    new_code: &dyn Fn() -> Result<NewCode, Interrupted>,
) -> Result<RosterImported, Error> {
    let verified = RosterFile::parse(file)?.verify(officers)?;
    let (before, current) = situation(store)?;
    verified.roster.head.admit(ours, current.last)?;
    let plan = diff(&verified.roster, current.accounts)?;
    let mandate = approved(&plan, &verified, officers, order)?;
    let report = report(&verified, &plan, None);
    begin(store, before, &report, &mandate)?;
    let mut codes = Vec::new();
    for steps in plan.steps.chunks(SLICE) {
        codes.extend(slice(store, ours, &report.head, steps, order.now, new_code)?);
    }
    finish(store, &report, codes.len(), &mandate)?;
    Ok(RosterImported { report, codes })
}

/// What the box knows of rosters.
struct Situation {
    last: Option<u64>,
    accounts: Vec<Current>,
}

fn situation(store: &Store) -> Result<(Option<RosterState>, Situation), Error> {
    store.read(|read| {
        let last = read.last_roster()?;
        let accounts = read.roster_accounts()?;
        let serial = last.as_ref().map(|roster| roster.serial);
        Ok((last, Situation { last: serial, accounts }))
    })
}

fn report(verified: &Verified, plan: &Plan<'_>, mass_lock: Option<MassLock>) -> RosterReport {
    let locked = plan
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Lock(_) | Step::LockAbsent(_)))
        .map(|step| step.localpart().clone())
        .take(ROSTER_REPORT_NAMES_MAX);
    RosterReport {
        head: verified.roster.head.clone(),
        signer: KeyId::of(&verified.signer).to_string(),
        subject: verified.subject,
        counts: plan.counts,
        mass_lock,
        locked: locked.collect(),
    }
}

/// A roster that locks unusually many accounts needs another officer than the one who signed it.
fn approved(
    plan: &Plan<'_>,
    verified: &Verified,
    officers: &[PublicKey],
    order: &Order,
) -> Result<Mandate, Error> {
    let head = &verified.roster.head;
    let wanted = Consent::to_mass_lock(head.enclave.clone(), verified.subject);
    let mandate = order.approved(officers, Some(&verified.signer), &wanted)?;
    if let Some(stop) = plan.counts.mass_lock() {
        let what = || format!("roster {}", head.serial);
        let command = || "sallyctl approve roster ROSTER --token TOKEN --out APPROVAL".to_owned();
        let enough = mandate.approvers().require(MASS_LOCK_APPROVALS, what, command);
        enough.map_err(|why| Error::MassLock { stop, why })?;
    }
    Ok(mandate)
}

fn begin(
    store: &Store,
    before: Option<RosterState>,
    report: &RosterReport,
    mandate: &Mandate,
) -> Result<(), Error> {
    let entry = mandate.entry(
        "roster.import",
        report.subject,
        [
            ("serial", report.head.serial.to_string()),
            ("signer", report.signer.clone()),
            ("changes", report.counts.to_string()),
        ],
    );
    store.write(move |write| {
        if write.last_roster()? != before {
            return Err(Error::Overtaken);
        }
        write.append_audit(entry)?;
        Ok(())
    })
}

fn finish(
    store: &Store,
    report: &RosterReport,
    codes: usize,
    mandate: &Mandate,
) -> Result<(), Error> {
    let details = [("serial", report.head.serial.to_string()), ("codes", codes.to_string())];
    let entry = mandate.entry("roster.imported", report.subject, details);
    let RosterReport { head, signer, subject, .. } = report.clone();
    let now = mandate.now();
    store.write(move |write| {
        write.finish_roster(&head, subject, &signer, now)?;
        write.append_audit(entry)?;
        Ok(())
    })
}

/// A step that owns what it needs, with the code that its account may get.
enum Work {
    Put { user_id: OwnedUserId, account: Box<Account>, new: bool, code: Option<NewCode> },
    Lock { user_id: OwnedUserId },
}

/// Carries out some steps in one transaction.
fn slice(
    store: &Store,
    ours: &ServerName,
    head: &Head,
    steps: &[Step<'_>],
    now: Millis,
    new_code: &dyn Fn() -> Result<NewCode, Interrupted>,
) -> Result<Vec<IssuedCode>, Error> {
    let user_id = |localpart: &Localpart| {
        localpart.user_id(ours).ok_or_else(|| Error::TooLong(localpart.clone()))
    };
    let mut work = Vec::with_capacity(steps.len());
    for step in steps {
        let user_id = user_id(step.localpart())?;
        work.push(match step {
            Step::Create(account) => {
                let active = account.state == AccountState::Active;
                let code = if active { Some(new_code()?) } else { None };
                Work::Put { user_id, account: Box::new((*account).clone()), new: true, code }
            }
            Step::Update(account) | Step::Lock(account) | Step::Unlock(account) => {
                Work::Put { user_id, account: Box::new((*account).clone()), new: false, code: None }
            }
            Step::LockAbsent(_) => Work::Lock { user_id },
        });
    }
    let serial = head.serial;
    store.write(move |write| {
        let mut codes = Vec::new();
        for work in work {
            match work {
                Work::Lock { user_id } => lock(write, &user_id)?,
                Work::Put { user_id, account, new, code } => {
                    let serial = new.then_some(serial);
                    codes.extend(put(write, &user_id, &account, serial, code, now)?);
                }
            }
        }
        Ok(codes)
    })
}

/// Makes or changes an account. A new one that is active and has no password gets the code.
fn put(
    write: &mut Write<'_>,
    user_id: &OwnedUserId,
    account: &Account,
    serial: Option<u64>,
    code: Option<NewCode>,
    now: Millis,
) -> Result<Option<IssuedCode>, sallyport_store::Error> {
    let made = write.create_user(user_id, now)?;
    let before = if made { None } else { write.roster_account(user_id)? };
    // What people call themselves stays, unless the roster itself has a new name for them.
    if account.display_name != before.and_then(|before| before.display_name) {
        let name = account.display_name.as_ref().map(|name| serde_json::Value::from(name.as_str()));
        write.set_profile_field(user_id, "displayname", name.map(|n| n.to_string()).as_deref())?;
    }
    write.set_roster_account(user_id, account, serial)?;
    let before = if made { None } else { write.user(user_id)? };
    let locked = before.as_ref().is_some_and(|user| user.locked);
    let has_password = before.is_some_and(|user| user.password_hash.is_some());
    match account.state {
        AccountState::Locked if !locked => lock(write, user_id)?,
        AccountState::Active if locked => write.set_user_locked(user_id, false)?,
        AccountState::Active | AccountState::Locked => {}
    }
    match code {
        Some(code) if !has_password => give(write, user_id, account, &code, now).map(Some),
        _ => Ok(None),
    }
}

fn lock(write: &mut Write<'_>, user_id: &OwnedUserId) -> Result<(), sallyport_store::Error> {
    write.set_user_locked(user_id, true)?;
    write.delete_activation_code(user_id)
}

/// Stores a code and fills in the slip.
pub(super) fn give(
    write: &mut Write<'_>,
    user_id: &OwnedUserId,
    account: &Account,
    code: &NewCode,
    now: Millis,
) -> Result<IssuedCode, sallyport_store::Error> {
    let expires_at = Millis(now.0.saturating_add(ACTIVATION_MS_MAX));
    write.set_activation_code(user_id, code.hash, expires_at)?;
    Ok(IssuedCode {
        user_id: user_id.to_string(),
        display_name: account.display_name.clone(),
        unit: account.unit.clone(),
        code: code.code.to_string(),
        expires_at,
    })
}
