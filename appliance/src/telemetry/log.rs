//! The log: to the journal when the box runs as a unit, else to stderr.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use log::{
    Level, LevelFilter, Log, Metadata, Record,
    kv::{self, Key, Value, VisitSource},
};
use systemd_journal_logger::{JournalLog, connected_to_journal};

use crate::config::LogLevel;

/// Installs the logger. Later calls only change the level.
pub fn install(level: LogLevel) {
    let installed = if connected_to_journal() {
        JournalLog::new().is_ok_and(|journal| journal.install().is_ok())
    } else {
        log::set_logger(&Stderr).is_ok()
    };
    if !installed && connected_to_journal() {
        // The socket of the journal was not usable: stderr still reaches it.
        let _ = log::set_logger(&Stderr);
    }
    log::set_max_level(level.into());
    super::faults::tell();
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// One line per record: level, target, message, key-values.
struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format(record);
        // A record that nobody can read is no reason to stop.
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

fn format(record: &Record<'_>) -> String {
    let level = match record.level() {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let mut line = format!("{level:5} {}: {}", record.target(), record.args());
    // Visiting fails only if the visitor does.
    let _ = record.key_values().visit(&mut Fields(&mut line));
    // One record is one line, whatever a value contains.
    let mut line = line.replace('\n', "\\n");
    line.push('\n');
    line
}

struct Fields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        write!(self.0, " {key}={value}").map_err(kv::Error::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_with_its_fields() {
        let fields = [("room_id", "!a"), ("note", "two\nlines")];
        let record = Record::builder()
            .level(Level::Warn)
            .target("room")
            .args(format_args!("event refused"))
            .key_values(&fields)
            .build();
        let line = format(&record);
        assert!(line.starts_with("warn  room: "), "{line}");
        assert!(line.ends_with(": event refused room_id=!a note=two\\nlines\n"), "{line}");
    }
}
