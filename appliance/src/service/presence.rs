//! Presence: who is there. Kept in memory only: after a restart nobody is, until they say so.
//!
//! [Presence](https://spec.matrix.org/v1.16/client-server-api/#presence).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ruma::{OwnedUserId, UserId, presence::PresenceState};
use sallyport_core::{
    limits::{PRESENCE_MS_MAX, PRESENCE_SWEEP_MS, PRESENCES_MAX, STATUS_BYTES_MAX},
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
    /// When it was last looked for members who went without a word.
    swept: Millis,
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
    pub fn get(&self, user_id: &UserId, now: Millis) -> Option<Presence> {
        self.swept(now).users.get(user_id).cloned()
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
        let mut known = self.swept(now);
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

    /// The number of the newest change.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// What these users have changed since the change `since`, and how those are whom somebody just `met`.
    pub fn changes<'a>(
        &self,
        users: impl IntoIterator<Item = &'a UserId>,
        since: u64,
        met: &BTreeSet<&UserId>,
    ) -> Vec<(OwnedUserId, Presence)> {
        let known = self.lock();
        let changed = users.into_iter().filter_map(|user_id| {
            let presence = known.users.get(user_id)?;
            let is_news = presence.version > since || met.contains(user_id);
            is_news.then(|| (user_id.to_owned(), presence.clone()))
        });
        changed.collect()
    }

    /// What is known, with those offline of whom nothing was heard for long. Each look is at all members, so only for who has the
    /// time of this moment: that of a long-poll's beginning would have them looked at again and again.
    fn swept(&self, now: Millis) -> MutexGuard<'_, Known> {
        let mut known = self.lock();
        let Known { version, users, swept } = &mut *known;
        // Also after a clock that was put back.
        if now.0.abs_diff(swept.0) >= PRESENCE_SWEEP_MS {
            *swept = now;
            for presence in users.values_mut() {
                let is_silent = now.since(presence.active) > Duration::from_millis(PRESENCE_MS_MAX);
                if is_silent && presence.state != PresenceState::Offline {
                    *version += 1;
                    presence.version = *version;
                    presence.state = PresenceState::Offline;
                }
            }
        }
        known
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
        let nobody = BTreeSet::new();
        assert!(presences.set(alice, PresenceState::Online, Some("here"), Millis(1)));
        let seen = presences.changes([alice, bob], 0, &nobody);
        let version = presences.version();
        assert_eq!(seen.len(), 1);
        assert!(!presences.set(alice, PresenceState::Online, None, Millis(2)));
        assert_eq!(presences.version(), version);
        assert_eq!(presences.changes([alice, bob], version, &nobody), []);
        assert!(presences.set(alice, PresenceState::Online, Some(""), Millis(3)));
        let seen = presences.changes([alice], version, &nobody);
        assert_eq!(seen[0].1.status, None);
        assert_eq!(presences.get(alice, Millis(3)).unwrap().active, Millis(3));
        assert_eq!(presences.get(bob, Millis(3)), None);
    }

    #[test]
    fn how_somebody_is_who_was_just_met_is_news() {
        let presences = Presences::default();
        let (alice, bob) = (user_id!("@alice:alpha.test"), user_id!("@bob:alpha.test"));
        presences.set(alice, PresenceState::Online, None, Millis(1));
        let version = presences.version();
        let met = presences.changes([alice, bob], version, &[alice, bob].into());
        assert_eq!(met.len(), 1);
        assert_eq!(met[0].0, alice);
    }

    #[test]
    fn who_goes_without_a_word_is_offline_after_a_while() {
        let presences = Presences::default();
        let alice = user_id!("@alice:alpha.test");
        presences.set(alice, PresenceState::Unavailable, Some("lunch"), Millis(1));
        let version = presences.version();
        let in_time = Millis(PRESENCE_MS_MAX);
        assert_eq!(presences.get(alice, in_time).unwrap().state, PresenceState::Unavailable);
        let later = Millis(PRESENCE_MS_MAX + PRESENCE_SWEEP_MS);
        assert_eq!(presences.get(alice, later).unwrap().state, PresenceState::Offline);
        assert_eq!(presences.version(), version + 1);
        let seen = presences.changes([alice], version, &BTreeSet::new());
        assert_eq!(seen[0].1.state, PresenceState::Offline);
        assert_eq!(seen[0].1.status.as_deref(), Some("lunch"));
        // Told once, and back with the next word.
        let much_later = Millis(later.0 * 2);
        assert_eq!(presences.get(alice, much_later).unwrap().state, PresenceState::Offline);
        assert_eq!(presences.version(), version + 1);
        assert!(presences.set(alice, PresenceState::Online, None, much_later));
    }
}
