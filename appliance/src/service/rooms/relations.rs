//! Events that relate to an event, and a room's threads.

use ruma::{EventId, OwnedEventId, RoomId, UserId};
use sallyport_core::limits::{PAGE_EVENTS_MAX, RELATIONS_DEPTH_MAX};
use sallyport_store::{Direction, Error as StoreError, Read, RelationQuery, Room, StoredEvent};
use serde::Deserialize;

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
    /// Whether to follow relations of relations.
    pub recurse: bool,
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
            depth: if wanted.recurse { RELATIONS_DEPTH_MAX } else { 1 },
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

/// How an event relates to another.
#[derive(Debug, Clone, Deserialize)]
pub struct Relation {
    /// Relation type.
    pub rel_type: String,
    /// The other event.
    pub event_id: OwnedEventId,
}

/// What an event relates to, if it does.
#[must_use]
pub fn relation(event: &StoredEvent) -> Option<Relation> {
    // Looked for in the text first: most events relate to nothing, and parsing costs more.
    let may_relate = event.pdu.content().get().contains("\"m.relates_to\"");
    may_relate.then(|| event.pdu.content_field("m.relates_to")).flatten()
}

/// The root of the thread that an event is in: it says so itself, or relates to one that does
/// ([threading](https://spec.matrix.org/v1.19/client-server-api/#threading)).
///
/// # Errors
/// If the database fails.
pub fn thread_root(
    read: &Read<'_>,
    event: &StoredEvent,
) -> Result<Option<OwnedEventId>, StoreError> {
    let mut relation = relation(event);
    for _ in 0..RELATIONS_DEPTH_MAX {
        match relation {
            Some(Relation { rel_type, event_id }) if rel_type == "m.thread" => {
                return Ok(Some(event_id));
            }
            Some(Relation { event_id, .. }) => {
                relation = read.event(&event_id)?.as_ref().and_then(self::relation);
            }
            None => return Ok(None),
        }
    }
    Ok(None)
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
