//! End-to-end encryption keys: verified first, then stored; asked for and given away.
//!
//! Signatures are verified on a read snapshot, outside the writer. The writer compares what they were verified with,
//! and the work is done again if that has changed in between.

mod cross_signing;

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, ServerName, UserId};
use sallyport_core::{
    e2ee::{self, KeyError, SIGNED_CURVE25519},
    limits::{CLAIMS_MAX, KEY_QUERY_USERS_MAX, ONE_TIME_KEYS_MAX},
};
use sallyport_store::{KeyUpload, OneTimeKey, Store, Uploaded, UserKeys};

pub use self::cross_signing::{
    Failures, SignatureError, SigningKeys, SigningKeysChange, signing_keys_change,
    upload_signatures, upload_signing_keys,
};
use super::sessions::Identity;

/// How often work is done again when the keys it was based on change.
const ATTEMPTS: usize = 5;

/// Why keys were not stored or given.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A key is malformed or not signed.
    #[error("the key {id} is not acceptable")]
    Key {
        /// Which key.
        id: String,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// The device has no identity keys yet that could have signed these.
    #[error("the device has no identity keys yet")]
    NoDeviceKeys,
    /// A key of this id is there with another content.
    #[error("a key {0} with another content was uploaded before")]
    Conflict(String),
    /// More keys than a client can hold.
    #[error("the device has too many one-time keys")]
    TooManyKeys,
    /// More users or devices than one request may name.
    #[error("the request names too many users or devices")]
    TooManyUsers,
    /// The user has no master key that could have signed these.
    #[error("there is no master key")]
    NoMasterKey,
    /// The keys changed again and again while the request was worked on.
    #[error("the keys change too fast")]
    Busy,
    /// The database failed.
    #[error("the keys could not be stored")]
    Store(#[from] sallyport_store::Error),
}

/// Keys that a client uploads at once, as JSON texts.
#[derive(Clone, Debug, Default)]
pub struct Upload {
    /// Identity keys of its device.
    pub device_keys: Option<String>,
    /// One-time keys by id.
    pub one_time_keys: BTreeMap<String, String>,
    /// Fallback keys by id.
    pub fallback_keys: BTreeMap<String, String>,
}

/// Verifies and stores keys of a device
/// ([Client-Server API](https://spec.matrix.org/v1.16/client-server-api/#post_matrixclientv3keysupload)).
/// Answers how many one-time keys the device has, by algorithm.
///
/// # Errors
/// [`KeysError`]; then nothing was stored.
pub fn upload(
    store: &Store,
    identity: &Identity,
    upload: &Upload,
) -> Result<BTreeMap<String, u64>, KeysError> {
    if upload.one_time_keys.len() > ONE_TIME_KEYS_MAX || upload.fallback_keys.len() > 1 {
        return Err(KeysError::TooManyKeys);
    }
    for _ in 0..ATTEMPTS {
        let Identity { user_id, device_id } = identity.clone();
        let (device_keys, keys) = verify(store, identity, upload)?;
        let answer = store.write(move |write| {
            if let Some(device_keys) = device_keys {
                write.set_device_keys(&user_id, &device_id, &device_keys)?;
            }
            match write.upload_keys(&user_id, &device_id, &keys)? {
                Uploaded::Done => Ok(Some(write.one_time_key_counts(&user_id, &device_id)?)),
                Uploaded::Stale => Ok(None),
                Uploaded::Conflict(key_id) => Err(KeysError::Conflict(key_id)),
                Uploaded::TooMany => Err(KeysError::TooManyKeys),
            }
        });
        if let Some(counts) = answer? {
            return Ok(counts);
        }
    }
    Err(KeysError::Busy)
}

/// The identity keys to store, if they are uploaded, and the other keys verified with them.
fn verify(
    store: &Store,
    identity: &Identity,
    upload: &Upload,
) -> Result<(Option<String>, KeyUpload), KeysError> {
    let Identity { user_id, device_id } = identity;
    let device_keys = upload
        .device_keys
        .as_deref()
        .map(|json| {
            e2ee::verify_device_keys(json, user_id, device_id)
                .map_err(|source| KeysError::Key { id: device_id.to_string(), source })
        })
        .transpose()?;
    if upload.one_time_keys.is_empty() && upload.fallback_keys.is_empty() {
        return Ok((device_keys.map(|keys| keys.json), KeyUpload::default()));
    }
    let stored = match &device_keys {
        Some(keys) => Some(keys.json.clone()),
        None => store.read(|read| read.device_keys(user_id, device_id))?,
    };
    let stored = stored.ok_or(KeysError::NoDeviceKeys)?;
    let key = e2ee::device_signing_key(&stored, device_id).ok_or(KeysError::NoDeviceKeys)?;
    let verify_all = |keys: &BTreeMap<String, String>| {
        keys.iter()
            .map(|(id, json)| {
                let key = e2ee::verify_one_time_key(id, json, user_id, device_id, &key)
                    .map_err(|source| KeysError::Key { id: id.clone(), source })?;
                Ok(OneTimeKey { key_id: id.clone(), key })
            })
            .collect::<Result<Vec<_>, KeysError>>()
    };
    let keys = KeyUpload {
        one_time_keys: verify_all(&upload.one_time_keys)?,
        fallback_keys: verify_all(&upload.fallback_keys)?,
        verified_with: Some(stored),
    };
    Ok((device_keys.map(|keys| keys.json), keys))
}

/// The public keys of users of this and other servers, as far as they are known here: nobody is asked over a network.
///
/// # Errors
/// If too many users are named, or the database fails.
pub fn query(
    store: &Store,
    viewer: &UserId,
    wanted: &BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>,
) -> Result<BTreeMap<OwnedUserId, UserKeys>, KeysError> {
    if wanted.len() > KEY_QUERY_USERS_MAX {
        return Err(KeysError::TooManyUsers);
    }
    store.read(|read| {
        wanted
            .iter()
            .map(|(user_id, devices)| {
                Ok((user_id.clone(), read.user_keys(user_id, Some(viewer), devices)?))
            })
            .collect()
    })
}

/// A key that was given away.
pub type ClaimedKeys = BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, OneTimeKey>>;

/// Gives one key of each of these devices away, in one transaction. Devices without keys are missing in the answer.
///
/// # Errors
/// If too many keys are asked for, or the database fails; then none was given away.
pub fn claim(
    store: &Store,
    server_name: &ServerName,
    wanted: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, String>>,
) -> Result<ClaimedKeys, KeysError> {
    if wanted.values().map(BTreeMap::len).sum::<usize>() > CLAIMS_MAX {
        return Err(KeysError::TooManyUsers);
    }
    let server_name = server_name.to_owned();
    store.write(move |write| {
        let mut claimed = ClaimedKeys::new();
        for (user_id, devices) in wanted {
            for (device_id, algorithm) in devices {
                if algorithm != SIGNED_CURVE25519 {
                    continue;
                }
                let key = if user_id.server_name() == server_name {
                    write.claim_key(&user_id, &device_id)?
                } else {
                    write.claim_remote_key(&user_id, &device_id)?
                };
                if let Some(key) = key {
                    claimed.entry(user_id.clone()).or_default().insert(device_id, key);
                }
            }
        }
        Ok(claimed)
    })
}

/// The signing keys of a user's devices, by their ids in signatures.
fn device_signing_keys(
    devices: &BTreeMap<OwnedDeviceId, String>,
) -> BTreeMap<String, vodozemac::Ed25519PublicKey> {
    let key = |(id, json): (&OwnedDeviceId, &String)| {
        let id: &DeviceId = id;
        Some((format!("ed25519:{id}"), e2ee::device_signing_key(json, id)?))
    };
    devices.iter().filter_map(key).collect()
}
