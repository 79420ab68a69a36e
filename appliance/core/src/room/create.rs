//! Founding a room: the chain of its first events, sealed one onto the other.
//!
//! [Client-Server API, "Creation"](https://spec.matrix.org/v1.16/client-server-api/#creation).

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, RoomVersionId,
    UserId,
    events::{StateEventType, TimelineEventType},
    state_res,
};

use super::{
    decide::state_key,
    draft::{CurrentStateEvents, Intent, Refusal, SealError, accepted, authorise, seal},
    view::{Head, Known, RoomView, StateId, StateKey, StateMap},
};
use crate::{
    event::{FormatError, Pdu, Status},
    time::Millis,
};

/// A room that was just founded: its first events in order. Each follows the one before.
#[derive(Debug, Clone)]
pub struct Founded {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its version.
    pub version: RoomVersionId,
    /// Its first events, the create event first.
    pub events: Vec<Arc<Pdu>>,
}

/// Why a room was not founded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// This version is not served here.
    #[error("room version {0} is not supported by this server")]
    UnsupportedVersion(RoomVersionId),
    /// One of the first events is against the rules.
    #[error("{kind}: {refusal}")]
    Refused {
        /// Type of the event.
        kind: TimelineEventType,
        /// Why.
        refusal: Refusal,
    },
    /// One of the first events does not fit.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Founds a room: the create event with this content, then these intents in order.
///
/// `room_id` is used by versions before 12; from version 12 on the create event's hash names the room.
/// `room_version` and, where the version wants it, `creator` are put into the content.
///
/// # Errors
/// If the version is not served, or an event is against the rules or too large.
pub fn create(
    version: &RoomVersionId,
    room_id: OwnedRoomId,
    creator: &UserId,
    mut content: CanonicalJsonObject,
    now: Millis,
    intents: Vec<Intent>,
) -> Result<Founded, CreateError> {
    let rules =
        super::rules(version).ok_or_else(|| CreateError::UnsupportedVersion(version.clone()))?;
    content.insert("room_version".to_owned(), CanonicalJsonValue::String(version.to_string()));
    if !rules.authorization.use_room_create_sender {
        content.insert("creator".to_owned(), CanonicalJsonValue::String(creator.to_string()));
    }
    let intent = Intent::state(creator, StateEventType::RoomCreate, "", content, now);
    let named = (!rules.authorization.room_create_event_id_as_room_id).then_some(&*room_id);
    let create = Arc::new(seal(intent, named, &[], &[], 1, &rules)?);
    let no_events = |_: &EventId| None::<crate::event::Judged>;
    state_res::check_state_independent_auth_rules(
        &rules.authorization,
        accepted(&create),
        no_events,
    )
    .map_err(|reason| CreateError::Refused {
        kind: TimelineEventType::RoomCreate,
        refusal: Refusal::Forbidden(reason),
    })?;
    let mut view = FirstEvents::default();
    view.push(&create);
    let mut events = vec![create];
    for intent in intents {
        let kind = intent.kind.clone();
        let pdu = view.append(&events, intent, &rules).map_err(|error| match error {
            AppendError::Refused(refusal) => CreateError::Refused { kind, refusal },
            AppendError::Seal(error) => CreateError::Seal(error),
        })?;
        view.push(&pdu);
        events.push(pdu);
    }
    let room_id = events.first().map_or(room_id, |create| create.room_id().to_owned());
    Ok(Founded { room_id, version: version.clone(), events })
}

enum AppendError {
    Refused(Refusal),
    Seal(SealError),
}

/// The room as far as it has been founded.
#[derive(Default)]
struct FirstEvents {
    events: BTreeMap<OwnedEventId, Arc<Pdu>>,
    state: BTreeMap<StateKey, OwnedEventId>,
}

const NOW: StateId = StateId(0);

impl FirstEvents {
    fn push(&mut self, pdu: &Arc<Pdu>) {
        if let Some(key) = state_key(pdu) {
            self.state.insert(key, pdu.event_id().to_owned());
        }
        self.events.insert(pdu.event_id().to_owned(), Arc::clone(pdu));
    }

    fn append(
        &self,
        before: &[Arc<Pdu>],
        intent: Intent,
        rules: &ruma::room_version_rules::RoomVersionRules,
    ) -> Result<Arc<Pdu>, AppendError> {
        let Some(last) = before.last() else {
            let missing = FormatError::Field("the create event is missing".to_owned());
            return Err(AppendError::Seal(SealError::Format(missing)));
        };
        let prev = [last.event_id().to_owned()];
        let state = CurrentStateEvents::new(self, NOW);
        let room_id = last.room_id();
        let auth =
            authorise(&state, room_id, &intent, &prev, rules).map_err(AppendError::Refused)?;
        seal(intent, Some(room_id), &auth, &prev, last.depth().saturating_add(1), rules)
            .map(Arc::new)
            .map_err(AppendError::Seal)
    }
}

impl RoomView for FirstEvents {
    type Error = Infallible;

    fn head(&self) -> Result<Option<Head>, Infallible> {
        Ok(None)
    }

    fn event(&self, event_id: &EventId) -> Result<Option<Known>, Infallible> {
        Ok(self.events.get(event_id).map(|pdu| Known {
            pdu: Arc::clone(pdu),
            status: Status::Accepted,
            gutted: false,
            state_after: Some(NOW),
        }))
    }

    fn state_entry(
        &self,
        _: StateId,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Option<OwnedEventId>, Infallible> {
        Ok(self.state.get(&(kind.clone(), key.to_owned())).cloned())
    }

    fn state_map(&self, _: StateId) -> Result<Arc<StateMap>, Infallible> {
        Ok(Arc::new(self.state.clone().into_iter().collect()))
    }

    fn redactions_of(&self, _: &EventId) -> Result<Vec<OwnedEventId>, Infallible> {
        Ok(Vec::new())
    }
}
