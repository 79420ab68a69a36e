//! Events by fixtures: canonical JSON, format, content hash, event id, redaction and signature in each room version.
//!
//! Expected hashes, ids and signatures are the specification's own test vectors, or were computed by another implementation.

use std::collections::BTreeMap;

use ed25519_dalek::{Signer, SigningKey};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomVersionId,
    serde::{Base64, base64::Standard},
};
use sallyport_core::{
    event::{Pdu, canonical_json},
    room,
    sign::{Policy, SigningRequest},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{server::Keys, short::all_versions};

/// The seed of the specification's signing key, as unpadded Base64.
const SEED: &str = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";

#[derive(Deserialize)]
struct Canonical {
    why: String,
    text: String,
    canonical: Option<String>,
}

#[test]
fn canonical_json_is_the_specifications() {
    let table: Vec<Canonical> =
        serde_json::from_str(include_str!("../fixtures/events/canonical_json.json")).unwrap();
    for Canonical { why, text, canonical } in table {
        // As part of an event, where the text is parsed.
        let parsed: Option<CanonicalJsonObject> = serde_json::from_str(&text).ok();
        assert_eq!(
            parsed.map(|object| serde_json::to_string(&object).unwrap()),
            canonical,
            "{why}"
        );
        // And as a value that was parsed before.
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            assert_eq!(canonical_json(&value), canonical, "{why}");
        }
    }
}

#[derive(Deserialize)]
struct Row {
    why: String,
    #[serde(default = "all_versions")]
    versions: Vec<RoomVersionId>,
    change: BTreeMap<String, Value>,
    /// A part of what is said of it, if it is refused.
    refusal: Option<String>,
}

#[test]
fn the_format_of_events_is_checked() {
    let table: Vec<Row> =
        serde_json::from_str(include_str!("../fixtures/events/format.json")).unwrap();
    for Row { why, versions, change, refusal } in table {
        let mut event = json!({
            "type": "X", "sender": "@a:domain", "room_id": "!r:domain", "content": {}, "depth": 7,
            "origin_server_ts": 1_000_000, "prev_events": ["$p"], "auth_events": ["$a"],
            "hashes": {"sha256": "x"}, "signatures": {},
        });
        for (field, value) in change {
            if value.is_null() {
                event.as_object_mut().unwrap().remove(&field);
            } else {
                event[field] = value;
            }
        }
        for version in versions {
            let rules = room::rules(&version).unwrap();
            let bytes = serde_json::to_vec(&event).unwrap();
            match (room::parse(&bytes, &rules), &refusal) {
                (Ok(_), None) => {}
                (Err(error), Some(part)) => {
                    let said = error.to_string();
                    assert!(said.contains(part.as_str()), "{version}, {why}: {said}");
                }
                (outcome, expected) => panic!("{version}, {why}: {outcome:?}, not {expected:?}"),
            }
        }
    }
}

#[test]
fn an_event_may_have_65535_bytes_and_no_more() {
    let rules = room::rules(&RoomVersionId::V12).unwrap();
    let of_length = |length: usize| {
        let body = |text: &str| {
            json!({
                "type": "X", "sender": "@a:domain", "room_id": "!r:domain", "depth": 7,
                "origin_server_ts": 1, "prev_events": ["$p"], "auth_events": ["$a"],
                "hashes": {"sha256": "x"}, "signatures": {}, "content": {"x": text},
            })
            .to_string()
        };
        body(&"x".repeat(length - body("").len()))
    };
    room::parse(of_length(65_535).as_bytes(), &rules).unwrap();
    assert!(room::parse(of_length(65_536).as_bytes(), &rules).is_err());
}

#[derive(Deserialize)]
struct Hashed {
    why: String,
    expected: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    versions: Vec<RoomVersionId>,
    event: CanonicalJsonObject,
    id: OwnedEventId,
    redacted: CanonicalJsonObject,
}

