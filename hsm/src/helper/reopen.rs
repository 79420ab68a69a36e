//! When to open the token again: a state machine of the time it is given.

use std::time::{Duration, Instant};

use crate::Class;

/// Pause after the first failed attempt; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause: what an operator waits at most after plugging the token in again.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Attempts after which the module is initialised anew: some do not see a token again otherwise.
const ATTEMPTS_BEFORE_INITIALIZING: u32 = 1;

/// Whether the token is open, and if not, when it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reopen {
    /// To be opened at once.
    Due { attempts: u32 },
    /// Open. What was attempted in vain still counts until an operation has worked: a module that opens well and crashes
    /// in use must not be started over and over without a pause.
    Open { attempts: u32 },
    /// Tried again by itself at a time.
    Waiting { attempts: u32, until: Instant },
    /// Tried only when somebody asks.
    Locked,
}

impl Reopen {
    /// What a fresh backend starts with, and an operator's order makes of it.
    pub(super) const NOW: Self = Self::Due { attempts: 0 };

    /// Whether to try now.
    pub(super) fn is_due(self, now: Instant) -> bool {
        match self {
            Self::Due { .. } => true,
            Self::Waiting { until, .. } => now >= until,
            Self::Open { .. } | Self::Locked => false,
        }
    }

    /// Whether to initialise the module anew before the next attempt.
    pub(super) fn wants_initializing(self) -> bool {
        self.attempts() >= ATTEMPTS_BEFORE_INITIALIZING
    }

    /// How long there is nothing to do, if that is known.
    pub(super) fn pause(self, now: Instant) -> Option<Duration> {
        match self {
            Self::Due { .. } => Some(Duration::ZERO),
            Self::Waiting { until, .. } => Some(until.saturating_duration_since(now)),
            Self::Open { .. } | Self::Locked => None,
        }
    }

    /// Failed attempts since the token last worked.
    pub(super) fn attempts(self) -> u32 {
        match self {
            Self::Due { attempts } | Self::Waiting { attempts, .. } | Self::Open { attempts } => {
                attempts
            }
            Self::Locked => 0,
        }
    }

    /// Whether the token is open.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// An attempt succeeded.
    pub(super) fn opened(self) -> Self {
        Self::Open { attempts: self.attempts() }
    }

    /// An operation succeeded.
    pub(super) fn worked(self) -> Self {
        if self.is_open() { Self::Open { attempts: 0 } } else { self }
    }

    /// An attempt failed with an error of this class, or the helper came to an end.
    pub(super) fn failed(self, class: Class, now: Instant) -> Self {
        if class == Class::Operator {
            return Self::Locked;
        }
        let attempts = self.attempts().saturating_add(1);
        let pause = PAUSE_MIN.saturating_mul(1 << (attempts - 1).min(8)).min(PAUSE_MAX);
        Self::Waiting { attempts, until: now + pause }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut now = Instant::now();
        let mut state = Reopen::NOW;
        for seconds in [1, 2, 4, 8, 15, 15, 15] {
            assert!(state.is_due(now));
            state = state.failed(Class::Reopen, now);
            assert_eq!(state.pause(now), Some(seconds * SECOND));
            assert!(!state.is_due(now + seconds * SECOND - Duration::from_millis(1)));
            now += seconds * SECOND;
        }
    }

    #[test]
    fn a_helper_that_dies_whenever_it_is_used_is_started_ever_more_rarely() {
        let mut now = Instant::now();
        let mut state = Reopen::NOW.opened();
        for seconds in [1, 2, 4, 8, 15, 15] {
            assert!(state.is_open());
            state = state.failed(Class::Retry, now);
            assert_eq!(state.pause(now), Some(seconds * SECOND));
            assert!(state.wants_initializing());
            now += seconds * SECOND;
            state = state.opened();
        }
        state = state.worked().failed(Class::Retry, now);
        assert_eq!(state.pause(now), Some(SECOND));
    }

    proptest! {
        #[test]
        fn what_an_operator_must_mend_is_never_tried_again(hours in 0_u32..100_000) {
            let now = Instant::now();
            let state = Reopen::NOW.failed(Class::Operator, now).worked();
            prop_assert!(!state.is_due(now + hours * 3600 * SECOND));
            prop_assert_eq!(state.pause(now), None);
            prop_assert!(Reopen::NOW.is_due(now));
        }

        #[test]
        fn attempts_are_never_closer_than_the_first_pause(failures in 1_u32..200) {
            let now = Instant::now();
            let mut state = Reopen::NOW;
            for _ in 0..failures {
                state = state.failed(Class::Retry, now);
            }
            let pause = state.pause(now).unwrap();
            prop_assert!(pause >= PAUSE_MIN && pause <= PAUSE_MAX);
            prop_assert_eq!(state.attempts(), failures);
        }
    }
}
