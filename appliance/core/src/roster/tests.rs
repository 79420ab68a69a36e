//! Tables for the parsers and the plan; properties for the encodings.

use std::fmt::Write as _;

use ed25519_dalek::Signer as _;
use proptest::prelude::*;

use super::{signed::RosterFile, *};
use crate::{
    digest::Sha256,
    limits::ROSTER_PROBLEMS_MAX,
    sign::{Algorithm, Policy, PublicKey, SigningRequest},
};

fn head(mode: Mode) -> Head {
    Head {
        enclave: "alpha.example".try_into().unwrap(),
        serial: 7,
        mode,
        issued_at: Millis(1_795_000_000_000),
        levels: ["OPEN", "RESTRICTED", "SECRET"].map(str::to_owned).to_vec(),
    }
}

fn from_csv(text: &str) -> Result<Roster, String> {
    csv::parse(text.as_bytes(), head(Mode::Full)).map_err(|problems| problems.to_string())
}

fn from_scim(text: &str) -> Result<Roster, String> {
    scim::parse(text.as_bytes(), head(Mode::Full)).map_err(|problems| problems.to_string())
}

fn account(localpart: &str) -> Account {
    Account::new(localpart.parse().unwrap())
}

fn roster(mode: Mode, accounts: impl IntoIterator<Item = Account>) -> Roster {
    Roster { head: head(mode), accounts: accounts.into_iter().collect(), locks: vec![] }
}

fn clearance(text: &str) -> Clearance {
    let (name, until) = match text.split_once(" until ") {
        Some((name, until)) => (name, Some(until.parse().unwrap())),
        None => (text, None),
    };
    let (kind, name) = match name.strip_prefix('+') {
        Some(name) => (ClearanceKind::Category, name),
        None => (ClearanceKind::Level, name),
    };
    Clearance { kind, name: name.to_owned(), until }
}

/// An account that uses every attribute.
fn full_account() -> Account {
    Account {
        display_name: Some("Alice, A.".to_owned()),
        unit: Some("3rd Company".to_owned()),
        clearances: [clearance("SECRET until 2027-06-30"), clearance("+ATOMAL")].into(),
        state: AccountState::Locked,
        home_enclave: Some("bravo.example".try_into().unwrap()),
        moved_from: Some("@alice:bravo.example".try_into().unwrap()),
        moved_to: Some("@alice:charlie.example:8448".try_into().unwrap()),
        cert_sha256: [Sha256([1; 32]), Sha256([2; 32])].into(),
        external_id: Some("4711".to_owned()),
        ..account("alice")
    }
}

#[test]
fn csv_and_scim_say_the_same() {
    let certificates = format!("{} | {}", "02".repeat(32), "01".repeat(32));
    let text = format!(
        "\u{feff}external_id;localpart;display_name;unit;clearance;active;home_enclave;moved_from;moved_to;cert_sha256\r\n\
         ;bob;;;;;;;;\r\n\
         ;;;;;;;;;\r\n\
         4711;@alice:alpha.example;Alice, A.; 3rd Company ;+ATOMAL | SECRET until 2027-06-30;FALSE;\
         bravo.example;@alice:bravo.example;@alice:charlie.example:8448;{certificates}\r\n"
    );
    let expected = roster(Mode::Full, [full_account(), account("bob")]);
    assert_eq!(from_csv(&text), Ok(expected.clone()));

    let text = r#"{
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"], "totalResults": 2,
        "Resources": [
            {"id": "2", "userName": "bob", "meta": {"resourceType": "User"}},
            {"userName": "alice", "displayName": "Alice, A.", "externalId": "4711", "active": false,
             "urn:sallyport:scim:1.0:User": {
                "clearance": [{"value": "SECRET", "until": "2027-06-30"}, "+ATOMAL"],
                "unit": "3rd Company", "homeEnclave": "bravo.example",
                "movedFrom": "@alice:bravo.example", "movedTo": "@alice:charlie.example:8448",
                "certSha256": ["CERT1", "CERT2"]}}
        ]}"#;
    let text = text.replace("CERT1", &"01".repeat(32)).replace("CERT2", &"02:".repeat(32));
    assert_eq!(from_scim(&text), Ok(expected));
}

