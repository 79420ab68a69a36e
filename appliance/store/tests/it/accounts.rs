//! Accounts, sessions, devices, account data, backups and messages to devices.

use std::collections::BTreeMap;

use ruma::{OwnedDeviceId, device_id, room_id, server_name, to_device::DeviceIdOrAllDevices};
use sallyport_core::{incarnation::Incarnation, time::Millis};
use sallyport_store::{
    BackupChange, BackupKey, BackupState, Error, NewSession, NewTokens, Store, ToDeviceSend,
};
use serde_json::json;

use crate::{account, open, user};

fn tokens(access: u8, refresh: Option<u8>) -> NewTokens {
    NewTokens { access: [access; 32], refresh: refresh.map(|byte| [byte; 32]), expires: None }
}

#[test]
fn a_name_is_given_out_once() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A"]);
    let again = alice.clone();
    assert!(!store.write(move |write| write.create_user(&again, Millis(9))).unwrap());
    let gone = alice.clone();
    store.write(move |write| write.deactivate_user(&gone)).unwrap();
    let again = alice.clone();
    assert!(!store.write(move |write| write.create_user(&again, Millis(9))).unwrap());
    store
        .read(|read| {
            let user = read.user(&alice)?.unwrap();
            assert!(user.deactivated && user.password_hash.is_none());
            assert_eq!(read.devices(&alice)?, []);
            assert_eq!(read.user_count()?, 0);
            Ok::<_, Error>(())
        })
        .unwrap();
}

#[test]
fn a_refreshed_session_keeps_its_old_tokens_until_the_new_are_used() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &[]);
    let new = NewSession {
        user_id: alice.clone(),
        device_id: device_id!("A").to_owned(),
        display_name: Some("phone".to_owned()),
        tokens: tokens(1, Some(2)),
    };
    store.write(move |write| write.start_session(&new, Millis(5))).unwrap();
    let known =
        |store: &Store, hash: u8| store.read(|read| read.session(&[hash; 32])).unwrap().is_some();
    let refresh = |store: &Store, old: u8, new: NewTokens| {
        store
            .write(move |write| {
                let Some(session) = write.session_to_refresh(&[old; 32])? else { return Ok(false) };
                write.refresh_session(&session, &new)?;
                Ok::<_, Error>(true)
            })
            .unwrap()
    };
    assert!(refresh(&store, 2, tokens(3, Some(4))));
    assert!(known(&store, 1) && known(&store, 3));
    // The answer was lost: the client refreshes again, and the pair it never saw ends.
    assert!(refresh(&store, 2, tokens(5, Some(6))));
    assert!(known(&store, 1) && !known(&store, 3) && known(&store, 5));
    let session = store.read(|read| read.session(&[5; 32])).unwrap().unwrap();
    store
        .write(move |write| {
            write.confirm_tokens(&session.user_id, &session.device_id, session.generation)
        })
        .unwrap();
    assert!(!known(&store, 1) && known(&store, 5));
    assert!(!refresh(&store, 2, tokens(7, Some(8))));
    // A new log-in on the same device ends all that was before.
    let again = NewSession {
        user_id: alice,
        device_id: device_id!("A").to_owned(),
        display_name: None,
        tokens: tokens(9, None),
    };
    store.write(move |write| write.start_session(&again, Millis(6))).unwrap();
    assert!(!known(&store, 5) && known(&store, 9));
    assert!(!refresh(&store, 6, tokens(10, Some(11))));
}

#[test]
fn a_deleted_device_takes_its_sessions_and_messages_with_it() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A", "B"]);
    send(&store, "t1", &[(alice.as_str(), DeviceIdOrAllDevices::AllDevices)]);
    let before = store.read(|read| read.position()).unwrap();
    let owner = alice.clone();
    let ids: Vec<OwnedDeviceId> = vec![device_id!("A").to_owned()];
    let deleted = store.write(move |write| write.delete_devices(&owner, Some(&ids))).unwrap();
    assert_eq!(deleted, 1);
    store
        .read(|read| {
            assert_eq!(read.device_ids(&alice)?, ["B"]);
            let now = read.position()?;
            assert!(read.device_list_changes(before, now)?.contains(&alice));
            assert_eq!(read.to_device_messages(&alice, device_id!("A"), 0, now, 10)?, []);
            assert_eq!(read.to_device_messages(&alice, device_id!("B"), 0, now, 10)?.len(), 1);
            Ok::<_, Error>(())
        })
        .unwrap();
}

