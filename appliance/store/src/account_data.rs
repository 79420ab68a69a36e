//! What clients keep for their user: account data, filters and pushers.
//!
//! [Client config](https://spec.matrix.org/v1.16/client-server-api/#client-config).

use ruma::{DeviceId, OwnedRoomId, RoomId, UserId};
use rusqlite::{OptionalExtension, params};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    value::count,
};

/// One piece of account data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountData {
    /// The room it belongs to; `None` if it is global.
    pub room_id: Option<OwnedRoomId>,
    /// Its event type.
    pub kind: String,
    /// Its content as JSON.
    pub content: String,
}

/// A pusher as its client set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPusher {
    /// The application.
    pub app_id: String,
    /// The key that identifies it within the application.
    pub pushkey: String,
    /// The whole pusher as JSON.
    pub content: String,
}

impl Read<'_> {
    /// The content of one piece of account data; global without a room.
    pub fn account_data(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        kind: &str,
    ) -> Result<Option<String>> {
        let mut statement = self.prepare(
            "SELECT content FROM account_data WHERE user_id = ?1 AND room_id = ?2 AND type = ?3",
        )?;
        let room_id = room_id.map_or("", RoomId::as_str);
        Ok(statement.query_row([user_id.as_str(), room_id, kind], |row| row.get(0)).optional()?)
    }

    /// All account data of a room.
    pub fn room_account_data(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Vec<AccountData>> {
        self.list_account_data(
            "SELECT room_id, type, content FROM account_data
             WHERE user_id = ?1 AND room_id = ?2 ORDER BY type",
            params![user_id.as_str(), room_id.as_str()],
        )
    }

    /// Account data of a user, global and of all rooms, set after `since` and up to `to`.
    pub fn account_data_changes(
        &self,
        user_id: &UserId,
        since: i64,
        to: i64,
    ) -> Result<Vec<AccountData>> {
        self.list_account_data(
            "SELECT room_id, type, content FROM account_data
             WHERE user_id = ?1 AND position > ?2 AND position <= ?3 ORDER BY position",
            params![user_id.as_str(), since, to],
        )
    }

    fn list_account_data(
        &self,
        sql: &str,
        parameters: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<AccountData>> {
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query(parameters)?;
        let mut data = Vec::new();
        while let Some(row) = rows.next()? {
            let room_id: String = row.get(0)?;
            let room_id = (!room_id.is_empty())
                .then(|| OwnedRoomId::try_from(room_id))
                .transpose()
                .map_err(|error| Error::corrupt("account_data", error))?;
            data.push(AccountData { room_id, kind: row.get(1)?, content: row.get(2)? });
        }
        Ok(data)
    }

    /// How many pieces of account data a user has.
    pub fn account_data_count(&self, user_id: &UserId) -> Result<usize> {
        let mut statement = self.prepare("SELECT count(*) FROM account_data WHERE user_id = ?1")?;
        Ok(count(statement.query_row([user_id.as_str()], |row| row.get(0))?))
    }

    /// A filter that the user stored, as JSON.
    pub fn filter(&self, user_id: &UserId, filter_id: i64) -> Result<Option<String>> {
        let mut statement =
            self.prepare("SELECT content FROM filters WHERE user_id = ?1 AND filter_id = ?2")?;
        Ok(statement
            .query_row(params![user_id.as_str(), filter_id], |row| row.get(0))
            .optional()?)
    }

    /// The pushers of a user.
    pub fn pushers(&self, user_id: &UserId) -> Result<Vec<StoredPusher>> {
        let mut statement =
            self.prepare("SELECT app_id, pushkey, content FROM pushers WHERE user_id = ?1")?;
        let rows = statement.query_map([user_id.as_str()], |row| {
            Ok(StoredPusher { app_id: row.get(0)?, pushkey: row.get(1)?, content: row.get(2)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

impl Write<'_> {
    /// Sets one piece of account data; global without a room.
    pub fn set_account_data(
        &mut self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        kind: &str,
        content: &str,
    ) -> Result<()> {
        let position = self.next_position();
        self.prepare(
            "INSERT INTO account_data (user_id, room_id, type, content, position)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (user_id, room_id, type)
             DO UPDATE SET content = excluded.content, position = excluded.position",
        )?
        .execute(params![
            user_id.as_str(),
            room_id.map_or("", RoomId::as_str),
            kind,
            content,
            position
        ])?;
        self.touch_user(user_id);
        Ok(())
    }

    /// Stores a filter and answers its id: that of an equal one if there is one, `None` beyond `max` filters.
    pub fn add_filter(&mut self, user_id: &UserId, content: &str, max: i64) -> Result<Option<i64>> {
        let known = self
            .prepare("SELECT filter_id FROM filters WHERE user_id = ?1 AND content = ?2")?
            .query_row([user_id.as_str(), content], |row| row.get(0))
            .optional()?;
        if known.is_some() {
            return Ok(known);
        }
        let next: i64 = self
            .prepare("SELECT coalesce(max(filter_id), 0) + 1 FROM filters WHERE user_id = ?1")?
            .query_row([user_id.as_str()], |row| row.get(0))?;
        if next > max {
            return Ok(None);
        }
        self.prepare("INSERT INTO filters (user_id, filter_id, content) VALUES (?1, ?2, ?3)")?
            .execute(params![user_id.as_str(), next, content])?;
        Ok(Some(next))
    }

    /// Sets a pusher; it goes with the device that set it. Beyond `max` pushers the answer is `false`.
    pub fn set_pusher(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        pusher: &StoredPusher,
        max: usize,
    ) -> Result<bool> {
        let pushers = self.pushers(user_id)?;
        let known = pushers
            .iter()
            .any(|known| known.app_id == pusher.app_id && known.pushkey == pusher.pushkey);
        if !known && pushers.len() >= max {
            return Ok(false);
        }
        self.prepare(
            "INSERT INTO pushers (user_id, app_id, pushkey, device_id, content)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (user_id, app_id, pushkey)
             DO UPDATE SET device_id = excluded.device_id, content = excluded.content",
        )?
        .execute([
            user_id.as_str(),
            &pusher.app_id,
            &pusher.pushkey,
            device_id.as_str(),
            &pusher.content,
        ])?;
        Ok(true)
    }

    /// Deletes a pusher.
    pub fn delete_pusher(&mut self, user_id: &UserId, app_id: &str, pushkey: &str) -> Result<()> {
        self.prepare("DELETE FROM pushers WHERE user_id = ?1 AND app_id = ?2 AND pushkey = ?3")?
            .execute([user_id.as_str(), app_id, pushkey])?;
        Ok(())
    }
}
