//! What is signed, what is refused, and that ruma agrees with us about an event's signature.

use coset::{CborSerializable, CoseSign1Builder, HeaderBuilder, iana};
use proptest::prelude::*;
use ruma::{
    CanonicalJsonObject, RoomVersionId,
    signatures::{Ed25519KeyPair, sign_event, sign_json},
};
use serde_json::json;

use super::*;
use crate::{cbor, time::Millis};

const SEED: [u8; 32] = [7; 32];

#[test]
fn a_signature_over_an_event_is_the_one_that_ruma_makes() {
    for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
        let mut event = parse(&event());
        let request = pdu_request(version.clone(), &event);
        let rules = version.rules().unwrap();
        sign_event("alpha.example", &ruma_key(), &mut event, &rules.redaction).unwrap();
        let theirs = event["signatures"].as_object().unwrap()["alpha.example"].as_object().unwrap()
            ["ed25519:1"]
            .as_str()
            .unwrap();
        assert_eq!(sign(&request.bytes_to_sign(&policy()).unwrap()).to_base64(), theirs);
    }
}

#[test]
fn a_signature_over_a_key_document_is_the_one_that_ruma_makes() {
    let mut document = parse(&key_document_json());
    let request = SigningRequest::KeyDocument { json: text_of(&document) };
    sign_json("alpha.example", &ruma_key(), &mut document).unwrap();
    let ours = sign(&request.bytes_to_sign(&policy()).unwrap());
    let verified = document["signatures"].as_object().unwrap()["alpha.example"]
        .as_object()
        .unwrap()["ed25519:1"]
        .as_str()
        .unwrap();
    assert_eq!(ours.to_base64(), verified);
}

#[test]
fn a_redacted_event_gets_the_same_signature() {
    let whole = parse(&event());
    let rules = RoomVersionId::V12.rules().unwrap();
    let gutted = ruma::canonical_json::redact(whole.clone(), &rules.redaction, None).unwrap();
    assert_eq!(
        pdu_request(RoomVersionId::V12, &whole).bytes_to_sign(&policy()).unwrap(),
        pdu_request(RoomVersionId::V12, &gutted).bytes_to_sign(&policy()).unwrap(),
    );
}

#[test]
fn signatures_and_unsigned_are_not_signed() {
    let plain = event();
    let mut decorated = plain.clone();
    decorated["signatures"] = json!({ "bravo.example": { "ed25519:1": "AAAA" } });
    decorated["unsigned"] = json!({ "age": 3 });
    assert_eq!(
        pdu_request(RoomVersionId::V12, &parse(&plain)).bytes_to_sign(&policy()).unwrap(),
        pdu_request(RoomVersionId::V12, &parse(&decorated)).bytes_to_sign(&policy()).unwrap(),
    );
}

#[test]
fn events_that_are_refused() {
    let cases: [(&str, serde_json::Value, &str); 7] = [
        (
            "/sender",
            json!("@mallory:bravo.example"),
            "the event is of bravo.example, not of our server alpha.example",
        ),
        ("/sender", json!("alice"), "the event has no valid `sender`"),
        ("/type", json!(3), "the event has no valid `type`"),
        ("/hashes", json!({}), "the event has no valid `sha256`"),
        ("/content", json!("text"), "the event has no valid `content`"),
        ("/origin_server_ts", json!("now"), "the event has no valid `origin_server_ts`"),
        ("/depth", json!(1.5), "the event is not a canonical JSON object"),
    ];
    for (pointer, value, refusal) in cases {
        let mut event = event();
        *event.pointer_mut(pointer).unwrap() = value;
        let request =
            SigningRequest::Pdu { room_version: RoomVersionId::V12, json: event.to_string() };
        assert_eq!(request.bytes_to_sign(&policy()).unwrap_err().to_string(), refusal, "{pointer}");
    }
}

#[test]
fn an_event_is_bounded_and_its_room_version_known() {
    let mut long = event();
    long["content"]["body"] = json!("x".repeat(PDU_BYTES_MAX));
    let request = SigningRequest::Pdu { room_version: RoomVersionId::V12, json: long.to_string() };
    assert!(matches!(request.bytes_to_sign(&policy()), Err(Refusal::TooLarge { .. })));

    let unknown = RoomVersionId::try_from("net.example.unheard").unwrap();
    let request = SigningRequest::Pdu { room_version: unknown, json: event().to_string() };
    assert!(matches!(request.bytes_to_sign(&policy()), Err(Refusal::RoomVersion(_))));
}

