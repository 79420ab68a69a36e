//! Keys of the box are replaced, handed over to another token, and destroyed.
//!
//! Each is an order of a person, which officers approve where the policy of the enclave's card says so, and leaves rows in the audit log in
//! the transaction of its effect. Each can be planned first: [`plan`] says what would happen and touches nothing.
//!
//! What peers need so that nothing is lost:
//! - *event key*: whatever waits is signed by the old key before that is retired, at a time later than any event it signed; the next bundle carries the
//!   new key document. If the old key is lost, its successor signs what waits: key documents allow that for current keys.
//! - *courier key*: peers know it from the box's card, so both keys are on the next card, and bundles for a peer are signed by the old one until the peer
//!   has acknowledged a bundle with that card.
//! - *courier encryption key*: the old one opens bundles until every peer has the new card, and then is destroyed ([`destroy_superseded`]): sticks of
//!   before cannot be read any more by anybody.
//! - *audit key*: the old one vouches for the row that names the new one.
//!
//! Peers never see the keys of certificates ([`certificates`]); devices trust the CA's.

mod certificates;

use ruma::OwnedServerName;
use sallyport_core::{
    admin::{Consent, KeyAction, KeyOrder, KeyReport, KeyState, NewKey, Unapproved},
    audit::{Checkpoint, KEY_ROTATED, append},
    card::Card,
    cose::SignError,
    limits::{BUNDLE_VALIDITY_MS, COURIER_KEY_LIFETIME_MS, DECIDE_ATTEMPTS_MAX},
    sign::KeyRole,
    time::Millis,
};
use sallyport_hsm::{KeyName, Token};
use sallyport_store::{OwnKey, Store, StoredCheckpoint};

use super::{
    audit::{self, When},
    hybrid,
    order::{Mandate, Order},
    own_keys::{self, Current, ROTATED},
    peers, signer,
};
use crate::{app::App, tls};

/// Why keys stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the box's keys cannot be read or kept")]
    Store(#[from] sallyport_store::Error),
    /// An approval does not count, or some are missing.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// A key is not to be had.
    #[error(transparent)]
    Keys(#[from] own_keys::Error),
    /// Cards are not to be had.
    #[error(transparent)]
    Peers(#[from] peers::Error),
    /// There is no token.
    #[error("the box has no token: set [token] in the configuration")]
    NoToken,
    /// The token failed.
    #[error("the token does not do it")]
    Token(#[from] sallyport_hsm::Error),
    /// What waits cannot be signed by the old key.
    #[error(
        "the old key cannot sign what waits: bring its token back; only if that is gone for good, give the command again with --old-key-is-lost"
    )]
    NotDrained(#[source] signer::Error),
    /// The old audit key does not vouch for the new one.
    #[error(
        "the old audit key does not vouch for the new one: bring its token back; only if that is gone for good, give the command again with --old-key-is-lost"
    )]
    NotVouched(#[source] SignError<sallyport_hsm::Error>),
    /// Not a key of this box.
    #[error("the box has no key {0}: `sallyctl hsm status` lists its keys")]
    Unknown(KeyName),
    /// The key is in use.
    #[error("the key {0} is the one in use: rotate it first")]
    InUse(KeyName),
    /// The key is needed by somebody.
    #[error("the key {name} is still needed ({why})")]
    Needed {
        /// The key.
        name: KeyName,
        /// By whom, and until when.
        why: String,
    },
    /// The role is not one of the keys that are rotated.
    #[error("keys of the role {0} are not rotated by this command")]
    OtherRole(KeyRole),
    /// The new keys are not one for each role.
    #[error("a hand-over takes one new key of each of the roles {}", ROTATED.map(KeyRole::as_str).join(", "))]
    Incomplete,
    /// No listener speaks TLS.
    #[error("no listener of the box speaks TLS, so that it has no certificate")]
    NoCertificate,
    /// The certificate is given as files.
    #[error(
        "certificate and key are given as files (tls.certificate, tls.key), so that they are not the box's to replace: put others in their place; the box reads them at its next start, or within 6 hours"
    )]
    GivenAsFiles,
    /// The keys of certificates do not change.
    #[error(transparent)]
    Certificate(tls::Error),
    /// The log grew faster than a checkpoint could be signed.
    #[error("the audit log is being written all the time: try again")]
    Overtaken,
}

