//! Tests of cards: what is accepted, what is refused and why.

use std::{convert::Infallible, time::Duration};

use ed25519_dalek::{Signer as _, SigningKey};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, server_name, signatures::Ed25519KeyPair};

use super::*;
use crate::sign::Algorithm;

const NOW: Millis = Millis(1_800_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn secret(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> PublicKey {
    PublicKey::new(Algorithm::Ed25519, secret(seed).verifying_key().as_bytes()).unwrap()
}

fn server_keys(server: &str) -> Vec<u8> {
    let pair = Ed25519KeyPair::from_der(&pkcs8(40), "1".to_owned()).unwrap();
    let mut document: CanonicalJsonObject = serde_json::from_value(serde_json::json!({
        "server_name": server,
        "valid_until_ts": NOW.0,
        "verify_keys": { "ed25519:1": { "key": Base64::new(pair.public_key().to_vec()).encode() } },
        "old_verify_keys": {},
    }))
    .unwrap();
    ruma::signatures::sign_json(server, &pair, &mut document).unwrap();
    serde_json::to_vec(&document).unwrap()
}

/// The smallest PKCS#8 form of an Ed25519 key (RFC 8410, section 7).
fn pkcs8(seed: u8) -> Vec<u8> {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([seed; 32]);
    der
}

type Base64 = ruma::serde::Base64;

fn point(seed: u8) -> Vec<u8> {
    let key = p256::SecretKey::from_slice(&[seed; 32]).unwrap();
    key.public_key().to_sec1_point(false).as_bytes().to_vec()
}

fn content() -> Content {
    Content {
        version: VERSION,
        server_name: server_name!("alpha.example").to_owned(),
        enclave: "Alpha".to_owned(),
        serial: 1,
        not_before: NOW,
        not_after: NOW.plus(DAY * 365),
        root: public(1),
        signing_keys: vec![CourierKey { public: public(2), not_after: NOW.plus(DAY * 365) }],
        encryption_keys: vec![
            EncryptionKey { suite: 77, public: vec![1, 2, 3], not_after: NOW.plus(DAY * 30) },
            EncryptionKey { suite: 1, public: point(3), not_after: NOW.plus(DAY * 30) },
        ],
        server_keys: server_keys("alpha.example"),
        policy: Policy {
            bundle_bytes_max: 1 << 30,
            room_versions: vec![RoomVersionId::V12, RoomVersionId::V11],
            direction: Direction::Both,
            export_approvals: 1,
            import_approvals: 2,
        },
        incarnation: Incarnation([5; 16]),
        previous: None,
        custody: Some(Mode::Envelope),
    }
}

/// A confirmed card of a server, changed from the usual one.
pub(crate) fn card_of(server: &str, change: impl FnOnce(&mut Content)) -> Card {
    let mut content = Content {
        server_name: server.try_into().unwrap(),
        server_keys: server_keys(server),
        ..content()
    };
    change(&mut content);
    Card::stored(&sign(&content).unwrap()).unwrap()
}

fn sign(content: &Content) -> Result<Vec<u8>, SealError<Infallible>> {
    sign_as(content, 1)
}

fn sign_as(content: &Content, seed: u8) -> Result<Vec<u8>, SealError<Infallible>> {
    Card::sign(content, |tbs| Ok(secret(seed).sign(tbs).to_bytes().into()))
}

fn confirmed(bytes: &[u8]) -> Card {
    let proposed = Proposed::parse(bytes, NOW).unwrap();
    let words = proposed.fingerprint().words();
    proposed.confirm(&words).unwrap()
}

#[test]
fn what_is_signed_is_read_and_confirmed() {
    let content = content();
    let bytes = sign(&content).unwrap();
    assert_eq!(bytes, sign(&content).unwrap(), "the same content gives the same bytes");
    let proposed = Proposed::parse(&bytes, NOW).unwrap();
    assert_eq!(proposed.content(), &content);
    assert_eq!(proposed.clone().confirm("no"), Err(Mismatch::Incomplete));
    let card = confirmed(&bytes);
    assert_eq!(card.hash(), Sha256::of(&bytes));
    assert_eq!(Card::stored(&bytes).unwrap(), card);
    assert_eq!(card.signing_key(content.signing_keys[0].id()), content.signing_keys.first());
    assert_eq!(card.signing_key(KeyId([0; 8])), None);
    assert_eq!(
        card.encryption_key(NOW),
        content.encryption_keys.get(1),
        "unknown suites are passed"
    );
    assert_eq!(card.encryption_key(NOW.plus(DAY * 31)), None);
}

#[test]
fn every_flipped_byte_and_every_truncation_is_refused() {
    let bytes = sign(&content()).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        assert!(Card::stored(&damaged).is_err(), "byte {at}");
        assert!(Card::stored(&bytes[..at]).is_err(), "first {at} bytes");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(Card::stored(&longer), Err(CardError::Malformed(_))));
    assert!(matches!(Card::stored(&vec![0; 200_000]), Err(CardError::TooLarge { .. })));
}

#[test]
fn time_is_checked_when_a_stick_is_read() {
    let bytes = sign(&content()).unwrap();
    let early = Proposed::parse(&bytes, Millis(NOW.0 - 1));
    assert!(matches!(early, Err(CardError::NotYetValid { not_before: NOW })));
    let late = Proposed::parse(&bytes, NOW.plus(DAY * 366));
    assert!(matches!(late, Err(CardError::Expired { .. })));
}

#[test]
fn another_key_than_the_named_root_cannot_sign() {
    let refused = sign_as(&content(), 9);
    assert!(matches!(refused, Err(SealError::Sign(SignError::WrongKey))));
    // Put another root's name into an envelope that this root signed.
    let payload = cbor::to_bytes(&Content { root: public(1), ..content() }).unwrap();
    let forged = cose::sign(context::CARD, &public(9), payload, |tbs| {
        Ok::<_, Infallible>(secret(9).sign(tbs).to_bytes().into())
    });
    assert!(matches!(Card::stored(&forged.unwrap()), Err(CardError::BadSignature)));
}

#[test]
fn unsound_content_is_neither_signed_nor_read() {
    let change = |f: &dyn Fn(&mut Content)| {
        let mut changed = content();
        f(&mut changed);
        changed
    };
    let table: &[(&str, Content)] = &[
        ("name", change(&|c| c.enclave.clear())),
        ("control character", change(&|c| c.enclave.push('\n'))),
        ("long name", change(&|c| c.enclave = "a".repeat(256))),
        ("no signing key", change(&|c| c.signing_keys.clear())),
        ("root signs bundles", change(&|c| c.signing_keys[0].public = public(1))),
        ("key twice", change(&|c| c.signing_keys.push(c.signing_keys[0].clone()))),
        ("17 keys", change(&|c| c.encryption_keys = vec![c.encryption_keys[1].clone(); 17])),
        ("no known suite", change(&|c| c.encryption_keys.truncate(1))),
        ("not a point", change(&|c| c.encryption_keys[1].public = vec![4; 65])),
        ("no room version", change(&|c| c.policy.room_versions.clear())),
        ("takes nothing", change(&|c| c.policy.bundle_bytes_max = 0)),
        ("keys of another", change(&|c| c.server_keys = server_keys("bravo.example"))),
        ("forged keys", change(&|c| c.server_keys = tampered(&c.server_keys))),
        ("no JSON", change(&|c| c.server_keys = b"{".to_vec())),
    ];
    for (what, content) in table {
        assert!(matches!(sign(content), Err(SealError::Content(_))), "{what}");
        let payload = cbor::to_bytes(content).unwrap();
        let signed = cose::sign(context::CARD, &public(1), payload, |tbs| {
            Ok::<_, Infallible>(secret(1).sign(tbs).to_bytes().into())
        });
        let refused = Card::stored(&signed.unwrap());
        assert!(
            matches!(refused, Err(CardError::Unsound(_) | CardError::ServerKeys(_))),
            "{what}: {refused:?}"
        );
    }
}

fn tampered(keys: &[u8]) -> Vec<u8> {
    let mut document: CanonicalJsonObject = serde_json::from_slice(keys).unwrap();
    let late = CanonicalJsonValue::Integer(9_000_000_000_000_u64.try_into().unwrap());
    document.insert("valid_until_ts".to_owned(), late);
    serde_json::to_vec(&document).unwrap()
}

#[test]
fn a_later_format_is_named_as_such() {
    let payload = cbor::to_bytes(&Content { version: 2, ..content() }).unwrap();
    let signed = cose::sign(context::CARD, &public(1), payload, |tbs| {
        Ok::<_, Infallible>(secret(1).sign(tbs).to_bytes().into())
    });
    let refused = Card::stored(&signed.unwrap());
    assert!(matches!(refused, Err(CardError::NewerFormat { found: 2 })));
}

#[test]
fn renewals() {
    let first = confirmed(&sign(&content()).unwrap());
    let next = Content { serial: 2, previous: Some(first.hash()), ..content() };
    let renew = |content: &Content, seed| first.renew(&sign_as(content, seed).unwrap());

    assert_eq!(renew(&next, 1).unwrap().content(), &next);
    let revoked = Content { not_after: NOW, ..next.clone() };
    let revoked = renew(&revoked, 1).unwrap();
    assert!(matches!(revoked.check_time(NOW.plus(DAY)), Err(CardError::Expired { .. })));
    let after_a_lost_one =
        Content { serial: 3, previous: Some(Sha256::of(b"lost")), ..next.clone() };
    assert!(renew(&after_a_lost_one, 1).is_ok());

    let other_root = Content { root: public(9), ..next.clone() };
    assert!(matches!(renew(&other_root, 9), Err(CardError::OtherRoot)));
    let same = Content { serial: 1, ..next.clone() };
    assert!(matches!(renew(&same, 1), Err(CardError::NotNewer { found: 1, known: 1 })));
    let forked = Content { previous: Some(Sha256::of(b"another history")), ..next.clone() };
    assert!(matches!(renew(&forked, 1), Err(CardError::Forked)));
    let other_server = Content {
        server_name: server_name!("bravo.example").to_owned(),
        server_keys: server_keys("bravo.example"),
        ..next
    };
    assert!(matches!(renew(&other_server, 1), Err(CardError::OtherServer { .. })));
}
