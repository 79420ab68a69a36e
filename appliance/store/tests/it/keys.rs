//! One-time keys, pools, cross-signing keys and what peers say about their users.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ruma::{DeviceId, OwnedUserId, device_id, encryption::KeyUsage, server_name, user_id};
use sallyport_core::{incarnation::Incarnation, limits::ONE_TIME_KEYS_LOCAL};
use sallyport_store::{
    CrossSigningKey, Error, KeyClaim, KeySignature, KeyUpload, OneTimeKey, PoolKey, RemoteKeys,
    Replaced, Store, Uploaded,
};

use crate::{account, open};

fn keys(numbers: std::ops::Range<usize>) -> Vec<OneTimeKey> {
    numbers
        .map(|number| OneTimeKey {
            key_id: format!("signed_curve25519:{number:05}"),
            key: format!(r#"{{"key":"{number}"}}"#),
        })
        .collect()
}

fn upload(store: &Store, user_id: &OwnedUserId, keys: Vec<OneTimeKey>) -> Uploaded {
    let owner = user_id.clone();
    store
        .write(move |write| {
            let upload = KeyUpload { one_time_keys: keys, ..KeyUpload::default() };
            write.upload_keys(&owner, device_id!("A"), &upload)
        })
        .unwrap()
}

fn claim(store: &Store, user_id: &OwnedUserId) -> Option<String> {
    let owner = user_id.clone();
    let key = store.write(move |write| write.claim_key(&owner, device_id!("A"))).unwrap();
    key.map(|key| key.key_id)
}

fn shown(store: &Store, user_id: &OwnedUserId) -> u64 {
    let counts = store.read(|read| read.one_time_key_counts(user_id, device_id!("A"))).unwrap();
    counts["signed_curve25519"]
}

#[test]
fn keys_are_given_away_in_the_order_of_upload_and_then_the_fallback_key() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A"]);
    assert_eq!(upload(&store, &alice, keys(5..7)), Uploaded::Done);
    assert_eq!(upload(&store, &alice, keys(1..3)), Uploaded::Done);
    assert_eq!(shown(&store, &alice), 4);
    let order: Vec<_> = (0..4).filter_map(|_| claim(&store, &alice)).collect();
    let expected = [5, 6, 1, 2].map(|number| format!("signed_curve25519:{number:05}"));
    assert_eq!(order, expected);
    assert_eq!(claim(&store, &alice), None);

    let owner = alice.clone();
    let fallback = OneTimeKey { key_id: "signed_curve25519:F".into(), key: "{}".into() };
    let fallback = KeyUpload { fallback_keys: vec![fallback], ..KeyUpload::default() };
    let again = fallback.clone();
    let types = |store: &Store| {
        store.read(|read| read.unused_fallback_types(&alice, device_id!("A"))).unwrap()
    };
    store.write(move |write| write.upload_keys(&owner, device_id!("A"), &fallback)).unwrap();
    assert_eq!(types(&store), ["signed_curve25519"]);
    assert_eq!(claim(&store, &alice).unwrap(), "signed_curve25519:F");
    assert_eq!(claim(&store, &alice).unwrap(), "signed_curve25519:F");
    assert_eq!(types(&store), [""; 0]);
    let owner = alice.clone();
    store.write(move |write| write.upload_keys(&owner, device_id!("A"), &again)).unwrap();
    assert_eq!(types(&store), [""; 0], "the same fallback key stays used");
}

#[test]
fn a_key_id_with_another_content_is_refused_and_a_repeated_upload_is_not() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A"]);
    upload(&store, &alice, keys(0..2));
    assert_eq!(upload(&store, &alice, keys(0..2)), Uploaded::Done);
    assert_eq!(shown(&store, &alice), 2);
    let mut other = keys(0..1);
    other[0].key = r#"{"key":"other"}"#.into();
    let conflict = Uploaded::Conflict("signed_curve25519:00000".into());
    assert_eq!(upload(&store, &alice, other), conflict);
    // The answer to an upload was lost, the key was claimed, and the client repeats the upload.
    assert_eq!(claim(&store, &alice).unwrap(), "signed_curve25519:00000");
    assert_eq!(upload(&store, &alice, keys(0..2)), Uploaded::Done);
    assert_eq!(shown(&store, &alice), 1);
    assert_eq!(upload(&store, &alice, keys(10..4_000)), Uploaded::TooMany);
}

