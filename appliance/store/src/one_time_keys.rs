//! One-time and fallback keys: each one-time key is given away once, in the order of upload.
//!
//! [One-time and fallback keys](https://spec.matrix.org/v1.16/client-server-api/#one-time-and-fallback-keys).
//! Those of our users can be allotted to a peer, so that its users encrypt to ours without asking first; those that a
//! peer allotted to us are in [`crate::key_pools`].

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedServerName, UserId};
use rusqlite::{OptionalExtension, params};
use sallyport_core::limits::{ISSUED_KEYS_REMEMBERED, ONE_TIME_KEYS_LOCAL, ONE_TIME_KEYS_MAX};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    value::count,
};

/// One algorithm whose one-time keys are kept.
const ALGORITHM: &str = sallyport_core::e2ee::SIGNED_CURVE25519;

/// A one-time or fallback key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneTimeKey {
    /// Its whole id, such as `signed_curve25519:AAAAAQ`.
    pub key_id: String,
    /// The key object as canonical JSON.
    pub key: String,
}

/// What a client uploads at once.
#[derive(Clone, Debug, Default)]
pub struct KeyUpload {
    /// The identity keys that the other keys were verified with, if there are others.
    pub verified_with: Option<String>,
    /// One-time keys.
    pub one_time_keys: Vec<OneTimeKey>,
    /// Fallback keys.
    pub fallback_keys: Vec<OneTimeKey>,
}

/// What came of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// Stored.
    Done,
    /// A key of this id is there with another content; nothing was stored.
    Conflict(String),
    /// The device would have more keys than a client can hold; nothing was stored.
    TooMany,
    /// The device's identity keys have changed since these were verified: verify again.
    Stale,
}

