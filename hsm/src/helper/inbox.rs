//! What callers want from the token, before it is on its way to the helper.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    time::Instant,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{frame::Message, lock, wire::Answer};
use crate::{Error, Pin};

/// Single requests that wait, and as many batches: more callers than these are told that the token is busy.
const WAITING_MAX: usize = 64;

/// Whether an operation may be done twice when the session was lost during it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// It has no lasting effect.
    Once,
    /// It makes or destroys something.
    Never,
}

/// A request and whom to answer.
pub(super) struct Ask {
    pub(super) message: Message,
    pub(super) retry: Retry,
    pub(super) reply: Reply,
    /// When whoever asked is gone, if the request has not been sent by then.
    pub(super) expires: Option<Instant>,
}

/// Whom to answer.
pub(super) enum Reply {
    /// A caller with one request.
    One(SyncSender<Result<Answer, Error>>),
    /// A caller with many, and which of them this is.
    OfMany(usize, Sender<(usize, Result<Answer, Error>)>),
    /// The box itself wanted to know whether the token is still there.
    Check,
}

impl Reply {
    /// Answers. A caller that is gone needs no answer.
    pub(super) fn send(self, answer: Result<Answer, Error>) {
        match self {
            Self::One(to) => drop(to.send(answer)),
            Self::OfMany(index, to) => drop(to.send((index, answer))),
            Self::Check => {}
        }
    }
}

/// An operator's order to open the token with this PIN.
pub(super) struct Order {
    pub(super) pin: Pin,
    pub(super) reply: Reply,
    pub(super) expires: Instant,
}

/// The answer to a submitted request.
pub(super) struct Pending {
    pub(super) answer: Receiver<Result<Answer, Error>>,
    pub(super) expires: Instant,
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

/// The queues before the thread that owns the helper.
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    /// Readable when something was put in since the thread looked last.
    wake: EventFd,
}

#[derive(Default)]
struct Waiting {
    singles: VecDeque<Ask>,
    batches: VecDeque<VecDeque<Ask>>,
    order: Option<Order>,
    /// Whose turn it is where both wait.
    batch_next: bool,
    /// The backend is no longer wanted.
    closed: bool,
    /// Nobody takes anything out any more.
    gone: bool,
}

