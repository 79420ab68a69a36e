//! Server-side key backups: room keys that clients encrypted for themselves.
//!
//! [Server-side key backups](https://spec.matrix.org/v1.16/client-server-api/#server-side-key-backups).

use ruma::{OwnedRoomId, RoomId, UserId};
use rusqlite::{OptionalExtension, Row, params, params_from_iter, types::Value};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
};

/// A version of a user's backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupVersion {
    /// Its number; from 1, never used twice.
    pub version: i64,
    /// The algorithm.
    pub algorithm: String,
    /// What the algorithm needs, as JSON.
    pub auth_data: String,
    /// How often its keys have changed.
    pub etag: i64,
    /// How many keys it has.
    pub count: i64,
}

/// A room key in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupKey {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The megolm session.
    pub session_id: String,
    /// The first message that the key decrypts.
    pub first_index: i64,
    /// How often the key was forwarded.
    pub forwarded: i64,
    /// Whether the device that made the backup verified the device that the key comes from.
    pub verified: bool,
    /// What only the user's clients can decrypt, as JSON.
    pub session_data: String,
}

impl BackupKey {
    /// Whether this key takes the place of another one of the same session
    /// ([Client-Server API](https://spec.matrix.org/v1.16/client-server-api/#put_matrixclientv3room_keyskeysroomidsessionid)).
    fn replaces(&self, old: &Self) -> bool {
        if self.verified != old.verified {
            return self.verified;
        }
        (self.first_index, self.forwarded) < (old.first_index, old.forwarded)
    }
}

/// The state of a backup after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupState {
    /// How often its keys have changed.
    pub etag: i64,
    /// How many keys it has.
    pub count: i64,
}

/// What came of a change to a backup's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupChange {
    /// Done.
    Done(BackupState),
    /// The user has no backup of this version.
    NoSuchVersion,
    /// This version is not the newest, which is this one.
    NotCurrent(i64),
}

const VERSIONS: &str = "SELECT version, algorithm, auth_data, etag, count FROM backup_versions";
const KEYS: &str = "SELECT room_id, session_id, first_index, forwarded, verified, session_data
                    FROM backup_keys";

impl Read<'_> {
    /// A version of a user's backup, or the newest with `None`.
    pub fn backup(&self, user_id: &UserId, version: Option<i64>) -> Result<Option<BackupVersion>> {
        let mut statement = self.prepare(&format!(
            "{VERSIONS} WHERE user_id = ?1 AND deleted = 0 AND (?2 IS NULL OR version = ?2)
             ORDER BY version DESC LIMIT 1"
        ))?;
        let backup = statement.query_row(params![user_id.as_str(), version], |row| {
            Ok(BackupVersion {
                version: row.get(0)?,
                algorithm: row.get(1)?,
                auth_data: row.get(2)?,
                etag: row.get(3)?,
                count: row.get(4)?,
            })
        });
        Ok(backup.optional()?)
    }

    /// Keys of a backup: all, those of a room, or the one of a session.
    pub fn backup_keys(
        &self,
        user_id: &UserId,
        version: i64,
        room_id: Option<&RoomId>,
        session_id: Option<&str>,
    ) -> Result<Vec<BackupKey>> {
        let (which, parameters) = selection(user_id, version, room_id, session_id);
        let mut statement =
            self.prepare(&format!("{KEYS} WHERE {which} ORDER BY room_id, session_id"))?;
        let rows = statement.query_map(params_from_iter(parameters), |row| Ok(parse_key(row)))?;
        rows.map(|row| row?).collect()
    }

    fn backup_key(
        &self,
        user_id: &UserId,
        version: i64,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<BackupKey>> {
        let keys = self.backup_keys(user_id, version, Some(room_id), Some(session_id))?;
        Ok(keys.into_iter().next())
    }
}

