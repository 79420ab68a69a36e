//! Users whom a member does not want to hear from.
//!
//! [Ignoring users](https://spec.matrix.org/v1.19/client-server-api/#ignoring-users). What they do to the state of a room stays
//! visible: without it nobody could follow the room.

use std::collections::{BTreeMap, BTreeSet};

use ruma::UserId;
use sallyport_store::{Error as StoreError, Read, StoredEvent};
use serde::{Deserialize, de::IgnoredAny};

/// The type of the account data that names them.
const ACCOUNT_DATA_TYPE: &str = "m.ignored_user_list";

/// Whom a member ignores.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ignored(BTreeSet<String>);

impl Ignored {
    /// Reads whom a member ignores. A list that is malformed names nobody.
    ///
    /// # Errors
    /// If the database fails.
    pub fn by(read: &Read<'_>, user_id: &UserId) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct Content {
            ignored_users: BTreeMap<String, IgnoredAny>,
        }
        let stored = read.account_data(user_id, None, ACCOUNT_DATA_TYPE)?;
        let content = stored.and_then(|json| serde_json::from_str::<Content>(&json).ok());
        let mut users: BTreeSet<String> =
            content.map(|content| content.ignored_users.into_keys().collect()).unwrap_or_default();
        // Nobody can lose sight of what they say themselves.
        users.remove(user_id.as_str());
        Ok(Self(users))
    }

    /// Whether an event is one that the member does not want to see.
    #[must_use]
    pub fn hides(&self, event: &StoredEvent) -> bool {
        event.pdu.state_key().is_none() && self.names(event.pdu.sender())
    }

    /// Whether a user is ignored.
    #[must_use]
    pub fn names(&self, user_id: &UserId) -> bool {
        self.0.contains(user_id.as_str())
    }
}
