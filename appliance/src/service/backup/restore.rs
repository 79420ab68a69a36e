//! The new life of a box that was restored: everything is checked, then nothing that was counted is counted again.
//!
//! `sallyctl restore` puts the content of verified backups into an empty folder and leaves `restored.json` beside it. Before the box serves anybody, it checks
//! the database, the audit log, the media and the rooms; has its token make the keys that it does not hold; and begins a new incarnation. Whatever is
//! interrupted is done again at the next start, and a check that fails changes nothing.

use std::{
    fs::File,
    io::{BufReader, Read as _},
    time::{Duration, Instant},
};

use sallyport_core::{
    admin::RestoreReport,
    audit::{self, Entry, KEY_ROTATED, Tip},
    backup::{RESTORED_FILE, Restored},
    digest::{Hasher, Sha256},
    incarnation::Incarnation,
    limits::BACKUP_FILE_BYTES_MAX,
    sign::KeyRole,
    time::Millis,
};
use sallyport_hsm::{Health, KeyName, Token};
use sallyport_store::{OwnKey, Store};

use super::Error;
use crate::{
    app::App,
    files,
    service::{
        audit::by_the_box,
        hybrid,
        own_keys::{self, ROLES},
        rotation,
    },
};

/// How long the token may take to open.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for in the meantime.
const LOOK: Duration = Duration::from_millis(50);
/// Rows and files that are read at once.
const PAGE: usize = 500;
/// Faults that are told.
const FAULTS_TOLD: usize = 20;

/// Begins the new life, if the box was just restored; answers what was found and done.
///
/// # Errors
/// If something is not sound: then nothing has changed. If the token is not there, or a disk fails: the next call goes on.
pub fn finish(app: &App) -> Result<Option<RestoreReport>, Error> {
    let path = app.config.data_dir.join(RESTORED_FILE);
    let json = files::read(&path, BACKUP_FILE_BYTES_MAX).map_err(files::failed("read", &path))?;
    let Some(json) = json else { return Ok(None) };
    let unread = || Error::NotRestored { path: path.clone() };
    let restored: Restored = serde_json::from_slice(&json).map_err(|_| unread())?;
    let incarnation: Incarnation = restored.incarnation.parse().map_err(|_| unread())?;
    let now = (app.clock)();
    let mut report = RestoreReport {
        server_name: app.config.server_name.clone(),
        backup: restored.backup,
        made: restored.made,
        incarnation: restored.incarnation.clone(),
        rooms: 0,
        media: 0,
        missing_media: 0,
        audit_rows: 0,
        keys_kept: Vec::new(),
        keys_made: Vec::new(),
        next: Vec::new(),
    };
    let begun = app.store.read(|read| read.incarnation())? == incarnation;
    if !begun {
        check(app, restored.audit, &mut report)?;
    }
    let changed = Keys::look(app, now)?;
    if !begun || !changed.lost.is_empty() {
        begin(app, &restored, incarnation, &changed, now)?;
    }
    report.keys_kept = changed.kept.iter().map(ToString::to_string).collect();
    report.keys_made = changed.new.iter().map(|key| key.name.clone()).collect();
    if let Some(token) = app.token.as_deref() {
        hybrid::ensure(&app.store, token, &app.config.server_name)?;
    }
    report.next = next_steps(app, &changed)?;
    files::remove(&path).map_err(files::failed("remove", &path))?;
    Ok(Some(report))
}

/// Everything that can be wrong with what was restored.
fn check(app: &App, tip: Tip, report: &mut RestoreReport) -> Result<(), Error> {
    let mut faults = app.store.read(|read| read.file_faults())?;
    if faults.is_empty() {
        report.audit_rows = check_audit(&app.store, tip, &mut faults)?;
        report.rooms = check_rooms(app, &mut faults)?;
        check_media(app, report, &mut faults)?;
    }
    if faults.is_empty() {
        return Ok(());
    }
    faults.truncate(FAULTS_TOLD);
    Err(Error::Faulty(faults))
}

