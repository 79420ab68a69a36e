//! What a local user wants to do, authorised against the room's current state.

use std::{cell::RefCell, sync::Arc};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    UserId,
    events::{
        StateEventType, TimelineEventType,
        room::{
            member::MembershipState,
            power_levels::{RoomPowerLevels, RoomPowerLevelsEventContent},
        },
    },
    room_version_rules::RoomVersionRules,
    signatures, state_res,
};
use serde_json::value::RawValue;

use super::view::{Head, RoomView, StateId};
use crate::{
    event::{FormatError, Judged, Pdu, Status, canonical_string},
    limits,
    time::Millis,
};

/// What a local user wants to send.
#[derive(Debug, Clone)]
pub struct Intent {
    /// Who sends it.
    pub sender: OwnedUserId,
    /// Event type.
    pub kind: TimelineEventType,
    /// State key, for a state event.
    pub state_key: Option<String>,
    /// Content.
    pub content: CanonicalJsonObject,
    /// The event to redact, for a redaction.
    pub redacts: Option<OwnedEventId>,
    /// When it is sent.
    pub origin_server_ts: Millis,
}

impl Intent {
    /// An intent to send a state event.
    #[must_use]
    pub fn state(
        sender: &UserId,
        kind: StateEventType,
        state_key: &str,
        content: CanonicalJsonObject,
        origin_server_ts: Millis,
    ) -> Self {
        Self {
            sender: sender.to_owned(),
            kind: kind.into(),
            state_key: Some(state_key.to_owned()),
            content,
            redacts: None,
            origin_server_ts,
        }
    }
}

/// Why a wish was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The room is not known here.
    #[error("this server is not in the room")]
    UnknownRoom,
    /// The sender is not joined.
    #[error("you are not in this room")]
    NotJoined,
    /// The authorisation rules of the room forbid it.
    #[error("{0}")]
    Forbidden(String),
    /// Only the home enclave of the room may do this.
    #[error(
        "only the enclave that hosts this room may change that here: ask a member there; a change made on both sides would be undone when the enclaves' histories merge"
    )]
    HomeEnclaveOnly,
    /// The event does not fit.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// An authorised event that has no place in the room's graph yet.
#[derive(Debug, Clone)]
pub struct Draft {
    intent: Intent,
    room_id: OwnedRoomId,
    auth_events: Vec<OwnedEventId>,
    rules: Arc<RoomVersionRules>,
    based_on: StateId,
}

/// Why a draft could not be sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// With hashes and the room kept for a signature it is too large.
    #[error(
        "the event is too large: with hashes and signature it would pass {} bytes",
        limits::PDU_BYTES_MAX
    )]
    TooLarge,
    /// It cannot be hashed.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl Draft {
    /// The room state that this draft was authorised against. If the room has another by now, draft again.
    #[must_use]
    pub fn based_on(&self) -> StateId {
        self.based_on
    }

    /// The room.
    #[must_use]
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// Event type and state key, if it is a state event.
    #[must_use]
    pub fn state_key(&self) -> Option<(StateEventType, &str)> {
        let key = self.intent.state_key.as_deref()?;
        Some((self.intent.kind.to_string().into(), key))
    }

    /// Gives the event its place: computes content hash, reference hash and event id.
    ///
    /// # Errors
    /// If the event is too large. Room for the signature is kept.
    pub fn seal(self, prev_events: &[OwnedEventId], depth: u64) -> Result<Pdu, SealError> {
        let Self { intent, room_id, auth_events, rules, .. } = self;
        seal(intent, Some(&room_id), &auth_events, prev_events, depth, &rules)
    }
}

