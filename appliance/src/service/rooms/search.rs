//! Searching for a text in the rooms that a user is in.
//!
//! [Server side search](https://spec.matrix.org/v1.19/client-server-api/#server-side-search). There is no index: the newest
//! events are read until enough are found, at most [`SEARCH_EVENTS_MAX`]. What is encrypted only clients can search.

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId, UserId,
    api::client::{filter::RoomEventFilter, search::search_events::v3::SearchKeys},
    events::TimelineEventType,
};
use sallyport_core::limits::{
    PREDECESSORS_MAX, SEARCH_EVENTS_MAX, SEARCH_RESULTS_MAX, SEARCH_TERM_BYTES_MAX,
};
use sallyport_store::{Error as StoreError, Read, StoredEvent};

use super::{
    Error,
    access::{Eyes, Glimpse, look},
    membership::joined_rooms,
    merge::Merge,
    succession::predecessor,
    timeline::{Page, PageQuery, page},
};
use crate::service::sync::filter::passes;

/// What is looked for.
#[derive(Debug, Clone)]
pub struct TextQuery<'a> {
    /// Words that a text must contain, all of them.
    pub term: &'a str,
    /// Which texts; all if absent.
    pub keys: Option<&'a [SearchKeys]>,
    /// Which rooms and events.
    pub filter: &'a RoomEventFilter,
    /// Where the last page ended.
    pub before: Option<i64>,
    /// How many at most.
    pub limit: usize,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct TextsFound {
    /// The events with their rooms, the newest first.
    pub events: Vec<(Glimpse, StoredEvent)>,
    /// Where the next page starts; `None` if there is none.
    pub next: Option<i64>,
    /// The words that were looked for.
    pub words: Vec<String>,
}

/// Searches the rooms that a user is joined to, the newest event first.
///
/// # Errors
/// If the term is too long.
pub fn texts(
    read: &Read<'_>,
    user_id: &UserId,
    query: &TextQuery<'_>,
) -> Result<TextsFound, Error> {
    if query.term.len() > SEARCH_TERM_BYTES_MAX {
        return Err(Error::Invalid("the term is too long"));
    }
    let words = query.term.split_whitespace().map(str::to_lowercase).collect();
    let mut found = TextsFound { words, ..TextsFound::default() };
    if found.words.is_empty() {
        return Ok(found);
    }
    let limit = query.limit.clamp(1, SEARCH_RESULTS_MAX);
    // Which rooms is settled here: one that was replaced is searched with its successor.
    let mut filter = query.filter.clone();
    filter.rooms = None;
    let mut glimpses = BTreeMap::new();
    for room_id in rooms(read, user_id, query.filter)? {
        let glimpse = look(read, &room_id, user_id)?;
        glimpses.insert(glimpse.room.nid, glimpse);
    }
    let mut eyes = BTreeMap::new();
    for glimpse in glimpses.values() {
        eyes.insert(glimpse.room.nid, Eyes::new(read, &glimpse.room, user_id)?);
    }
    let searched = glimpses.values().map(|glimpse| &glimpse.room);
    let mut merge =
        Merge::new(searched, query.before, |room, before, limit| read.texts(room, before, limit));
    let mut looked_at = 0;
    while let Some((room, event)) = merge.advance()? {
        looked_at += 1;
        let position = event.position;
        if mentions(&event, query.keys, &found.words)
            && passes(&filter, &event)
            && let (Some(glimpse), Some(eyes)) = (glimpses.get(&room.nid), eyes.get_mut(&room.nid))
            && eyes.see(&event)?
        {
            found.events.push((glimpse.clone(), event));
        }
        if found.events.len() == limit || looked_at == SEARCH_EVENTS_MAX {
            found.next = position.filter(|_| !merge.is_exhausted());
            break;
        }
    }
    Ok(found)
}

/// What surrounds an event that was found.
///
/// # Errors
/// If the database fails.
pub fn surroundings(
    read: &Read<'_>,
    glimpse: &Glimpse,
    user_id: &UserId,
    event: &StoredEvent,
    (before, after): (usize, usize),
) -> Result<(Page, Page), StoreError> {
    use sallyport_store::Direction::{Backward, Forward};
    let at = event.position.unwrap_or(i64::MIN);
    let filter = RoomEventFilter::default();
    let read_page = |direction, from, limit| {
        if limit == 0 {
            return Ok(Page { events: Vec::new(), start: from, end: Some(from) });
        }
        let query = PageQuery { from: Some(from), to: None, direction, limit, filter: &filter };
        page(read, glimpse, user_id, &query)
    };
    Ok((read_page(Backward, at.saturating_sub(1), before)?, read_page(Forward, at, after)?))
}

/// The rooms to search: those that the filter names, with those that they replaced.
fn rooms(
    read: &Read<'_>,
    user_id: &UserId,
    filter: &RoomEventFilter,
) -> Result<Vec<OwnedRoomId>, StoreError> {
    let joined = joined_rooms(read, user_id)?;
    let Some(named) = &filter.rooms else { return Ok(joined) };
    let mut wanted = Vec::new();
    for room_id in named {
        let mut next = Some(room_id.clone());
        for _ in 0..=PREDECESSORS_MAX {
            let Some(room_id) = next.take().filter(|id| joined.contains(id)) else { break };
            next = predecessor(read, &room_id)?;
            wanted.push(room_id);
        }
    }
    Ok(wanted)
}

/// Whether the text of an event contains all words.
fn mentions(event: &StoredEvent, keys: Option<&[SearchKeys]>, words: &[String]) -> bool {
    let (key, field) = match event.pdu.kind() {
        TimelineEventType::RoomMessage => (SearchKeys::ContentBody, "body"),
        TimelineEventType::RoomName => (SearchKeys::ContentName, "name"),
        TimelineEventType::RoomTopic => (SearchKeys::ContentTopic, "topic"),
        _ => return false,
    };
    if keys.is_some_and(|keys| !keys.contains(&key)) {
        return false;
    }
    let Some(text) = event.pdu.content_field::<String>(field) else { return false };
    let text = text.to_lowercase();
    words.iter().all(|word| text.contains(word))
}
