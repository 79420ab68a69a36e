//! Keys that travel between enclaves: pools of one-time keys allotted to a peer and received from one, what was claimed
//! of them, and what peers say about their users' devices.
//!
//! Every list that travels is numbered per peer. A peer may be told the same numbers twice, since sticks get lost:
//! what was received is passed over, unless the sender was restored from a backup in between and counts anew.

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, ServerName, UserId, encryption::KeyUsage};
use rusqlite::{OptionalExtension, params};
use sallyport_core::{e2ee::device_signing_key, incarnation::Incarnation};

use crate::{
    error::Result,
    keys::CrossSigningKey,
    one_time_keys::OneTimeKey,
    pool::{Read, Write},
    value::{device_id as parse_device_id, user_id as parse_user_id},
};

/// A one-time key of a pool, numbered for the peer that it is allotted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolKey {
    /// Its number among all that were ever allotted to this peer; from 1.
    pub n: i64,
    /// Whose key it is.
    pub user_id: OwnedUserId,
    /// The device that holds the private half.
    pub device_id: OwnedDeviceId,
    /// The key.
    pub key: OneTimeKey,
}

/// A key of a pool that was given to somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyClaim {
    /// Its number among all claims of keys of this origin; from 1.
    pub n: i64,
    /// Whose key it was.
    pub user_id: OwnedUserId,
    /// The device that holds the private half.
    pub device_id: OwnedDeviceId,
    /// The key's whole id.
    pub key_id: String,
}

/// All that a peer says about the keys of one of its users. Verified before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteKeys {
    /// Orders what the peer says about this user.
    pub stream_id: i64,
    /// Identity keys by device, with their owner's signatures.
    pub devices: BTreeMap<OwnedDeviceId, String>,
    /// The master key.
    pub master: Option<CrossSigningKey>,
    /// The self-signing key.
    pub self_signing: Option<CrossSigningKey>,
}

/// What came of a peer's word about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// We knew that, or something newer.
    Known,
    /// It replaced what we knew.
    Changed {
        /// The master key is another than the one we knew: an officer should know.
        master_changed: bool,
    },
}

impl Read<'_> {
    /// Keys allotted to a peer with numbers after `after`, in order, at most `limit`.
    pub fn allotted_keys(
        &self,
        peer: &ServerName,
        after: i64,
        limit: usize,
    ) -> Result<Vec<PoolKey>> {
        let mut statement = self.prepare(
            "SELECT peer_n, user_id, device_id, key_id, keys FROM one_time_keys
             WHERE peer = ?1 AND peer <> '' AND peer_n > ?2 ORDER BY peer_n LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![peer.as_str(), after, limit])?;
        let mut keys = Vec::new();
        while let Some(row) = rows.next()? {
            keys.push(PoolKey {
                n: row.get(0)?,
                user_id: parse_user_id("one_time_keys", &row.get::<_, String>(1)?)?,
                device_id: parse_device_id(&row.get::<_, String>(2)?),
                key: OneTimeKey { key_id: row.get(3)?, key: row.get(4)? },
            });
        }
        Ok(keys)
    }

    /// What we claimed of an origin's pools, with numbers after `after`, in order, at most `limit`.
    pub fn key_claims(
        &self,
        origin: &ServerName,
        after: i64,
        limit: usize,
    ) -> Result<Vec<KeyClaim>> {
        let mut statement = self.prepare(
            "SELECT n, user_id, device_id, key_id FROM key_claims
             WHERE origin = ?1 AND n > ?2 ORDER BY n LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![origin.as_str(), after, limit])?;
        let mut claims = Vec::new();
        while let Some(row) = rows.next()? {
            claims.push(KeyClaim {
                n: row.get(0)?,
                user_id: parse_user_id("key_claims", &row.get::<_, String>(1)?)?,
                device_id: parse_device_id(&row.get::<_, String>(2)?),
                key_id: row.get(3)?,
            });
        }
        Ok(claims)
    }

    /// The number of the last of what came from a life of a server's database, such as `to_device`; `None` if nothing has come.
    pub fn incoming_number(
        &self,
        server: &ServerName,
        incarnation: Incarnation,
        kind: &str,
    ) -> Result<Option<i64>> {
        let found = self
            .prepare(
                "SELECT n FROM incoming_counters WHERE server = ?1 AND kind = ?2 AND incarnation = ?3",
            )?
            .query_row(params![server.as_str(), kind, incarnation.0], |row| row.get(0))
            .optional()?;
        Ok(found)
    }
}

