//! The thread that owns the helper, and the queue before it.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    HelperSettings, Known, lock,
    process::Helper,
    reopen::Reopen,
    wire::{Answer, Open, Request, explain},
};
use crate::{Class, Error, Health, Pin};

/// Requests that wait for the token. A batch has only a few waiting at once, so this many callers fit.
const QUEUE_MAX: usize = 64;
/// How often an idle token is asked whether it is still there.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long the end of the backend waits for the session to be closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Whether an operation may be done twice when the session was lost during it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// It has no lasting effect.
    Once,
    /// It makes or destroys something.
    Never,
}

/// The answer to a submitted request.
pub(super) struct Pending {
    answer: Receiver<Result<Answer, Error>>,
    expires: Instant,
}

impl Pending {
    /// Waits for the answer, as long as the request may take.
    pub(super) fn wait(self) -> Result<Answer, Error> {
        let left = self.expires.saturating_duration_since(Instant::now());
        match self.answer.recv_timeout(left) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(Error::Timeout),
            // The thread drops what expired while it waited.
            Err(RecvTimeoutError::Disconnected) if Instant::now() >= self.expires => {
                Err(Error::Timeout)
            }
            Err(RecvTimeoutError::Disconnected) => Err(Error::Stopped),
        }
    }
}

/// The outside of the thread.
pub(super) struct Worker {
    queue: Option<SyncSender<Job>>,
    timeout: Duration,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<Infallible>>,
}

struct Job {
    what: What,
    reply: SyncSender<Result<Answer, Error>>,
    expires: Instant,
}

enum What {
    Ask(Retry, Request),
    Reopen(Pin),
}

impl Worker {
    pub(super) fn start(settings: HelperSettings, known: Arc<Known>) -> Result<Self, Error> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let (running, ended) = sync_channel(0);
        let timeout = settings.timeout;
        let thread = Thread {
            settings,
            known,
            helper: None,
            reopen: Reopen::NOW,
            serial: None,
            pin: PinSource::File,
        };
        thread::Builder::new()
            .name("token".to_owned())
            .spawn(move || {
                thread.run(&jobs);
                drop(running);
            })
            .map_err(Error::Thread)?;
        Ok(Self { queue: Some(queue), timeout, ended: Mutex::new(ended) })
    }

    /// Queues a request to the token.
    pub(super) fn submit(&self, retry: Retry, request: Request) -> Result<Pending, Error> {
        self.queue(What::Ask(retry, request))
    }

    /// Has the token opened at once with this PIN.
    pub(super) fn reopen(&self, pin: Pin) -> Result<Pending, Error> {
        self.queue(What::Reopen(pin))
    }

    fn queue(&self, what: What) -> Result<Pending, Error> {
        let (reply, answer) = sync_channel(1);
        let expires = Instant::now() + self.timeout;
        let queue = self.queue.as_ref().ok_or(Error::Stopped)?;
        match queue.try_send(Job { what, reply, expires }) {
            Ok(()) => Ok(Pending { answer, expires }),
            Err(TrySendError::Full(_)) => Err(Error::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Error::Stopped),
        }
    }
}

/// Waits a moment for the session to be closed.
impl Drop for Worker {
    fn drop(&mut self) {
        // The thread ends when its queue does.
        self.queue = None;
        if let Err(RecvTimeoutError::Timeout) = lock(&self.ended).recv_timeout(CLOSE_WITHIN) {
            log::warn!("the session of the token is still open");
        }
    }
}

/// Where the PIN is from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PinSource {
    /// The configured file.
    File,
    /// A person. Only the helper to which it was given knows it.
    Hand,
}

/// The inside.
struct Thread {
    settings: HelperSettings,
    known: Arc<Known>,
    helper: Option<Helper>,
    reopen: Reopen,
    /// Serial number of the token that was opened first.
    serial: Option<String>,
    pin: PinSource,
}

