//! Requests that the helper has and has not answered: which of them its sessions work on, since when, and how many there
//! should be. Pure: time is given.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Requests under way at most.
const FLIGHTS_MAX: usize = 64;
/// Bytes of requests under way at most, unless there is only one.
const FLIGHT_BYTES_MAX: usize = 1024 * 1024;
/// How long a request should be under way at most: so long the next caller waits, and so long the box may be busy with something
/// else before the token has nothing to do.
const FLIGHT_TIME: Duration = Duration::from_millis(20);
/// Steps of which a request may consist, each with the full time.
const STEPS_MAX: usize = 16;

/// What is under way, by number. The helper begins requests in the order of their numbers, one in each session, so it works on the
/// oldest ones.
pub(super) struct Flights<T> {
    next: u64,
    flights: BTreeMap<u64, Flight<T>>,
    bytes: usize,
    sessions: usize,
    /// How many there should be. It grows as long as answers are quick: a slow token has only its next request waiting.
    window: usize,
    /// The first request that was sent after the window shrank: answers to earlier ones are late for the same reason.
    judged: u64,
}

struct Flight<T> {
    what: T,
    bytes: usize,
    sent: Instant,
    /// When a session began to work on it, or on its latest step.
    begun: Option<Instant>,
    steps: usize,
}

/// The helper spoke of a request that it was not sent, or never comes to an end with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfTurn;

impl<T> Flights<T> {
    /// None, towards a helper with so many sessions.
    pub(super) fn new(sessions: usize) -> Self {
        let sessions = sessions.max(1);
        let (flights, window) = (BTreeMap::new(), 2 * sessions);
        Self { next: 0, flights, bytes: 0, sessions, window, judged: 0 }
    }

