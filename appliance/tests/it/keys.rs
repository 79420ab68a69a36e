//! End-to-end encryption keys, messages to devices, key backups.

use ruma::UserId;
use sallyport_core::e2ee::SignedObject;
use serde_json::{Value, json};
use vodozemac::{Ed25519SecretKey, olm::Account};

use crate::enclave::{Enclave, Member, PASSWORD};

/// What a client's encryption holds.
struct Crypto {
    account: Account,
    member: Member,
}

impl Crypto {
    fn new(member: Member) -> Self {
        Self { account: Account::new(), member }
    }

    fn sign(&self, mut object: Value) -> Value {
        let signature = self.account.sign(signed_part(&object).as_bytes()).to_base64();
        let key_id = format!("ed25519:{}", self.member.device_id);
        object["signatures"][self.member.user_id.as_str()][key_id] = signature.into();
        object
    }

    fn device_keys(&self) -> Value {
        let id = &self.member.device_id;
        self.sign(json!({
            "user_id": self.member.user_id,
            "device_id": id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {
                format!("ed25519:{id}"): self.account.ed25519_key().to_base64(),
                format!("curve25519:{id}"): self.account.curve25519_key().to_base64(),
            },
            "signatures": {},
        }))
    }

    fn one_time_keys(&mut self, count: usize) -> Value {
        self.account.generate_one_time_keys(count);
        let keys = self.account.one_time_keys();
        let keys = keys.into_iter().map(|(id, key)| {
            let id = format!("signed_curve25519:{}", id.to_base64());
            (id, self.sign(json!({ "key": key.to_base64() })))
        });
        keys.collect::<serde_json::Map<_, _>>().into()
    }
}

fn signed_part(object: &Value) -> String {
    SignedObject::parse(&object.to_string(), 100_000).unwrap().signed_part().to_owned()
}

fn cross_key(user_id: &UserId, usage: &str, key: &Ed25519SecretKey) -> Value {
    let public = key.public_key().to_base64();
    json!({
        "user_id": user_id, "usage": [usage], "keys": { format!("ed25519:{public}"): public },
    })
}

fn sign(mut object: Value, user_id: &UserId, key: &Ed25519SecretKey) -> Value {
    let signature = key.sign(signed_part(&object).as_bytes()).to_base64();
    let key_id = format!("ed25519:{}", key.public_key().to_base64());
    object["signatures"][user_id.as_str()][key_id] = signature.into();
    object
}

#[tokio::test]
async fn keys_are_uploaded_asked_for_and_claimed_once() {
    let enclave = Enclave::open("open");
    let mut alice = Crypto::new(enclave.member("alice", "A"));
    let bob = enclave.member("bob", "B");
    let too_early = json!({ "one_time_keys": alice.one_time_keys(1) });
    let answer = enclave.ask(&alice.member, "POST", "v3/keys/upload", too_early).await;
    assert_eq!(answer.error(), (400, "M_INVALID_PARAM".into()));
    let body = json!({
        "device_keys": alice.device_keys(),
        "one_time_keys": alice.one_time_keys(2),
        "fallback_keys": {
            "signed_curve25519:F":
                alice.sign(json!({ "key": alice.account.curve25519_key().to_base64(), "fallback": true })),
        },
    });
    for _ in 0..2 {
        let counts = enclave.ask(&alice.member, "POST", "v3/keys/upload", body.clone()).await.ok();
        assert_eq!(counts, json!({ "one_time_key_counts": { "signed_curve25519": 3 } }));
    }
    let query = json!({ "device_keys": { "@alice:alpha.test": [], "@bob:bravo.test": [] } });
    let found = enclave.ask(&bob, "POST", "v3/keys/query", query).await.ok();
    assert_eq!(found["device_keys"]["@alice:alpha.test"]["A"]["keys"], body["device_keys"]["keys"]);
    assert!(found.get("failures").is_none(), "nobody is asked over a network");
    let want = json!({ "one_time_keys": {
        "@alice:alpha.test": { "A": "signed_curve25519" },
        "@carol:bravo.test": { "C": "signed_curve25519" },
    } });
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..5 {
        let claimed = enclave.ask(&bob, "POST", "v3/keys/claim", want.clone()).await.ok();
        let keys = &claimed["one_time_keys"];
        assert!(keys.get("@carol:bravo.test").is_none());
        let key = keys["@alice:alpha.test"]["A"].as_object().unwrap();
        let (id, _) = key.iter().next().unwrap();
        assert_eq!(seen.insert(id.clone()), round < 4, "round {round}: {id}");
    }
}

