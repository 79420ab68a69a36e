//! Who must look again: from a commit to the long-polls and the signer that wait for it.
//!
//! A long-poll registers the rooms that it watches. What a commit costs here depends on those who
//! watch the rooms that it touched, never on how many accounts there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use sallyport_store::Committed;
use tokio::sync::Notify as Bell;

/// Wakes those who wait for news.
#[derive(Default)]
pub struct Notify {
    interests: Mutex<Interests>,
    position: AtomicI64,
    unsigned: Bell,
}

#[derive(Default)]
struct Interests {
    next: u64,
    rooms: BTreeMap<OwnedRoomId, BTreeMap<u64, Arc<Bell>>>,
    users: BTreeMap<OwnedUserId, BTreeMap<u64, Arc<Bell>>>,
}

/// One long-poll's interest in a user and some rooms; it ends when this is dropped.
pub struct Waiter<'n> {
    notify: &'n Notify,
    id: u64,
    bell: Arc<Bell>,
    user_id: OwnedUserId,
    rooms: BTreeSet<OwnedRoomId>,
}

impl Notify {
    /// Registers interest in a user and in rooms. What is announced from now on wakes the waiter,
    /// also if it is not yet waiting.
    pub fn watch(&self, user_id: &UserId, rooms: BTreeSet<OwnedRoomId>) -> Waiter<'_> {
        let bell = Arc::new(Bell::new());
        let mut interests = self.lock();
        let id = interests.next;
        interests.next += 1;
        interests.users.entry(user_id.to_owned()).or_default().insert(id, Arc::clone(&bell));
        for room_id in &rooms {
            let watchers = interests.rooms.entry(room_id.clone()).or_default();
            watchers.insert(id, Arc::clone(&bell));
        }
        Waiter { notify: self, id, bell, user_id: user_id.to_owned(), rooms }
    }

    /// Announces a commit. Called on the writer thread.
    pub fn publish(&self, committed: &Committed) {
        self.position.store(committed.position, Ordering::Release);
        let interests = self.lock();
        for room_id in &committed.rooms {
            ring(interests.rooms.get(room_id));
        }
        for user_id in &committed.users {
            ring(interests.users.get(user_id));
        }
        drop(interests);
        if !committed.unsigned_rooms.is_empty() {
            self.unsigned.notify_one();
        }
    }

    /// Announces something in a room that is not in the database, such as typing.
    pub fn ring_room(&self, room_id: &RoomId) {
        ring(self.lock().rooms.get(room_id));
    }

    /// How many wait for news.
    pub fn waiters(&self) -> usize {
        self.lock().users.values().map(BTreeMap::len).sum()
    }

    /// The newest position that was announced.
    pub fn position(&self) -> i64 {
        self.position.load(Ordering::Acquire)
    }

    /// Has the signer look at once for what there is to do, such as old keys that nobody needs.
    pub fn wake_signer(&self) {
        self.unsigned.notify_one();
    }

    /// Waits until rooms have new events to sign. Also returns for what was announced since the last call.
    pub async fn unsigned(&self) {
        self.unsigned.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Interests> {
        self.interests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter<'_> {
    /// Waits for news; returns at once if there were some since the last call.
    pub async fn news(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut interests = self.notify.lock();
        unregister(&mut interests.users, &self.user_id, self.id);
        for room_id in &self.rooms {
            unregister(&mut interests.rooms, room_id, self.id);
        }
    }
}

fn ring(watchers: Option<&BTreeMap<u64, Arc<Bell>>>) {
    for bell in watchers.into_iter().flat_map(BTreeMap::values) {
        bell.notify_one();
    }
}

fn unregister<K: Ord>(map: &mut BTreeMap<K, BTreeMap<u64, Arc<Bell>>>, key: &K, id: u64) {
    if let Some(watchers) = map.get_mut(key) {
        watchers.remove(&id);
        if watchers.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use ruma::{owned_room_id, owned_user_id};

    use super::*;

    fn has_news(waiter: &Waiter<'_>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(waiter.news()).poll(&mut context) == Poll::Ready(())
    }

    fn committed(rooms: &[OwnedRoomId], users: &[OwnedUserId]) -> Committed {
        Committed {
            position: 7,
            rooms: rooms.iter().cloned().collect(),
            users: users.iter().cloned().collect(),
            ..Committed::default()
        }
    }

    #[test]
    fn only_those_who_watch_are_woken_and_nothing_is_lost_between_polls() {
        let notify = Notify::default();
        let (red, blue) = (owned_room_id!("!red:alpha.test"), owned_room_id!("!blue:alpha.test"));
        let (alice, bob) = (owned_user_id!("@alice:alpha.test"), owned_user_id!("@bob:alpha.test"));
        let of_alice = notify.watch(&alice, BTreeSet::from([red.clone()]));
        let of_bob = notify.watch(&bob, BTreeSet::from([blue.clone()]));
        assert_eq!(notify.waiters(), 2);

        notify.publish(&committed(std::slice::from_ref(&red), &[]));
        assert!(has_news(&of_alice));
        assert!(!has_news(&of_alice));
        assert!(!has_news(&of_bob));
        assert_eq!(notify.position(), 7);

        notify.publish(&committed(&[], &[bob]));
        assert!(!has_news(&of_alice));
        assert!(has_news(&of_bob));

        notify.ring_room(&blue);
        assert!(has_news(&of_bob));

        drop(of_alice);
        drop(of_bob);
        assert_eq!(notify.waiters(), 0);
        let interests = notify.lock();
        assert!(interests.rooms.is_empty() && interests.users.is_empty());
    }
}
