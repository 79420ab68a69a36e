//! Panics, as the log tells them: one line with the place, without the message, which may hold what a member wrote.

use std::{
    cell::Cell,
    panic::{self, PanicHookInfo, UnwindSafe},
    thread,
};

use log::Level;

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Has every panic told by the log from now on.
pub fn tell() {
    panic::set_hook(Box::new(note));
}

/// Calls a dependency that is known to panic at some input of strangers: `None` if it did. The log tells of it at the level of
/// requests, not as a fault of the box, so that nobody can fill it.
pub fn expected<T>(call: impl FnOnce() -> T + UnwindSafe) -> Option<T> {
    EXPECTED.set(true);
    let answer = panic::catch_unwind(call).ok();
    EXPECTED.set(false);
    answer
}

fn note(panic: &PanicHookInfo<'_>) {
    let level = if EXPECTED.get() { Level::Debug } else { Level::Error };
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    log::log!(target: "fault", level, place, thread; "a part of the program gave up; please report this line");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_caught_and_the_next_panic_is_a_fault_again() {
        assert_eq!(expected(|| 7), Some(7));
        assert_eq!(expected(|| -> u8 { panic!("a stranger's input") }), None);
        assert!(!EXPECTED.get());
    }
}
