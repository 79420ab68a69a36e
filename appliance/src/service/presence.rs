//! Presence: who is there. Kept in memory only: after a restart nobody is, until they say so.
//!
//! [Presence](https://spec.matrix.org/v1.16/client-server-api/#presence).

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedUserId, UserId, presence::PresenceState};
use sallyport_core::{
    limits::{PRESENCES_MAX, STATUS_BYTES_MAX},
    time::Millis,
};

/// The presence of members of this box.
#[derive(Default)]
pub struct Presences(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Counts changes, so that a reader sees only those that it has not seen.
    version: u64,
    users: BTreeMap<OwnedUserId, Presence>,
}

/// What a member says about being there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Online, offline or away.
    pub state: PresenceState,
    /// A message for others.
    pub status: Option<String>,
    /// When the member was last active.
    pub active: Millis,
    /// The number of the change.
    pub version: u64,
}

impl Presences {
    /// What is known of a member.
    pub fn get(&self, user_id: &UserId) -> Option<Presence> {
        self.lock().users.get(user_id).cloned()
    }

    /// A member says something else, or the same again: then only the time is noted. Without a `status` the old
    /// one stays; an empty one removes it. Answers whether others should see a change.
    pub fn set(
        &self,
        user_id: &UserId,
        state: PresenceState,
        status: Option<&str>,
        now: Millis,
    ) -> bool {
        let mut known = self.lock();
        let before = known.users.get(user_id).cloned();
        let status = match status {
            Some(text) => {
                let end = text.floor_char_boundary(STATUS_BYTES_MAX);
                text.get(..end).filter(|text| !text.is_empty()).map(ToOwned::to_owned)
            }
            None => before.as_ref().and_then(|before| before.status.clone()),
        };
        let changed =
            before.as_ref().is_none_or(|before| before.state != state || before.status != status);
        if before.is_none() && known.users.len() >= PRESENCES_MAX {
            return false;
        }
        if changed {
            known.version += 1;
        }
        let version = match &before {
            Some(before) if !changed => before.version,
            _ => known.version,
        };
        known.users.insert(user_id.to_owned(), Presence { state, status, active: now, version });
        changed
    }

    /// The number of the newest change, and what these users have changed since the change `since`.
    pub fn changes<'a>(
        &self,
        users: impl IntoIterator<Item = &'a UserId>,
        since: u64,
    ) -> (u64, Vec<(OwnedUserId, Presence)>) {
        let known = self.lock();
        if known.version <= since {
            return (known.version, Vec::new());
        }
        let changed = users.into_iter().filter_map(|user_id| {
            let presence = known.users.get(user_id)?;
            (presence.version > since).then(|| (user_id.to_owned(), presence.clone()))
        });
        let changed = changed.collect();
        (known.version, changed)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn a_reader_sees_each_change_once() {
        let presences = Presences::default();
        let (alice, bob) = (user_id!("@alice:alpha.test"), user_id!("@bob:alpha.test"));
        assert!(presences.set(alice, PresenceState::Online, Some("here"), Millis(1)));
        let (version, seen) = presences.changes([alice, bob], 0);
        assert_eq!(seen.len(), 1);
        assert!(!presences.set(alice, PresenceState::Online, None, Millis(2)));
        assert_eq!(presences.changes([alice, bob], version), (version, Vec::new()));
        assert!(presences.set(alice, PresenceState::Online, Some(""), Millis(3)));
        let (_, seen) = presences.changes([alice], version);
        assert_eq!(seen[0].1.status, None);
        assert_eq!(presences.get(alice).unwrap().active, Millis(3));
        assert_eq!(presences.get(bob), None);
    }
}
