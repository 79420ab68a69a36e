//! Every check on receipt of a PDU, one test each.

use ruma::{CanonicalJsonObject, CanonicalJsonValue, RoomVersionId};
use sallyport_core::{
    event::Status,
    room::{Hold, Intent, VERSIONS, Verdict},
    time::Millis,
};

use crate::server::{Keys, Server, content, founded, member, message, state, user};

const NOW: Millis = Millis(1_000_000);
const ALICE: &str = "@alice:alpha.test";
const BOB: &str = "@bob:bravo.test";

/// Alpha and bravo with the same room, bob joined.
fn pair(version: &RoomVersionId) -> (Server, Server, Keys) {
    let keys = Keys::of(&["alpha.test", "bravo.test"]);
    let mut alpha = Server::new(version);
    alpha.found(&founded(version, "public"), &keys);
    alpha.send(member(BOB, BOB, "join", 2000), &keys).unwrap();
    let bravo = alpha.clone();
    (alpha, bravo, keys)
}

fn wire(object: &CanonicalJsonObject) -> Vec<u8> {
    serde_json::to_vec(object).unwrap()
}

#[test]
fn a_good_event_is_accepted_once() {
    for version in VERSIONS {
        let (mut alpha, mut bravo, keys) = pair(&version);
        let sent = bravo.send(message(BOB, "hello", 3000), &keys).unwrap().to_wire().unwrap();
        assert!(matches!(alpha.receive(sent.as_bytes(), &keys, NOW), Verdict::Accept(_)));
        let again = alpha.receive(sent.as_bytes(), &keys, NOW);
        assert!(matches!(again, Verdict::Known(Status::Accepted)), "{again:?}");
    }
}

#[test]
fn what_is_not_an_event_is_dropped() {
    let (mut alpha, _, keys) = pair(&RoomVersionId::V12);
    for bytes in [&b"{}"[..], b"[]", b"not json", br#"{"type":1}"#, &[b' '; 70_000]] {
        assert!(matches!(alpha.receive(bytes, &keys, NOW), Verdict::Drop(_)));
    }
}

#[test]
fn a_bad_signature_is_dropped_and_does_not_shadow_the_true_event() {
    let (mut alpha, mut bravo, keys) = pair(&RoomVersionId::V12);
    let sent = bravo.send(message(BOB, "hello", 3000), &keys).unwrap().to_wire().unwrap();
    let mut forged = content(&sent);
    forged.insert(
        "signatures".to_owned(),
        CanonicalJsonValue::Object(content(&format!(
            r#"{{"bravo.test":{{"ed25519:1":"{}"}}}}"#,
            "A".repeat(86)
        ))),
    );
    assert!(matches!(alpha.receive(&wire(&forged), &keys, NOW), Verdict::Drop(_)));
    assert!(matches!(alpha.receive(sent.as_bytes(), &keys, NOW), Verdict::Accept(_)));
}