#[test]
fn keys_verified_with_replaced_identity_keys_are_stale() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A"]);
    let set = |json: &'static str| {
        let owner = alice.clone();
        store.write(move |write| write.set_device_keys(&owner, device_id!("A"), json)).unwrap();
    };
    set("1");
    upload(&store, &alice, keys(0..3));
    let owner = alice.clone();
    set("2");
    assert_eq!(shown(&store, &alice), 0, "keys of the old identity are gone");
    let old = KeyUpload {
        verified_with: Some("1".into()),
        one_time_keys: keys(3..5),
        fallback_keys: Vec::new(),
    };
    let answer = store.write(move |write| write.upload_keys(&owner, device_id!("A"), &old));
    assert_eq!(answer.unwrap(), Uploaded::Stale);
}

#[test]
fn pools_fill_from_what_clients_upload_and_leave_the_local_stock() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A"]);
    let peer = server_name!("bravo.test");
    upload(&store, &alice, keys(0..50));
    store.write(move |write| write.allot_one_time_keys(peer, 60)).unwrap();
    assert_eq!(shown(&store, &alice), 0, "the client must believe that keys are missing");
    let allotted = |after: i64| store.read(|read| read.allotted_keys(peer, after, 100)).unwrap();
    assert_eq!(allotted(0), [], "nothing is taken from a phone that is off");
    // A client that refills to 50 fills both.
    let mut next = 50;
    for _ in 0..10 {
        let missing = 50_usize.saturating_sub(usize::try_from(shown(&store, &alice)).unwrap());
        upload(&store, &alice, keys(next..next + missing));
        next += missing;
    }
    assert_eq!(shown(&store, &alice), 50);
    let pool = allotted(0);
    assert_eq!(pool.len(), 60);
    assert_eq!(pool.iter().map(|key| key.n).collect::<Vec<_>>(), (1..=60).collect::<Vec<_>>());
    assert_eq!(allotted(58).len(), 2);
    // Keys allotted to a peer are not given to local users.
    let allotted_ids: BTreeSet<_> = pool.iter().map(|key| key.key.key_id.clone()).collect();
    let mut local = 0;
    while let Some(key_id) = claim(&store, &alice) {
        assert!(!allotted_ids.contains(&key_id));
        local += 1;
    }
    assert!(local >= ONE_TIME_KEYS_LOCAL);
    // What the peer used up is allotted again, with new numbers.
    let claims: Vec<_> = pool[..10]
        .iter()
        .map(|key| KeyClaim {
            n: key.n,
            user_id: key.user_id.clone(),
            device_id: key.device_id.clone(),
            key_id: key.key.key_id.clone(),
        })
        .collect();
    let repeated = claims.clone();
    store.write(move |write| write.peer_claimed_keys(peer, &claims)).unwrap();
    store.write(move |write| write.peer_claimed_keys(peer, &repeated)).unwrap();
    upload(&store, &alice, keys(next..next + 50));
    assert_eq!(allotted(60).len(), 10);
    assert_eq!(upload(&store, &alice, vec![pool[0].key.clone()]), Uploaded::Done);
    store.write(move |write| write.burn_pools(peer)).unwrap();
    assert_eq!(allotted(0), []);
    let (first, ids) = (claim(&store, &alice).unwrap(), allotted_ids);
    assert!(!ids.contains(&first), "a burnt key is never given away");
}

