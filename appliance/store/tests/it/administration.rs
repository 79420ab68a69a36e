//! The audit log, rosters and activation codes.

use sallyport_core::{
    admin::AccountCounts,
    audit::{Entry, Tip, verify},
    digest::Sha256,
    roster::{Account, AccountState, Current, Head, Mode},
    time::Millis,
};
use sallyport_store::{Error, Store};

use crate::{open, user};

fn entry(action: &str) -> Entry {
    Entry {
        at: Millis(5),
        actor: "alice".to_owned(),
        evidence: "uid 1000".to_owned(),
        approvals: vec!["bob".to_owned()],
        action: action.to_owned(),
        subject: "x".to_owned(),
        details: [("new".to_owned(), "3".to_owned())].into(),
    }
}

#[test]
fn the_log_is_a_chain_and_fails_with_its_command() {
    let store = open();
    for action in ["a", "b", "c"] {
        store.write(move |write| write.append_audit(entry(action))).unwrap();
    }
    let failed = store.write(|write| {
        write.append_audit(entry("d"))?;
        Err::<(), _>(Error::Closed)
    });
    assert!(failed.is_err());
    let (rows, tip) =
        store.read(|read| Ok::<_, Error>((read.audit_rows(0, 10)?, read.audit_tip()?))).unwrap();
    assert_eq!(verify(Tip::default(), &rows), Ok(tip));
    let actions: Vec<_> = rows.iter().map(|row| row.entry.action.as_str()).collect();
    assert_eq!(actions, ["a", "b", "c"]);
    let page = |after, limit| store.read(|read| read.audit_rows(after, limit)).unwrap();
    assert_eq!(page(1, 1), rows[1..2]);
    assert_eq!(page(u64::MAX, 10), []);
}

fn account(localpart: &str) -> Account {
    Account::new(localpart.parse().unwrap())
}

fn put(store: &Store, account: Account, serial: Option<u64>) {
    store
        .write(move |write| {
            let user_id = user(&format!("{}:alpha.test", account.localpart));
            write.create_user(&user_id, Millis(1))?;
            write.set_roster_account(&user_id, &account, serial)
        })
        .unwrap();
}

fn finish(store: &Store, serial: u64) {
    let head = Head {
        enclave: "alpha.test".try_into().unwrap(),
        serial,
        mode: Mode::Full,
        issued_at: Millis(1),
        levels: vec![],
    };
    store
        .write(move |write| write.finish_roster(&head, Sha256([3; 32]), "key", Millis(9)))
        .unwrap();
}

#[test]
fn accounts_of_unfinished_rosters_are_not_settled() {
    let store = open();
    let accounts = || store.read(|read| read.roster_accounts()).unwrap();
    assert_eq!(store.read(|read| read.last_roster()).unwrap(), None);
    put(&store, account("alice"), Some(1));
    assert_eq!(accounts(), [Current { account: account("alice"), settled: false }]);
    finish(&store, 1);
    let last = store.read(|read| read.last_roster()).unwrap().unwrap();
    assert_eq!((last.serial, last.subject, last.imported_at), (1, Sha256([3; 32]), Millis(9)));
    put(&store, account("bob"), Some(2));
    let changed = Account { unit: Some("x".to_owned()), ..account("alice") };
    put(&store, changed.clone(), None);
    assert_eq!(
        accounts(),
        [
            Current { account: changed.clone(), settled: true },
            Current { account: account("bob"), settled: false }
        ]
    );
    let alice = user("alice:alpha.test");
    assert_eq!(store.read(|read| read.roster_account(&alice)).unwrap(), Some(changed));
}

#[test]
fn whether_an_account_is_locked_is_one_thing() {
    let store = open();
    put(&store, account("alice"), Some(1));
    put(&store, account("bob"), Some(1));
    let alice = user("alice:alpha.test");
    store.write(move |write| write.set_user_locked(&alice, true)).unwrap();
    let accounts = store.read(|read| read.roster_accounts()).unwrap();
    assert_eq!(accounts[0].account.state, AccountState::Locked);
    let counts = store.read(|read| read.roster_account_counts()).unwrap();
    assert_eq!(counts, AccountCounts { active: 0, locked: 1, waiting: 1 });
}

#[test]
fn a_code_works_once_for_its_account_and_in_time() {
    let store = open();
    put(&store, account("alice"), Some(1));
    let alice = user("alice:alpha.test");
    let give = |hash: u8| {
        let alice = alice.clone();
        store
            .write(move |write| write.set_activation_code(&alice, Sha256([hash; 32]), Millis(100)))
            .unwrap();
    };
    let redeem = |hash: u8, now: u64| {
        store
            .write(move |write| write.redeem_activation_code(Sha256([hash; 32]), Millis(now)))
            .unwrap()
    };
    give(1);
    give(2);
    assert_eq!(redeem(1, 50), None, "replaced");
    assert_eq!(redeem(3, 50), None, "never given out");
    assert_eq!(redeem(2, 99), Some(alice.clone()));
    assert_eq!(redeem(2, 99), None, "used");
    give(4);
    assert_eq!(redeem(4, 100), None, "expired");
    give(5);
    let locked = alice.clone();
    store.write(move |write| write.set_user_locked(&locked, true)).unwrap();
    assert_eq!(redeem(5, 50), None, "locked");
    let unlocked = alice.clone();
    store.write(move |write| write.set_user_locked(&unlocked, false)).unwrap();
    assert_eq!(redeem(5, 50), Some(alice.clone()));
    assert_eq!(store.read(|read| read.waiting_accounts()).unwrap(), [alice]);
}
