//! Rosters: the signed lists that say who has an account in an enclave.
//!
//! # How a roster travels
//! 1. The personnel office keeps its list as CSV ([`csv`]) or SCIM 2.0 JSON ([`scim`], RFC 7643 and RFC 7644).
//!    Both become the same [`Roster`]; every problem is reported with its line, the account and what to do.
//! 2. An officer signs the canonical encoding ([`Roster::encode`]) with a key in a token: a [`signed::RosterFile`].
//! 3. The box verifies the file, asks [`Head::admit`] whether it is meant for this enclave and newer than the last
//!    one, and compares it with the accounts that it has ([`diff`]). A human reads the [`Plan`] before it is carried out.
//! 4. New accounts get an [`activation`] code each, to be printed and handed over in person.
//!
//! A `full` roster is the desired state: accounts that it does not name are locked, never deleted, so that no
//! localpart is ever given to a second person. A `delta` roster touches only the accounts that it names.

pub mod activation;
pub mod csv;
pub mod scim;
pub mod signed;

mod account;
mod check;
mod codec;
mod date;
mod draft;
mod plan;
mod problem;

use std::fmt;

use ruma::{OwnedServerName, ServerName};
use serde::{Deserialize, Serialize};

pub use self::{
    account::{Account, AccountState, Clearance, ClearanceKind, Localpart, NotALocalpart},
    codec::NotARoster,
    date::{Date, NotADate},
    plan::{Counts, Current, MassLock, Plan, Step, UnknownLocks, diff},
    problem::{Place, Problem, Problems},
};
use crate::time::Millis;

/// A list of accounts for one enclave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    /// What the list is for.
    pub head: Head,
    /// The accounts, in ascending order of their localparts, each once.
    pub accounts: Vec<Account>,
    /// Accounts that a `delta` roster locks without saying more about them; empty in a `full` one. Ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Localpart>,
}

/// What a roster is for: all but the accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The Matrix server name that the accounts belong to.
    pub enclave: OwnedServerName,
    /// Number of this roster; each roster of an enclave has a higher one than the last.
    pub serial: u64,
    /// Whether the accounts are all that there are.
    pub mode: Mode,
    /// When the roster was made.
    pub issued_at: Millis,
    /// Names of the clearance levels, lowest first. A clearance that is not on it is refused.
    pub levels: Vec<String>,
}

/// Whether a roster names all accounts or only those that change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The desired state: accounts that are absent are locked.
    Full,
    /// Changes: accounts that are absent stay as they are.
    Delta,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Delta => "delta",
        })
    }
}

/// Why a well-formed roster is not for this box now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It belongs to another enclave.
    #[error("the roster is for {theirs}, this box is {ours}: fetch the roster of this enclave")]
    OtherEnclave {
        /// The enclave that the roster names.
        theirs: OwnedServerName,
        /// This box.
        ours: OwnedServerName,
    },
    /// The same or a later roster was imported before.
    #[error(
        "the roster has serial {serial}, but {last} was imported already: ask for a newer roster"
    )]
    Replay {
        /// Serial of the roster.
        serial: u64,
        /// Serial of the last imported one.
        last: u64,
    },
}

impl Head {
    /// Is the roster for the enclave `ours`, and newer than the `last` one imported there?
    ///
    /// # Errors
    /// [`NotAdmitted`] says why not.
    pub fn admit(&self, ours: &ServerName, last: Option<u64>) -> Result<(), NotAdmitted> {
        if self.enclave != ours {
            let theirs = self.enclave.clone();
            return Err(NotAdmitted::OtherEnclave { theirs, ours: ours.to_owned() });
        }
        match last {
            Some(last) if self.serial <= last => {
                Err(NotAdmitted::Replay { serial: self.serial, last })
            }
            _ => Ok(()),
        }
    }

    /// Position of a clearance level on the ladder; a higher one is more trusted.
    #[must_use]
    pub fn rank(&self, level: &str) -> Option<usize> {
        self.levels.iter().position(|name| name == level)
    }
}

#[cfg(test)]
mod tests;
