//! Identity keys of devices and cross-signing keys, of users of this and other servers, with the signatures on them.
//!
//! [Client-Server API, "End-to-End Encryption"](https://spec.matrix.org/v1.16/client-server-api/#end-to-end-encryption).
//! Whoever stores keys has verified them before ([`sallyport_core::e2ee`]).

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId, UserId, encryption::KeyUsage};
use rusqlite::{OptionalExtension, params};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    value::device_id as parse_device_id,
};

/// All public keys of a user, as JSON texts, with the signatures that the asking user may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserKeys {
    /// Identity keys by device.
    pub devices: BTreeMap<OwnedDeviceId, String>,
    /// The master key.
    pub master: Option<String>,
    /// The self-signing key.
    pub self_signing: Option<String>,
    /// The user-signing key; only its owner may see it.
    pub user_signing: Option<String>,
}

/// A stored cross-signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossSigningKey {
    /// The key in unpadded base64.
    pub public_key: String,
    /// The whole object as JSON.
    pub keys: String,
}

/// A verified signature on a device or a master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySignature<'a> {
    /// Whose device or key was signed.
    pub user_id: &'a UserId,
    /// The device id, or the master key in unpadded base64.
    pub target: &'a str,
    /// Who signed.
    pub signer: &'a UserId,
    /// With which key (`ed25519:…`).
    pub signer_key_id: &'a str,
    /// The signature in unpadded base64.
    pub signature: &'a str,
}

