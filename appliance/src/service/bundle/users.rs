//! Users in bundles: devices, cross-signing keys, profiles and one-time keys, out and in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::BufWriter,
};

use ruma::{OwnedDeviceId, OwnedUserId, ServerName, UserId, encryption::KeyUsage};
use sallyport_core::{
    bundle::{Device, Kind, OneTimeKey, Pool, Record, User, UserStatus, Writer},
    e2ee::{
        CrossSigningPublicKey, SignedObject, device_signing_key, verify_device_keys,
        verify_one_time_key,
    },
    incarnation::Incarnation,
    limits,
    time::Millis,
};
use sallyport_store::{
    CrossSigningKey, KeySignature, OneTimeKey as StoredKey, Peer, PoolKey, Read, RemoteKeys,
    Replaced, Write,
};
use serde_json::value::RawValue;

use super::Error;

/// How many keys are read at once.
const PAGE: usize = 1000;

/// Writes the users whose devices or keys changed since the last acknowledged bundle.
pub(super) fn export_users(
    read: &Read<'_>,
    peer: &Peer,
    server_name: &ServerName,
    up_to: i64,
    writer: &mut Writer<BufWriter<File>>,
) -> Result<(), Error> {
    let changed: BTreeSet<OwnedUserId> = read
        .device_list_changes(peer.acked.position, up_to)?
        .into_iter()
        .filter(|user| user.server_name() == server_name)
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let mut section = writer.section(Kind::Users, None)?;
    for user_id in changed {
        section.push(&Record::User(user(read, user_id)?))?;
    }
    Ok(section.finish()?)
}

fn user(read: &Read<'_>, user_id: OwnedUserId) -> Result<User, Error> {
    let keys = read.user_keys(&user_id, None, &[])?;
    let account = read.user(&user_id)?;
    let status = match account {
        Some(account) if account.deactivated => UserStatus::Deactivated,
        Some(account) if account.locked => UserStatus::Locked,
        Some(_) => UserStatus::Active,
        None => UserStatus::Deactivated,
    };
    let profile: BTreeMap<String, Box<RawValue>> = read
        .profile(&user_id)?
        .into_iter()
        .filter_map(|(field, value)| Some((field, RawValue::from_string(value).ok()?)))
        .collect();
    let profile = serde_json::to_vec(&profile)
        .map_err(|error| Error::Content(format!("the profile of {user_id}: {error}")))?;
    let stream_id = read.device_list_position(&user_id)?.unwrap_or_default();
    Ok(User {
        stream_id: u64::try_from(stream_id).unwrap_or_default(),
        status,
        moved_to: None,
        profile: Some(profile),
        devices: keys
            .devices
            .into_iter()
            .map(|(device_id, keys)| Device {
                device_id,
                keys: Some(keys.into_bytes()),
                display_name: None,
            })
            .collect(),
        master_key: keys.master.map(String::into_bytes),
        self_signing_key: keys.self_signing.map(String::into_bytes),
        deleted_devices: Vec::new(),
        user_id,
    })
}

/// Writes the one-time keys that were allotted to the peer since, and the fallback keys of their devices; answers the number of the last.
pub(super) fn export_one_time_keys(
    read: &Read<'_>,
    peer: &Peer,
    now: Millis,
    writer: &mut Writer<BufWriter<File>>,
) -> Result<i64, Error> {
    let mut last = peer.acked.pool;
    let mut pools: BTreeMap<(OwnedUserId, OwnedDeviceId), Vec<OneTimeKey>> = BTreeMap::new();
    loop {
        let page = read.allotted_keys(&peer.server, last, PAGE)?;
        if page.is_empty() {
            break;
        }
        for key in page {
            last = key.n;
            pools.entry((key.user_id, key.device_id)).or_default().push(OneTimeKey {
                n: u64::try_from(key.n).unwrap_or_default(),
                key_id: key.key.key_id,
                json: key.key.key.into_bytes(),
            });
        }
    }
    if pools.is_empty() {
        return Ok(last);
    }
    let expires = Millis(now.0.saturating_add(limits::POOL_LIFETIME_MS));
    let mut section = writer.section(Kind::OneTimeKeys, None)?;
    for ((user_id, device_id), keys) in pools {
        let fallback = read.fallback_keys(&user_id, &device_id)?.into_iter().next();
        section.push(&Record::OneTimeKeys(Pool {
            user_id,
            device_id,
            keys,
            fallback: fallback.map(|key| OneTimeKey {
                n: 0,
                key_id: key.key_id,
                json: key.key.into_bytes(),
            }),
            expires,
        }))?;
    }
    section.finish()?;
    Ok(last)
}

/// A user of a peer, verified and ready to be stored.
pub(super) struct Verified {
    user_id: OwnedUserId,
    keys: RemoteKeys,
    signatures: Vec<SelfSignature>,
    profile: BTreeMap<String, String>,
}

/// A self-signing key's signature over a device.
struct SelfSignature {
    device_id: OwnedDeviceId,
    key_id: String,
    signature: String,
}

