//! Rooms: founding them, who is in them, and what may be seen.

use ruma::{
    RoomId, RoomVersionId,
    api::client::{
        filter::RoomEventFilter,
        room::create_room::v3::{Request as CreateRoom, RoomPreset},
    },
    events::StateEventType,
    serde::Raw,
};
use sallyport::service::rooms::{self, Error, access::look, timeline};
use sallyport_store::Direction;
use serde_json::{Value, json};

use crate::member::{Member, TestBox};

fn visible(member: &Member, room_id: &RoomId) -> Vec<String> {
    let page = member.app.store.read(|read| {
        let glimpse = look(read, room_id, member.id())?;
        let query = timeline::PageQuery {
            from: None,
            to: None,
            direction: Direction::Forward,
            limit: 100,
            filter: &RoomEventFilter::default(),
        };
        Ok::<_, Error>(timeline::page(read, &glimpse, member.id(), &query)?)
    });
    let events = page.map(|page| page.events).unwrap_or_default();
    events.iter().filter_map(|event| event.pdu.content_field("body")).collect()
}

fn state(member: &Member, room_id: &RoomId, kind: &str) -> Option<Value> {
    let found = member.app.store.read(|read| {
        rooms::state::one(read, room_id, member.id(), &StateEventType::from(kind), "")
    });
    found.ok().map(|(_, event)| serde_json::from_str(event.pdu.content().get()).unwrap())
}

#[test]
fn presets() {
    let test = TestBox::new();
    let alice = test.member("alice");
    for (preset, join_rule, invite) in [
        (RoomPreset::PrivateChat, "invite", 0),
        (RoomPreset::TrustedPrivateChat, "invite", 0),
        (RoomPreset::PublicChat, "public", 50),
    ] {
        let room = alice.create(preset);
        let rules = state(&alice, &room, "m.room.join_rules").unwrap();
        assert_eq!(rules["join_rule"], join_rule);
        let levels = state(&alice, &room, "m.room.power_levels").unwrap();
        assert_eq!(levels["invite"], invite);
        let history = state(&alice, &room, "m.room.history_visibility").unwrap();
        assert_eq!(history["history_visibility"], "shared");
    }
}

#[test]
fn versions_name_their_rooms_and_creators() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
        let mut request = CreateRoom::new();
        request.room_version = Some(version.clone());
        request.preset = Some(RoomPreset::TrustedPrivateChat);
        request.invite = vec![bob.id().to_owned()];
        let room = alice.create_with(request);
        bob.join(&room);
        let levels = state(&alice, &room, "m.room.power_levels").unwrap();
        let create = state(&alice, &room, "m.room.create").unwrap();
        if version == RoomVersionId::V12 {
            assert_eq!(room.server_name(), None);
            assert_eq!(create["additional_creators"], json!([bob.id()]));
            assert_eq!(levels["users"], json!({}));
        } else {
            assert_eq!(room.server_name(), Some(ruma::server_name!("alpha.test")));
            assert_eq!(levels["users"], json!({ alice.id(): 100, bob.id(): 100 }));
        }
        assert_eq!(create.get("creator").is_some(), version == RoomVersionId::V10);
        // Either may do what takes the most power.
        bob.set_state(&room, "m.room.tombstone", "", json!({ "body": "end" })).unwrap();
    }
    let mut request = CreateRoom::new();
    request.room_version = Some(RoomVersionId::V9);
    let refused = rooms::create::create(&alice.app, alice.id(), request, crate::member::NOW);
    assert!(matches!(refused, Err(Error::UnsupportedVersion(_))));
}

#[test]
fn wishes_at_creation() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let mut request = CreateRoom::new();
    request.name = Some("Bridge".to_owned());
    request.topic = Some("Watch".to_owned());
    request.room_alias_name = Some("bridge".to_owned());
    let encryption = json!({
        "type": "m.room.encryption",
        "content": { "algorithm": "m.megolm.v1.aes-sha2" },
    });
    request.initial_state = vec![Raw::new(&encryption).unwrap().cast_unchecked()];
    request.power_level_content_override =
        Some(Raw::new(&json!({ "events_default": 10 })).unwrap().cast_unchecked());
    let room = alice.create_with(request.clone());
    assert_eq!(state(&alice, &room, "m.room.name").unwrap()["name"], "Bridge");
    assert_eq!(state(&alice, &room, "m.room.topic").unwrap()["topic"], "Watch");
    assert!(state(&alice, &room, "m.room.encryption").is_some());
    assert_eq!(state(&alice, &room, "m.room.power_levels").unwrap()["events_default"], 10);
    let alias = state(&alice, &room, "m.room.canonical_alias").unwrap();
    assert_eq!(alias["alias"], "#bridge:alpha.test");
    let taken = rooms::create::create(&alice.app, alice.id(), request, crate::member::NOW);
    assert!(matches!(taken, Err(Error::AliasTaken)));
    // Nothing of the second room was kept.
    let rooms =
        alice.app.store.read(|read| rooms::membership::joined_rooms(read, alice.id())).unwrap();
    assert_eq!(rooms, [room]);
}

