//! The thread that owns the helper. It keeps several requests under way, so that the token never waits for the box, and no more than
//! the token does in a moment, so that no caller waits for long.

use std::{
    collections::VecDeque,
    convert::Infallible,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, poll};

use super::{
    HelperSettings, Known,
    flights::Flights,
    frame::Message,
    inbox::{Ask, Inbox, Order, Pending, Reply, Retry},
    lock,
    process::{GivenUp, Helper, out_of_turn, poll_timeout},
    reopen::Reopen,
    wire::{Answer, Credential, Failure, Open, Request, explain},
};
use crate::{Class, Error, Health, Pin};

/// How often an idle token is asked whether it is still there.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long the end of the backend waits for the session to be closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// How long a person may take at a PIN pad.
const PAD_WITHIN: Duration = Duration::from_secs(120);

/// Answers to a batch, each with the index of its request.
pub(super) type Answers = Receiver<(usize, Result<Answer, Error>)>;

/// The outside of the thread.
pub(super) struct Worker {
    inbox: Arc<Inbox>,
    timeout: Duration,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<Infallible>>,
}

impl Worker {
    pub(super) fn start(settings: HelperSettings, known: Arc<Known>) -> Result<Self, Error> {
        let inbox = Arc::new(Inbox::new()?);
        let (running, ended) = sync_channel(0);
        let timeout = settings.timeout;
        let thread = Thread {
            settings,
            known,
            inbox: Arc::clone(&inbox),
            helper: None,
            flights: Flights::new(1),
            again: VecDeque::new(),
            reopen: Reopen::NOW,
            serial: None,
            probed: false,
            by_hand: false,
        };
        thread::Builder::new()
            .name("token".to_owned())
            .spawn(move || {
                thread.run();
                drop(running);
            })
            .map_err(Error::Thread)?;
        Ok(Self { inbox, timeout, ended: Mutex::new(ended) })
    }

    /// Queues a request to the token.
    pub(super) fn submit(&self, retry: Retry, request: &Request) -> Result<Pending, Error> {
        let (reply, answer) = sync_channel(1);
        let expires = Instant::now() + self.timeout;
        let message = Message::new(request).map_err(Error::Helper)?;
        let reply = Reply::One(reply);
        self.inbox.put(Ask { message, retry, reply, expires: Some(expires) })?;
        Ok(Pending { answer, expires })
    }

    /// Queues many requests that have no lasting effect, each with an index. None of them expires while it waits for those
    /// before it.
    pub(super) fn submit_batch(
        &self,
        requests: impl Iterator<Item = (usize, Request)>,
    ) -> Result<Answers, Error> {
        let (reply, answers) = channel();
        let asks = requests.map(|(index, request)| {
            let message = Message::new(&request).map_err(Error::Helper)?;
            let reply = Reply::OfMany(index, reply.clone());
            Ok(Ask { message, retry: Retry::Once, reply, expires: None })
        });
        self.inbox.put_batch(asks.collect::<Result<_, Error>>()?)?;
        Ok(answers)
    }

    /// Has the token opened at once with this PIN.
    pub(super) fn reopen(&self, pin: Pin) -> Result<Pending, Error> {
        let (reply, answer) = sync_channel(1);
        let expires = Instant::now() + self.timeout;
        self.inbox.put_order(Order { pin, reply: Reply::One(reply), expires })?;
        Ok(Pending { answer, expires })
    }
}

/// Waits a moment for the session to be closed.
impl Drop for Worker {
    fn drop(&mut self) {
        self.inbox.close();
        if let Err(RecvTimeoutError::Timeout) = lock(&self.ended).recv_timeout(CLOSE_WITHIN) {
            log::warn!("the session of the token is still open");
        }
    }
}

/// The inside.
struct Thread {
    settings: HelperSettings,
    known: Arc<Known>,
    inbox: Arc<Inbox>,
    helper: Option<Helper>,
    flights: Flights<Sent>,
    /// What is to be sent once more when the token is open again.
    again: VecDeque<Ask>,
    reopen: Reopen,
    /// Serial number of the token that was opened first.
    serial: Option<String>,
    /// Whether it was found out what the token can do.
    probed: bool,
    /// Whether the PIN is from a person. Only the helper to which it was given knows it.
    by_hand: bool,
}

/// A request under way.
struct Sent {
    ask: Ask,
    /// Whether the session was lost during an earlier attempt.
    again: bool,
}

/// However the thread ends, nobody waits for it.
impl Drop for Thread {
    fn drop(&mut self) {
        self.inbox.abandon();
    }
}