#[test]
fn requests_that_share_the_event_key_cannot_stand_for_each_other() {
    let jsons = [event(), key_document_json(), x_matrix_json()].map(|json| json.to_string());
    let makers: [fn(String) -> SigningRequest; 3] = [
        |json| SigningRequest::Pdu { room_version: RoomVersionId::V11, json },
        |json| SigningRequest::KeyDocument { json },
        |json| SigningRequest::XMatrix { json },
    ];
    for (i, maker) in makers.iter().enumerate() {
        for (j, json) in jsons.iter().enumerate() {
            let request = maker(json.clone());
            assert_eq!(request.role(), KeyRole::Event);
            assert_eq!(request.bytes_to_sign(&policy()).is_ok(), i == j, "{request:?}");
        }
    }
}

#[test]
fn key_documents_and_federation_requests_that_are_refused() {
    let mut foreign = key_document_json();
    foreign["server_name"] = json!("bravo.example");
    let mut extra = key_document_json();
    extra["content"] = json!({});
    for json in [foreign, extra] {
        let request = SigningRequest::KeyDocument { json: json.to_string() };
        assert!(request.bytes_to_sign(&policy()).is_err(), "{request:?}");
    }

    let mut foreign = x_matrix_json();
    foreign["origin"] = json!("bravo.example");
    let mut elsewhere = x_matrix_json();
    elsewhere["uri"] = json!("/admin");
    let mut extra = x_matrix_json();
    extra["type"] = json!("m.room.message");
    for json in [foreign, elsewhere, extra] {
        let request = SigningRequest::XMatrix { json: json.to_string() };
        assert!(request.bytes_to_sign(&policy()).is_err(), "{request:?}");
    }
}

type Binary = (fn(Vec<u8>) -> SigningRequest, &'static [u8], KeyRole);

const BINARIES: [Binary; 6] = [
    (SigningRequest::Manifest, context::MANIFEST, KeyRole::Courier),
    (SigningRequest::Acknowledgement, context::ACKNOWLEDGEMENT, KeyRole::Courier),
    (SigningRequest::Card, context::CARD, KeyRole::Root),
    (SigningRequest::Roster, context::ROSTER, KeyRole::Officer),
    (SigningRequest::Checkpoint, context::CHECKPOINT, KeyRole::Audit),
    (SigningRequest::Update, context::UPDATE, KeyRole::Release),
];

/// The requests whose tests are in [`x509`].
const X509: [fn(Vec<u8>) -> SigningRequest; 4] = [
    SigningRequest::Certificate,
    SigningRequest::CaRequest,
    SigningRequest::TlsRequest,
    SigningRequest::TlsHandshake,
];

#[test]
fn a_binary_document_is_signed_in_its_own_context_only() {
    for (i, (make, _, role)) in BINARIES.iter().enumerate() {
        for (j, (_, context, _)) in BINARIES.iter().enumerate() {
            let bytes = sig_structure(context, b"payload");
            let request = make(bytes.clone());
            assert_eq!(request.role(), *role);
            match request.bytes_to_sign(&policy()) {
                Ok(signed) => assert!(i == j && signed == bytes),
                Err(refusal) => assert!(i != j && matches!(refusal, Refusal::Context { .. })),
            }
        }
    }
}

#[test]
fn a_working_key_is_certified_for_its_own_server_only() {
    let event_key = ed25519_dalek::SigningKey::from_bytes(&SEED).verifying_key();
    let said = |server: &str| {
        let said = WorkingKey {
            version: 1,
            server_name: server.try_into().unwrap(),
            name: "event:0123456789abcdef".to_owned(),
            public: PublicKey::new(Algorithm::Ed25519, event_key.as_bytes()).unwrap(),
            created: Millis(1),
            wrapped_by: "storage:0123456789abcdef".to_owned(),
        };
        cbor::to_bytes(&said).unwrap()
    };
    let ask = |context: &[u8], payload: &[u8]| {
        let request = SigningRequest::WorkingKey(sig_structure(context, payload));
        assert_eq!(request.role(), KeyRole::Courier);
        request.bytes_to_sign(&policy())
    };
    let (ours, theirs) = (said("alpha.example"), said("bravo.example"));
    assert!(ask(context::WORKING_KEY, &ours).is_ok());
    assert!(matches!(ask(context::WORKING_KEY, &theirs), Err(Refusal::Foreign { .. })));
    assert!(matches!(ask(context::MANIFEST, &ours), Err(Refusal::Context { .. })));
    for payload in [b"payload".as_slice(), &ours[..ours.len() - 1]] {
        let refusal = ask(context::WORKING_KEY, payload);
        assert!(matches!(refusal, Err(Refusal::SigStructure { .. })), "{payload:02x?}");
    }
}

#[test]
fn a_binary_document_must_be_one_deterministic_sig_structure() {
    let good = sig_structure(context::MANIFEST, b"payload");
    let mut trailing = good.clone();
    trailing.push(0);
    let mut indefinite = good.clone();
    indefinite[0] = 0x9f;
    indefinite.push(0xff);
    let other_context = [&good[..1], &[0x69], b"Signature", &good[12..]].concat();
    let empty = sig_structure(context::MANIFEST, b"");
    let event = event().to_string().into_bytes();
    for bytes in [trailing, indefinite, other_context, empty, event, Vec::new(), b"{}".to_vec()] {
        let refusal = SigningRequest::Manifest(bytes.clone()).bytes_to_sign(&policy());
        assert!(matches!(refusal, Err(Refusal::SigStructure { .. })), "{bytes:02x?}");
    }
    let huge = SigningRequest::Manifest(vec![0; SIGNED_BYTES_MAX + 1]);
    assert!(matches!(huge.bytes_to_sign(&policy()), Err(Refusal::TooLarge { .. })));
}

#[test]
fn requests_survive_serialisation() {
    let requests = [
        pdu_request(RoomVersionId::V12, &parse(&event())),
        SigningRequest::XMatrix { json: x_matrix_json().to_string() },
        SigningRequest::Checkpoint(sig_structure(context::CHECKPOINT, b"payload")),
        SigningRequest::WorkingKey(sig_structure(context::WORKING_KEY, b"payload")),
        SigningRequest::Certificate(b"0".to_vec()),
        SigningRequest::CaRequest(b"0".to_vec()),
        SigningRequest::TlsRequest(b"0".to_vec()),
        SigningRequest::TlsHandshake(b" ".to_vec()),
    ];
    for request in requests {
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<SigningRequest>(&text).unwrap(), request);
    }
}