#[test]
fn creators_of_other_enclaves_are_refused() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let mut request = CreateRoom::new();
    let content = json!({ "additional_creators": ["@carol:bravo.test"] });
    request.creation_content = Some(Raw::new(&content).unwrap().cast_unchecked());
    let refused = rooms::create::create(&alice.app, alice.id(), request, crate::member::NOW);
    assert!(matches!(refused, Err(Error::Invalid(_))));
}

#[test]
fn history_is_visible_as_the_room_says() {
    for (history, expected) in [
        ("world_readable", vec!["early", "invited", "joined"]),
        ("shared", vec!["early", "invited", "joined"]),
        ("invited", vec!["invited", "joined"]),
        ("joined", vec!["joined"]),
    ] {
        let test = TestBox::new();
        let (alice, bob) = (test.member("alice"), test.member("bob"));
        let room = alice.create(RoomPreset::PrivateChat);
        let content = json!({ "history_visibility": history });
        alice.set_state(&room, "m.room.history_visibility", "", content).unwrap();
        alice.say(&room, "early");
        let stranger = visible(&bob, &room);
        assert_eq!(stranger.is_empty(), history != "world_readable", "{history}");
        alice.invite(&room, &bob);
        alice.say(&room, "invited");
        bob.join(&room);
        alice.say(&room, "joined");
        assert_eq!(visible(&bob, &room), expected, "{history}");

        bob.leave(&room);
        alice.say(&room, "gone");
        let later = visible(&bob, &room);
        assert_eq!(later.contains(&"gone".to_owned()), history == "world_readable", "{history}");
        assert!(later.contains(&"joined".to_owned()), "{history}");
        bob_rejoins(&alice, &bob, &room);
        let gone = matches!(history, "world_readable" | "shared");
        assert_eq!(visible(&bob, &room).contains(&"gone".to_owned()), gone, "{history}");
    }
}

fn bob_rejoins(alice: &Member, bob: &Member, room: &RoomId) {
    alice.invite(room, bob);
    bob.join(room);
}

#[test]
fn a_former_member_sees_the_state_of_when_they_left() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let room = alice.create(RoomPreset::PrivateChat);
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "then" })).unwrap();
    alice.invite(&room, &bob);
    assert_eq!(state(&bob, &room, "m.room.topic"), None);
    bob.join(&room);
    rooms::membership::kick(&alice.app, alice.change(&room, bob.id())).unwrap();
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "now" })).unwrap();
    assert_eq!(state(&bob, &room, "m.room.topic").unwrap()["topic"], "then");
    assert_eq!(state(&alice, &room, "m.room.topic").unwrap()["topic"], "now");
}

#[test]
fn who_may_change_whose_membership() {
    let test = TestBox::new();
    let (alice, bob, carol) = (test.member("alice"), test.member("bob"), test.member("carol"));
    let room = alice.create(RoomPreset::PrivateChat);
    let refused = |outcome: Result<(), Error>| {
        assert!(matches!(outcome, Err(Error::Refused(_) | Error::Forbidden(_) | Error::NotInRoom)));
    };
    refused(rooms::membership::join(&bob.app, bob.change(&room, bob.id())));
    refused(rooms::membership::invite(&bob.app, bob.change(&room, carol.id())));
    alice.invite(&room, &bob);
    bob.join(&room);
    bob.join(&room);
    refused(rooms::membership::kick(&bob.app, bob.change(&room, alice.id())));
    refused(rooms::membership::unban(&alice.app, alice.change(&room, bob.id())));
    rooms::membership::ban(&alice.app, alice.change(&room, bob.id())).unwrap();
    refused(rooms::membership::join(&bob.app, bob.change(&room, bob.id())));
    refused(rooms::membership::leave(&bob.app, bob.change(&room, bob.id())));
    rooms::membership::unban(&alice.app, alice.change(&room, bob.id())).unwrap();
    refused(rooms::membership::join(&bob.app, bob.change(&room, bob.id())));
    let still_in = rooms::membership::forget(&alice.app, &room, alice.id());
    assert!(matches!(still_in, Err(Error::Invalid(_))));
}