impl Thread {
    /// Runs until the token is dropped.
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            if self.reopen.is_due(Instant::now()) {
                self.open_again();
            }
            let pause = self.reopen.pause(Instant::now()).unwrap_or(CHECK_EVERY);
            match jobs.recv_timeout(pause) {
                Ok(job) => self.work(job),
                Err(RecvTimeoutError::Timeout) => self.check(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn work(&mut self, job: Job) {
        // Whoever asked has gone by then.
        if Instant::now() >= job.expires {
            return;
        }
        let answer = match job.what {
            What::Ask(retry, request) => self.attempt(retry, &request),
            What::Reopen(pin) => {
                // A fresh process: nothing that happened before stands in its way.
                self.helper = None;
                self.reopen = Reopen::NOW;
                self.open(Some(pin)).map(|()| Answer::Done)
            }
        };
        // A caller that is gone needs no answer.
        drop(job.reply.send(answer));
    }

    fn attempt(&mut self, retry: Retry, request: &Request) -> Result<Answer, Error> {
        let error = match self.ask(request) {
            Ok(answer) => {
                self.reopen = self.reopen.worked();
                return Ok(answer);
            }
            Err(error) => error,
        };
        // What killed the helper may do so again: a second attempt is the caller's decision.
        if self.helper.is_none() || error.class() != Class::Reopen || !self.reopen.is_open() {
            return Err(error);
        }
        self.lost(&error);
        self.open_again();
        if retry == Retry::Never {
            return Err(error);
        }
        let again = self.ask(request);
        if let Err(error) = &again
            && error.class() == Class::Reopen
            && self.reopen.is_open()
        {
            self.lost(error);
        }
        again
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, Error> {
        match &mut self.helper {
            Some(helper) if self.reopen.is_open() => {
                let answer = helper.ask(request);
                self.received(answer)
            }
            _ => Err(closed(&self.known)),
        }
    }

    /// Tells the errors of the token from the end of the helper.
    fn received(&mut self, answer: Result<Answer, Error>) -> Result<Answer, Error> {
        match answer {
            Ok(Answer::Failed(failure)) => Err(failure.into()),
            Ok(answer) => Ok(answer),
            Err(error) => {
                log::error!(error:%; "the process with the PKCS#11 module is given up");
                // Kills it if it is not dead.
                self.helper = None;
                self.reopen = self.reopen.failed(Class::Retry, Instant::now());
                self.report_absent(&error);
                Err(error)
            }
        }
    }

    fn check(&mut self) {
        if self.reopen.is_open()
            && let Err(error) = self.ask(&Request::Check)
            && self.helper.is_some()
        {
            self.lost(&error);
        }
    }

    fn lost(&mut self, error: &Error) {
        log::warn!(error:%; "the token's session is lost");
        self.reopen = Reopen::NOW;
        self.report_absent(error);
    }

    fn report_absent(&self, error: &Error) {
        let (why, attempts) = (explain(error), self.reopen.attempts());
        *lock(&self.known.health) = Health::Absent { why, attempts };
    }

    fn open_again(&mut self) {
        // Health tells; whoever needs the token gets it from there.
        drop(self.open(None));
    }

    /// Opens the token, with the PIN of a person or, without one, that of the file.
    fn open(&mut self, by_hand: Option<Pin>) -> Result<(), Error> {
        let before = self.reopen;
        let opened = self.connect(by_hand);
        match &opened {
            Ok(()) => {
                self.reopen = before.opened();
                log::info!(token:% = self.settings.label; "the token is open");
                *lock(&self.known.health) = Health::Ready;
            }
            Err(error) => {
                self.reopen = before.failed(error.class(), Instant::now());
                let why = explain(error);
                log::warn!(token:% = self.settings.label, why; "the token cannot be opened");
                *lock(&self.known.health) = match self.reopen {
                    Reopen::Locked => Health::Locked { why },
                    other => Health::Absent { why, attempts: other.attempts() },
                };
            }
        }
        opened
    }

    fn connect(&mut self, by_hand: Option<Pin>) -> Result<(), Error> {
        let source = if by_hand.is_some() { PinSource::Hand } else { self.pin };
        let open = Open {
            by_hand: by_hand.is_some(),
            pin: match (by_hand, self.pin) {
                (Some(pin), _) => Some(pin),
                (None, PinSource::File) => Some(Pin::from_file(&self.settings.pin_file)?),
                (None, PinSource::Hand) => None,
            },
            serial: self.serial.clone(),
            anew: self.reopen.wants_initializing(),
        };
        let helper = match &mut self.helper {
            Some(helper) => helper,
            none => none.insert(Helper::start(&self.settings)?),
        };
        let answer = helper.ask(&Request::Open(open));
        let Answer::Opened { serial, caps } = self.received(answer)? else {
            self.helper = None;
            return Err(super::out_of_turn());
        };
        self.pin = source;
        self.serial = Some(serial);
        if let Some(caps) = caps {
            *lock(&self.known.caps) = caps;
        }
        Ok(())
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
