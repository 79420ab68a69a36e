//! What the box itself writes into the audit log: what it signed, and checkpoints that the token signs.

use sallyport_core::{
    admin::Unapproved,
    audit::{Checkpoint, Entry, Tip},
    cose::SignError,
    limits::{CHECKPOINT_MS, CHECKPOINT_ROWS, SIGNING_RUN_EVENTS_MAX, SIGNING_RUN_MS_MAX},
    sign::KeyRole,
    time::Millis,
};
use sallyport_hsm::Token;
use sallyport_store::{SigningRun, Store, StoredCheckpoint, Write};

use super::{
    order::Order,
    own_keys::{self, public_key},
};

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the audit log cannot be read or kept")]
    Store(#[from] sallyport_store::Error),
    /// There is no audit key.
    #[error(transparent)]
    Keys(#[from] own_keys::Error),
    /// Approvals came with it.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// The token does not sign it.
    #[error("the token does not sign a checkpoint of the audit log")]
    Token(#[from] SignError<sallyport_hsm::Error>),
}

/// Which signatures the log is to tell of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Those of long or full runs: one row for many batches keeps the log small.
    Due,
    /// All: something depends on them that is in the log itself.
    Now,
}

/// Appends rows that tell of signatures made since the last ones.
///
/// # Errors
/// If the database fails.
pub fn tell_of_signatures(
    store: &Store,
    when: When,
    now: Millis,
) -> Result<(), sallyport_store::Error> {
    let runs = store.read(|read| read.signing_runs())?;
    if runs.iter().any(|run| is_due(run, when, now)) {
        store.write(move |write| append_signatures(write, when, now))?;
    }
    Ok(())
}

/// As [`tell_of_signatures`], in a command that does more.
///
/// # Errors
/// If the database fails.
pub fn append_signatures(
    write: &mut Write<'_>,
    when: When,
    now: Millis,
) -> Result<(), sallyport_store::Error> {
    for run in write.signing_runs()?.into_iter().filter(|run| is_due(run, when, now)) {
        write.end_signing_run(&run.key)?;
        write.append_audit(signed(&run, now))?;
    }
    Ok(())
}

fn is_due(run: &SigningRun, when: When, now: Millis) -> bool {
    when == When::Now
        || run.events.size() >= SIGNING_RUN_EVENTS_MAX
        || now.0.saturating_sub(run.began.0) >= SIGNING_RUN_MS_MAX
}

fn signed(run: &SigningRun, now: Millis) -> Entry {
    let details = [
        ("events", run.events.size().to_string()),
        ("rooms", run.rooms.to_string()),
        ("merkle_root", run.events.root().to_string()),
        ("first_ms", run.began.0.to_string()),
        ("last_ms", run.ended.0.to_string()),
    ];
    by_the_box("events.sign", run.key.clone(), details, now)
}

/// The row for a new system that was blessed.
#[must_use]
pub fn updated(schema_before: u32, schema: u32, now: Millis) -> Entry {
    let details = [("schema_before", schema_before.to_string()), ("schema", schema.to_string())];
    by_the_box("update.blessed", env!("CARGO_PKG_VERSION").to_owned(), details, now)
}

/// The row for a database that was taken back from a newer version.
#[must_use]
pub fn rolled_back(schema_before: u32, schema: u32, now: Millis) -> Entry {
    let details = [("schema_before", schema_before.to_string()), ("schema", schema.to_string())];
    by_the_box("update.rolled-back", env!("CARGO_PKG_VERSION").to_owned(), details, now)
}

/// A row for what the box does by itself.
pub(super) fn by_the_box<const N: usize>(
    action: &str,
    subject: String,
    details: [(&str, String); N],
    now: Millis,
) -> Entry {
    Entry {
        at: now,
        actor: "the box".to_owned(),
        evidence: "by itself".to_owned(),
        approvals: Vec::new(),
        action: action.to_owned(),
        subject,
        details: details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

/// Makes a checkpoint if there are enough new rows, or some and the last one is a day old.
///
/// # Errors
/// If the token or the database fails; the next call tries again.
pub fn checkpoint_if_due(
    store: &Store,
    token: &dyn Token,
    server_name: &ruma::ServerName,
    now: Millis,
) -> Result<(), Error> {
    let (tip, last) = store.read(|read| {
        Ok::<_, sallyport_store::Error>((read.audit_tip()?, read.last_checkpoint()?))
    })?;
    let (row, made) = last.map_or((0, Millis(0)), |last| (last.row, last.made));
    let rows = tip.id.saturating_sub(row);
    let is_old = now.0.saturating_sub(made.0) >= CHECKPOINT_MS || now < made;
    if (rows >= CHECKPOINT_ROWS || (rows > 0 && is_old))
        && own_keys::current(store, KeyRole::Audit)?.is_some()
    {
        checkpoint(store, token, server_name, now)?;
    }
    Ok(())
}

/// Has the token sign where the log stands; answers what it vouches for.
///
/// # Errors
/// If there is no audit key, or the token or the database fails.
pub fn checkpoint(
    store: &Store,
    token: &dyn Token,
    server_name: &ruma::ServerName,
    now: Millis,
) -> Result<Tip, Error> {
    let key = own_keys::required(store, KeyRole::Audit)?;
    let public = public_key(&key.key)?;
    let tip = store.read(|read| read.audit_tip())?;
    let checkpoint = Checkpoint::of(server_name.to_owned(), tip, now);
    let bytes = checkpoint.sign(&public, |request| token.sign(&key.name, &request))?;
    let stored = StoredCheckpoint { row: tip.id, made: now, bytes };
    store.write::<_, sallyport_store::Error>(move |write| write.keep_checkpoint(&stored))?;
    log::info!(row = tip.id; "the token vouches for the audit log");
    Ok(tip)
}

/// A checkpoint because somebody asked: it covers the row that tells of that.
///
/// # Errors
/// As [`checkpoint`], or if there are approvals.
pub fn checkpoint_on_order(
    store: &Store,
    token: &dyn Token,
    server_name: &ruma::ServerName,
    order: &Order,
) -> Result<Tip, Error> {
    let entry = order.alone()?.entry("audit.checkpoint", "", []);
    let now = order.now;
    store.write(move |write| {
        append_signatures(write, When::Now, now)?;
        write.append_audit(entry)
    })?;
    checkpoint(store, token, server_name, now)
}