impl Thread {
    /// Runs until the token is dropped.
    fn run(mut self) {
        while !self.inbox.is_closed() {
            if self.flights.is_empty() {
                self.open_if_due();
            }
            self.send_waiting();
            self.wait();
        }
    }

    /// Opens the token if somebody ordered it or it is time. Nothing is under way then.
    fn open_if_due(&mut self) {
        if let Some(Order { pin, reply, expires }) = self.inbox.take_order() {
            // Whoever asked has gone by then.
            if Instant::now() < expires {
                // A fresh process: nothing that happened before stands in its way.
                self.helper = None;
                self.reopen = Reopen::NOW;
                reply.send(self.open(Some(pin)).map(|()| Answer::Done));
            }
        }
        if self.reopen.is_due(Instant::now()) {
            // Health tells; whoever needs the token gets it from there.
            drop(self.open(None));
        }
    }

    /// Sends what waits, as far as it should be under way; without a token, says so to everybody.
    fn send_waiting(&mut self) {
        if !self.reopen.is_open() {
            // While answers are outstanding it is not known yet what becomes of the token.
            if self.flights.is_empty() {
                for ask in self.again.drain(..).chain(self.inbox.take_all()) {
                    ask.reply.send(Err(closed(&self.known)));
                }
            }
            return;
        }
        // An order comes first, when all answers are there.
        if self.inbox.has_order() {
            return;
        }
        let Some(helper) = &mut self.helper else { return };
        let now = Instant::now();
        while let Some(sent) = next(&mut self.again, &self.inbox, &self.flights, now) {
            let message = sent.ask.message.clone();
            let number = self.flights.depart(sent, message.bytes(), now);
            helper.send(message.numbered(number));
        }
        if let Err(error) = helper.write() {
            let end = helper.died(&error);
            self.give_up(end);
        }
    }

    /// Waits for an answer, for somebody who asks, or for the time to do something.
    fn wait(&mut self) {
        let now = Instant::now();
        let deadline = self.flights.deadline(self.settings.timeout);
        let idle = deadline.is_none() && self.reopen.is_open();
        let pause = match (deadline, self.reopen.pause(now)) {
            (Some(at), _) => at.saturating_duration_since(now),
            (None, pause) => pause.unwrap_or(CHECK_EVERY),
        };
        let asked = PollFd::new(self.inbox.wake().as_fd(), PollFlags::POLLIN);
        let mut awaited = vec![asked];
        awaited.extend(self.helper.as_ref().map(Helper::poll_fd));
        let timeout = poll_timeout(pause);
        match poll(&mut awaited, timeout) {
            Ok(0) if idle => return self.check(),
            Ok(0) => {}
            // Interrupted by a signal, at most.
            Err(_) => return,
            Ok(_) => {
                let answered = awaited.get(1).and_then(PollFd::any).unwrap_or_default();
                if answered && let Err(end) = self.receive() {
                    self.give_up(end);
                }
            }
        }
        let deadline = self.flights.deadline(self.settings.timeout);
        if deadline.is_some_and(|at| Instant::now() >= at) {
            self.give_up(GivenUp::Hangs);
        }
    }

    fn receive(&mut self) -> Result<(), GivenUp> {
        let Some(helper) = &mut self.helper else { return Ok(()) };
        if let Err(error) = helper.write() {
            return Err(helper.died(&error));
        }
        // What it said before it died still counts.
        let end = helper.read();
        let now = Instant::now();
        while let Some((number, answer)) = self.helper.as_mut().map_or(Ok(None), Helper::take)? {
            match answer {
                Answer::Working => self.flights.step(number, now).map_err(|_| out_of_turn())?,
                answer => {
                    let sent = self.flights.arrive(number, now).map_err(|_| out_of_turn())?;
                    self.answered(sent, answer);
                }
            }
        }
        end
    }

    fn answered(&mut self, Sent { ask, again }: Sent, answer: Answer) {
        let error = match answer {
            Answer::Failed(failure) => Error::from(failure),
            answer => {
                self.reopen = self.reopen.worked();
                return ask.reply.send(Ok(answer));
            }
        };
        let lost = error.class() == Class::Reopen || matches!(ask.reply, Reply::Check);
        // The others that were under way tell of the same loss.
        if lost && self.reopen.is_open() {
            log::warn!(error:%; "the token's session is lost");
            self.reopen = Reopen::NOW;
            self.report_absent(&error);
        }
        if lost && ask.retry == Retry::Once && !again {
            self.again.push_back(ask);
        } else {
            ask.reply.send(Err(error));
        }
    }

