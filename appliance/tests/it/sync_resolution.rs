//! What clients make of a room whose state was decided by state resolution: they have the room's state, however events
//! from elsewhere arrive between their syncs.

use std::{cell::RefCell, collections::BTreeMap};

use proptest::prelude::*;
use ring::signature::{Ed25519KeyPair, KeyPair};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, RoomId,
    RoomVersionId, ServerName,
    api::client::{
        filter::FilterDefinition,
        room::create_room::v3::RoomPreset,
        sync::sync_events::v3::{JoinedRoom, State},
    },
    canonical_json::RedactingSerializer,
    serde::{Base64, base64::Standard},
    signatures::PublicKeySet,
};
use sallyport::service::receive::{self, NothingMore, Report};
use sallyport_core::{
    event::{KeyLookup, KeySource, Pdu},
    room,
    time::Millis,
};
use serde_json::{Value, json};

use crate::member::{Member, NOW, TestBox, bodies, values};

const MOD: &str = "@mod:bravo.test";

/// Bravo's key.
struct Bravo(Ed25519KeyPair);

impl KeySource for Bravo {
    fn keys(&self, _: &ServerName, _: Millis) -> KeyLookup {
        let key = Base64::new(self.0.public_key().as_ref().to_vec());
        KeyLookup::Keys(PublicKeySet::from([("ed25519:1".to_owned(), key)]))
    }
}

/// A room of alpha's in which a moderator of bravo takes part.
struct Shared {
    _test: TestBox,
    alice: Member,
    room_id: OwnedRoomId,
    bravo: Bravo,
    levels: OwnedEventId,
    join: RefCell<OwnedEventId>,
}

impl Shared {
    fn new() -> Self {
        let test = TestBox::new();
        let alice = test.member("alice");
        let room_id = alice.create(RoomPreset::PublicChat);
        let levels = json!({ "users": { MOD: 50 } });
        let levels = alice.set_state(&room_id, "m.room.power_levels", "", levels).unwrap();
        let bravo = Bravo(Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap());
        let join = RefCell::new(levels.clone());
        let shared = Self { _test: test, alice, room_id, bravo, levels, join };
        let rules = shared.current("m.room.join_rules", "").unwrap();
        let content = json!({ "membership": "join" });
        let prev = [shared.levels.clone()];
        let auth = [shared.levels.clone(), rules];
        let (join, wire) = shared.write("m.room.member", Some(MOD), content, NOW.0, &prev, &auth);
        assert_eq!(shared.receive(wire).accepted, 1);
        *shared.join.borrow_mut() = join;
        shared
    }

    /// An event by bravo's moderator.
    fn write(
        &self,
        kind: &str,
        key: Option<&str>,
        content: Value,
        ts: u64,
        prev: &[OwnedEventId],
        auth: &[OwnedEventId],
    ) -> (OwnedEventId, Vec<u8>) {
        let rules = room::rules(&RoomVersionId::V12).unwrap();
        let mut event = json!({
            "type": kind, "sender": MOD, "content": content, "room_id": self.room_id,
            "origin_server_ts": ts, "depth": 50, "prev_events": prev, "auth_events": auth,
        });
        if let Some(key) = key {
            event["state_key"] = json!(key);
        }
        let mut object: CanonicalJsonObject = serde_json::from_value(event).unwrap();
        ruma::signatures::add_content_hash_to_event(&mut object).unwrap();
        let event_id = Pdu::new(object.clone(), &rules).unwrap().event_id().to_owned();
        let bytes = RedactingSerializer::new().rules(&rules.redaction).serialize(&object).unwrap();
        let signature = self.bravo.0.sign(bytes.as_bytes()).as_ref().to_vec();
        let signature = Base64::<Standard, _>::new(signature).encode();
        let signatures = json!({ "bravo.test": { "ed25519:1": signature } });
        let signatures: CanonicalJsonValue = serde_json::from_value(signatures).unwrap();
        object.insert("signatures".to_owned(), signatures);
        (event_id, serde_json::to_vec(&object).unwrap())
    }

