//! Reading several rooms together, the newest event first.

use std::collections::{BTreeMap, BinaryHeap};

use sallyport_core::limits::MERGE_SLICE_EVENTS;
use sallyport_store::{Error, Room, StoredEvent};

/// The events of several rooms, the newest first. A room is read when its turn may have come.
pub struct Merge<'r, F> {
    /// Reads events of a room before a position, the newest first, at most so many.
    fetch: F,
    /// The rooms by the position that their next event has at most.
    turns: BinaryHeap<(i64, i64)>,
    rooms: BTreeMap<i64, Turn<'r>>,
}

/// A room with the events of it that have been read and not told, the oldest first.
struct Turn<'r> {
    room: &'r Room,
    slice: Vec<StoredEvent>,
}

impl<'r, F> Merge<'r, F>
where
    F: Fn(&Room, i64, usize) -> Result<Vec<StoredEvent>, Error>,
{
    /// Begins before a position, or at the newest event.
    pub fn new(rooms: impl Iterator<Item = &'r Room>, before: Option<i64>, fetch: F) -> Self {
        let rooms: BTreeMap<_, _> =
            rooms.map(|room| (room.nid, Turn { room, slice: Vec::new() })).collect();
        let end = before.map_or(i64::MAX, |before| before.saturating_sub(1));
        let turns = rooms.iter().map(|(nid, turn)| (turn.room.newest.min(end), *nid)).collect();
        Self { fetch, turns, rooms }
    }

    /// Whether there is certainly no other event.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.turns.is_empty()
    }

    /// The next event, with its room.
    ///
    /// # Errors
    /// If the database fails.
    pub fn advance(&mut self) -> Result<Option<(&'r Room, StoredEvent)>, Error> {
        while let Some((at, nid)) = self.turns.pop() {
            let Some(Turn { room, slice }) = self.rooms.get_mut(&nid) else { continue };
            if slice.is_empty() {
                *slice = (self.fetch)(room, at.saturating_add(1), MERGE_SLICE_EVENTS)?;
                slice.reverse();
            }
            let Some(event) = slice.pop() else { continue };
            let position = event.position.unwrap_or(i64::MIN);
            if position < at {
                // Another room may have a newer one.
                slice.push(event);
                self.turns.push((position, nid));
            } else {
                self.turns.push((position.saturating_sub(1), nid));
                return Ok(Some((room, event)));
            }
        }
        Ok(None)
    }
}