/// The log is whole, and ends where the signed manifest says.
fn check_audit(store: &Store, tip: Tip, faults: &mut Vec<String>) -> Result<u64, Error> {
    let mut end = Tip::default();
    loop {
        let page = u32::try_from(PAGE).unwrap_or(u32::MAX);
        let rows = store.read(|read| read.audit_rows(end.id, page))?;
        if rows.is_empty() {
            break;
        }
        match audit::verify(end, &rows) {
            Ok(next) => end = next,
            Err(broken) => {
                faults.push(format!("the audit log: {broken}"));
                return Ok(end.id);
            }
        }
    }
    if end != tip {
        faults.push(format!("the audit log ends with row {} and not with {}", end.id, tip.id));
    }
    Ok(end.id)
}

fn check_rooms(app: &App, faults: &mut Vec<String>) -> Result<u64, Error> {
    let (found, rooms) = app
        .store
        .read(|read| Ok::<_, sallyport_store::Error>((read.room_faults()?, read.room_count()?)))?;
    faults.extend(found);
    Ok(rooms)
}

fn check_media(
    app: &App,
    report: &mut RestoreReport,
    faults: &mut Vec<String>,
) -> Result<(), Error> {
    let mut after = None;
    loop {
        let files = app.store.read(|read| read.media_files(after, PAGE))?;
        let Some((last, _)) = files.last() else { return Ok(()) };
        after = Some(*last);
        for (sha256, size) in files {
            let path = app.files.path(&sha256);
            let Ok(input) = File::open(&path) else {
                // The box had lost it before the backup: whatever a backup names was there when it was written.
                report.missing_media = report.missing_media.saturating_add(1);
                continue;
            };
            let (found, bytes) = hash(input).map_err(files::failed("read", &path))?;
            report.media = report.media.saturating_add(1);
            if found != Sha256(sha256) || bytes != size {
                faults.push(format!("the media file {} is another one", Sha256(sha256)));
            }
        }
    }
}

fn hash(input: File) -> std::io::Result<(Sha256, u64)> {
    let mut input = BufReader::new(input);
    let mut piece = vec![0; 256 * 1024];
    let (mut hasher, mut bytes) = (Hasher::default(), 0_u64);
    loop {
        let length = input.read(&mut piece)?;
        let Some(read) = piece.get(..length).filter(|read| !read.is_empty()) else {
            return Ok((hasher.finish(), bytes));
        };
        hasher.update(read);
        bytes = bytes.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
    }
}

/// Which of the box's keys the token has.
#[derive(Default)]
struct Keys {
    kept: Vec<KeyName>,
    /// Those that it does not have, with what comes in their place.
    lost: Vec<KeyName>,
    new: Vec<OwnKey>,
    /// Keys of certificates that it does not have: people replace them, because devices must learn of it.
    certificates: Vec<KeyName>,
}

impl Keys {
    /// Asks the token. Keys in place of the lost ones are made in it, but nothing uses them yet.
    fn look(app: &App, now: Millis) -> Result<Self, Error> {
        let Some(token) = app.token.as_deref() else { return Ok(Self::default()) };
        wait_until_ready(token)?;
        let mut keys = Self::default();
        for (role, kind) in ROLES {
            let Some(current) = own_keys::current(&app.store, role)? else { continue };
            if has(token, &current)? {
                keys.kept.push(current.name);
                continue;
            }
            let new = own_keys::adopt_or_make(&app.store, token, role, kind, now)?;
            keys.lost.push(current.name);
            keys.new.push(new.key);
        }
        for role in [KeyRole::Ca, KeyRole::Tls] {
            let current = own_keys::current(&app.store, role)?;
            if let Some(current) = current {
                let has = has(token, &current)?;
                if has { &mut keys.kept } else { &mut keys.certificates }.push(current.name);
            }
        }
        Ok(keys)
    }
}

/// Whether the token has the private half of a key. One that is wrapped for another token is worth nothing here.
fn has(token: &dyn Token, key: &own_keys::Current) -> Result<bool, Error> {
    use sallyport_hsm::Error as Failed;
    if !token.keys().map_err(Error::Token)?.contains(&key.name) {
        return Ok(false);
    }
    match token.public_key(&key.name) {
        Ok(public) => Ok(public.as_bytes() == key.key.public),
        Err(Failed::NoSuchKey(_)) => Ok(false),
        Err(Failed::WorkingKey { .. }) => {
            token.destroy(&key.name).map_err(Error::Token)?;
            Ok(false)
        }
        Err(error) => Err(Error::Token(error)),
    }
}