#[tokio::test]
async fn badly_signed_keys_are_refused_whole() {
    let enclave = Enclave::open("open");
    let mut alice = Crypto::new(enclave.member("alice", "A"));
    let mut keys = alice.device_keys();
    keys["algorithms"] = json!([]);
    let body = json!({ "device_keys": keys });
    let answer = enclave.ask(&alice.member, "POST", "v3/keys/upload", body).await;
    assert_eq!(answer.error(), (400, "M_INVALID_SIGNATURE".into()));

    let good =
        json!({ "device_keys": alice.device_keys(), "one_time_keys": alice.one_time_keys(1) });
    enclave.ask(&alice.member, "POST", "v3/keys/upload", good.clone()).await.ok();
    let id = good["one_time_keys"].as_object().unwrap().keys().next().unwrap().clone();
    let other = alice.sign(json!({ "key": Account::new().curve25519_key().to_base64() }));
    let body = json!({ "one_time_keys": { id: other } });
    let answer = enclave.ask(&alice.member, "POST", "v3/keys/upload", body).await;
    assert_eq!(answer.error(), (400, "M_INVALID_PARAM".into()));
    let stranger = Crypto::new(alice.member.clone());
    let body = json!({ "one_time_keys": {
        "signed_curve25519:X": stranger.sign(json!({ "key": stranger.account.curve25519_key().to_base64() })),
    } });
    let answer = enclave.ask(&alice.member, "POST", "v3/keys/upload", body).await;
    assert_eq!(answer.error(), (400, "M_INVALID_SIGNATURE".into()));
}

#[tokio::test]
async fn cross_signing_needs_the_password_from_the_second_time_on() {
    let enclave = Enclave::open("open");
    let alice = Crypto::new(enclave.register("alice").await);
    let user_id = alice.member.user_id.clone();
    let keys = alice.device_keys();
    let body = json!({ "device_keys": keys });
    enclave.ask(&alice.member, "POST", "v3/keys/upload", body).await.ok();
    let [master, own, users] = [(); 3].map(|()| Ed25519SecretKey::new());
    let path = "v3/keys/device_signing/upload";
    let mut body = json!({
        "master_key": alice.sign(cross_key(&user_id, "master", &master)),
        "self_signing_key": cross_key(&user_id, "self_signing", &own),
        "user_signing_key": sign(cross_key(&user_id, "user_signing", &users), &user_id, &master),
    });
    let unsigned = enclave.ask(&alice.member, "POST", path, body.clone()).await;
    assert_eq!(unsigned.error(), (400, "M_INVALID_SIGNATURE".into()));
    let alone = json!({ "user_signing_key": body["user_signing_key"] });
    let alone = enclave.ask(&alice.member, "POST", path, alone).await;
    assert_eq!(alone.error(), (400, "M_MISSING_PARAM".into()));
    body["self_signing_key"] = sign(body["self_signing_key"].take(), &user_id, &master);
    enclave.ask(&alice.member, "POST", path, body.clone()).await.ok();
    // A client may repeat what it has no answer to.
    enclave.ask(&alice.member, "POST", path, body.clone()).await.ok();
    let others = cross_key(&user_id, "user_signing", &Ed25519SecretKey::new());
    body["user_signing_key"] = sign(others, &user_id, &master);
    let asked = enclave.ask(&alice.member, "POST", path, body.clone()).await;
    assert_eq!(asked.status, 401);
    body["auth"] = json!({
        "type": "m.login.password", "session": asked.json["session"], "password": PASSWORD,
        "identifier": { "type": "m.id.user", "user": "alice" },
    });
    enclave.ask(&alice.member, "POST", path, body).await.ok();

    // The device is signed by its owner's self-signing key, and a stranger's signature is refused.
    let path = "v3/keys/signatures/upload";
    let bad = sign(keys.clone(), &user_id, &users);
    let body = json!({ user_id.as_str(): { &alice.member.device_id: bad, "NONE": keys.clone() } });
    let failures = enclave.ask(&alice.member, "POST", path, body).await.ok();
    let failures = &failures["failures"][user_id.as_str()];
    assert_eq!(failures[&alice.member.device_id]["errcode"], "M_INVALID_SIGNATURE");
    assert_eq!(failures["NONE"]["errcode"], "M_NOT_FOUND");
    let good = sign(keys, &user_id, &own);
    let body = json!({ user_id.as_str(): { &alice.member.device_id: good } });
    let answer = enclave.ask(&alice.member, "POST", path, body).await.ok();
    assert!(answer.get("failures").is_none(), "{answer}");

    let bob = enclave.member("bob", "B");
    let query = json!({ "device_keys": { user_id.as_str(): [] } });
    let found = enclave.ask(&bob, "POST", "v3/keys/query", query).await.ok();
    let device = &found["device_keys"][user_id.as_str()][&alice.member.device_id];
    let key_id = format!("ed25519:{}", own.public_key().to_base64());
    assert!(device["signatures"][user_id.as_str()][key_id].is_string(), "{device}");
    assert!(found["master_keys"][user_id.as_str()].is_object());
    assert!(found.get("user_signing_keys").is_none(), "only its owner sees it");
}

