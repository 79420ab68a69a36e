//! Events that relate to an event, and a room's threads.

use ruma::{EventId, RoomId, UserId};
use sallyport_core::limits::PAGE_EVENTS_MAX;
use sallyport_store::{Direction, Read, RelationQuery, Room, StoredEvent};

use super::{
    Error,
    access::{Eyes, look},
    timeline,
};

/// Which relating events are asked for. Positions stand between events, as for pages of a timeline.
#[derive(Debug, Clone)]
pub struct Relating<'a> {
    /// The room.
    pub room_id: &'a RoomId,
    /// The event that they relate to.
    pub event_id: &'a EventId,
    /// Relation type.
    pub rel_type: Option<&'a str>,
    /// Event type.
    pub kind: Option<&'a str>,
    /// Where to start.
    pub from: Option<i64>,
    /// Where to stop.
    pub to: Option<i64>,
    /// Which way to read.
    pub direction: Direction,
    /// How many at most.
    pub limit: usize,
}

/// Events of a room, and where the next page starts.
#[derive(Debug, Clone)]
pub struct Related {
    /// The room.
    pub room: Room,
    /// The events.
    pub events: Vec<StoredEvent>,
    /// Where the next page starts; `None` if there is none.
    pub next: Option<i64>,
}

/// Events that relate to one that the user may see.
///
/// # Errors
/// If the user may not see the event.
pub fn relating(
    read: &Read<'_>,
    user_id: &UserId,
    wanted: &Relating<'_>,
) -> Result<Related, Error> {
    let (room, _) = timeline::event(read, wanted.room_id, user_id, wanted.event_id)?;
    let limit = wanted.limit.clamp(1, PAGE_EVENTS_MAX);
    let (first, last) = (wanted.from, wanted.to);
    let (after, before) = match wanted.direction {
        Direction::Forward => {
            (first.unwrap_or(i64::MIN), last.map_or(i64::MAX, |to| to.saturating_add(1)))
        }
        Direction::Backward => {
            (last.unwrap_or(i64::MIN), first.map_or(i64::MAX, |from| from.saturating_add(1)))
        }
    };
    let events = read.relations(
        &room,
        &RelationQuery {
            target: wanted.event_id,
            rel_type: wanted.rel_type,
            kind: wanted.kind,
            after,
            before,
            direction: wanted.direction,
            limit,
        },
    )?;
    let last = events.last().and_then(|event| event.position);
    let next = last.filter(|_| events.len() == limit).map(|last| match wanted.direction {
        Direction::Forward => last,
        Direction::Backward => last.saturating_sub(1),
    });
    let events = Eyes::new(read, &room, user_id)?.filter(events)?;
    Ok(Related { room, events, next })
}

/// Roots of a room's threads, those with the newest answers first.
///
/// # Errors
/// If the user may not look into the room.
pub fn threads(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
    participated: bool,
    from: Option<i64>,
    limit: usize,
) -> Result<Related, Error> {
    let room = look(read, room_id, user_id)?.room;
    let limit = limit.clamp(1, PAGE_EVENTS_MAX);
    let before = from.map_or(i64::MAX, |from| from.saturating_add(1));
    let threads = read.threads(&room, before, participated.then_some(user_id), limit)?;
    let next = threads.last().filter(|_| threads.len() == limit);
    let next = next.map(|(newest, _)| newest.saturating_sub(1));
    let roots = read.events(threads.into_iter().map(|(_, event_id)| event_id))?;
    let roots = Eyes::new(read, &room, user_id)?.filter(roots)?;
    Ok(Related { room, events: roots, next })
}
