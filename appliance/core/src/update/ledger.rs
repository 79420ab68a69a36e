//! What a box remembers of its updates: the floor, what waits to prove itself, and how the last one ended.

use serde::{Deserialize, Serialize};

use super::{Manifest, Version};
use crate::{digest::Sha256, time::Millis};

/// What a box remembers of its updates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// The oldest version that may be installed. It rises when a version was blessed, and never falls.
    pub floor: Version,
    /// What was written to the other slot and has not been blessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// How the last update ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Settled>,
}

/// An update that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// Its version.
    pub version: Version,
    /// The floor that it brings.
    pub floor: Version,
    /// What names its slot.
    pub root_hash: Sha256,
    /// When it was written.
    pub at: Millis,
}

/// An update that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settled {
    /// Its version.
    pub version: Version,
    /// How it ended.
    pub outcome: Outcome,
    /// When that was known.
    pub at: Millis,
}

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It runs and was blessed.
    Blessed,
    /// It did not come to its health check, and the version before it runs again.
    FellBack,
}

impl Ledger {
    /// An update was written to the other slot.
    pub fn wrote(&mut self, update: &Manifest, at: Millis) {
        let Manifest { version, floor, root_hash, .. } = *update;
        self.pending = Some(Pending { version, floor, root_hash, at });
    }

    /// A boot came to its health check, with the system of this root hash. Whether something changed.
    pub fn settle(&mut self, running: &Sha256, at: Millis) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        let outcome = if pending.root_hash == *running {
            self.floor = self.floor.max(pending.floor);
            Outcome::Blessed
        } else {
            Outcome::FellBack
        };
        self.last = Some(Settled { version: pending.version, outcome, at });
        true
    }
}
