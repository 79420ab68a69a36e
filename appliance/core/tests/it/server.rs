//! A server in memory: the rules over plain maps, as the store keeps them over tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
};

use ed25519_dalek::{Signer, SigningKey};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedServerName, OwnedUserId,
    RoomVersionId, canonical_json::RedactingSerializer, events::StateEventType,
    room_version_rules::RoomVersionRules, serde::Base64, signatures::PublicKeySet,
};
use sallyport_core::{
    event::{KeyLookup, KeySource, Pdu, Signed, Status},
    room::{
        self, Change, CurrentState, Head, Intent, Known, RoomView, StateId, StateMap, StateRef,
        Verdict, create::Founded,
    },
    time::Millis,
};

/// Every server of a test and its key.
pub(crate) struct Keys(pub(crate) BTreeMap<OwnedServerName, SigningKey>);

impl Keys {
    pub(crate) fn of(servers: &[&str]) -> Self {
        Self(
            servers
                .iter()
                .zip(1_u8..)
                .map(|(name, seed)| {
                    ((*name).try_into().unwrap(), SigningKey::from_bytes(&[seed; 32]))
                })
                .collect(),
        )
    }

    pub(crate) fn sign(&self, pdu: &Arc<Pdu>, rules: &RoomVersionRules) -> Signed {
        let key = &self.0[pdu.sender().server_name()];
        let bytes = RedactingSerializer::new()
            .rules(&rules.redaction)
            .custom_redacted_root_fields(&["signatures", "unsigned"])
            .serialize(&pdu.object().unwrap())
            .unwrap();
        Signed::attach(
            Arc::clone(pdu),
            &"ed25519:1".try_into().unwrap(),
            key.verifying_key().as_bytes(),
            &key.sign(bytes.as_bytes()).to_bytes(),
            rules,
        )
        .unwrap()
    }
}

impl KeySource for Keys {
    fn keys(&self, server: &ruma::ServerName, _: Millis) -> KeyLookup {
        match self.0.get(server) {
            None => KeyLookup::Unknown,
            Some(key) => KeyLookup::Keys(PublicKeySet::from([(
                "ed25519:1".to_owned(),
                Base64::new(key.verifying_key().as_bytes().to_vec()),
            )])),
        }
    }
}

/// One room on one server.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) rules: RoomVersionRules,
    pub(crate) head: Option<Head>,
    pub(crate) events: BTreeMap<OwnedEventId, (Known, Option<Signed>)>,
    states: Vec<Arc<StateMap>>,
    redactions: BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    pub(crate) redacted: BTreeSet<OwnedEventId>,
}

impl Server {
    pub(crate) fn new(version: &RoomVersionId) -> Self {
        Self {
            rules: room::rules(version).unwrap(),
            head: None,
            events: BTreeMap::new(),
            states: Vec::new(),
            redactions: BTreeMap::new(),
            redacted: BTreeSet::new(),
        }
    }

    pub(crate) fn found(&mut self, founded: &Founded, keys: &Keys) {
        let mut map = StateMap::new();
        for pdu in &founded.events {
            map.insert(key_of(pdu), pdu.event_id().to_owned());
            let state = self.store(map.clone());
            let signed = keys.sign(pdu, &self.rules);
            self.insert(signed, Status::Accepted, false, state);
            self.head = Some(Head {
                version: founded.version.clone(),
                state,
                extremities: vec![pdu.event_id().to_owned()],
                exposed: false,
            });
        }
    }

    /// Puts an event in place as a forward extremity with this state after it, without asking whether it is allowed.
    pub(crate) fn place(&mut self, signed: Signed, state: StateMap) {
        let event_id = signed.pdu().event_id().to_owned();
        let after = self.store(state);
        // What was placed before stays an extremity if it is a message: state events make a line.
        let followed = |known: &Known| known.pdu.state_key().is_some();
        self.insert(signed, Status::Accepted, false, after);
        let events = &self.events;
        if let Some(head) = &mut self.head {
            head.state = after;
            head.extremities.retain(|id| !followed(&events[id].0));
            head.extremities.push(event_id);
        }
    }

    /// A local user does something; the event is drafted, sealed, signed and put in place.
    pub(crate) fn send(&mut self, intent: Intent, keys: &Keys) -> Result<Signed, room::Refusal> {
        let head = self.head.clone().unwrap();
        let room_id = self.events[&head.extremities[0]].0.pdu.room_id().to_owned();
        let draft = room::draft(self, &room_id, intent).unwrap()?;
        let depth =
            head.extremities.iter().map(|id| self.events[id].0.pdu.depth()).max().unwrap() + 1;
        let pdu = Arc::new(draft.seal(&head.extremities, depth).unwrap());
        let signed = keys.sign(&pdu, &self.rules);
        let verdict =
            self.receive(signed.to_wire().unwrap().as_bytes(), keys, Millis(u64::MAX / 2));
        assert!(matches!(verdict, Verdict::Accept(_)), "own event: {verdict:?}");
        Ok(signed)
    }