fn wait_until_ready(token: &dyn Token) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let why = match token.health() {
            Health::Ready => return Ok(()),
            Health::Locked { why } => return Err(Error::TokenAbsent(why)),
            Health::Absent { why, .. } => why,
            Health::Starting => "it does not answer".to_owned(),
        };
        if began.elapsed() >= PATIENCE {
            return Err(Error::TokenAbsent(why));
        }
        std::thread::sleep(LOOK);
    }
}

/// One transaction: the new incarnation, the keys, and the rows that tell of both.
fn begin(
    app: &App,
    restored: &Restored,
    incarnation: Incarnation,
    keys: &Keys,
    now: Millis,
) -> Result<(), Error> {
    let retired = rotation::retirement(&app.store, now)?;
    let before = app.store.read(|read| read.incarnation())?;
    let mut entries = Vec::new();
    if before != incarnation {
        let details = [
            ("number", restored.number.to_string()),
            ("made_ms", restored.made.0.to_string()),
            ("incarnation_before", before.to_string()),
            ("incarnation", incarnation.to_string()),
        ];
        entries.push(by_the_box("backup.restored", restored.backup.to_string(), details, now));
    }
    entries.extend(keys.lost.iter().zip(&keys.new).map(|(lost, new)| replaced(lost, new, now)));
    let (lost, new) = (keys.lost.clone(), keys.new.clone());
    app.store.write::<_, sallyport_store::Error>(move |write| {
        if before != incarnation {
            write.begin_new_life(incarnation, now)?;
        }
        for name in &lost {
            let at = if name.role() == KeyRole::Event { retired } else { now };
            write.retire_own_key(&name.to_string(), at)?;
            write.note_destroyed_key(&name.to_string(), now)?;
        }
        new.iter().try_for_each(|key| write.insert_own_key(key))?;
        entries.into_iter().try_for_each(|entry| write.append_audit(entry).map(drop))
    })?;
    log::warn!(incarnation:% = incarnation, keys = keys.new.len(); "a new life begins after a restore from backup");
    Ok(())
}

fn replaced(lost: &KeyName, new: &OwnKey, now: Millis) -> Entry {
    let public = own_keys::public_key(new).map(|key| key.to_string()).unwrap_or_default();
    let details = [
        ("role", new.role.clone()),
        ("made", new.name.clone()),
        ("public", public),
        ("old_key_is_lost", true.to_string()),
    ];
    by_the_box(KEY_ROTATED, lost.to_string(), details, now)
}

/// What people do now.
fn next_steps(app: &App, keys: &Keys) -> Result<Vec<String>, Error> {
    let peers = app.store.read(|read| read.peers())?;
    let mut steps = vec![
        "start the box: members log in as before, and see what was said until the backup"
            .to_owned(),
        "import the newest roster again, if there was one after the backup".to_owned(),
    ];
    if app.token.is_some() {
        steps.push(
            "have the enclave root sign a new card, with a serial that is at least 2 higher than any before: `sallyctl card request`, \
             `sallyctl ceremony sign-card`, `sallyctl card install`. It is the restore notice: until then no bundle leaves the box"
                .to_owned(),
        );
    }
    for peer in peers {
        let server = peer.server;
        steps.push(format!(
            "at {server}, import what couriers still carry from before, then take the card: `sallyctl peer add CARD --fingerprint WORDS`. \
             Its next bundle brings back what this enclave had told it"
        ));
    }
    for key in &keys.certificates {
        let role = key.role();
        steps.push(format!(
            "the key {key} of the certificates is not in this token: the certificate is served until it expires; `sallyctl hsm rotate {role} --old-key-is-lost` makes another key"
        ));
    }
    steps.push(
        "make a full backup, because none can follow those of before: `sallyctl backup create`"
            .to_owned(),
    );
    Ok(steps)
}
