//! Verifying an exported log, and the journal that it seals.

use std::fs;

use ed25519_dalek::Signer as _;
use sallyport_core::{
    admin::SignedCheckpoint,
    audit::{Checkpoint, Entry, Row, Tip, append},
    journal::{JOURNAL_SEALED, Seal},
    sign::{Algorithm, Policy, PublicKey},
    time::Millis,
};

use crate::desk::Desk;

fn log(len: u64) -> Vec<Row> {
    let mut tip = Tip::default();
    let rows = (1..=len).map(|n| {
        let entry = Entry {
            at: Millis(1_795_000_000_000 + n),
            actor: "alice".to_owned(),
            evidence: "uid 1000".to_owned(),
            approvals: vec![],
            action: "roster.import".to_owned(),
            subject: n.to_string(),
            details: [("new".to_owned(), "3".to_owned())].into(),
        };
        let row = append(tip, entry);
        tip = Tip { id: row.id, hash: row.hash };
        row
    });
    rows.collect()
}

fn export(rows: &[Row]) -> String {
    rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect()
}

#[test]
fn an_exported_log_is_followed_to_its_end() {
    let desk = Desk::new();
    let rows = log(3);
    desk.write("log", export(&rows));
    let last = rows[2].hash;
    let whole = format!(
        "The log is whole: 3 rows, last hash {last}\n\
         The token vouches for none of it: no checkpoint was made yet\n"
    );
    assert_eq!(desk.run("audit verify --file log").ok(), whole);
    let first = rows[0].hash;
    assert_eq!(desk.run(&format!("audit verify --file log --contains {first}")).ok(), whole);
    // The end was cut off: only the hash on paper tells.
    desk.write("cut", export(&rows[..2]));
    desk.run("audit verify --file cut").ok();
    desk.run(&format!("audit verify --file cut --contains {last}"))
        .fails(1, "the log does not contain the hash that you wrote down");
}

/// An exported log with the token's word for its second row.
fn vouched_for(rows: &[Row], secret: &ed25519_dalek::SigningKey) -> (String, PublicKey) {
    let key = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
    let policy = Policy { server_name: "alpha.example".try_into().unwrap() };
    let tip = Tip { id: 2, hash: rows[1].hash };
    let checkpoint = Checkpoint::of(policy.server_name.clone(), tip, Millis(1_700_000_000_000));
    let signed = checkpoint.sign(&key, |request| {
        let bytes = request.bytes_to_sign(&policy).unwrap();
        Ok::<_, std::convert::Infallible>(secret.sign(&bytes).to_bytes().into())
    });
    let checkpoint = SignedCheckpoint::new(2, &signed.unwrap());
    let lines = [
        format!("{{\"audit_key\":\"{key}\"}}\n"),
        export(&rows[..2]),
        serde_json::to_string(&checkpoint).unwrap() + "\n",
        export(&rows[2..]),
    ];
    (lines.concat(), key)
}

#[test]
fn an_export_says_up_to_which_row_the_token_vouches() {
    let desk = Desk::new();
    let secret = |seed| ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let rows = log(3);
    let (text, key) = vouched_for(&rows, &secret(1));
    desk.write("log", text.clone());
    let said = desk.run("audit verify --file log").ok();
    assert!(said.contains("vouches for it up to row 2, since TIME"), "{said}");
    assert!(said.contains("believed as it was found"), "{said}");
    let said = desk.run(&format!("audit verify --file log --key {key}")).ok();
    assert!(said.contains("up to row 2") && !said.contains("believed"), "{said}");

    // A log that somebody wrote anew, with a key of their own: the key on paper tells.
    let (forged, _) = vouched_for(&rows, &secret(2));
    desk.write("forged", forged);
    desk.run("audit verify --file forged").ok();
    desk.run(&format!("audit verify --file forged --key {key}")).fails(5, "nobody vouches for");
    // A checkpoint of another row.
    let other = text.lines().skip(3).collect::<Vec<_>>();
    let moved = [text.lines().next().unwrap(), text.lines().nth(1).unwrap(), other[0]].join("\n");
    desk.write("moved", moved + "\n");
    desk.run("audit verify --file moved").fails(5, "rows were exchanged");
}

