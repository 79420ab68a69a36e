//! Threads, reactions and edits, and receipts in threads.

use ruma::{
    EventId, OwnedEventId, RoomId, RoomVersionId,
    api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset},
    events::receipt::ReceiptThread,
};
use sallyport::service::rooms::{
    self, Error,
    receipts::{Receipt, acknowledge},
    relations::{Relating, relating},
};
use sallyport_store::Direction;
use serde_json::{Value, json};

use crate::member::{Member, NOW, TestBox, bodies, values};

fn relate(
    member: &Member,
    room: &RoomId,
    kind: &str,
    (rel_type, target): (&str, &EventId),
) -> OwnedEventId {
    let relation = json!({ "rel_type": rel_type, "event_id": target, "key": "👍" });
    let content = json!({ "body": rel_type, "m.relates_to": relation });
    member.send(room, kind, content)
}

fn shown(member: &Member, room: &RoomId, event_id: &EventId) -> Value {
    let sync = member.sync(None);
    let events = values(&sync.rooms.join[room].timeline.events);
    let event = events.into_iter().find(|event| event["event_id"] == event_id.as_str());
    event.unwrap()["unsigned"]["m.relations"].clone()
}

#[test]
fn relations_of_relations_are_found_when_asked_for() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let root = alice.say(&room, "root");
    let reply = relate(&alice, &room, "m.room.message", ("m.thread", &root));
    let reaction = relate(&alice, &room, "m.reaction", ("m.annotation", &reply));
    let edit = relate(&alice, &room, "m.room.message", ("m.replace", &reply));
    let find = |rel_type, recurse, limit| {
        let wanted = Relating {
            room_id: &room,
            event_id: &root,
            rel_type,
            kind: None,
            from: None,
            to: None,
            direction: Direction::Backward,
            limit,
            recurse,
        };
        let found = alice.app.store.read(|read| relating(read, alice.id(), &wanted)).unwrap();
        found.events.iter().map(|event| event.pdu.event_id().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(find(None, false, 10), std::slice::from_ref(&reply));
    assert_eq!(find(None, true, 10), [edit.clone(), reaction.clone(), reply]);
    assert_eq!(find(None, true, 1), [edit]);
    assert_eq!(find(Some("m.annotation"), true, 10), [reaction]);
}

#[test]
fn a_thread_is_told_with_its_root_even_when_that_is_redacted() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PublicChat);
    bob.join(&room);
    let root = alice.say(&room, "root");
    let reply = relate(&bob, &room, "m.room.message", ("m.thread", &root));
    let edit = relate(&bob, &room, "m.room.message", ("m.replace", &reply));
    relate(&bob, &room, "m.x", ("m.reference", &root));
    let thread = &shown(&alice, &room, &root)["m.thread"];
    assert_eq!(thread["current_user_participated"], true, "alice began it");
    let newest = &thread["latest_event"];
    assert_eq!(newest["event_id"], reply.as_str());
    assert_eq!(newest["unsigned"]["m.relations"]["m.replace"]["event_id"], edit.as_str());

    alice.redact(&room, &root);
    let relations = shown(&alice, &room, &root);
    assert_eq!(relations["m.thread"]["count"], 1);
    assert!(relations.get("m.reference").is_none());
}

#[test]
fn only_a_message_that_is_no_edit_itself_is_edited() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let message = alice.say(&room, "one");
    let edit = relate(&alice, &room, "m.room.message", ("m.replace", &message));
    relate(&alice, &room, "m.room.message", ("m.replace", &edit));
    let topic = alice.set_state(&room, "m.room.topic", "", json!({ "topic": "x" })).unwrap();
    relate(&alice, &room, "m.room.topic", ("m.replace", &topic));
    assert_eq!(shown(&alice, &room, &message)["m.replace"]["event_id"], edit.as_str());
    assert!(shown(&alice, &room, &edit).is_null());
    assert!(shown(&alice, &room, &topic).is_null());
}

