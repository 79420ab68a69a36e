//! Events: what happened in rooms, in arrival order.

use std::sync::Arc;

use ruma::OwnedEventId;
use sallyport_core::event::Pdu;

use crate::cache::Cache;

/// Parsed events that readers have asked for. An event never changes once stored.
pub(crate) struct EventCache {
    pub(crate) pdus: Cache<OwnedEventId, Arc<Pdu>>,
}

impl Default for EventCache {
    fn default() -> Self {
        Self { pdus: Cache::new(4096) }
    }
}
