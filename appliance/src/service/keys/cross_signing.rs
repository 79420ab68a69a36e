//! Cross-signing keys and the signatures that users put on keys.
//!
//! [Cross-signing](https://spec.matrix.org/v1.16/client-server-api/#cross-signing).

use std::collections::BTreeMap;

use ruma::{DeviceId, OwnedUserId, UserId, encryption::KeyUsage};
use sallyport_core::{
    e2ee::{CrossSigningPublicKey, KeyError, SignedObject, signing_key},
    limits::{DEVICE_KEYS_BYTES_MAX, KEY_SIGNATURES_MAX},
};
use sallyport_store::{CrossSigningKey, KeySignature, Read, Store};
use vodozemac::Ed25519PublicKey;

use super::{ATTEMPTS, KeysError, device_signing_keys};

/// Cross-signing keys that a client uploads at once, as JSON texts.
#[derive(Clone, Debug, Default)]
pub struct SigningKeys {
    /// The master key.
    pub master: Option<String>,
    /// The self-signing key.
    pub self_signing: Option<String>,
    /// The user-signing key.
    pub user_signing: Option<String>,
}

/// What an upload of cross-signing keys would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningKeysChange {
    /// They are the first ones.
    First,
    /// They are there already: a client may repeat what it has no answer to.
    Nothing,
    /// They replace others, or add to them.
    Replaces,
}

/// What an upload of cross-signing keys would change: only what replaces keys needs the password.
///
/// # Errors
/// If the database fails.
pub fn signing_keys_change(
    store: &Store,
    user_id: &UserId,
    new: &SigningKeys,
) -> sallyport_store::Result<SigningKeysChange> {
    store.read(|read| {
        if stored_master(read, user_id)?.is_none() {
            return Ok(SigningKeysChange::First);
        }
        let keys = [
            (KeyUsage::Master, &new.master),
            (KeyUsage::SelfSigning, &new.self_signing),
            (KeyUsage::UserSigning, &new.user_signing),
        ];
        for (usage, json) in keys {
            let Some(json) = json else { continue };
            let stored = read.cross_signing_key(user_id, &usage)?;
            if !stored.is_some_and(|stored| is_same_object(&stored.keys, json)) {
                return Ok(SigningKeysChange::Replaces);
            }
        }
        Ok(SigningKeysChange::Nothing)
    })
}

/// Whether two objects are the same but for their signatures.
fn is_same_object(stored: &str, new: &str) -> bool {
    let parse = |json, bytes_max| SignedObject::parse(json, bytes_max).ok();
    match (parse(stored, usize::MAX), parse(new, DEVICE_KEYS_BYTES_MAX)) {
        (Some(stored), Some(new)) => stored.signed_part() == new.signed_part(),
        _ => false,
    }
}

/// Verifies and stores cross-signing keys
/// ([Client-Server API](https://spec.matrix.org/v1.16/client-server-api/#post_matrixclientv3keysdevice_signingupload)).
///
/// With `first_only` the keys are refused with [`KeysError::Conflict`] if there is a master key by now: two devices
/// may have begun at the same time without the password.
///
/// # Errors
/// [`KeysError`]; then nothing was stored.
pub fn upload_signing_keys(
    store: &Store,
    user_id: &UserId,
    keys: &SigningKeys,
    first_only: bool,
) -> Result<(), KeysError> {
    for _ in 0..ATTEMPTS {
        let based_on = store.read(|read| stored_master(read, user_id))?;
        let new = verify_signing_keys(store, user_id, keys, based_on.as_ref())?;
        let owner = user_id.to_owned();
        let stored = store.write(move |write| {
            let master = stored_master(write, &owner)?;
            if first_only && let Some(master) = master {
                return Err(KeysError::Conflict(master.public_key));
            }
            if master != based_on {
                return Ok(false);
            }
            for (usage, key) in &new {
                write.set_cross_signing_key(&owner, usage, key)?;
            }
            Ok(true)
        });
        if stored? {
            return Ok(());
        }
    }
    Err(KeysError::Busy)
}

fn stored_master(
    read: &Read<'_>,
    user_id: &UserId,
) -> sallyport_store::Result<Option<CrossSigningKey>> {
    read.cross_signing_key(user_id, &KeyUsage::Master)
}

fn verify_signing_keys(
    store: &Store,
    user_id: &UserId,
    keys: &SigningKeys,
    stored: Option<&CrossSigningKey>,
) -> Result<Vec<(KeyUsage, CrossSigningKey)>, KeysError> {
    let refused = |usage: &KeyUsage| {
        let id = usage.to_string();
        move |source| KeysError::Key { id, source }
    };
    let parse = |json: &str, usage: &KeyUsage| {
        CrossSigningPublicKey::parse(json, user_id, usage).map_err(refused(usage))
    };
    let mut new = Vec::new();
    let master = match (&keys.master, stored) {
        (Some(json), _) => {
            let master = parse(json, &KeyUsage::Master)?;
            let devices = store.read(|read| read.all_device_keys(user_id))?;
            let json = master.master_json(user_id, &device_signing_keys(&devices));
            let public_key = master.public_key().to_owned();
            new.push((KeyUsage::Master, CrossSigningKey { public_key, keys: json }));
            Some(master)
        }
        (None, Some(stored)) => Some(parse(&stored.keys, &KeyUsage::Master)?),
        (None, None) => None,
    };
    let subkeys =
        [(KeyUsage::SelfSigning, &keys.self_signing), (KeyUsage::UserSigning, &keys.user_signing)];
    for (usage, json) in subkeys {
        let Some(json) = json else { continue };
        let master = master.as_ref().ok_or(KeysError::NoMasterKey)?;
        let key = parse(json, &usage)?;
        let json = key.subkey_json(user_id, master).map_err(refused(&usage))?;
        let public_key = key.public_key().to_owned();
        new.push((usage, CrossSigningKey { public_key, keys: json }));
    }
    Ok(new)
}

