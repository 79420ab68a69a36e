//! The audit log: one row per administrative command, each holding the hash of the one before.
//!
//! Who changes, removes or inserts a row must change every later one, and the last hash is what people write down,
//! export and compare. A row's hash is SHA-256 over the context, the previous hash and the row in deterministic CBOR.

use std::collections::BTreeMap;

use minicbor::Encoder;
use serde::{Deserialize, Serialize};

use crate::{digest::Sha256, time::Millis};

mod checkpoint;

pub use checkpoint::{BadCheckpoint, Checkpoint, KEY_ROTATED, Vouched};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Number of the row; the first is 1 and none is left out.
    pub id: u64,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
    /// Hash of the row before; all zeros for the first.
    pub previous: Sha256,
    /// [`row_hash`] of this row.
    pub hash: Sha256,
}

/// What happened, without its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, by the clock of the box.
    pub at: Millis,
    /// Who, as they said.
    pub actor: String,
    /// What the box itself saw of them: the operating system's user of the admin socket, for example.
    pub evidence: String,
    /// Who else approved, by the fingerprints of their keys or by name.
    pub approvals: Vec<String>,
    /// The command: `roster.import`, `peer.add`.
    pub action: String,
    /// What it was done to: a hash, a server name, a user id.
    pub subject: String,
    /// Whatever else is worth knowing later.
    pub details: BTreeMap<String, String>,
}

impl Entry {
    /// Bytes of its texts, which are at most [`AUDIT_ROW_BYTES_MAX`](crate::limits::AUDIT_ROW_BYTES_MAX).
    #[must_use]
    pub fn bytes(&self) -> usize {
        let Self { at: _, actor, evidence, approvals, action, subject, details } = self;
        let texts = [actor, evidence, action, subject].into_iter().chain(approvals);
        let texts = texts.chain(details.iter().flat_map(|(key, value)| [key, value]));
        texts.fold(0, |sum, text| sum.saturating_add(text.len()))
    }
}

/// The end of a log, or of the part that was verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// Number of the last row; 0 before the first.
    pub id: u64,
    /// Its hash; all zeros before the first.
    pub hash: Sha256,
}

/// A log that is not what the box wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A row is missing, doubled or out of order.
    #[error("after row {after} comes row {found}: rows were removed, added or reordered")]
    Sequence {
        /// The last row that is right.
        after: u64,
        /// The row that follows it.
        found: u64,
    },
    /// A row does not follow from the one before.
    #[error("row {0} does not continue the row before it: one of the two was replaced")]
    Chain(u64),
    /// A row does not have its own hash.
    #[error("row {0} was changed after it was written")]
    Content(u64),
}

/// The row that comes next.
#[must_use]
pub fn append(tip: Tip, entry: Entry) -> Row {
    let id = tip.id + 1;
    let hash = row_hash(id, &tip.hash, &entry);
    Row { id, entry, previous: tip.hash, hash }
}

/// The hash that a row must have.
#[must_use]
pub fn row_hash(id: u64, previous: &Sha256, entry: &Entry) -> Sha256 {
    let mut encoder = Encoder::new(Vec::new());
    let written = write(&mut encoder, id, entry);
    debug_assert!(written.is_ok(), "writing to memory does not fail");
    let row = encoder.into_writer();
    Sha256::of_parts(&[b"sallyport/audit/1", previous.as_bytes(), &row])
}

/// Follows the chain from a known tip (the default one for a whole log) and answers where it ends.
///
/// # Errors
/// The first row that is wrong.
pub fn verify<'a>(from: Tip, rows: impl IntoIterator<Item = &'a Row>) -> Result<Tip, Broken> {
    rows.into_iter().try_fold(from, |tip, row| {
        if Some(row.id) != tip.id.checked_add(1) {
            return Err(Broken::Sequence { after: tip.id, found: row.id });
        }
        if row.previous != tip.hash {
            return Err(Broken::Chain(row.id));
        }
        if row.hash != row_hash(row.id, &row.previous, &row.entry) {
            return Err(Broken::Content(row.id));
        }
        Ok(Tip { id: row.id, hash: row.hash })
    })
}

fn write(
    e: &mut Encoder<Vec<u8>>,
    id: u64,
    entry: &Entry,
) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
    let count = |len: usize| u64::try_from(len).unwrap_or(u64::MAX);
    e.array(8)?.u64(id)?.u64(entry.at.0)?.str(&entry.actor)?.str(&entry.evidence)?;
    e.array(count(entry.approvals.len()))?;
    entry.approvals.iter().try_for_each(|approval| e.str(approval).map(drop))?;
    e.str(&entry.action)?.str(&entry.subject)?.map(count(entry.details.len()))?;
    entry.details.iter().try_for_each(|(key, value)| e.str(key)?.str(value).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(len: u64) -> Vec<Row> {
        let mut tip = Tip::default();
        (1..=len)
            .map(|n| {
                let row = append(tip, entry(n));
                tip = Tip { id: row.id, hash: row.hash };
                row
            })
            .collect()
    }

    fn entry(n: u64) -> Entry {
        Entry {
            at: Millis(1_700_000_000_000 + n),
            actor: "alice".to_owned(),
            evidence: "uid 1000".to_owned(),
            approvals: vec!["bob".to_owned()],
            action: "roster.import".to_owned(),
            subject: "ab".repeat(32),
            details: [("new".to_owned(), n.to_string())].into(),
        }
    }

    #[test]
    fn a_whole_log_and_a_part_of_it_verify() {
        let log = log(5);
        let end = Tip { id: 5, hash: log[4].hash };
        assert_eq!(verify(Tip::default(), &log), Ok(end));
        let middle = Tip { id: 3, hash: log[2].hash };
        assert_eq!(verify(middle, &log[3..]), Ok(end));
        assert_eq!(verify(middle, []), Ok(middle));
    }

    #[test]
    fn every_change_of_a_row_is_found() {
        let changes: [fn(&mut Entry); 7] = [
            |e| e.at.0 += 1,
            |e| e.actor = "mallory".to_owned(),
            |e| e.evidence.clear(),
            |e| e.approvals.clear(),
            |e| e.action.push('x'),
            |e| e.subject.push('x'),
            |e| e.details.clear(),
        ];
        for change in changes {
            let mut log = log(3);
            change(&mut log[1].entry);
            assert_eq!(verify(Tip::default(), &log), Err(Broken::Content(2)));
            // Mending the row's own hash breaks the chain at the next one.
            log[1].hash = row_hash(2, &log[1].previous, &log[1].entry);
            assert_eq!(verify(Tip::default(), &log), Err(Broken::Chain(3)));
        }
    }

    #[test]
    fn removed_doubled_and_reordered_rows_are_found() {
        let whole = log(4);
        let table = [
            (vec![0, 2, 3], Broken::Sequence { after: 1, found: 3 }),
            (vec![0, 1, 1, 2], Broken::Sequence { after: 2, found: 2 }),
            (vec![1, 0], Broken::Sequence { after: 0, found: 2 }),
        ];
        for (order, broken) in table {
            let rows = order.iter().map(|n| &whole[*n]);
            assert_eq!(verify(Tip::default(), rows), Err(broken));
        }
    }

    #[test]
    fn texts_do_not_run_into_each_other() {
        let (mut a, mut b) = (entry(1), entry(1));
        (a.actor, a.evidence) = ("ab".to_owned(), "c".to_owned());
        (b.actor, b.evidence) = ("a".to_owned(), "bc".to_owned());
        assert_ne!(append(Tip::default(), a).hash, append(Tip::default(), b).hash);
    }
}
