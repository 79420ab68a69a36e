//! Hybrid encryption keys: each belongs to a courier encryption key, with which it is replaced and destroyed.

use rusqlite::{OptionalExtension, params};

use crate::{
    error::Result,
    pool::{Read, Write},
};

/// An X-Wing key. Its seed is wrapped by a key of the token that wraps nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HybridKey {
    /// Name of the courier encryption key that it goes with.
    pub key: String,
    /// The public half.
    pub public: Vec<u8>,
    /// Name of the token's key that wraps the seed.
    pub storage: String,
    /// The wrapped seed.
    pub wrapped: Vec<u8>,
}

impl Read<'_> {
    /// The hybrid key that goes with a courier encryption key.
    pub fn hybrid_key(&self, key: &str) -> Result<Option<HybridKey>> {
        let mut statement =
            self.prepare("SELECT key, public, storage, wrapped FROM hybrid_keys WHERE key = ?1")?;
        let found = statement.query_row([key], |row| {
            Ok(HybridKey {
                key: row.get(0)?,
                public: row.get(1)?,
                storage: row.get(2)?,
                wrapped: row.get(3)?,
            })
        });
        Ok(found.optional()?)
    }
}

impl Write<'_> {
    /// Notes a hybrid key. If the courier encryption key has one already, that stays, and the answer is `false`.
    pub fn insert_hybrid_key(&mut self, key: &HybridKey) -> Result<bool> {
        let inserted = self
            .prepare(
                "INSERT INTO hybrid_keys (key, public, storage, wrapped) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![key.key, key.public, key.storage, key.wrapped])?;
        Ok(inserted > 0)
    }

    /// Forgets the hybrid key that goes with a courier encryption key.
    pub(crate) fn delete_hybrid_key(&mut self, key: &str) -> Result<()> {
        self.prepare("DELETE FROM hybrid_keys WHERE key = ?1")?.execute([key])?;
        Ok(())
    }
}
