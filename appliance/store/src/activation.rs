//! Activation codes, as hashes.

use ruma::{OwnedUserId, UserId};
use rusqlite::{OptionalExtension, params};
use sallyport_core::{digest::Sha256, time::Millis};

use crate::{
    error::Result,
    pool::{Read, Write},
    value::{to_sql, user_id as parse_user_id},
};

impl Read<'_> {
    /// The account that a code is for, if it may be used now.
    pub fn activation_code_owner(&self, hash: Sha256, now: Millis) -> Result<Option<OwnedUserId>> {
        let mut statement = self.prepare(
            "SELECT user_id FROM activation_codes JOIN users USING (user_id)
             WHERE hash = ?1 AND expires > ?2 AND NOT locked AND NOT deactivated",
        )?;
        let owner = statement
            .query_row(params![hash.as_bytes(), to_sql(now)], |row| row.get::<_, String>(0))
            .optional()?;
        owner.map(|user_id| parse_user_id("activation_codes", &user_id)).transpose()
    }

    /// Active accounts from rosters that nobody has activated yet.
    pub fn waiting_accounts(&self) -> Result<Vec<OwnedUserId>> {
        let mut statement = self.prepare(
            "SELECT user_id FROM roster_accounts JOIN users USING (user_id)
             WHERE password_hash IS NULL AND NOT locked AND NOT deactivated ORDER BY user_id",
        )?;
        let mut rows = statement.query([])?;
        let mut accounts = Vec::new();
        while let Some(row) = rows.next()? {
            accounts.push(parse_user_id("roster_accounts", &row.get::<_, String>(0)?)?);
        }
        Ok(accounts)
    }
}

impl Write<'_> {
    /// Gives an account a code; one that it had before ends.
    pub fn set_activation_code(
        &mut self,
        user_id: &UserId,
        hash: Sha256,
        expires: Millis,
    ) -> Result<()> {
        self.prepare(
            "INSERT INTO activation_codes (hash, user_id, expires) VALUES (?1, ?2, ?3)
             ON CONFLICT (user_id) DO UPDATE SET hash = excluded.hash, expires = excluded.expires",
        )?
        .execute(params![hash.as_bytes(), user_id.as_str(), to_sql(expires)])?;
        Ok(())
    }

    /// Takes a code out of use and answers whose it was, if it may be used now. Codes that have expired go as well.
    pub fn redeem_activation_code(
        &mut self,
        hash: Sha256,
        now: Millis,
    ) -> Result<Option<OwnedUserId>> {
        let owner = self.activation_code_owner(hash, now)?;
        if let Some(user_id) = &owner {
            self.delete_activation_code(user_id)?;
        }
        self.prepare("DELETE FROM activation_codes WHERE expires <= ?1")?.execute([to_sql(now)])?;
        Ok(owner)
    }

    /// Ends the code of an account, if it has one.
    pub fn delete_activation_code(&mut self, user_id: &UserId) -> Result<()> {
        self.prepare("DELETE FROM activation_codes WHERE user_id = ?1")?
            .execute([user_id.as_str()])?;
        Ok(())
    }
}
