//! Judging an event that came from elsewhere: every check on receipt of a PDU.
//!
//! [Server-Server API, "Checks performed on receipt of a PDU"](https://spec.matrix.org/v1.16/server-server-api/#checks-performed-on-receipt-of-a-pdu):
//! the first three are [`Incoming`](super::Incoming)'s; 4. auth events (reject), 5. state before the event (reject),
//! 6. current state (soft fail).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    OwnedEventId, RoomVersionId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res,
};

use super::{
    draft::{CurrentStateEvents, accepted, may_redact},
    incoming::Checked,
    resolve::{Resolved, resolve, resolve_maps},
    verdict::{Change, CurrentState, Hold, StateRef, Verdict},
    view::{Head, Known, RoomView, StateId, StateKey, StateMap},
};
use crate::{
    event::{Judged, Pdu, Status},
    limits,
    time::Millis,
};

/// Judges an event of a room that the box is in.
///
/// # Errors
/// The view's.
pub fn decide<V: RoomView>(view: &V, checked: Checked, now: Millis) -> Result<Verdict, V::Error> {
    let Some(head) = view.head()? else {
        return Ok(Verdict::Drop("the room is not known here".to_owned()));
    };
    let Some(rules) = super::rules(&head.version) else {
        return Ok(Verdict::Drop(format!("room version {} is not served", head.version)));
    };
    let pdu = Arc::clone(checked.pdu());
    if pdu.origin_server_ts().0 > now.0.saturating_add(limits::FUTURE_MS_MAX) {
        return Ok(Verdict::Hold(Hold::Until(pdu.origin_server_ts())));
    }
    if let Some(known) = view.event(pdu.event_id())?
        && let Some(state) = known.state_after
    {
        if checked.gutted || !known.gutted {
            return Ok(Verdict::Known(known.status));
        }
        let (auth, prev) = (Vec::new(), BTreeSet::new());
        return Judgement { view, rules, head, checked, pdu, auth, prev }
            .complete(known.status, state);
    }
    let auth = match fetch_all(view, pdu.auth_events())? {
        Ok(auth) => auth,
        Err(missing) => return Ok(missing_events(missing)),
    };
    let prev = match fetch_prev(view, &pdu)? {
        Ok(prev) => prev,
        Err(verdict) => return Ok(verdict),
    };
    Judgement { view, rules, head, checked, pdu, auth, prev }.judge()
}

/// Everything at hand to judge one event.
struct Judgement<'v, V: RoomView> {
    view: &'v V,
    rules: RoomVersionRules,
    head: Head,
    checked: Checked,
    pdu: Arc<Pdu>,
    auth: Vec<Known>,
    prev: BTreeSet<StateId>,
}

