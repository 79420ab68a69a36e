//! Reading the timeline: pages, single events, and what surrounds an event.

use ruma::{
    EventId, RoomId, UserId,
    api::client::filter::{LazyLoadOptions, RoomEventFilter},
    events::StateEventType,
};
use sallyport_core::{
    limits::{FILTERED_EVENTS_MAX, PAGE_EVENTS_MAX},
    time::Millis,
};
use sallyport_store::{Direction, Error as StoreError, Read, Room, StoredEvent};

use super::{
    Error,
    access::{Eyes, Glimpse, look},
};
use crate::service::sync::filter::passes;

/// Which page of a timeline is asked for. A position stands between events: those up to it are before it.
#[derive(Debug, Clone)]
pub struct PageQuery<'a> {
    /// Where to start; from the end that the direction comes from if absent.
    pub from: Option<i64>,
    /// Where to stop.
    pub to: Option<i64>,
    /// Which way to read.
    pub direction: Direction,
    /// How many events at most.
    pub limit: usize,
    /// Which events.
    pub filter: &'a RoomEventFilter,
}

/// A page of a timeline.
#[derive(Debug, Clone)]
pub struct Page {
    /// The events, in the order that they were asked in.
    pub events: Vec<StoredEvent>,
    /// Where the page starts.
    pub start: i64,
    /// Where the next one starts; `None` if there is none.
    pub end: Option<i64>,
}

/// Reads a page of what a user may see.
///
/// # Errors
/// If the database fails.
pub fn page(
    read: &Read<'_>,
    glimpse: &Glimpse,
    user_id: &UserId,
    query: &PageQuery<'_>,
) -> Result<Page, StoreError> {
    let mut eyes = Eyes::new(read, &glimpse.room, user_id)?;
    let limit = query.limit.clamp(1, PAGE_EVENTS_MAX);
    let start = match query.direction {
        Direction::Backward => query.from.unwrap_or(i64::MAX - 1).min(glimpse.end()),
        Direction::Forward => query.from.unwrap_or(i64::MIN),
    };
    let (mut at, mut looked_at) = (start, 0);
    let mut events = Vec::new();
    loop {
        let (after, before) = match query.direction {
            Direction::Backward => (query.to.unwrap_or(i64::MIN), at.saturating_add(1)),
            Direction::Forward => {
                (at, query.to.unwrap_or(i64::MAX - 1).min(glimpse.end()).saturating_add(1))
            }
        };
        let wanted = limit - events.len();
        let found = read.timeline(&glimpse.room, after, before, query.direction, wanted)?;
        let exhausted = found.len() < wanted;
        looked_at += found.len();
        if let Some(last) = found.last().and_then(|event| event.position) {
            at = match query.direction {
                Direction::Backward => last.saturating_sub(1),
                Direction::Forward => last,
            };
        }
        for event in found {
            if passes(query.filter, &event) && eyes.see(&event)? {
                events.push(event);
            }
        }
        if exhausted {
            return Ok(Page { events, start, end: None });
        }
        if events.len() >= limit || looked_at >= FILTERED_EVENTS_MAX {
            return Ok(Page { events, start, end: Some(at) });
        }
    }
}

/// One event that a user may see.
///
/// # Errors
/// [`Error::NotFound`] if there is none such.
pub fn event(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
    event_id: &EventId,
) -> Result<(Room, StoredEvent), Error> {
    const NOT_FOUND: Error = Error::NotFound("there is no such event, or you may not see it");
    let glimpse = look(read, room_id, user_id)?;
    let event = read.event(event_id)?.ok_or(NOT_FOUND)?;
    // Without a position it is one that clients never see, or state of before the room was taken over.
    let visible = event.pdu.room_id() == room_id
        && event.status == sallyport_core::event::Status::Accepted
        && Eyes::new(read, &glimpse.room, user_id)?.see(&event)?;
    if visible { Ok((glimpse.room, event)) } else { Err(NOT_FOUND) }
}

