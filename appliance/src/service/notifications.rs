//! What a member was notified of: the newest events of their rooms that their push rules make a noise about.
//!
//! [Listing notifications](https://spec.matrix.org/v1.19/client-server-api/#listing-notifications). Nothing is kept for it: the
//! rules are asked again, as they are now.

use std::collections::{BTreeMap, btree_map::Entry};

use ruma::{
    UserId,
    push::{Action, PushConditionRoomCtx},
};
use sallyport_core::limits::{NOTIFICATION_EVENTS_MAX, NOTIFICATIONS_MAX};
use sallyport_store::{Direction, Error as StoreError, Read, Room, StoredEvent};

use super::{
    push_rules::PushRuleError,
    rooms::{membership::joined_rooms, merge::Merge, relations::thread_root},
    sync::unread::{ReadTo, Rules, actions, context, joined_at},
};

/// Which notifications are asked for.
#[derive(Debug, Clone, Copy)]
pub struct NotificationQuery {
    /// Where the last page ended.
    pub before: Option<i64>,
    /// How many at most.
    pub limit: usize,
    /// Only those that name the member or a keyword of theirs.
    pub highlights_only: bool,
}

/// An event that a member was notified of.
#[derive(Debug, Clone)]
pub struct Notification {
    /// Its room.
    pub room: Room,
    /// The event.
    pub event: StoredEvent,
    /// What the rules say to do about it.
    pub actions: Vec<Action>,
    /// Whether the member has read it.
    pub read: bool,
}

/// A page of notifications.
#[derive(Debug, Clone, Default)]
pub struct Notifications {
    /// The notifications, the newest first.
    pub notifications: Vec<Notification>,
    /// Where the next page starts; `None` if there is none.
    pub next: Option<i64>,
}

/// Lists what a member was notified of, the newest first.
///
/// # Errors
/// If their push rules are damaged, or the database fails.
pub fn list(
    read: &Read<'_>,
    user_id: &UserId,
    query: NotificationQuery,
) -> Result<Notifications, PushRuleError> {
    let rules = Rules::of(read, user_id)?;
    let limit = query.limit.clamp(1, NOTIFICATIONS_MAX);
    let mut rooms = Vec::new();
    for room_id in joined_rooms(read, user_id)? {
        rooms.extend(read.room(&room_id)?);
    }
    let mut merge = Merge::new(rooms.iter(), query.before, |room, before, limit| {
        read.timeline(room, i64::MIN, before, Direction::Backward, limit)
    });
    let mut listeners: BTreeMap<i64, Listener> = BTreeMap::new();
    let mut page = Notifications::default();
    let mut looked_at = 0;
    while let Some((room, event)) = merge.advance()? {
        looked_at += 1;
        let position = event.position;
        let listener = match listeners.entry(room.nid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Listener::new(read, room, user_id)?),
        };
        if let Some(actions) = listener.hears(&rules, user_id, &event)
            && (!query.highlights_only || actions.iter().any(Action::is_highlight))
        {
            let is_read = listener.has_read(read, &event)?;
            let room = room.clone();
            page.notifications.push(Notification { room, event, actions, read: is_read });
        }
        if page.notifications.len() == limit || looked_at == NOTIFICATION_EVENTS_MAX {
            page.next = position.filter(|_| !merge.is_exhausted());
            break;
        }
    }
    Ok(page)
}

/// A member in one of their rooms.
struct Listener {
    joined_at: i64,
    read_to: ReadTo,
    context: PushConditionRoomCtx,
}

impl Listener {
    fn new(read: &Read<'_>, room: &Room, user_id: &UserId) -> Result<Self, StoreError> {
        Ok(Self {
            joined_at: joined_at(read, room, user_id)?.unwrap_or(i64::MAX),
            read_to: ReadTo::of(read, room, user_id)?,
            context: context(read, room, user_id)?,
        })
    }

    /// What the rules say to do about an event, if it is one to be notified of.
    fn hears(&self, rules: &Rules, user_id: &UserId, event: &StoredEvent) -> Option<Vec<Action>> {
        let is_new = event.position.is_some_and(|position| position > self.joined_at);
        if !is_new || event.pdu.sender() == user_id || rules.ignored.hides(event) {
            return None;
        }
        let actions = actions(&rules.ruleset, event, &self.context);
        actions.iter().any(Action::should_notify).then(|| actions.to_vec())
    }

    fn has_read(&self, read: &Read<'_>, event: &StoredEvent) -> Result<bool, StoreError> {
        let thread = thread_root(read, event)?;
        let read_to = self.read_to.of_thread(thread.as_ref());
        Ok(event.position.is_some_and(|position| position <= read_to))
    }
}
