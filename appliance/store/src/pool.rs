//! One writer thread with group commit, and a pool of snapshot readers.
//!
//! Commands queue for the writer. It takes as many as are waiting (bounded in number and time), runs each in its own
//! savepoint inside one transaction, and commits them with a single fsync. Only then do the callers get their answers
//! and the subscriber hears of the changes: nothing that was announced can be lost by a crash.

use std::{
    collections::BTreeSet,
    ops::Deref,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, ServerName};
use rusqlite::{CachedStatement, Connection, OpenFlags};

use crate::{
    cache::EventCache,
    error::{Error, Result},
    schema,
};

/// Commands that may wait for the writer before callers are held back.
const QUEUE_LENGTH: usize = 4096;
/// Commands that one commit may carry.
const GROUP_LENGTH: usize = 256;
/// A group is committed once it has taken this long, whatever still waits.
const GROUP_TIME: Duration = Duration::from_millis(15);
/// Read connections kept open.
const READERS: usize = 4;
/// Prepared statements kept per connection.
const STATEMENTS: usize = 256;
/// Pages that the writer keeps in memory, in KiB.
const WRITER_CACHE_KIB: i64 = 4096;
/// Pages that each reader keeps in memory, in KiB. Few: the operating system keeps the file for all of them.
const READER_CACHE_KIB: i64 = 1024;

/// How to open a store.
pub struct Options<'a> {
    /// The database file; made if it does not exist.
    pub path: &'a Path,
    /// The Matrix server name that the database belongs to.
    pub server_name: &'a ServerName,
    /// Random bytes that become the incarnation of a new database.
    pub fresh_incarnation: [u8; 16],
    /// Called on the writer thread after each commit.
    pub on_commit: Box<dyn Fn(&Committed) + Send>,
}

/// What a commit changed: who must look again.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The newest stream position that is now visible.
    pub position: i64,
    /// Rooms with something new for their members.
    pub rooms: BTreeSet<OwnedRoomId>,
    /// Users with something new of their own.
    pub users: BTreeSet<OwnedUserId>,
    /// Rooms with new local events that may need a signature.
    pub unsigned_rooms: BTreeSet<OwnedRoomId>,
    /// Whether sessions ended or accounts were locked: what is remembered of access tokens must be forgotten.
    pub sessions: bool,
    /// How many events became part of their rooms.
    pub events: u64,
    /// How many commands were committed together.
    pub commands: usize,
    /// How long the writer worked on them, the fsync included.
    pub duration: Duration,
}

impl Committed {
    fn merge(&mut self, other: Self) {
        self.rooms.extend(other.rooms);
        self.users.extend(other.users);
        self.unsigned_rooms.extend(other.unsigned_rooms);
        self.sessions |= other.sessions;
        self.events = self.events.saturating_add(other.events);
    }
}

