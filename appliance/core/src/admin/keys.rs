//! Orders about the box's own keys: rotation, hand-over to another token, destruction.

use serde::{Deserialize, Serialize};

use super::Backlog;
use crate::{
    custody::Mode,
    digest::Sha256,
    sign::{KeyRole, PublicKey},
    time::Millis,
};

/// The keys of a box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// All of them, the current one of each role first.
    pub keys: Vec<KeyState>,
    /// What the token can do, in words; empty until it was open once.
    pub abilities: Vec<String>,
    /// What waits for the token.
    pub backlog: Backlog,
    /// How many officers must approve an order about keys.
    pub approvals_needed: u8,
    /// The life of the database, which approvals name.
    pub incarnation: String,
}

/// A key of the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyState {
    /// The token's name of it, with its role: `event:0123456789abcdef`.
    pub name: String,
    /// The public half.
    pub public: PublicKey,
    /// When it was made or adopted.
    pub created: Millis,
    /// When another one took its place.
    pub retired: Option<Millis>,
    /// When its private half was destroyed, found to be lost, or left behind in another token.
    pub destroyed: Option<Millis>,
    /// Where the private half lives; `None` if it is no more, or the token does not say.
    pub custody: Option<Mode>,
    /// The token's key that wraps the private half of the hybrid key (X-Wing) which goes with this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hybrid: Option<String>,
}

impl KeyState {
    /// SHA-256 of the public key's text form, for protocols on paper.
    #[must_use]
    pub fn fingerprint(&self) -> Sha256 {
        Sha256::of(self.public.to_string().as_bytes())
    }
}

/// An order about keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOrder {
    /// What is to be done.
    pub action: KeyAction,
    /// The private half of the old key is gone for good, and its token cannot help.
    #[serde(default)]
    pub old_is_lost: bool,
    /// Only say what would happen.
    #[serde(default)]
    pub plan: bool,
}

/// What is to be done with keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum KeyAction {
    /// Make a new key of a role in the token and retire the old one.
    Rotate {
        /// The role.
        role: KeyRole,
    },
    /// Go on with the keys of another token.
    HandOver {
        /// One of each role.
        keys: Vec<NewKey>,
    },
    /// Destroy the private half of a key that was retired.
    Destroy {
        /// The key.
        name: String,
    },
}

impl KeyAction {
    /// What it is done to, for the audit log when it fails.
    #[must_use]
    pub fn subject(&self) -> &str {
        match self {
            Self::Rotate { role } => role.as_str(),
            Self::HandOver { .. } => "",
            Self::Destroy { name } => name,
        }
    }

    /// The action in the audit log and in approvals.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Rotate { .. } => "key.rotate",
            Self::HandOver { .. } => "key.hand-over",
            Self::Destroy { .. } => "key.destroy",
        }
    }
}

/// A key that another token made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// That token's name of it.
    pub name: String,
    /// The public half.
    pub public: PublicKey,
}

/// What an order about keys did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyReport {
    /// Step by step, in sentences.
    pub steps: Vec<String>,
    /// The keys that are new.
    pub made: Vec<KeyState>,
    /// The keys that were in their place, as they were.
    pub ended: Vec<KeyState>,
    /// How many officers must approve.
    pub approvals_needed: u8,
    /// What each of them types.
    pub approve_command: String,
}
