//! One account of a roster.

use std::{collections::BTreeSet, fmt, str::FromStr};

use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Date;
use crate::{digest::Sha256, limits::IDENTIFIER_BYTES_MAX};

/// Everything that a roster says about an account. Two equal values need no change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The part of the user id before the server name.
    pub localpart: Localpart,
    /// Name that other people see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// Unit that the person belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What the person is cleared for, in ascending order.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub clearances: BTreeSet<Clearance>,
    /// Whether the person may use the account.
    pub state: AccountState,
    /// Enclave that the person belongs to when it is not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_enclave: Option<OwnedServerName>,
    /// Earlier account of the person in another enclave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<OwnedUserId>,
    /// Later account of the person in another enclave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<OwnedUserId>,
    /// SHA-256 of the DER of the person's client certificates.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub cert_sha256: BTreeSet<Sha256>,
    /// The personnel office's own key for the person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
}

impl Account {
    /// An active account with nothing but a name.
    #[must_use]
    pub fn new(localpart: Localpart) -> Self {
        Self {
            localpart,
            display_name: None,
            unit: None,
            clearances: BTreeSet::new(),
            state: AccountState::Active,
            home_enclave: None,
            moved_from: None,
            moved_to: None,
            cert_sha256: BTreeSet::new(),
            external_id: None,
        }
    }
}

/// Whether an account may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountState {
    /// The person may log in.
    Active,
    /// Nobody may log in; the account, its rooms and its keys stay.
    Locked,
}

/// What a person is cleared for. Ordered by kind, name and expiry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Clearance {
    /// Level or category.
    pub kind: ClearanceKind,
    /// Name as the roster's ladder of levels, or the rooms' labels, write it.
    pub name: String,
    /// Last day on which it counts; `None` if it does not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Date>,
}

/// The two kinds of clearances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClearanceKind {
    /// A step on the roster's ladder, which includes all lower ones.
    Level,
    /// A category (caveat, compartment), which stands for itself.
    Category,
}

impl fmt::Display for Clearance {
    /// As the CSV writes it: `SECRET until 2027-06-30`, `+ATOMAL`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plus = if self.kind == ClearanceKind::Category { "+" } else { "" };
        write!(f, "{plus}{}", self.name)?;
        match self.until {
            Some(until) => write!(f, " until {until}"),
            None => Ok(()),
        }
    }
}

/// The localpart of a user id that we create: `a-z`, `0-9` and `. _ = - / +`
/// (Matrix specification, appendices, ["User Identifiers"](https://spec.matrix.org/v1.16/appendices/#user-identifiers)).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Localpart(Box<str>);

impl Localpart {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The whole user id on a server; `None` if it is longer than 255 bytes.
    #[must_use]
    pub fn user_id(&self, server: &ServerName) -> Option<OwnedUserId> {
        let user_id = format!("@{self}:{server}");
        if user_id.len() > IDENTIFIER_BYTES_MAX {
            return None;
        }
        UserId::parse(user_id).ok()
    }
}

/// A text that cannot be the localpart of a new user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a localpart: use a-z, 0-9 and . _ = - / +")]
pub struct NotALocalpart;

impl FromStr for Localpart {
    type Err = NotALocalpart;

    fn from_str(text: &str) -> Result<Self, NotALocalpart> {
        let good = !text.is_empty()
            && text.len() <= IDENTIFIER_BYTES_MAX
            && text.bytes().all(|b| {
                matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'=' | b'-' | b'/' | b'+')
            });
        if good { Ok(Self(text.into())) } else { Err(NotALocalpart) }
    }
}

impl fmt::Display for Localpart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Localpart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Localpart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Localpart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