/// The database of a box.
pub struct Store {
    readers: Arc<Readers>,
    queue: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the database, brings it to the newest schema and starts the writer.
    ///
    /// # Errors
    /// If the file cannot be opened, was written by a newer version, or belongs to another server.
    pub fn open(options: Options<'_>) -> Result<Self> {
        let mut connection = Connection::open(options.path)?;
        prepare_connection(&connection, WRITER_CACHE_KIB)?;
        // FULL: a commit that was answered survives a power cut.
        connection.pragma_update(None, "synchronous", "FULL")?;
        schema::migrate(&mut connection)?;
        let caches = Arc::new(EventCache::default());
        let readers = Arc::new(Readers {
            path: options.path.to_owned(),
            caches: Arc::clone(&caches),
            idle: Mutex::new(Idle { connections: Vec::new(), open: 0 }),
            returned: Condvar::new(),
        });
        let mut writer = Writer {
            connection,
            server_name: options.server_name.to_owned(),
            position: 0,
            on_commit: options.on_commit,
            caches,
        };
        writer.identify(options.fresh_incarnation)?;
        let (queue, jobs) = sync_channel(QUEUE_LENGTH);
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&jobs))
            .map_err(|error| Error::GroupFailed(format!("no thread for the writer: {error}")))?;
        Ok(Self { readers, queue: Some(queue), writer: Some(thread) })
    }

    /// The database file.
    pub(crate) fn path(&self) -> &Path {
        &self.readers.path
    }

    pub(crate) fn caches(&self) -> &EventCache {
        &self.readers.caches
    }

    /// Runs a question on a snapshot of the database.
    ///
    /// # Errors
    /// Whatever the question answers, or a failure of the database.
    pub fn read<T, E: From<Error>>(
        &self,
        question: impl FnOnce(&Read<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.readers.with(|connection| {
            let transaction = connection.unchecked_transaction().map_err(Error::from)?;
            let read =
                Read { connection: &transaction, caches: &self.readers.caches, fills_cache: true };
            let answer = question(&read);
            // Nothing was written: ending the transaction only releases the snapshot.
            transaction.rollback().map_err(Error::from)?;
            answer
        })?
    }

    /// Runs a command on the writer thread and calls `done` once its group is on disk (or the command failed).
    ///
    /// `done` runs on the writer thread and must be quick.
    pub fn submit<T, E>(
        &self,
        command: impl FnOnce(&mut Write<'_>) -> Result<T, E> + Send + 'static,
        done: impl FnOnce(Result<T, E>) + Send + 'static,
    ) where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let job: Job = Box::new(|outer| match outer {
            Ok(write) => match command_or_fault(|| command(write)) {
                Ok(value) => Finish {
                    keep: true,
                    done: Box::new(|failed| {
                        done(failed.map_or(Ok(value), |error| Err(error.into())))
                    }),
                },
                Err(error) => Finish { keep: false, done: Box::new(|_| done(Err(error))) },
            },
            Err(error) => {
                let message = error.to_string();
                Finish {
                    keep: false,
                    done: Box::new(|_| done(Err(Error::GroupFailed(message).into()))),
                }
            }
        });
        let Some(queue) = &self.queue else { return };
        // A full queue holds the caller back: the disk sets the pace.
        let refused = match queue.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Full(job)) => queue.send(job).err().map(|error| error.0),
            Err(TrySendError::Disconnected(job)) => Some(job),
        };
        if let Some(job) = refused {
            (job(Err(&Error::Closed)).done)(Some(Error::Closed));
        }
    }

    /// Runs a command on the writer thread and waits until it is on disk.
    ///
    /// # Errors
    /// Whatever the command answers, or a failure of the database; then nothing of it was kept.
    pub fn write<T, E>(
        &self,
        command: impl FnOnce(&mut Write<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (sender, receiver) = sync_channel(1);
        self.submit(command, move |answer| {
            // The caller waits below; it cannot have gone.
            let _: Result<(), _> = sender.send(answer);
        });
        receiver.recv().unwrap_or_else(|_| Err(Error::Closed.into()))
    }
}

impl Drop for Store {
    /// Lets the writer finish what waits, then closes the database.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.writer.take() {
            let _: std::thread::Result<()> = thread.join();
        }
    }
}

/// A snapshot of the database to ask questions of.
pub struct Read<'c> {
    connection: &'c Connection,
    caches: &'c EventCache,
    fills_cache: bool,
}

impl<'c> Read<'c> {
    /// Questions on a connection of somebody's own.
    pub(crate) fn uncached(connection: &'c Connection, caches: &'c EventCache) -> Self {
        Self { connection, caches, fills_cache: false }
    }

    /// A prepared statement, kept for the next time.
    pub(crate) fn prepare(&self, sql: &str) -> Result<CachedStatement<'c>> {
        Ok(self.connection.prepare_cached(sql)?)
    }

    pub(crate) fn caches(&self) -> &'c EventCache {
        self.caches
    }

    /// Whether what is read here is committed, so that it may be kept in a cache.
    pub(crate) fn fills_cache(&self) -> bool {
        self.fills_cache
    }
}

/// A command in progress on the writer thread. Reads see the command's own changes.
pub struct Write<'c> {
    read: Read<'c>,
    position: &'c mut i64,
    server_name: &'c ServerName,
    changes: Committed,
}

impl<'c> Deref for Write<'c> {
    type Target = Read<'c>;

    fn deref(&self) -> &Read<'c> {
        &self.read
    }
}

