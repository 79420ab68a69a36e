//! A new life after a restore, and what a peer's new life changes, over a real SQLite file.

use ruma::server_name;
use sallyport_core::{incarnation::Incarnation, time::Millis};
use sallyport_store::{Error, Options, Store, Told};

use crate::{account, open};

const LIFE: Incarnation = Incarnation([2; 16]);

#[test]
fn a_copy_is_one_snapshot_that_opens_as_a_database() {
    let store = open();
    account(&store, "alice:alpha.test", &["A"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a copy");
    let copy = store.copy_to(&path, || false).unwrap();
    assert_eq!(copy.audit.id, 0);
    assert_eq!(copy.media().unwrap(), (0, 0));
    // What came after is not in it.
    account(&store, "bob:alpha.test", &["B"]);
    drop(copy);
    let restored = Store::open(Options {
        path: &path,
        server_name: server_name!("alpha.test"),
        fresh_incarnation: [9; 16],
        on_commit: Box::new(|_| {}),
    })
    .unwrap();
    assert_eq!(restored.read(|read| read.user_count()).unwrap(), 1);
    assert_eq!(restored.read(|read| read.incarnation()).unwrap(), Incarnation([1; 16]));
    assert!(restored.read(|read| read.file_faults()).unwrap().is_empty());
    assert!(restored.read(|read| read.room_faults()).unwrap().is_empty());
    let stopped = store.copy_to(&folder.path().join("another"), || true);
    assert!(matches!(stopped, Err(Error::Closed)) || stopped.is_ok());
}

#[test]
fn nothing_that_was_counted_is_counted_again() {
    let store = open();
    let alice = account(&store, "alice:alpha.test", &["A"]);
    let before = store.read(|read| read.position()).unwrap();
    store
        .write(|write| {
            let bravo = server_name!("bravo.test");
            write.set_peer(bravo, b"card", Millis(1))?;
            let told = Told { seq: 4, position: 7, ..Told::default() };
            write.note_sent(bravo, &told, &[3; 32], &[])?;
            write.note_acknowledged(bravo, 4)
        })
        .unwrap();
    assert!(!store.read(|read| read.was_restored()).unwrap());
    store.write(|write| write.begin_new_life(LIFE, Millis(5))).unwrap();
    assert_eq!(store.read(|read| read.incarnation()).unwrap(), LIFE);
    assert!(store.read(|read| read.was_restored()).unwrap());
    let list = store.read(|read| read.device_list_position(&alice)).unwrap().unwrap();
    assert!(list > before + (1 << 32), "the device list stands at {list}");
    let peer = store.read(|read| read.peer(server_name!("bravo.test"))).unwrap().unwrap();
    // Bundles count from 1 again; what the peer has it still has.
    assert_eq!((peer.sent_seq, peer.sent_manifest, peer.acked.seq), (0, None, 0));
    assert_eq!(peer.acked.position, 7);
}

#[test]
fn a_restored_peer_is_told_everything_again_until_it_acknowledges() {
    let store = open();
    account(&store, "alice:alpha.test", &["A"]);
    let bravo = server_name!("bravo.test");
    let peer = || store.read(|read| read.peer(bravo)).unwrap().unwrap();
    let send = |seq, position| {
        store
            .write(move |write| {
                write.note_sent(bravo, &Told { seq, position, ..Told::default() }, &[3; 32], &[])
            })
            .unwrap();
    };
    store.write(|write| write.set_peer(bravo, b"card", Millis(1))).unwrap();
    send(1, 1);
    store.write(|write| write.note_acknowledged(bravo, 1)).unwrap();
    send(2, 2);
    store.write(|write| write.note_peer_restored(bravo, LIFE, Millis(5))).unwrap();
    let position = store.read(|read| read.position()).unwrap();
    assert_eq!(store.read(|read| read.retired_incarnations(bravo)).unwrap(), [LIFE]);
    assert_eq!((peer().returns_to, peer().acked.position), (Some(position), 0));
    // An acknowledgement of what was sent before says nothing about what the peer still has.
    store.write(|write| write.note_acknowledged(bravo, 2)).unwrap();
    assert_eq!((peer().returns_to, peer().acked.position), (Some(position), 0));
    send(3, position);
    store.write(|write| write.note_acknowledged(bravo, 3)).unwrap();
    assert_eq!((peer().returns_to, peer().acked.position), (None, position));
}