    /// Whether a request of this length should be sent now.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.flights.is_empty()
            || self.flights.len() < self.window && self.bytes + bytes <= FLIGHT_BYTES_MAX
    }

    /// Notes a request that is being sent, and gives its number.
    pub(super) fn depart(&mut self, what: T, bytes: usize, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.flights.insert(number, Flight { what, bytes, sent: now, begun: None, steps: 0 });
        self.begin(now);
        number
    }

    /// The helper has done a step of a request.
    pub(super) fn step(&mut self, number: u64, now: Instant) -> Result<(), OutOfTurn> {
        let flight = self.flights.get_mut(&number).ok_or(OutOfTurn)?;
        flight.steps += 1;
        flight.begun = Some(now);
        if flight.steps < STEPS_MAX { Ok(()) } else { Err(OutOfTurn) }
    }

    /// The helper has answered a request.
    pub(super) fn arrive(&mut self, number: u64, now: Instant) -> Result<T, OutOfTurn> {
        let flight = self.flights.remove(&number).ok_or(OutOfTurn)?;
        self.bytes -= flight.bytes;
        if now.saturating_duration_since(flight.sent) <= FLIGHT_TIME {
            self.window = (self.window + 1).min(FLIGHTS_MAX);
        } else if number >= self.judged {
            self.window = (self.window / 2).max(2 * self.sessions);
            self.judged = self.next;
        }
        self.begin(now);
        Ok(flight.what)
    }

    /// When the helper must have answered something, if each request may take `timeout` from when a session begins it.
    pub(super) fn deadline(&self, timeout: Duration) -> Option<Instant> {
        self.flights.values().filter_map(|flight| flight.begun).min().map(|begun| begun + timeout)
    }

    /// All that is under way, and whether a session had begun it.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = (T, bool)> + use<T> {
        self.bytes = 0;
        let flights = std::mem::take(&mut self.flights);
        flights.into_values().map(|flight| (flight.what, flight.begun.is_some()))
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// The oldest ones are being worked on.
    fn begin(&mut self, now: Instant) {
        for flight in self.flights.values_mut().take(self.sessions) {
            flight.begun.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Sends as many as there should be.
    fn fill(flights: &mut Flights<()>, now: Instant) -> usize {
        while flights.has_room(1000) {
            flights.depart((), 1000, now);
        }
        flights.flights.len()
    }

    #[test]
    fn a_slow_token_has_one_request_waiting_and_a_fast_one_many() {
        let mut now = Instant::now();
        for (takes, sessions, expected) in [(300 * MS, 1, 2), (300 * MS, 4, 8), (MS / 10, 1, 64)] {
            let mut flights = Flights::new(sessions);
            for number in 0..500 {
                fill(&mut flights, now);
                now += takes;
                flights.arrive(number, now).unwrap();
            }
            assert_eq!(fill(&mut flights, now), expected);
        }
    }

    #[test]
    fn answers_that_are_late_for_one_reason_count_once() {
        let mut flights = Flights::new(1);
        let mut now = Instant::now();
        for number in 0..200 {
            fill(&mut flights, now);
            flights.arrive(number, now).unwrap();
        }
        assert_eq!(fill(&mut flights, now), FLIGHTS_MAX);
        now += 2 * FLIGHT_TIME;
        for number in 200..200 + 64 {
            flights.arrive(number, now).unwrap();
        }
        assert_eq!(fill(&mut flights, now), FLIGHTS_MAX / 2);
    }

    #[test]
    fn a_request_has_its_time_from_when_a_session_begins_it() {
        let start = Instant::now();
        let mut flights = Flights::new(2);
        assert_eq!(flights.deadline(TIMEOUT), None);
        for _ in 0..4 {
            flights.depart((), 1, start);
        }
        assert_eq!(flights.deadline(TIMEOUT), Some(start + TIMEOUT));
        flights.arrive(1, start + 5 * MS).unwrap();
        // Number 0 is still the oldest.
        assert_eq!(flights.deadline(TIMEOUT), Some(start + TIMEOUT));
        flights.arrive(0, start + 6 * MS).unwrap();
        assert_eq!(flights.deadline(TIMEOUT), Some(start + 5 * MS + TIMEOUT));
        flights.step(2, start + 8 * MS).unwrap();
        assert_eq!(flights.deadline(TIMEOUT), Some(start + 6 * MS + TIMEOUT));
        flights.depart((), 1, start + 9 * MS);
        assert_eq!(
            flights.abandon().map(|(_, begun)| begun).collect::<Vec<_>>(),
            [true, true, false]
        );
        assert_eq!(flights.deadline(TIMEOUT), None);
    }

    #[test]
    fn what_was_not_asked_or_never_ends_is_out_of_turn() {
        let now = Instant::now();
        let mut flights = Flights::new(1);
        let number = flights.depart((), 1, now);
        assert_eq!(flights.arrive(number + 1, now), Err(OutOfTurn));
        assert_eq!(flights.step(number + 1, now), Err(OutOfTurn));
        for _ in 1..STEPS_MAX {
            flights.step(number, now).unwrap();
        }
        assert_eq!(flights.step(number, now), Err(OutOfTurn));
        flights.arrive(number, now).unwrap();
        assert_eq!(flights.arrive(number, now), Err(OutOfTurn));
    }

    #[test]
    fn a_large_request_goes_alone() {
        let now = Instant::now();
        let mut flights = Flights::new(4);
        assert!(flights.has_room(2 * FLIGHT_BYTES_MAX));
        flights.depart((), 2 * FLIGHT_BYTES_MAX, now);
        assert!(!flights.has_room(1));
        flights.arrive(0, now).unwrap();
        flights.depart((), 1, now);
        assert!(!flights.has_room(FLIGHT_BYTES_MAX));
        assert!(flights.has_room(1));
    }

    proptest! {
        #[test]
        fn each_answer_goes_to_its_request(
            sessions in 1_usize..=16, picks in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let now = Instant::now();
            let mut flights = Flights::new(sessions);
            let mut under_way = Vec::new();
            for (send, pick) in picks {
                if send && flights.has_room(1) {
                    let what = under_way.len() as u64 * 31 + flights.next;
                    under_way.push((flights.depart(what, 1, now), what));
                } else if !under_way.is_empty() {
                    let (number, what) = under_way.swap_remove(pick.index(under_way.len()));
                    prop_assert_eq!(flights.arrive(number, now), Ok(what));
                }
                let begun = flights.flights.values().filter(|flight| flight.begun.is_some()).count();
                prop_assert!(begun >= under_way.len().min(sessions));
                prop_assert_eq!(flights.bytes, under_way.len());
                prop_assert!(under_way.len() <= FLIGHTS_MAX);
            }
        }
    }
}
