//! From a list to a signed roster.

use std::fmt::Write as _;

use crate::desk::Desk;

const LIST: &str = "localpart,display_name,unit,clearance\n\
                    alice,Alice,3rd Company,SECRET until 2027-06-30; +ATOMAL\n\
                    bob,Bob,,OPEN\n";
const MAKE: &str =
    "roster make list.csv --enclave alpha.example --serial 7 --levels OPEN,SECRET --out made.json";
const SIGN: &str =
    "roster sign made.json --token token.toml --allow-software-keys --out signed.roster";

#[test]
fn make_sign_and_check() {
    let desk = Desk::new();
    let officer = desk.officer();
    desk.write("list.csv", LIST);
    let summary = |signature: &str| {
        format!(
            "enclave    alpha.example\n\
             serial     7\n\
             mode       full\n\
             made       TIME\n\
             levels     OPEN < SECRET\n\
             accounts   2\n\
             locks      0\n\
             signature  {signature}\n"
        )
    };
    assert_eq!(desk.run(MAKE).ok(), summary("none yet"));
    let signed = desk.run(SIGN).ok();
    let key = signed.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(signed, summary(&format!("key {key}")));
    let unverified = format!("key {key}, NOT VERIFIED: give --officer-key");
    assert_eq!(desk.run("roster check signed.roster").ok(), summary(&unverified));
    let check = format!("roster check signed.roster --officer-key {officer}");
    assert_eq!(desk.run(&check).ok(), summary(&format!("key {key}, verified")));
    let json = desk.run("roster check signed.roster --json").ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["serial"].as_u64(), json["mode"].as_str()), (Some(7), Some("full")));
    // Nothing is overwritten.
    desk.run(MAKE).fails(1, "cannot make made.json (an existing file is not replaced)");
}

#[test]
fn mistakes_are_listed_and_nothing_is_made() {
    let desk = Desk::new();
    desk.write("list.csv", "localpart,clearance\nAlice,OPEN\nbob,SECRT\n@carol:bravo.example,\n");
    let ended = desk.run(MAKE);
    assert_eq!(
        (ended.code, ended.err.as_str()),
        (
            Some(1),
            "sallyctl: list.csv has mistakes; no roster was made\n\
             line 2 (Alice), localpart: has upper-case letters; write \"alice\"\n\
             line 3 (bob), clearance: \"SECRT\" is not a clearance level; use one of OPEN, SECRET, or mark a category with +\n\
             line 4 (@carol:bravo.example), localpart: is an account of \"bravo.example\", this roster is for alpha.example; write only \"carol\" if the person gets an account here\n"
        )
    );
    assert!(!desk.path("made.json").exists());
}

#[test]
fn scim_is_recognised() {
    let desk = Desk::new();
    desk.write(
        "list.csv",
        r#"{"schemas": ["urn:ietf:params:scim:api:messages:2.0:BulkRequest"],
            "Operations": [{"method": "DELETE", "path": "/Users/bob"}]}"#,
    );
    let made = desk.run(MAKE).ok();
    assert!(made.contains("mode       delta\n") && made.contains("locks      1\n"), "{made}");
}

#[test]
fn what_was_edited_or_damaged_is_refused() {
    let desk = Desk::new();
    let officer = desk.officer();
    desk.write("list.csv", LIST);
    desk.run(MAKE).ok();
    let edited =
        String::from_utf8(desk.read("made.json")).unwrap().replace("\"SECRET\"", "\"TOP\"");
    desk.write("edited.json", edited.replacen("\"TOP\"", "\"SECRET\"", 1));
    desk.run("roster check edited.json")
        .fails(1, "(alice), clearance: \"TOP\" is not a clearance level");
    desk.run(SIGN).ok();
    let mut file = desk.read("signed.roster");
    let at = file.len() - 3;
    file[at] ^= 1;
    desk.write("damaged.roster", file);
    desk.run(&format!("roster check damaged.roster --officer-key {officer}"))
        .fails(1, "sallyctl: the accounts are not those that were signed");
    let stranger = "p256:BDszaR7mv9VlOd6B3AoqoBeVdTbPf/eFtvEhBNivFNVPJnCoqJOCljTCkBK2Efsfs+omuHbqK1FrjQZTFPqUf/c";
    desk.run(&format!("roster check signed.roster --officer-key {stranger}"))
        .fails(1, "which is not an officer's key here");
    desk.run("roster check token.toml").fails(1, "token.toml is not a roster");
}

#[test]
fn software_keys_and_missing_keys_are_pointed_out() {
    let desk = Desk::new();
    desk.write("list.csv", LIST);
    desk.run(MAKE).ok();
    desk.run("roster sign made.json --token token.toml --out x").fails(1, "cannot open the token");
    desk.run(SIGN)
        .fails(1, "the token has no key of the role officer: make one with `sallyctl ceremony`");
    desk.officer();
    desk.officer();
    desk.run(SIGN).fails(1, "several keys of the role officer: choose one with --key");
}

/// The size of a large enclave. The times are printed with `--nocapture`.
#[test]
fn a_hundred_thousand_accounts() {
    let desk = Desk::new();
    let officer = desk.officer();
    let mut list = "localpart,display_name,unit,clearance,external_id\n".to_owned();
    for n in 0..100_000 {
        writeln!(list, "u{n:06},Person {n},Unit {},SECRET until 2027-06-30,{n}", n % 97).unwrap();
    }
    desk.write("list.csv", list);
    let check = format!("roster check signed.roster --officer-key {officer}");
    for line in [MAKE, SIGN, &check] {
        let start = std::time::Instant::now();
        let said = desk.run(line).ok();
        println!("{:?}: {line}", start.elapsed());
        assert!(said.contains("accounts   100000\n"), "{said}");
    }
}
