//! `/sync`: what a device hears, from its first sync on.

use ruma::{
    api::client::{
        filter::FilterDefinition, room::create_room::v3::RoomPreset, sync::sync_events::v3::State,
    },
    room_id,
};
use sallyport::service::rooms;
use serde_json::json;

use crate::member::{TestBox, bodies, value, values};

fn filter(json: serde_json::Value) -> FilterDefinition {
    serde_json::from_value(json).unwrap()
}

#[test]
fn the_first_sync_shows_rooms_and_the_next_ones_what_came() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PrivateChat);
    alice.say(&room, "one");
    let first = alice.sync(None);
    let joined = &first.rooms.join[&room];
    assert_eq!(bodies(&joined.timeline.events), ["one"]);
    assert!(!joined.timeline.limited);
    assert_eq!(joined.summary.joined_member_count, Some(ruma::uint!(1)));
    assert!(joined.state.is_empty(), "all state is in the timeline");

    assert!(alice.ask(Some(&first.next_batch), FilterDefinition::default()).is_empty());

    alice.invite(&room, &bob);
    let invited = bob.sync(None);
    let state = values(&invited.rooms.invite[&room].invite_state.events);
    let kinds: Vec<_> = state.iter().filter_map(|event| event["type"].as_str()).collect();
    assert!(kinds.contains(&"m.room.create"), "{kinds:?}");
    assert_eq!(state.last().unwrap()["content"]["membership"], "invite");

    bob.join(&room);
    alice.say(&room, "two");
    let second = alice.sync(Some(&first.next_batch));
    let timeline = values(&second.rooms.join[&room].timeline.events);
    let kinds: Vec<_> = timeline.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, ["m.room.member", "m.room.member", "m.room.message"]);
    assert_eq!(timeline[1]["unsigned"]["prev_content"]["membership"], "invite");
    assert_eq!(second.device_lists.changed, [bob.id()]);
    assert_eq!(second.rooms.join[&room].summary.joined_member_count, Some(ruma::uint!(2)));

    let of_bob = bob.sync(Some(&invited.next_batch));
    let timeline = &of_bob.rooms.join[&room].timeline.events;
    assert_eq!(bodies(timeline), ["one", "two"]);
    let then: Vec<_> = values(timeline)
        .into_iter()
        .filter(|event| {
            event["type"] == "m.room.message" || event["state_key"] == bob.id().as_str()
        })
        .map(|event| event["unsigned"]["membership"].clone())
        .collect();
    assert_eq!(then, ["leave", "invite", "join", "join"]);
    assert!(of_bob.device_lists.changed.contains(&alice.id().to_owned()));
}

#[test]
fn a_gap_is_limited_and_its_state_is_told() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let since = alice.sync(None).next_batch;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "early" })).unwrap();
    for number in 0..5 {
        alice.say(&room, &number.to_string());
    }
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "late" })).unwrap();
    alice.say(&room, "last");

    let two = json!({ "room": { "timeline": { "limit": 2 } } });
    let gap = alice.sync_with(Some(&since), filter(two.clone()));
    let joined = &gap.rooms.join[&room];
    assert!(joined.timeline.limited);
    assert_eq!(joined.timeline.events.len(), 2);
    let State::Before(state) = &joined.state else {
        panic!("state_after was not asked for");
    };
    // The timeline sets "late"; where it begins the topic was "early".
    let state = values(&state.events);
    assert_eq!(state.len(), 1);
    assert_eq!(state[0]["content"]["topic"], "early");

    let all = json!({ "room": { "timeline": { "limit": 50 } } });
    let whole = alice.sync_with(Some(&since), filter(all));
    let joined = &whole.rooms.join[&room];
    assert!(!joined.timeline.limited);
    assert!(joined.state.is_empty());

    let first = alice.sync_with(None, filter(two));
    let State::Before(state) = &first.rooms.join[&room].state else {
        panic!("state_after was not asked for");
    };
    let topics: Vec<_> = values(&state.events)
        .into_iter()
        .filter(|event| event["type"] == "m.room.topic")
        .map(|event| event["content"]["topic"].clone())
        .collect();
    assert_eq!(topics, ["early"]);
}

#[test]
fn a_client_may_ask_for_the_state_after_the_timeline() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let since = alice.sync(None).next_batch;
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "new" })).unwrap();
    let answer = alice.sync_state_after(&since);
    let joined = &answer.rooms.join[&room];
    assert_eq!(joined.timeline.events.len(), 1);
    let State::After(state) = &joined.state else { panic!("state_after was asked for") };
    assert_eq!(value(&state.events[0])["content"]["topic"], "new");
}