    /// Gives the helper up, and tells those whose requests are under way. What killed it may do so again: a second attempt is
    /// the caller's decision.
    fn give_up(&mut self, end: GivenUp) {
        log::error!(error:% = end.error(); "the process with the PKCS#11 module is given up");
        // A helper that is waited for or locked had nothing open that could be lost with it.
        if self.reopen.is_open() || !self.flights.is_empty() {
            self.reopen = self.reopen.failed(Class::Retry, Instant::now());
            self.report_absent(&end.error());
        }
        for (Sent { ask, .. }, begun) in self.flights.abandon() {
            let guilty = begun || matches!(end, GivenUp::Died(_));
            ask.reply.send(Err(if guilty { end.error() } else { closed(&self.known) }));
        }
        self.leave(&end);
    }

    /// Has nothing more to do with a helper. One that died needs no killing.
    fn leave(&mut self, end: &GivenUp) {
        if let Some(mut helper) = self.helper.take()
            && matches!(end, GivenUp::Hangs)
        {
            helper.kill();
        }
    }

    /// Asks whether the token is still there.
    fn check(&mut self) {
        if let Ok(message) = Message::new(&Request::Check) {
            let (retry, reply) = (Retry::Never, Reply::Check);
            self.again.push_back(Ask { message, retry, reply, expires: None });
        }
    }

    fn report_absent(&self, error: &Error) {
        let (why, attempts) = (explain(error), self.reopen.attempts());
        *lock(&self.known.health) = Health::Absent { why, attempts };
    }

    /// Opens the token, with the PIN of a person or, without one, as the configuration says.
    fn open(&mut self, by_hand: Option<Pin>) -> Result<(), Error> {
        let before = self.reopen;
        let opened = self.connect(by_hand);
        match &opened {
            Ok(()) => {
                self.reopen = before.opened();
                log::info!(token:% = self.settings.place; "the token is open");
                *lock(&self.known.health) = Health::Ready;
            }
            Err(error) => {
                self.reopen = before.failed(error.class(), Instant::now());
                let why = explain(error);
                log::warn!(token:% = self.settings.place, why; "the token cannot be opened");
                *lock(&self.known.health) = match self.reopen {
                    Reopen::Locked => Health::Locked { why },
                    other => Health::Absent { why, attempts: other.attempts() },
                };
            }
        }
        opened
    }

    fn connect(&mut self, by_hand: Option<Pin>) -> Result<(), Error> {
        let is_by_hand = by_hand.is_some();
        let mut unread = None;
        let credential = match (by_hand, self.by_hand) {
            (Some(pin), _) => Credential::Given(pin),
            (None, true) => Credential::Kept,
            (None, false) => match self.settings.pin.read() {
                Ok(pin) => pin.map_or(Credential::Pad, Credential::Given),
                Err(error) => {
                    unread = Some(error);
                    Credential::Missing
                }
            },
        };
        let timeout = match credential {
            Credential::Pad => self.settings.timeout.max(PAD_WITHIN),
            Credential::Given(_) | Credential::Kept | Credential::Missing => self.settings.timeout,
        };
        let open = Open {
            credential,
            serial: self.serial.clone(),
            by_hand: is_by_hand,
            anew: self.reopen.wants_initializing(),
            probe: !self.probed,
        };
        let helper = match &mut self.helper {
            Some(helper) => helper,
            none => none.insert(Helper::start(&self.settings)?),
        };
        let end = match helper.ask_alone(&Request::Open(open), timeout) {
            Ok(Answer::Opened { serial, caps, sessions }) => {
                self.by_hand |= is_by_hand;
                self.serial = Some(serial);
                self.flights = Flights::new(sessions.into());
                if let Some(caps) = caps {
                    self.probed = true;
                    *lock(&self.known.caps) = caps;
                }
                return Ok(());
            }
            // The token is there, so what stands in the way is that there is no PIN, for this reason.
            Ok(Answer::Failed(Failure::PinAsked)) => return Err(unread.unwrap_or(Error::PinAsked)),
            Ok(Answer::Failed(failure)) => return Err(failure.into()),
            Ok(_) => out_of_turn(),
            Err(end) => end,
        };
        self.leave(&end);
        Err(end.error())
    }
}

/// What is to be sent next, if there is room for it.
fn next(
    again: &mut VecDeque<Ask>,
    inbox: &Inbox,
    flights: &Flights<Sent>,
    now: Instant,
) -> Option<Sent> {
    match again.front() {
        Some(ask) if !flights.has_room(ask.message.bytes()) => None,
        Some(_) => again.pop_front().map(|ask| Sent { ask, again: true }),
        None => {
            let ask = inbox.take(now, |bytes| flights.has_room(bytes))?;
            Some(Sent { ask, again: false })
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
