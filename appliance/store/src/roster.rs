//! What rosters said: the accounts that they made, and which roster was the last.

use ruma::UserId;
use rusqlite::{OptionalExtension, params};
use sallyport_core::{
    admin::{AccountCounts, RosterState},
    digest::Sha256,
    roster::{Account, AccountState, Current, Head},
    time::Millis,
};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    value::{millis, to_sql},
};

impl Read<'_> {
    /// The last roster whose import was finished.
    pub fn last_roster(&self) -> Result<Option<RosterState>> {
        let last = self
            .prepare("SELECT serial, subject, imported FROM rosters ORDER BY serial DESC LIMIT 1")?
            .query_row([], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get(2)?))
            })
            .optional()?;
        let Some((serial, subject, imported)) = last else { return Ok(None) };
        Ok(Some(RosterState {
            serial: serial.unsigned_abs(),
            subject: Sha256::try_from(subject.as_slice())
                .map_err(|error| Error::corrupt("rosters", error))?,
            imported_at: millis(imported),
        }))
    }

    /// All accounts that rosters made, as they are now.
    pub fn roster_accounts(&self) -> Result<Vec<Current>> {
        let mut statement = self.prepare(
            "SELECT account, locked OR deactivated,
                    serial <= (SELECT coalesce(max(serial), -1) FROM rosters)
             FROM roster_accounts JOIN users USING (user_id)",
        )?;
        let mut rows = statement.query([])?;
        let mut accounts = Vec::new();
        while let Some(row) = rows.next()? {
            let mut account = parse(&row.get::<_, String>(0)?)?;
            account.state = state(row.get(1)?);
            accounts.push(Current { account, settled: row.get(2)? });
        }
        Ok(accounts)
    }

    /// What the last roster that named an account said of it.
    pub fn roster_account(&self, user_id: &UserId) -> Result<Option<Account>> {
        let account = self
            .prepare("SELECT account FROM roster_accounts WHERE user_id = ?1")?
            .query_row([user_id.as_str()], |row| row.get::<_, String>(0))
            .optional()?;
        account.map(|json| parse(&json)).transpose()
    }

    /// How many accounts rosters made.
    pub fn roster_account_counts(&self) -> Result<AccountCounts> {
        let mut statement = self.prepare(
            "SELECT count(*) FILTER (WHERE NOT (locked OR deactivated) AND password_hash IS NOT NULL),
                    count(*) FILTER (WHERE locked OR deactivated),
                    count(*) FILTER (WHERE NOT (locked OR deactivated) AND password_hash IS NULL)
             FROM roster_accounts JOIN users USING (user_id)",
        )?;
        Ok(statement.query_row([], |row| {
            let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
            Ok(AccountCounts { active: count(0)?, locked: count(1)?, waiting: count(2)? })
        })?)
    }
}

impl Write<'_> {
    /// Remembers what a roster says of an account, which must exist. `serial` is that of the roster if it makes the
    /// account; `None` keeps the number of the one that did.
    pub fn set_roster_account(
        &mut self,
        user_id: &UserId,
        account: &Account,
        serial: Option<u64>,
    ) -> Result<()> {
        let json = serde_json::to_string(account)
            .map_err(|error| Error::corrupt("roster_accounts", error))?;
        self.prepare(
            "INSERT INTO roster_accounts (user_id, account, serial) VALUES (?1, ?2, coalesce(?3, 0))
             ON CONFLICT (user_id) DO UPDATE
             SET account = excluded.account, serial = coalesce(?3, serial)",
        )?
        .execute(params![user_id.as_str(), json, serial.map(serial_to_sql)])?;
        Ok(())
    }

    /// Remembers that the import of a roster is finished.
    pub fn finish_roster(
        &mut self,
        head: &Head,
        subject: Sha256,
        signer: &str,
        now: Millis,
    ) -> Result<()> {
        let json = serde_json::to_string(head).map_err(|error| Error::corrupt("rosters", error))?;
        self.prepare(
            "INSERT INTO rosters (serial, subject, head, signer, imported) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            serial_to_sql(head.serial),
            subject.as_bytes(),
            json,
            signer,
            to_sql(now)
        ])?;
        Ok(())
    }
}

fn serial_to_sql(serial: u64) -> i64 {
    i64::try_from(serial).unwrap_or(i64::MAX)
}

fn parse(json: &str) -> Result<Account> {
    serde_json::from_str(json).map_err(|error| Error::corrupt("roster_accounts", error))
}

fn state(locked: bool) -> AccountState {
    if locked { AccountState::Locked } else { AccountState::Active }
}
