//! Where the helper's answers go. Those of a fast token are sent a few at a time: each that is sent wakes the box, which then takes
//! time from the token where there are few processors.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use zeroize::{Zeroize as _, Zeroizing};

use super::{
    frame::{Frame, Message},
    wire::{Answer, Failure},
};
use crate::Error;

/// Answers that are sent together.
const TOGETHER: usize = 16;
/// How long an answer is held back for the next one.
const HELD_BACK: Duration = Duration::from_millis(2);
/// Bytes that are held back. The buffer never grows, which would leave a copy of a secret behind.
const BUFFER_BYTES: usize = 4096;

/// Where all sessions send their answers, each as a whole.
#[derive(Clone)]
pub(super) struct Answers(Arc<Mutex<Outgoing>>);

struct Outgoing {
    socket: UnixStream,
    held: Zeroizing<Vec<u8>>,
    answers: usize,
    /// When the first of them was made.
    since: Instant,
}

impl Answers {
    pub(super) fn new(socket: UnixStream) -> Self {
        let held = Zeroizing::new(Vec::with_capacity(BUFFER_BYTES));
        let outgoing = Outgoing { socket, held, answers: 0, since: Instant::now() };
        Self(Arc::new(Mutex::new(outgoing)))
    }

    /// Answers a request, perhaps only with one of the next answers: whoever then has nothing to do must call
    /// [`Answers::flush`]. Fails when the box is gone, which the thread that reads notices too.
    pub(super) fn send(&self, number: u64, answer: Result<Answer, Error>) -> io::Result<()> {
        let frame = frame(number, answer)?;
        let mut outgoing = self.lock();
        outgoing.hold(&frame)?;
        if outgoing.answers >= TOGETHER || outgoing.since.elapsed() >= HELD_BACK {
            outgoing.flush()?;
        }
        Ok(())
    }

    /// Answers a request at once.
    pub(super) fn send_now(&self, number: u64, answer: Result<Answer, Error>) -> io::Result<()> {
        let frame = frame(number, answer)?;
        let mut outgoing = self.lock();
        outgoing.hold(&frame)?;
        outgoing.flush()
    }

    /// Sends what was held back.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.lock().flush()
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outgoing {
    fn hold(&mut self, frame: &Frame) -> io::Result<()> {
        if self.held.len() + frame.bytes() > BUFFER_BYTES {
            self.flush()?;
        }
        if frame.bytes() > BUFFER_BYTES {
            return frame.parts().iter().try_for_each(|part| self.socket.write_all(part));
        }
        if self.answers == 0 {
            self.since = Instant::now();
        }
        self.answers += 1;
        frame.parts().iter().for_each(|part| self.held.extend_from_slice(part));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let sent = self.socket.write_all(&self.held);
        self.held.zeroize();
        self.answers = 0;
        sent
    }
}

fn frame(number: u64, answer: Result<Answer, Error>) -> io::Result<Frame> {
    let answer = answer.unwrap_or_else(|error| Answer::Failed(Failure::from(error)));
    Ok(Message::new(&answer)?.numbered(number))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::{KeyName, KeyRole, helper::frame::Incoming};

    /// Numbers of the answers that have arrived.
    fn arrived(box_side: &mut UnixStream, incoming: &mut Incoming) -> Vec<u64> {
        box_side.set_nonblocking(true).unwrap();
        let mut numbers = Vec::new();
        loop {
            while let Some((number, _)) = incoming.take::<Answer>().unwrap() {
                numbers.push(number);
            }
            if incoming.read(box_side).is_err() {
                return numbers;
            }
        }
    }

    #[test]
    fn answers_of_a_fast_token_arrive_together_and_none_is_kept() {
        let (mut box_side, socket) = UnixStream::pair().unwrap();
        let (answers, mut incoming) = (Answers::new(socket), Incoming::new());
        let mut numbers = Vec::new();
        for number in 0..100 {
            answers.send(number, Ok(Answer::Done)).unwrap();
            numbers.extend(arrived(&mut box_side, &mut incoming));
            assert!(numbers.len() + TOGETHER > number as usize);
        }
        answers.flush().unwrap();
        answers.flush().unwrap();
        numbers.extend(arrived(&mut box_side, &mut incoming));
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
        assert!(box_side.read(&mut [0]).is_err());
    }

    #[test]
    fn an_urgent_or_long_answer_takes_those_before_it_along() {
        let (mut box_side, socket) = UnixStream::pair().unwrap();
        let (answers, mut incoming) = (Answers::new(socket), Incoming::new());
        let many = vec![KeyName::new(KeyRole::Event, [1; 8]); 500];
        answers.send(1, Ok(Answer::Done)).unwrap();
        answers.send(2, Ok(Answer::Keys(many))).unwrap();
        assert_eq!(arrived(&mut box_side, &mut incoming), [1, 2]);
        answers.send(3, Ok(Answer::Done)).unwrap();
        answers.send_now(4, Ok(Answer::Working)).unwrap();
        assert_eq!(arrived(&mut box_side, &mut incoming), [3, 4]);
    }
}
