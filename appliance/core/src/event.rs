//! Persistent data units: parsing, hashing, and the difference between an event and a signed event.
//!
//! [Server-Server API, "PDUs"](https://spec.matrix.org/v1.16/server-server-api/#pdus),
//! ["Signing Events"](https://spec.matrix.org/v1.16/server-server-api/#signing-events).

mod keys;
mod signed;

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId,
    OwnedRoomId, OwnedUserId, RoomId, UserId, events::TimelineEventType,
    room_version_rules::RoomVersionRules, signatures, state_res,
};
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::{
    keys::{KeyDocument, KeyDocumentError, KeyLookup, KeySource},
    signed::{AttachError, Signatures, Signed},
};
use crate::{limits, time::Millis};

/// What makes bytes unfit to be an event. Such an event is dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Larger than [`limits::PDU_BYTES_MAX`].
    #[error("the event is larger than {} bytes", limits::PDU_BYTES_MAX)]
    TooLarge,
    /// Not a JSON object, or not canonical JSON (floats, integers out of range).
    #[error("not canonical JSON: {0}")]
    Json(String),
    /// A field is missing, of the wrong type, or too long.
    #[error("{0}")]
    Field(String),
}

/// An event without its signatures: what its event id names.
///
/// Parsed once; cheap to share behind an [`Arc`].
#[derive(Debug, Clone)]
pub struct Pdu {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    body: Body,
    json: Box<str>,
}

#[derive(Debug, Clone, Deserialize)]
struct Body {
    #[serde(rename = "type")]
    kind: TimelineEventType,
    sender: OwnedUserId,
    #[serde(default)]
    room_id: Option<OwnedRoomId>,
    #[serde(default)]
    state_key: Option<String>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    depth: u64,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
    #[serde(default)]
    redacts: Option<OwnedEventId>,
    content: Box<RawValue>,
}

impl Pdu {
    /// Makes an event from its JSON object; `signatures` and `unsigned` are left out of it.
    ///
    /// # Errors
    /// If a field that every event has is missing or malformed.
    pub fn new(
        mut object: CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> Result<Self, FormatError> {
        object.remove("signatures");
        object.remove("unsigned");
        let hash = signatures::reference_hash(&object, rules)
            .map_err(|error| FormatError::Field(error.to_string()))?;
        let event_id = EventId::parse(format!("${hash}"))
            .map_err(|error| FormatError::Field(format!("no event id: {error}")))?;
        let json = canonical_string(&object);
        Self::with_id(event_id, None, json, rules)
    }

    /// Makes an event from what the store kept of it: nothing is hashed again.
    ///
    /// # Errors
    /// If the stored text is not an event.
    pub fn from_stored(
        event_id: OwnedEventId,
        room_id: OwnedRoomId,
        json: Box<str>,
        rules: &RoomVersionRules,
    ) -> Result<Self, FormatError> {
        let body = Body::parse(&json, rules)?;
        Ok(Self { event_id, room_id, body, json })
    }

    fn with_id(
        event_id: OwnedEventId,
        room_id: Option<OwnedRoomId>,
        json: String,
        rules: &RoomVersionRules,
    ) -> Result<Self, FormatError> {
        let body = Body::parse(&json, rules)?;
        if body.depth > limits::DEPTH_MAX {
            return Err(FormatError::Field("depth is out of range".to_owned()));
        }
        let is_create = body.kind == TimelineEventType::RoomCreate;
        let room_id = match (room_id.or_else(|| body.room_id.clone()), is_create) {
            (Some(room_id), _) => room_id,
            (None, true) if rules.authorization.room_create_event_id_as_room_id => {
                RoomId::parse(event_id.as_str().replacen('$', "!", 1))
                    .map_err(|error| FormatError::Field(format!("no room id: {error}")))?
            }
            (None, _) => return Err(FormatError::Field("room_id is missing".to_owned())),
        };
        Ok(Self { event_id, room_id, body, json: json.into_boxed_str() })
    }

    /// The event id: the reference hash, which covers the redacted event.
    #[must_use]
    pub fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// The room; for a create event of room version 12 the one that it founds.
    #[must_use]
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// The event type.
    #[must_use]
    pub fn kind(&self) -> &TimelineEventType {
        &self.body.kind
    }

    /// Who sent it.
    #[must_use]
    pub fn sender(&self) -> &UserId {
        &self.body.sender
    }

    /// The state key, if it is a state event.
    #[must_use]
    pub fn state_key(&self) -> Option<&str> {
        self.body.state_key.as_deref()
    }

    /// When the origin says that it was sent.
    #[must_use]
    pub fn origin_server_ts(&self) -> Millis {
        self.body.origin_server_ts.into()
    }

    /// One more than the greatest depth of its predecessors, as the origin claims.
    #[must_use]
    pub fn depth(&self) -> u64 {
        self.body.depth
    }

    /// The events that it follows.
    #[must_use]
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.body.prev_events
    }