#[tokio::test]
async fn members_hear_whose_devices_have_changed() {
    let enclave = Enclave::open("open");
    let [alice, bob, carol] =
        ["alice", "bob", "carol"].map(|name| Crypto::new(enclave.member(name, "D")));
    let sync = || async {
        let json = enclave.ask(&bob.member, "GET", "v3/sync?timeout=0", Value::Null).await.ok();
        json["next_batch"].as_str().unwrap().to_owned()
    };
    let changes = |from: String| {
        let (enclave, bob) = (&enclave, &bob.member);
        async move {
            let path = format!("v3/keys/changes?from={from}&to={from}");
            enclave.ask(bob, "GET", &path, Value::Null).await.ok()
        }
    };
    let wish = json!({ "preset": "public_chat" });
    let room = enclave.ask(&alice.member, "POST", "v3/createRoom", wish).await.ok();
    let room = room["room_id"].as_str().unwrap();
    let before = sync().await;
    enclave.ask(&bob.member, "POST", &format!("v3/join/{room}"), json!({})).await.ok();
    let both = json!(["@alice:alpha.test", "@bob:alpha.test"]);
    assert_eq!(changes(before).await, json!({ "changed": both, "left": [] }));
    let before = sync().await;
    for crypto in [&alice, &carol] {
        let body = json!({ "device_keys": crypto.device_keys() });
        enclave.ask(&crypto.member, "POST", "v3/keys/upload", body).await.ok();
    }
    let seen = json!({ "changed": ["@alice:alpha.test"], "left": [] });
    assert_eq!(changes(before).await, seen, "carol shares no room");
    let before = sync().await;
    enclave.ask(&bob.member, "POST", &format!("v3/rooms/{room}/leave"), json!({})).await.ok();
    assert_eq!(changes(before).await["left"], json!(["@alice:alpha.test"]));
}

#[tokio::test]
async fn messages_to_devices_are_sent_once_per_transaction() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    let bob = enclave.member("bob", "B");
    let path = "v3/sendToDevice/m.test/txn1";
    let body = json!({ "messages": { "@bob:alpha.test": { "*": { "hello": 1 } } } });
    for _ in 0..2 {
        enclave.ask(&alice, "PUT", path, body.clone()).await.ok();
    }
    let inbox = enclave
        .app
        .store
        .read(|read| read.to_device_messages(&bob.user_id, "B".into(), 0, read.position()?, 10));
    let inbox = inbox.unwrap();
    assert_eq!(inbox.len(), 1);
    let event: Value = serde_json::from_str(&inbox[0].1).unwrap();
    let expected =
        json!({ "sender": "@alice:alpha.test", "type": "m.test", "content": { "hello": 1 } });
    assert_eq!(event, expected);
}