#[test]
fn keys_received_from_a_peer_are_given_away_once() {
    let store = open();
    let bob = user_id!("@bob:bravo.test");
    let (peer, device) = (server_name!("bravo.test"), device_id!("B"));
    let receive = |numbers: std::ops::Range<usize>, incarnation: u8| {
        let keys: Vec<_> = numbers
            .map(|number| PoolKey {
                n: i64::try_from(number).unwrap(),
                user_id: bob.to_owned(),
                device_id: device.to_owned(),
                key: keys(number..number + 1).remove(0),
            })
            .collect();
        let incarnation = Incarnation([incarnation; 16]);
        store.write(move |write| write.receive_pool_keys(peer, incarnation, &keys)).unwrap();
    };
    let claim = || {
        let key = store.write(move |write| write.claim_remote_key(bob, device)).unwrap();
        key.map(|key| key.key_id)
    };
    receive(1..4, 1);
    assert_eq!(claim().unwrap(), "signed_curve25519:00001");
    receive(1..5, 1);
    let rest: Vec<_> = std::iter::from_fn(claim).collect();
    assert_eq!(rest.len(), 3, "a repeated bundle brings nothing back: {rest:?}");
    let claims = store.read(|read| read.key_claims(peer, 0, 10)).unwrap();
    assert_eq!(claims.len(), 4);
    assert_eq!(claims[0].key_id, "signed_curve25519:00001");
    store.write(move |write| write.forget_key_claims(peer, 3)).unwrap();
    assert_eq!(store.read(|read| read.key_claims(peer, 0, 10)).unwrap(), claims[3..]);
    receive(9..10, 2);
    assert_eq!(claim().unwrap(), "signed_curve25519:00009");
}

#[test]
fn pools_of_several_devices_come_one_after_the_other() {
    let store = open();
    let bob = user_id!("@bob:bravo.test");
    let peer = server_name!("bravo.test");
    // Numbers are given as clients upload, and a bundle sorts them by device.
    for (device, numbers) in [("A", [1, 3, 5]), ("B", [2, 4, 6])] {
        let keys = numbers.map(|number: i64| PoolKey {
            n: number,
            user_id: bob.to_owned(),
            device_id: device.into(),
            key: keys(usize::try_from(number).unwrap()..7).remove(0),
        });
        store
            .write(move |write| write.receive_pool_keys(peer, Incarnation([1; 16]), &keys))
            .unwrap();
    }
    for device in ["A", "B"] {
        for _ in 0..3 {
            let claim =
                store.write(move |write| write.claim_remote_key(bob, <&DeviceId>::from(device)));
            assert!(claim.unwrap().is_some(), "{device}");
        }
    }
}