impl From<tls::Error> for Error {
    fn from(error: tls::Error) -> Self {
        match error {
            tls::Error::GivenAsFiles => Self::GivenAsFiles,
            error => Self::Certificate(error),
        }
    }
}

/// The officers that an order about keys needs: as many as an export or an import, whichever is more.
///
/// # Errors
/// If the database holds something that is no card.
pub fn approvals_needed(store: &Store) -> Result<u8, Error> {
    let card = store.read(|read| read.own_card())?;
    let card = card.map(|card| Card::stored(&card)).transpose().map_err(peers::Error::from)?;
    let policy = card.map(|card| card.content().policy.clone());
    Ok(policy.map_or(0, |policy| policy.export_approvals.max(policy.import_approvals)))
}

/// All keys of the box, for people.
///
/// # Errors
/// If the database fails.
pub fn list(store: &Store, token: Option<&dyn Token>) -> Result<Vec<KeyState>, Error> {
    let custody = |key: &OwnKey| {
        let name: KeyName = key.name.parse().ok()?;
        token.filter(|_| key.destroyed.is_none())?.custody(&name).ok()
    };
    let keys = store.read(|read| {
        let keys = read.all_own_keys()?.into_iter();
        let with_hybrid = keys.map(|key| Ok((read.hybrid_key(&key.name)?, key)));
        with_hybrid.collect::<Result<Vec<_>, sallyport_store::Error>>()
    })?;
    let states = keys.iter().map(|(hybrid, key)| {
        let hybrid = hybrid.as_ref().map(|hybrid| hybrid.storage.clone());
        Ok(KeyState { custody: custody(key), hybrid, ..shown(key)? })
    });
    states.collect()
}

/// What an order would do, step by step. Nothing is touched.
///
/// # Errors
/// If the order cannot be carried out.
pub fn plan(app: &App, wish: &KeyOrder) -> Result<KeyReport, Error> {
    planned(app, wish, &ending(app, &wish.action)?)
}

fn planned(app: &App, wish: &KeyOrder, ended: &[Current]) -> Result<KeyReport, Error> {
    let steps = steps(app, wish, ended)?;
    let (needed, command) = (approvals_needed(&app.store)?, approve_command(app, wish, ended)?);
    Ok(KeyReport {
        steps,
        made: Vec::new(),
        ended: ended.iter().map(|current| shown(&current.key)).collect::<Result<_, _>>()?,
        approvals_needed: needed,
        approve_command: command,
    })
}

/// Carries an order out.
///
/// # Errors
/// If too few officers approved, or the token or the database fails: then the keys are as before.
pub fn carry_out(app: &App, wish: &KeyOrder, order: &Order) -> Result<KeyReport, Error> {
    let ended = ending(app, &wish.action)?;
    let report = planned(app, wish, &ended)?;
    let mandate =
        order.approved(&app.config.roster.trusted_keys, None, &consent(app, wish, &ended)?)?;
    let what = || format!("{} of {}", wish.action.as_str(), names(&ended).join(", "));
    let command = || report.approve_command.clone();
    mandate.approvers().require(report.approvals_needed.into(), what, command)?;
    let lost = wish.old_is_lost;
    let made = match &wish.action {
        KeyAction::Rotate { role } => match certificates::part(*role) {
            Some(part) => certificates::replace(app, part, &ended, lost, &mandate)?,
            None => rotate(app, *role, &ended, lost, &mandate)?,
        },
        KeyAction::HandOver { keys } => {
            let new = handed_over(keys, order.now)?;
            let fate = if lost { Fate::Lost } else { Fate::LeftBehind };
            replace(app, &ended, new.clone(), fate, &mandate)?;
            new
        }
        KeyAction::Destroy { .. } => {
            for current in &ended {
                destroy_one(app, current, lost, &mandate)?;
            }
            Vec::new()
        }
    };
    Ok(KeyReport { made: made.iter().map(shown).collect::<Result<_, _>>()?, ..report })
}

