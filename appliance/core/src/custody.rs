//! Where a server's signing key lives, and what that means to those who attack it: in plain words, for consoles and cards.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Where a key lives.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode,
)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Mode {
    /// In the token, which it never leaves.
    #[n(1)]
    Direct,
    /// Encrypted on the disk, so that only the token opens it; once opened, in the memory of the box.
    #[n(2)]
    Envelope,
    /// In a file: for development.
    #[n(3)]
    Software,
}

/// How event keys are to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeChoice {
    /// In the token if it can, otherwise as working keys.
    #[default]
    Auto,
    /// In the token, or not at all.
    Direct,
    /// Event keys as working keys even if the token could hold them: for one that is too slow.
    Envelope,
}

/// Who attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attacker {
    /// Took the disk, or a copy of it.
    Disk,
    /// Took over the box while it runs.
    RunningMachine,
    /// Took the token.
    Token,
}

impl Mode {
    /// Every mode, the safest first.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Envelope, Self::Software];

    /// The name in configurations, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Envelope => "envelope",
            Self::Software => "software",
        }
    }

    /// What the mode is, in one sentence.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Direct => {
                "The key is in the token and never leaves it; without the token nothing is signed."
            }
            Self::Envelope => {
                "The key is on the disk, encrypted so that only the token opens it; once it was opened it is in the memory of the box, which goes on signing while the token is unplugged, until it is restarted."
            }
            Self::Software => {
                "The key is in a file on the disk. This protects nothing: use it for development only."
            }
        }
    }

    /// What an attacker gets, in one sentence.
    #[must_use]
    pub fn against(self, attacker: Attacker) -> &'static str {
        match (self, attacker) {
            (Self::Direct, Attacker::Disk) => "finds no key on it.",
            (Self::Direct, Attacker::RunningMachine) => {
                "can have the token sign in the name of this server for as long as both are in reach, and takes no key away."
            }
            (Self::Direct, Attacker::Token) => {
                "needs its PIN, and most tokens lock for good after a few wrong ones; with both, signs as this server."
            }
            (Self::Envelope, Attacker::Disk) => {
                "finds the key encrypted, and cannot open it without the token and its PIN."
            }
            (Self::Envelope, Attacker::RunningMachine) => {
                "can copy the key from memory and sign as this server until the key is replaced: replace it after any break-in."
            }
            (Self::Envelope, Attacker::Token) => {
                "needs its PIN and the disk too; with all three, has the key."
            }
            (Self::Software, Attacker::Disk) => "has the key.",
            (Self::Software, Attacker::RunningMachine) => {
                "has the key, and signs as this server until the key is replaced."
            }
            (Self::Software, Attacker::Token) => "takes nothing: there is none.",
        }
    }

    /// The name, the meaning, and what each attacker gets: one line each.
    #[must_use]
    pub fn explained(self) -> Vec<String> {
        let mut lines = vec![format!("{self}: {}", self.meaning())];
        lines
            .extend(Attacker::ALL.map(|attacker| format!("{attacker} {}", self.against(attacker))));
        lines
    }
}

impl Attacker {
    /// Every attacker.
    pub const ALL: [Self; 3] = [Self::Disk, Self::RunningMachine, Self::Token];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The subject of the sentence that [`Mode::against`] completes.
impl fmt::Display for Attacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "Who takes the disk",
            Self::RunningMachine => "Who takes over the running box",
            Self::Token => "Who takes the token",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor;

    #[test]
    fn cards_say_a_mode_as_a_small_number() {
        for (mode, byte) in Mode::ALL.into_iter().zip(1..) {
            assert_eq!(cbor::to_bytes(&mode).unwrap(), [byte]);
            assert_eq!(cbor::from_bytes::<Mode>(&[byte]).unwrap(), mode);
        }
        assert!(cbor::from_bytes::<Mode>(&[0]).is_err());
        assert!(cbor::from_bytes::<Mode>(&[4]).is_err());
    }

    #[test]
    fn every_attack_has_its_own_answer() {
        let mut sentences: Vec<_> = Mode::ALL.into_iter().flat_map(Mode::explained).collect();
        assert_eq!(sentences.len(), 12);
        assert!(sentences.iter().all(|sentence| sentence.ends_with('.')), "{sentences:?}");
        sentences.sort();
        sentences.dedup();
        assert_eq!(sentences.len(), 12);
    }
}