impl Write<'_> {
    /// Takes the next stream position.
    pub fn next_position(&mut self) -> i64 {
        *self.position += 1;
        *self.position
    }

    /// Leaves stream positions out.
    pub(crate) fn skip_positions(&mut self, count: i64) {
        *self.position = self.position.saturating_add(count);
    }

    /// The members of this room must look again once the group is committed.
    pub fn touch_room(&mut self, room_id: &ruma::RoomId) {
        if !self.changes.rooms.contains(room_id) {
            self.changes.rooms.insert(room_id.to_owned());
        }
    }

    /// This user's devices must look again once the group is committed.
    pub fn touch_user(&mut self, user_id: &ruma::UserId) {
        if !self.changes.users.contains(user_id) {
            self.changes.users.insert(user_id.to_owned());
        }
    }

    /// The signer must look at this room once the group is committed.
    pub fn touch_unsigned(&mut self, room_id: &ruma::RoomId) {
        if !self.changes.unsigned_rooms.contains(room_id) {
            self.changes.unsigned_rooms.insert(room_id.to_owned());
        }
    }

    /// Sessions ended or an account was locked or unlocked.
    pub(crate) fn touch_sessions(&mut self) {
        self.changes.sessions = true;
    }

    /// An event became part of its room.
    pub(crate) fn count_event(&mut self) {
        self.changes.events = self.changes.events.saturating_add(1);
    }

    /// The Matrix server name of this box.
    pub(crate) fn server_name(&self) -> &ServerName {
        self.server_name
    }

    /// The row id of the last insert.
    pub(crate) fn last_insert_rowid(&self) -> i64 {
        self.read.connection.last_insert_rowid()
    }
}

