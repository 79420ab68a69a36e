//! What the box tells about itself: the log and the metrics. Neither leaves the box by itself.

pub mod faults;
pub mod log;
pub mod metrics;
pub mod token;

use std::error::Error;

/// An error and its sources on one line, outermost first.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
