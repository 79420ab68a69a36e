//! Events as clients read them.
//!
//! [Client-Server API, "Room event format"](https://spec.matrix.org/v1.16/client-server-api/#room-event-format),
//! ["Aggregations"](https://spec.matrix.org/v1.16/client-server-api/#aggregations-of-child-events).

use std::cell::RefCell;

use ruma::{
    DeviceId, EventId, OwnedEventId, RoomId, UserId,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
    serde::Raw,
};
use sallyport_core::{room::StateId, time::Millis};
use sallyport_store::{Direction, Error, Read, RelationQuery, Room, StoredEvent};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::relations::relation;

/// References to an event that are listed with it.
const REFERENCES_MAX: usize = 50;

/// Writes events of one room for one device.
pub struct Format<'r, 'c> {
    /// The snapshot.
    pub read: &'r Read<'c>,
    /// The room.
    pub room: &'r Room,
    /// Who reads them.
    pub user_id: &'r UserId,
    /// The device that reads them: it alone learns the transaction ids of its own requests.
    pub device_id: &'r DeviceId,
    /// The present, for the age of events.
    pub now: Millis,
    /// Whether each event names its room. A sync says it once for all.
    pub names_room: bool,
    /// What was last found out about the reader.
    pub membership: MembershipThen,
}

/// The reader's membership after one state of the room: neighbours in a timeline mostly share theirs.
#[derive(Default)]
pub struct MembershipThen(RefCell<Option<(StateId, MembershipState)>>);

#[derive(Serialize)]
struct ClientEvent<'a> {
    content: &'a RawValue,
    event_id: &'a EventId,
    origin_server_ts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<&'a RoomId>,
    sender: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    #[serde(rename = "type")]
    kind: &'a TimelineEventType,
    unsigned: Unsigned<'a>,
}

#[derive(Default, Serialize)]
struct Unsigned<'a> {
    age: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    membership: Option<MembershipState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_content: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_sender: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces_state: Option<OwnedEventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacted_because: Option<Box<RawValue>>,
    #[serde(rename = "m.relations", skip_serializing_if = "Relations::is_empty")]
    relations: Relations,
}

#[derive(Default, Serialize)]
struct Relations {
    #[serde(rename = "m.replace", skip_serializing_if = "Option::is_none")]
    replace: Option<Box<RawValue>>,
    #[serde(rename = "m.thread", skip_serializing_if = "Option::is_none")]
    thread: Option<Thread>,
    #[serde(rename = "m.reference", skip_serializing_if = "Option::is_none")]
    reference: Option<References>,
}

impl Relations {
    fn is_empty(&self) -> bool {
        self.replace.is_none() && self.thread.is_none() && self.reference.is_none()
    }
}

#[derive(Serialize)]
struct Thread {
    latest_event: Box<RawValue>,
    count: u64,
    current_user_participated: bool,
}

#[derive(Serialize)]
struct References {
    chunk: Vec<Reference>,
}

#[derive(Serialize)]
struct Reference {
    event_id: OwnedEventId,
}

#[derive(Serialize)]
struct StrippedEvent<'a> {
    content: &'a RawValue,
    sender: &'a UserId,
    state_key: &'a str,
    #[serde(rename = "type")]
    kind: &'a TimelineEventType,
    /// Not stripped: clients tell by the create event which version's rules apply to an invite.
    event_id: &'a EventId,
    origin_server_ts: u64,
}

impl Format<'_, '_> {
    /// One event.
    ///
    /// # Errors
    /// If the database fails.
    pub fn event<T>(&self, event: &StoredEvent) -> Result<Raw<T>, Error> {
        let relations = self.relations(event)?;
        Ok(Raw::from_json(self.write(event, relations)?))
    }

    /// A page of events, in its order.
    ///
    /// # Errors
    /// If the database fails.
    pub fn events<T>(&self, events: &[StoredEvent]) -> Result<Vec<Raw<T>>, Error> {
        // What relates to an event came after it. Of new events hardly one has relations, and one
        // question settles that for all of them.
        let oldest = events.iter().filter_map(|event| event.position).min();
        let relations = match oldest {
            Some(oldest) => self.read.has_relations_after(self.room, oldest)?,
            None => false,
        };
        let mut written = Vec::with_capacity(events.len());
        for event in events {
            let relations = if relations { self.relations(event)? } else { Relations::default() };
            written.push(Raw::from_json(self.write(event, relations)?));
        }
        Ok(written)
    }

    /// State events: nothing is said of what relates to them.
    ///
    /// # Errors
    /// If the database fails.
    pub fn state<T>(&self, events: &[StoredEvent]) -> Result<Vec<Raw<T>>, Error> {
        let none = Relations::default;
        events.iter().map(|event| Ok(Raw::from_json(self.write(event, none())?))).collect()
    }

