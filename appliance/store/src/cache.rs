//! A small bounded cache for rows that never change once committed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ruma::OwnedEventId;
use sallyport_core::room::{Known, StateId, StateMap};

/// What readers have asked for and what never changes once committed.
pub(crate) struct EventCache {
    /// Events whose place in the room is known, for the rules. What clients see is read from the table, where redactions apply.
    pub(crate) known: Cache<OwnedEventId, Known>,
    pub(crate) states: Cache<StateId, Arc<StateMap>>,
}

impl Default for EventCache {
    fn default() -> Self {
        Self { known: Cache::new(4096), states: Cache::new(64) }
    }
}

/// A bounded map with second-chance eviction: what was asked for since the last sweep stays.
///
/// Only immutable rows may be kept here, and only readers fill it: the writer would put rows into it that a rollback removes.
pub(crate) struct Cache<K, V> {
    entries: Mutex<BTreeMap<K, Entry<V>>>,
    capacity: usize,
}

struct Entry<V> {
    value: V,
    used: bool,
}

impl<K: Ord + Clone, V: Clone> Cache<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { entries: Mutex::new(BTreeMap::new()), capacity }
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        let mut entries = self.entries.lock().ok()?;
        let entry = entries.get_mut(key)?;
        entry.used = true;
        Some(entry.value.clone())
    }

    pub(crate) fn insert(&self, key: K, value: V) {
        let Ok(mut entries) = self.entries.lock() else { return };
        if entries.len() >= self.capacity {
            entries.retain(|_, entry| std::mem::take(&mut entry.used));
            // Everything was in use: start again rather than grow.
            if entries.len() >= self.capacity {
                entries.clear();
            }
        }
        entries.insert(key, Entry { value, used: false });
    }
}

#[cfg(test)]
mod tests {
    use super::Cache;

    #[test]
    fn keeps_what_is_used_and_stays_within_its_capacity() {
        let cache = Cache::new(3);
        for key in 0..3 {
            cache.insert(key, key * 10);
        }
        assert_eq!(cache.get(&1), Some(10));
        cache.insert(3, 30);
        assert_eq!(cache.get(&1), Some(10));
        assert_eq!(cache.get(&0), None);
        assert_eq!(cache.get(&3), Some(30));
        for key in 4..100 {
            cache.insert(key, key);
            cache.get(&key);
        }
        assert!(cache.entries.lock().unwrap().len() <= 3);
    }
}