impl<V: RoomView> Judgement<'_, V> {
    fn judge(self) -> Result<Verdict, V::Error> {
        let before = resolve(self.view, &self.rules, &self.prev)?;
        if let Err(reason) = self.check_auth_events()? {
            return Ok(Verdict::Reject(self.change(Status::Rejected, &before)?, reason));
        }
        if let Err(reason) = self.check_against(&before)? {
            return Ok(Verdict::Reject(self.change(Status::Rejected, &before)?, reason));
        }
        if !matches!(before, Resolved::Stored(state) if state == self.head.state)
            && let Err(reason) = self.check_against(&Resolved::Stored(self.head.state))?
        {
            return Ok(Verdict::SoftFail(self.change(Status::SoftFailed, &before)?, reason));
        }
        let change = self.change(Status::Accepted, &before)?;
        Ok(if change.gutted { Verdict::AcceptRedacted(change) } else { Verdict::Accept(change) })
    }

    /// The true copy of an event of which a gutted one is here: verdict and place stand, as others may have followed it.
    fn complete(self, status: Status, state: StateId) -> Result<Verdict, V::Error> {
        let accepted = status == Status::Accepted;
        let change = Change {
            redactions: if accepted { self.redactions()? } else { Vec::new() },
            event: self.checked.event,
            status,
            gutted: false,
            state_before: StateRef::Stored(state),
            sets_state: false,
            current: CurrentState::Unchanged,
            extremities: self.head.extremities.clone(),
            based_on: self.head,
        };
        let reason = "what was decided about its redacted copy stands".to_owned();
        Ok(match status {
            Status::Accepted => Verdict::Accept(change),
            Status::SoftFailed => Verdict::SoftFail(change, reason),
            Status::Rejected => Verdict::Reject(change, reason),
        })
    }

    /// Check 4: by the events that it names itself.
    fn check_auth_events(&self) -> Result<Result<(), String>, V::Error> {
        let mut events: BTreeMap<OwnedEventId, Judged> = self
            .auth
            .iter()
            .map(|known| (known.pdu.event_id().to_owned(), known.judged()))
            .collect();
        let mut state: BTreeMap<StateKey, Judged> = BTreeMap::new();
        let current = CurrentStateEvents::new(self.view, self.head.state);
        if self.rules.authorization.room_create_event_id_as_room_id
            && let Some(create) = current.fetch(&StateEventType::RoomCreate, "")
        {
            events.insert(create.pdu.event_id().to_owned(), create.clone());
            state.insert((StateEventType::RoomCreate, String::new()), create);
        }
        if let Some(error) = current.failed() {
            return Err(error);
        }
        for known in &self.auth {
            if let Some(key) = state_key(&known.pdu) {
                state.insert(key, known.judged());
            }
        }
        let authorization = &self.rules.authorization;
        let subject = accepted(&self.pdu);
        Ok(state_res::check_state_independent_auth_rules(authorization, &subject, |event_id| {
            events.get(event_id)
        })
        .and_then(|()| {
            state_res::check_state_dependent_auth_rules(authorization, &subject, |kind, key| {
                state.get(&(kind.clone(), key.to_owned()))
            })
        }))
    }

    /// Checks 5 and 6: by a room state.
    fn check_against(&self, state: &Resolved) -> Result<Result<(), String>, V::Error> {
        let subject = accepted(&self.pdu);
        let authorization = &self.rules.authorization;
        match state {
            Resolved::Stored(state) => {
                let events = CurrentStateEvents::new(self.view, *state);
                let outcome = state_res::check_state_dependent_auth_rules(
                    authorization,
                    &subject,
                    |kind, key| events.fetch(kind, key),
                );
                events.failed().map_or(Ok(outcome), Err)
            }
            Resolved::Map(map) => {
                let events = MapEvents::new(self.view, map);
                let outcome = state_res::check_state_dependent_auth_rules(
                    authorization,
                    &subject,
                    |kind, key| events.fetch(kind, key),
                );
                events.failed().map_or(Ok(outcome), Err)
            }
        }
    }

    fn change(&self, status: Status, before: &Resolved) -> Result<Change, V::Error> {
        let sets_state = status != Status::Rejected && self.pdu.state_key().is_some();
        let (current, extremities) = if status == Status::Accepted {
            let extremities = self.next_extremities()?;
            (self.next_current(before, sets_state, &extremities)?, extremities)
        } else {
            (CurrentState::Unchanged, self.head.extremities.clone())
        };
        Ok(Change {
            event: self.checked.event.clone(),
            status,
            gutted: self.checked.gutted,
            state_before: self.reference(before)?,
            sets_state,
            current,
            extremities,
            redactions: if status == Status::Accepted { self.redactions()? } else { Vec::new() },
            based_on: self.head.clone(),
        })
    }

    /// What the event follows is no extremity any more; nor is what it follows through events that never were one,
    /// as they were soft-failed or rejected.
    fn next_extremities(&self) -> Result<Vec<OwnedEventId>, V::Error> {
        let mut followed = BTreeSet::new();
        let mut next = self.pdu.prev_events().to_vec();
        while let Some(event_id) = next.pop() {
            if followed.len() >= limits::REFUSED_WALK_MAX || !followed.insert(event_id.clone()) {
                continue;
            }
            if let Some(known) = self.view.event(&event_id)?
                && known.status != Status::Accepted
            {
                next.extend(known.pdu.prev_events().iter().cloned());
            }
        }
        let kept = self.head.extremities.iter().filter(|id| !followed.contains(*id));
        Ok(kept.cloned().chain([self.pdu.event_id().to_owned()]).collect())
    }

    fn next_current(
        &self,
        before: &Resolved,
        sets_state: bool,
        extremities: &[OwnedEventId],
    ) -> Result<CurrentState, V::Error> {
        let mut others = BTreeSet::new();
        for event_id in extremities.iter().filter(|id| *id != self.pdu.event_id()) {
            others.extend(self.view.event(event_id)?.and_then(|known| known.state_after));
        }
        if let Resolved::Stored(state) = before
            && !sets_state
        {
            let mut all = others.clone();
            all.insert(*state);
            if all.len() == 1 {
                return Ok(if all.contains(&self.head.state) {
                    CurrentState::Unchanged
                } else {
                    CurrentState::AfterEvent
                });
            }
        } else if others.is_empty() {
            return Ok(CurrentState::AfterEvent);
        }
        let mut maps = vec![self.map_after(before, sets_state)?];
        for state in others {
            maps.push(self.view.state_map(state)?);
        }
        let with_this = WithEvent { view: self.view, pdu: &self.pdu };
        Ok(match resolve_maps(&with_this, &self.rules, &maps)? {
            None => CurrentState::AfterEvent,
            Some(map) => CurrentState::Resolved(difference(
                self.head.state,
                &*self.view.state_map(self.head.state)?,
                &map,
            )),
        })
    }

    fn map_after(&self, before: &Resolved, sets_state: bool) -> Result<Arc<StateMap>, V::Error> {
        let mut map = match before {
            Resolved::Stored(state) => self.view.state_map(*state)?,
            Resolved::Map(map) => Arc::clone(map),
        };
        if sets_state && let Some(key) = state_key(&self.pdu) {
            Arc::make_mut(&mut map).insert(key, self.pdu.event_id().to_owned());
        }
        Ok(map)
    }

    fn reference(&self, state: &Resolved) -> Result<StateRef, V::Error> {
        Ok(match state {
            Resolved::Stored(state) => StateRef::Stored(*state),
            Resolved::Map(map) => {
                difference(self.head.state, &*self.view.state_map(self.head.state)?, map)
            }
        })
    }

    /// Redactions that this event brings into effect: its own, and those that waited for it.
    fn redactions(&self) -> Result<Vec<(OwnedEventId, OwnedEventId)>, V::Error> {
        let mut applying = Vec::new();
        if let Some(target) = self.pdu.redacts()
            && let Some(known) = self.view.event(target)?
            && may_redact(self.view, self.head.state, &self.rules, &self.pdu, &known.pdu)?
        {
            applying.push((target.to_owned(), self.pdu.event_id().to_owned()));
        }
        for redaction_id in self.view.redactions_of(self.pdu.event_id())? {
            if let Some(redaction) = self.view.event(&redaction_id)?
                && redaction.status == Status::Accepted
                && may_redact(self.view, self.head.state, &self.rules, &redaction.pdu, &self.pdu)?
            {
                applying.push((self.pdu.event_id().to_owned(), redaction_id));
            }
        }
        Ok(applying)
    }
}