/// Makes a key of a role in the token, and takes it into use. If that fails, it is destroyed again.
fn rotate(
    app: &App,
    role: KeyRole,
    ended: &[Current],
    lost: bool,
    mandate: &Mandate,
) -> Result<Vec<OwnKey>, Error> {
    let token = app.token.as_deref().ok_or(Error::NoToken)?;
    let new = Current::of(own_keys::make(token, role, mandate.now())?, role)?;
    let fate = if lost { Fate::Lost } else { Fate::Here };
    let kept = replace(app, ended, vec![new.key.clone()], fate, mandate);
    if kept.is_err() {
        own_keys::discard(token, &new.name);
    }
    kept.map(|()| vec![new.key])
}

/// The keys that an order ends.
fn ending(app: &App, action: &KeyAction) -> Result<Vec<Current>, Error> {
    let store = &app.store;
    let current = |role| own_keys::current(store, role);
    match action {
        KeyAction::Rotate { role } => match certificates::part(*role) {
            Some(part) => certificates::ending(app, part),
            None if !ROTATED.contains(role) => Err(Error::OtherRole(*role)),
            None => Ok(vec![current(*role)?.ok_or(own_keys::Error::None(*role))?]),
        },
        KeyAction::HandOver { .. } => {
            let all = ROTATED.into_iter().map(current).collect::<Result<Vec<_>, _>>()?;
            Ok(all.into_iter().flatten().collect())
        }
        KeyAction::Destroy { name } => {
            let name: KeyName = name.parse().map_err(|_| Error::OtherRole(KeyRole::Root))?;
            let keys = store.read(|read| read.own_keys(name.role().as_str()))?;
            let key = keys.into_iter().find(|key| key.name == name.to_string());
            let key = key.ok_or_else(|| Error::Unknown(name.clone()))?;
            if key.retired.is_none() {
                return Err(Error::InUse(name));
            }
            check_unneeded(app, &name, &key)?;
            Ok(vec![Current { name, key }])
        }
    }
}

fn consent(app: &App, wish: &KeyOrder, ended: &[Current]) -> Result<Consent, Error> {
    let incarnation = app.store.read(|read| read.incarnation())?;
    let enclave: OwnedServerName = app.config.server_name.clone();
    Ok(Consent::to_keys(enclave, incarnation, wish.action.as_str(), &names(ended)))
}

fn approve_command(app: &App, wish: &KeyOrder, ended: &[Current]) -> Result<String, Error> {
    let incarnation = app.store.read(|read| read.incarnation())?;
    let (keys, action) = (names(ended).join(" "), wish.action.as_str());
    let enclave = &app.config.server_name;
    Ok(format!(
        "sallyctl approve keys {keys} --action {action} --enclave {enclave} --incarnation {incarnation} --token TOKEN --out APPROVAL"
    ))
}

fn names(keys: &[Current]) -> Vec<String> {
    keys.iter().map(|current| current.name.to_string()).collect()
}

/// What happens, in the order in which it does.
fn steps(app: &App, wish: &KeyOrder, ended: &[Current]) -> Result<Vec<String>, Error> {
    if let KeyAction::Rotate { role } = &wish.action
        && let Some(part) = certificates::part(*role)
    {
        return certificates::steps(app, part, wish.old_is_lost);
    }
    let mut steps = Vec::new();
    if let KeyAction::HandOver { .. } = wish.action {
        steps.push("take the keys of the new token into use, one of each role".to_owned());
    }
    let events = app.store.read(|read| read.backlog())?.events;
    for current in ended {
        let (name, role) = (&current.name, current.name.role());
        match &wish.action {
            KeyAction::Rotate { .. } => steps.push(format!("make a new {role} key in the token")),
            KeyAction::HandOver { .. } => {}
            KeyAction::Destroy { .. } => {
                steps.push(format!("destroy the private half of {name} in the token, for ever"));
                steps.push(
                    "keep its public half, so that what it signed can be verified".to_owned(),
                );
                continue;
            }
        }
        match (role, wish.old_is_lost) {
            (KeyRole::Event, false) => {
                steps.push(format!("have {name} sign the {events} events that wait, before it is retired"));
            }
            (KeyRole::Event, true) => steps.push(format!(
                "have the new event key sign the {events} events that wait, as {name} is lost"
            )),
            (KeyRole::Audit, false) => {
                steps.push(format!("have {name} vouch for the row of the audit log that names the new audit key"));
            }
            (KeyRole::Audit, true) => steps.push(
                "go on with the audit log under the new key: nobody vouches for it but the officers who write its fingerprint down".to_owned(),
            ),
            _ => {}
        }
        steps.push(format!("retire {name}"));
        let gone = wish.old_is_lost || matches!(wish.action, KeyAction::HandOver { .. });
        steps.push(afterwards(role, gone).to_owned());
    }
    if let KeyAction::HandOver { .. } = wish.action {
        steps.extend(certificates::after_hand_over(app)?);
    }
    Ok(steps)
}