    /// The events that authorise it.
    #[must_use]
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.body.auth_events
    }

    /// The event that it redacts, if it is a redaction.
    #[must_use]
    pub fn redacts(&self) -> Option<&EventId> {
        if self.body.kind == TimelineEventType::RoomRedaction {
            self.body.redacts.as_deref()
        } else {
            None
        }
    }

    /// The content, as sent.
    #[must_use]
    pub fn content(&self) -> &RawValue {
        &self.body.content
    }

    /// A field of the content, if the content has it and it is of that type.
    pub fn content_field<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Option<T> {
        let content: std::collections::BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(self.body.content.get()).ok()?;
        serde_json::from_str(content.get(name)?.get()).ok()
    }

    /// The canonical JSON without `signatures` and `unsigned`.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The canonical JSON without `signatures` and `unsigned`, as an object.
    ///
    /// # Errors
    /// If the stored text is damaged.
    pub fn object(&self) -> Result<CanonicalJsonObject, FormatError> {
        serde_json::from_str(&self.json).map_err(|error| FormatError::Json(error.to_string()))
    }

    /// The event without what redaction removes.
    ///
    /// # Errors
    /// If the stored text is damaged.
    pub fn redacted(&self, rules: &RoomVersionRules) -> Result<Self, FormatError> {
        let mut object = self.object()?;
        ruma::canonical_json::redact_in_place(&mut object, &rules.redaction, None)
            .map_err(|error| FormatError::Field(error.to_string()))?;
        Self::with_id(
            self.event_id.clone(),
            Some(self.room_id.clone()),
            canonical_string(&object),
            rules,
        )
    }
}

impl Body {
    fn parse(json: &str, rules: &RoomVersionRules) -> Result<Self, FormatError> {
        let mut body: Self =
            serde_json::from_str(json).map_err(|error| FormatError::Field(error.to_string()))?;
        if !body.content.get().starts_with('{') {
            return Err(FormatError::Field("content is not an object".to_owned()));
        }
        // The other place means nothing in this version.
        if rules.redaction.content_field_redacts && body.kind == TimelineEventType::RoomRedaction {
            body.redacts = content_redacts(&body.content);
        }
        Ok(body)
    }
}

fn content_redacts(content: &RawValue) -> Option<OwnedEventId> {
    #[derive(Deserialize)]
    struct Redacts {
        redacts: Option<OwnedEventId>,
    }
    serde_json::from_str::<Redacts>(content.get()).ok()?.redacts
}

/// A JSON value as canonical JSON; `None` if canonical JSON does not know one of its numbers.
///
/// [Appendices, "Canonical JSON"](https://spec.matrix.org/v1.16/appendices/#canonical-json).
#[must_use]
pub fn canonical_json(value: &serde_json::Value) -> Option<String> {
    CanonicalJsonValue::try_from(value.clone()).ok().map(|value| value.to_string())
}

/// Canonical JSON as text. Keys of the object are sorted already.
pub(crate) fn canonical_string(object: &CanonicalJsonObject) -> String {
    // Maps with text keys and canonical values always have a JSON form.
    serde_json::to_string(object).unwrap_or_default()
}

/// Parses bytes from outside into a canonical JSON object, bounded.
///
/// # Errors
/// If they are too many, or not canonical JSON.
pub fn parse_object(bytes: &[u8]) -> Result<CanonicalJsonObject, FormatError> {
    if bytes.len() > limits::PDU_BYTES_MAX {
        return Err(FormatError::TooLarge);
    }
    serde_json::from_slice(bytes).map_err(|error| FormatError::Json(error.to_string()))
}

/// What was decided about an event when it arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is part of the room.
    Accepted,
    /// Valid where it stands, but not by the room's current state: hidden from clients, not an extremity.
    SoftFailed,
    /// Against the rules: it changes nothing, and nothing may be built on it.
    Rejected,
}

/// An event with what was decided about it.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The event.
    pub pdu: Arc<Pdu>,
    /// What was decided.
    pub status: Status,
}

impl state_res::Event for Judged {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.pdu.event_id
    }

    fn room_id(&self) -> Option<&RoomId> {
        // The rules of version 12 look whether the create event itself names a room.
        self.pdu.body.room_id.as_deref()
    }

    fn sender(&self) -> &UserId {
        &self.pdu.body.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.pdu.body.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.pdu.body.kind
    }

    fn content(&self) -> &RawValue {
        &self.pdu.body.content
    }

    fn state_key(&self) -> Option<&str> {
        self.pdu.body.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.pdu.body.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.pdu.body.auth_events.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.pdu.body.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.status == Status::Rejected
    }
}
