//! Ignored users, and what somebody learns of rooms that they were in for a moment only.

use ruma::api::client::{
    filter::FilterDefinition, room::create_room::v3::RoomPreset, sync::sync_events::v3::State,
};
use sallyport::service::{account_data, rooms};
use serde_json::{Value, json};

use crate::member::{Member, TestBox, bodies, value, values};

fn ignore(member: &Member, others: &[&Member]) {
    let others = others.iter().map(|other| (other.id().to_string(), json!({})));
    let users: serde_json::Map<String, Value> = others.collect();
    let content = json!({ "ignored_users": users }).to_string();
    let kind = "m.ignored_user_list".to_owned();
    account_data::set(&member.app.store, member.id(), None, kind, content).unwrap();
}

fn filter(json: Value) -> FilterDefinition {
    serde_json::from_value(json).unwrap()
}

#[test]
fn ignored_users_are_neither_heard_nor_counted() {
    let test = TestBox::new();
    let (alice, bob, carol) = (test.member("alice"), test.member("bob"), test.member("carol"));
    let room = alice.create(RoomPreset::PublicChat);
    bob.join(&room);
    carol.join(&room);
    // A list may name its owner: they see what they say all the same.
    ignore(&alice, &[&bob, &alice]);
    let since = alice.sync(None).next_batch;
    alice.say(&room, "mine");
    let hidden = bob.say(&room, "hidden");
    carol.say(&room, "heard");
    let heard = alice.sync(Some(&since));
    let joined = &heard.rooms.join[&room];
    assert_eq!(bodies(&joined.timeline.events), ["mine", "heard"]);
    assert_eq!(joined.unread_notifications.notification_count, Some(ruma::uint!(1)));
    let event =
        alice.app.store.read(|read| rooms::timeline::event(read, &room, alice.id(), &hidden));
    assert!(matches!(event, Err(rooms::Error::NotFound(_))));
    let page = alice.page_back(&room, &heard.next_batch, 50);
    assert!(!page.contains(&hidden));
    assert!(carol.page_back(&room, &heard.next_batch, 50).contains(&hidden));

    // What an ignored user does to the room stays visible.
    bob.leave(&room);
    let left = alice.sync(Some(&heard.next_batch));
    let last = value(left.rooms.join[&room].timeline.events.last().unwrap());
    assert_eq!(last["content"]["membership"], "leave");

    ignore(&alice, &[]);
    let all = alice.sync(None);
    let joined = &all.rooms.join[&room];
    assert_eq!(bodies(&joined.timeline.events), ["mine", "hidden", "heard"]);
    assert_eq!(joined.unread_notifications.notification_count, Some(ruma::uint!(2)));
}

#[test]
fn invites_from_ignored_users_are_not_shown() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    ignore(&alice, &[&bob]);
    let since = alice.sync(None).next_batch;
    let room = bob.create(RoomPreset::PrivateChat);
    bob.invite(&room, &alice);
    assert!(alice.sync(Some(&since)).rooms.is_empty());
    assert!(alice.sync(None).rooms.is_empty());
    ignore(&alice, &[]);
    assert!(alice.sync(None).rooms.invite.contains_key(&room));
}

#[test]
fn whoever_came_and_went_between_two_syncs_learns_the_state_they_saw() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PublicChat);
    let since = bob.sync(None).next_batch;
    bob.join(&room);
    alice.say(&room, "hello");
    bob.leave(&room);
    let one = filter(json!({ "room": { "timeline": { "limit": 1 } } }));
    let left = bob.sync_with(Some(&since), one);
    let left = &left.rooms.leave[&room];
    assert!(left.timeline.limited);
    let State::Before(state) = &left.state else { panic!("state_after was not asked for") };
    let kinds: Vec<_> = values(&state.events)
        .into_iter()
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect();
    assert!(kinds.contains(&"m.room.create".to_owned()), "{kinds:?}");
}

#[test]
fn whoever_never_joined_learns_no_state() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PrivateChat);
    let since = bob.sync(None).next_batch;
    alice.invite(&room, &bob);
    bob.leave(&room);
    let include_left = json!({ "room": { "include_leave": true, "timeline": { "limit": 1 } } });
    for since in [None, Some(since.as_str())] {
        let answer = bob.sync_with(since, filter(include_left.clone()));
        let left = &answer.rooms.leave[&room];
        assert!(left.state.is_empty(), "{since:?}");
        assert_eq!(left.timeline.events.len(), 1, "{since:?}");
    }
}

#[test]
fn a_filter_of_rooms_hides_nobodys_devices() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PublicChat);
    let since = alice.sync(None).next_batch;
    bob.join(&room);
    let none = filter(json!({ "room": { "rooms": [] } }));
    let answer = alice.sync_with(Some(&since), none);
    assert!(answer.rooms.is_empty());
    assert_eq!(answer.device_lists.changed, [bob.id()]);
}