/// An event with what surrounds it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The room.
    pub room: Room,
    /// The event.
    pub event: StoredEvent,
    /// What was before it, the nearest first.
    pub before: Page,
    /// What came after it, the nearest first.
    pub after: Page,
    /// The state at the last of these events.
    pub state: Vec<StoredEvent>,
}

/// Reads what surrounds an event.
///
/// # Errors
/// If the user may not see the event.
pub fn context(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
    event_id: &EventId,
    limit: usize,
    filter: &RoomEventFilter,
) -> Result<Surroundings, Error> {
    let (room, event) = event(read, room_id, user_id, event_id)?;
    let glimpse = look(read, room_id, user_id)?;
    let at = event.position.ok_or(Error::NotFound("the event has no place in the timeline"))?;
    let query =
        |direction, from, limit| PageQuery { from: Some(from), to: None, direction, limit, filter };
    let limit = limit.min(PAGE_EVENTS_MAX);
    let empty = |start| Page { events: Vec::new(), start, end: Some(start) };
    let before = match limit / 2 {
        0 => empty(at.saturating_sub(1)),
        half => {
            page(read, &glimpse, user_id, &query(Direction::Backward, at.saturating_sub(1), half))?
        }
    };
    let after = match limit - limit / 2 {
        0 => empty(at),
        half => page(read, &glimpse, user_id, &query(Direction::Forward, at, half))?,
    };
    let last = after.events.last().unwrap_or(&event);
    let state = match last.state_after {
        Some(state) => {
            let senders = before.events.iter().chain([&event]).chain(&after.events);
            state_for(read, state, filter, senders)?
        }
        None => Vec::new(),
    };
    Ok(Surroundings { room, event, before, after, state })
}

/// The state to send along with a page of `/context`: with lazy loading only the members who speak in it.
fn state_for<'e>(
    read: &Read<'_>,
    state: sallyport_core::room::StateId,
    filter: &RoomEventFilter,
    events: impl Iterator<Item = &'e StoredEvent>,
) -> Result<Vec<StoredEvent>, StoreError> {
    let senders: std::collections::BTreeSet<_> =
        events.map(|event| event.pdu.sender().as_str()).collect();
    let lazy = matches!(filter.lazy_load_options, LazyLoadOptions::Enabled { .. });
    let map = read.state_map(state)?;
    let wanted = map.iter().filter(|((kind, key), _)| {
        !lazy || *kind != StateEventType::RoomMember || senders.contains(key.as_str())
    });
    read.events(wanted.map(|(_, event_id)| event_id.clone()))
}

/// Member events of those who speak in a page.
///
/// # Errors
/// If the database fails.
pub fn speakers(
    read: &Read<'_>,
    glimpse: &Glimpse,
    events: &[StoredEvent],
) -> Result<Vec<StoredEvent>, StoreError> {
    let senders: std::collections::BTreeSet<&UserId> =
        events.iter().map(|event| event.pdu.sender()).collect();
    let mut members = Vec::new();
    for sender in senders {
        members.extend(read.state_event_at(
            &glimpse.room,
            glimpse.state,
            &StateEventType::RoomMember,
            sender.as_str(),
        )?);
    }
    Ok(members)
}

/// The event nearest to a time that a user may see.
///
/// # Errors
/// [`Error::NotFound`] if there is none.
pub fn event_near(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
    time: Millis,
    direction: Direction,
) -> Result<StoredEvent, Error> {
    let glimpse = look(read, room_id, user_id)?;
    let event = read
        .event_near(&glimpse.room, time, direction)?
        .filter(|event| event.position.is_some_and(|position| position <= glimpse.end()))
        .ok_or(Error::NotFound("there is no event on that side of the time"))?;
    if Eyes::new(read, &glimpse.room, user_id)?.see(&event)? {
        Ok(event)
    } else {
        Err(Error::NotFound("you may not see the event nearest to the time"))
    }
}
