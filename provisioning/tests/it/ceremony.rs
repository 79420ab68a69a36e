//! Keys and pairing cards.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use sallyport_core::{
    admin::CardRequest,
    card::{CourierKey, EncryptionKey},
    custody::Mode,
    digest::Sha256,
    incarnation::Incarnation,
    sign::{Algorithm, PublicKey},
    time::Millis,
};

use crate::desk::Desk;

const NEVER: Millis = Millis(4_000_000_000_000);

/// A box's request, as `card request` would fetch it.
fn request() -> Vec<u8> {
    let event_key = SigningKey::from_bytes(&[1; 32]);
    let courier_key = SigningKey::from_bytes(&[2; 32]).verifying_key();
    let public = STANDARD_NO_PAD.encode(event_key.verifying_key());
    let unsigned = r#""old_verify_keys":{},"server_name":"alpha.example""#;
    let rest = format!(
        r#""valid_until_ts":4000000000000,"verify_keys":{{"ed25519:1":{{"key":"{public}"}}}}"#
    );
    let signature = event_key.sign(format!("{{{unsigned},{rest}}}").as_bytes());
    let signature = STANDARD_NO_PAD.encode(signature.to_bytes());
    let server_keys = format!(
        r#"{{{unsigned},"signatures":{{"alpha.example":{{"ed25519:1":"{signature}"}}}},{rest}}}"#
    );
    // The base point of P-256: a point like any other.
    let point =
        "BGsX0fLhLEJH+Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT+NC4v4af5uO5+tKfA+eFivOM1drMV7Oy7ZAaDe/UfU";
    let request = CardRequest {
        server_name: "alpha.example".try_into().unwrap(),
        signing_keys: vec![CourierKey {
            public: PublicKey::new(Algorithm::Ed25519, courier_key.as_bytes()).unwrap(),
            not_after: NEVER,
        }],
        encryption_keys: vec![EncryptionKey {
            suite: 1,
            public: STANDARD_NO_PAD.decode(point).unwrap(),
            not_after: NEVER,
        }],
        server_keys: server_keys.into_bytes(),
        incarnation: Incarnation([7; 16]),
        previous: None,
        custody: Some(Mode::Envelope),
    };
    request.encode().unwrap()
}

#[test]
fn officer_keys_come_with_the_line_for_the_configuration() {
    let desk = Desk::new();
    let said = desk.run("ceremony officer-key --enclave alpha.example --token token.toml --allow-software-keys --algorithm ed25519").ok();
    let key = said.lines().nth(2).unwrap().strip_prefix("public key  ").unwrap();
    assert!(key.starts_with("ed25519:"), "{said}");
    let line = format!("[roster]\ntrusted_keys = [\"{key}\"]\n");
    assert!(said.ends_with(&line), "{said}");
}

#[test]
fn from_the_root_key_to_a_card_with_the_same_fingerprint() {
    let desk = Desk::new();
    let made = desk.run("ceremony init-root --enclave alpha.example --token token.toml --allow-software-keys --json").ok();
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let fingerprint = made["fingerprint"].as_str().unwrap();
    assert_eq!(fingerprint.split(' ').count(), 8);

    let request = request();
    desk.write("request", &request);
    let hash = Sha256::of(&request);
    let sign = |hash: &str, out: &str| {
        desk.run(&format!(
            "ceremony sign-card request --request-hash {hash} --token token.toml --allow-software-keys --name Alpha --serial 1 --out {out}"
        ))
    };
    sign(&"00".repeat(32), "card").fails(1, "the request is not the one that the box showed");
    let said = sign(&hash.to_string(), "card").ok();
    assert!(
        said.starts_with(&format!(
            "enclave          alpha.example (Alpha)\nfingerprint      {fingerprint}\n"
        )),
        "{said}"
    );
    assert!(
        said.contains("\nevent key        envelope: The key is on the disk, encrypted"),
        "{said}"
    );
    assert_eq!(desk.run("card show card").ok(), said);
    let aloud = desk.run("card fingerprint card").ok();
    assert_eq!(aloud.lines().next(), Some(fingerprint));
    sign(&hash.to_string(), "card").fails(1, "an existing file is not replaced");
    desk.run("card show request").fails(1, "request cannot be used: not a pairing card");
}