impl Inbox {
    pub(super) fn new() -> Result<Self, Error> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(|error| Error::Helper(error.into()))?;
        Ok(Self { waiting: Mutex::default(), wake })
    }

    /// Puts a request in.
    pub(super) fn put(&self, ask: Ask) -> Result<(), Error> {
        self.change(|waiting| {
            if waiting.singles.len() >= WAITING_MAX {
                return Err(Error::Busy);
            }
            waiting.singles.push_back(ask);
            Ok(())
        })
    }

    /// Puts many requests in at once. Those of others come in between.
    pub(super) fn put_batch(&self, batch: VecDeque<Ask>) -> Result<(), Error> {
        self.change(|waiting| {
            if waiting.batches.len() >= WAITING_MAX {
                return Err(Error::Busy);
            }
            waiting.batches.push_back(batch);
            Ok(())
        })
    }

    /// Puts an operator's order in, which takes the place of one that nobody has followed yet.
    pub(super) fn put_order(&self, order: Order) -> Result<(), Error> {
        self.change(|waiting| {
            waiting.order = Some(order);
            Ok(())
        })
    }

    /// Tells the thread that it is no longer wanted.
    pub(super) fn close(&self) {
        drop(self.change(|waiting| {
            waiting.closed = true;
            Ok(())
        }));
    }

    fn change(&self, change: impl FnOnce(&mut Waiting) -> Result<(), Error>) -> Result<(), Error> {
        let mut waiting = self.lock();
        if waiting.gone {
            return Err(Error::Stopped);
        }
        change(&mut waiting)?;
        drop(waiting);
        // It can only be full, and then it is readable as well.
        let _ = self.wake.write(1);
        Ok(())
    }

    /// What becomes readable when something is put in.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Whether it is over.
    pub(super) fn is_closed(&self) -> bool {
        // Only now: what is put in later wakes again.
        let _ = self.wake.read();
        self.lock().closed
    }

    /// Whether an operator waits.
    pub(super) fn has_order(&self) -> bool {
        self.lock().order.is_some()
    }

    /// What an operator ordered.
    pub(super) fn take_order(&self) -> Option<Order> {
        self.lock().order.take()
    }

    /// The next request, if `fits` says of its length that it can be sent now. Single ones and batches take turns, and so do batches.
    pub(super) fn take(&self, now: Instant, fits: impl Fn(usize) -> bool) -> Option<Ask> {
        let waiting = &mut *self.lock();
        // Whoever asked has gone by then.
        while waiting.singles.front().and_then(|ask| ask.expires).is_some_and(|at| now >= at) {
            waiting.singles.pop_front();
        }
        let from_batch =
            !waiting.batches.is_empty() && (waiting.batch_next || waiting.singles.is_empty());
        waiting.batch_next = !from_batch;
        let queue = if from_batch { waiting.batches.front_mut()? } else { &mut waiting.singles };
        if !queue.front().is_some_and(|ask| fits(ask.message.bytes())) {
            return None;
        }
        let ask = queue.pop_front();
        if from_batch
            && let Some(rest) = waiting.batches.pop_front().filter(|rest| !rest.is_empty())
        {
            waiting.batches.push_back(rest);
        }
        ask
    }

    /// All requests that wait.
    pub(super) fn take_all(&self) -> Vec<Ask> {
        let waiting = &mut *self.lock();
        let singles = waiting.singles.drain(..);
        singles.chain(waiting.batches.drain(..).flatten()).collect()
    }

    /// The thread ends: whoever waits learns it.
    pub(super) fn abandon(&self) {
        *self.lock() = Waiting { gone: true, ..Waiting::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Duration};

    use super::*;
    use crate::helper::wire::Request;

    fn ask(index: usize, expires: Option<Instant>) -> Ask {
        let message = Message::new(&Request::Check).unwrap();
        Ask { message, retry: Retry::Once, reply: Reply::OfMany(index, channel().0), expires }
    }

    fn taken(inbox: &Inbox, now: Instant) -> Vec<usize> {
        let asks = std::iter::from_fn(|| inbox.take(now, |_| true));
        asks.map(|ask| if let Reply::OfMany(index, _) = ask.reply { index } else { 0 }).collect()
    }

    #[test]
    fn singles_and_batches_take_turns() {
        let now = Instant::now();
        let inbox = Inbox::new().unwrap();
        for first in [10, 20] {
            inbox.put_batch((first..first + 3).map(|index| ask(index, None)).collect()).unwrap();
        }
        for index in 1..4 {
            inbox.put(ask(index, None)).unwrap();
        }
        assert_eq!(taken(&inbox, now), [1, 10, 2, 20, 3, 11, 21, 12, 22]);
        assert!(taken(&inbox, now).is_empty());
    }

    #[test]
    fn what_expired_or_does_not_fit_is_not_taken() {
        let now = Instant::now();
        let inbox = Inbox::new().unwrap();
        for (index, ms) in [(1, 5), (2, 10), (3, 20)] {
            inbox.put(ask(index, Some(now + Duration::from_millis(ms)))).unwrap();
        }
        assert!(inbox.take(now, |_| false).is_none());
        assert_eq!(taken(&inbox, now + Duration::from_millis(10)), [3]);
    }

    #[test]
    fn it_has_a_bound_and_an_end() {
        let inbox = Inbox::new().unwrap();
        for index in 0..WAITING_MAX {
            inbox.put(ask(index, None)).unwrap();
        }
        assert!(matches!(inbox.put(ask(0, None)), Err(Error::Busy)));
        inbox.put_batch([ask(0, None)].into()).unwrap();
        assert_eq!(inbox.take_all().len(), WAITING_MAX + 1);
        inbox.abandon();
        assert!(matches!(inbox.put(ask(0, None)), Err(Error::Stopped)));
    }
}
