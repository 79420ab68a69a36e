//! What the helper has still to do: filled by the thread that reads, emptied by those that own sessions.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
};

use super::wire::{Open, Request};
use crate::{Error, KeyName};

/// Tasks that wait. The box never has as many under way ([`super::flights`]), so only a broken one meets this bound.
const TASKS_MAX: usize = 256;

/// Work for a session.
pub(super) enum Task {
    /// Open the token anew: for the first session, which ends all others.
    Open(Open),
    /// Sign what the policy allows.
    Sign {
        key: KeyName,
        bytes: Vec<u8>,
        /// Forget all handles first.
        anew: bool,
    },
    /// Anything else.
    Other(Request),
}

/// Tasks in the order of their arrival, each with the number of its request.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<(u64, Task)>,
    /// Raised when the token is opened anew.
    generation: u64,
    closed: bool,
}

impl Queue {
    /// Adds a task. Never waits.
    pub(super) fn push(&self, number: u64, task: Task) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.tasks.len() >= TASKS_MAX {
            return Err(Error::Busy);
        }
        // A task for the first session could wake another one, and only that.
        let for_one = !matches!(task, Task::Open(_));
        state.tasks.push_back((number, task));
        drop(state);
        if for_one {
            self.changed.notify_one()
        } else {
            self.changed.notify_all()
        }
        Ok(())
    }

    /// Nothing more comes; what waits is not done any more.
    pub(super) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        state.tasks.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Sends all sessions but the first away, and gives the generation of those to come.
    pub(super) fn next_generation(&self) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.generation += 1;
        let generation = state.generation;
        drop(state);
        self.changed.notify_all();
        generation
    }

    /// Waits for a task for the first session; `None` at the end. Calls `idle` before it waits.
    pub(super) fn next(&self, idle: impl Fn()) -> Option<(u64, Task)> {
        self.wait(|_| true, |_| true, idle)
    }

    /// Waits for a task for another session; `None` when its generation is over. Calls `idle` before it waits.
    pub(super) fn next_in(&self, generation: u64, idle: impl Fn()) -> Option<(u64, Task)> {
        let stay = |state: &State| state.generation == generation;
        self.wait(stay, |task| !matches!(task, Task::Open(_)), idle)
    }

    fn wait(
        &self,
        stay: impl Fn(&State) -> bool,
        mine: impl Fn(&Task) -> bool,
        idle: impl Fn(),
    ) -> Option<(u64, Task)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = false;
        while !state.closed && stay(&state) {
            if state.tasks.front().is_some_and(|(_, task)| mine(task)) {
                return state.tasks.pop_front();
            }
            if told {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                drop(state);
                idle();
                told = true;
                state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            }
        }
        None
    }
}