fn send(store: &Store, txn_id: &str, to: &[(&str, DeviceIdOrAllDevices)]) -> bool {
    let mut messages: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for (user_id, device) in to {
        let content = serde_json::from_value(json!({ "n": txn_id })).unwrap();
        let user_id = user(user_id.trim_start_matches('@'));
        messages.entry(user_id).or_default().insert(device.clone(), content);
    }
    let send = ToDeviceSend {
        sender: user("carol:alpha.test"),
        device_id: device_id!("C").to_owned(),
        kind: "m.test".into(),
        txn_id: txn_id.into(),
        messages,
    };
    store.write(move |write| write.send_to_device(&send, Millis(100))).unwrap()
}

#[test]
fn messages_to_devices_arrive_once_in_order_and_stay_until_acknowledged() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A"]);
    let to = |device: &str| (alice.as_str(), DeviceIdOrAllDevices::DeviceId(device.into()));
    for txn_id in ["1", "2", "3"] {
        assert!(send(&store, txn_id, &[to("A"), to("GONE")]));
    }
    assert!(!send(&store, "2", &[to("A")]));
    let inbox = |store: &Store, from: i64| {
        store
            .read(|read| {
                read.to_device_messages(&alice, device_id!("A"), from, read.position()?, 100)
            })
            .unwrap()
    };
    let messages = inbox(&store, 0);
    let order: Vec<&str> =
        messages.iter().map(|(_, json)| &json[json.find("\"n\":").unwrap() + 5..][..1]).collect();
    assert_eq!(order, ["1", "2", "3"]);
    let (owner, up_to) = (alice.clone(), messages[1].0);
    store
        .write(move |write| write.delete_to_device_messages(&owner, device_id!("A"), up_to))
        .unwrap();
    assert_eq!(inbox(&store, 0), messages[2..]);
}

#[test]
fn messages_to_other_servers_are_numbered_and_taken_once() {
    let (alpha, bravo) = (open(), open());
    let alice = account(&bravo, "alice:alpha.test", &["A"]);
    let bob = "bob:bravo.test";
    for txn_id in ["1", "2"] {
        send(&alpha, txn_id, &[(bob, DeviceIdOrAllDevices::AllDevices)]);
    }
    let server = server_name!("bravo.test");
    let waiting = alpha.read(|read| read.outgoing_to_device(server, 0, 10)).unwrap();
    assert_eq!(waiting.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2]);
    alpha.write(move |write| write.forget_outgoing_to_device(server, 1)).unwrap();
    assert_eq!(alpha.read(|read| read.outgoing_to_device(server, 0, 10)).unwrap(), waiting[1..]);

    // The fixture's server is alpha.test too: it stands in for a receiver of messages from bravo.test.
    let edu = json!({
        "sender": "@bob:bravo.test", "type": "m.test", "message_id": "1",
        "messages": { alice.as_str(): { "*": { "k": 1 } } },
    });
    let receive = |n: i64, incarnation: u8, origin: &'static ruma::ServerName| {
        let edu = serde_json::from_value(edu.clone()).unwrap();
        let incarnation = Incarnation([incarnation; 16]);
        bravo.write(move |write| write.receive_to_device(origin, incarnation, n, &edu)).unwrap()
    };
    assert!(receive(1, 1, server));
    assert!(!receive(1, 1, server));
    assert!(receive(2, 1, server));
    assert!(!receive(1, 1, server));
    assert!(!receive(3, 1, server_name!("evil.test")));
    assert!(receive(1, 2, server));
    let inbox = bravo
        .read(|read| read.to_device_messages(&alice, device_id!("A"), 0, read.position()?, 100));
    assert_eq!(inbox.unwrap().len(), 3);
}