/// Authorises what a local user wants against the room's current state.
///
/// The outer error is the view's, the inner one a refusal.
///
/// # Errors
/// If the room is unknown, or its rules or the home rule forbid it.
pub fn draft<V: RoomView>(
    view: &V,
    room_id: &RoomId,
    intent: Intent,
) -> Result<Result<Draft, Refusal>, V::Error> {
    let Some(head) = view.head()? else { return Ok(Err(Refusal::UnknownRoom)) };
    let Some(rules) = super::rules(&head.version) else { return Ok(Err(Refusal::UnknownRoom)) };
    if let Err(refusal) = check_sizes(&intent) {
        return Ok(Err(refusal));
    }
    let state = CurrentStateEvents::new(view, head.state);
    if let Err(refusal) = check_home_rule(&state, &head, &intent) {
        return state.failed().map_or(Ok(Err(refusal)), Err);
    }
    let outcome = authorise(&state, room_id, &intent, &[], &rules);
    if let Some(error) = state.failed() {
        return Err(error);
    }
    Ok(outcome.map(|auth_events| Draft {
        intent,
        room_id: room_id.to_owned(),
        auth_events,
        rules: Arc::new(rules),
        based_on: head.state,
    }))
}

/// Whether a redaction may act on its target: the sender has the power to redact, or comes from the same server.
///
/// [Room version 3, "Handling redactions"](https://spec.matrix.org/v1.16/rooms/v3/#handling-redactions).
///
/// # Errors
/// If the view fails.
pub fn may_redact<V: RoomView>(
    view: &V,
    state: StateId,
    rules: &RoomVersionRules,
    redaction: &Pdu,
    target: &Pdu,
) -> Result<bool, V::Error> {
    if redaction.sender().server_name() == target.sender().server_name() {
        return Ok(true);
    }
    let levels = power_levels(view, state, rules)?;
    Ok(levels.is_some_and(|levels| levels.user_can_redact_event_of_other(redaction.sender())))
}

pub(super) fn seal(
    intent: Intent,
    room_id: Option<&RoomId>,
    auth_events: &[OwnedEventId],
    prev_events: &[OwnedEventId],
    depth: u64,
    rules: &RoomVersionRules,
) -> Result<Pdu, SealError> {
    let mut object = CanonicalJsonObject::new();
    let mut put = |key: &str, value: CanonicalJsonValue| {
        object.insert(key.to_owned(), value);
    };
    let is_redaction = intent.kind == TimelineEventType::RoomRedaction;
    let mut content = intent.content;
    if let Some(redacts) = intent.redacts.filter(|_| is_redaction) {
        let redacts = CanonicalJsonValue::String(redacts.to_string());
        if rules.redaction.content_field_redacts {
            content.insert("redacts".to_owned(), redacts);
        } else {
            put("redacts", redacts);
        }
    }
    put("auth_events", ids(auth_events));
    put("prev_events", ids(prev_events));
    put("content", CanonicalJsonValue::Object(content));
    put("depth", integer(depth.min(limits::DEPTH_MAX)));
    put("origin_server_ts", integer(intent.origin_server_ts.0));
    put("sender", CanonicalJsonValue::String(intent.sender.to_string()));
    put("type", CanonicalJsonValue::String(intent.kind.to_string()));
    if let Some(room_id) = room_id {
        put("room_id", CanonicalJsonValue::String(room_id.to_string()));
    }
    if let Some(state_key) = intent.state_key {
        put("state_key", CanonicalJsonValue::String(state_key));
    }
    signatures::add_content_hash_to_event(&mut object).map_err(|_| SealError::TooLarge)?;
    if canonical_string(&object).len() + limits::SIGNATURE_BYTES_RESERVED > limits::PDU_BYTES_MAX {
        return Err(SealError::TooLarge);
    }
    Ok(Pdu::new(object, rules)?)
}

