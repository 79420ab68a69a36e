//! Accounts of this box.

use ruma::{OwnedUserId, UserId};
use rusqlite::{OptionalExtension, params};
use sallyport_core::time::Millis;

use crate::{
    error::Result,
    pool::{Read, Write},
    value::{millis, to_sql},
};

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The Matrix user id.
    pub user_id: OwnedUserId,
    /// The password's hash as a PHC string; `None` if the account has no password (yet).
    pub password_hash: Option<String>,
    /// Locked accounts keep their sessions but may not use them.
    pub locked: bool,
    /// Deactivated accounts are gone for good; their names are not given out again.
    pub deactivated: bool,
    /// When it was made.
    pub created: Millis,
}

impl Read<'_> {
    /// An account of this box, also if it is locked or deactivated.
    pub fn user(&self, user_id: &UserId) -> Result<Option<User>> {
        let mut statement = self.prepare(
            "SELECT password_hash, locked, deactivated, created FROM users WHERE user_id = ?1",
        )?;
        let user = statement.query_row([user_id.as_str()], |row| {
            Ok(User {
                user_id: user_id.to_owned(),
                password_hash: row.get(0)?,
                locked: row.get(1)?,
                deactivated: row.get(2)?,
                created: millis(row.get(3)?),
            })
        });
        Ok(user.optional()?)
    }

    /// Whether an account of this name was ever made.
    pub fn user_exists(&self, user_id: &UserId) -> Result<bool> {
        Ok(self.prepare("SELECT 1 FROM users WHERE user_id = ?1")?.exists([user_id.as_str()])?)
    }

    /// How many accounts there are, deactivated ones not counted.
    pub fn user_count(&self) -> Result<u64> {
        let mut statement = self.prepare("SELECT count(*) FROM users WHERE deactivated = 0")?;
        let count: i64 = statement.query_row([], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }
}

impl Write<'_> {
    /// Makes an account without a password. Answers `false` if the name was taken before.
    pub fn create_user(&mut self, user_id: &UserId, now: Millis) -> Result<bool> {
        let mut statement = self.prepare(
            "INSERT INTO users (user_id, created) VALUES (?1, ?2) ON CONFLICT (user_id) DO NOTHING",
        )?;
        let made = statement.execute(params![user_id.as_str(), to_sql(now)])? > 0;
        if made {
            self.set_directory_words(user_id, None)?;
        }
        Ok(made)
    }

    /// Sets the hash that log-ins are compared with; `None` makes log-ins by password impossible.
    pub fn set_password_hash(&mut self, user_id: &UserId, hash: Option<&str>) -> Result<()> {
        self.prepare("UPDATE users SET password_hash = ?2 WHERE user_id = ?1")?
            .execute(params![user_id.as_str(), hash])?;
        Ok(())
    }

    /// Locks or unlocks an account
    /// ([account locking](https://spec.matrix.org/v1.16/client-server-api/#account-locking)).
    pub fn set_user_locked(&mut self, user_id: &UserId, locked: bool) -> Result<()> {
        self.prepare("UPDATE users SET locked = ?2 WHERE user_id = ?1")?
            .execute(params![user_id.as_str(), locked])?;
        self.touch_sessions();
        self.touch_user(user_id);
        Ok(())
    }

    /// Ends an account: no password, no devices, no keys, no private data. What it said in rooms stays.
    pub fn deactivate_user(&mut self, user_id: &UserId) -> Result<()> {
        self.prepare("UPDATE users SET deactivated = 1, password_hash = NULL WHERE user_id = ?1")?
            .execute([user_id.as_str()])?;
        self.delete_devices(user_id, None)?;
        self.delete_cross_signing(user_id)?;
        for sql in [
            "DELETE FROM profile_fields WHERE user_id = ?1",
            "DELETE FROM user_directory WHERE user_id = ?1",
            "DELETE FROM account_data WHERE user_id = ?1",
            "DELETE FROM filters WHERE user_id = ?1",
            "DELETE FROM pushers WHERE user_id = ?1",
            "UPDATE backup_versions SET deleted = 1 WHERE user_id = ?1",
        ] {
            self.prepare(sql)?.execute([user_id.as_str()])?;
        }
        Ok(())
    }
}