#[test]
fn account_data_is_shown_once_per_change() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &[]);
    let set = |kind: &'static str, room: Option<&'static ruma::RoomId>, content: &'static str| {
        let owner = alice.clone();
        store.write(move |write| write.set_account_data(&owner, room, kind, content)).unwrap();
    };
    let room = room_id!("!r:alpha.test");
    set("m.direct", None, "{}");
    set("m.tag", Some(room), "{}");
    let middle = store.read(|read| read.position()).unwrap();
    set("m.direct", None, r#"{"a":1}"#);
    store
        .read(|read| {
            let now = read.position()?;
            let all = read.account_data_changes(&alice, 0, now)?;
            assert_eq!(all.len(), 2);
            let newer = read.account_data_changes(&alice, middle, now)?;
            assert_eq!(newer.len(), 1);
            assert_eq!(newer[0].content, r#"{"a":1}"#);
            assert_eq!(read.room_account_data(&alice, room)?[0].kind, "m.tag");
            Ok::<_, Error>(())
        })
        .unwrap();
}

#[test]
fn equal_filters_share_an_id() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &[]);
    let add = |content: &'static str| {
        let owner = alice.clone();
        store.write(move |write| write.add_filter(&owner, content, 2)).unwrap()
    };
    assert_eq!(add("{}"), Some(1));
    assert_eq!(add("{}"), Some(1));
    assert_eq!(add(r#"{"a":1}"#), Some(2));
    assert_eq!(add(r#"{"b":1}"#), None);
}

#[test]
fn a_backup_keeps_the_better_key_of_each_session() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &[]);
    let owner = alice.clone();
    let version = store.write(move |write| write.create_backup(&owner, "alg", "{}")).unwrap();
    let key = |session: &str, first_index, forwarded, verified, data: &str| BackupKey {
        room_id: room_id!("!r:alpha.test").to_owned(),
        session_id: session.to_owned(),
        first_index,
        forwarded,
        verified,
        session_data: data.to_owned(),
    };
    let put = |key: BackupKey| {
        let owner = alice.clone();
        store.write(move |write| write.put_backup_keys(&owner, version, &[key])).unwrap()
    };
    let done = |etag, count| BackupChange::Done(BackupState { etag, count });
    assert_eq!(put(key("s", 5, 0, false, "1")), done(1, 1));
    assert_eq!(put(key("s", 6, 0, false, "worse: later")), done(1, 1));
    assert_eq!(put(key("s", 5, 1, false, "worse: forwarded")), done(1, 1));
    assert_eq!(put(key("s", 4, 9, false, "2")), done(2, 1));
    assert_eq!(put(key("s", 9, 9, true, "3")), done(3, 1));
    assert_eq!(put(key("s", 0, 0, false, "worse: unverified")), done(3, 1));
    assert_eq!(put(key("t", 0, 0, false, "4")), done(4, 2));
    let keys = store.read(|read| read.backup_keys(&alice, version, None, None)).unwrap();
    assert_eq!(keys.iter().map(|key| &*key.session_data).collect::<Vec<_>>(), ["3", "4"]);

    let owner = alice.clone();
    let next = store.write(move |write| write.create_backup(&owner, "alg", "{}")).unwrap();
    assert_eq!(put(key("u", 0, 0, false, "")), BackupChange::NotCurrent(next));
    let owner = alice.clone();
    let purged = store.write(move |write| {
        write.delete_backup(&owner, version)?;
        write.delete_backup(&owner, next)?;
        let first = write.purge_backups(&owner, 1)?;
        Ok::<_, Error>((first, write.purge_backups(&owner, 10)?, write.purge_backups(&owner, 10)?))
    });
    assert_eq!(purged.unwrap(), (1, 1, 0));
    assert_eq!(put(key("u", 0, 0, false, "")), BackupChange::NoSuchVersion);
    let owner = alice;
    let third = store.write(move |write| write.create_backup(&owner, "alg", "{}")).unwrap();
    assert_eq!(third, next + 1);
}

#[test]
fn people_are_found_by_name_and_id() {
    let store = open();
    account(&store, "alice:alpha.test", &[]);
    account(&store, "bob:alpha.test", &[]);
    store
        .write(|write| {
            let bob = user("bob:alpha.test");
            write.set_profile_field(&bob, "displayname", Some(r#""Robert Älice""#))
        })
        .unwrap();
    let found = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        store.read(|read| read.search_users(&words, 10)).unwrap()
    };
    assert_eq!(found(&["lice"]), [user("alice:alpha.test"), user("bob:alpha.test")]);
    assert_eq!(found(&["älice", "rob"]), [user("bob:alpha.test")]);
    assert_eq!(found(&["nobody"]), Vec::<ruma::OwnedUserId>::new());
    assert_eq!(found(&[]), Vec::<ruma::OwnedUserId>::new());
}

#[test]
fn accounts_are_made_by_the_thousand() {
    // What a roster of a whole formation does, in slices that leave the writer free in between.
    let store = open();
    let began = std::time::Instant::now();
    for slice in 0..20_u32 {
        store
            .write(move |write| {
                for number in 0..500_u32 {
                    let name = format!("user{}:alpha.test", slice * 500 + number);
                    write.create_user(&user(&name), Millis(1))?;
                }
                Ok::<_, Error>(())
            })
            .unwrap();
    }
    assert_eq!(store.read(|read| read.user_count()).unwrap(), 10_000);
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}