#[test]
fn scim_bulk_request_is_a_delta() {
    let text = r#"{
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:BulkRequest"],
        "Operations": [
            {"method": "POST", "path": "/Users", "bulkId": "q", "data": {"userName": "carol",
             "urn:sallyport:scim:1.0:User": {"clearance": ["OPEN"], "clearanceExpiry": "2027-01-31"}}},
            {"method": "PUT", "path": "/Users/dep%2Fbob", "data": {"userName": "dep/bob"}},
            {"method": "DELETE", "path": "/Users/alice"}
        ]}"#;
    let carol =
        Account { clearances: [clearance("OPEN until 2027-01-31")].into(), ..account("carol") };
    let mut expected = roster(Mode::Delta, [carol, account("dep/bob")]);
    expected.locks = vec!["alice".parse().unwrap()];
    assert_eq!(from_scim(text), Ok(expected));
}

#[test]
fn csv_problems_name_line_account_column_and_fix() {
    let long = "x".repeat(242);
    let table: &[(&str, &str)] = &[
        ("", "line 1: there is no column localpart; name the columns"),
        (
            "name\nalice",
            "line 1: the column \"name\" is not known; remove it, or use one of localpart, display_name",
        ),
        ("localpart,localpart\na,b", "line 1: the column localpart is there twice; keep one"),
        ("localpart,unit\nalice", "line 2: has 1 columns, the first line has 2; put cells"),
        ("localpart,unit\n,x", "line 2, localpart: is missing; give every account one"),
        ("localpart\nÄnne", "line 2 (Änne), localpart: has the character 'Ä'; use only a-z"),
        ("localpart\nAlice", "line 2 (Alice), localpart: has upper-case letters; write \"alice\""),
        (
            "localpart\n@al:bravo.example",
            "is an account of \"bravo.example\", this roster is for alpha.example; write only \"al\"",
        ),
        (&format!("localpart\n{long}"), "is longer than 255 bytes; choose a shorter localpart"),
        (
            "localpart\nal\nbob\nal",
            "line 4 (al), localpart: is the same as in line 2; keep one of the two",
        ),
        (
            "localpart,external_id\na,7\nb,7",
            "line 3 (b), external_id: is the same as in line 2; give each person",
        ),
        ("localpart,active\na,maybe", "line 2 (a), active: \"maybe\" is neither true nor false"),
        (
            "localpart,clearance\na,SECRT",
            "clearance: \"SECRT\" is not a clearance level; use one of OPEN, RESTRICTED, SECRET, or mark a category with +",
        ),
        (
            "localpart,clearance\na,OPEN until 30.6.27",
            "clearance: \"30.6.27\" is not a date; write year-month-day",
        ),
        ("localpart,clearance\na,+", "clearance: is empty or has spaces at an end"),
        (
            "localpart,cert_sha256\na,abcd",
            "cert_sha256: \"abcd\" is not well-formed; write the SHA-256",
        ),
        (
            "localpart,home_enclave\na,b c",
            "home_enclave: \"b c\" is not well-formed; write a server name",
        ),
        (
            "localpart,moved_to\na,alice",
            "moved_to: \"alice\" is not well-formed; write a whole user id",
        ),
        (
            "localpart,display_name\na,x\u{202e}y",
            "display_name: has the invisible character U+202E; delete it",
        ),
    ];
    for (text, expected) in table {
        let found = from_csv(text).unwrap_err();
        assert!(found.contains(expected), "{text:?}\n gives {found}\n not   {expected}");
    }
    let latin1 = csv::parse(b"localpart,unit\na,\xe4", head(Mode::Full)).unwrap_err();
    assert_eq!(latin1.to_string(), "line 2: is not UTF-8; save the file as \"CSV UTF-8\"");
}