#[tokio::test]
async fn backups_have_versions_and_count_their_keys() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    let ask = |method: &'static str, path: String, body: Value| {
        let (enclave, alice) = (&enclave, &alice);
        async move { enclave.ask(alice, method, &format!("v3/room_keys/{path}"), body).await }
    };
    let none = ask("GET", "version".into(), Value::Null).await;
    assert_eq!(none.error(), (404, "M_NOT_FOUND".into()));
    let algorithm = json!({
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": { "public_key": "abcdefg", "signatures": {}, "extra": [1] },
    });
    let version = ask("POST", "version".into(), algorithm.clone()).await.ok();
    assert_eq!(version["version"], "1");
    let latest = ask("GET", "version".into(), Value::Null).await.ok();
    assert_eq!(latest["auth_data"], algorithm["auth_data"]);
    assert_eq!((&latest["count"], &latest["etag"]), (&json!(0), &json!("0")));

    let key = |index: u32| {
        json!({
            "first_message_index": index, "forwarded_count": 0, "is_verified": false,
            "session_data": { "ephemeral": "YQ", "ciphertext": "Yg", "mac": "Yw", "more": true },
        })
    };
    let room = "!r:alpha.test";
    let body = json!({ "rooms": { room: { "sessions": { "s1": key(5), "s2": key(5) } } } });
    let put = ask("PUT", "keys?version=1".into(), body).await.ok();
    assert_eq!(put, json!({ "etag": "1", "count": 2 }));
    let put = ask("PUT", format!("keys/{room}/s1?version=1"), key(6)).await.ok();
    assert_eq!(put, json!({ "etag": "1", "count": 2 }));
    let put = ask("PUT", format!("keys/{room}?version=1"), json!({ "sessions": { "s1": key(4) } }));
    assert_eq!(put.await.ok(), json!({ "etag": "2", "count": 2 }));
    let got = ask("GET", format!("keys/{room}/s1?version=1"), Value::Null).await.ok();
    assert_eq!(got, key(4));
    let got = ask("GET", "keys?version=1".into(), Value::Null).await.ok();
    assert_eq!(got["rooms"][room]["sessions"]["s2"], key(5));
    let missing = ask("GET", format!("keys/{room}/none?version=1"), Value::Null).await;
    assert_eq!(missing.error(), (404, "M_NOT_FOUND".into()));

    let second = ask("POST", "version".into(), algorithm.clone()).await.ok();
    assert_eq!(second["version"], "2");
    let old = ask("PUT", format!("keys/{room}/s1?version=1"), key(1)).await;
    assert_eq!(old.json["current_version"], "2");
    assert_eq!(old.error(), (403, "M_WRONG_ROOM_KEYS_VERSION".into()));
    let mut named = algorithm.clone();
    for (version, status) in [("2", 200), ("1", 400)] {
        named["version"] = version.into();
        assert_eq!(ask("PUT", "version/2".into(), named.clone()).await.status, status);
    }
    let mut other = algorithm;
    other["algorithm"] = "other".into();
    let changed = ask("PUT", "version/2".into(), other).await;
    assert_eq!(changed.error(), (400, "M_INVALID_PARAM".into()));
    let deleted = ask("DELETE", format!("keys/{room}/s2?version=1"), Value::Null).await.ok();
    assert_eq!(deleted, json!({ "etag": "3", "count": 1 }));
    ask("DELETE", "version/2".into(), Value::Null).await.ok();
    ask("DELETE", "version/2".into(), Value::Null).await.ok();
    let latest = ask("GET", "version".into(), Value::Null).await.ok();
    assert_eq!(latest["version"], "1");
    let never = ask("DELETE", "version/9".into(), Value::Null).await;
    assert_eq!(never.error(), (404, "M_NOT_FOUND".into()));
}