type Job = Box<dyn FnOnce(Result<&mut Write<'_>, &Error>) -> Finish + Send>;

/// What is left of a command after it ran: whether to keep its changes, and how to answer its caller.
struct Finish {
    keep: bool,
    done: Box<dyn FnOnce(Option<Error>) + Send>,
}

struct Writer {
    connection: Connection,
    server_name: OwnedServerName,
    position: i64,
    on_commit: Box<dyn Fn(&Committed) + Send>,
    caches: Arc<EventCache>,
}

impl Writer {
    /// Checks whose database this is, or makes it ours if it is new.
    fn identify(&mut self, fresh_incarnation: [u8; 16]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        let read = Read { connection: &transaction, caches: &self.caches, fills_cache: false };
        self.position = read.position()?;
        match read.meta("server_name")? {
            Some(found) if found == self.server_name.as_bytes() => {}
            Some(found) => {
                return Err(Error::OtherServer {
                    found: String::from_utf8_lossy(&found).into_owned(),
                    wanted: self.server_name.to_string(),
                });
            }
            None => {
                let mut write = Write {
                    read,
                    position: &mut self.position,
                    server_name: &self.server_name,
                    changes: Committed::default(),
                };
                write.set_meta("server_name", self.server_name.as_bytes())?;
                write.set_meta("incarnation", &fresh_incarnation)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            self.run_group(first, jobs);
        }
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            log::warn!(error:err = error; "the write-ahead log could not be folded into the database");
        }
    }

    fn run_group(&mut self, first: Job, jobs: &Receiver<Job>) {
        let began = Instant::now();
        let mut group = Group::default();
        if let Err(error) = self.connection.execute_batch("BEGIN IMMEDIATE") {
            let error = Error::from(error);
            (first(Err(&error)).done)(None);
            return;
        }
        let before = self.position;
        let mut next = Some(first);
        while let Some(job) = next.take() {
            group.finishes.push(self.run_job(job, &mut group.committed));
            if self.connection.is_autocommit() {
                // SQLite gave the whole transaction up (full disk, input/output error).
                group.fail(&Error::GroupFailed("the disk failed or is full".to_owned()));
                self.position = before;
                return;
            }
            if group.finishes.len() < GROUP_LENGTH && began.elapsed() < GROUP_TIME {
                next = jobs.try_recv().ok();
            }
        }
        match self.commit() {
            Ok(()) => {
                group.committed.position = self.position;
                group.committed.commands = group.finishes.len();
                group.committed.duration = began.elapsed();
                (self.on_commit)(&group.committed);
                for finish in group.finishes {
                    (finish.done)(None);
                }
            }
            Err(error) => {
                let _: rusqlite::Result<()> = self.connection.execute_batch("ROLLBACK");
                self.position = before;
                group.fail(&error);
            }
        }
    }

    fn run_job(&mut self, job: Job, committed: &mut Committed) -> Finish {
        if let Err(error) = self.batch("SAVEPOINT command") {
            return job(Err(&error));
        }
        let mut write = Write {
            read: Read { connection: &self.connection, caches: &self.caches, fills_cache: false },
            position: &mut self.position,
            server_name: &self.server_name,
            changes: Committed::default(),
        };
        let finish = job(Ok(&mut write));
        let changes = write.changes;
        let end = if finish.keep {
            committed.merge(changes);
            self.batch("RELEASE command")
        } else {
            self.batch("ROLLBACK TO command").and_then(|()| self.batch("RELEASE command"))
        };
        if let Err(error) = end {
            log::error!(error:err = error; "a savepoint could not be ended");
        }
        finish
    }

    fn commit(&self) -> Result<()> {
        self.connection
            .prepare_cached(
                "UPDATE stream SET position = ?1 WHERE only_row = 1 AND position <> ?1",
            )?
            .execute([self.position])?;
        self.batch("COMMIT")
    }

    /// Runs a statement without parameters through the statement cache: these run for every command.
    fn batch(&self, sql: &str) -> Result<()> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

#[derive(Default)]
struct Group {
    finishes: Vec<Finish>,
    committed: Committed,
}

impl Group {
    fn fail(self, error: &Error) {
        for finish in self.finishes {
            let error = match error {
                Error::DiskFull => Error::DiskFull,
                other => Error::GroupFailed(other.to_string()),
            };
            (finish.done)(Some(error));
        }
    }
}

/// Read connections, opened when first needed.
struct Readers {
    path: PathBuf,
    caches: Arc<EventCache>,
    idle: Mutex<Idle>,
    returned: Condvar,
}

struct Idle {
    connections: Vec<Connection>,
    open: usize,
}

impl Readers {
    /// Lends a connection; waits for one when all are in use.
    fn with<T>(&self, work: impl FnOnce(&Connection) -> T) -> Result<T> {
        let connection = Lent { readers: self, connection: Some(self.take()?) };
        connection.connection.as_ref().map(work).ok_or(Error::Closed)
    }

    fn take(&self) -> Result<Connection> {
        let mut idle = self.lock();
        loop {
            if let Some(connection) = idle.connections.pop() {
                return Ok(connection);
            }
            if idle.open < READERS {
                idle.open += 1;
                drop(idle);
                return open_reader(&self.path).inspect_err(|_| self.lock().open -= 1);
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read connection in use. It comes back even if its user panics.
struct Lent<'r> {
    readers: &'r Readers,
    connection: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.readers.lock().connections.extend(self.connection.take());
        self.readers.returned.notify_one();
    }
}

/// A command that panics fails like any other: nothing of it is kept, and the writer goes on.
fn command_or_fault<T, E: From<Error>>(command: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    // What a command changes is in the database, which is rolled back.
    panic::catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|_| Err(Error::Fault.into()))
}

pub(crate) fn open_reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    prepare_connection(&connection, READER_CACHE_KIB)?;
    connection.pragma_update(None, "query_only", "ON")?;
    Ok(connection)
}

fn prepare_connection(connection: &Connection, cache_kib: i64) -> Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    fn open(path: &Path, on_commit: impl Fn(&Committed) + Send + 'static) -> Result<Store> {
        Store::open(Options {
            path,
            server_name: server_name!("alpha.test"),
            fresh_incarnation: [7; 16],
            on_commit: Box::new(on_commit),
        })
    }

    #[test]
    fn commands_are_committed_in_groups_and_announced_after() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, receiver) = sync_channel(1000);
        let store = Arc::new(
            open(&directory.path().join("db"), move |committed| {
                sender.send(committed.clone()).unwrap();
            })
            .unwrap(),
        );
        let (done, answers) = sync_channel(100);
        for number in 0..50_u8 {
            let done = done.clone();
            store.submit(
                move |write| {
                    write.next_position();
                    write.set_meta(&format!("key{number}"), &[number])
                },
                move |answer: Result<()>| done.send(answer).unwrap(),
            );
        }
        for _ in 0..50 {
            answers.recv().unwrap().unwrap();
        }
        let mut commands = 0;
        let mut position = 0;
        while commands < 50 {
            let committed = receiver.recv().unwrap();
            commands += committed.commands;
            assert!(committed.position > position);
            position = committed.position;
        }
        assert_eq!(position, 50);
        store
            .read(|read| {
                assert_eq!(read.position()?, 50);
                assert_eq!(read.meta("key49")?, Some(vec![49]));
                Ok::<_, Error>(())
            })
            .unwrap();
    }

    #[test]
    fn a_failed_command_leaves_nothing_and_spares_its_neighbours() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("db"), |_| {}).unwrap();
        let failed: Result<()> = store.write(|write| {
            write.set_meta("lost", b"x")?;
            Err(Error::corrupt("meta", "for the test"))
        });
        assert!(failed.is_err());
        store.write(|write| write.set_meta("kept", b"y")).unwrap();
        store
            .read(|read| {
                assert_eq!(read.meta("lost")?, None);
                assert_eq!(read.meta("kept")?, Some(b"y".to_vec()));
                Ok::<_, Error>(())
            })
            .unwrap();
    }

    #[test]
    fn a_command_that_panics_leaves_nothing_and_the_writer_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("db"), |_| {}).unwrap();
        let failed: Result<()> = store.write(|write| {
            write.set_meta("lost", b"x")?;
            panic!("for the test");
        });
        assert!(matches!(failed, Err(Error::Fault)));
        // More often than there are readers: each comes back.
        for _ in 0..=READERS {
            let read = || store.read(|_| -> Result<()> { panic!("for the test") });
            assert!(panic::catch_unwind(AssertUnwindSafe(read)).is_err());
        }
        store.write(|write| write.set_meta("kept", b"y")).unwrap();
        assert_eq!(store.read(|read| read.meta("lost")).unwrap(), None);
    }

    #[test]
    fn a_database_of_a_newer_version_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        drop(open(&path, |_| {}).unwrap());
        let newer = Connection::open(&path).unwrap();
        newer.pragma_update(None, "user_version", 9999).unwrap();
        newer.close().unwrap();
        let before = std::fs::read(&path).unwrap();
        let Err(error) = open(&path, |_| {}) else { panic!("it was opened") };
        assert!(matches!(error, Error::SchemaTooNew { found: 9999, .. }), "{error}");
        let says = error.to_string();
        assert!(
            says.contains("start that version, or restore a backup made by this one"),
            "{says}"
        );
        assert!(std::fs::read(&path).unwrap() == before, "the file was changed");
    }

    #[test]
    fn a_full_disk_is_said_and_loses_nothing_that_was_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let store = open(&path, |_| {}).unwrap();
        store.write(|write| write.set_meta("kept", b"before")).unwrap();
        // To SQLite a disk is full when the file may not grow.
        store
            .write(|write| {
                write.read.connection.pragma_update(None, "max_page_count", 1)?;
                Ok::<_, Error>(())
            })
            .unwrap();
        let large = vec![0; 1 << 20];
        let refused = store.write(move |write| write.set_meta("large", &large)).unwrap_err();
        assert!(matches!(refused, Error::DiskFull | Error::GroupFailed(_)), "{refused}");
        let says = refused.to_string();
        assert!(says.contains("is full; nothing of this command was kept: free space"), "{says}");
        assert_eq!(store.read(|read| read.meta("kept")).unwrap(), Some(b"before".to_vec()));
        // Room again: the same box goes on.
        store
            .write(|write| {
                write.read.connection.pragma_update(None, "max_page_count", 1 << 30)?;
                write.set_meta("kept", b"after")
            })
            .unwrap();
        store
            .read(|read| {
                assert_eq!(read.meta("kept")?, Some(b"after".to_vec()));
                assert_eq!(read.meta("large")?, None);
                Ok::<_, Error>(())
            })
            .unwrap();
    }

    #[test]
    fn a_database_keeps_its_owner_and_incarnation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        drop(open(&path, |_| {}).unwrap());
        let other = Store::open(Options {
            path: &path,
            server_name: server_name!("bravo.test"),
            fresh_incarnation: [8; 16],
            on_commit: Box::new(|_| {}),
        });
        assert!(matches!(other, Err(Error::OtherServer { .. })));
        let store = open(&path, |_| {}).unwrap();
        assert_eq!(store.read(|read| read.incarnation()).unwrap().0, [7; 16]);
    }
}