#[test]
fn scim_problems_name_entry_account_attribute_and_fix() {
    let list = |users: &str, total: u32| {
        format!(
            r#"{{"schemas":["{}"],"totalResults":{total},"Resources":[{users}]}}"#,
            scim::LIST_RESPONSE
        )
    };
    let bulk = |operation: &str| {
        format!(r#"{{"schemas":["{}"],"Operations":[{operation}]}}"#, scim::BULK_REQUEST)
    };
    let table = [
        ("{", "line 1: is not SCIM (EOF while parsing"),
        (
            "{\"schemas\":[]}",
            "file, schemas: is neither a ListResponse with Resources nor a BulkRequest",
        ),
        (
            &list(r#"{"userName":"a"}"#, 2),
            "file, totalResults: holds 1 of 2 users; export all pages",
        ),
        (&list("{}", 1), "entry 1, localpart: is missing"),
        (
            &list(r#"{"userName":"a"},{"userName":"a"}"#, 2),
            "entry 2 (a), localpart: is the same as in entry 1",
        ),
        (
            &list(r#"{"userName":"a","password":"x"}"#, 1),
            "entry 1 (a), password: is in the roster; remove it",
        ),
        (
            &list("{\n\"userName\":\"a\",\n\"active\":\"yes\"}", 1),
            "line 3: is not SCIM (invalid type: string \"yes\", expected a boolean",
        ),
        (
            &list(r#"{"userName":"a","urn:sallyport:scim:1.0:User":{"clearence":[]}}"#, 1),
            "unknown field `clearence`",
        ),
        (
            &bulk(r#"{"method":"PATCH","path":"/Users/a","data":{}}"#),
            "entry 1 (a), method: PATCH /Users/a is not known; use POST /Users",
        ),
        (&bulk(r#"{"method":"DELETE","path":"/Users"}"#), "method: DELETE /Users is not known"),
        (
            &bulk(r#"{"method":"POST","path":"/Groups","data":{}}"#),
            "path: the path \"/Groups\" is not /Users",
        ),
        (
            &bulk(r#"{"method":"PUT","path":"/Users/a","data":{"userName":"b"}}"#),
            "userName: differs from the \"a\" of the path",
        ),
        (
            &bulk(
                r#"{"method":"DELETE","path":"/Users/a"},{"method":"POST","path":"/Users","data":{"userName":"a"}}"#,
            ),
            "entry 1 (a), localpart: is the same as in entry 2",
        ),
    ];
    for (text, expected) in table {
        let found = from_scim(text).unwrap_err();
        assert!(found.contains(expected), "{text}\n gives {found}\n not   {expected}");
    }
}

#[test]
fn problems_are_listed_up_to_a_bound() {
    let mut text = "localpart\n".to_owned();
    for n in 0..ROSTER_PROBLEMS_MAX + 3 {
        writeln!(text, "A{n}").unwrap();
    }
    let problems = csv::parse(text.as_bytes(), head(Mode::Full)).unwrap_err();
    assert_eq!((problems.list.len(), problems.more), (ROSTER_PROBLEMS_MAX, 3));
    assert!(problems.to_string().ends_with("\nand 3 more"));
}

#[test]
fn a_full_roster_has_no_locks() {
    let mut odd = roster(Mode::Full, [account("alice")]);
    odd.locks = vec!["bob".parse().unwrap()];
    let refused = Roster::decode(odd.head.clone(), &odd.encode()).unwrap_err();
    assert!(matches!(refused, NotARoster::Content(_)), "{refused:?}");
}

#[test]
fn heads_are_for_one_enclave_and_only_go_up() {
    let head = head(Mode::Full);
    let alpha: OwnedServerName = "alpha.example".try_into().unwrap();
    let bravo: OwnedServerName = "bravo.example".try_into().unwrap();
    assert_eq!(head.admit(&alpha, None), Ok(()));
    assert_eq!(head.admit(&alpha, Some(6)), Ok(()));
    for last in [7, 8] {
        assert_eq!(head.admit(&alpha, Some(last)), Err(NotAdmitted::Replay { serial: 7, last }));
    }
    assert!(matches!(head.admit(&bravo, None), Err(NotAdmitted::OtherEnclave { .. })));
}

fn current(accounts: impl IntoIterator<Item = Account>) -> Vec<Current> {
    accounts.into_iter().map(|account| Current { account, settled: true }).collect()
}

fn locked(localpart: &str) -> Account {
    Account { state: AccountState::Locked, ..account(localpart) }
}

fn cleared(localpart: &str, clearances: &[&str]) -> Account {
    let clearances = clearances.iter().map(|text| clearance(text)).collect();
    Account { clearances, ..account(localpart) }
}

/// The plan as one line: `+new ~changed -locked *unlocked x(absent)`, and its summary.
fn planned(roster: &Roster, current: Vec<Current>) -> String {
    let plan = diff(roster, current).unwrap();
    let mut text = String::new();
    for step in &plan.steps {
        let sign = match step {
            Step::Create(_) => '+',
            Step::Update(_) => '~',
            Step::Lock(_) => '-',
            Step::Unlock(_) => '*',
            Step::LockAbsent(_) => 'x',
        };
        write!(text, "{sign}{} ", step.localpart()).unwrap();
    }
    write!(text, "| {}", plan.counts).unwrap();
    text
}

#[test]
fn plans_of_full_rosters() {
    let everyone = || {
        current([account("a"), account("b"), locked("c"), locked("d"), cleared("e", &["SECRET"])])
    };
    let table = [
        (
            vec![account("a"), account("b"), locked("c"), locked("d"), cleared("e", &["SECRET"])],
            "| nothing changes",
        ),
        (vec![], "xa xb xe | 3 locked"),
        (
            vec![locked("a"), account("b"), account("c"), cleared("e", &["OPEN"]), account("f")],
            "-a *c ~e +f | 1 new, 1 changed, 1 locked, 1 unlocked, 1 clearance lowered",
        ),
        (
            vec![cleared("a", &["OPEN"]), cleared("b", &["+ATOMAL"]), cleared("e", &["SECRET"])],
            "~a ~b | 2 changed, 2 clearances raised",
        ),
    ];
    for (accounts, expected) in table {
        assert_eq!(planned(&roster(Mode::Full, accounts), everyone()), expected);
    }
}

#[test]
fn plans_of_delta_rosters() {
    let everyone = || current([account("a"), account("b"), locked("c")]);
    let mut delta = roster(Mode::Delta, [account("c"), account("d")]);
    delta.locks = vec!["a".parse().unwrap()];
    assert_eq!(planned(&delta, everyone()), "xa *c +d | 1 new, 1 locked, 1 unlocked");
    delta.locks = vec!["b".parse().unwrap(), "x".parse().unwrap()];
    let unknown = diff(&delta, everyone()).unwrap_err();
    assert_eq!(unknown.0, ["x".parse().unwrap()]);
}

#[test]
fn accounts_of_an_unfinished_import_are_created_again_or_locked() {
    let before = || vec![Current { account: account("a"), settled: false }];
    assert_eq!(planned(&roster(Mode::Full, [account("a")]), before()), "+a | 1 new");
    assert_eq!(planned(&roster(Mode::Full, []), before()), "xa | 1 locked");
}

#[test]
fn clearances_are_compared_by_level_and_day() {
    // Before, after, lowered, raised.
    let table: [(&[&str], &[&str], usize, usize); 8] = [
        (&["SECRET"], &["SECRET until 2027-01-01"], 1, 0),
        (&["SECRET until 2027-01-01"], &["SECRET until 2027-01-02"], 0, 1),
        (&["OPEN until 2027-01-01"], &["SECRET"], 0, 1),
        (&["RESTRICTED"], &["SECRET until 2027-01-01"], 1, 1),
        (&["SECRET until 2027-01-01", "OPEN"], &["SECRET until 2027-01-01"], 1, 0),
        (&["SECRET"], &["SECRET", "OPEN"], 0, 0),
        (&["+ATOMAL"], &["SECRET"], 1, 1),
        (&["GONE"], &["SECRET"], 1, 1),
    ];
    for (before, after, lowered, raised) in table {
        let roster = roster(Mode::Full, [cleared("a", after)]);
        let counts = diff(&roster, current([cleared("a", before)])).unwrap().counts;
        let found = (counts.clearance_lowered, counts.clearance_raised);
        assert_eq!(found, (lowered, raised), "{before:?} to {after:?}");
    }
}

#[test]
fn safety_stop_beyond_one_in_ten() {
    let table = [
        (0, 0, false),
        (1, 9, true),
        (1, 10, false),
        (10, 100, false),
        (11, 100, true),
        (1, 0, true),
    ];
    for (locked, active_before, stop) in table {
        let counts = Counts { locked, active_before, ..Counts::default() };
        assert_eq!(counts.mass_lock().is_some(), stop, "{locked} of {active_before}");
    }
}

fn officer(seed: u8) -> (ed25519_dalek::SigningKey, PublicKey) {
    let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let key = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
    (secret, key)
}

fn signed(roster: &Roster) -> (PublicKey, Vec<u8>) {
    let (secret, key) = officer(3);
    let policy = Policy { server_name: "alpha.example".try_into().unwrap() };
    let file = signed::sign(roster, &key, |request| {
        request.bytes_to_sign(&policy).map(|bytes| secret.sign(&bytes).to_bytes().into())
    });
    (key, file.unwrap())
}

#[test]
fn signed_files_verify_and_tell_what_they_are() {
    let roster = roster(Mode::Full, [full_account(), account("bob")]);
    let (key, file) = signed(&roster);
    let parsed = RosterFile::parse(&file).unwrap();
    assert_eq!((parsed.statement().accounts, &parsed.statement().head), (2, &roster.head));
    let subject = parsed.subject();
    let verified = parsed.verify(&[officer(4).1, key.clone()]).unwrap();
    assert_eq!((verified.roster, verified.signer, verified.subject), (roster, key, subject));
}

#[test]
fn no_damaged_signed_file_is_accepted() {
    let (key, file) = signed(&roster(Mode::Full, [full_account(), account("bob")]));
    let open = |file: &[u8]| {
        RosterFile::parse(file).and_then(|parsed| parsed.verify(std::slice::from_ref(&key)))
    };
    assert!(open(&file).is_ok());
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        assert!(open(&damaged).is_err(), "byte {at}");
        assert!(open(&file[..at]).is_err(), "first {at} bytes");
    }
    assert!(open(&[file.as_slice(), b"\0"].concat()).is_err());
    let other = RosterFile::parse(&file).unwrap().verify(&[officer(4).1]).unwrap_err();
    assert!(matches!(other, signed::Refused::UnknownSigner(_)));
}

#[test]
fn a_request_to_sign_a_roster_is_one() {
    let (_, key) = officer(3);
    let mut seen = None;
    let failed = signed::sign(&roster(Mode::Full, []), &key, |request| {
        seen = Some(request);
        Err::<_, ()>(())
    });
    assert!(failed.is_err());
    assert!(matches!(seen, Some(SigningRequest::Roster(_))));
}

#[test]
fn a_hundred_thousand_accounts() {
    const USERS: usize = 100_000;
    let mut text = "localpart,display_name,unit,clearance,external_id\n".to_owned();
    for n in 0..USERS {
        writeln!(text, "u{n:06},Person {n},Unit {},SECRET until 2027-06-30,{n}", n % 97).unwrap();
    }
    let roster = from_csv(&text).unwrap();
    let decoded = Roster::decode(roster.head.clone(), &roster.encode()).unwrap();
    assert_eq!(decoded, roster);
    let before = current(roster.accounts.iter().skip(USERS / 20).cloned());
    let counts = diff(&roster, before).unwrap().counts;
    assert_eq!((counts.new, counts.unchanged), (USERS / 20, USERS - USERS / 20));
}

fn any_account() -> impl Strategy<Value = Account> {
    let clearance = ("[A-Z]{1,8}", any::<bool>(), proptest::option::of(0..=Date::LAST.days()))
        .prop_map(|(name, category, until)| Clearance {
            kind: if category { ClearanceKind::Category } else { ClearanceKind::Level },
            name: if category { name } else { "SECRET".to_owned() },
            until: until.and_then(Date::from_days),
        });
    (
        "[a-z0-9._=/+-]{1,12}",
        proptest::option::of("[a-zA-Zäß0-9,;\"|]{1,12}"),
        any::<bool>(),
        proptest::collection::btree_set(clearance, 0..4),
        proptest::collection::btree_set(any::<[u8; 32]>().prop_map(Sha256), 0..3),
    )
        .prop_map(|(localpart, text, active, clearances, cert_sha256)| Account {
            display_name: text.clone(),
            unit: text,
            state: if active { AccountState::Active } else { AccountState::Locked },
            clearances,
            cert_sha256,
            moved_from: active.then(|| "@old:bravo.example".try_into().unwrap()),
            ..account(&localpart)
        })
}

fn any_roster() -> impl Strategy<Value = Roster> {
    proptest::collection::vec(any_account(), 0..8).prop_map(|mut accounts| {
        accounts.sort_by(|a, b| a.localpart.cmp(&b.localpart));
        accounts.dedup_by(|a, b| a.localpart == b.localpart);
        let mut seen = std::collections::BTreeSet::new();
        for account in &mut accounts {
            account.cert_sha256.retain(|hash| seen.insert(*hash));
        }
        roster(Mode::Full, accounts)
    })
}

proptest! {
    #[test]
    fn encoding_is_lossless(roster in any_roster()) {
        let decoded = Roster::decode(roster.head.clone(), &roster.encode()).unwrap();
        prop_assert_eq!(decoded, roster);
    }

    #[test]
    fn a_roster_that_was_carried_out_changes_nothing(roster in any_roster()) {
        let again = diff(&roster, current(roster.accounts.clone())).unwrap();
        prop_assert!(again.steps.is_empty());
    }

    #[test]
    fn a_full_plan_leads_to_the_roster(before in any_roster(), after in any_roster()) {
        let plan = diff(&after, current(before.accounts.clone())).unwrap();
        let mut accounts: std::collections::BTreeMap<_, _> =
            before.accounts.iter().map(|a| (a.localpart.clone(), a.clone())).collect();
        for step in plan.steps {
            match step {
                Step::Create(a) | Step::Update(a) | Step::Lock(a) | Step::Unlock(a) => {
                    accounts.insert(a.localpart.clone(), a.clone());
                }
                Step::LockAbsent(localpart) => {
                    accounts.get_mut(&localpart).unwrap().state = AccountState::Locked;
                }
            }
        }
        for (localpart, account) in accounts {
            match after.accounts.iter().find(|a| a.localpart == localpart) {
                Some(wanted) => prop_assert_eq!(&account, wanted),
                None => prop_assert_eq!(account.state, AccountState::Locked),
            }
        }
    }

    #[test]
    fn any_bytes_are_parsed_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = csv::parse(&bytes, head(Mode::Full));
        let _ = scim::parse(&bytes, head(Mode::Full));
        let _ = Roster::decode(head(Mode::Full), &bytes);
        let _ = RosterFile::parse(&bytes);
    }
}