#[test]
fn presence_and_account_data_go_along() {
    let test = TestBox::new();
    let (alice, bob, carol) = (test.member("alice"), test.member("bob"), test.member("carol"));
    let room = alice.create(RoomPreset::PublicChat);
    bob.join(&room);
    let first = bob.sync(None);
    let kinds: Vec<_> = values(&first.account_data.events)
        .into_iter()
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["m.push_rules"]);
    for member in [&alice, &carol] {
        let online = ruma::presence::PresenceState::Online;
        test.app.presences.set(member.id(), online, Some("on watch"), crate::member::NOW);
    }
    let second = bob.sync(Some(&first.next_batch));
    let presence = values(&second.presence.events);
    // Carol shares no room with bob.
    assert_eq!(presence.len(), 1);
    assert_eq!(presence[0]["sender"], alice.id().as_str());
    assert_eq!(presence[0]["content"]["status_msg"], "on watch");
    assert!(bob.sync(Some(&second.next_batch)).presence.is_empty());
    // Now she does, and what she said before is news.
    carol.join(&room);
    let second = bob.sync(Some(&second.next_batch));
    let presence = values(&second.presence.events);
    assert_eq!(presence.len(), 1);
    assert_eq!(presence[0]["sender"], carol.id().as_str());

    let event_id = bob.say(&room, "here");
    rooms::receipts::mark_fully_read(&bob.app, bob.id(), room.clone(), event_id.clone()).unwrap();
    let third = bob.sync(Some(&second.next_batch));
    let marker = value(&third.rooms.join[&room].account_data.events[0]);
    assert_eq!(marker["type"], "m.fully_read");
    assert_eq!(marker["content"]["event_id"], event_id.as_str());
}

#[test]
fn only_the_sending_device_learns_its_transaction_id() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let since = alice.sync(None).next_batch;
    let wish = alice.wish(&room, "m.room.message", json!({ "body": "x" }), Some("txn1"));
    let first = rooms::send(&alice.app, wish.clone()).unwrap();
    assert_eq!(rooms::send(&alice.app, wish).unwrap(), first);

    let own = alice.sync(Some(&since));
    let own = values(&own.rooms.join[&room].timeline.events);
    assert_eq!(own.len(), 1);
    assert_eq!(own[0]["unsigned"]["transaction_id"], "txn1");
    let other = alice.other_device().sync(Some(&since));
    let other = values(&other.rooms.join[&room].timeline.events);
    assert!(other[0]["unsigned"].get("transaction_id").is_none());
}

#[test]
fn leaving_is_told_once_and_forgetting_hides_it() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PrivateChat);
    alice.invite(&room, &bob);
    bob.join(&room);
    let since = bob.sync(None).next_batch;
    let alice_since = alice.sync(None).next_batch;
    alice.say(&room, "before");
    bob.leave(&room);
    alice.say(&room, "after");

    let left = bob.sync(Some(&since));
    assert!(left.rooms.join.is_empty());
    let timeline = &left.rooms.leave[&room].timeline.events;
    assert_eq!(bodies(timeline), ["before"]);
    assert_eq!(value(timeline.last().unwrap())["content"]["membership"], "leave");
    assert_eq!(left.device_lists.left, [alice.id()]);
    assert!(bob.sync(Some(&left.next_batch)).rooms.is_empty());
    assert_eq!(alice.sync(Some(&alice_since)).device_lists.left, [bob.id()]);

    let with_left = filter(json!({ "room": { "include_leave": true } }));
    assert!(bob.sync_with(None, with_left.clone()).rooms.leave.contains_key(&room));
    assert!(bob.sync(None).rooms.leave.is_empty());
    rooms::membership::forget(&bob.app, &room, bob.id()).unwrap();
    assert!(bob.sync_with(None, with_left).rooms.leave.is_empty());
}

#[test]
fn a_rejected_invite_shows_only_that() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PrivateChat);
    alice.say(&room, "secret");
    alice.invite(&room, &bob);
    let since = bob.sync(None).next_batch;
    bob.leave(&room);
    let left = bob.sync(Some(&since));
    let timeline = values(&left.rooms.leave[&room].timeline.events);
    assert_eq!(timeline.len(), 1, "{timeline:?}");
    assert_eq!(timeline[0]["content"]["membership"], "leave");
    assert!(left.rooms.leave[&room].state.is_empty());
}