    fn receive(&self, wire: Vec<u8>) -> Report {
        let store = &self.alice.app.store;
        receive::receive(store, &self.room_id, vec![wire], &self.bravo, &mut NothingMore, NOW)
            .unwrap()
    }

    /// The moderator sets a piece of state, at that time, after that event.
    fn set_from_bravo(&self, kind: &str, text: &str, ts: u64, after: &EventId) -> OwnedEventId {
        let auth = [self.levels.clone(), self.join.borrow().clone()];
        let content = json!({ "topic": text, "name": text });
        let (event_id, wire) = self.write(kind, Some(""), content, ts, &[after.to_owned()], &auth);
        assert_eq!(self.receive(wire).accepted, 1);
        event_id
    }

    fn current(&self, kind: &str, key: &str) -> Option<OwnedEventId> {
        self.state().remove(&(kind.to_owned(), key.to_owned()))
    }

    fn state(&self) -> BTreeMap<(String, String), OwnedEventId> {
        let read = self.alice.app.store.read(|read| {
            let room = read.room(&self.room_id)?.unwrap();
            read.current_state(&room)
        });
        let events = read.unwrap();
        let entries = events.iter().map(|event| {
            let key = event.pdu.state_key().unwrap().to_owned();
            ((event.pdu.kind().to_string(), key), event.pdu.event_id().to_owned())
        });
        entries.collect()
    }
}

/// A client, which takes what sync says for the state of the room.
#[derive(Default)]
struct Client {
    since: Option<String>,
    state: BTreeMap<(String, String), OwnedEventId>,
}

impl Client {
    fn take(&mut self, joined: &JoinedRoom) {
        match &joined.state {
            State::Before(state) => {
                self.apply(&values(&state.events));
                self.apply(&values(&joined.timeline.events));
            }
            State::After(state) => self.apply(&values(&state.events)),
            other => panic!("{other:?}"),
        }
    }

    fn apply(&mut self, events: &[Value]) {
        for event in events {
            if let Some(key) = event["state_key"].as_str() {
                let kind = event["type"].as_str().unwrap().to_owned();
                let event_id = event["event_id"].as_str().unwrap().try_into().unwrap();
                self.state.insert((kind, key.to_owned()), event_id);
            }
        }
    }

    fn sync(&mut self, member: &Member, room_id: &RoomId, limit: u8, state_after: bool) {
        let filter: FilterDefinition =
            serde_json::from_value(json!({ "room": { "timeline": { "limit": limit } } })).unwrap();
        let answer = member.sync_as(self.since.as_deref(), filter, state_after);
        if let Some(joined) = answer.rooms.join.get(room_id) {
            self.take(joined);
        }
        self.since = Some(answer.next_batch);
    }
}

#[test]
fn a_topic_that_lost_is_history_to_a_client_that_takes_the_timeline_for_the_state() {
    let shared = Shared::new();
    let (alice, room_id) = (&shared.alice, &shared.room_id);
    let fork = shared.join.borrow().clone();
    let ours = alice.set_state(room_id, "m.room.topic", "", json!({ "topic": "ours" })).unwrap();
    let since = alice.sync(None).next_batch;
    alice.say(room_id, "before");
    // It was set before ours, by a member who did not know ours, and is accepted; ours stands.
    let theirs = shared.set_from_bravo("m.room.topic", "theirs", NOW.0 - 1, &fork);
    alice.say(room_id, "behind");
    assert_eq!(shared.current("m.room.topic", ""), Some(ours.clone()));

    let answer = alice.sync(Some(&since));
    let joined = &answer.rooms.join[room_id];
    assert_eq!(bodies(&joined.timeline.events), ["behind"]);
    assert_eq!(joined.timeline.events.len(), 1);
    assert!(joined.timeline.limited);
    // What was left out is where the client looks for what came before.
    let before = alice.page_back(room_id, joined.timeline.prev_batch.as_deref().unwrap(), 2);
    assert_eq!(before[0], theirs);

    // Who asks for the state after the timeline gets the whole timeline.
    let answer = alice.sync_state_after(&since);
    let joined = &answer.rooms.join[room_id];
    assert_eq!(joined.timeline.events.len(), 3);
    assert!(!joined.timeline.limited);
    assert!(joined.state.is_empty());

    // Nothing but what lost: the gap is told all the same.
    let since = alice.sync(None).next_batch;
    let theirs = shared.set_from_bravo("m.room.topic", "theirs again", NOW.0 - 1, &fork);
    let answer = alice.sync(Some(&since));
    let joined = &answer.rooms.join[room_id];
    assert!(joined.timeline.limited && joined.timeline.events.is_empty());
    let before = alice.page_back(room_id, joined.timeline.prev_batch.as_deref().unwrap(), 1);
    assert_eq!(before, [theirs]);
}