/// A view that also knows the event being judged.
struct WithEvent<'v, V> {
    view: &'v V,
    pdu: &'v Arc<Pdu>,
}

impl<V: RoomView> RoomView for WithEvent<'_, V> {
    type Error = V::Error;

    fn head(&self) -> Result<Option<Head>, V::Error> {
        self.view.head()
    }

    fn event(&self, event_id: &ruma::EventId) -> Result<Option<Known>, V::Error> {
        if event_id == self.pdu.event_id() {
            return Ok(Some(Known {
                pdu: Arc::clone(self.pdu),
                status: Status::Accepted,
                gutted: false,
                state_after: None,
            }));
        }
        self.view.event(event_id)
    }

    fn state_entry(
        &self,
        state: StateId,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Option<OwnedEventId>, V::Error> {
        self.view.state_entry(state, kind, key)
    }

    fn state_map(&self, state: StateId) -> Result<Arc<StateMap>, V::Error> {
        self.view.state_map(state)
    }

    fn redactions_of(&self, event_id: &ruma::EventId) -> Result<Vec<OwnedEventId>, V::Error> {
        self.view.redactions_of(event_id)
    }
}

/// Events of a state that was just worked out.
struct MapEvents<'v, V: RoomView> {
    view: &'v V,
    map: &'v StateMap,
    failed: std::cell::RefCell<Option<V::Error>>,
}