/// Verifies what a peer says about one of its users. What is not rightly signed is left out.
pub(super) fn verify(user: User, origin: &ServerName) -> Result<Verified, Error> {
    let User { user_id, stream_id, profile, devices, master_key, self_signing_key, .. } = user;
    if user_id.server_name() != origin {
        return Err(Error::Content(format!("{user_id} is not a user of {origin}")));
    }
    let text = |json: Option<Vec<u8>>| json.and_then(|json| String::from_utf8(json).ok());
    let master = text(master_key)
        .and_then(|json| CrossSigningPublicKey::parse(&json, &user_id, &KeyUsage::Master).ok());
    let self_signing = text(self_signing_key).and_then(|json| {
        CrossSigningPublicKey::parse(&json, &user_id, &KeyUsage::SelfSigning).ok()
    });
    let mut keys = RemoteKeys {
        stream_id: i64::try_from(stream_id).unwrap_or(i64::MAX),
        ..RemoteKeys::default()
    };
    let mut signing_keys = BTreeMap::new();
    let mut signatures = Vec::new();
    for device in devices {
        let Some(json) = text(device.keys) else { continue };
        let Ok(verified) = verify_device_keys(&json, &user_id, &device.device_id) else {
            continue;
        };
        if let Some(key) = &self_signing
            && let Some(signature) = self_signature(&json, &user_id, key)
        {
            let (device_id, key_id) = (device.device_id.clone(), key.key_id.clone());
            signatures.push(SelfSignature { device_id, key_id, signature });
        }
        signing_keys.insert(format!("ed25519:{}", device.device_id), verified.ed25519);
        keys.devices.insert(device.device_id, verified.json);
    }
    if let Some(master) = master {
        keys.self_signing = self_signing.and_then(|key| {
            let json = key.subkey_json(&user_id, &master).ok()?;
            Some(CrossSigningKey { public_key: key.public_key().to_owned(), keys: json })
        });
        keys.master = Some(CrossSigningKey {
            public_key: master.public_key().to_owned(),
            keys: master.master_json(&user_id, &signing_keys),
        });
    }
    if keys.self_signing.is_none() {
        signatures.clear();
    }
    Ok(Verified { profile: profile_fields(profile), user_id, keys, signatures })
}

/// The signature of a self-signing key on a device, if it is right.
fn self_signature(json: &str, user_id: &UserId, key: &CrossSigningPublicKey) -> Option<String> {
    let object = SignedObject::parse(json, limits::DEVICE_KEYS_BYTES_MAX).ok()?;
    object.verify(user_id, &key.key_id, &key.key).ok()?;
    object.signature(user_id, &key.key_id).map(ToOwned::to_owned)
}

fn profile_fields(json: Option<Vec<u8>>) -> BTreeMap<String, String> {
    let fields: BTreeMap<String, Box<RawValue>> =
        json.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    fields.into_iter().map(|(field, value)| (field, value.get().to_owned())).collect()
}

/// Stores verified users; answers those whose master key is another than the one that we knew.
pub(super) fn store(
    write: &mut Write<'_>,
    users: &[Verified],
) -> Result<Vec<OwnedUserId>, sallyport_store::Error> {
    let mut alarming = Vec::new();
    for user in users {
        let user_id = &user.user_id;
        if let Replaced::Changed { master_changed: true } =
            write.replace_remote_keys(user_id, &user.keys)?
        {
            alarming.push(user_id.clone());
        }
        for signature in &user.signatures {
            write.add_key_signature(&KeySignature {
                user_id,
                target: signature.device_id.as_str(),
                signer: user_id,
                signer_key_id: &signature.key_id,
                signature: &signature.signature,
            })?;
        }
        write.replace_profile(user_id, &user.profile)?;
    }
    Ok(alarming)
}

/// Stores the one-time keys of a device that are rightly signed by it; answers how many those are.
pub(super) fn store_pool(
    write: &mut Write<'_>,
    origin: &ServerName,
    incarnation: Incarnation,
    pool: &Pool,
) -> Result<u64, sallyport_store::Error> {
    let Pool { user_id, device_id, .. } = pool;
    if user_id.server_name() != origin {
        return Ok(0);
    }
    let device_key = write
        .device_keys(user_id, device_id)?
        .and_then(|json| device_signing_key(&json, device_id));
    let Some(device_key) = device_key else { return Ok(0) };
    let verified = |key: &OneTimeKey| {
        let json = std::str::from_utf8(&key.json).ok()?;
        let json = verify_one_time_key(&key.key_id, json, user_id, device_id, &device_key).ok()?;
        Some(StoredKey { key_id: key.key_id.clone(), key: json })
    };
    let keys: Vec<PoolKey> = pool
        .keys
        .iter()
        .filter_map(|key| {
            Some(PoolKey {
                n: i64::try_from(key.n).ok()?,
                user_id: user_id.clone(),
                device_id: device_id.clone(),
                key: verified(key)?,
            })
        })
        .collect();
    write.receive_pool_keys(origin, incarnation, &keys)?;
    if let Some(fallback) = pool.fallback.as_ref().and_then(verified) {
        write.receive_fallback_key(user_id, device_id, &fallback)?;
    }
    Ok(u64::try_from(keys.len()).unwrap_or(u64::MAX))
}
