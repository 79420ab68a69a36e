//! Founding rooms and drafting events in them.

use ruma::{CanonicalJsonObject, RoomVersionId};
use sallyport_core::{
    room::{self, Refusal, VERSIONS, create::CreateError},
    time::Millis,
};

use crate::server::{Keys, Server, founded, member, message, state, user};

#[test]
fn a_room_can_be_founded_in_every_version() {
    for version in VERSIONS {
        let founded = founded(&version, "invite");
        assert_eq!(founded.events.len(), 4, "{version}");
        let create = &founded.events[0];
        if version == RoomVersionId::V12 {
            let id = create.event_id().as_str().replacen('$', "!", 1);
            assert_eq!(founded.room_id.as_str(), id);
        } else {
            assert_eq!(founded.room_id, "!room:alpha.test");
        }
        assert!(founded.events.iter().all(|pdu| pdu.room_id() == founded.room_id));
    }
}

#[test]
fn versions_that_are_not_served_are_refused() {
    let refused = room::create::create(
        &RoomVersionId::V9,
        "!room:alpha.test".try_into().unwrap(),
        &user("@alice:alpha.test"),
        CanonicalJsonObject::new(),
        Millis(0),
        Vec::new(),
    );
    assert_eq!(refused.unwrap_err(), CreateError::UnsupportedVersion(RoomVersionId::V9));
}

#[test]
fn who_is_not_in_the_room_cannot_send() {
    let keys = Keys::of(&["alpha.test", "bravo.test"]);
    for version in VERSIONS {
        let mut alpha = Server::new(&version);
        alpha.found(&founded(&version, "invite"), &keys);
        let refused = alpha.send(message("@carol:alpha.test", "hello", 2000), &keys);
        assert!(matches!(refused, Err(Refusal::Forbidden(_))), "{version}");
        let refused =
            alpha.send(member("@carol:alpha.test", "@carol:alpha.test", "join", 2000), &keys);
        assert!(matches!(refused, Err(Refusal::Forbidden(_))), "{version}");
        alpha
            .send(member("@alice:alpha.test", "@carol:alpha.test", "invite", 2001), &keys)
            .unwrap();
        alpha.send(member("@carol:alpha.test", "@carol:alpha.test", "join", 2002), &keys).unwrap();
        alpha.send(message("@carol:alpha.test", "hello", 2003), &keys).unwrap();
    }
}

#[test]
fn only_the_home_enclave_changes_what_all_depend_on() {
    let keys = Keys::of(&["alpha.test", "bravo.test"]);
    let version = RoomVersionId::V12;
    let mut bravo = Server::new(&version);
    bravo.found(&founded(&version, "public"), &keys);
    let alice = "@alice:alpha.test";
    let bob = "@bob:bravo.test";
    bravo.send(member(bob, bob, "join", 2000), &keys).unwrap();
    let levels = r#"{"users":{"@bob:bravo.test":100},"invite":0}"#;
    bravo.send(state(alice, "m.room.power_levels", "", levels, 2001), &keys).unwrap();
    if let Some(head) = &mut bravo.head {
        head.exposed = true;
    }
    for refused in [
        state(bob, "m.room.join_rules", "", r#"{"join_rule":"invite"}"#, 2002),
        state(bob, "m.room.name", "", r#"{"name":"mine"}"#, 2002),
        member(bob, alice, "leave", 2002),
    ] {
        assert_eq!(bravo.send(refused, &keys).unwrap_err(), Refusal::HomeEnclaveOnly);
    }
    bravo.send(member(bob, "@dave:bravo.test", "invite", 2003), &keys).unwrap();
    bravo.send(message(bob, "hello", 2004), &keys).unwrap();
}

#[test]
fn an_event_that_would_not_fit_with_its_signature_is_refused() {
    let keys = Keys::of(&["alpha.test"]);
    let version = RoomVersionId::V12;
    let mut alpha = Server::new(&version);
    let founded = founded(&version, "invite");
    alpha.found(&founded, &keys);
    let body = "x".repeat(65_000);
    let intent = message("@alice:alpha.test", &body, 2000);
    let draft = room::draft(&alpha, &founded.room_id, intent).unwrap().unwrap();
    let prev = alpha.head.unwrap().extremities;
    assert_eq!(draft.seal(&prev, 5).unwrap_err(), room::SealError::TooLarge);
}