#[test]
fn restricted_rooms_let_in_members_of_another() {
    let test = TestBox::new();
    let (alice, bob, carol) = (test.member("alice"), test.member("bob"), test.member("carol"));
    let lobby = alice.create(RoomPreset::PublicChat);
    let room = alice.create(RoomPreset::PrivateChat);
    let rule = json!({
        "join_rule": "restricted",
        "allow": [{ "type": "m.room_membership", "room_id": lobby }],
    });
    alice.set_state(&room, "m.room.join_rules", "", rule).unwrap();
    bob.join(&lobby);
    bob.join(&room);
    let refused = rooms::membership::join(&carol.app, carol.change(&room, carol.id()));
    assert!(matches!(refused, Err(Error::Refused(_))));
}

#[test]
fn an_upgrade_moves_the_name_and_ends_the_old_room() {
    for (from, to) in [
        (RoomVersionId::V10, RoomVersionId::V12),
        (RoomVersionId::V12, RoomVersionId::V12),
        (RoomVersionId::V10, RoomVersionId::V11),
    ] {
        let test = TestBox::new();
        let (alice, bob) = (test.member("alice"), test.member("bob"));
        let mut request = CreateRoom::new();
        request.room_version = Some(from.clone());
        request.preset = Some(RoomPreset::PublicChat);
        request.name = Some("Old".to_owned());
        request.room_alias_name = Some("old".to_owned());
        let old = alice.create_with(request);
        bob.join(&old);
        let wish = |user| rooms::upgrade::Upgrade {
            room_id: &old,
            user_id: user,
            version: to.clone(),
            additional_creators: Default::default(),
            now: crate::member::NOW,
        };
        assert!(rooms::upgrade::upgrade(&bob.app, &wish(bob.id())).is_err());
        let new = rooms::upgrade::upgrade(&alice.app, &wish(alice.id())).unwrap();
        assert_eq!(state(&alice, &new, "m.room.name").unwrap()["name"], "Old");
        let create = state(&alice, &new, "m.room.create").unwrap();
        assert_eq!(create["predecessor"]["room_id"], old.as_str());
        let tombstone = state(&alice, &old, "m.room.tombstone").unwrap();
        assert_eq!(tombstone["replacement_room"], new.as_str());
        let alias = ruma::room_alias_id!("#old:alpha.test");
        assert_eq!(rooms::directory::alias(&alice.app, alias).unwrap().0, new);
        let refused =
            rooms::send(&bob.app, bob.wish(&old, "m.room.message", json!({ "body": "x" }), None));
        assert!(matches!(refused, Err(Error::Refused(_))), "{from} {to}");
        bob.join(&new);
    }
}

