//! Everything that reads bytes from outside, as functions that must not panic and whose claims must hold.
//!
//! `../fuzz_targets/` hands them to libFuzzer, `tests/smoke/main.rs` runs them over `../seeds/` on any compiler.

#![expect(clippy::expect_used, reason = "a target reports what it finds by panicking")]

use ruma::{server_name, signatures::PublicKeySet};
use sallyport_core::{
    event::{KeyDocument, KeyLookup, KeySource, Pdu},
    room,
    time::Millis,
};

/// An event of another server, in every room version that we serve.
pub fn pdu(bytes: &[u8]) {
    for version in room::VERSIONS {
        let rules = room::rules(&version).expect("a version that we serve has rules");
        let Ok(incoming) = room::parse(bytes, &rules) else { continue };
        let event = incoming.pdu().clone();
        let object = event.object().expect("what was parsed can be read again");
        let again = Pdu::new(object, &rules).expect("what was accepted is accepted again");
        assert_eq!(event.event_id(), again.event_id(), "the id depends on the event alone");
        assert_eq!(event.json(), again.json(), "canonical JSON has one form");
        let redacted = event.redacted(&rules).expect("every event can be redacted");
        assert_eq!(event.event_id(), redacted.event_id(), "redaction keeps the id");
        let twice = redacted.redacted(&rules).expect("a redacted event can be redacted");
        assert_eq!(redacted.json(), twice.json(), "redacting twice is redacting once");
        let from_store = Pdu::from_stored(
            event.event_id().to_owned(),
            event.room_id().to_owned(),
            event.json().into(),
        );
        let from_store = from_store.expect("the store gives back what was parsed");
        assert_eq!(event.sender(), from_store.sender());
        // The specification wants no server's signature under the answer to a third-party invite.
        let needs_signature = !incoming.servers().is_empty();
        let signed = incoming.verify(&NoKeys, &rules).is_ok();
        assert!(!(signed && needs_signature), "signed although nobody has a key");
    }
}

/// A server's published keys.
pub fn key_document(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let made = Millis(1_700_000_000_000);
    let Ok(document) = KeyDocument::verify(text, server_name!("bravo.example"), made) else {
        return;
    };
    assert_eq!(document.server_name(), "bravo.example");
    assert!(!document.keys_at(document.valid_until()).is_empty(), "signed by no key of its own");
}

/// Servers whose keys have no key in them.
struct NoKeys;

impl KeySource for NoKeys {
    fn keys(&self, _server: &ruma::ServerName, _time: Millis) -> KeyLookup {
        KeyLookup::Keys(PublicKeySet::new())
    }
}
