//! What a sync says of one room.
//!
//! The timeline holds the newest events, `state` what a client must know besides: the room's state
//! where the timeline begins. State that was decided by resolution and that no event of the
//! timeline sets is there too, by the position at which it became current.
//!
//! A client that does not ask for the state after the timeline takes the timeline's events for the
//! state. For it the timeline begins after the last event that state resolution has overruled: it
//! finds what stands before in the room's history, which sets no state.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    OwnedEventId, OwnedUserId, UInt, UserId,
    api::client::{
        filter::{FilterDefinition, RoomEventFilter},
        sync::sync_events::v3::{
            InviteState, InvitedRoom, JoinedRoom, KnockState, KnockedRoom, LeftRoom, RoomSummary,
            State, Timeline,
        },
    },
    events::{
        StateEventType,
        receipt::{Receipt as ReceiptData, ReceiptEventContent, ReceiptThread, ReceiptType},
        room::member::MembershipState,
    },
    serde::Raw,
};
use sallyport_core::{
    incarnation::Incarnation,
    limits::{FILTERED_EVENTS_MAX, RECEIPTS_MAX},
    room::StateId,
};
use sallyport_store::{Direction, Error, Membership, Read, Room, StoredEvent};
use serde_json::json;

use super::{
    filter::{allows_kind, is_lazy, passes, timeline_limit},
    raw,
    token::Token,
    unread::{Counts, Rules, Unread, count},
};
use crate::service::{
    ignored::Ignored,
    rooms::{
        access::{Eyes, last_joined},
        format::{Format, stripped},
    },
    typing::Typing,
};

/// Members that name a room which has no name.
const HEROES: usize = 5;

/// State that tells someone who is invited what they are invited to.
const INVITE_STATE: [StateEventType; 8] = [
    StateEventType::RoomCreate,
    StateEventType::RoomJoinRules,
    StateEventType::RoomName,
    StateEventType::RoomTopic,
    StateEventType::RoomAvatar,
    StateEventType::RoomCanonicalAlias,
    StateEventType::RoomEncryption,
    StateEventType::RoomPowerLevels,
];

/// What a sync says of one room, for one device.
pub(super) struct RoomSync<'a, 'c> {
    pub(super) read: &'a Read<'c>,
    pub(super) room: &'a Room,
    pub(super) format: Format<'a, 'c>,
    pub(super) user_id: &'a UserId,
    pub(super) filter: &'a FilterDefinition,
    pub(super) incarnation: Incarnation,
    /// The last position that the client knows; `None` if it knows nothing of the room.
    pub(super) since: Option<i64>,
    /// Whether the client wants all state again.
    pub(super) full_state: bool,
    /// Whether the client wants the state after the timeline instead of before it.
    pub(super) state_after: bool,
}

/// Entries of the current state that a client does not know.
type Changes = BTreeMap<(StateEventType, String), OwnedEventId>;

/// The newest events of a room.
struct Tail {
    events: Vec<StoredEvent>,
    /// Whether there are more between them and what the client knows.
    limited: bool,
    /// Where they begin.
    start: i64,
}

impl Tail {
    /// Leaves out everything up to the last event that would set a client's state to what it is not.
    fn begin_after_overruled(&mut self, changes: &Changes) {
        let mut decided = BTreeSet::new();
        let overruled = self.events.iter().rposition(|event| {
            let Some(state_key) = event.pdu.state_key() else { return false };
            let key = (StateEventType::from(event.pdu.kind().to_string()), state_key.to_owned());
            // Only the last event for a place in the state counts: a client takes them one after the other.
            let is_current = changes.get(&key).is_some_and(|id| id == event.pdu.event_id());
            decided.insert(key) && !is_current
        });
        if let Some(last) = overruled {
            let kept = self.events.split_off(last.saturating_add(1));
            let left_out = std::mem::replace(&mut self.events, kept);
            self.limited = true;
            self.start = left_out.last().and_then(|event| event.position).unwrap_or(self.start);
        }
    }
}

