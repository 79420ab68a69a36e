//! What waits for the token, and when that is worth a warning.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    limits::{
        DISK_FREE_BYTES_ALARM, DISK_FREE_BYTES_WARNING, UNSIGNED_EVENTS_ALARM,
        UNSIGNED_EVENTS_WARNING, UNSIGNED_MS_ALARM, UNSIGNED_MS_WARNING,
    },
    time::Millis,
};

/// Own events that wait for their signature. Only rooms with members from elsewhere count: nothing else is ever signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// How many events wait.
    pub events: u64,
    /// In how many rooms.
    pub rooms: u64,
    /// Since when the oldest of them waits.
    pub since: Option<Millis>,
    /// Bytes free on the disk that holds them, if the operating system says so.
    pub disk_free: Option<u64>,
}

/// Something about the backlog that somebody should look after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BacklogWarning {
    /// The oldest event has waited for more than an hour.
    Old {
        /// How long, in whole hours.
        hours: u64,
        /// More than a day.
        alarm: bool,
    },
    /// Many events wait.
    Long {
        /// How many.
        events: u64,
        /// Very many.
        alarm: bool,
    },
    /// The disk fills up, and only the disk bounds the backlog.
    Disk {
        /// Bytes that are left.
        free: u64,
        /// Soon there are none.
        alarm: bool,
    },
}

impl Backlog {
    /// For how long the oldest event has waited, in seconds.
    #[must_use]
    pub fn age_seconds(&self, now: Millis) -> u64 {
        self.since.map_or(0, |since| now.since(since).as_secs())
    }

    /// What somebody should look after.
    #[must_use]
    pub fn warnings(&self, now: Millis) -> Vec<BacklogWarning> {
        let waited = self.since.map_or(0, |since| now.0.saturating_sub(since.0));
        let old = (waited > UNSIGNED_MS_WARNING).then_some(BacklogWarning::Old {
            hours: waited / 3_600_000,
            alarm: waited > UNSIGNED_MS_ALARM,
        });
        let long = (self.events > UNSIGNED_EVENTS_WARNING).then_some(BacklogWarning::Long {
            events: self.events,
            alarm: self.events > UNSIGNED_EVENTS_ALARM,
        });
        let disk = self.disk_free.filter(|free| *free < DISK_FREE_BYTES_WARNING);
        let disk =
            disk.map(|free| BacklogWarning::Disk { free, alarm: free < DISK_FREE_BYTES_ALARM });
        [old, long, disk].into_iter().flatten().collect()
    }
}

impl BacklogWarning {
    /// The same warning with other numbers: what was said once need not be said again.
    #[must_use]
    pub fn topic(self) -> (&'static str, bool) {
        match self {
            Self::Old { alarm, .. } => ("age", alarm),
            Self::Long { alarm, .. } => ("length", alarm),
            Self::Disk { alarm, .. } => ("disk", alarm),
        }
    }
}

impl fmt::Display for BacklogWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Old { hours, alarm } => {
                let (amount, unit) = if alarm { (hours / 24, "day") } else { (hours, "hour") };
                let plural = if amount == 1 { "" } else { "s" };
                write!(
                    f,
                    "events for other enclaves have waited for their signature for {amount} {unit}{plural}: \
                     local chat goes on, but no bundle can be made; look at `sallyctl token status`"
                )
            }
            Self::Long { events, alarm: false } => write!(
                f,
                "{events} events wait for their signature: the token is absent, or slower than people write"
            ),
            Self::Long { events, alarm: true } => write!(
                f,
                "{events} events wait for their signature, more than a slow token signs in a day: bring the token back, or \
                 hand the box over to a faster one with `sallyctl hsm hand-over`"
            ),
            Self::Disk { free, alarm } => {
                let mib = free >> 20;
                let what = if alarm {
                    "soon no message is accepted any more"
                } else {
                    "only the disk bounds what waits for the token"
                };
                write!(
                    f,
                    "{mib} MiB are free on the disk of the database, and {what}: free space or enlarge it"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const NOW: Millis = Millis(1000 * HOUR);

    fn warnings(events: u64, hours: u64, disk_free: u64) -> Vec<BacklogWarning> {
        let since = Some(Millis(NOW.0 - hours * HOUR));
        Backlog { events, rooms: 1, since, disk_free: Some(disk_free) }.warnings(NOW)
    }

    #[test]
    fn each_threshold_has_its_warning() {
        use BacklogWarning::{Disk, Long, Old};
        let table = [
            (warnings(10_000, 1, 2 << 30), vec![]),
            (warnings(1, 2, u64::MAX), vec![Old { hours: 2, alarm: false }]),
            (warnings(1, 49, u64::MAX), vec![Old { hours: 49, alarm: true }]),
            (warnings(10_001, 0, u64::MAX), vec![Long { events: 10_001, alarm: false }]),
            (warnings(250_001, 0, u64::MAX), vec![Long { events: 250_001, alarm: true }]),
            (warnings(0, 0, 1 << 30), vec![Disk { free: 1 << 30, alarm: false }]),
            (warnings(0, 0, 1 << 20), vec![Disk { free: 1 << 20, alarm: true }]),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
        assert_eq!(Backlog::default().warnings(NOW), []);
        assert_eq!(Backlog::default().age_seconds(NOW), 0);
    }

    #[test]
    fn warnings_say_how_much_and_what_to_do() {
        let all = [warnings(1, 1_000, u64::MAX), warnings(300_000, 0, 1 << 20)].concat();
        let text = all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for part in ["for 41 days", "300000 events", "1 MiB are free", "hand-over", "free space"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(warnings(1, 2, u64::MAX)[0].to_string().contains("for 2 hours:"));
        assert_eq!(warnings(1, 2, u64::MAX)[0].topic(), warnings(1, 3, u64::MAX)[0].topic());
        assert_ne!(warnings(1, 2, u64::MAX)[0].topic(), warnings(1, 30, u64::MAX)[0].topic());
    }
}