impl<'v, V: RoomView> MapEvents<'v, V> {
    fn new(view: &'v V, map: &'v StateMap) -> Self {
        Self { view, map, failed: std::cell::RefCell::new(None) }
    }

    fn fetch(&self, kind: &StateEventType, key: &str) -> Option<Judged> {
        let event_id = self.map.get(&(kind.clone(), key.to_owned()))?;
        match self.view.event(event_id) {
            Ok(known) => known.map(|known| known.judged()),
            Err(error) => {
                *self.failed.borrow_mut() = Some(error);
                None
            }
        }
    }

    fn failed(self) -> Option<V::Error> {
        self.failed.into_inner()
    }
}

/// Event type and state key of a state event.
pub(super) fn state_key(pdu: &Pdu) -> Option<StateKey> {
    let key = pdu.state_key()?;
    let kind: &TimelineEventType = pdu.kind();
    Some((StateEventType::from(kind.to_string()), key.to_owned()))
}

fn difference(parent: StateId, old: &StateMap, new: &StateMap) -> StateRef {
    let set: BTreeMap<_, _> = new
        .iter()
        .filter(|(key, id)| old.get(*key) != Some(*id))
        .map(|(key, id)| (key.clone(), id.clone()))
        .collect();
    let removed: BTreeSet<_> = old.keys().filter(|key| !new.contains_key(*key)).cloned().collect();
    if set.is_empty() && removed.is_empty() {
        StateRef::Stored(parent)
    } else {
        StateRef::Changed { parent, set, removed }
    }
}

fn fetch_all<V: RoomView>(
    view: &V,
    ids: &[OwnedEventId],
) -> Result<Result<Vec<Known>, Vec<OwnedEventId>>, V::Error> {
    let mut found = Vec::with_capacity(ids.len());
    let mut missing = Vec::new();
    for event_id in ids {
        match view.event(event_id)? {
            Some(known) => found.push(known),
            None => missing.push(event_id.clone()),
        }
    }
    Ok(if missing.is_empty() { Ok(found) } else { Err(missing) })
}

fn fetch_prev<V: RoomView>(
    view: &V,
    pdu: &Pdu,
) -> Result<Result<BTreeSet<StateId>, Verdict>, V::Error> {
    let known = match fetch_all(view, pdu.prev_events())? {
        Ok(known) => known,
        Err(missing) => return Ok(Err(missing_events(missing))),
    };
    if known.is_empty() {
        // Only a create event has none, and a room that we are in has its own already.
        return Ok(Err(Verdict::Drop("the event follows no other".to_owned())));
    }
    if known.iter().any(|event| event.pdu.room_id() != pdu.room_id()) {
        return Ok(Err(Verdict::Drop("the event is of another room".to_owned())));
    }
    let mut states = BTreeSet::new();
    let mut stateless = Vec::new();
    for event in known {
        match event.state_after {
            Some(state) => {
                states.insert(state);
            }
            None => stateless.push(event.pdu.event_id().to_owned()),
        }
    }
    Ok(if stateless.is_empty() {
        Ok(states)
    } else {
        Err(Verdict::Missing { events: Vec::new(), state: stateless, keys: Vec::new() })
    })
}

fn missing_events(events: Vec<OwnedEventId>) -> Verdict {
    Verdict::Missing { events, state: Vec::new(), keys: Vec::new() }
}

/// The version that the rules are looked up by is that of the create event.
#[must_use]
pub fn version_of(create: &Pdu) -> Option<RoomVersionId> {
    create.content_field::<RoomVersionId>("room_version")
}
