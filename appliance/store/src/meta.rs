//! What the box is: its server name, its incarnation, the stream position and the newest time that it saw.

use rusqlite::{OptionalExtension, params};
use sallyport_core::{incarnation::Incarnation, time::Millis};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
};

impl Read<'_> {
    /// The position of the newest committed change that `/sync` can show.
    pub fn position(&self) -> Result<i64> {
        Ok(self
            .prepare("SELECT position FROM stream WHERE only_row = 1")?
            .query_row([], |row| row.get(0))?)
    }

    /// The incarnation of this database.
    pub fn incarnation(&self) -> Result<Incarnation> {
        let bytes = self.meta("incarnation")?.unwrap_or_default();
        let array = <[u8; 16]>::try_from(bytes.as_slice())
            .map_err(|_| Error::corrupt("meta", "the incarnation is not 16 bytes"))?;
        Ok(Incarnation(array))
    }

    /// The newest time (milliseconds since the epoch) that was stored with [`Write::note_time`].
    pub fn last_time(&self) -> Result<Option<Millis>> {
        let Some(bytes) = self.meta("last_time")? else { return Ok(None) };
        let array = <[u8; 8]>::try_from(bytes.as_slice())
            .map_err(|_| Error::corrupt("meta", "last_time is not 8 bytes"))?;
        Ok(Some(Millis(u64::from_be_bytes(array))))
    }

    /// A single value of the box.
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self
            .prepare("SELECT value FROM meta WHERE key = ?1")?
            .query_row([key], |row| row.get(0))
            .optional()?)
    }
}

impl Write<'_> {
    /// Stores a single value of the box.
    pub fn set_meta(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.prepare(
            "INSERT INTO meta (key, value) VALUES (?1, ?2)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![key, value])?;
        Ok(())
    }

    /// Remembers the newest time seen, so that a clock that went backwards is noticed at the next start.
    pub fn note_time(&mut self, now: Millis) -> Result<()> {
        self.set_meta("last_time", &now.0.to_be_bytes())
    }
}