/// What people do once a key was replaced, or what the box does by itself.
fn afterwards(role: KeyRole, gone: bool) -> &'static str {
    match (role, gone) {
        (KeyRole::Event, _) => {
            "afterwards, by itself: the next bundle for each peer carries the new key document"
        }
        (KeyRole::Courier, false) => {
            "afterwards: have the enclave root sign a new card (`sallyctl card request`, `sallyctl ceremony sign-card`, `sallyctl card install`); \
             bundles carry it to the peers and are signed by the old key until each has acknowledged it"
        }
        (KeyRole::Courier, true) => {
            "afterwards: have the enclave root sign a new card (`sallyctl card request`, `sallyctl ceremony sign-card`, `sallyctl card install`) and \
             bring it to each peer on a stick (`sallyctl peer add` there): until then they refuse our bundles"
        }
        (KeyRole::CourierEncryption, false) => {
            "afterwards: have the enclave root sign a new card as for a courier key; the old key opens bundles until every peer has acknowledged the card, \
             then the box destroys it"
        }
        (KeyRole::CourierEncryption, true) => {
            "afterwards: have the enclave root sign a new card and bring it to each peer; bundles that are on their way cannot be opened, and the peers' \
             next ones make up for them"
        }
        _ => {
            "afterwards: write the fingerprint of the new key down, for `sallyctl audit verify --key`"
        }
    }
}

/// The keys of a new token, one of each role.
fn handed_over(keys: &[NewKey], now: Millis) -> Result<Vec<OwnKey>, Error> {
    let mut new = Vec::with_capacity(keys.len());
    for role in ROTATED {
        let mut theirs = keys.iter().filter_map(|key| {
            let name: KeyName = key.name.parse().ok()?;
            (name.role() == role).then_some((name, &key.public))
        });
        match (theirs.next(), theirs.next()) {
            (Some((name, public)), None) => new.push(own_keys::of_public(&name, public, now)),
            _ => return Err(Error::Incomplete),
        }
    }
    if new.len() == keys.len() { Ok(new) } else { Err(Error::Incomplete) }
}

/// What becomes of keys that are replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// They stay in the token.
    Here,
    /// They can still do their last things, and are out of the box's reach then.
    LeftBehind,
    /// They can do nothing any more.
    Lost,
}