#[test]
fn nobody_says_the_same_of_an_event_twice() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PublicChat);
    bob.join(&room);
    let message = alice.say(&room, "one");
    let react = |member: &Member, key: &str| {
        let relation = json!({ "rel_type": "m.annotation", "event_id": message, "key": key });
        let content = json!({ "m.relates_to": relation });
        rooms::send(&member.app, member.wish(&room, "m.reaction", content, None))
    };
    let first = react(&alice, "👍").unwrap();
    assert!(matches!(react(&alice, "👍"), Err(Error::DuplicateAnnotation)));
    react(&alice, "👎").unwrap();
    react(&bob, "👍").unwrap();
    alice.redact(&room, &first);
    react(&alice, "👍").unwrap();
}

#[test]
fn members_redact_their_own_and_those_with_power_what_others_sent() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
        let mut request = CreateRoom::new();
        request.preset = Some(RoomPreset::PublicChat);
        request.room_version = Some(version.clone());
        let room = alice.create_with(request);
        bob.join(&room);
        let elsewhere = alice.say(&alice.create(RoomPreset::PrivateChat), "elsewhere");
        let create = values(&alice.sync(None).rooms.join[&room].timeline.events)[0].clone();
        let create = EventId::parse(create["event_id"].as_str().unwrap()).unwrap();
        let (of_alice, of_bob) = (alice.say(&room, "one"), bob.say(&room, "two"));
        let more = bob.say(&room, "three");
        let unknown = ruma::owned_event_id!("$unknown");
        let redact = |member: &Member, target: &EventId| {
            let mut wish = member.wish(&room, "m.room.redaction", json!({}), None);
            wish.intent.redacts = Some(target.to_owned());
            rooms::send(&member.app, wish)
        };
        assert!(matches!(redact(&bob, &of_alice), Err(Error::Forbidden(_))), "{version}");
        assert!(matches!(redact(&bob, &unknown), Err(Error::NotFound(_))), "{version}");
        assert!(matches!(redact(&alice, &create), Err(Error::Forbidden(_))), "{version}");
        assert!(matches!(redact(&alice, &elsewhere), Err(Error::Invalid(_))), "{version}");
        redact(&bob, &of_bob).unwrap();
        redact(&alice, &more).unwrap();
        let content = json!({ "redacts": of_alice });
        let as_state = bob.set_state(&room, "m.room.redaction", bob.id().as_str(), content);
        assert!(as_state.is_err(), "{version}");
        assert_eq!(bodies(&alice.sync(None).rooms.join[&room].timeline.events), ["one"]);
    }
}

#[test]
fn a_receipt_names_a_thread_that_its_event_is_in() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let root = alice.say(&room, "root");
    let other = alice.say(&room, "other");
    let reply = relate(&alice, &room, "m.room.message", ("m.thread", &root));
    let of_reply = relate(&alice, &room, "m.reaction", ("m.annotation", &reply));
    let of_root = relate(&alice, &room, "m.reaction", ("m.annotation", &root));
    let thread = |root: &OwnedEventId| ReceiptThread::Thread(root.clone());
    let custom = |text: &str| ReceiptThread::try_from(Some(text)).unwrap();
    for (event_id, thread, expected) in [
        (&reply, ReceiptThread::Unthreaded, true),
        (&reply, thread(&root), true),
        (&of_reply, thread(&root), true),
        (&root, thread(&root), true),
        (&of_root, thread(&root), true),
        (&root, ReceiptThread::Main, true),
        (&of_root, ReceiptThread::Main, true),
        (&other, ReceiptThread::Main, true),
        (&reply, ReceiptThread::Main, false),
        (&of_reply, ReceiptThread::Main, false),
        (&other, thread(&root), false),
        (&reply, thread(&other), false),
        (&reply, custom(""), false),
        (&other, custom("nonsense"), false),
    ] {
        let receipt = Receipt {
            room_id: &room,
            user_id: alice.id(),
            event_id,
            private: false,
            thread: &thread,
            now: NOW,
        };
        let answer = acknowledge(&alice.app, &receipt);
        assert_eq!(answer.is_ok(), expected, "{event_id} {thread:?}: {answer:?}");
        assert!(answer.is_ok() || matches!(answer, Err(Error::Invalid(_))), "{answer:?}");
    }
}
