//! What is printed: aligned text for people, JSON for scripts.

use std::io::{self, Write as _};

use anyhow::Context as _;
use sallyport_core::{roster::Date, time::Millis};
use serde::Serialize;

/// Standard output, in one of two languages.
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a value as JSON, or what `text` makes of it.
    pub(crate) fn show<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        if self.json {
            let json = serde_json::to_string_pretty(value).context("cannot print JSON")?;
            return self.raw(&format!("{json}\n"));
        }
        self.raw(&text(value))
    }

    /// Prints a text as it is.
    pub(crate) fn raw(&self, text: &str) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // Whoever reads has seen enough: `sallyctl codes print FILE | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context("cannot write to standard output"),
        }
    }

    /// Says how far something is, to people only, beside what is printed.
    pub(crate) fn progress(&self, text: &str) {
        if !self.json {
            // Who does not see it misses nothing but the progress.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Says something that is no result, to people only.
    pub(crate) fn note(&self, text: &str) -> anyhow::Result<()> {
        if self.json { Ok(()) } else { self.raw(&format!("{text}\n")) }
    }
}

/// Names and values, one per line, the values below each other.
pub(crate) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    pairs.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Rows below a heading, in columns as wide as they must be.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
        let cells = cells.chain(heading.get(column).copied());
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |cells: &[&str]| {
        let padded: String =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        format!("{}\n", padded.trim_end())
    };
    let mut text = line(&heading);
    for row in rows {
        text.push_str(&line(&row.each_ref().map(String::as_str)));
    }
    text
}

/// A time as people read it, in UTC.
pub(crate) fn time(time: Millis) -> String {
    let second = time.0 / 1000 % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", Date::of(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        assert_eq!(pairs(&[("a", "1".to_owned()), ("bcd", "2".to_owned())]), "a    1\nbcd  2\n");
        let rows = [["äb".to_owned(), "1".to_owned()], ["c".to_owned(), String::new()]];
        assert_eq!(table(["n", "value"], &rows), "n   value\näb  1\nc\n");
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(time(Millis(1_795_309_385_999)), "2026-11-22 01:03:05 UTC");
    }
}