impl RoomSync<'_, '_> {
    /// A room that the user is joined to. `since_typing` is what the client knows of who types.
    pub(super) fn joined(
        &self,
        typing: &Typing,
        since_typing: u64,
        counts: &Counts,
        rules: &Rules,
        position: i64,
    ) -> Result<JoinedRoom, Error> {
        // Someone who was joined all the while may see all that came, unless it comes from elsewhere,
        // where they may have been no member yet.
        let mut tail =
            self.tail(position, self.since.is_none() || self.room.exposed, &rules.ignored)?;
        let mut joined = JoinedRoom::new();
        let changes = self.changes()?;
        if !self.state_after {
            tail.begin_after_overruled(&changes);
        }
        let members_changed = changes.keys().any(|(kind, _)| *kind == StateEventType::RoomMember);
        if members_changed {
            joined.summary = self.summary()?;
        }
        joined.state = self.state(&tail, changes, &joined.summary.heroes)?;
        joined.timeline = self.timeline(&tail, self.since.is_none())?;
        self.add_ephemeral(&mut joined, typing, since_typing)?;
        let unread = count(counts, self.read, self.room, self.user_id, rules, position)?;
        self.add_unread(&mut joined, unread);
        Ok(joined)
    }

    /// A room that the user has left, or was never in.
    ///
    /// `was_joined` says whether they were in it at `since`. Whoever rejects an invite learns no state.
    pub(super) fn left(
        &self,
        place: &Membership,
        was_joined: bool,
        ignored: &Ignored,
    ) -> Result<LeftRoom, Error> {
        let tail = self.tail(place.position, true, ignored)?;
        let mut left = LeftRoom::new();
        let to = match tail.events.first() {
            Some(first) if !self.state_after => first.state_before,
            _ => self.read.state_at(self.room, place.position)?,
        };
        let state = match self.since {
            // What changed between what the client knows and where the timeline begins.
            Some(since) if was_joined && (tail.limited || self.state_after) => {
                self.difference(self.read.state_at(self.room, since)?, to)?
            }
            Some(_) if was_joined => Vec::new(),
            since => {
                let joined = last_joined(self.read, self.room, self.user_id)?;
                let was_there = joined.is_some_and(|at| since.is_none_or(|since| at > since));
                if was_there { self.difference(None, to)? } else { Vec::new() }
            }
        };
        let state = self.format.state(&state)?;
        left.state =
            if self.state_after { State::After(state.into()) } else { State::Before(state.into()) };
        left.timeline = self.timeline(&tail, false)?;
        Ok(left)
    }

    /// A room that the user is invited to.
    pub(super) fn invited(&self) -> Result<InvitedRoom, Error> {
        Ok(InvitedRoom::from(InviteState::from(self.stripped_state()?)))
    }

    /// A room that the user has knocked on.
    pub(super) fn knocked(&self) -> Result<KnockedRoom, Error> {
        let mut state = KnockState::new();
        state.events = self.stripped_state()?;
        Ok(KnockedRoom::from(state))
    }

    fn stripped_state<T>(&self) -> Result<Vec<Raw<T>>, Error> {
        let mut events = Vec::new();
        for kind in &INVITE_STATE {
            events.extend(self.read.state_event(self.room, kind, "")?);
        }
        let own = self.state_of_member(self.user_id)?;
        if let Some(own) = own {
            if own.pdu.sender() != self.user_id {
                events.extend(self.state_of_member(own.pdu.sender())?);
            }
            events.push(own);
        }
        events.iter().map(stripped).collect()
    }

    fn state_of_member(&self, user_id: &UserId) -> Result<Option<StoredEvent>, Error> {
        self.read.state_event(self.room, &StateEventType::RoomMember, user_id.as_str())
    }