#[test]
fn both_algorithms_verify_and_notice_every_flipped_bit() {
    let message = b"attack at dawn";
    let p256 = p256::ecdsa::SigningKey::from_slice(&SEED).unwrap();
    let p256_signature: p256::ecdsa::Signature =
        p256::ecdsa::signature::Signer::sign(&p256, message);
    let p256_public = PublicKey::new(
        Algorithm::P256,
        &p256::PublicKey::from(p256.verifying_key()).to_sec1_bytes(),
    );
    let cases = [
        (our_key(), *sign(message).as_bytes()),
        (p256_public.unwrap(), p256_signature.to_bytes().into()),
    ];
    for (key, signature) in cases {
        verify(&key, message, &signature.into()).unwrap();
        assert!(verify(&key, b"attack at dusk", &signature.into()).is_err());
        for bit in 0..512 {
            let mut flipped = signature;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&key, message, &flipped.into()).is_err(), "{key:?} bit {bit}");
        }
    }
}

#[test]
fn keys_that_are_refused() {
    let mut off_curve = [4; 65];
    off_curve[64] = 1;
    let mut small_order = [0; 32];
    small_order[0] = 1;
    let other_curve = our_key();
    let cases: [(Algorithm, &[u8]); 6] = [
        (Algorithm::Ed25519, &[]),
        (Algorithm::Ed25519, &[2; 31]),
        (Algorithm::Ed25519, &small_order),
        (Algorithm::P256, &[]),
        (Algorithm::P256, &off_curve),
        (Algorithm::P256, other_curve.as_bytes()),
    ];
    for (algorithm, bytes) in cases {
        assert_eq!(PublicKey::new(algorithm, bytes), Err(InvalidKey(algorithm)), "{bytes:02x?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, text: String) {
        for (make, _, _) in BINARIES {
            prop_assert!(make(bytes.clone()).bytes_to_sign(&policy()).is_err());
        }
        for make in X509 {
            prop_assert!(make(bytes.clone()).bytes_to_sign(&policy()).is_err());
        }
        let pdu = SigningRequest::Pdu { room_version: RoomVersionId::V12, json: text.clone() };
        prop_assert!(pdu.bytes_to_sign(&policy()).is_err());
        let document = SigningRequest::KeyDocument { json: text };
        prop_assert!(document.bytes_to_sign(&policy()).is_err());
    }

    #[test]
    fn whatever_an_event_says_its_signed_bytes_are_canonical(
        body in ".{0,64}", field in "[a-z]{1,12}", ts in 0_u64..9_007_199_254_740_991,
    ) {
        let mut event = event();
        event["content"] = json!({ "body": body });
        event["origin_server_ts"] = json!(ts);
        event[format!("x_{field}")] = json!(body);
        let request =
            SigningRequest::Pdu { room_version: RoomVersionId::V12, json: event.to_string() };
        let bytes = request.bytes_to_sign(&policy()).unwrap();
        let object: CanonicalJsonObject = serde_json::from_slice(&bytes).unwrap();
        prop_assert_eq!(text_of(&object).into_bytes(), bytes);
        prop_assert!(object.keys().all(|name| !name.starts_with("x_")));
        prop_assert!(object["content"].as_object().unwrap().is_empty());
    }

    #[test]
    fn any_payload_is_signed_as_it_is(payload in proptest::collection::vec(any::<u8>(), 1..300)) {
        let bytes = sig_structure(context::CARD, &payload);
        prop_assert_eq!(SigningRequest::Card(bytes.clone()).bytes_to_sign(&policy()).unwrap(), bytes);
    }
}

fn policy() -> Policy {
    Policy { server_name: "alpha.example".try_into().unwrap() }
}

fn event() -> serde_json::Value {
    json!({
        "type": "m.room.message",
        "room_id": "!room",
        "sender": "@alice:alpha.example",
        "origin_server_ts": 1_760_000_000_000_u64,
        "depth": 7,
        "auth_events": ["$a"],
        "prev_events": ["$b"],
        "hashes": { "sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos" },
        "content": { "msgtype": "m.text", "body": "good evening" },
    })
}

fn key_document_json() -> serde_json::Value {
    json!({
        "server_name": "alpha.example",
        "valid_until_ts": 1_760_000_000_000_u64,
        "verify_keys": { "ed25519:1": { "key": "Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw" } },
        "old_verify_keys": {},
    })
}

fn x_matrix_json() -> serde_json::Value {
    json!({
        "method": "PUT",
        "uri": "/_matrix/federation/v1/send/1",
        "origin": "alpha.example",
        "destination": "bravo.example",
        "content": { "pdus": [] },
    })
}

fn sig_structure(context: &[u8], payload: &[u8]) -> Vec<u8> {
    let protected = HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).build();
    let document = CoseSign1Builder::new().protected(protected).payload(payload.to_vec()).build();
    let bytes = document.tbs_data(context);
    assert!(coset::cbor::Value::from_slice(&bytes).is_ok());
    bytes
}