/// The events that authorise an intent, if the rules allow it by this state.
pub(super) fn authorise<V: RoomView>(
    state: &CurrentStateEvents<'_, V>,
    room_id: &RoomId,
    intent: &Intent,
    prev_events: &[OwnedEventId],
    rules: &RoomVersionRules,
) -> Result<Vec<OwnedEventId>, Refusal> {
    let probe = Probe::new(intent, room_id, prev_events)?;
    let types = state_res::auth_types_for_event(
        &intent.kind,
        &intent.sender,
        intent.state_key.as_deref(),
        &probe.content,
        &rules.authorization,
    )
    .map_err(Refusal::Forbidden)?;
    state_res::check_state_dependent_auth_rules(&rules.authorization, &probe, |kind, key| {
        state.fetch(kind, key)
    })
    .map_err(Refusal::Forbidden)?;
    Ok(types
        .iter()
        .filter_map(|(kind, key)| state.fetch(kind, key))
        .map(|judged| judged.pdu.event_id().to_owned())
        .collect())
}

/// Events of one stored state, for the callbacks of the authorisation rules, which cannot fail themselves.
pub(super) struct CurrentStateEvents<'v, V: RoomView> {
    view: &'v V,
    state: StateId,
    failed: RefCell<Option<V::Error>>,
}

impl<'v, V: RoomView> CurrentStateEvents<'v, V> {
    pub(super) fn new(view: &'v V, state: StateId) -> Self {
        Self { view, state, failed: RefCell::new(None) }
    }

    pub(super) fn fetch(&self, kind: &StateEventType, state_key: &str) -> Option<Judged> {
        match self.look_up(kind, state_key) {
            Ok(found) => found,
            Err(error) => {
                *self.failed.borrow_mut() = Some(error);
                None
            }
        }
    }

    /// The failure of a look-up, if there was one: then no answer of the rules counts.
    pub(super) fn failed(&self) -> Option<V::Error> {
        self.failed.borrow_mut().take()
    }

    fn look_up(&self, kind: &StateEventType, key: &str) -> Result<Option<Judged>, V::Error> {
        let Some(event_id) = self.view.state_entry(self.state, kind, key)? else {
            return Ok(None);
        };
        Ok(self.view.event(&event_id)?.map(|known| known.judged()))
    }
}

fn check_sizes(intent: &Intent) -> Result<(), Refusal> {
    let too_long = |what: &str| {
        Err(Refusal::Format(FormatError::Field(format!(
            "{what} is longer than {} bytes",
            limits::IDENTIFIER_BYTES_MAX
        ))))
    };
    if intent.kind.to_string().len() > limits::IDENTIFIER_BYTES_MAX {
        return too_long("the event type");
    }
    if intent.state_key.as_ref().is_some_and(|key| key.len() > limits::IDENTIFIER_BYTES_MAX) {
        return too_long("the state key");
    }
    Ok(())
}

/// In a room with members from elsewhere only the home enclave changes what all depend on; the others change what is their own.
///
/// Divergent histories then merge without conflicts: each side has written different parts of the state.
fn check_home_rule<V: RoomView>(
    state: &CurrentStateEvents<'_, V>,
    head: &Head,
    intent: &Intent,
) -> Result<(), Refusal> {
    let Some(state_key) = intent.state_key.as_deref() else { return Ok(()) };
    if !head.exposed || state_key == intent.sender.as_str() {
        return Ok(());
    }
    let Some(create) = state.fetch(&StateEventType::RoomCreate, "") else { return Ok(()) };
    let our_server = intent.sender.server_name();
    let creators = create.pdu.content_field::<Vec<OwnedUserId>>("additional_creators");
    if create.pdu.sender().server_name() == our_server
        || creators.is_some_and(|all| all.iter().any(|user| user.server_name() == our_server))
    {
        return Ok(());
    }
    let own_user = intent.kind == TimelineEventType::RoomMember
        && <&UserId>::try_from(state_key).is_ok_and(|user| user.server_name() == our_server);
    if own_user { Ok(()) } else { Err(Refusal::HomeEnclaveOnly) }
}