    /// An event that follows these, well-formed and well-signed; nobody asks whether its sender has the right to send it.
    pub(crate) fn forge(&self, intent: Intent, prev: &[OwnedEventId], keys: &Keys) -> String {
        let current = self.current();
        let mut auth: Vec<_> =
            [("m.room.power_levels", ""), ("m.room.member", intent.sender.as_str())]
                .iter()
                .filter_map(|(kind, key)| current.get(&((*kind).to_owned(), (*key).to_owned())))
                .collect();
        if !self.rules.authorization.room_create_event_id_as_room_id {
            auth.push(&current[&("m.room.create".to_owned(), String::new())]);
        }
        let depth = prev.iter().map(|id| self.events[id].0.pdu.depth()).max().unwrap() + 1;
        let mut object = content(
            &serde_json::json!({
                "type": intent.kind, "sender": intent.sender, "content": intent.content,
                "room_id": self.events[&prev[0]].0.pdu.room_id(), "depth": depth,
                "origin_server_ts": intent.origin_server_ts.0, "prev_events": prev, "auth_events": auth,
            })
            .to_string(),
        );
        if let Some(key) = intent.state_key {
            object.insert("state_key".to_owned(), CanonicalJsonValue::String(key));
        }
        ruma::signatures::add_content_hash_to_event(&mut object).unwrap();
        let pdu = Arc::new(Pdu::new(object, &self.rules).unwrap());
        keys.sign(&pdu, &self.rules).to_wire().unwrap()
    }

    /// An event arrives: judged, and put in place if it has one.
    pub(crate) fn receive(&mut self, bytes: &[u8], keys: &Keys, now: Millis) -> Verdict {
        let incoming = match room::parse(bytes, &self.rules) {
            Ok(incoming) => incoming,
            Err(error) => return Verdict::Drop(error.to_string()),
        };
        let checked = match incoming.verify(keys, &self.rules) {
            Ok(checked) => checked,
            Err(verdict) => return *verdict,
        };
        let verdict = room::decide(self, checked, now).unwrap();
        match &verdict {
            Verdict::Accept(change)
            | Verdict::AcceptRedacted(change)
            | Verdict::SoftFail(change, _)
            | Verdict::Reject(change, _) => self.apply(change),
            _ => {}
        }
        verdict
    }

    fn apply(&mut self, change: &Change) {
        let pdu = Arc::clone(change.event.pdu());
        let before = self.resolve(&change.state_before);
        let after = if change.sets_state {
            let mut map = (*self.states[before.0 as usize]).clone();
            map.insert(key_of(&pdu), pdu.event_id().to_owned());
            self.store(map)
        } else {
            before
        };
        self.insert(change.event.clone(), change.status, change.gutted, after);
        let state = match &change.current {
            CurrentState::Unchanged => change.based_on.state,
            CurrentState::AfterEvent => after,
            CurrentState::Resolved(state) => self.resolve(state),
        };
        if let Some(target) = pdu.redacts() {
            self.redactions.entry(target.to_owned()).or_default().push(pdu.event_id().to_owned());
        }
        self.redacted.extend(change.redactions.iter().map(|(target, _)| target.clone()));
        self.head = Some(Head {
            state,
            extremities: change.extremities.clone(),
            ..change.based_on.clone()
        });
    }

    fn insert(&mut self, signed: Signed, status: Status, gutted: bool, after: StateId) {
        let pdu = Arc::clone(signed.pdu());
        let known = Known { pdu: Arc::clone(&pdu), status, gutted, state_after: Some(after) };
        self.events.insert(pdu.event_id().to_owned(), (known, Some(signed)));
    }

    fn store(&mut self, map: StateMap) -> StateId {
        self.states.push(Arc::new(map));
        StateId(self.states.len() as i64 - 1)
    }

    fn resolve(&mut self, state: &StateRef) -> StateId {
        match state {
            StateRef::Stored(state) => *state,
            StateRef::Changed { parent, set, removed } => {
                let mut map = (*self.states[parent.0 as usize]).clone();
                map.extend(set.clone());
                map.retain(|key, _| !removed.contains(key));
                self.store(map)
            }
        }
    }

    /// What was decided about an event: whether it is rejected, and the state after it.
    pub(crate) fn judgement(
        &self,
        event_id: &EventId,
    ) -> (bool, BTreeMap<(String, String), OwnedEventId>) {
        let (known, _) = &self.events[event_id];
        (known.status == Status::Rejected, self.state(known.state_after.unwrap()))
    }

