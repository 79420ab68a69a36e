//! Filters: which events a client wants.
//!
//! [Client-Server API, "Filtering"](https://spec.matrix.org/v1.16/client-server-api/#filtering).

use ruma::{
    RoomId, UserId,
    api::client::filter::{Filter, LazyLoadOptions, RoomEventFilter, RoomFilter, UrlFilter},
};
use sallyport_core::limits::{PAGE_EVENTS_MAX, TIMELINE_EVENTS_DEFAULT};
use sallyport_store::StoredEvent;

/// Whether a filter lets an event of a room through.
#[must_use]
pub fn passes(filter: &RoomEventFilter, event: &StoredEvent) -> bool {
    if filter.is_empty() {
        return true;
    }
    let pdu = &event.pdu;
    let has_url = || pdu.content_field::<String>("url").is_some();
    allows_room(filter, pdu.room_id())
        && allows(&filter.types, &filter.not_types, &pdu.kind().to_string())
        && allows_sender(&filter.senders, &filter.not_senders, pdu.sender())
        && match filter.url_filter {
            Some(UrlFilter::EventsWithUrl) => has_url(),
            Some(UrlFilter::EventsWithoutUrl) => !has_url(),
            _ => true,
        }
}

/// Whether a filter lets anything of a room through.
#[must_use]
pub fn allows_room(filter: &RoomEventFilter, room_id: &RoomId) -> bool {
    filter.rooms.as_ref().is_none_or(|rooms| rooms.iter().any(|room| room == room_id))
        && !filter.not_rooms.iter().any(|room| room == room_id)
}

/// Whether a filter lets a room through at all.
#[must_use]
pub fn shows_room(filter: &RoomFilter, room_id: &RoomId) -> bool {
    filter.rooms.as_ref().is_none_or(|rooms| rooms.iter().any(|room| room == room_id))
        && !filter.not_rooms.iter().any(|room| room == room_id)
}

/// Whether a filter lets what is not an event of a timeline through: account data, typing, receipts.
#[must_use]
pub fn allows_kind(filter: &RoomEventFilter, room_id: &RoomId, kind: &str) -> bool {
    allows_room(filter, room_id) && allows(&filter.types, &filter.not_types, kind)
}

/// Whether a filter lets something through that is in no room: account data, presence.
#[must_use]
pub fn allows_global(filter: &Filter, kind: &str, sender: Option<&UserId>) -> bool {
    allows(&filter.types, &filter.not_types, kind)
        && sender.is_none_or(|sender| allows_sender(&filter.senders, &filter.not_senders, sender))
}

/// Whether only the members who speak are to be shown.
#[must_use]
pub fn is_lazy(filter: &RoomEventFilter) -> bool {
    matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. })
}

/// How many events of a timeline a filter asks for.
#[must_use]
pub fn timeline_limit(filter: &RoomEventFilter) -> usize {
    filter
        .limit
        .and_then(|limit| usize::try_from(u64::from(limit)).ok())
        .unwrap_or(TIMELINE_EVENTS_DEFAULT)
        .clamp(1, PAGE_EVENTS_MAX)
}

fn allows(types: &Option<Vec<String>>, not_types: &[String], kind: &str) -> bool {
    types.as_ref().is_none_or(|types| types.iter().any(|pattern| matches(pattern, kind)))
        && !not_types.iter().any(|pattern| matches(pattern, kind))
}

fn allows_sender(
    senders: &Option<Vec<ruma::OwnedUserId>>,
    not_senders: &[ruma::OwnedUserId],
    sender: &UserId,
) -> bool {
    senders.as_ref().is_none_or(|senders| senders.iter().any(|user| user == sender))
        && !not_senders.iter().any(|user| user == sender)
}

/// Whether a pattern, in which `*` stands for any text, describes a whole text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return text.ends_with(part);
        }
        match text.split_once(part) {
            Some((_, after)) => text = after,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("m.room.*", "m.room.message", true),
            ("m.room.*", "m.room.", true),
            ("m.room.*", "m.rooms", false),
            ("*", "", true),
            ("*.message", "m.room.message", true),
            ("*.message", "m.room.messages", false),
            ("m.*.mess*", "m.room.message", true),
            ("m.*.mess*age", "m.room.mess", false),
            ("m.*x*", "m.room", false),
            ("a*a", "a", false),
            ("a**a", "aa", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn limits_are_bounded() {
        let mut filter = RoomEventFilter::default();
        assert_eq!(timeline_limit(&filter), TIMELINE_EVENTS_DEFAULT);
        filter.limit = Some(ruma::uint!(0));
        assert_eq!(timeline_limit(&filter), 1);
        filter.limit = Some(ruma::uint!(1_000_000));
        assert_eq!(timeline_limit(&filter), PAGE_EVENTS_MAX);
    }
}
