//! How a stick stands, for somebody who sees the machine and not its screen: the bell, and the three lights of a keyboard.
//!
//! | it | bell | lights (Linux console) |
//! |---|---|---|
//! | is read, or what it brought is looked at | | Scroll Lock |
//! | waits for somebody to type | once | Num Lock |
//! | is written: do not pull it out | | Caps Lock and Scroll Lock |
//! | is done: pull it out | twice | none |
//! | is done, and something was refused, or it cannot be used | three times, low | Caps Lock |

use std::{
    io::{self, Write},
    path::Path,
    thread::sleep,
    time::Duration,
};

use serde::Deserialize;

use crate::{files, notice::NOTICE_BYTES_MAX, stick::state::Phase};

/// The notice of a stick.
const STICK: &str = "stick.json";
/// From one stroke of the bell to the next: shorter ones run into each other.
const BETWEEN: Duration = Duration::from_millis(300);

/// What is heard and seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signal {
    strokes: u8,
    hertz: u16,
    lights: &'static [u8],
}

#[derive(Deserialize)]
struct Notice {
    phase: Phase,
    #[serde(default)]
    refused: bool,
}

/// Lights by the number that the console knows them by.
const SCROLL: u8 = 1;
const NUM: u8 = 2;
const CAPS: u8 = 3;
const HIGH: u16 = 880;
const LOW: u16 = 220;

impl Signal {
    /// For the stick that is plugged in; nothing at all without one.
    pub(crate) fn of(notices: &Path) -> Self {
        let path = notices.join(STICK);
        let notice = files::read(&path, NOTICE_BYTES_MAX).ok();
        let notice = notice.and_then(|json| serde_json::from_slice(&json).ok());
        notice.map_or_else(Self::default, |Notice { phase, refused }| Self::new(phase, refused))
    }

    fn new(phase: Phase, refused: bool) -> Self {
        let (strokes, hertz, lights): (_, _, &[u8]) = match phase {
            Phase::Reading | Phase::Applying => (0, HIGH, &[SCROLL]),
            Phase::Confirm | Phase::Erase => (1, HIGH, &[NUM]),
            Phase::Writing => (0, HIGH, &[CAPS, SCROLL]),
            Phase::Done if !refused => (2, HIGH, &[]),
            Phase::Done | Phase::Failed => (3, LOW, &[CAPS]),
        };
        Self { strokes, hertz, lights }
    }

    /// Rings and lights. `is_linux_console`: whether the terminal knows lights and pitch; every one knows the bell.
    pub(crate) fn give(self, out: &mut impl Write, is_linux_console: bool) -> io::Result<()> {
        if is_linux_console {
            write!(out, "\x1b[0q")?;
            for light in self.lights {
                write!(out, "\x1b[{light}q")?;
            }
            write!(out, "\x1b[10;{}]\x1b[11;{}]", self.hertz, BETWEEN.as_millis() / 2)?;
        }
        out.flush()?;
        for stroke in 0..self.strokes {
            if stroke > 0 {
                sleep(BETWEEN);
            }
            out.write_all(b"\x07")?;
            out.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn given(notice: &str, is_linux_console: bool) -> String {
        let folder = tempfile::tempdir().unwrap();
        if !notice.is_empty() {
            fs::write(folder.path().join(STICK), notice).unwrap();
        }
        let mut out = Vec::new();
        Signal::of(folder.path()).give(&mut out, is_linux_console).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_state_of_a_stick_has_its_own() {
        for (notice, bells) in [
            ("", 0),
            ("no JSON", 0),
            ("{\"phase\":\"reading\",\"title\":\"\"}", 0),
            ("{\"phase\":\"writing\",\"refused\":true}", 0),
            ("{\"phase\":\"confirm\"}", 1),
            ("{\"phase\":\"done\"}", 2),
            ("{\"phase\":\"done\",\"refused\":true}", 3),
            ("{\"phase\":\"failed\"}", 3),
        ] {
            assert_eq!(given(notice, false), "\x07".repeat(bells), "{notice}");
        }
    }

    #[test]
    fn lights_are_for_the_linux_console() {
        let writing = given("{\"phase\":\"writing\"}", true);
        assert_eq!(writing, "\x1b[0q\x1b[3q\x1b[1q\x1b[10;880]\x1b[11;150]");
        assert!(given("{\"phase\":\"failed\"}", true).contains("\x1b[3q\x1b[10;220]"));
        assert!(given("", true).starts_with("\x1b[0q\x1b[10;"));
    }
}
