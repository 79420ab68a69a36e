//! What members are notified of, and what is left of it when they change their name.

use ruma::{EventId, api::client::room::create_room::v3::RoomPreset};
use sallyport::service::{
    notifications::{self, NotificationQuery, Notifications},
    profiles, rooms,
};
use serde_json::json;

use crate::{
    member::{Member, NOW, TestBox},
    sync::acknowledge,
};

fn list(
    member: &Member,
    before: Option<i64>,
    limit: usize,
    highlights_only: bool,
) -> Notifications {
    let query = NotificationQuery { before, limit, highlights_only };
    member.app.store.read(|read| notifications::list(read, member.id(), query)).unwrap()
}

fn ids(page: &Notifications) -> Vec<&EventId> {
    page.notifications.iter().map(|found| found.event.pdu.event_id()).collect()
}

#[test]
fn notifications_of_all_rooms_are_listed_newest_first() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let (one, two) = (alice.create(RoomPreset::PublicChat), alice.create(RoomPreset::PublicChat));
    alice.say(&one, "before bob came");
    bob.join(&one);
    bob.join(&two);
    let first = alice.say(&one, "first");
    let mention = json!({ "body": "bob!", "m.mentions": { "user_ids": [bob.id()] } });
    let second = alice.send(&two, "m.room.message", mention);
    bob.say(&one, "mine");
    alice.send(&one, "m.reaction", json!({ "x": 1 }));
    let third = alice.say(&one, "third");
    acknowledge(&bob, &one, &first);

    let all = list(&bob, None, 10, false);
    assert_eq!(ids(&all), [&*third, &second, &first]);
    assert_eq!(all.next, None);
    let read: Vec<_> = all.notifications.iter().map(|found| found.read).collect();
    assert_eq!(read, [false, false, true]);
    assert_eq!(ids(&list(&bob, None, 10, true)), [&*second]);

    let page = list(&bob, None, 2, false);
    assert_eq!(ids(&page), [&*third, &second]);
    let page = list(&bob, page.next, 2, false);
    assert_eq!(ids(&page), [&*first]);

    bob.leave(&one);
    assert_eq!(ids(&list(&bob, None, 10, false)), [&*second]);
}

#[test]
fn a_new_name_reads_nothing() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PublicChat);
    bob.join(&room);
    alice.say(&room, "one");
    let since = bob.sync(None).next_batch;
    let name = json!("Robert");
    assert!(profiles::set_field(&bob.app.store, bob.id(), "displayname", Some(&name)).unwrap());
    rooms::membership::show_profile(&bob.app, bob.id(), NOW).unwrap();
    for since in [None, Some(since.as_str())] {
        let answer = bob.sync(since);
        let unread = &answer.rooms.join[&room].unread_notifications;
        assert_eq!(unread.notification_count, Some(ruma::uint!(1)), "{since:?}");
    }
    // Whoever leaves and comes back has nothing to read from before.
    bob.leave(&room);
    bob.join(&room);
    let unread = &bob.sync(None).rooms.join[&room].unread_notifications;
    assert_eq!(unread.notification_count, Some(ruma::uint!(0)));
}