/// Who may do what by a stored state; `None` if the state has no create event.
///
/// # Errors
/// If the view fails.
pub fn power_levels<V: RoomView>(
    view: &V,
    state: StateId,
    rules: &RoomVersionRules,
) -> Result<Option<RoomPowerLevels>, V::Error> {
    let events = CurrentStateEvents::new(view, state);
    let create = events.fetch(&StateEventType::RoomCreate, "");
    let levels = events.fetch(&StateEventType::RoomPowerLevels, "");
    if let Some(error) = events.failed() {
        return Err(error);
    }
    let Some(create) = create.map(state_res::events::RoomCreateEvent::new) else {
        return Ok(None);
    };
    let creators: Vec<_> =
        create.creators(&rules.authorization).unwrap_or_default().into_iter().collect();
    // Lenient on purpose: what other servers accepted as power levels must not lock anyone out here.
    let content = levels.and_then(|event| {
        serde_json::from_str::<RoomPowerLevelsEventContent>(event.pdu.content().get()).ok()
    });
    Ok(Some(RoomPowerLevels::new(content.into(), &rules.authorization, creators)))
}

/// An intent in the clothes of an event, for the authorisation rules.
struct Probe {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    kind: TimelineEventType,
    state_key: Option<String>,
    time: Millis,
    content: Box<RawValue>,
    redacts: Option<OwnedEventId>,
    /// Only the creator's first join is judged by them; other drafts follow extremities that are not chosen yet.
    prev_events: Vec<OwnedEventId>,
}

impl Probe {
    fn new(
        intent: &Intent,
        room_id: &RoomId,
        prev_events: &[OwnedEventId],
    ) -> Result<Self, FormatError> {
        let content = RawValue::from_string(canonical_string(&intent.content))
            .map_err(|error| FormatError::Json(error.to_string()))?;
        // The rules log this id and nothing else: the event has none before it is sealed.
        let event_id = OwnedEventId::try_from("$draft")
            .map_err(|error| FormatError::Field(error.to_string()))?;
        Ok(Self {
            event_id,
            room_id: room_id.to_owned(),
            sender: intent.sender.clone(),
            kind: intent.kind.clone(),
            state_key: intent.state_key.clone(),
            time: intent.origin_server_ts,
            content,
            redacts: intent.redacts.clone(),
            prev_events: prev_events.to_vec(),
        })
    }
}

impl state_res::Event for Probe {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }
    fn room_id(&self) -> Option<&RoomId> {
        Some(&self.room_id)
    }
    fn sender(&self) -> &UserId {
        &self.sender
    }
    fn origin_server_ts(&self) -> ruma::MilliSecondsSinceUnixEpoch {
        self.time.to_matrix()
    }
    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }
    fn content(&self) -> &RawValue {
        &self.content
    }
    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }
    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(std::iter::empty())
    }
    fn redacts(&self) -> Option<&OwnedEventId> {
        self.redacts.as_ref()
    }
    fn rejected(&self) -> bool {
        false
    }
}

/// Whether an intent makes someone a member or ends it.
impl Intent {
    /// The membership that a member event sets.
    #[must_use]
    pub fn membership(&self) -> Option<MembershipState> {
        if self.kind != TimelineEventType::RoomMember {
            return None;
        }
        self.content.get("membership")?.as_str().map(MembershipState::from)
    }
}

fn ids(ids: &[OwnedEventId]) -> CanonicalJsonValue {
    CanonicalJsonValue::Array(
        ids.iter().map(|id| CanonicalJsonValue::String(id.to_string())).collect(),
    )
}

fn integer(value: u64) -> CanonicalJsonValue {
    CanonicalJsonValue::Integer(ruma::Int::try_from(value).unwrap_or(ruma::Int::MAX))
}

/// A judged event that a caller just made: nothing forbids it.
pub(super) fn accepted(pdu: &Arc<Pdu>) -> Judged {
    Judged { pdu: Arc::clone(pdu), status: Status::Accepted }
}