/// Takes new keys into use instead of old ones, in one transaction.
fn replace(
    app: &App,
    old: &[Current],
    new: Vec<OwnKey>,
    fate: Fate,
    mandate: &Mandate,
) -> Result<(), Error> {
    let token = app.token.as_deref();
    let lost = fate == Fate::Lost;
    let has = |role| old.iter().find(|current| current.name.role() == role);
    // Nobody signs with the old event key once it was decided until when it was valid.
    let turn = signer::turn(app);
    let retired = match (has(KeyRole::Event), lost) {
        (Some(_), false) => {
            signer::drain(app, token.ok_or(Error::NoToken)?, &turn).map_err(Error::NotDrained)?;
            retirement(&app.store, mandate.now())?
        }
        (Some(_), true) => retirement(&app.store, mandate.now())?,
        (None, _) => mandate.now(),
    };
    let vouching = has(KeyRole::Audit).filter(|_| !lost).zip(token);
    for _ in 0..DECIDE_ATTEMPTS_MAX {
        let entries: Vec<_> = new.iter().map(|new| rotated(old, new, lost, mandate)).collect();
        audit::tell_of_signatures(&app.store, When::Now, mandate.now())?;
        let tip = app.store.read(|read| read.audit_tip())?;
        let after = entries.iter().fold(tip, |tip, entry| {
            let row = append(tip, entry.clone());
            sallyport_core::audit::Tip { id: row.id, hash: row.hash }
        });
        let vouch = |(audit, token): (&Current, &dyn Token)| {
            let checkpoint = Checkpoint::of(app.config.server_name.clone(), after, mandate.now());
            let public = own_keys::public_key(&audit.key)?;
            let bytes = checkpoint.sign(&public, |request| token.sign(&audit.name, &request));
            let bytes = bytes.map_err(Error::NotVouched)?;
            Ok::<_, Error>(StoredCheckpoint { row: after.id, made: mandate.now(), bytes })
        };
        let checkpoint = vouching.map(vouch).transpose()?;
        let (ended, new, now) = (names(old), new.clone(), mandate.now());
        let done = app.store.write::<_, sallyport_store::Error>(move |write| {
            if write.audit_tip()? != tip {
                return Ok(false);
            }
            for name in &ended {
                let at = if name.starts_with(KeyRole::Event.as_str()) { retired } else { now };
                write.retire_own_key(name, at)?;
                if fate != Fate::Here {
                    write.note_destroyed_key(name, now)?;
                }
            }
            new.iter().try_for_each(|key| write.insert_own_key(key))?;
            entries.into_iter().try_for_each(|entry| write.append_audit(entry).map(drop))?;
            checkpoint.map_or(Ok(()), |checkpoint| write.keep_checkpoint(&checkpoint))?;
            Ok(true)
        })?;
        if done {
            log::info!(keys = names(old).join(" "), lost; "keys of the box were replaced");
            return Ok(());
        }
    }
    Err(Error::Overtaken)
}

/// Until when an event key that is replaced now was valid: later than any event that it signed, whatever clock dated that.
pub(crate) fn retirement(store: &Store, now: Millis) -> Result<Millis, sallyport_store::Error> {
    let newest = store.read(|read| read.newest_local_time())?.unwrap_or_default();
    Ok(now.max(Millis(newest.0.saturating_add(1))))
}

fn rotated(
    old: &[Current],
    new: &OwnKey,
    lost: bool,
    mandate: &Mandate,
) -> sallyport_core::audit::Entry {
    let replaced = old.iter().find(|current| current.key.role == new.role);
    let replaced = replaced.map_or_else(|| new.role.clone(), |current| current.name.to_string());
    let public = own_keys::public_key(new).map(|key| key.to_string()).unwrap_or_default();
    let details = [
        ("role", new.role.clone()),
        ("made", new.name.clone()),
        ("public", public),
        ("old_key_is_lost", lost.to_string()),
    ];
    mandate.entry(KEY_ROTATED, replaced, details)
}

/// The row comes first: a key that is gone without a row would be worse than a row of a key that is still there.
fn destroy_one(app: &App, current: &Current, lost: bool, mandate: &Mandate) -> Result<(), Error> {
    let entry =
        mandate.entry("key.destroy", &current.name, [("old_key_is_lost", lost.to_string())]);
    app.store.write::<_, sallyport_store::Error>(move |write| write.append_audit(entry))?;
    if !lost {
        let token = app.token.as_deref().ok_or(Error::NoToken)?;
        destroy_in(&app.store, token, &current.name)?;
    }
    let (name, now) = (current.name.to_string(), mandate.now());
    let entry = mandate.entry("key.destroyed", &current.name, []);
    app.store.write::<_, sallyport_store::Error>(move |write| {
        write.note_destroyed_key(&name, now)?;
        write.append_audit(entry).map(drop)
    })?;
    Ok(())
}

/// Destroys a key, and what opens the hybrid key that goes with it. A key that the token does not have is destroyed already.
fn destroy_in(store: &Store, token: &dyn Token, name: &KeyName) -> Result<(), Error> {
    let hybrid = store.read(|read| read.hybrid_key(&name.to_string()))?;
    let storage = hybrid.as_ref().map(hybrid::storage).transpose()?;
    for key in storage.iter().chain([name]) {
        match token.destroy(key) {
            Err(sallyport_hsm::Error::NoSuchKey(_)) => {}
            destroyed => destroyed?,
        }
    }
    Ok(())
}