#[test]
fn a_changed_log_is_noticed_by_its_exit_code() {
    let desk = Desk::new();
    let rows = log(3);
    desk.write("log", export(&rows).replacen("alice", "bobby", 1));
    desk.run("audit verify --file log").fails(5, "row 1 was changed after it was written");
    desk.write("log", export(&[rows[0].clone(), rows[2].clone()]));
    desk.run("audit verify --file log").fails(5, "after row 1 comes row 3");
    desk.write("log", export(&rows) + "{\n");
    desk.run("audit verify --file log").fails(1, "line 4 of log is not a row of an audit log");
}

/// A file that systemd-journald wrote: eleven entries.
const JOURNAL: &[u8] = include_bytes!("fixtures/journal.zst");

/// Two rows, and one that seals the first entries of the journal.
fn sealing(entries: u64, merkle_root: &str) -> String {
    let mut rows = log(2);
    let merkle_root = merkle_root.parse().unwrap();
    let seqnum_id = "527a78d3284249a48d4faf239cc01b60".parse().unwrap();
    let seal = Seal { seqnum_id, after: 0, last: entries, entries, merkle_root };
    let details = seal.details().map(|(key, value)| (key.to_owned(), value));
    let entry = Entry {
        action: JOURNAL_SEALED.to_owned(),
        subject: seqnum_id.to_string(),
        details: details.into(),
        ..rows[1].entry.clone()
    };
    rows.push(append(Tip { id: 2, hash: rows[1].hash }, entry));
    export(&rows)
}

#[test]
fn a_journal_is_held_against_its_seals() {
    /// By another implementation: of all entries, and of the first seven.
    const ROOT: &str = "b3ea862b84af79bd9bcfbfb1f670a9a3c64351f87fdd091f0660c05e5c7a9583";
    const ROOT_OF_SEVEN: &str = "739c8bf0bd20e3446275654ed0db74649a360f40199aa5b23e3e9312963d0bc1";
    let desk = Desk::new();
    let written = zstd::decode_all(JOURNAL).unwrap();
    fs::create_dir_all(desk.path("logs/machine")).unwrap();
    desk.write("log", sealing(11, ROOT));
    desk.write("logs/machine/system.journal", &written);
    let verify = || desk.run("audit verify --file log --journal logs");
    let said = verify().ok();
    let end = "The journal is as it was sealed, from row 3 on until TIME: 11 entries\n\
               The token does not vouch for these seals yet: `sallyctl audit checkpoint` has it do so\n";
    assert!(said.ends_with(end), "{said}");
    // As it lies on a stick, beside what is no journal.
    desk.write("logs/journal-001.journal", &written);
    desk.write("logs/box.toml", "");
    assert!(verify().ok().ends_with(end));

    let changed = |from: &[u8], to: &[u8]| {
        let at = written.windows(from.len()).position(|place| place == from).unwrap();
        [&written[..at], to, &written[at + from.len()..]].concat()
    };
    desk.write("logs/journal-001.journal", changed(b"MESSAGE=entry 3", b"MESSAGE=entry 8"));
    verify().fails(5, "two files have different entries with the number");
    fs::remove_file(desk.path("logs/machine/system.journal")).unwrap();
    verify().fails(5, "among the 11 entries that row 3 of the audit log sealed");
    desk.write("log", sealing(7, ROOT_OF_SEVEN));
    desk.write("logs/journal-001.journal", &written);
    let said = verify().ok();
    assert!(said.contains("Entries that no seal proves: 4"), "{said}");
    desk.write("logs/journal-001.journal", "not a journal");
    desk.run("audit verify --file log --journal logs").fails(1, "journal-001.journal");
    fs::remove_file(desk.path("logs/journal-001.journal")).unwrap();
    verify().fails(1, "there is no file of a journal in logs");
}