    /// Events that no event follows, rejected ones aside.
    pub(crate) fn leaves(&self) -> Vec<OwnedEventId> {
        let standing =
            || self.events.values().filter(|(known, _)| known.status != Status::Rejected);
        let followed: BTreeSet<_> =
            standing().flat_map(|(known, _)| known.pdu.prev_events()).collect();
        let leaves = standing().map(|(known, _)| known.pdu.event_id());
        leaves.filter(|id| !followed.contains(&(*id).to_owned())).map(ToOwned::to_owned).collect()
    }

    /// The forward extremities, in order.
    pub(crate) fn ends(&self) -> Vec<OwnedEventId> {
        let mut ends = self.head.clone().unwrap().extremities;
        ends.sort();
        ends
    }

    /// The current state, in order.
    pub(crate) fn current(&self) -> BTreeMap<(String, String), OwnedEventId> {
        self.state(self.head.as_ref().unwrap().state)
    }

    fn state(&self, state: StateId) -> BTreeMap<(String, String), OwnedEventId> {
        self.states[state.0 as usize]
            .iter()
            .map(|((kind, key), id)| ((kind.to_string(), key.clone()), id.clone()))
            .collect()
    }

    /// What a user is in the room.
    pub(crate) fn membership(&self, user: &str) -> Option<String> {
        let id = self.current().get(&("m.room.member".to_owned(), user.to_owned())).cloned()?;
        self.events[&id].0.pdu.content_field("membership")
    }
}

impl RoomView for Server {
    type Error = Infallible;

    fn head(&self) -> Result<Option<Head>, Infallible> {
        Ok(self.head.clone())
    }
    fn event(&self, event_id: &EventId) -> Result<Option<Known>, Infallible> {
        Ok(self.events.get(event_id).map(|(known, _)| known.clone()))
    }
    fn state_entry(
        &self,
        state: StateId,
        kind: &StateEventType,
        key: &str,
    ) -> Result<Option<OwnedEventId>, Infallible> {
        Ok(self.states[state.0 as usize].get(&(kind.clone(), key.to_owned())).cloned())
    }
    fn state_map(&self, state: StateId) -> Result<Arc<StateMap>, Infallible> {
        Ok(Arc::clone(&self.states[state.0 as usize]))
    }
    fn redactions_of(&self, event_id: &EventId) -> Result<Vec<OwnedEventId>, Infallible> {
        Ok(self.redactions.get(event_id).cloned().unwrap_or_default())
    }
}

fn key_of(pdu: &Pdu) -> (StateEventType, String) {
    (StateEventType::from(pdu.kind().to_string()), pdu.state_key().unwrap().to_owned())
}

pub(crate) fn user(id: &str) -> OwnedUserId {
    id.try_into().unwrap()
}

pub(crate) fn content(json: &str) -> CanonicalJsonObject {
    let CanonicalJsonValue::Object(object) = serde_json::from_str(json).unwrap() else {
        panic!("not an object: {json}")
    };
    object
}

/// A state event by a user.
pub(crate) fn state(sender: &str, kind: &str, key: &str, json: &str, ts: u64) -> Intent {
    Intent::state(&user(sender), kind.into(), key, content(json), Millis(ts))
}

/// A message by a user.
pub(crate) fn message(sender: &str, body: &str, ts: u64) -> Intent {
    Intent {
        sender: user(sender),
        kind: "m.room.message".into(),
        state_key: None,
        content: content(&format!(r#"{{"msgtype":"m.text","body":"{body}"}}"#)),
        redacts: None,
        origin_server_ts: Millis(ts),
    }
}

/// A member event by a user.
pub(crate) fn member(sender: &str, target: &str, membership: &str, ts: u64) -> Intent {
    state(sender, "m.room.member", target, &format!(r#"{{"membership":"{membership}"}}"#), ts)
}

/// A room founded by alice, open to everyone who is invited, or to all if `join_rule` says so.
pub(crate) fn founded(version: &RoomVersionId, join_rule: &str) -> Founded {
    let alice = "@alice:alpha.test";
    let levels = if *version == RoomVersionId::V12 {
        r#"{"users":{},"invite":0}"#.to_owned()
    } else {
        format!(r#"{{"users":{{"{alice}":100}},"invite":0}}"#)
    };
    room::create::create(
        version,
        "!room:alpha.test".try_into().unwrap(),
        &user(alice),
        CanonicalJsonObject::new(),
        Millis(1000),
        vec![
            member(alice, alice, "join", 1001),
            state(alice, "m.room.power_levels", "", &levels, 1002),
            state(
                alice,
                "m.room.join_rules",
                "",
                &format!(r#"{{"join_rule":"{join_rule}"}}"#),
                1003,
            ),
        ],
    )
    .unwrap()
}
