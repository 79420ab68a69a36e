//! What came of a bundle's content, counted while it is imported.

use sallyport_core::limits;
use serde::{Deserialize, Serialize};

use crate::service::receive;

/// What became of a bundle's content, kept beside the progress.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Tally {
    pub(super) users: u64,
    pub(super) master_keys_changed: Vec<String>,
    pub(super) one_time_keys: u64,
    pub(super) to_device: u64,
    pub(super) invitations: u64,
    pub(super) accepted: u64,
    pub(super) known: u64,
    pub(super) redacted: u64,
    pub(super) soft_failed: Vec<String>,
    pub(super) rejected: Vec<String>,
    pub(super) dropped: Vec<String>,
    pub(super) waiting: u64,
    pub(super) media: u64,
    /// Newer cards of the peer.
    pub(super) cards: u64,
}

impl Tally {
    /// Adds what became of events.
    pub(super) fn count(&mut self, report: &receive::Report) {
        self.accepted += report.accepted;
        self.redacted += report.redacted;
        self.known += report.known;
        self.waiting += u64::try_from(report.waiting.len()).unwrap_or_default();
        let line = |refused: &receive::Refused| format!("{}: {}", refused.event_id, refused.reason);
        let room = |lines: &[String]| limits::REPORT_LINES_MAX.saturating_sub(lines.len());
        let free = room(&self.soft_failed);
        self.soft_failed.extend(report.soft_failed.iter().take(free).map(line));
        let free = room(&self.rejected);
        self.rejected.extend(report.rejected.iter().take(free).map(line));
        let free = room(&self.dropped);
        self.dropped.extend(report.dropped.iter().take(free).cloned());
    }

    /// The tally for people.
    pub(super) fn sentences(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut say = |number: u64, what: &str| {
            if number > 0 {
                lines.push(format!("{number} {what}"));
            }
        };
        say(self.invitations, "rooms came with an invitation");
        say(self.accepted, "events were taken into their rooms");
        say(self.redacted, "events came only in their redacted form");
        say(self.known, "events were here already");
        say(self.to_device, "messages to devices were delivered");
        say(self.users, "users' keys and profiles were updated");
        say(self.one_time_keys, "one-time keys were received");
        say(self.cards, "newer card of the peer was taken, signed by its known root key");
        say(self.media, "files were received");
        say(self.waiting, "events wait for other events, newer keys or their time");
        for (what, refused) in [
            ("withheld from members, the room's rules changed meanwhile", &self.soft_failed),
            ("rejected, against the room's rules", &self.rejected),
            ("dropped, not genuine", &self.dropped),
        ] {
            lines.extend(refused.iter().map(|line| format!("{what}: {line}")));
        }
        lines.extend(self.master_keys_changed.iter().map(|user| {
            format!(
                "the master key of {user} has changed: ask the peer's officer whether that is right"
            )
        }));
        lines
    }
}