impl Write<'_> {
    /// Makes a new version of a user's backup and answers its number.
    pub fn create_backup(
        &mut self,
        user_id: &UserId,
        algorithm: &str,
        auth_data: &str,
    ) -> Result<i64> {
        Ok(self
            .prepare(
                "INSERT INTO backup_versions (user_id, version, algorithm, auth_data)
                 SELECT ?1, coalesce(max(version), 0) + 1, ?2, ?3 FROM backup_versions
                 WHERE user_id = ?1
                 RETURNING version",
            )?
            .query_row([user_id.as_str(), algorithm, auth_data], |row| row.get(0))?)
    }

    /// Replaces what the algorithm needs. Answers `false` if there is no such version.
    pub fn set_backup_auth_data(
        &mut self,
        user_id: &UserId,
        version: i64,
        auth_data: &str,
    ) -> Result<bool> {
        let changed = self
            .prepare(
                "UPDATE backup_versions SET auth_data = ?3
                 WHERE user_id = ?1 AND version = ?2 AND deleted = 0",
            )?
            .execute(params![user_id.as_str(), version, auth_data])?;
        Ok(changed > 0)
    }

    /// Deletes a version of a user's backup. Its keys go with [`Write::purge_backups`].
    /// Answers `false` if there never was such a version.
    pub fn delete_backup(&mut self, user_id: &UserId, version: i64) -> Result<bool> {
        let known = self
            .prepare("UPDATE backup_versions SET deleted = 1 WHERE user_id = ?1 AND version = ?2")?
            .execute(params![user_id.as_str(), version])?;
        Ok(known > 0)
    }

    /// Removes at most `limit` keys of a user's deleted backups and answers how many: until it is 0, call again.
    pub fn purge_backups(&mut self, user_id: &UserId, limit: u32) -> Result<usize> {
        Ok(self
            .prepare(
                "DELETE FROM backup_keys WHERE user_id = ?1 AND (version, room_id, session_id) IN (
                     SELECT k.version, k.room_id, k.session_id FROM backup_keys k
                     JOIN backup_versions v ON v.user_id = k.user_id AND v.version = k.version
                     WHERE k.user_id = ?1 AND v.deleted = 1 LIMIT ?2)",
            )?
            .execute(params![user_id.as_str(), limit])?)
    }

    /// Stores keys in the newest version, each if there is none of its session or a worse one.
    pub fn put_backup_keys(
        &mut self,
        user_id: &UserId,
        version: i64,
        keys: &[BackupKey],
    ) -> Result<BackupChange> {
        let Some(backup) = self.backup(user_id, None)? else {
            return Ok(BackupChange::NoSuchVersion);
        };
        if backup.version != version {
            return Ok(BackupChange::NotCurrent(backup.version));
        }
        let (mut added, mut changed) = (0, 0);
        for key in keys {
            match self.backup_key(user_id, version, &key.room_id, &key.session_id)? {
                None => added += 1,
                Some(old) if key.replaces(&old) => {}
                Some(_) => continue,
            }
            changed += 1;
            self.prepare(
                "INSERT INTO backup_keys (user_id, version, room_id, session_id, first_index,
                     forwarded, verified, session_data)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET
                     first_index = excluded.first_index, forwarded = excluded.forwarded,
                     verified = excluded.verified, session_data = excluded.session_data",
            )?
            .execute(params![
                user_id.as_str(),
                version,
                key.room_id.as_str(),
                key.session_id,
                key.first_index,
                key.forwarded,
                key.verified,
                key.session_data
            ])?;
        }
        self.count_backup(user_id, version, added, changed > 0)
    }

    /// Deletes keys of a version: all, those of a room, or the one of a session.
    pub fn delete_backup_keys(
        &mut self,
        user_id: &UserId,
        version: i64,
        room_id: Option<&RoomId>,
        session_id: Option<&str>,
    ) -> Result<BackupChange> {
        if self.backup(user_id, Some(version))?.is_none() {
            return Ok(BackupChange::NoSuchVersion);
        }
        let (which, parameters) = selection(user_id, version, room_id, session_id);
        let deleted = self
            .prepare(&format!("DELETE FROM backup_keys WHERE {which}"))?
            .execute(params_from_iter(parameters))?;
        let deleted = i64::try_from(deleted).unwrap_or(i64::MAX);
        self.count_backup(user_id, version, -deleted, deleted > 0)
    }

    fn count_backup(
        &mut self,
        user_id: &UserId,
        version: i64,
        added: i64,
        changed: bool,
    ) -> Result<BackupChange> {
        let state = self
            .prepare(
                "UPDATE backup_versions SET count = count + ?3, etag = etag + ?4
                 WHERE user_id = ?1 AND version = ?2 RETURNING etag, count",
            )?
            .query_row(params![user_id.as_str(), version, added, changed], |row| {
                Ok(BackupState { etag: row.get(0)?, count: row.get(1)? })
            })?;
        Ok(BackupChange::Done(state))
    }
}

/// The condition that selects keys of a backup, and its parameters.
fn selection(
    user_id: &UserId,
    version: i64,
    room_id: Option<&RoomId>,
    session_id: Option<&str>,
) -> (&'static str, Vec<Value>) {
    let text = |text: &str| Value::Text(text.to_owned());
    let mut parameters = vec![text(user_id.as_str()), Value::Integer(version)];
    let Some(room_id) = room_id else {
        return ("user_id = ?1 AND version = ?2", parameters);
    };
    parameters.push(text(room_id.as_str()));
    // Sessions are only named together with their room.
    let Some(session_id) = session_id else {
        return ("user_id = ?1 AND version = ?2 AND room_id = ?3", parameters);
    };
    parameters.push(text(session_id));
    ("user_id = ?1 AND version = ?2 AND room_id = ?3 AND session_id = ?4", parameters)
}

fn parse_key(row: &Row<'_>) -> Result<BackupKey> {
    let room_id: String = row.get(0)?;
    Ok(BackupKey {
        room_id: OwnedRoomId::try_from(room_id)
            .map_err(|error| Error::corrupt("backup_keys", error))?,
        session_id: row.get(1)?,
        first_index: row.get(2)?,
        forwarded: row.get(3)?,
        verified: row.get(4)?,
        session_data: row.get(5)?,
    })
}