    fn write(&self, event: &StoredEvent, relations: Relations) -> Result<Box<RawValue>, Error> {
        let pdu = &event.pdu;
        let membership = self.membership(event)?;
        let age = self.age(event);
        let mut unsigned = Unsigned { age, membership, relations, ..Unsigned::default() };
        if let Some((device_id, txn_id)) = &event.transaction
            && device_id == self.device_id.as_str()
            && pdu.sender() == self.user_id
        {
            unsigned.transaction_id = Some(txn_id);
        }
        self.add_previous(event, &mut unsigned)?;
        if let Some(redaction) = &event.redacted_by {
            let redaction = self.read.event(redaction)?;
            unsigned.redacted_because =
                redaction.map(|event| self.write(&event, Relations::default())).transpose()?;
        }
        json(&ClientEvent {
            content: pdu.content(),
            event_id: pdu.event_id(),
            origin_server_ts: pdu.origin_server_ts().0,
            redacts: pdu.redacts(),
            room_id: self.names_room.then_some(pdu.room_id()),
            sender: pdu.sender(),
            state_key: pdu.state_key(),
            kind: pdu.kind(),
            unsigned,
        })
    }

    /// The reader's membership at the event: a client that was away tells by it which messages it can have no key for.
    fn membership(&self, event: &StoredEvent) -> Result<Option<MembershipState>, Error> {
        let Some(state) = event.state_after else { return Ok(None) };
        if let Some((known, membership)) = &*self.membership.0.borrow()
            && *known == state
        {
            return Ok(Some(membership.clone()));
        }
        let kind = StateEventType::RoomMember;
        let member = self.read.state_event_at(self.room, state, &kind, self.user_id.as_str())?;
        let membership = member
            .and_then(|event| event.pdu.content_field("membership"))
            .unwrap_or(MembershipState::Leave);
        *self.membership.0.borrow_mut() = Some((state, membership.clone()));
        Ok(Some(membership))
    }

    fn age(&self, event: &StoredEvent) -> u64 {
        self.now.0.saturating_sub(event.pdu.origin_server_ts().0)
    }

    /// What a state event replaced.
    fn add_previous(&self, event: &StoredEvent, unsigned: &mut Unsigned<'_>) -> Result<(), Error> {
        let (Some(state_key), Some(before)) = (event.pdu.state_key(), event.state_before) else {
            return Ok(());
        };
        let kind = StateEventType::from(event.pdu.kind().to_string());
        let previous = self.read.state_event_at(self.room, before, &kind, state_key)?;
        if let Some(previous) =
            previous.filter(|previous| previous.pdu.event_id() != event.pdu.event_id())
        {
            unsigned.prev_content = Some(previous.pdu.content().to_owned());
            unsigned.prev_sender = Some(previous.pdu.sender().to_string());
            unsigned.replaces_state = Some(previous.pdu.event_id().to_owned());
        }
        Ok(())
    }

    /// What relates to an event, as far as it is said with the event. Of a redacted one only its thread is left.
    fn relations(&self, event: &StoredEvent) -> Result<Relations, Error> {
        if !self.read.has_relations(self.room, event.pdu.event_id())? {
            return Ok(Relations::default());
        }
        let mut relations = Relations { thread: self.thread(event)?, ..Relations::default() };
        if event.redacted_by.is_none() {
            relations.replace = self.replacement(event)?;
            relations.reference = self.references(event)?;
        }
        Ok(relations)
    }

    /// The newest edit. State is not edited, and neither are edits.
    fn replacement(&self, event: &StoredEvent) -> Result<Option<Box<RawValue>>, Error> {
        let is_edit = relation(event).is_some_and(|relation| relation.rel_type == "m.replace");
        if event.pdu.state_key().is_some() || is_edit {
            return Ok(None);
        }
        let newest = self.read.newest_replacement(self.room, event)?;
        newest.map(|edit| self.write(&edit, Relations::default())).transpose()
    }

    fn thread(&self, root: &StoredEvent) -> Result<Option<Thread>, Error> {
        let summary = self.read.thread_summary(self.room, root.pdu.event_id(), self.user_id)?;
        let Some(thread) = summary else { return Ok(None) };
        let edited = match thread.latest.redacted_by {
            None => self.replacement(&thread.latest)?,
            Some(_) => None,
        };
        let relations = Relations { replace: edited, ..Relations::default() };
        Ok(Some(Thread {
            latest_event: self.write(&thread.latest, relations)?,
            count: thread.count,
            current_user_participated: thread.participated || root.pdu.sender() == self.user_id,
        }))
    }

    fn references(&self, event: &StoredEvent) -> Result<Option<References>, Error> {
        let references = self.read.relations(
            self.room,
            &RelationQuery {
                target: event.pdu.event_id(),
                rel_type: Some("m.reference"),
                kind: None,
                after: i64::MIN,
                before: i64::MAX,
                direction: Direction::Forward,
                limit: REFERENCES_MAX,
                depth: 1,
            },
        )?;
        let chunk: Vec<_> = references
            .iter()
            .map(|event| Reference { event_id: event.pdu.event_id().to_owned() })
            .collect();
        Ok((!chunk.is_empty()).then_some(References { chunk }))
    }
}

/// A state event without its place in the room, for those who are not in it.
///
/// # Errors
/// If the database holds what cannot be written as JSON.
pub fn stripped<T>(event: &StoredEvent) -> Result<Raw<T>, Error> {
    let pdu = &event.pdu;
    let event = StrippedEvent {
        content: pdu.content(),
        sender: pdu.sender(),
        state_key: pdu.state_key().unwrap_or_default(),
        kind: pdu.kind(),
        event_id: pdu.event_id(),
        origin_server_ts: pdu.origin_server_ts().0,
    };
    Ok(Raw::from_json(json(&event)?))
}

fn json(value: &impl Serialize) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|error| Error::corrupt("events", error))
}