#[test]
fn lazy_loading_shows_only_who_speaks() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PublicChat);
    alice.set_state(&room, "m.room.name", "", json!({ "name": "Watch" })).unwrap();
    let others: Vec<_> = (0..5).map(|n| test.member(&format!("user{n}"))).collect();
    for other in &others {
        other.join(&room);
    }
    others[3].say(&room, "hello");
    let lazy = filter(json!({ "room": {
        "state": { "lazy_load_members": true },
        "timeline": { "limit": 1 },
    } }));
    let first = alice.sync_with(None, lazy);
    let State::Before(state) = &first.rooms.join[&room].state else {
        panic!("state_after was not asked for");
    };
    let members: Vec<_> = values(&state.events)
        .into_iter()
        .filter(|event| event["type"] == "m.room.member")
        .map(|event| event["state_key"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(members, [alice.id().as_str(), others[3].id().as_str()]);
}

#[test]
fn a_redacted_event_is_told_with_its_redaction() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let event_id = alice.say(&room, "oops");
    let redaction = alice.redact(&room, &event_id);
    let timeline = alice.sync(None).rooms.join[&room].timeline.events.clone();
    let timeline = values(&timeline);
    let gone = timeline.iter().find(|event| event["event_id"] == event_id.as_str()).unwrap();
    assert_eq!(gone["content"], json!({}));
    assert_eq!(gone["unsigned"]["redacted_because"]["event_id"], redaction.as_str());
    assert_eq!(gone["unsigned"]["redacted_because"]["redacts"], event_id.as_str());
}

#[test]
fn a_token_of_another_incarnation_starts_again() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let answer = alice.sync(Some("sffffffff_999_0_0_0"));
    assert!(answer.rooms.join.contains_key(&room));
    assert!(!answer.rooms.join.contains_key(room_id!("!other:alpha.test")));
}

#[test]
fn unread_counts_follow_messages_and_receipts() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PrivateChat);
    alice.invite(&room, &bob);
    bob.join(&room);
    let third = test.member("carol");
    alice.invite(&room, &third);
    third.join(&room);
    alice.say(&room, "one");
    let mention = json!({ "body": "two", "m.mentions": { "user_ids": [bob.id()] } });
    let two = alice.send(&room, "m.room.message", mention);
    alice.say(&room, "three");
    let first = bob.sync(None);
    let unread = &first.rooms.join[&room].unread_notifications;
    assert_eq!(unread.notification_count, Some(ruma::uint!(3)));
    assert_eq!(unread.highlight_count, Some(ruma::uint!(1)));

    acknowledge(&bob, &room, &two);
    let second = bob.sync(Some(&first.next_batch));
    let joined = &second.rooms.join[&room];
    assert_eq!(joined.unread_notifications.notification_count, Some(ruma::uint!(1)));
    assert_eq!(joined.unread_notifications.highlight_count, Some(ruma::uint!(0)));
    let receipt = value(&joined.ephemeral.events[0]);
    assert_eq!(receipt["type"], "m.receipt");
    assert!(receipt["content"][two.as_str()]["m.read"][bob.id().as_str()]["ts"].is_u64());

    alice.say(&room, "four");
    let third = bob.sync(Some(&second.next_batch));
    let unread = &third.rooms.join[&room].unread_notifications;
    assert_eq!(unread.notification_count, Some(ruma::uint!(2)));
    bob.say(&room, "answer");
    let fourth = bob.sync(Some(&third.next_batch));
    let unread = &fourth.rooms.join[&room].unread_notifications;
    assert_eq!(unread.notification_count, Some(ruma::uint!(0)));
    // Counted anew, it is the same.
    let again = bob.other_device().sync(None);
    let unread = &again.rooms.join[&room].unread_notifications;
    assert_eq!(unread.notification_count, Some(ruma::uint!(0)));
}

pub(crate) fn acknowledge(
    member: &crate::member::Member,
    room_id: &ruma::RoomId,
    event_id: &ruma::EventId,
) {
    let receipt = rooms::receipts::Receipt {
        room_id,
        user_id: member.id(),
        event_id,
        private: false,
        thread: &ruma::events::receipt::ReceiptThread::Unthreaded,
        now: crate::member::NOW,
    };
    rooms::receipts::acknowledge(&member.app, &receipt).unwrap();
}
