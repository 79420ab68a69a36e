//! The log of administrative commands. A command appends its row in its own transaction: neither is there without the other.

use rusqlite::{OptionalExtension, Row as SqlRow, params};
use sallyport_core::{
    audit::{Entry, Row, Tip, append},
    digest::Sha256,
    journal::{JOURNAL_SEALED, Seal, SeqnumId},
    limits::AUDIT_ROW_BYTES_MAX,
    time::Millis,
};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    value::{millis, to_sql},
};

/// A checkpoint as the token signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCheckpoint {
    /// The row that it is of.
    pub row: u64,
    /// When it was made.
    pub made: Millis,
    /// The COSE_Sign1.
    pub bytes: Vec<u8>,
}

/// What [`audit_row`] reads.
const ROWS: &str = "SELECT id, at, actor, evidence, approvals, action, subject, details,
                    previous, hash FROM audit_log";

impl Read<'_> {
    /// The newest checkpoint.
    pub fn last_checkpoint(&self) -> Result<Option<StoredCheckpoint>> {
        Ok(self
            .prepare(
                "SELECT tip, made, checkpoint FROM audit_checkpoints ORDER BY tip DESC LIMIT 1",
            )?
            .query_row([], checkpoint)
            .optional()?)
    }

    /// The checkpoints of the rows after one and up to another.
    pub fn checkpoints(&self, after: u64, up_to: u64) -> Result<Vec<StoredCheckpoint>> {
        let sql = |row: u64| i64::try_from(row).unwrap_or(i64::MAX);
        let mut statement = self.prepare(
            "SELECT tip, made, checkpoint FROM audit_checkpoints
             WHERE tip > ?1 AND tip <= ?2 ORDER BY tip",
        )?;
        let rows = statement.query_map([sql(after), sql(up_to)], checkpoint)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The end of the log.
    pub fn audit_tip(&self) -> Result<Tip> {
        let last = self
            .prepare("SELECT id, hash FROM audit_log ORDER BY id DESC LIMIT 1")?
            .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))
            .optional()?;
        match last {
            Some((id, hash)) => Ok(Tip { id: id.unsigned_abs(), hash: sha256(&hash)? }),
            None => Ok(Tip::default()),
        }
    }

    /// At most `limit` rows after the one with this number, in order.
    pub fn audit_rows(&self, after: u64, limit: u32) -> Result<Vec<Row>> {
        let mut statement = self.prepare(&format!("{ROWS} WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![after, limit])?;
        let mut log = Vec::new();
        while let Some(row) = rows.next()? {
            log.push(audit_row(row)?);
        }
        Ok(log)
    }

    /// The newest seal of this counting of journal entries.
    pub fn last_journal_seal(&self, seqnum_id: SeqnumId) -> Result<Option<Seal>> {
        // The action stands there word for word, as the index has it.
        let mut statement = self.prepare(&format!(
            "{ROWS} WHERE action = '{JOURNAL_SEALED}' AND subject = ?1 ORDER BY id DESC LIMIT 1"
        ))?;
        let mut rows = statement.query([seqnum_id.to_string()])?;
        let row = rows.next()?.map(audit_row).transpose()?;
        Ok(row.as_ref().and_then(Seal::of))
    }
}

impl Write<'_> {
    /// Keeps a checkpoint. One of the same row stays: nobody needs two.
    pub fn keep_checkpoint(&mut self, checkpoint: &StoredCheckpoint) -> Result<()> {
        self.prepare(
            "INSERT INTO audit_checkpoints (tip, made, checkpoint) VALUES (?1, ?2, ?3)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            i64::try_from(checkpoint.row).unwrap_or(i64::MAX),
            to_sql(checkpoint.made),
            checkpoint.bytes
        ])?;
        Ok(())
    }

    /// Appends a row and answers the new end of the log.
    ///
    /// # Errors
    /// [`Error::AuditRow`] if it is longer than [`AUDIT_ROW_BYTES_MAX`].
    pub fn append_audit(&mut self, entry: Entry) -> Result<Tip> {
        let bytes = entry.bytes();
        if bytes > AUDIT_ROW_BYTES_MAX {
            return Err(Error::AuditRow { bytes });
        }
        let Row { id, entry, previous, hash } = append(self.audit_tip()?, entry);
        let json = |error| Error::corrupt("audit_log", error);
        self.prepare(
            "INSERT INTO audit_log
             (id, at, actor, evidence, approvals, action, subject, details, previous, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            i64::try_from(id).unwrap_or(i64::MAX),
            to_sql(entry.at),
            entry.actor,
            entry.evidence,
            serde_json::to_string(&entry.approvals).map_err(json)?,
            entry.action,
            entry.subject,
            serde_json::to_string(&entry.details).map_err(json)?,
            previous.as_bytes(),
            hash.as_bytes(),
        ])?;
        Ok(Tip { id, hash })
    }
}

fn checkpoint(row: &SqlRow<'_>) -> rusqlite::Result<StoredCheckpoint> {
    Ok(StoredCheckpoint {
        row: row.get::<_, i64>(0)?.unsigned_abs(),
        made: millis(row.get(1)?),
        bytes: row.get(2)?,
    })
}

fn audit_row(row: &SqlRow<'_>) -> Result<Row> {
    let json = |error| Error::corrupt("audit_log", error);
    Ok(Row {
        id: row.get::<_, i64>(0)?.unsigned_abs(),
        entry: Entry {
            at: millis(row.get(1)?),
            actor: row.get(2)?,
            evidence: row.get(3)?,
            approvals: serde_json::from_str(&row.get::<_, String>(4)?).map_err(json)?,
            action: row.get(5)?,
            subject: row.get(6)?,
            details: serde_json::from_str(&row.get::<_, String>(7)?).map_err(json)?,
        },
        previous: sha256(&row.get::<_, Vec<u8>>(8)?)?,
        hash: sha256(&row.get::<_, Vec<u8>>(9)?)?,
    })
}

fn sha256(bytes: &[u8]) -> Result<Sha256> {
    Sha256::try_from(bytes).map_err(|error| Error::corrupt("audit_log", error))
}
