//! Verifying an exported log.

use sallyport_core::{
    audit::{Entry, Row, Tip, append},
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
    let whole = format!("The log is whole: 3 rows, last hash {last}\n");
    assert_eq!(desk.run("audit verify --file log").ok(), whole);
    let first = rows[0].hash;
    assert_eq!(desk.run(&format!("audit verify --file log --contains {first}")).ok(), whole);
    // The end was cut off: only the hash on paper tells.
    desk.write("cut", export(&rows[..2]));
    desk.run("audit verify --file cut").ok();
    desk.run(&format!("audit verify --file cut --contains {last}"))
        .fails(1, "the log does not contain the hash that you wrote down");
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