fn pdu_request(room_version: RoomVersionId, event: &CanonicalJsonObject) -> SigningRequest {
    SigningRequest::Pdu { room_version, json: text_of(event) }
}

fn parse(json: &serde_json::Value) -> CanonicalJsonObject {
    serde_json::from_str(&json.to_string()).unwrap()
}

fn text_of(object: &CanonicalJsonObject) -> String {
    serde_json::to_string(object).unwrap()
}

fn our_key() -> PublicKey {
    let public = ed25519_dalek::SigningKey::from_bytes(&SEED).verifying_key();
    PublicKey::new(Algorithm::Ed25519, public.as_bytes()).unwrap()
}

fn sign(message: &[u8]) -> Signature {
    use ed25519_dalek::Signer as _;
    let signature = ed25519_dalek::SigningKey::from_bytes(&SEED).sign(message);
    verify(&our_key(), message, &signature.to_bytes().into()).unwrap();
    signature.to_bytes().into()
}

/// The same key in PKCS#8 version 2 (RFC 8410), the only form that ruma reads.
fn ruma_key() -> Ed25519KeyPair {
    let mut der = vec![0x30, 0x51, 0x02, 0x01, 0x01, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
    der.extend([0x04, 0x22, 0x04, 0x20]);
    der.extend(SEED);
    der.extend([0x81, 0x21, 0x00]);
    der.extend(our_key().as_bytes());
    Ed25519KeyPair::from_der(&der, "1".to_owned()).unwrap()
}

#[test]
fn public_keys_have_a_text_form() {
    let secret = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let key = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
    assert_eq!(format!(" {key}\n").parse(), Ok(key.clone()));
    let base64 = key.to_base64();
    for text in
        [base64.clone(), format!("p256:{base64}"), format!("rsa:{base64}"), "ed25519:AA".to_owned()]
    {
        assert_eq!(text.parse::<PublicKey>(), Err(NotAPublicKey), "{text}");
    }
}