    /// Reads the newest events up to a position that the client does not know.
    fn tail(&self, until: i64, look: bool, ignored: &Ignored) -> Result<Tail, Error> {
        let filter = &self.filter.room.timeline;
        let limit = timeline_limit(filter);
        let after = self.since.unwrap_or(i64::MIN);
        let mut eyes =
            if look { Some(Eyes::new(self.read, self.room, self.user_id)?) } else { None };
        let mut before = until.saturating_add(1);
        let mut events: Vec<StoredEvent> = Vec::new();
        let (mut looked_at, mut limited) = (0, false);
        'pages: loop {
            // One more than wanted tells whether there are more.
            let wanted = limit + 1 - events.len();
            let page = self.read.timeline(self.room, after, before, Direction::Backward, wanted)?;
            let exhausted = page.len() < wanted;
            looked_at += page.len();
            for event in page {
                before = event.position.unwrap_or(before);
                let visible = match &mut eyes {
                    Some(eyes) => eyes.see(&event)?,
                    None => true,
                };
                if visible && !ignored.hides(&event) && passes(filter, &event) {
                    if events.len() == limit {
                        limited = true;
                        break 'pages;
                    }
                    events.push(event);
                }
            }
            if exhausted {
                break;
            }
            if looked_at >= FILTERED_EVENTS_MAX {
                limited = true;
                break;
            }
        }
        let first = events.last().and_then(|event| event.position);
        let start = match first {
            Some(first) => first.saturating_sub(1),
            None if limited => before.saturating_sub(1),
            None => self.since.unwrap_or(until),
        };
        events.reverse();
        Ok(Tail { events, limited, start })
    }

    fn timeline(&self, tail: &Tail, newly: bool) -> Result<Timeline, Error> {
        let mut timeline = Timeline::new();
        timeline.events = self.format.events(&tail.events)?;
        if !tail.events.is_empty() || tail.limited {
            timeline.limited = tail.limited || (newly && !self.begins_with_create(tail));
            timeline.prev_batch = Some(Token::of_page(self.incarnation, tail.start).to_string());
        }
        Ok(timeline)
    }

    /// Whether the whole room is in these events.
    fn begins_with_create(&self, tail: &Tail) -> bool {
        tail.events.first().is_some_and(|event| event.pdu.prev_events().is_empty())
    }

    /// Entries of the current state that the client does not know.
    fn changes(&self) -> Result<Changes, Error> {
        let since = if self.full_state { None } else { self.since };
        let changes = self.read.current_state_changes(self.room, since.unwrap_or(i64::MIN))?;
        Ok(changes.into_iter().map(|(kind, key, event_id)| ((kind, key), event_id)).collect())
    }

    /// The state that goes along with a timeline.
    fn state(&self, tail: &Tail, changes: Changes, heroes: &[OwnedUserId]) -> Result<State, Error> {
        let shown: BTreeSet<_> = tail.events.iter().map(|event| event.pdu.event_id()).collect();
        let knows_nothing = self.since.is_none() || self.full_state;
        let speakers: BTreeSet<&str> =
            tail.events.iter().map(|event| event.pdu.sender().as_str()).collect();
        let lazy = is_lazy(&self.filter.room.state);
        let wanted = |kind: &StateEventType, key: &str| {
            !lazy
                || *kind != StateEventType::RoomMember
                || speakers.contains(key)
                || key == self.user_id.as_str()
                || heroes.iter().any(|hero| hero.as_str() == key)
        };
        let first_state = tail.events.first().and_then(|event| event.state_before);
        let mut events = Vec::new();
        for ((kind, key), event_id) in &changes {
            if !wanted(kind, key) {
                continue;
            }
            if self.state_after || !shown.contains(&**event_id) {
                events.extend(self.read.event(event_id)?);
            } else if (knows_nothing || tail.limited)
                && let Some(state) = first_state
            {
                events.extend(self.known_before(state, kind, key)?);
            }
        }
        if lazy {
            for speaker in speakers {
                let key = (StateEventType::RoomMember, speaker.to_owned());
                if !changes.contains_key(&key)
                    && let Some(member) =
                        self.read.state_event(self.room, &StateEventType::RoomMember, speaker)?
                {
                    events.push(member);
                }
            }
        }
        events.retain(|event| passes(&self.filter.room.state, event));
        let events = self.format.state(&events)?;
        Ok(if self.state_after {
            State::After(events.into())
        } else {
            State::Before(events.into())
        })
    }

    /// What an entry was where the timeline begins, unless the client knows that.
    fn known_before(
        &self,
        state: StateId,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Option<StoredEvent>, Error> {
        let before = self.read.state_event_at(self.room, state, kind, key)?;
        Ok(before.filter(|event| {
            self.full_state
                || self.since.is_none_or(|since| event.position.is_none_or(|at| at > since))
        }))
    }

    /// Events of one state that are not in another.
    fn difference(
        &self,
        from: Option<StateId>,
        to: Option<StateId>,
    ) -> Result<Vec<StoredEvent>, Error> {
        let Some(to) = to else { return Ok(Vec::new()) };
        let to = self.read.state_map(to)?;
        let from = from.map(|from| self.read.state_map(from)).transpose()?;
        let new = to.iter().filter(|(key, event_id)| {
            from.as_ref().is_none_or(|from| from.get(*key) != Some(*event_id))
        });
        let events = self.read.events(new.map(|(_, event_id)| event_id.clone()))?;
        let filter = &self.filter.room.state;
        Ok(events.into_iter().filter(|event| passes(filter, event)).collect())
    }

    fn summary(&self) -> Result<RoomSummary, Error> {
        let mut summary = RoomSummary::new();
        let count =
            |membership| self.read.member_count(self.room, &membership).map(UInt::new_saturating);
        summary.joined_member_count = Some(count(MembershipState::Join)?);
        summary.invited_member_count = Some(count(MembershipState::Invite)?);
        let named = [StateEventType::RoomName, StateEventType::RoomCanonicalAlias];
        for kind in named {
            let field = if kind == StateEventType::RoomName { "name" } else { "alias" };
            let event = self.read.state_event(self.room, &kind, "")?;
            let name = event.and_then(|event| event.pdu.content_field::<String>(field));
            if name.is_some_and(|name| !name.is_empty()) {
                return Ok(summary);
            }
        }
        summary.heroes = self.read.heroes(self.room, self.user_id, HEROES)?;
        Ok(summary)
    }

    fn add_ephemeral(
        &self,
        joined: &mut JoinedRoom,
        typing: &Typing,
        since_typing: u64,
    ) -> Result<(), Error> {
        let filter: &RoomEventFilter = &self.filter.room.ephemeral;
        let room_id = &self.room.room_id;
        let events = &mut joined.ephemeral.events;
        if allows_kind(filter, room_id, "m.typing") {
            let since = if self.since.is_some() { since_typing } else { 0 };
            let users = typing.changed_since(room_id, since);
            if let Some(users) = users.filter(|users| self.since.is_some() || !users.is_empty()) {
                let event = json!({ "type": "m.typing", "content": { "user_ids": users } });
                events.push(raw(&event)?);
            }
        }
        if allows_kind(filter, room_id, "m.receipt") {
            let content = self.receipts()?;
            if !content.is_empty() {
                events.push(raw(&json!({ "type": "m.receipt", "content": content }))?);
            }
        }
        Ok(())
    }

    fn receipts(&self) -> Result<ReceiptEventContent, Error> {
        let since = self.since.unwrap_or(i64::MIN);
        let receipts = self.read.receipts_since(self.room, self.user_id, since, RECEIPTS_MAX)?;
        let mut content = ReceiptEventContent(BTreeMap::new());
        for receipt in receipts {
            let mut data = ReceiptData::new(receipt.ts.to_matrix());
            data.thread = ReceiptThread::try_from(receipt.thread)
                .map_err(|error| Error::corrupt("receipts", error))?;
            let kinds = content.0.entry(receipt.event_id).or_default();
            let users = kinds.entry(ReceiptType::from(receipt.kind)).or_default();
            users.insert(receipt.user_id, data);
        }
        Ok(content)
    }

    fn add_unread(&self, joined: &mut JoinedRoom, unread: Unread) {
        if self.filter.room.timeline.unread_thread_notifications {
            joined.unread_notifications = unread.main.into();
            joined.unread_thread_notifications =
                unread.threads.into_iter().map(|(root, count)| (root, count.into())).collect();
        } else {
            joined.unread_notifications = unread.total().into();
        }
    }
}
