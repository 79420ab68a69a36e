//! What is remembered for a while and in memory only, never more of it than a bound.

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sallyport_core::time::Millis;

/// A map whose entries expire. It never holds more than `most`: where it would, those that have not expired go as well.
pub(super) struct Expiring<K, V> {
    entries: Mutex<BTreeMap<K, Entry<V>>>,
    lifetime: Duration,
    most: usize,
}

struct Entry<V> {
    value: V,
    expires: Millis,
}

impl<K: Ord, V: Clone> Expiring<K, V> {
    /// An empty map, whose entries live for `lifetime`.
    pub(super) const fn new(lifetime: Duration, most: usize) -> Self {
        Self { entries: Mutex::new(BTreeMap::new()), lifetime, most }
    }

    /// Remembers a value from now on.
    pub(super) fn insert(&self, key: K, value: V, now: Millis) {
        let mut entries = self.lock();
        if entries.len() >= self.most {
            entries.retain(|_, entry| now < entry.expires);
        }
        if entries.len() >= self.most {
            entries.clear();
        }
        entries.insert(key, Entry { value, expires: now.plus(self.lifetime) });
    }

    /// The value, if it has not expired.
    pub(super) fn get<Q: Ord + ?Sized>(&self, key: &Q, now: Millis) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entries = self.lock();
        entries.get(key).filter(|entry| now < entry.expires).map(|entry| entry.value.clone())
    }

    /// Forgets a value.
    pub(super) fn remove<Q: Ord + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Entry<V>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(1);

    #[test]
    fn a_value_lives_for_its_time_or_until_it_is_removed() {
        let (map, now) = (Expiring::new(LIFETIME, 2), Millis(1_000));
        map.insert("a", 1, now);
        assert_eq!(map.get("a", Millis(1_999)), Some(1));
        assert_eq!(map.get("a", Millis(2_000)), None);
        map.remove("a");
        assert_eq!(map.get("a", now), None);
    }

    #[test]
    fn what_expired_makes_room_first() {
        let map = Expiring::new(LIFETIME, 2);
        map.insert("old", 1, Millis(0));
        map.insert("young", 2, Millis(900));
        map.insert("new", 3, Millis(1_000));
        assert_eq!(map.get("young", Millis(1_000)), Some(2));
        map.insert("newer", 4, Millis(1_000));
        assert_eq!(map.get("young", Millis(1_000)), None);
        assert_eq!(map.lock().len(), 1);
    }
}
