//! Rooms as they are founded, grow, move and are taken over.

use std::sync::Arc;

use ed25519_dalek::{Signer, SigningKey};
use ring::hmac;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, RoomVersionId, ServerName,
    UserId,
    canonical_json::RedactingSerializer,
    events::{StateEventType, room::member::MembershipState},
    serde::Base64,
    server_name,
    signatures::PublicKeySet,
};
use sallyport_core::{
    event::{KeyLookup, KeySource, Signed},
    merkle::Tree,
    room::{self, Checked, Intent, Overlay, Verdict, create, snapshot},
    time::Millis,
};
use sallyport_store::{Direction, Error, Options, Outcome, SignedBatch, Store};

const ALICE: &str = "@alice:alpha.test";
const BOB: &str = "@bob:bravo.test";
const NOW: Millis = Millis(1_000_000);

struct Place {
    store: Store,
    mac: hmac::Key,
    _directory: tempfile::TempDir,
}

fn place(server_name: &ServerName) -> Place {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Options {
        path: &directory.path().join("db"),
        server_name,
        fresh_incarnation: [1; 16],
        on_commit: Box::new(|_| {}),
    })
    .unwrap();
    Place { store, mac: hmac::Key::new(hmac::HMAC_SHA256, b"test"), _directory: directory }
}

fn key(server: &ServerName) -> SigningKey {
    SigningKey::from_bytes(&[u8::try_from(server.as_str().len()).unwrap(); 32])
}

struct Keys;

impl KeySource for Keys {
    fn keys(&self, server: &ServerName, _: Millis) -> KeyLookup {
        KeyLookup::Keys(PublicKeySet::from([(
            "ed25519:1".to_owned(),
            Base64::new(key(server).verifying_key().as_bytes().to_vec()),
        )]))
    }
}

fn content(json: &str) -> CanonicalJsonObject {
    match serde_json::from_str(json).unwrap() {
        CanonicalJsonValue::Object(object) => object,
        _ => panic!("not an object"),
    }
}

fn user(id: &str) -> &UserId {
    id.try_into().unwrap()
}

fn state(sender: &str, kind: &str, key: &str, json: &str, ts: u64) -> Intent {
    Intent::state(user(sender), kind.into(), key, content(json), Millis(ts))
}