impl Write<'_> {
    /// Says how many one-time keys of each device a peer should hold. Pools fill as clients upload; with 0 no more
    /// are allotted.
    pub fn allot_one_time_keys(&mut self, peer: &ServerName, target: u32) -> Result<()> {
        self.prepare(
            "INSERT INTO key_pools (peer, target) VALUES (?1, ?2)
             ON CONFLICT (peer) DO UPDATE SET target = excluded.target",
        )?
        .execute(params![peer.as_str(), target])?;
        Ok(())
    }

    /// The peer's users have used these keys: they no longer count, and pools fill again. Repeating it does nothing.
    pub fn peer_claimed_keys(&mut self, peer: &ServerName, claims: &[KeyClaim]) -> Result<()> {
        for claim in claims {
            let (user, device) = (claim.user_id.as_str(), claim.device_id.as_str());
            let n = self
                .prepare(
                    "SELECT n FROM one_time_keys
                     WHERE user_id = ?1 AND device_id = ?2 AND key_id = ?3 AND peer = ?4",
                )?
                .query_row([user, device, &claim.key_id, peer.as_str()], |row| row.get(0))
                .optional()?;
            match n {
                Some(n) => self.issue(&claim.user_id, &claim.device_id, &claim.key_id, n)?,
                None => {
                    self.prepare(
                        "UPDATE fallback_keys SET used = 1
                         WHERE user_id = ?1 AND device_id = ?2 AND key_id = ?3",
                    )?
                    .execute([user, device, &claim.key_id])?;
                }
            }
            self.touch_user(&claim.user_id);
        }
        Ok(())
    }

    /// Gives up all keys allotted to a peer and received from it: one side no longer knows which were used.
    pub fn burn_pools(&mut self, peer: &ServerName) -> Result<()> {
        self.prepare(
            "INSERT INTO issued_one_time_keys (user_id, device_id, key_id, n)
             SELECT user_id, device_id, key_id, n FROM one_time_keys WHERE peer = ?1 AND peer <> ''
             ON CONFLICT (user_id, device_id, key_id) DO NOTHING",
        )?
        .execute([peer.as_str()])?;
        for sql in [
            "DELETE FROM one_time_keys WHERE peer = ?1 AND peer <> ''",
            "DELETE FROM received_one_time_keys WHERE origin = ?1",
            "DELETE FROM key_claims WHERE origin = ?1",
        ] {
            self.prepare(sql)?.execute([peer.as_str()])?;
        }
        Ok(())
    }

    /// Stores keys that a peer allotted to us. Verified before; those of other servers' users are passed over.
    ///
    /// The keys of one device must come in the order of their numbers; those of several may come in any order.
    pub fn receive_pool_keys(
        &mut self,
        origin: &ServerName,
        incarnation: Incarnation,
        keys: &[PoolKey],
    ) -> Result<()> {
        for pool_key in keys {
            let kind = pool_counter(&pool_key.user_id, &pool_key.device_id);
            if pool_key.user_id.server_name() != origin
                || !self.accept_incoming(origin, &kind, incarnation, pool_key.n)?
            {
                continue;
            }
            self.prepare(
                "INSERT INTO received_one_time_keys (user_id, device_id, key_id, origin, n, keys)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (user_id, device_id, key_id) DO NOTHING",
            )?
            .execute(params![
                pool_key.user_id.as_str(),
                pool_key.device_id.as_str(),
                pool_key.key.key_id,
                origin.as_str(),
                pool_key.n,
                pool_key.key.key
            ])?;
        }
        Ok(())
    }

    /// Stores the fallback key of another server's device. Verified before.
    pub fn receive_fallback_key(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        key: &OneTimeKey,
    ) -> Result<()> {
        self.set_fallback_key(user_id, device_id, key)
    }

    /// Gives a key of another server's device away: the oldest of its pool, or else its fallback key.
    pub fn claim_remote_key(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
    ) -> Result<Option<OneTimeKey>> {
        let parameters = [user_id.as_str(), device_id.as_str()];
        let found = self
            .prepare(
                "SELECT key_id, keys FROM received_one_time_keys
                 WHERE user_id = ?1 AND device_id = ?2 ORDER BY n LIMIT 1",
            )?
            .query_row(parameters, |row| Ok(OneTimeKey { key_id: row.get(0)?, key: row.get(1)? }))
            .optional()?;
        let key = match found {
            Some(key) => {
                self.prepare(
                    "DELETE FROM received_one_time_keys
                     WHERE user_id = ?1 AND device_id = ?2 AND key_id = ?3",
                )?
                .execute([user_id.as_str(), device_id.as_str(), &key.key_id])?;
                key
            }
            None => match self.claim_fallback_key(user_id, device_id)? {
                Some(key) => key,
                None => return Ok(None),
            },
        };
        let origin = user_id.server_name();
        let n = self.next_outgoing(origin, "claims")?;
        self.prepare(
            "INSERT INTO key_claims (origin, n, user_id, device_id, key_id)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            origin.as_str(),
            n,
            user_id.as_str(),
            device_id.as_str(),
            key.key_id
        ])?;
        Ok(Some(key))
    }

    /// An origin has acknowledged our claims up to this number.
    pub fn forget_key_claims(&mut self, origin: &ServerName, up_to: i64) -> Result<()> {
        self.prepare("DELETE FROM key_claims WHERE origin = ?1 AND n <= ?2")?
            .execute(params![origin.as_str(), up_to])?;
        Ok(())
    }

    /// Replaces what we know of the keys of another server's user.
    pub fn replace_remote_keys(&mut self, user_id: &UserId, new: &RemoteKeys) -> Result<Replaced> {
        let known: Option<i64> = self
            .prepare("SELECT stream_id FROM remote_users WHERE user_id = ?1")?
            .query_row([user_id.as_str()], |row| row.get(0))
            .optional()?;
        if known.is_some_and(|known| known >= new.stream_id) {
            return Ok(Replaced::Known);
        }
        self.prepare(
            "INSERT INTO remote_users (user_id, stream_id) VALUES (?1, ?2)
             ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id",
        )?
        .execute(params![user_id.as_str(), new.stream_id])?;
        let old_master = self.cross_signing_key(user_id, &KeyUsage::Master)?;
        for device in self.all_device_keys(user_id)?.into_keys() {
            if !new.devices.contains_key(&device) {
                self.delete_remote_device(user_id, &device)?;
            }
        }
        for (device, keys) in &new.devices {
            self.set_remote_device(user_id, device, keys)?;
        }
        let subkeys = [(KeyUsage::Master, &new.master), (KeyUsage::SelfSigning, &new.self_signing)];
        for (usage, key) in subkeys {
            match key {
                Some(key) => self.set_cross_signing_key(user_id, &usage, key)?,
                None => {
                    self.prepare(
                        "DELETE FROM cross_signing_keys WHERE user_id = ?1 AND usage = ?2",
                    )?
                    .execute([user_id.as_str(), usage.as_str()])?;
                }
            }
        }
        self.note_device_change(user_id)?;
        let public = |key: &Option<CrossSigningKey>| key.as_ref().map(|key| key.public_key.clone());
        let master_changed = old_master.is_some() && public(&old_master) != public(&new.master);
        Ok(Replaced::Changed { master_changed })
    }

    /// Takes the next number of what goes to a server.
    pub(crate) fn next_outgoing(&mut self, server: &ServerName, kind: &str) -> Result<i64> {
        Ok(self
            .prepare(
                "INSERT INTO outgoing_counters (server, kind, n) VALUES (?1, ?2, 1)
                 ON CONFLICT (server, kind) DO UPDATE SET n = n + 1 RETURNING n",
            )?
            .query_row([server.as_str(), kind], |row| row.get(0))?)
    }

    /// Whether this number of what comes from a server is new; if so it is remembered.
    pub(crate) fn accept_incoming(
        &mut self,
        server: &ServerName,
        kind: &str,
        incarnation: Incarnation,
        n: i64,
    ) -> Result<bool> {
        let changed = self
            .prepare(
                "INSERT INTO incoming_counters (server, kind, incarnation, n) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (server, kind)
                 DO UPDATE SET incarnation = excluded.incarnation, n = excluded.n
                 WHERE incarnation <> excluded.incarnation OR n < excluded.n",
            )?
            .execute(params![server.as_str(), kind, incarnation.0, n])?;
        Ok(changed > 0)
    }

    fn set_remote_device(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        keys: &str,
    ) -> Result<()> {
        let before = self.device_keys(user_id, device_id)?;
        let signing_key = |json: &str| device_signing_key(json, device_id);
        if before.is_some_and(|before| signing_key(&before) != signing_key(keys)) {
            // Another device under the same id: nobody holds the private halves of the old one's keys.
            self.delete_remote_device(user_id, device_id)?;
        }
        self.prepare(
            "INSERT INTO device_keys (user_id, device_id, keys) VALUES (?1, ?2, ?3)
             ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys",
        )?
        .execute([user_id.as_str(), device_id.as_str(), keys])?;
        Ok(())
    }

    fn delete_remote_device(&mut self, user_id: &UserId, device_id: &DeviceId) -> Result<()> {
        for sql in [
            "DELETE FROM device_keys WHERE user_id = ?1 AND device_id = ?2",
            "DELETE FROM key_signatures WHERE user_id = ?1 AND target = ?2",
            "DELETE FROM received_one_time_keys WHERE user_id = ?1 AND device_id = ?2",
            "DELETE FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2",
        ] {
            self.prepare(sql)?.execute([user_id.as_str(), device_id.as_str()])?;
        }
        Ok(())
    }
}

/// What the numbers of a device's keys are counted under: bundles bring pools device by device.
fn pool_counter(user_id: &UserId, device_id: &DeviceId) -> String {
    format!("pool {user_id} {device_id}")
}