/// Destroys retired keys that nobody needs any more: encryption keys of before, so that what they opened stays closed from then on, and the keys of
/// certificates that are no longer served. The audit log tells of each.
///
/// # Errors
/// If the token or the database fails; the next call tries again.
pub fn destroy_superseded(app: &App, token: &dyn Token, now: Millis) -> Result<(), Error> {
    for role in [KeyRole::CourierEncryption, KeyRole::Tls, KeyRole::Ca] {
        for key in app.store.read(|read| read.own_keys(role.as_str()))? {
            let name: KeyName = key.name.parse().map_err(|_| own_keys::Error::Damaged(role))?;
            let ended = key.retired.is_some() && key.destroyed.is_none();
            if !ended || needed(app, &name, &key, now)?.is_some() {
                continue;
            }
            destroy_in(&app.store, token, &name)?;
            let entry = audit::by_the_box("key.destroyed", name.to_string(), [], now);
            app.store.write::<_, sallyport_store::Error>(move |write| {
                write.note_destroyed_key(&key.name, now)?;
                write.append_audit(entry).map(drop)
            })?;
            log::info!(key:% = name; "an old key was destroyed: nobody needs it any more");
        }
    }
    Ok(())
}

fn check_unneeded(app: &App, name: &KeyName, key: &OwnKey) -> Result<(), Error> {
    let needed = needed(app, name, key, (app.clock)())?;
    needed.map_or(Ok(()), |why| Err(Error::Needed { name: name.clone(), why }))
}

/// Why a key that was retired is still needed, if it is.
fn needed(app: &App, name: &KeyName, key: &OwnKey, now: Millis) -> Result<Option<String>, Error> {
    match name.role() {
        KeyRole::Event => {
            let runs = app.store.read(|read| read.signing_runs())?;
            let untold = runs.iter().any(|run| run.key == key.name);
            Ok(untold.then(|| "the audit log has yet to tell of what it signed: run `sallyctl audit checkpoint`".to_owned()))
        }
        KeyRole::Courier | KeyRole::CourierEncryption => needed_by(&app.store, key, now),
        KeyRole::Tls | KeyRole::Ca => Ok(certificates::uses(app, name)?
            .then(|| "the box's certificate is still one of this key".to_owned())),
        _ => Ok(None),
    }
}

/// Why a courier's key of before is still needed, if it is: by peers that do not know the new one.
fn needed_by(store: &Store, key: &OwnKey, now: Millis) -> Result<Option<String>, Error> {
    let over = key.created.0.saturating_add(COURIER_KEY_LIFETIME_MS + BUNDLE_VALIDITY_MS);
    if now.0 > over {
        return Ok(None);
    }
    let (card, peers) = store
        .read(|read| Ok::<_, sallyport_store::Error>((read.own_card_since()?, read.peers()?)))?;
    let Some((card, installed)) = card.filter(|_| !peers.is_empty()) else { return Ok(None) };
    let role = KeyRole::CourierEncryption;
    let card = Card::stored(&card).map_err(peers::Error::from)?;
    let current =
        own_keys::required(store, if key.role == role.as_str() { role } else { KeyRole::Courier })?;
    let content = card.content();
    let named = content.signing_keys.iter().any(|on| on.public.as_bytes() == current.key.public)
        || content.encryption_keys.iter().any(|on| on.public == current.key.public);
    if !named {
        return Ok(Some(
            "the box's card does not name its successor yet: have the enclave root sign a new card"
                .to_owned(),
        ));
    }
    let waiting = peers.iter().filter(|peer| peer.acked.created <= installed);
    let waiting: Vec<_> = waiting.map(|peer| peer.server.to_string()).collect();
    Ok((!waiting.is_empty())
        .then(|| format!("these peers have not acknowledged the new card: {}", waiting.join(", "))))
}

fn shown(key: &OwnKey) -> Result<KeyState, own_keys::Error> {
    Ok(KeyState {
        name: key.name.clone(),
        public: own_keys::public_key(key)?,
        created: key.created,
        retired: key.retired,
        destroyed: key.destroyed,
        custody: None,
        hybrid: None,
    })
}
