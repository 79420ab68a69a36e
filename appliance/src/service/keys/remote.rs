//! Keys of other servers' users, as a bundle brings them: verified like those of our own clients.

use std::collections::BTreeMap;

use ruma::{OwnedDeviceId, OwnedUserId, ServerName, UserId, encryption::KeyUsage};
use sallyport_core::e2ee::{
    CrossSigningPublicKey, KeyError, verify_device_keys, verify_one_time_key,
};
use sallyport_store::{
    CrossSigningKey, Incarnation, OneTimeKey, PoolKey, RemoteKeys, Replaced, Store,
};

use super::{KeysError, cross_signing::stored_device_key, device_signing_keys};

/// What a peer says about the keys of one of its users, as JSON texts.
#[derive(Clone, Debug)]
pub struct RemoteUser {
    /// Whose keys they are.
    pub user_id: OwnedUserId,
    /// Orders what the peer says about this user.
    pub stream_id: i64,
    /// Identity keys by device.
    pub devices: BTreeMap<OwnedDeviceId, String>,
    /// Fallback keys by device and id.
    pub fallback_keys: BTreeMap<OwnedDeviceId, BTreeMap<String, String>>,
    /// The master key.
    pub master: Option<String>,
    /// The self-signing key.
    pub self_signing: Option<String>,
}

/// Verifies what a peer says about one of its users, and replaces what was known.
///
/// # Errors
/// If a key is malformed or not signed, or the user is not of that server; then nothing was stored.
pub fn receive_user(
    store: &Store,
    origin: &ServerName,
    user: &RemoteUser,
) -> Result<Replaced, KeysError> {
    let user_id = user.user_id.clone();
    if user_id.server_name() != origin {
        return Err(KeysError::Key { id: user_id.to_string(), source: KeyError::OtherOwner });
    }
    let refused = |id: &dyn ToString| {
        let id = id.to_string();
        move |source| KeysError::Key { id, source }
    };
    let mut new = RemoteKeys { stream_id: user.stream_id, ..RemoteKeys::default() };
    // The owner's signatures come in the objects: cross-signed devices keep that of the self-signing key.
    let (master, self_signing) = verify_identity(user)?;
    for (device_id, json) in &user.devices {
        let verified = verify_device_keys(json, &user_id, device_id).map_err(refused(device_id))?;
        let mut keys = verified.json;
        if let Some(subkey) = &self_signing {
            keys = keep_cross_signature(json, &user_id, device_id, subkey).unwrap_or(keys);
        }
        new.devices.insert(device_id.clone(), keys);
        let fallback = user.fallback_keys.get(device_id).into_iter().flatten();
        let fallback = fallback.map(|(id, json)| {
            let key = verify_one_time_key(id, json, &user_id, device_id, &verified.ed25519);
            Ok(OneTimeKey { key_id: id.clone(), key: key.map_err(refused(id))? })
        });
        new.fallback_keys.insert(device_id.clone(), fallback.collect::<Result<_, KeysError>>()?);
    }
    let devices = device_signing_keys(&new.devices);
    new.master = master.as_ref().map(|master| CrossSigningKey {
        public_key: master.public_key().to_owned(),
        keys: master.master_json(&user_id, &devices),
    });
    if let (Some(master), Some(subkey)) = (&master, &self_signing) {
        let keys = subkey.subkey_json(&user_id, master).map_err(refused(&"self_signing"))?;
        let public_key = subkey.public_key().to_owned();
        new.self_signing = Some(CrossSigningKey { public_key, keys });
    }
    Ok(store.write(move |write| write.replace_remote_keys(&user_id, &new))?)
}

fn verify_identity(
    user: &RemoteUser,
) -> Result<(Option<CrossSigningPublicKey>, Option<CrossSigningPublicKey>), KeysError> {
    let parse = |json: &Option<String>, usage: KeyUsage| {
        let key =
            json.as_deref().map(|json| CrossSigningPublicKey::parse(json, &user.user_id, &usage));
        key.transpose().map_err(|source| KeysError::Key { id: usage.to_string(), source })
    };
    let master = parse(&user.master, KeyUsage::Master)?;
    let self_signing = parse(&user.self_signing, KeyUsage::SelfSigning)?;
    if self_signing.is_some() && master.is_none() {
        return Err(KeysError::NoMasterKey);
    }
    Ok((master, self_signing))
}

/// The identity keys with their own signature and that of the self-signing key, if the latter is there and right.
fn keep_cross_signature(
    json: &str,
    user_id: &UserId,
    device_id: &OwnedDeviceId,
    subkey: &CrossSigningPublicKey,
) -> Option<String> {
    let object = sallyport_core::e2ee::SignedObject::parse(json, usize::MAX).ok()?;
    object.verify(user_id, &subkey.key_id, &subkey.key).ok()?;
    let own = format!("ed25519:{device_id}");
    Some(object.to_json(|signer, id| signer == user_id && (id == own || id == subkey.key_id)))
}

/// Verifies and stores one-time keys that a peer allotted to us. Answers how many were refused: keys of devices that
/// we do not know, or not signed by them.
///
/// # Errors
/// If the database fails.
pub fn receive_pool_keys(
    store: &Store,
    origin: &ServerName,
    incarnation: Incarnation,
    keys: Vec<PoolKey>,
) -> Result<usize, KeysError> {
    let all = keys.len();
    let good = store.read(|read| {
        let mut good = Vec::new();
        for mut pool_key in keys {
            let PoolKey { user_id, device_id, key, .. } = &mut pool_key;
            let Some(signer) = stored_device_key(read, user_id, device_id)? else { continue };
            let verified = verify_one_time_key(&key.key_id, &key.key, user_id, device_id, &signer);
            if let Ok(json) = verified {
                key.key = json;
                good.push(pool_key);
            }
        }
        Ok::<_, sallyport_store::Error>(good)
    })?;
    let refused = all - good.len();
    let origin = origin.to_owned();
    store.write(move |write| write.receive_pool_keys(&origin, incarnation, &good))?;
    Ok(refused)
}
