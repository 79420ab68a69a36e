//! Boot entries: the kernels on the boot partition, what their names say, and which one starts next.
//!
//! A name is `sallyport_VERSION.efi`, or with a counter `sallyport_VERSION+LEFT-DONE.efi` (Boot Loader Specification, "Boot counting"): the boot loader
//! takes one from LEFT and adds it to DONE before it starts the entry, so their sum stays what it was when the entry was named. It is that sum which tells
//! a version that was never blessed ([`TRIAL`]) from one that was and is watched on ([`WATCHED`]).

use std::{cmp::Reverse, fmt, str::FromStr};

use super::Version;

/// Starts that a new version has before the one before it is taken again.
pub const TRIAL: u32 = 3;
/// Starts in a row that a blessed version may fail to bring to their end before the other slot is taken: a slot that rots must not start for ever, and a
/// person who plays with the switch must not bring an old version back.
pub const WATCHED: u32 = 9;

const PREFIX: &str = "sallyport_";
const SUFFIX: &str = ".efi";

/// The name of a kernel on the boot partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The version that it starts.
    pub version: Version,
    /// Its counter.
    pub counter: Option<Counter>,
}

/// A boot counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter {
    /// Starts that are left.
    pub left: u32,
    /// Starts that nobody blessed.
    pub done: u32,
}

/// What the counter of an entry says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is started whatever happens.
    Blessed,
    /// It was blessed, and its starts are counted nevertheless.
    Watched,
    /// It has yet to prove itself.
    Trial,
    /// It had its chances: it is started only if there is nothing better.
    Exhausted,
}

/// The name of another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a boot entry of Sallyport")]
pub struct NotAnEntry;

impl Entry {
    /// An entry of a version that has yet to prove itself.
    #[must_use]
    pub fn on_trial(version: Version) -> Self {
        Self { version, counter: Some(Counter { left: TRIAL, done: 0 }) }
    }

    /// The entry of a version that is blessed; with a counter if there is another one to fall back to.
    #[must_use]
    pub fn blessed(version: Version, watched: bool) -> Self {
        Self { version, counter: watched.then_some(Counter { left: WATCHED, done: 0 }) }
    }

    /// The same entry, to be started only if there is nothing better.
    #[must_use]
    pub fn stood_back(self) -> Self {
        Self { counter: Some(Counter { left: 0, done: WATCHED }), ..self }
    }

    /// Whether it was blessed once, whatever became of it. The boot loader counts on when it starts an entry with nothing left.
    #[must_use]
    pub fn was_blessed(self) -> bool {
        self.counter.is_none_or(|counter| counter.left.saturating_add(counter.done) >= WATCHED)
    }

    /// What its counter says.
    #[must_use]
    pub fn standing(self) -> Standing {
        match self.counter {
            None => Standing::Blessed,
            Some(Counter { left: 0, .. }) => Standing::Exhausted,
            Some(counter) => counter.standing(),
        }
    }
}

impl Counter {
    /// What it says about an entry that is being started. With nothing left it may have been either: the boot loader counts on.
    fn standing(self) -> Standing {
        match self.left.saturating_add(self.done) {
            WATCHED if self.left > 0 => Standing::Watched,
            _ => Standing::Trial,
        }
    }
}

/// The entry that the boot loader starts: exhausted ones last, newer versions first.
#[must_use]
pub fn next(entries: impl IntoIterator<Item = Entry>) -> Option<Entry> {
    entries.into_iter().min_by_key(|entry| {
        (
            entry.standing() == Standing::Exhausted,
            Reverse(entry.version),
            // Two of one version are left by a power cut; they are the same kernel.
            Reverse(entry.counter.map_or(u32::MAX, |counter| counter.left)),
        )
    })
}

/// What the boot loader says of the running boot in the EFI variable `LoaderBootCountPath`, which is there only if the entry has a counter: four bytes of
/// attributes, then the path of the entry in UTF-16. What cannot be read counts as a trial: that is the careful answer.
#[must_use]
pub fn standing_of_boot(variable: &[u8]) -> Standing {
    let units = variable.get(4..).unwrap_or_default().chunks_exact(2);
    let units = units.filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes));
    let path: String = char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    let name = path.rsplit(['\\', '/']).next().unwrap_or_default();
    match name.parse::<Entry>() {
        Ok(Entry { counter: Some(counter), .. }) => counter.standing(),
        Ok(Entry { counter: None, .. }) => Standing::Blessed,
        Err(NotAnEntry) => Standing::Trial,
    }
}

impl FromStr for Entry {
    type Err = NotAnEntry;

    fn from_str(name: &str) -> Result<Self, NotAnEntry> {
        let stem = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
        let stem = stem.ok_or(NotAnEntry)?;
        let (version, counter) = match stem.split_once('+') {
            None => (stem, None),
            Some((version, counter)) => (version, Some(counter.parse()?)),
        };
        Ok(Self { version: version.parse().map_err(|_| NotAnEntry)?, counter })
    }
}

impl FromStr for Counter {
    type Err = NotAnEntry;