/// Why one signature was refused.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// There is no such device or key.
    #[error("there is no such device or master key")]
    NotFound,
    /// The signed object is not the one that is stored.
    #[error("the signed object differs from the one that was uploaded")]
    Differs,
    /// The signature is missing, wrong, or by a key that may not sign this.
    #[error("the signature is not acceptable")]
    Key(#[from] KeyError),
    /// More signatures than one request may carry.
    #[error("there are too many signatures")]
    TooMany,
}

/// Signatures that were refused, by user and by device id or key.
pub type Failures = BTreeMap<OwnedUserId, BTreeMap<String, SignatureError>>;

/// A signature that was found right.
struct Accepted {
    user_id: OwnedUserId,
    target: String,
    signer_key_id: String,
    signature: String,
}

/// Verifies and stores the signatures in objects that `signer` has signed
/// ([Client-Server API](https://spec.matrix.org/v1.16/client-server-api/#post_matrixclientv3keyssignaturesupload)):
/// those of the self-signing key on the signer's devices, of the signer's devices on the signer's master key, and of
/// the user-signing key on others' master keys.
///
/// # Errors
/// If the database fails. Signatures that were refused are in the answer; the others are stored.
pub fn upload_signatures(
    store: &Store,
    signer: &UserId,
    objects: &BTreeMap<OwnedUserId, BTreeMap<String, String>>,
) -> sallyport_store::Result<Failures> {
    let mut failures = Failures::new();
    let mut accepted = Vec::new();
    store.read(|read| {
        for (user_id, objects) in objects {
            for (target, json) in objects {
                let verified = if accepted.len() < KEY_SIGNATURES_MAX {
                    verify_signature(read, signer, user_id, target, json)?
                } else {
                    Err(SignatureError::TooMany)
                };
                match verified {
                    Ok(found) => accepted.extend(found),
                    Err(error) => {
                        failures.entry(user_id.clone()).or_default().insert(target.clone(), error);
                    }
                }
            }
        }
        Ok::<_, sallyport_store::Error>(())
    })?;
    let signer = signer.to_owned();
    store.write(move |write| {
        for new in &accepted {
            write.add_key_signature(&KeySignature {
                user_id: &new.user_id,
                target: &new.target,
                signer: &signer,
                signer_key_id: &new.signer_key_id,
                signature: &new.signature,
            })?;
        }
        Ok::<_, sallyport_store::Error>(())
    })?;
    Ok(failures)
}

/// The signatures of `signer` in an object, if all of them are right and there is at least one.
fn verify_signature(
    read: &Read<'_>,
    signer: &UserId,
    user_id: &UserId,
    target: &str,
    json: &str,
) -> sallyport_store::Result<Result<Vec<Accepted>, SignatureError>> {
    let master = read.cross_signing_key(user_id, &KeyUsage::Master)?;
    let master = master.filter(|master| master.public_key == target);
    let on_master = master.is_some();
    let stored = match master {
        Some(master) => Some(master.keys),
        // Others' devices are signed by their owners alone.
        None if user_id == signer => read.device_keys(user_id, <&DeviceId>::from(target))?,
        None => None,
    };
    let Some(stored) = stored else { return Ok(Err(SignatureError::NotFound)) };
    let signing_keys = if user_id != signer {
        cross_signing_key(read, signer, &KeyUsage::UserSigning)?
    } else if on_master {
        device_signing_keys(&read.all_device_keys(signer)?)
    } else {
        cross_signing_key(read, signer, &KeyUsage::SelfSigning)?
    };
    Ok(check(signer, user_id, target, json, &stored, &signing_keys))
}

fn check(
    signer: &UserId,
    user_id: &UserId,
    target: &str,
    json: &str,
    stored: &str,
    signing_keys: &BTreeMap<String, Ed25519PublicKey>,
) -> Result<Vec<Accepted>, SignatureError> {
    let object = SignedObject::parse(json, DEVICE_KEYS_BYTES_MAX)?;
    let stored = SignedObject::parse(stored, usize::MAX)?;
    if object.signed_part() != stored.signed_part() {
        return Err(SignatureError::Differs);
    }
    let mut accepted = Vec::new();
    for key_id in object.signing_keys(signer) {
        // Signatures that are stored already may come along, such as the device's own.
        if stored.signature(signer, key_id) == object.signature(signer, key_id) {
            continue;
        }
        let missing = || KeyError::BadSignature(format!("{signer} with {key_id}"));
        let key = signing_keys.get(key_id).ok_or_else(missing)?;
        object.verify(signer, key_id, key)?;
        accepted.push(Accepted {
            user_id: user_id.to_owned(),
            target: target.to_owned(),
            signer_key_id: key_id.to_owned(),
            signature: object.signature(signer, key_id).unwrap_or_default().to_owned(),
        });
    }
    Ok(accepted)
}

/// A cross-signing key of a user, by its id in signatures.
fn cross_signing_key(
    read: &Read<'_>,
    user_id: &UserId,
    usage: &KeyUsage,
) -> sallyport_store::Result<BTreeMap<String, Ed25519PublicKey>> {
    let key = read.cross_signing_key(user_id, usage)?;
    let parsed = key.and_then(|key| {
        let public = signing_key(&key.public_key)?;
        Some((format!("ed25519:{}", key.public_key), public))
    });
    Ok(parsed.into_iter().collect())
}