#[test]
fn threads_reactions_and_edits_are_bundled() {
    let test = TestBox::new();
    let alice = test.member("alice");
    let room = alice.create(RoomPreset::PrivateChat);
    let root = alice.say(&room, "root");
    let relate = |rel_type: &str| json!({ "rel_type": rel_type, "event_id": root });
    let in_thread = json!({ "body": "reply", "m.relates_to": relate("m.thread") });
    let reply = alice.send(&room, "m.room.message", in_thread);
    let edit = json!({
        "body": "* edited",
        "m.new_content": { "body": "edited" },
        "m.relates_to": relate("m.replace"),
    });
    let edit = alice.send(&room, "m.room.message", edit);
    let reaction = json!({
        "m.relates_to": { "rel_type": "m.annotation", "event_id": root, "key": "👍" },
    });
    let reaction = alice.send(&room, "m.reaction", reaction);

    let timeline = alice.sync(None).rooms.join[&room].timeline.events.clone();
    let timeline = crate::member::values(&timeline);
    let shown = timeline.iter().find(|event| event["event_id"] == root.as_str()).unwrap();
    let relations = &shown["unsigned"]["m.relations"];
    assert_eq!(relations["m.replace"]["event_id"], edit.as_str());
    assert_eq!(relations["m.thread"]["count"], 1);
    assert_eq!(relations["m.thread"]["latest_event"]["event_id"], reply.as_str());
    assert_eq!(relations["m.thread"]["current_user_participated"], true);

    let related = |rel_type| {
        let wanted = rooms::relations::Relating {
            room_id: &room,
            event_id: &root,
            rel_type,
            kind: None,
            from: None,
            to: None,
            direction: Direction::Backward,
            limit: 10,
            recurse: false,
        };
        let found =
            alice.app.store.read(|read| rooms::relations::relating(read, alice.id(), &wanted));
        let events = found.unwrap().events;
        events.iter().map(|event| event.pdu.event_id().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(related(None), [reaction.clone(), edit, reply]);
    assert_eq!(related(Some("m.annotation")), std::slice::from_ref(&reaction));
    alice.redact(&room, &reaction);
    assert!(related(Some("m.annotation")).is_empty());

    let threads = alice
        .app
        .store
        .read(|read| rooms::relations::threads(read, &room, alice.id(), true, None, 10))
        .unwrap();
    assert_eq!(threads.events[0].pdu.event_id(), root);
}

#[test]
fn the_directory_lists_published_rooms_and_aliases_resolve() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let mut request = CreateRoom::new();
    request.visibility = ruma::api::client::room::Visibility::Public;
    request.name = Some("Galley".to_owned());
    let public = alice.create_with(request);
    let private = alice.create(RoomPreset::PrivateChat);
    let list = |search: Option<&str>| {
        let query = rooms::directory::DirectoryQuery {
            search: search.map(ToOwned::to_owned),
            ..Default::default()
        };
        let page = bob.app.store.read(|read| rooms::directory::public_rooms(read, &query));
        let chunk = page.unwrap().chunk;
        chunk.into_iter().map(|room| room.room_id).collect::<Vec<_>>()
    };
    assert_eq!(list(None), std::slice::from_ref(&public));
    assert_eq!(list(Some("galLEY")), std::slice::from_ref(&public));
    assert!(list(Some("bridge")).is_empty());
    let refused = rooms::directory::publish(&bob.app, bob.id(), private, true);
    assert!(matches!(refused, Err(Error::NotInRoom)));
    bob.join(&public);
    let refused = rooms::directory::publish(&bob.app, bob.id(), public.clone(), false);
    assert!(matches!(refused, Err(Error::Forbidden(_))));
    rooms::directory::publish(&alice.app, alice.id(), public.clone(), false).unwrap();
    assert!(list(None).is_empty());

    let alias = ruma::owned_room_alias_id!("#galley:alpha.test");
    let foreign = ruma::owned_room_alias_id!("#galley:bravo.test");
    let create = |alias| rooms::directory::create_alias(&bob.app, bob.id(), alias, public.clone());
    create(alias.clone()).unwrap();
    assert!(matches!(create(alias.clone()), Err(Error::AliasTaken)));
    assert!(matches!(create(foreign), Err(Error::Invalid(_))));
    let bad = json!({ "alias": "#nothing:alpha.test" });
    let bad = alice.set_state(&public, "m.room.canonical_alias", "", bad);
    assert!(matches!(bad, Err(Error::BadAlias(_))));
    alice.set_state(&public, "m.room.canonical_alias", "", json!({ "alias": alias })).unwrap();
    rooms::directory::delete_alias(&alice.app, alice.id(), alias.clone()).unwrap();
    let gone = rooms::directory::alias(&alice.app, &alias);
    assert!(matches!(gone, Err(Error::NotFound(_))));
}

#[test]
fn a_space_lists_the_rooms_that_its_reader_may_know() {
    let test = TestBox::new();
    let (alice, bob) = (test.member("alice"), test.member("bob"));
    let mut request = CreateRoom::new();
    request.preset = Some(RoomPreset::PublicChat);
    let content = json!({ "type": "m.space" });
    request.creation_content = Some(Raw::new(&content).unwrap().cast_unchecked());
    let space = alice.create_with(request);
    let public = alice.create(RoomPreset::PublicChat);
    let private = alice.create(RoomPreset::PrivateChat);
    let via = |order: &str| json!({ "via": ["alpha.test"], "order": order });
    alice.set_state(&space, "m.space.child", private.as_str(), via("a")).unwrap();
    alice.set_state(&space, "m.space.child", public.as_str(), via("b")).unwrap();
    let tree = |member: &Member, skip, limit| {
        let query = rooms::summary::TreeQuery { skip, limit, depth: 5, suggested_only: false };
        let tree =
            member.app.store.read(|read| rooms::summary::tree(read, &space, member.id(), query));
        let (rooms, more) = tree.unwrap();
        (rooms.into_iter().map(|room| room.summary.room_id).collect::<Vec<_>>(), more)
    };
    assert_eq!(tree(&alice, 0, 10), (vec![space.clone(), private, public.clone()], false));
    assert_eq!(tree(&bob, 0, 10), (vec![space.clone(), public.clone()], false));
    assert_eq!(tree(&bob, 0, 1), (vec![space.clone()], true));
    assert_eq!(tree(&bob, 1, 1), (vec![public], false));
}