fn member(sender: &str, target: &str, membership: &str, ts: u64) -> Intent {
    state(sender, "m.room.member", target, &format!(r#"{{"membership":"{membership}"}}"#), ts)
}

fn message(sender: &str, body: &str, ts: u64) -> Intent {
    Intent {
        state_key: None,
        ..state(sender, "m.room.message", "", &format!(r#"{{"body":"{body}"}}"#), ts)
    }
}

impl Place {
    fn found(&self, join_rule: &str) -> OwnedRoomId {
        self.found_at(join_rule, Millis(1000))
    }

    /// Rooms that are founded at different times are different rooms.
    fn found_at(&self, join_rule: &str, time: Millis) -> OwnedRoomId {
        let founded = create::create(
            &RoomVersionId::V12,
            "!unused:alpha.test".try_into().unwrap(),
            user(ALICE),
            CanonicalJsonObject::new(),
            time,
            vec![
                member(ALICE, ALICE, "join", 1001),
                state(ALICE, "m.room.power_levels", "", r#"{"users":{}}"#, 1002),
                state(
                    ALICE,
                    "m.room.join_rules",
                    "",
                    &format!(r#"{{"join_rule":"{join_rule}"}}"#),
                    1003,
                ),
            ],
        )
        .unwrap();
        let room_id = founded.room_id.clone();
        let mac = self.mac.clone();
        self.store.write(move |write| write.found_room(&founded, &mac)).unwrap();
        room_id
    }

    fn draft(&self, room_id: &OwnedRoomId, intent: Intent) -> room::Draft {
        self.store.read(|read| room::draft(&read.view(room_id)?, room_id, intent)).unwrap().unwrap()
    }

    fn send(&self, room_id: &OwnedRoomId, intent: Intent) -> OwnedEventId {
        let draft = self.draft(room_id, intent);
        let mac = self.mac.clone();
        match self.store.write(move |write| write.append(draft, None, &mac)).unwrap() {
            Outcome::Done(placed) => placed.unwrap().event_id,
            Outcome::Stale => panic!("stale"),
        }
    }

    /// The ids of the events that wait.
    fn events_to_sign(&self, room_id: &OwnedRoomId) -> Vec<OwnedEventId> {
        let unsigned =
            self.store.read(|read| read.unsigned(room_id, &self.mac, None, 1000)).unwrap();
        let events = unsigned.unwrap().events.into_iter();
        events.map(|event| event.pdu.event_id().to_owned()).collect()
    }

    /// Signs everything that waits and answers it as it goes over the wire.
    fn sign(&self, room_id: &OwnedRoomId) -> Vec<String> {
        self.sign_some(room_id, 1000)
    }

    fn sign_some(&self, room_id: &OwnedRoomId, limit: usize) -> Vec<String> {
        let Some(unsigned) =
            self.store.read(|read| read.unsigned(room_id, &self.mac, None, limit)).unwrap()
        else {
            return Vec::new();
        };
        let rules = room::rules(&unsigned.room.version).unwrap();
        let events: Vec<_> = unsigned
            .events
            .into_iter()
            .map(|event| {
                let server = event.pdu.sender().server_name();
                let bytes = RedactingSerializer::new()
                    .rules(&rules.redaction)
                    .custom_redacted_root_fields(&["signatures", "unsigned"])
                    .serialize(&event.pdu.object().unwrap())
                    .unwrap();
                let key = key(server);
                let signed = Signed::attach(
                    Arc::clone(&event.pdu),
                    &"ed25519:1".try_into().unwrap(),
                    key.verifying_key().as_bytes(),
                    &key.sign(bytes.as_bytes()).to_bytes(),
                    &rules,
                );
                (event.position, signed.unwrap())
            })
            .collect();
        let wire = events.iter().map(|(_, signed)| signed.to_wire().unwrap()).collect();
        let mac = unsigned.macs.last().unwrap().clone();
        let (key, room_id) = ("event:0000000000000001".to_owned(), room_id.clone());
        let batch = SignedBatch { key, at: NOW, room_id, events, mac };
        self.store.write(move |write| write.store_signatures(&batch)).unwrap();
        wire
    }

    fn receive(&self, room_id: &OwnedRoomId, events: &[String]) -> Vec<String> {
        let (changes, verdicts) = self
            .store
            .read(|read| {
                let view = read.view(room_id)?;
                let mut overlay = Overlay::new(&view)?;
                let (mut changes, mut verdicts) = (Vec::new(), Vec::new());
                for event in events {
                    let verdict = room::decide(&overlay, checked(event), NOW)?;
                    verdicts
                        .push(format!("{verdict:?}").split(['(', ' ']).next().unwrap().to_owned());
                    if let Verdict::Accept(change)
                    | Verdict::AcceptRedacted(change)
                    | Verdict::SoftFail(change, _)
                    | Verdict::Reject(change, _) = verdict
                    {
                        overlay.push(&change);
                        changes.push(change);
                    }
                }
                Ok::<_, Error>((changes, verdicts))
            })
            .unwrap();
        if !changes.is_empty() {
            let room_id = room_id.clone();
            let outcome = self.store.write(move |write| write.apply(&room_id, &changes)).unwrap();
            assert!(matches!(outcome, Outcome::Done(_)));
        }
        verdicts
    }

    fn bodies(&self, room_id: &OwnedRoomId) -> Vec<String> {
        self.store
            .read(|read| {
                let room = read.room(room_id)?.unwrap();
                let events = read.timeline(&room, i64::MIN, i64::MAX, Direction::Forward, 1000)?;
                let bodies = events.iter().filter_map(|event| event.pdu.content_field("body"));
                Ok::<_, Error>(bodies.collect())
            })
            .unwrap()
    }

    fn membership(&self, room_id: &OwnedRoomId, user_id: &str) -> Option<MembershipState> {
        self.store
            .read(|read| {
                let room = read.room(room_id)?.unwrap();
                read.membership(&room, user(user_id))
            })
            .unwrap()
            .map(|membership| membership.membership)
    }
}

fn checked(event: &str) -> Checked {
    let rules = room::rules(&RoomVersionId::V12).unwrap();
    room::parse(event.as_bytes(), &rules).unwrap().verify(&Keys, &rules).unwrap()
}

#[test]
fn messages_follow_each_other_and_never_copy_the_state() {
    let alpha = place(server_name!("alpha.test"));
    let room_id = alpha.found("invite");
    let before = alpha.store.read(|read| read.room(&room_id)).unwrap().unwrap();
    for number in 0..10 {
        alpha.send(&room_id, message(ALICE, &format!("m{number}"), 2000 + number));
    }
    let after = alpha.store.read(|read| read.room(&room_id)).unwrap().unwrap();
    assert_eq!(before.state, after.state);
    assert_eq!(after.extremities.len(), 1);
    assert_eq!(after.depth, before.depth + 10);
    assert_eq!(alpha.bodies(&room_id), (0..10).map(|n| format!("m{n}")).collect::<Vec<_>>());
}

#[test]
fn a_draft_of_a_state_that_has_passed_is_stale() {
    let alpha = place(server_name!("alpha.test"));
    let room_id = alpha.found("invite");
    let draft = alpha.draft(&room_id, message(ALICE, "late", 2000));
    alpha.send(&room_id, state(ALICE, "m.room.topic", "", r#"{"topic":"x"}"#, 2001));
    let mac = alpha.mac.clone();
    let outcome = alpha.store.write(move |write| write.append(draft, None, &mac)).unwrap();
    assert!(matches!(outcome, Outcome::Stale));
}

#[test]
fn a_whole_state_can_be_read_at_any_point_of_a_long_history() {
    let alpha = place(server_name!("alpha.test"));
    let room_id = alpha.found("invite");
    let mut checkpoints = Vec::new();
    for number in 0..200_u64 {
        let key = format!("key{}", number % 7);
        let event_id = alpha.send(
            &room_id,
            state(ALICE, "test.state", &key, &format!(r#"{{"n":{number}}}"#), 2000 + number),
        );
        let room = alpha.store.read(|read| read.room(&room_id)).unwrap().unwrap();
        checkpoints.push((room.state, key, event_id));
    }
    for (state, key, event_id) in checkpoints {
        let map = alpha.store.read(|read| read.state_map(state)).unwrap();
        assert_eq!(map.get(&(StateEventType::from("test.state"), key)), Some(&event_id));
    }
    let room = alpha.store.read(|read| read.room(&room_id)).unwrap().unwrap();
    let (map, current) = alpha
        .store
        .read(|read| Ok::<_, Error>((read.state_map(room.state)?, read.current_state(&room)?)))
        .unwrap();
    assert_eq!(map.len(), current.len());
    assert!(current.iter().all(|event| map.values().any(|id| id == event.pdu.event_id())));
}

#[test]
fn only_rooms_with_members_from_elsewhere_are_signed() {
    let alpha = place(server_name!("alpha.test"));
    let room_id = alpha.found("invite");
    alpha.send(&room_id, message(ALICE, "local", 2000));
    let to_sign = || alpha.store.read(|read| read.rooms_to_sign()).unwrap();
    assert!(to_sign().is_empty());
    let event_id = alpha.send(&room_id, member(ALICE, BOB, "invite", 2001));
    assert_eq!(to_sign(), std::slice::from_ref(&room_id));
    assert!(alpha.store.read(|read| read.signed(&event_id)).unwrap().is_none());
    assert_eq!(alpha.sign(&room_id).len(), 6);
    assert!(to_sign().is_empty());
    assert!(alpha.store.read(|read| read.signed(&event_id)).unwrap().is_some());
}

#[test]
fn the_backlog_counts_what_waits_and_since_when() {
    let alpha = place(server_name!("alpha.test"));
    let (shared, local) = (alpha.found("invite"), alpha.found_at("invite", Millis(999)));
    let backlog = || {
        let found = alpha.store.read(|read| read.backlog()).unwrap();
        (found.events, found.rooms, found.since)
    };
    alpha.send(&local, message(ALICE, "nobody waits for this", 2000));
    assert_eq!(backlog(), (0, 0, None));
    // The room's first events are older, but nothing waited for them before the invite.
    alpha.send(&shared, member(ALICE, BOB, "invite", 2001));
    alpha.send(&shared, message(ALICE, "later", 2002));
    assert_eq!(backlog(), (6, 1, Some(Millis(2001))));
    alpha.sign_some(&shared, 5);
    assert_eq!(backlog(), (1, 1, Some(Millis(2002))));
    alpha.sign(&shared);
    assert_eq!(backlog(), (0, 0, None));
    alpha.send(&shared, message(ALICE, "one more", 2003));
    assert_eq!(backlog(), (1, 1, Some(Millis(2003))));
    assert_eq!(alpha.store.read(|read| read.newest_local_time()).unwrap(), Some(Millis(2003)));
}

#[test]
fn signatures_are_remembered_until_the_audit_log_tells_of_them() {
    let alpha = place(server_name!("alpha.test"));
    let (one, two) = (alpha.found("invite"), alpha.found_at("invite", Millis(999)));
    for room_id in [&one, &two] {
        alpha.send(room_id, member(ALICE, BOB, "invite", 2001));
    }
    let mut tree = Tree::default();
    for room_id in [&one, &two] {
        for event in alpha.events_to_sign(room_id) {
            tree.push(event.as_bytes());
        }
        alpha.sign_some(room_id, 2);
        alpha.sign(room_id);
    }
    let runs = || alpha.store.read(|read| read.signing_runs()).unwrap();
    let run = runs().pop().unwrap();
    assert_eq!((run.rooms, &run.events, run.began), (2, &tree, NOW));
    alpha.store.write(move |write| write.end_signing_run(&run.key)).unwrap();
    assert_eq!(runs(), []);
}

#[test]
fn another_key_does_not_sign_what_this_box_did_not_accept() {
    let alpha = place(server_name!("alpha.test"));
    let room_id = alpha.found("invite");
    alpha.send(&room_id, member(ALICE, BOB, "invite", 2001));
    let other = hmac::Key::new(hmac::HMAC_SHA256, b"other");
    let refused = alpha.store.read(|read| read.unsigned(&room_id, &other, None, 100)).unwrap_err();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
}

/// Alpha invites bob; bravo takes the room over from a snapshot.
fn carried_invite() -> (Place, Place, OwnedRoomId) {
    let alpha = place(server_name!("alpha.test"));
    let bravo = place(server_name!("bravo.test"));
    let room_id = alpha.found("invite");
    let invite = alpha.send(&room_id, member(ALICE, BOB, "invite", 2001));
    alpha.sign(&room_id);
    let wire = |event_id: &OwnedEventId| {
        alpha.store.read(|read| read.signed(event_id)).unwrap().unwrap().to_wire().unwrap()
    };
    let room = alpha.store.read(|read| read.room(&room_id)).unwrap().unwrap();
    let map = alpha.store.read(|read| read.state_map(room.state)).unwrap();
    let takeover = snapshot::found(snapshot::Snapshot {
        version: RoomVersionId::V12,
        state: map.values().map(|id| checked(&wire(id))).collect(),
        auth_chain: Vec::new(),
        anchor: checked(&wire(&invite)),
    })
    .unwrap();
    let outcome = bravo.store.write(move |write| write.take_over(&takeover)).unwrap();
    assert!(matches!(outcome, Outcome::Done(_)));
    (alpha, bravo, room_id)
}

#[test]
fn a_carried_invite_is_joined_without_a_round_trip() {
    let (alpha, bravo, room_id) = carried_invite();
    assert_eq!(bravo.membership(&room_id, BOB), Some(MembershipState::Invite));
    alpha.send(&room_id, message(ALICE, "before the join", 2002));
    let carried = alpha.sign(&room_id);
    assert_eq!(bravo.receive(&room_id, &carried), ["Accept"]);
    bravo.send(&room_id, member(BOB, BOB, "join", 2003));
    bravo.send(&room_id, message(BOB, "after the join", 2004));
    assert_eq!(bravo.bodies(&room_id), ["before the join", "after the join"]);
    let carried = bravo.sign(&room_id);
    assert_eq!(alpha.receive(&room_id, &carried), ["Accept", "Accept"]);
    assert_eq!(alpha.receive(&room_id, &carried), ["Known", "Known"]);
    assert_eq!(alpha.bodies(&room_id), ["before the join", "after the join"]);
    assert_eq!(alpha.membership(&room_id, BOB), Some(MembershipState::Join));
}

#[test]
fn both_sides_of_a_netsplit_end_up_with_the_same_room() {
    let (alpha, bravo, room_id) = carried_invite();
    bravo.send(&room_id, member(BOB, BOB, "join", 2003));
    let joined = bravo.sign(&room_id);
    alpha.receive(&room_id, &joined);
    alpha.send(&room_id, state(ALICE, "m.room.topic", "", r#"{"topic":"alpha"}"#, 3000));
    alpha.send(&room_id, message(ALICE, "from alpha", 3001));
    bravo.send(&room_id, member(BOB, "@dave:bravo.test", "invite", 3000));
    bravo.send(&room_id, member("@dave:bravo.test", "@dave:bravo.test", "join", 3001));
    let (from_alpha, from_bravo) = (alpha.sign(&room_id), bravo.sign(&room_id));
    assert_eq!(bravo.receive(&room_id, &from_alpha), ["Accept", "Accept"]);
    assert_eq!(alpha.receive(&room_id, &from_bravo), ["Accept", "Accept"]);
    let state = |place: &Place| {
        let room = place.store.read(|read| read.room(&room_id)).unwrap().unwrap();
        let map = place.store.read(|read| read.state_map(room.state)).unwrap();
        let mut ids: Vec<_> = map.values().cloned().collect();
        ids.sort();
        let current = place.store.read(|read| read.current_state(&room)).unwrap();
        let mut current: Vec<_> =
            current.iter().map(|event| event.pdu.event_id().to_owned()).collect();
        current.sort();
        assert_eq!(ids, current);
        ids
    };
    assert_eq!(state(&alpha), state(&bravo));
    assert_eq!(alpha.membership(&room_id, "@dave:bravo.test"), Some(MembershipState::Join));
    // The next local event on each side ties the ends together.
    alpha.send(&room_id, message(ALICE, "merged", 3002));
    let room = alpha.store.read(|read| read.room(&room_id)).unwrap().unwrap();
    assert_eq!(room.extremities.len(), 1);
}

#[test]
fn the_true_copy_completes_a_gutted_one_where_it_stands() {
    let (alpha, bravo, room_id) = carried_invite();
    alpha.send(&room_id, state(ALICE, "m.room.topic", "", r#"{"topic":"true"}"#, 3000));
    alpha.send(&room_id, message(ALICE, "true", 3001));
    alpha.send(&room_id, message(ALICE, "last", 3002));
    let carried = alpha.sign(&room_id);
    let gutted: Vec<_> = carried.iter().map(|event| event.replace("true", "false")).collect();
    let verdicts = bravo.receive(&room_id, &gutted);
    assert_eq!(verdicts, ["AcceptRedacted", "AcceptRedacted", "Accept"]);
    let glance = |since: i64| {
        bravo.store.read(|read| {
            let room = read.room(&room_id)?.unwrap();
            let topic = read.state_event(&room, &StateEventType::RoomTopic, "")?.unwrap();
            let news = read.current_state_since(&room, since)?.len();
            let order: Vec<_> = read
                .timeline(&room, i64::MIN, i64::MAX, Direction::Forward, 1000)?
                .iter()
                .map(|event| (event.position, event.state_before, event.state_after))
                .collect();
            Ok::<_, Error>((room, topic.pdu.content_field::<String>("topic"), news, order))
        })
    };
    let (before, topic, _, order) = glance(0).unwrap();
    assert_eq!(topic, None);
    assert_eq!(bravo.bodies(&room_id), ["last"]);

    assert_eq!(bravo.receive(&room_id, &carried), ["Accept", "Accept", "Known"]);
    let (after, topic, news, order_after) = glance(before.newest).unwrap();
    assert_eq!(topic.as_deref(), Some("true"));
    assert_eq!(news, 1, "clients are told the topic again");
    assert_eq!(bravo.bodies(&room_id), ["true", "last"]);
    assert_eq!((after.extremities, after.state), (before.extremities, before.state));
    assert_eq!(order_after, order);
    assert_eq!(bravo.receive(&room_id, &gutted), ["Known", "Known", "Known"]);
}
