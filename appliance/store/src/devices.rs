//! Devices of accounts, and the record of whose devices or keys have changed.

use std::collections::BTreeSet;

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use rusqlite::{OptionalExtension, Row, params};
use sallyport_core::time::Millis;

use crate::{
    error::Result,
    pool::{Read, Write},
    value::{device_id, millis, to_sql, user_id as parse_user_id},
};

/// A device of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its id, unique within the account.
    pub device_id: OwnedDeviceId,
    /// The name that its user gave it.
    pub display_name: Option<String>,
    /// When it was made.
    pub created: Millis,
    /// When it was last heard of, to within some minutes.
    pub last_seen: Option<Millis>,
    /// The network address it was last heard from.
    pub last_address: Option<String>,
}

const DEVICES: &str =
    "SELECT device_id, display_name, created, last_seen, last_address FROM devices";

impl Read<'_> {
    /// All devices of an account, in the order of their ids.
    pub fn devices(&self, user_id: &UserId) -> Result<Vec<Device>> {
        let mut statement =
            self.prepare(&format!("{DEVICES} WHERE user_id = ?1 ORDER BY device_id"))?;
        let rows = statement.query_map([user_id.as_str()], parse_device)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// One device of an account.
    pub fn device(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Option<Device>> {
        let mut statement =
            self.prepare(&format!("{DEVICES} WHERE user_id = ?1 AND device_id = ?2"))?;
        let device = statement.query_row([user_id.as_str(), device_id.as_str()], parse_device);
        Ok(device.optional()?)
    }

    /// The ids of all devices of an account.
    pub fn device_ids(&self, user_id: &UserId) -> Result<Vec<OwnedDeviceId>> {
        let mut statement =
            self.prepare("SELECT device_id FROM devices WHERE user_id = ?1 ORDER BY device_id")?;
        let rows = statement.query_map([user_id.as_str()], |row| row.get::<_, String>(0))?;
        rows.map(|id| Ok(device_id(&id?))).collect()
    }

    /// Users, of this and other servers, whose devices or cross-signing keys changed after `since` and up to `to`.
    ///
    /// A user who changed again after `to` is not among them: that change is in the next answer.
    pub fn device_list_changes(&self, since: i64, to: i64) -> Result<BTreeSet<OwnedUserId>> {
        self.changed_users(
            "SELECT user_id FROM device_list_changes WHERE position > ?1 AND position <= ?2",
            params![since, to],
        )
    }

    /// Users whose keys this user has signed after `since` and up to `to`: the signer's own devices must ask again.
    pub fn signature_changes(
        &self,
        signer: &UserId,
        since: i64,
        to: i64,
    ) -> Result<BTreeSet<OwnedUserId>> {
        self.changed_users(
            "SELECT user_id FROM signature_changes
             WHERE signer = ?3 AND position > ?1 AND position <= ?2",
            params![since, to, signer.as_str()],
        )
    }

    fn changed_users(
        &self,
        sql: &str,
        parameters: &[&dyn rusqlite::ToSql],
    ) -> Result<BTreeSet<OwnedUserId>> {
        let mut statement = self.prepare(sql)?;
        let rows = statement.query_map(parameters, |row| row.get::<_, String>(0))?;
        rows.map(|id| parse_user_id("device_list_changes", &id?)).collect()
    }
}

impl Write<'_> {
    /// Names a device. Answers `false` if there is no such device.
    pub fn rename_device(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        display_name: Option<&str>,
    ) -> Result<bool> {
        let changed = self
            .prepare("UPDATE devices SET display_name = ?3 WHERE user_id = ?1 AND device_id = ?2")?
            .execute(params![user_id.as_str(), device_id.as_str(), display_name])?;
        if changed > 0 {
            self.note_device_change(user_id)?;
        }
        Ok(changed > 0)
    }

    /// Notes when and from where a device was heard of.
    pub fn note_device_seen(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        now: Millis,
        address: Option<&str>,
    ) -> Result<()> {
        self.prepare(
            "UPDATE devices SET last_seen = ?3, last_address = coalesce(?4, last_address)
             WHERE user_id = ?1 AND device_id = ?2",
        )?
        .execute(params![user_id.as_str(), device_id.as_str(), to_sql(now), address])?;
        Ok(())
    }

    /// Deletes devices (all of the account with `None`) with their sessions, keys, pushers and waiting messages.
    /// Answers how many there were.
    pub fn delete_devices(
        &mut self,
        user_id: &UserId,
        only: Option<&[OwnedDeviceId]>,
    ) -> Result<usize> {
        let ids = match only {
            Some(ids) => ids.to_vec(),
            None => self.device_ids(user_id)?,
        };
        let mut deleted = 0;
        for id in &ids {
            for sql in [
                "DELETE FROM device_keys WHERE user_id = ?1 AND device_id = ?2",
                "DELETE FROM key_signatures WHERE user_id = ?1 AND target = ?2",
                "DELETE FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2",
                "DELETE FROM issued_one_time_keys WHERE user_id = ?1 AND device_id = ?2",
                "DELETE FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2",
                "DELETE FROM to_device_inbox WHERE user_id = ?1 AND device_id = ?2",
                "DELETE FROM to_device_transactions WHERE user_id = ?1 AND device_id = ?2",
                "DELETE FROM pushers WHERE user_id = ?1 AND device_id = ?2",
            ] {
                self.prepare(sql)?.execute([user_id.as_str(), id.as_str()])?;
            }
            // Its tokens go with it.
            deleted += self
                .prepare("DELETE FROM devices WHERE user_id = ?1 AND device_id = ?2")?
                .execute([user_id.as_str(), id.as_str()])?;
        }
        if deleted > 0 {
            self.touch_sessions();
            self.note_device_change(user_id)?;
        }
        Ok(deleted)
    }

    /// Says that a user's devices or cross-signing keys have changed.
    ///
    /// Whoever shares a room with the user must look again: their long-polls are woken through the user's rooms.
    pub(crate) fn note_device_change(&mut self, user_id: &UserId) -> Result<()> {
        let position = self.next_position();
        self.prepare(
            "INSERT INTO device_list_changes (user_id, position) VALUES (?1, ?2)
             ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        )?
        .execute(params![user_id.as_str(), position])?;
        self.touch_user(user_id);
        for place in self.memberships_of(user_id)? {
            if place.membership == ruma::events::room::member::MembershipState::Join {
                self.touch_room(&place.room_id);
            }
        }
        Ok(())
    }

    /// Says that a user has signed another user's key.
    pub(crate) fn note_signature_change(
        &mut self,
        signer: &UserId,
        user_id: &UserId,
    ) -> Result<()> {
        let position = self.next_position();
        self.prepare(
            "INSERT INTO signature_changes (signer, user_id, position) VALUES (?1, ?2, ?3)
             ON CONFLICT (signer, user_id) DO UPDATE SET position = excluded.position",
        )?
        .execute(params![signer.as_str(), user_id.as_str(), position])?;
        self.touch_user(signer);
        Ok(())
    }
}

fn parse_device(row: &Row<'_>) -> rusqlite::Result<Device> {
    Ok(Device {
        device_id: device_id(&row.get::<_, String>(0)?),
        display_name: row.get(1)?,
        created: millis(row.get(2)?),
        last_seen: row.get::<_, Option<i64>>(3)?.map(millis),
        last_address: row.get(4)?,
    })
}