#[test]
fn ids_hashes_and_redaction_are_those_of_each_version() {
    let table: Vec<Hashed> =
        serde_json::from_str(include_str!("../fixtures/events/hashes.json")).unwrap();
    for Hashed { why, expected } in table {
        for Expected { versions, event, id, redacted } in expected {
            for version in versions {
                let rules = room::rules(&version).unwrap();
                let pdu = Pdu::new(event.clone(), &rules).unwrap();
                assert_eq!(pdu.event_id(), id, "{version}, {why}");
                let by_us = pdu.redacted(&rules).unwrap();
                assert_eq!(by_us.object().unwrap(), redacted, "{version}, {why}");
                assert_eq!(by_us.event_id(), id, "{version}, {why}");
                assert_eq!(Pdu::new(redacted.clone(), &rules).unwrap().event_id(), id);

                let without = |field| {
                    let mut event = event.clone();
                    event.remove(field);
                    event
                };
                assert_eq!(
                    arrived(&event, &version),
                    without("unsigned"),
                    "{version}, {why}: the content hash is good"
                );
                let mut tampered = event.clone();
                tampered.insert("tampered".to_owned(), CanonicalJsonValue::Bool(true));
                assert_eq!(arrived(&tampered, &version), redacted, "{version}, {why}: tampered");
            }
        }
    }
}

/// What is kept of an event that arrives signed: all of it, or what redaction leaves if the content hash is wrong.
fn arrived(event: &CanonicalJsonObject, version: &RoomVersionId) -> CanonicalJsonObject {
    let keys = Keys::of(&["domain"]);
    let rules = room::rules(version).unwrap();
    let unsigned = std::sync::Arc::new(Pdu::new(event.clone(), &rules).unwrap());
    let wire = keys.sign(&unsigned, &rules).to_wire().unwrap();
    let incoming = room::parse(wire.as_bytes(), &rules).unwrap();
    incoming.verify(&keys, &rules).unwrap().pdu().object().unwrap()
}

#[derive(Deserialize)]
struct Signed {
    why: String,
    version: RoomVersionId,
    event: CanonicalJsonObject,
    id: OwnedEventId,
    signature: String,
}

#[test]
fn signatures_are_the_specifications() {
    let seed = Base64::<Standard>::parse(SEED).unwrap();
    let key = SigningKey::from_bytes(seed.as_bytes().try_into().unwrap());
    let policy = Policy { server_name: "domain".try_into().unwrap() };
    let table: Vec<Signed> =
        serde_json::from_str(include_str!("../fixtures/events/signatures.json")).unwrap();
    for Signed { why, version, event, id, signature } in table {
        let rules = room::rules(&version).unwrap();
        assert_eq!(Pdu::new(event.clone(), &rules).unwrap().event_id(), id, "{version}, {why}");
        let json = serde_json::to_string(&event).unwrap();
        let request = SigningRequest::Pdu { room_version: version.clone(), json };
        let made = key.sign(&request.bytes_to_sign(&policy).unwrap());
        let made = Base64::<Standard, _>::new(made.to_bytes()).encode();
        assert_eq!(made, signature, "{version}, {why}");
    }
}

#[test]
fn the_target_of_a_redaction_stands_where_the_version_says() {
    let event = |with_target: &str| -> CanonicalJsonObject {
        let mut event = json!({
            "type": "m.room.redaction", "sender": "@a:domain", "room_id": "!r:domain", "depth": 7,
            "origin_server_ts": 1, "prev_events": ["$p"], "auth_events": ["$a"], "content": {},
            "hashes": {"sha256": "x"},
        });
        *event.pointer_mut(with_target).unwrap() = match with_target {
            "" => {
                let mut event = event.clone();
                event["redacts"] = json!("$target");
                event
            }
            _ => json!({"redacts": "$target"}),
        };
        serde_json::from_value(event).unwrap()
    };
    for version in room::VERSIONS {
        let rules = room::rules(&version).unwrap();
        let top_level = version == RoomVersionId::V10;
        for (place, counts) in [("", top_level), ("/content", !top_level)] {
            let pdu = Pdu::new(event(place), &rules).unwrap();
            assert_eq!(pdu.redacts().is_some(), counts, "{version} {place}");
            let (event_id, room_id) = (pdu.event_id().to_owned(), pdu.room_id().to_owned());
            let stored = Pdu::from_stored(event_id, room_id, pdu.json().into(), &rules).unwrap();
            assert_eq!(stored.redacts(), pdu.redacts(), "{version} {place}");
        }
    }
}