    fn from_str(text: &str) -> Result<Self, NotAnEntry> {
        let number = |text: &str| {
            let digits = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            if digits { text.parse().map_err(|_| NotAnEntry) } else { Err(NotAnEntry) }
        };
        let (left, done) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self { left: number(left)?, done: number(done)? })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.version)?;
        if let Some(Counter { left, done }) = self.counter {
            write!(f, "+{left}-{done}")?;
        }
        f.write_str(SUFFIX)
    }
}

impl Standing {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blessed => "blessed",
            Self::Watched => "blessed, its starts are watched",
            Self::Trial => "on trial",
            Self::Exhausted => "stands back: it failed, or an older version was put before it",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        name.parse().unwrap()
    }

    #[test]
    fn names_and_standings() {
        let table = [
            ("sallyport_0.1.0.efi", Standing::Blessed),
            ("sallyport_0.2.0+3-0.efi", Standing::Trial),
            ("sallyport_0.2.0+1-2.efi", Standing::Trial),
            ("sallyport_0.2.0+0-3.efi", Standing::Exhausted),
            ("sallyport_0.2.0+9-0.efi", Standing::Watched),
            ("sallyport_0.2.0+8-1.efi", Standing::Watched),
            ("sallyport_0.2.0+0-9.efi", Standing::Exhausted),
            ("sallyport_0.2.0+7-0.efi", Standing::Trial),
        ];
        for (name, standing) in table {
            assert_eq!(entry(name).standing(), standing, "{name}");
            assert_eq!(entry(name).to_string(), name);
        }
        for (name, blessed) in [
            ("sallyport_0.1.0.efi", true),
            ("sallyport_0.2.0+3-0.efi", false),
            ("sallyport_0.2.0+0-3.efi", false),
            ("sallyport_0.2.0+8-1.efi", true),
            ("sallyport_0.2.0+0-9.efi", true),
            ("sallyport_0.2.0+0-12.efi", true),
        ] {
            assert_eq!(entry(name).was_blessed(), blessed, "{name}");
        }
        assert_eq!(entry("sallyport_0.2.0+3.efi"), Entry::on_trial("0.2.0".parse().unwrap()));
        let others = [
            "sallyport_0.2.efi",
            "sallyport_0.2.0",
            "linux.efi",
            "sallyport_0.2.0+.efi",
            "sallyport_0.2.0+-1.efi",
            "sallyport_0.2.0++1.efi",
            "sallyport_0.2.0+1-1-1.efi",
            "sallyport_0.2.0+1234567890.efi",
        ];
        for other in others {
            assert_eq!(other.parse::<Entry>(), Err(NotAnEntry), "{other}");
        }
    }

    #[test]
    fn the_boot_loader_takes_the_newest_that_has_chances_left() {
        let table: &[(&[&str], &str)] = &[
            (&["sallyport_0.1.0.efi"], "sallyport_0.1.0.efi"),
            (&["sallyport_0.1.0.efi", "sallyport_0.2.0+3-0.efi"], "sallyport_0.2.0+3-0.efi"),
            (&["sallyport_0.9.0.efi", "sallyport_0.10.0.efi"], "sallyport_0.10.0.efi"),
            (&["sallyport_0.1.0.efi", "sallyport_0.2.0+0-3.efi"], "sallyport_0.1.0.efi"),
            (&["sallyport_0.1.0+0-3.efi", "sallyport_0.2.0+0-9.efi"], "sallyport_0.2.0+0-9.efi"),
            (&["sallyport_0.2.0+1-2.efi", "sallyport_0.2.0+9-0.efi"], "sallyport_0.2.0+9-0.efi"),
        ];
        for (names, expected) in table {
            let entries = names.iter().map(|name| entry(name));
            assert_eq!(next(entries).unwrap().to_string(), *expected, "{names:?}");
        }
        assert_eq!(next([]), None);
    }

    #[test]
    fn what_the_boot_loader_says_of_a_boot() {
        let variable = |path: &str| {
            let text = path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
            [6, 0, 0, 0].into_iter().chain(text).collect::<Vec<u8>>()
        };
        let table = [
            (variable("\\EFI\\Linux\\sallyport_0.2.0+2-1.efi"), Standing::Trial),
            // The last chance is being used: the entry is exhausted only for the next start.
            (variable("\\EFI\\Linux\\sallyport_0.2.0+0-3.efi"), Standing::Trial),
            (variable("/EFI/Linux/sallyport_0.2.0+8-1.efi"), Standing::Watched),
            (variable("/EFI/Linux/sallyport_0.2.0+0-9.efi"), Standing::Trial),
            (variable("\\EFI\\Linux\\sallyport_0.2.0.efi"), Standing::Blessed),
            (variable("\\EFI\\Linux\\other.efi"), Standing::Trial),
            (vec![], Standing::Trial),
            (vec![6, 0, 0, 0, 0x00, 0xd8, 0x41], Standing::Trial),
        ];
        for (variable, standing) in table {
            assert_eq!(standing_of_boot(&variable), standing, "{variable:?}");
        }
    }
}