impl Read<'_> {
    /// The identity keys of a device as its owner uploaded them.
    pub fn device_keys(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Option<String>> {
        let mut statement =
            self.prepare("SELECT keys FROM device_keys WHERE user_id = ?1 AND device_id = ?2")?;
        let keys = statement.query_row([user_id.as_str(), device_id.as_str()], |row| row.get(0));
        Ok(keys.optional()?)
    }

    /// The identity keys of all devices of a user as their owner uploaded them.
    pub fn all_device_keys(&self, user_id: &UserId) -> Result<BTreeMap<OwnedDeviceId, String>> {
        let mut statement =
            self.prepare("SELECT device_id, keys FROM device_keys WHERE user_id = ?1")?;
        let rows = statement.query_map([user_id.as_str()], |row| {
            Ok((parse_device_id(&row.get::<_, String>(0)?), row.get(1)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// A cross-signing key of a user.
    pub fn cross_signing_key(
        &self,
        user_id: &UserId,
        usage: &KeyUsage,
    ) -> Result<Option<CrossSigningKey>> {
        let mut statement = self.prepare(
            "SELECT public_key, keys FROM cross_signing_keys WHERE user_id = ?1 AND usage = ?2",
        )?;
        let key = statement.query_row([user_id.as_str(), usage.as_str()], |row| {
            Ok(CrossSigningKey { public_key: row.get(0)?, keys: row.get(1)? })
        });
        Ok(key.optional()?)
    }

    /// All public keys of a user as `viewer` may see them: with the signatures of their owner and of the viewer.
    ///
    /// With `only`, no other devices are answered. A viewer also sees the devices' names; without one the keys are for
    /// another server, which has no need to know them.
    pub fn user_keys(
        &self,
        user_id: &UserId,
        viewer: Option<&UserId>,
        only: &[OwnedDeviceId],
    ) -> Result<UserKeys> {
        let mut signatures = self.key_signatures(user_id, viewer)?;
        let mut found = UserKeys::default();
        let mut statement = self.prepare(
            "SELECT k.device_id, k.keys, d.display_name FROM device_keys k
             LEFT JOIN devices d ON d.user_id = k.user_id AND d.device_id = k.device_id
             WHERE k.user_id = ?1",
        )?;
        let mut rows = statement.query([user_id.as_str()])?;
        while let Some(row) = rows.next()? {
            let device = parse_device_id(&row.get::<_, String>(0)?);
            if !only.is_empty() && !only.contains(&device) {
                continue;
            }
            let more = signatures.remove(device.as_str()).unwrap_or_default();
            let name = if viewer.is_some() { row.get(2)? } else { None };
            let keys = complete(row.get(1)?, more, name)?;
            found.devices.insert(device, keys);
        }
        if let Some(master) = self.cross_signing_key(user_id, &KeyUsage::Master)? {
            let more = signatures.remove(&master.public_key).unwrap_or_default();
            found.master = Some(complete(master.keys, more, None)?);
        }
        let key = |usage| Ok::<_, Error>(self.cross_signing_key(user_id, &usage)?.map(|k| k.keys));
        found.self_signing = key(KeyUsage::SelfSigning)?;
        if viewer == Some(user_id) {
            found.user_signing = key(KeyUsage::UserSigning)?;
        }
        Ok(found)
    }

    /// The position of the newest change to a user's devices or keys. It never goes back: peers order snapshots by it.
    pub fn device_list_position(&self, user_id: &UserId) -> Result<Option<i64>> {
        let mut statement =
            self.prepare("SELECT position FROM device_list_changes WHERE user_id = ?1")?;
        Ok(statement.query_row([user_id.as_str()], |row| row.get(0)).optional()?)
    }

    /// Signatures by target, made by the keys' owner or by the viewer.
    fn key_signatures(
        &self,
        user_id: &UserId,
        viewer: Option<&UserId>,
    ) -> Result<BTreeMap<String, Vec<[String; 3]>>> {
        let mut statement = self.prepare(
            "SELECT target, signer, signer_key_id, signature FROM key_signatures
             WHERE user_id = ?1 AND signer IN (?1, ?2)",
        )?;
        let viewer = viewer.unwrap_or(user_id);
        let mut rows = statement.query([user_id.as_str(), viewer.as_str()])?;
        let mut found: BTreeMap<String, Vec<_>> = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let signature = [row.get(1)?, row.get(2)?, row.get(3)?];
            found.entry(row.get(0)?).or_default().push(signature);
        }
        Ok(found)
    }
}

impl Write<'_> {
    /// Stores the identity keys of a device. If they are others than before, its one-time keys and the signatures on
    /// it go.
    pub fn set_device_keys(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        keys: &str,
    ) -> Result<()> {
        let before = self.device_keys(user_id, device_id)?;
        if before.as_deref() == Some(keys) {
            return Ok(());
        }
        self.prepare(
            "INSERT INTO device_keys (user_id, device_id, keys) VALUES (?1, ?2, ?3)
             ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys",
        )?
        .execute([user_id.as_str(), device_id.as_str(), keys])?;
        if before.is_some() {
            for sql in [
                "DELETE FROM key_signatures WHERE user_id = ?1 AND target = ?2",
                "DELETE FROM one_time_keys WHERE user_id = ?1 AND device_id = ?2",
                "DELETE FROM fallback_keys WHERE user_id = ?1 AND device_id = ?2",
            ] {
                self.prepare(sql)?.execute([user_id.as_str(), device_id.as_str()])?;
            }
        }
        self.note_device_change(user_id)
    }

    /// Stores a cross-signing key. Signatures on and by the key that it replaces go.
    pub fn set_cross_signing_key(
        &mut self,
        user_id: &UserId,
        usage: &KeyUsage,
        key: &CrossSigningKey,
    ) -> Result<()> {
        let before = self.cross_signing_key(user_id, usage)?;
        if before.as_ref() == Some(key) {
            return Ok(());
        }
        if let Some(old) = before
            && old.public_key != key.public_key
        {
            self.delete_signatures_of(user_id, &old)?;
        }
        self.prepare(
            "INSERT INTO cross_signing_keys (user_id, usage, public_key, keys) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (user_id, usage)
             DO UPDATE SET public_key = excluded.public_key, keys = excluded.keys",
        )?
        .execute([user_id.as_str(), usage.as_str(), &key.public_key, &key.keys])?;
        self.note_device_change(user_id)
    }

    /// Removes all cross-signing keys of a user.
    pub(crate) fn delete_cross_signing(&mut self, user_id: &UserId) -> Result<()> {
        for usage in [KeyUsage::Master, KeyUsage::SelfSigning, KeyUsage::UserSigning] {
            let Some(key) = self.cross_signing_key(user_id, &usage)? else { continue };
            self.delete_signatures_of(user_id, &key)?;
            self.prepare("DELETE FROM cross_signing_keys WHERE user_id = ?1 AND usage = ?2")?
                .execute([user_id.as_str(), usage.as_str()])?;
            self.note_device_change(user_id)?;
        }
        Ok(())
    }

    /// Stores a verified signature. If the owner made it, everybody hears of it; otherwise only the signer.
    pub fn add_key_signature(&mut self, new: &KeySignature<'_>) -> Result<()> {
        let changed = self
            .prepare(
                "INSERT INTO key_signatures (user_id, target, signer, signer_key_id, signature)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (user_id, target, signer, signer_key_id)
                 DO UPDATE SET signature = excluded.signature WHERE signature <> excluded.signature",
            )?
            .execute(params![
                new.user_id.as_str(),
                new.target,
                new.signer.as_str(),
                new.signer_key_id,
                new.signature
            ])?;
        if changed == 0 {
            return Ok(());
        }
        if new.signer == new.user_id {
            self.note_device_change(new.user_id)
        } else {
            self.note_signature_change(new.signer, new.user_id)
        }
    }

    fn delete_signatures_of(&mut self, user_id: &UserId, old: &CrossSigningKey) -> Result<()> {
        self.prepare("DELETE FROM key_signatures WHERE user_id = ?1 AND target = ?2")?
            .execute([user_id.as_str(), &old.public_key])?;
        let key_id = format!("ed25519:{}", old.public_key);
        self.prepare("DELETE FROM key_signatures WHERE signer = ?1 AND signer_key_id = ?2")?
            .execute([user_id.as_str(), &key_id])?;
        Ok(())
    }
}

/// Adds signatures and the device's name to a key object.
fn complete(keys: String, signatures: Vec<[String; 3]>, name: Option<String>) -> Result<String> {
    if signatures.is_empty() && name.is_none() {
        return Ok(keys);
    }
    let damaged = |error| Error::corrupt("device_keys", error);
    let mut object: Map<String, Value> = serde_json::from_str(&keys).map_err(damaged)?;
    let all = object.entry("signatures").or_insert_with(|| Map::new().into());
    for [signer, key_id, signature] in signatures {
        let Some(all) = all.as_object_mut() else { continue };
        let of_signer = all.entry(signer).or_insert_with(|| Map::new().into());
        if let Some(of_signer) = of_signer.as_object_mut() {
            of_signer.insert(key_id, signature.into());
        }
    }
    if let Some(name) = name {
        let unsigned = Map::from_iter([("device_display_name".to_owned(), name.into())]);
        object.insert("unsigned".to_owned(), unsigned.into());
    }
    serde_json::to_string(&object).map_err(damaged)
}