#[test]
fn a_topic_that_came_back_by_resolution_is_told() {
    let shared = Shared::new();
    let (alice, room_id) = (&shared.alice, &shared.room_id);
    let fork = shared.join.borrow().clone();
    let theirs = shared.set_from_bravo("m.room.topic", "theirs", NOW.0 + 10, &fork);
    // On top of both ends ours takes its place.
    let ours = alice.set_state(room_id, "m.room.topic", "", json!({ "topic": "ours" })).unwrap();
    assert_eq!(shared.current("m.room.topic", ""), Some(ours));
    let since = alice.sync(None).next_batch;
    // A message on the moderator's side makes that side an end of the room again: its topic is the later one.
    let auth = [shared.levels.clone(), shared.join.borrow().clone()];
    let content = json!({ "msgtype": "m.text", "body": "by mod" });
    let prev = [theirs.clone()];
    let (_, wire) = shared.write("m.room.message", None, content, NOW.0 + 11, &prev, &auth);
    assert_eq!(shared.receive(wire).accepted, 1);
    assert_eq!(shared.current("m.room.topic", ""), Some(theirs.clone()));

    for answer in [alice.sync(Some(&since)), alice.sync_state_after(&since)] {
        let joined = &answer.rooms.join[room_id];
        assert_eq!(bodies(&joined.timeline.events), ["by mod"]);
        let told = match &joined.state {
            State::Before(state) => values(&state.events),
            State::After(state) => values(&state.events),
            other => panic!("{other:?}"),
        };
        assert_eq!(told.len(), 1);
        assert_eq!(told[0]["event_id"], theirs.as_str());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Say,
    Set { name: bool },
    SetFromBravo { name: bool, later: bool, after: usize },
    Sync { limit: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let from_bravo = (any::<bool>(), any::<bool>(), 0..8_usize);
    prop_oneof![
        2 => Just(Step::Say),
        2 => any::<bool>().prop_map(|name| Step::Set { name }),
        4 => from_bravo.prop_map(|(name, later, after)| Step::SetFromBravo { name, later, after }),
        3 => (1..6_u8).prop_map(|limit| Step::Sync { limit }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn clients_have_the_rooms_state_after_each_sync(steps in prop::collection::vec(step(), 1..30)) {
        let shared = Shared::new();
        let (alice, room_id) = (&shared.alice, &shared.room_id);
        let mut events = vec![shared.join.borrow().clone()];
        let (mut classic, mut modern) = (Client::default(), Client::default());
        let kind = |name: bool| if name { "m.room.name" } else { "m.room.topic" };
        for (number, step) in (1..).zip(steps) {
            let text = number.to_string();
            match step {
                Step::Say => events.push(alice.say(room_id, &text)),
                Step::Set { name } => {
                    let content = json!({ "topic": text, "name": text });
                    events.push(alice.set_state(room_id, kind(name), "", content).unwrap());
                }
                Step::SetFromBravo { name, later, after } => {
                    let ts = if later { NOW.0 + number } else { NOW.0 - number };
                    let after = events[events.len().saturating_sub(1 + after)].clone();
                    events.push(shared.set_from_bravo(kind(name), &text, ts, &after));
                }
                Step::Sync { limit } => {
                    classic.sync(alice, room_id, limit, false);
                    modern.sync(alice, room_id, limit, true);
                    prop_assert_eq!(&classic.state, &shared.state());
                    prop_assert_eq!(&modern.state, &shared.state());
                }
            }
        }
    }
}