impl Read<'_> {
    /// How many one-time keys a client should believe it has on the server, by algorithm.
    ///
    /// Keys that pools for peers still lack are subtracted: clients refill what they see missing, so pools fill with
    /// what clients upload while they are online, and never with the last keys of a phone that is off.
    pub fn one_time_key_counts(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<BTreeMap<String, u64>> {
        let local = self.key_count(user_id, device_id, "")?;
        let mut lacking = 0;
        for (peer, target) in self.key_pool_targets()? {
            let has = self.key_count(user_id, device_id, peer.as_str())?;
            lacking += target.saturating_sub(has);
        }
        let shown = local.saturating_sub(lacking);
        Ok(BTreeMap::from([(ALGORITHM.to_owned(), shown as u64)]))
    }

    /// The algorithms of fallback keys that were never given away.
    pub fn unused_fallback_types(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Vec<String>> {
        let mut statement = self.prepare(
            "SELECT algorithm FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2 AND used = 0",
        )?;
        let rows = statement.query_map([user_id.as_str(), device_id.as_str()], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The fallback keys of a device.
    pub fn fallback_keys(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Vec<OneTimeKey>> {
        let mut statement = self.prepare(
            "SELECT key_id, keys FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2",
        )?;
        let rows = statement.query_map([user_id.as_str(), device_id.as_str()], |row| {
            Ok(OneTimeKey { key_id: row.get(0)?, key: row.get(1)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How many one-time keys each device should have allotted, by peer.
    pub(crate) fn key_pool_targets(&self) -> Result<Vec<(OwnedServerName, usize)>> {
        let mut statement = self.prepare("SELECT peer, target FROM key_pools ORDER BY peer")?;
        let rows =
            statement.query_map([], |row| Ok((row.get::<_, String>(0)?, count(row.get(1)?))))?;
        rows.map(|row| {
            let (peer, target) = row?;
            let peer = OwnedServerName::try_from(peer);
            Ok((peer.map_err(|error| Error::corrupt("key_pools", error))?, target))
        })
        .collect()
    }

    /// Keys of a device that are allotted to a peer, or to nobody (empty).
    fn key_count(&self, user_id: &UserId, device_id: &DeviceId, peer: &str) -> Result<usize> {
        let mut statement = self.prepare(
            "SELECT count(*) FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND peer = ?3",
        )?;
        let keys =
            statement.query_row([user_id.as_str(), device_id.as_str(), peer], |row| row.get(0))?;
        Ok(count(keys))
    }

    /// Whether a key of this id is here (`Some` of its content) or was given away (`Some(None)`).
    fn known_key(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        key_id: &str,
    ) -> Result<Option<Option<String>>> {
        let parameters = [user_id.as_str(), device_id.as_str(), key_id];
        let here = self
            .prepare(
                "SELECT keys FROM one_time_keys
                 WHERE user_id = ?1 AND device_id = ?2 AND key_id = ?3",
            )?
            .query_row(parameters, |row| row.get(0))
            .optional()?;
        if here.is_some() {
            return Ok(Some(here));
        }
        let mut issued = self.prepare(
            "SELECT 1 FROM issued_one_time_keys
             WHERE user_id = ?1 AND device_id = ?2 AND key_id = ?3",
        )?;
        Ok(issued.exists(parameters)?.then_some(None))
    }
}

impl Write<'_> {
    /// Stores one-time and fallback keys of a local device, then fills the pools of peers with what exceeds the local
    /// stock. Keys that are known already are passed over, also those that were given away since.
    ///
    /// Undone by the caller's error unless the answer is [`Uploaded::Done`].
    pub fn upload_keys(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        upload: &KeyUpload,
    ) -> Result<Uploaded> {
        if upload.verified_with.is_some()
            && self.device_keys(user_id, device_id)? != upload.verified_with
        {
            return Ok(Uploaded::Stale);
        }
        let mut new = Vec::new();
        for key in &upload.one_time_keys {
            match self.known_key(user_id, device_id, &key.key_id)? {
                None => new.push(key),
                Some(Some(before)) if before != key.key => {
                    return Ok(Uploaded::Conflict(key.key_id.clone()));
                }
                Some(_) => {}
            }
        }
        let mut statement = self
            .prepare("SELECT count(*) FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2")?;
        let before =
            statement.query_row([user_id.as_str(), device_id.as_str()], |row| row.get(0))?;
        if !new.is_empty() && count(before).saturating_add(new.len()) > ONE_TIME_KEYS_MAX {
            return Ok(Uploaded::TooMany);
        }
        self.insert_one_time_keys(user_id, device_id, &new)?;
        for key in &upload.fallback_keys {
            self.set_fallback_key(user_id, device_id, key)?;
        }
        self.fill_pools(user_id, device_id)?;
        Ok(Uploaded::Done)
    }

    /// Gives a key of a device of this server away: the oldest one-time key, or else the fallback key.
    pub fn claim_key(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Option<OneTimeKey>> {
        let parameters = [user_id.as_str(), device_id.as_str()];
        let found = self
            .prepare(
                "SELECT key_id, keys, n FROM one_time_keys
                 WHERE user_id = ?1 AND device_id = ?2 AND peer = '' ORDER BY n LIMIT 1",
            )?
            .query_row(parameters, |row| {
                Ok((OneTimeKey { key_id: row.get(0)?, key: row.get(1)? }, row.get(2)?))
            })
            .optional()?;
        if let Some((key, n)) = found {
            self.issue(user_id, device_id, &key.key_id, n)?;
            self.touch_user(user_id);
            return Ok(Some(key));
        }
        self.claim_fallback_key(user_id, device_id)
    }

    /// Gives the fallback key of a device away.
    pub(crate) fn claim_fallback_key(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Option<OneTimeKey>> {
        let parameters = [user_id.as_str(), device_id.as_str(), ALGORITHM];
        let key = self
            .prepare(
                "SELECT key_id, keys FROM fallback_keys
                 WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3",
            )?
            .query_row(parameters, |row| Ok(OneTimeKey { key_id: row.get(0)?, key: row.get(1)? }))
            .optional()?;
        if key.is_some() {
            let changed = self
                .prepare(
                    "UPDATE fallback_keys SET used = 1
                     WHERE user_id = ?1 AND device_id = ?2 AND algorithm = ?3 AND used = 0",
                )?
                .execute(parameters)?;
            if changed > 0 {
                self.touch_user(user_id);
            }
        }
        Ok(key)
    }

    /// Deletes every one-time key of every device, pools included: after a restore nobody knows which were given away.
    pub fn delete_every_one_time_key(&mut self) -> Result<()> {
        self.prepare("DELETE FROM one_time_keys")?.execute([])?;
        self.prepare("DELETE FROM received_one_time_keys")?.execute([])?;
        Ok(())
    }

    /// Stores a fallback key. One that is there already keeps its mark of having been used.
    pub(crate) fn set_fallback_key(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        key: &OneTimeKey,
    ) -> Result<()> {
        let algorithm = key.key_id.split(':').next().unwrap_or_default();
        self.prepare(
            "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, keys)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (user_id, device_id, algorithm)
             DO UPDATE SET key_id = excluded.key_id, keys = excluded.keys, used = 0
             WHERE key_id <> excluded.key_id OR keys <> excluded.keys",
        )?
        .execute([
            user_id.as_str(),
            device_id.as_str(),
            algorithm,
            &key.key_id,
            &key.key,
        ])?;
        Ok(())
    }

    /// Removes a key and remembers that it was given away.
    pub(crate) fn issue(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        key_id: &str,
        n: i64,
    ) -> Result<()> {
        self.prepare(
            "DELETE FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND key_id = ?3",
        )?
        .execute([user_id.as_str(), device_id.as_str(), key_id])?;
        self.prepare(
            "INSERT INTO issued_one_time_keys (user_id, device_id, key_id, n) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (user_id, device_id, key_id) DO NOTHING",
        )?
        .execute(params![user_id.as_str(), device_id.as_str(), key_id, n])?;
        Ok(())
    }

    fn insert_one_time_keys(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        new: &[&OneTimeKey],
    ) -> Result<()> {
        if new.is_empty() {
            return Ok(());
        }
        let parameters = [user_id.as_str(), device_id.as_str()];
        let first: i64 = self
            .prepare("SELECT next_key FROM devices WHERE user_id = ?1 AND device_id = ?2")?
            .query_row(parameters, |row| row.get(0))?;
        let mut n = first;
        for key in new {
            self.prepare(
                "INSERT INTO one_time_keys (user_id, device_id, key_id, n, keys)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                user_id.as_str(),
                device_id.as_str(),
                key.key_id,
                n,
                key.key
            ])?;
            n += 1;
        }
        self.prepare("UPDATE devices SET next_key = ?3 WHERE user_id = ?1 AND device_id = ?2")?
            .execute(params![user_id.as_str(), device_id.as_str(), n])?;
        self.prepare(
            "DELETE FROM issued_one_time_keys WHERE user_id = ?1 AND device_id = ?2 AND n < ?3",
        )?
        .execute(params![
            user_id.as_str(),
            device_id.as_str(),
            n.saturating_sub(ISSUED_KEYS_REMEMBERED)
        ])?;
        Ok(())
    }

    /// Allots what exceeds the local stock to peers whose pools are not full.
    fn fill_pools(&mut self, user_id: &UserId, device_id: &DeviceId) -> Result<()> {
        let targets = self.key_pool_targets()?;
        if targets.is_empty() {
            return Ok(());
        }
        let local = self.key_count(user_id, device_id, "")?;
        let mut spare = local.saturating_sub(ONE_TIME_KEYS_LOCAL);
        for (peer, target) in targets {
            let has = self.key_count(user_id, device_id, peer.as_str())?;
            let take = target.saturating_sub(has).min(spare);
            spare -= take;
            for key_id in self.oldest_keys(user_id, device_id, take)? {
                let peer_n = self.next_outgoing(&peer, "pool")?;
                self.prepare(
                    "UPDATE one_time_keys SET peer = ?4, peer_n = ?5
                     WHERE user_id = ?1 AND device_id = ?2 AND key_id = ?3",
                )?
                .execute(params![
                    user_id.as_str(),
                    device_id.as_str(),
                    key_id,
                    peer.as_str(),
                    peer_n
                ])?;
            }
        }
        Ok(())
    }

    fn oldest_keys(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        limit: usize,
    ) -> Result<Vec<String>> {
        let mut statement = self.prepare(
            "SELECT key_id FROM one_time_keys
             WHERE user_id = ?1 AND device_id = ?2 AND peer = '' ORDER BY n LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![user_id.as_str(), device_id.as_str(), limit], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}
