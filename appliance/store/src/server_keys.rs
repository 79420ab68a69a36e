//! Keys of this box and key documents of other servers.

use std::collections::BTreeMap;

use ruma::OwnedServerName;
use rusqlite::{OptionalExtension, Row, params};
use sallyport_core::{event::KeyDocument, time::Millis};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
};

/// A key of this box. The token holds the private half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnKey {
    /// The token's stable name of the key.
    pub name: String,
    /// What it is for, as `KeyRole` spells it.
    pub role: String,
    /// `ed25519` or `p256`.
    pub algorithm: String,
    /// The public half.
    pub public: Vec<u8>,
    /// When it was made or adopted.
    pub created: Millis,
    /// When it was replaced.
    pub retired: Option<Millis>,
    /// When its private half was destroyed.
    pub destroyed: Option<Millis>,
}

impl Read<'_> {
    /// The box's keys of a role, the newest first, those that were destroyed included.
    pub fn own_keys(&self, role: &str) -> Result<Vec<OwnKey>> {
        let mut statement = self.prepare(
            "SELECT name, role, algorithm, public, created, retired, destroyed FROM own_keys
             WHERE role = ?1 ORDER BY retired IS NOT NULL, created DESC, name",
        )?;
        let rows = statement.query_map([role], own_key)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// All keys of the box, the newest of each role first.
    pub fn all_own_keys(&self) -> Result<Vec<OwnKey>> {
        let mut statement = self.prepare(
            "SELECT name, role, algorithm, public, created, retired, destroyed FROM own_keys
             ORDER BY role, retired IS NOT NULL, created DESC, name",
        )?;
        let rows = statement.query_map([], own_key)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The key documents of all other servers.
    pub fn server_keys(&self) -> Result<BTreeMap<OwnedServerName, KeyDocument>> {
        let mut statement = self.prepare("SELECT server, made, json FROM server_keys")?;
        let mut rows = statement.query([])?;
        let mut documents = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let server = OwnedServerName::try_from(row.get::<_, String>(0)?)
                .map_err(|error| Error::corrupt("server_keys", error))?;
            let json: String = row.get(2)?;
            let document = KeyDocument::verify(&json, &server, millis(row.get(1)?))
                .map_err(|error| Error::corrupt("server_keys", error))?;
            documents.insert(server, document);
        }
        Ok(documents)
    }
}

impl Write<'_> {
    /// Notes a key of this box.
    pub fn insert_own_key(&mut self, key: &OwnKey) -> Result<()> {
        self.prepare(
            "INSERT INTO own_keys (name, role, algorithm, public, created, retired, destroyed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            key.name,
            key.role,
            key.algorithm,
            key.public,
            number(key.created),
            key.retired.map(number),
            key.destroyed.map(number)
        ])?;
        Ok(())
    }

    /// Notes that a key was replaced at this time. One that was replaced before keeps its time.
    pub fn retire_own_key(&mut self, name: &str, at: Millis) -> Result<()> {
        self.prepare("UPDATE own_keys SET retired = ?2 WHERE name = ?1 AND retired IS NULL")?
            .execute(params![name, number(at)])?;
        Ok(())
    }

    /// Notes that the private half of a key is no more, nor that of the hybrid key that goes with it.
    pub fn note_destroyed_key(&mut self, name: &str, at: Millis) -> Result<()> {
        self.prepare("UPDATE own_keys SET destroyed = ?2 WHERE name = ?1 AND destroyed IS NULL")?
            .execute(params![name, number(at)])?;
        self.delete_hybrid_key(name)
    }

    /// Keeps the key document of another server, unless a newer one is here.
    pub fn keep_server_keys(&mut self, document: &KeyDocument) -> Result<()> {
        let made: Option<i64> = self
            .prepare("SELECT made FROM server_keys WHERE server = ?1")?
            .query_row([document.server_name().as_str()], |row| row.get(0))
            .optional()?;
        if made.is_some_and(|made| millis(made) >= document.made()) {
            return Ok(());
        }
        self.prepare(
            "INSERT INTO server_keys (server, made, json) VALUES (?1, ?2, ?3)
             ON CONFLICT (server) DO UPDATE SET made = excluded.made, json = excluded.json",
        )?
        .execute(params![
            document.server_name().as_str(),
            number(document.made()),
            document.json()
        ])?;
        Ok(())
    }
}

fn own_key(row: &Row<'_>) -> rusqlite::Result<OwnKey> {
    Ok(OwnKey {
        name: row.get(0)?,
        role: row.get(1)?,
        algorithm: row.get(2)?,
        public: row.get(3)?,
        created: millis(row.get(4)?),
        retired: row.get::<_, Option<i64>>(5)?.map(millis),
        destroyed: row.get::<_, Option<i64>>(6)?.map(millis),
    })
}

fn millis(number: i64) -> Millis {
    Millis(number.unsigned_abs())
}

fn number(time: Millis) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}
