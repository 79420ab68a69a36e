//! The thread that owns the module and the session, its queue, and what happens when it hangs.

use std::{
    convert::Infallible,
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Known, PinSource, Settings, connection::Connection, lock, module::User, probe, reopen::Reopen,
};
use crate::{Class, Error, Health, Pin};

/// Requests that wait for the token. A batch has only a few waiting at once, so this many callers fit.
const QUEUE_MAX: usize = 64;
/// Threads that may hang in the module before no further one is risked.
const STUCK_MAX: usize = 3;
/// How often an idle token is asked whether it is still there.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long the end of the backend waits for the session to be closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

type Job = Box<dyn FnOnce(&mut Thread) + Send>;

/// Whether an operation may be done twice when the session was lost during it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// It has no lasting effect.
    Once,
    /// It makes or destroys something.
    Never,
}

/// The answer to a submitted request.
pub(super) struct Pending<T> {
    answer: Receiver<Result<T, Error>>,
    expires: Instant,
}

/// The thread in service, and those that were left behind.
pub(super) struct Workers {
    settings: Arc<Settings>,
    known: Arc<Known>,
    current: Mutex<Handle>,
    stuck: AtomicUsize,
    /// Each is disconnected when one of the threads that were left behind has ended.
    left_behind: Mutex<Vec<Receiver<Infallible>>>,
}

/// The outside of a thread.
struct Handle {
    queue: SyncSender<Job>,
    state: Arc<State>,
    /// Disconnected when the thread has ended.
    ended: Receiver<Infallible>,
}

/// What a thread shares with its outside.
#[derive(Default)]
struct State {
    /// Since when it is inside the module.
    busy_since: Mutex<Option<Instant>>,
    /// Nobody waits for it any more.
    abandoned: AtomicBool,
}

impl Workers {
    pub(super) fn start(settings: Arc<Settings>, known: Arc<Known>) -> Result<Self, Error> {
        let current = Mutex::new(Thread::spawn(&settings, &known)?);
        let (stuck, left_behind) = (AtomicUsize::new(0), Mutex::default());
        Ok(Self { settings, known, current, stuck, left_behind })
    }

    /// Queues an operation on the session.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        retry: Retry,
        act: impl FnMut(&mut Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<Pending<T>, Error> {
        self.queue(move |thread| thread.attempt(retry, act))
    }

    /// Waits for the answer. A thread that let it come to the deadline is left behind and replaced.
    pub(super) fn wait<T>(&self, pending: Pending<T>) -> Result<T, Error> {
        let left = pending.expires.saturating_duration_since(Instant::now());
        match pending.answer.recv_timeout(left) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                self.replace_if_stuck()?;
                Err(Error::Timeout)
            }
        }
    }

    /// Has the token opened at once with this PIN.
    pub(super) fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.wait(self.queue(move |thread| thread.reopen(pin))?)
    }

    pub(super) fn health(&self) -> Health {
        let stuck = self.stuck.load(Ordering::Relaxed);
        let attempts = u32::try_from(stuck).unwrap_or(u32::MAX);
        if stuck >= STUCK_MAX {
            return Health::Absent { why: Error::Stuck.to_string(), attempts };
        }
        if lock(&self.current).state.busy_for() > self.settings.timeout {
            return Health::Absent { why: Error::Timeout.to_string(), attempts };
        }
        lock(&self.known.health).clone()
    }

    fn queue<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Thread) -> Result<T, Error> + Send + 'static,
    ) -> Result<Pending<T>, Error> {
        if self.stuck.load(Ordering::Relaxed) >= STUCK_MAX {
            return Err(Error::Stuck);
        }
        let (reply, answer) = sync_channel(1);
        let expires = Instant::now() + self.settings.timeout;
        let job: Job = Box::new(move |thread| {
            // Whoever asked has gone by then.
            if Instant::now() < expires {
                // A caller that is gone needs no answer.
                drop(reply.send(act(thread)));
            }
        });
        match lock(&self.current).queue.try_send(job) {
            Ok(()) => Ok(Pending { answer, expires }),
            Err(TrySendError::Full(_)) => Err(Error::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Error::Stuck),
        }
    }

    /// A call of PKCS#11 cannot be aborted. The thread keeps its session and ends itself if the call ever returns.
    fn replace_if_stuck(&self) -> Result<(), Error> {
        let mut current = lock(&self.current);
        // The call began a little after the request that timed out was queued.
        if current.state.busy_for() < self.settings.timeout * 3 / 4 {
            return Ok(());
        }
        current.state.abandoned.store(true, Ordering::Relaxed);
        let stuck = self.stuck.fetch_add(1, Ordering::Relaxed) + 1;
        log::error!(stuck; "the PKCS#11 module does not return, leaving its thread behind");
        if stuck < STUCK_MAX {
            *lock(&self.known.health) =
                Health::Absent { why: Error::Timeout.to_string(), attempts: 0 };
            let next = Thread::spawn(&self.settings, &self.known)?;
            lock(&self.left_behind).push(mem::replace(&mut *current, next).ended);
        }
        Ok(())
    }
}

/// Waits a moment for the sessions to be closed: a process that ends while a thread is inside the module runs the
/// module's destructors under it and may crash.
impl Drop for Workers {
    fn drop(&mut self) {
        let current = self.current.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The thread ends when its queue does.
        current.queue = sync_channel(0).0;
        let until = Instant::now() + CLOSE_WITHIN;
        let left_behind = self.left_behind.get_mut().unwrap_or_else(PoisonError::into_inner);
        for ended in left_behind.iter().chain([&current.ended]) {
            match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Disconnected) => {}
                Err(RecvTimeoutError::Timeout) => {
                    log::warn!("a session of the token is still open")
                }
                Ok(never) => match never {},
            }
        }
    }
}

