//! Who is typing where: in memory only, and only for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use sallyport_core::{limits::TYPING_USERS_MAX, time::Millis};

/// Rooms where nobody types any more that are remembered, so that clients hear that it ended.
const QUIET_ROOMS_KEPT: usize = 4096;

/// Who is typing.
pub struct Typing(Mutex<State>);

struct State {
    /// Counts the changes; sync tokens carry it.
    counter: u64,
    rooms: BTreeMap<OwnedRoomId, TypingRoom>,
}

#[derive(Default)]
struct TypingRoom {
    changed: u64,
    until: BTreeMap<OwnedUserId, Millis>,
}

impl Typing {
    /// Nobody types. The count goes on from a time, so that it never repeats what a token of before a restart says.
    #[must_use]
    pub fn starting_at(now: Millis) -> Self {
        Self(Mutex::new(State { counter: now.0, rooms: BTreeMap::new() }))
    }

    /// How many changes there were.
    pub fn counter(&self) -> u64 {
        self.lock().counter
    }

    /// Who types in a room, if that changed after `since` changes.
    pub fn changed_since(&self, room_id: &RoomId, since: u64) -> Option<Vec<OwnedUserId>> {
        let state = self.lock();
        // A token of a clock that ran ahead: better to say it once too often.
        let since = if since > state.counter { 0 } else { since };
        let room = state.rooms.get(room_id).filter(|room| room.changed > since)?;
        Some(room.until.keys().cloned().collect())
    }

    /// Rooms in which somebody started or stopped after `since` changes.
    pub fn rooms_changed_since(&self, since: u64) -> BTreeSet<OwnedRoomId> {
        let state = self.lock();
        let changed = state.rooms.iter().filter(|(_, room)| room.changed > since);
        changed.map(|(room_id, _)| room_id.clone()).collect()
    }

    /// A member types until then, or has stopped. Answers whether who types has changed.
    pub fn set(&self, room_id: &RoomId, user_id: &UserId, until: Option<Millis>) -> bool {
        let mut state = self.lock();
        let next = state.counter + 1;
        let changed = match until {
            Some(until) => {
                let room = state.rooms.entry(room_id.to_owned()).or_default();
                let known = room.until.contains_key(user_id);
                if !known && room.until.len() >= TYPING_USERS_MAX {
                    return false;
                }
                room.until.insert(user_id.to_owned(), until);
                if !known {
                    room.changed = next;
                }
                !known
            }
            None => state.rooms.get_mut(room_id).is_some_and(|room| {
                let known = room.until.remove(user_id).is_some();
                if known {
                    room.changed = next;
                }
                known
            }),
        };
        if changed {
            state.counter = next;
        }
        changed
    }

    /// Forgets those whose time has passed; answers in which rooms.
    pub fn expire(&self, now: Millis) -> Vec<OwnedRoomId> {
        let mut state = self.lock();
        let next = state.counter + 1;
        let mut changed = Vec::new();
        for (room_id, room) in &mut state.rooms {
            let before = room.until.len();
            room.until.retain(|_, until| *until > now);
            if room.until.len() < before {
                room.changed = next;
                changed.push(room_id.clone());
            }
        }
        if !changed.is_empty() {
            state.counter = next;
        }
        if state.rooms.len() > QUIET_ROOMS_KEPT {
            state.rooms.retain(|_, room| !room.until.is_empty());
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    #[test]
    fn typing_starts_stops_and_expires_and_each_is_told_once() {
        let typing = Typing::starting_at(Millis(100));
        let (room, alice) = (room_id!("!room:alpha.test"), user_id!("@alice:alpha.test"));
        assert_eq!(typing.changed_since(room, 0), None);

        assert!(typing.set(room, alice, Some(Millis(200))));
        assert!(!typing.set(room, alice, Some(Millis(300))));
        assert_eq!(typing.changed_since(room, 100), Some(vec![alice.to_owned()]));
        assert_eq!(typing.changed_since(room, 101), None);

        assert_eq!(typing.expire(Millis(250)), Vec::<OwnedRoomId>::new());
        assert_eq!(typing.expire(Millis(300)), vec![room.to_owned()]);
        assert_eq!(typing.changed_since(room, 101), Some(vec![]));
        assert!(!typing.set(room, alice, None));
        assert_eq!(typing.counter(), 102);
        // From before a restart, by a clock that was ahead.
        assert_eq!(typing.changed_since(room, 1_000_000), Some(vec![]));
    }
}