#[test]
fn what_a_peer_says_about_a_user_replaces_what_was_known() {
    let store = open();
    let bob = user_id!("@bob:bravo.test");
    let master = |key: &str| {
        Some(CrossSigningKey { public_key: key.into(), keys: format!(r#"{{"k":"{key}"}}"#) })
    };
    let replace = |stream_id, devices: &[&str], key: Option<CrossSigningKey>| {
        let devices = devices.iter().map(|id| (<&DeviceId>::from(*id).to_owned(), "{}".to_owned()));
        let new = RemoteKeys {
            stream_id,
            devices: devices.collect::<BTreeMap<_, _>>(),
            master: key,
            ..RemoteKeys::default()
        };
        store.write(move |write| write.replace_remote_keys(bob, &new)).unwrap()
    };
    let changed = |master_changed| Replaced::Changed { master_changed };
    assert_eq!(replace(5, &["A", "B"], master("1")), changed(false));
    assert_eq!(replace(5, &["X"], master("9")), Replaced::Known);
    assert_eq!(replace(4, &["X"], master("9")), Replaced::Known);
    assert_eq!(replace(6, &["B"], master("1")), changed(false));
    assert_eq!(replace(7, &["B"], master("2")), changed(true));
    store
        .read(|read| {
            let keys = read.user_keys(bob, None, &[])?;
            assert_eq!(keys.devices.keys().collect::<Vec<_>>(), ["B"]);
            assert_eq!(keys.master.unwrap(), r#"{"k":"2"}"#);
            assert!(read.device_list_changes(0, read.position()?)?.contains(bob));
            Ok::<_, Error>(())
        })
        .unwrap();
}

#[test]
fn signatures_are_shown_to_whom_they_concern() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A"]);
    let bob = account(&store, "bob:alpha.test", &["B"]);
    let (owner, signer) = (alice.clone(), bob.clone());
    let before = store.read(|read| read.position()).unwrap();
    store
        .write(move |write| {
            let key = |name: &str| CrossSigningKey { public_key: name.into(), keys: "{}".into() };
            write.set_cross_signing_key(&owner, &KeyUsage::Master, &key("MASTER"))?;
            write.set_cross_signing_key(&owner, &KeyUsage::UserSigning, &key("USER"))?;
            write.set_device_keys(&owner, device_id!("A"), r#"{"keys":{}}"#)?;
            for (target, signer, signature) in
                [("MASTER", &signer, "by bob"), ("A", &owner, "by alice")]
            {
                write.add_key_signature(&KeySignature {
                    user_id: &owner,
                    target,
                    signer,
                    signer_key_id: "ed25519:K",
                    signature,
                })?;
            }
            Ok::<_, Error>(())
        })
        .unwrap();
    store
        .read(|read| {
            let now = read.position()?;
            let seen_by = |viewer| read.user_keys(&alice, viewer, &[]);
            let for_bob = seen_by(Some(&*bob))?;
            assert!(for_bob.master.as_ref().unwrap().contains("by bob"));
            assert_eq!(for_bob.user_signing, None);
            assert!(for_bob.devices[device_id!("A")].contains("by alice"));
            let for_alice = seen_by(Some(&*alice))?;
            assert!(!for_alice.master.unwrap().contains("by bob"));
            assert_eq!(for_alice.user_signing.as_deref(), Some("{}"));
            assert!(read.signature_changes(&bob, before, now)?.contains(&alice));
            assert!(read.signature_changes(&alice, before, now)?.is_empty());
            Ok::<_, Error>(())
        })
        .unwrap();
    // A new master key is another identity: what was signed on the old one is void.
    let owner = alice.clone();
    store
        .write(move |write| {
            let new = CrossSigningKey { public_key: "OTHER".into(), keys: "{}".into() };
            write.set_cross_signing_key(&owner, &KeyUsage::Master, &new)
        })
        .unwrap();
    let keys = store.read(|read| read.user_keys(&alice, Some(&bob), &[])).unwrap();
    assert_eq!(keys.master.as_deref(), Some("{}"));
}

#[derive(Clone, Debug)]
enum Step {
    Upload { from: usize, count: usize },
    Claim,
    Allot(u32),
    PeerClaims(usize),
    Burn,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..200_usize, 1..60_usize).prop_map(|(from, count)| Step::Upload { from, count }),
        5 => Just(Step::Claim),
        1 => (0..40_u32).prop_map(Step::Allot),
        1 => (1..20_usize).prop_map(Step::PeerClaims),
        1 => Just(Step::Burn),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the interleaving of uploads (repeated ones too), claims and pools: no key goes out twice.
    #[test]
    fn no_one_time_key_is_given_away_twice(steps in steps()) {
        let store = open();
        let alice = account(&store, "alice:alpha.test", &["A"]);
        let peer = server_name!("bravo.test");
        let (mut issued, mut exported) = (BTreeSet::new(), BTreeSet::new());
        let mut seen = 0;
        for step in steps {
            match step {
                Step::Upload { from, count } => {
                    upload(&store, &alice, keys(from..from + count));
                }
                Step::Claim => {
                    if let Some(key_id) = claim(&store, &alice) {
                        prop_assert!(!exported.contains(&key_id));
                        prop_assert!(issued.insert(key_id));
                    }
                }
                Step::Allot(target) => {
                    store.write(move |write| write.allot_one_time_keys(peer, target)).unwrap();
                }
                Step::PeerClaims(count) => {
                    let pool = store.read(|read| read.allotted_keys(peer, 0, count)).unwrap();
                    let claims: Vec<_> = pool.into_iter().map(|key| KeyClaim {
                        n: key.n,
                        user_id: key.user_id,
                        device_id: key.device_id,
                        key_id: key.key.key_id,
                    }).collect();
                    store.write(move |write| write.peer_claimed_keys(peer, &claims)).unwrap();
                }
                Step::Burn => store.write(move |write| write.burn_pools(peer)).unwrap(),
            }
            for key in store.read(|read| read.allotted_keys(peer, seen, 1000)).unwrap() {
                seen = key.n;
                prop_assert!(!issued.contains(&key.key.key_id));
                prop_assert!(exported.insert(key.key.key_id));
            }
        }
    }
}
