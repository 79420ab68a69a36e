//! `sallyctl status`: how the box is.

use std::iter;

use sallyport_core::{
    admin::{
        Backlog, BackupState, BoxKeyPlace, CertificateStatus, Status, TokenReport, TokenStatus,
        VaultStatus, path,
    },
    custody::Mode,
    time::Millis,
};

use super::certificate;
use crate::{
    client::Box as TheBox,
    output::{self, Output},
};

pub(crate) fn run(the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
    let status: Status = the_box.ask(path::STATUS)?;
    out.show(&status, text)
}

fn text(status: &Status) -> String {
    let accounts = status.accounts;
    let roster = status.roster.as_ref().map_or_else(
        || "none imported yet".to_owned(),
        |roster| format!("{}, imported {}", roster.serial, output::time(roster.imported_at)),
    );
    let audit = if status.audit.id == 0 {
        "empty".to_owned()
    } else {
        format!("row {}, hash {}", status.audit.id, status.audit.hash)
    };
    let nothing = || "none: no listener speaks TLS".to_owned();
    let mut pairs = vec![
        ("enclave", status.server_name.to_string()),
        ("version", status.version.clone()),
        ("clock", output::time(status.now)),
        (
            "accounts",
            format!(
                "{} active, {} locked, {} not activated yet",
                accounts.active, accounts.locked, accounts.waiting
            ),
        ),
        ("roster", roster),
    ];
    pairs.extend(token_pairs(&status.token));
    let certificate = status.certificate.as_ref().map_or_else(nothing, certificate_text);
    pairs.push(("certificate", certificate));
    pairs.push(("secrets", vault_text(&status.vault)));
    pairs.push(("to be signed", backlog_text(&status.backlog, status.now)));
    pairs.push(("backup", backup_text(&status.backup)));
    pairs.push(("audit log", audit));
    let warnings = status.warnings.iter().map(|warning| format!("WARNING: {warning}.\n"));
    output::pairs(&pairs) + &warnings.collect::<String>()
}

fn backup_text(backup: &BackupState) -> String {
    backup.last.as_ref().map_or_else(
        || "none that was read back".to_owned(),
        |last| {
            let kind = if last.full { "full" } else { "what was new" };
            format!("{} of {}, {kind}", last.number, output::time(last.made))
        },
    )
}

/// What waits for the token, in one line.
pub(super) fn backlog_text(backlog: &Backlog, now: Millis) -> String {
    let Backlog { events, rooms, .. } = *backlog;
    let minutes = backlog.age_seconds(now) / 60;
    match (events, minutes) {
        (0, _) => "nothing waits".to_owned(),
        (_, 0) => format!("{events} events in {rooms} rooms, since a moment ago"),
        (_, minutes) => {
            let (hours, minutes) = (minutes / 60, minutes % 60);
            format!("{events} events in {rooms} rooms, the oldest for {hours} h {minutes} min")
        }
    }
}

/// The keys whose place is known.
fn custody(report: &TokenReport) -> impl Iterator<Item = (&'static str, Mode)> {
    let keys = [("event key", report.event_key), ("bundle key", report.courier_encryption_key)];
    keys.into_iter().filter_map(|(key, mode)| Some((key, mode?)))
}

/// How the token is and, in a sentence each, where the keys are.
pub(super) fn token_pairs(report: &TokenReport) -> impl Iterator<Item = (&'static str, String)> {
    let keys = custody(report).map(|(key, mode)| (key, format!("{mode}: {}", mode.meaning())));
    iter::once(("token", token_text(&report.state))).chain(keys)
}

/// How the token is, and what it means where the keys are.
pub(super) fn report_text(report: &TokenReport) -> String {
    let mut text = format!("{}\n", token_text(&report.state));
    for (key, mode) in custody(report) {
        text += &format!("\n{key}, {}\n", mode.explained().join("\n  "));
    }
    text
}

fn certificate_text(status: &CertificateStatus) -> String {
    let until = match status.not_after {
        Some(not_after) => format!("valid until {}", output::time(not_after)),
        None => "NONE YET, nobody can connect with TLS".to_owned(),
    };
    let ca = status.ca.as_ref();
    let key = ca.map(|ca| format!("; the CA's key is {}", certificate::place(&ca.key)));
    let waits = status.waits.as_ref().map(|waits| format!("; WAITS: {waits}"));
    [until, key.unwrap_or_default(), waits.unwrap_or_default()].concat()
}

fn vault_text(vault: &VaultStatus) -> String {
    let box_key = match vault.box_key {
        BoxKeyPlace::Credential => "sealed with the credential of this box",
        BoxKeyPlace::File => "sealed with box.key, a file beside them",
    };
    match &vault.token_key {
        Some(key) => format!("{box_key}; should that be lost, the token opens them with {key}"),
        None => format!("{box_key}; NO TOKEN can open them should that be lost"),
    }
}

/// How the token is, in one line.
pub(super) fn token_text(token: &TokenStatus) -> String {
    match token {
        TokenStatus::None => "none configured: nothing leaves this box".to_owned(),
        TokenStatus::Starting => "being opened".to_owned(),
        TokenStatus::Ready => "ready".to_owned(),
        TokenStatus::Locked { why } => format!("LOCKED: {why}"),
        TokenStatus::Absent { why, attempts: 0 } => format!("ABSENT: {why}"),
        TokenStatus::Absent { why, attempts: 1 } => format!("ABSENT, tried once: {why}"),
        TokenStatus::Absent { why, attempts } => format!("ABSENT, tried {attempts} times: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_told_in_plain_words() {
        let report = TokenReport {
            state: TokenStatus::Ready,
            event_key: Some(Mode::Envelope),
            courier_encryption_key: Some(Mode::Direct),
        };
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.contains(r#""state":"ready","event_key":"envelope""#), "{json}");
        assert_eq!(serde_json::from_str::<TokenReport>(&json).unwrap(), report);
        let text = report_text(&report);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["ready", ""]);
        assert!(lines[2].starts_with("event key, envelope: The key is on the disk, encrypted"));
        assert!(lines[3].starts_with("  Who takes the disk finds the key encrypted"));
        assert!(lines[4].starts_with("  Who takes over the running box can copy the key"));
        assert!(lines[7].starts_with("bundle key, direct: The key is in the token"), "{text}");

        let unknown =
            TokenReport { state: TokenStatus::None, event_key: None, courier_encryption_key: None };
        assert_eq!(report_text(&unknown), "none configured: nothing leaves this box\n");
    }
}
