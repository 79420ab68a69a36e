//! However sends and syncs interleave, a client that follows syncs and fills gaps sees each event once, in order.

use proptest::prelude::*;
use ruma::{
    OwnedEventId, RoomId,
    api::client::{
        filter::{FilterDefinition, RoomEventFilter},
        room::create_room::v3::RoomPreset,
    },
};
use sallyport::service::{
    rooms::{access::look, timeline},
    sync::token::Token,
};
use sallyport_store::Direction;
use serde_json::json;

use crate::member::{Member, TestBox, value};

#[derive(Debug, Clone)]
enum Step {
    Say(u8),
    SetTopic,
    Receipt,
    Rejoin,
    Sync { limit: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_u8).prop_map(Step::Say),
        1 => Just(Step::SetTopic),
        1 => Just(Step::Receipt),
        1 => Just(Step::Rejoin),
        3 => (1..5_u8).prop_map(|limit| Step::Sync { limit }),
    ]
}

/// A client that remembers what it saw.
struct Client {
    member: Member,
    since: Option<String>,
    seen: Vec<OwnedEventId>,
}

impl Client {
    fn sync(&mut self, room_id: &RoomId, limit: u8) {
        let filter: FilterDefinition =
            serde_json::from_value(json!({ "room": { "timeline": { "limit": limit } } })).unwrap();
        let answer = self.member.sync_with(self.since.as_deref(), filter);
        if let Some(joined) = answer.rooms.join.get(room_id) {
            let timeline = &joined.timeline;
            if timeline.limited {
                let gap = self.fill(room_id, timeline.prev_batch.as_deref().unwrap());
                self.seen.extend(gap);
            }
            self.seen.extend(timeline.events.iter().map(|event| id(&value(event))));
        }
        self.since = Some(answer.next_batch);
    }

    /// Pages back from where the timeline begins to what is known, three events at a time.
    fn fill(&self, room_id: &RoomId, prev_batch: &str) -> Vec<OwnedEventId> {
        let to = self.since.as_deref().map(|since| Token::parse(since).unwrap().position);
        let mut from = Some(Token::parse(prev_batch).unwrap().position);
        let mut gap = Vec::new();
        while let Some(start) = from {
            let page = self.member.app.store.read(|read| {
                let glimpse = look(read, room_id, self.member.id()).unwrap();
                let query = timeline::PageQuery {
                    from: Some(start),
                    to,
                    direction: Direction::Backward,
                    limit: 3,
                    filter: &RoomEventFilter::default(),
                };
                timeline::page(read, &glimpse, self.member.id(), &query)
            });
            let page = page.unwrap();
            gap.extend(page.events.iter().map(|event| event.pdu.event_id().to_owned()));
            from = page.end;
        }
        gap.reverse();
        gap
    }
}

fn id(event: &serde_json::Value) -> OwnedEventId {
    event["event_id"].as_str().unwrap().try_into().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn each_event_is_seen_once_in_order(steps in prop::collection::vec(step(), 1..40)) {
        let test = TestBox::new();
        let alice = test.member("alice");
        let bob = test.member("bob");
        let room_id = alice.create(RoomPreset::PublicChat);
        let mut client = Client { member: alice.clone(), since: None, seen: Vec::new() };
        let mut said = 0;
        bob.join(&room_id);
        let mut last = alice.say(&room_id, "first");
        for step in steps {
            match step {
                Step::Say(count) => for _ in 0..count {
                    said += 1;
                    last = bob.say(&room_id, &said.to_string());
                },
                Step::SetTopic => {
                    let topic = json!({ "topic": said.to_string() });
                    alice.set_state(&room_id, "m.room.topic", "", topic).unwrap();
                }
                Step::Receipt => crate::sync::acknowledge(&bob, &room_id, &last),
                Step::Rejoin => {
                    bob.leave(&room_id);
                    bob.join(&room_id);
                }
                Step::Sync { limit } => client.sync(&room_id, limit),
            }
        }
        client.sync(&room_id, 2);
        client.sync(&room_id, 2);
        let all = alice.app.store.read(|read| {
            let room = read.room(&room_id)?.unwrap();
            read.timeline(&room, i64::MIN, i64::MAX, Direction::Forward, 1000)
        }).unwrap();
        let all: Vec<_> = all.iter().map(|event| event.pdu.event_id().to_owned()).collect();
        prop_assert_eq!(client.seen, all);
    }
}
