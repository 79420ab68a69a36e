//! Verifying an exported log.

use ed25519_dalek::Signer as _;
use sallyport_core::{
    admin::SignedCheckpoint,
    audit::{Checkpoint, Entry, Row, Tip, append},
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