impl State {
    fn alive(&self) {
        *lock(&self.busy_since) = Some(Instant::now());
    }

    fn busy_for(&self) -> Duration {
        lock(&self.busy_since).map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// The inside: everything that touches PKCS#11.
struct Thread {
    settings: Arc<Settings>,
    known: Arc<Known>,
    state: Arc<State>,
    reopen: Reopen,
    /// Closed before the right to call modules is given back: fields are dropped in this order.
    connection: Option<Connection>,
    user: User,
}

impl Thread {
    fn spawn(settings: &Arc<Settings>, known: &Arc<Known>) -> Result<Handle, Error> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let state = Arc::<State>::default();
        let (settings, known) = (Arc::clone(settings), Arc::clone(known));
        let shared = Arc::clone(&state);
        let (running, ended) = sync_channel(0);
        thread::Builder::new()
            .name("pkcs11".to_owned())
            .spawn(move || {
                let (user, connection, reopen) = (User::enter(), None, Reopen::NOW);
                let thread = Self { settings, known, state: shared, reopen, connection, user };
                thread.run(&jobs);
                drop(running);
            })
            .map_err(Error::Thread)?;
        Ok(Handle { queue, state, ended })
    }

    /// Runs until the token is dropped or the thread was abandoned. The module is not finalised at the end: that would
    /// take it from everybody else in the process.
    fn run(mut self, jobs: &Receiver<Job>) {
        while !self.state.abandoned.load(Ordering::Relaxed) {
            self.busy(Self::open_if_due);
            let pause = self.reopen.pause(Instant::now()).unwrap_or(CHECK_EVERY);
            match jobs.recv_timeout(pause) {
                Ok(job) => self.busy(job),
                Err(RecvTimeoutError::Timeout) => self.busy(Self::check),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn busy(&mut self, act: impl FnOnce(&mut Self)) {
        self.state.alive();
        act(self);
        *lock(&self.state.busy_since) = None;
    }

    fn attempt<T>(
        &mut self,
        retry: Retry,
        mut act: impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let connection = self.connection.as_mut().ok_or_else(|| closed(&self.known))?;
        let error = match act(connection) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        // What a module cannot name may be the token dying.
        let error = match error {
            Error::Device { .. } => connection.check().err().unwrap_or(error),
            other => other,
        };
        if error.class() != Class::Reopen {
            return Err(error);
        }
        self.lost(&error);
        self.state.alive();
        self.open_if_due();
        if retry == Retry::Never {
            return Err(error);
        }
        let connection = self.connection.as_mut().ok_or_else(|| closed(&self.known))?;
        let again = act(connection);
        if let Err(error) = &again
            && error.class() == Class::Reopen
        {
            self.lost(error);
        }
        again
    }

    fn check(&mut self) {
        if let Some(connection) = &self.connection
            && let Err(error) = connection.check()
        {
            self.lost(&error);
        }
    }

    fn lost(&mut self, error: &Error) {
        log::warn!(error:%; "the token's session is lost");
        self.connection = None;
        self.reopen = self.reopen.lost();
        self.report(Health::Absent { why: explain(error), attempts: 0 });
    }

    fn reopen(&mut self, pin: Pin) -> Result<(), Error> {
        self.connection = None;
        self.reopen = Reopen::NOW;
        *lock(&self.known.pin) = PinSource::Given(pin);
        self.open(true)
    }

    fn open_if_due(&mut self) {
        if self.reopen.is_due(Instant::now()) {
            // Health tells; whoever needs the token gets it from there.
            drop(self.open(false));
        }
    }

    fn open(&mut self, by_hand: bool) -> Result<(), Error> {
        let opened = self.connect(by_hand);
        match &opened {
            Ok(()) => {
                self.reopen = Reopen::Open;
                log::info!(token:% = self.settings.label; "the token is open");
                self.report(Health::Ready);
            }
            Err(error) => {
                self.reopen = self.reopen.failed(error.class(), Instant::now());
                let why = explain(error);
                log::warn!(token:% = self.settings.label, why; "the token cannot be opened");
                self.report(match self.reopen {
                    Reopen::Locked => Health::Locked { why },
                    other => Health::Absent { why, attempts: other.attempts() },
                });
            }
        }
        opened
    }

    fn connect(&mut self, by_hand: bool) -> Result<(), Error> {
        let source = lock(&self.known.pin).clone();
        let pin = match source {
            PinSource::File(path) => Pin::from_file(&path)?,
            PinSource::Given(pin) => pin,
        };
        let path = &self.settings.module;
        let module = if self.reopen.wants_initializing() {
            self.user.module_anew(path)?
        } else {
            self.user.module(path)?
        };
        let serial = lock(&self.known.serial).clone();
        let (connection, found) =
            Connection::open(&module, &self.settings.label, serial.as_deref(), &pin, by_hand)?;
        if serial.is_none() {
            *lock(&self.known.caps) = probe::caps(&connection, || self.state.alive())?;
            *lock(&self.known.serial) = Some(found);
        }
        self.connection = Some(connection);
        Ok(())
    }

    /// A thread that was left behind has nothing to say about the token.
    fn report(&self, health: Health) {
        if !self.state.abandoned.load(Ordering::Relaxed) {
            *lock(&self.known.health) = health;
        }
    }
}

/// The error of a request while the token is not open.
fn closed(known: &Known) -> Error {
    match lock(&known.health).clone() {
        Health::Locked { why } => Error::Locked { why },
        Health::Absent { why, .. } => Error::Unavailable { why },
        Health::Starting | Health::Ready => Error::SessionLost,
    }
}

/// The error with everything below it.
fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