#[test]
fn an_event_of_a_server_without_known_keys_asks_for_them() {
    let (mut alpha, mut bravo, keys) = pair(&RoomVersionId::V12);
    let sent = bravo.send(message(BOB, "hello", 3000), &keys).unwrap().to_wire().unwrap();
    let only_alpha = Keys::of(&["alpha.test"]);
    match alpha.receive(sent.as_bytes(), &only_alpha, NOW) {
        Verdict::Missing { keys, events, .. } => {
            assert_eq!(keys, ["bravo.test"]);
            assert!(events.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_gutted_copy_is_kept_redacted_and_the_true_one_replaces_it() {
    for version in VERSIONS {
        let (mut alpha, mut bravo, keys) = pair(&version);
        let sent = bravo.send(message(BOB, "secret", 3000), &keys).unwrap();
        let event_id = sent.pdu().event_id().to_owned();
        let sent = sent.to_wire().unwrap();
        let mut gutted = content(&sent);
        gutted.insert("content".to_owned(), CanonicalJsonValue::Object(CanonicalJsonObject::new()));
        assert!(matches!(alpha.receive(&wire(&gutted), &keys, NOW), Verdict::AcceptRedacted(_)));
        assert_eq!(alpha.events[&event_id].0.pdu.content().get(), "{}");
        assert!(matches!(alpha.receive(sent.as_bytes(), &keys, NOW), Verdict::Accept(_)));
        assert!(alpha.events[&event_id].0.pdu.content().get().contains("secret"));
        // And the other way round: a gutted copy never shadows the true one.
        assert!(matches!(alpha.receive(&wire(&gutted), &keys, NOW), Verdict::Known(_)));
        assert!(alpha.events[&event_id].0.pdu.content().get().contains("secret"));
    }
}

#[test]
fn an_event_that_names_unknown_events_asks_for_them() {
    let (mut alpha, mut bravo, keys) = pair(&RoomVersionId::V12);
    let first = bravo.send(message(BOB, "one", 3000), &keys).unwrap();
    let second = bravo.send(message(BOB, "two", 3001), &keys).unwrap().to_wire().unwrap();
    match alpha.receive(second.as_bytes(), &keys, NOW) {
        Verdict::Missing { events, .. } => assert_eq!(events, [first.pdu().event_id()]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_event_from_the_future_is_held() {
    let (mut alpha, mut bravo, keys) = pair(&RoomVersionId::V12);
    let late = NOW.0 + 48 * 60 * 60 * 1000;
    let sent = bravo.send(message(BOB, "hello", late), &keys).unwrap().to_wire().unwrap();
    match alpha.receive(sent.as_bytes(), &keys, NOW) {
        Verdict::Hold(Hold::Until(time)) => assert_eq!(time, Millis(late)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(alpha.receive(sent.as_bytes(), &keys, Millis(late)), Verdict::Accept(_)));
}

#[test]
fn what_the_rules_forbid_is_rejected_and_carries_nothing() {
    for version in VERSIONS {
        let (mut alpha, mut bravo, keys) = pair(&version);
        // Bravo is dishonest: it believes that bob may change the power levels.
        let cheat = state(ALICE, "m.room.power_levels", "", r#"{"users_default":100}"#, 3000);
        if version == RoomVersionId::V12 {
            bravo.send(cheat, &keys).unwrap();
            let sent =
                bravo.send(state(BOB, "m.room.name", "", r#"{"name":"x"}"#, 3001), &keys).unwrap();
            // Alpha has never seen alice's levels: bob's event names them, so it asks.
            let verdict = alpha.receive(sent.to_wire().unwrap().as_bytes(), &keys, NOW);
            assert!(matches!(verdict, Verdict::Missing { .. }), "{verdict:?}");
        }
        let before = alpha.current();
        let head = alpha.head.clone().unwrap();
        let name = state(BOB, "m.room.name", "", r#"{"name":"mine"}"#, 4000);
        let forged = alpha.forge(name, &head.extremities, &keys);
        let verdict = alpha.receive(forged.as_bytes(), &keys, NOW);
        assert!(matches!(verdict, Verdict::Reject(..)), "{verdict:?}");
        assert_eq!(alpha.current(), before);
        assert_eq!(alpha.head.clone().unwrap().extremities, head.extremities);
    }
}

#[test]
fn what_the_current_state_forbids_is_soft_failed() {
    for version in VERSIONS {
        let (mut alpha, mut bravo, keys) = pair(&version);
        alpha.send(member(ALICE, BOB, "ban", 3000), &keys).unwrap();
        let sent = bravo.send(message(BOB, "hello", 3001), &keys).unwrap();
        let extremities = alpha.head.clone().unwrap().extremities;
        let verdict = alpha.receive(sent.to_wire().unwrap().as_bytes(), &keys, NOW);
        assert!(matches!(verdict, Verdict::SoftFail(..)), "{version}: {verdict:?}");
        assert_eq!(alpha.head.clone().unwrap().extremities, extremities);
        assert_eq!(alpha.membership(BOB).as_deref(), Some("ban"));
    }
}

#[test]
fn redactions_act_in_either_order_and_only_with_the_right() {
    for version in VERSIONS {
        let (mut alpha, mut bravo, keys) = pair(&version);
        let redact = |sender: &str, target: &ruma::EventId| Intent {
            sender: user(sender),
            kind: "m.room.redaction".into(),
            state_key: None,
            content: CanonicalJsonObject::new(),
            redacts: Some(target.to_owned()),
            origin_server_ts: Millis(5000),
        };
        let alices = alpha.send(message(ALICE, "by alice", 3000), &keys).unwrap();
        let target = alices.pdu().event_id().to_owned();
        bravo.receive(alices.to_wire().unwrap().as_bytes(), &keys, NOW);
        bravo.send(redact(BOB, &target), &keys).unwrap();
        assert!(bravo.redacted.is_empty(), "{version}: bob may not redact what alice wrote");
        let bobs = bravo.send(message(BOB, "by bob", 3001), &keys).unwrap();
        for signed in bravo.events.clone().into_values().filter_map(|(_, signed)| signed) {
            alpha.receive(signed.to_wire().unwrap().as_bytes(), &keys, NOW);
        }
        alpha.receive(bobs.to_wire().unwrap().as_bytes(), &keys, NOW);
        alpha.send(redact(ALICE, bobs.pdu().event_id()), &keys).unwrap();
        assert!(alpha.redacted.contains(bobs.pdu().event_id()), "{version}");
    }
}
