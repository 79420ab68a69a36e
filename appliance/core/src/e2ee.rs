//! End-to-end encryption keys, verified before anyone stores them.
//!
//! [Client-Server API, "End-to-End Encryption"](https://spec.matrix.org/v1.16/client-server-api/#end-to-end-encryption).
//! A server could pass keys on unseen. Ours checks shape and signatures first: what is stored here travels to other
//! enclaves, where a broken key would be noticed days later and by the wrong people.

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, DeviceId, UserId,
    encryption::{DeviceKeys, KeyUsage},
    serde::{Base64, base64::Standard},
    signatures::to_canonical_json_string_for_signing,
};
use vodozemac::{Curve25519PublicKey, Ed25519PublicKey, Ed25519Signature};

use crate::limits;

/// The only algorithm of one-time and fallback keys that is accepted: keys without a signature are worthless.
pub const SIGNED_CURVE25519: &str = "signed_curve25519";

/// Why a key was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Larger than any real one.
    #[error("the key object is larger than {max} bytes")]
    TooLarge {
        /// The bound in bytes.
        max: usize,
    },
    /// Not JSON, or JSON of another shape.
    #[error("the key object is malformed")]
    Malformed(#[source] serde_json::Error),
    /// It cannot be written as canonical JSON.
    #[error("the key object has no canonical form")]
    NotCanonical,
    /// It names another user or device.
    #[error("the key object belongs to another user or device")]
    OtherOwner,
    /// A key is missing, of a wrong length, or named differently than its value.
    #[error("the key {0} is missing or malformed")]
    BadKey(String),
    /// The usage does not say what the key was uploaded as.
    #[error("the usage of the cross-signing key is not {0}")]
    WrongUsage(&'static str),
    /// The algorithm is not one that can be signed.
    #[error("one-time and fallback keys must be of the algorithm signed_curve25519")]
    UnknownAlgorithm,
    /// The required signature is missing or wrong.
    #[error("the signature by {0} is missing or wrong")]
    BadSignature(String),
}

/// A signed JSON object whose canonical form is at hand.
#[derive(Clone, Debug)]
pub struct SignedObject {
    object: CanonicalJsonObject,
    signed: String,
}

impl SignedObject {
    /// Parses an object of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// If it is too large or has no canonical form.
    pub fn parse(json: &str, bytes_max: usize) -> Result<Self, KeyError> {
        if json.len() > bytes_max {
            return Err(KeyError::TooLarge { max: bytes_max });
        }
        let object: CanonicalJsonObject =
            serde_json::from_str(json).map_err(KeyError::Malformed)?;
        let signed =
            to_canonical_json_string_for_signing(&object).map_err(|_| KeyError::NotCanonical)?;
        Ok(Self { object, signed })
    }

    /// What a signature covers: the object without `signatures` and `unsigned`.
    #[must_use]
    pub fn signed_part(&self) -> &str {
        &self.signed
    }

    /// The signature of a user with the key of this id (`ed25519:…`).
    #[must_use]
    pub fn signature(&self, user: &UserId, key_id: &str) -> Option<&str> {
        self.signatures()?.get(user.as_str())?.as_object()?.get(key_id)?.as_str()
    }

    /// The ids of all keys with which a user signed.
    pub fn signing_keys(&self, user: &UserId) -> impl Iterator<Item = &str> {
        let keys = self.signatures().and_then(|all| all.get(user.as_str())?.as_object());
        keys.into_iter().flatten().map(|(key_id, _)| key_id.as_str())
    }

    /// Checks the signature of a user with a key.
    ///
    /// # Errors
    /// If there is none, or it is not by this key.
    pub fn verify(
        &self,
        user: &UserId,
        key_id: &str,
        key: &Ed25519PublicKey,
    ) -> Result<(), KeyError> {
        let bad = || KeyError::BadSignature(format!("{user} with {key_id}"));
        let signature = self.signature(user, key_id).ok_or_else(bad)?;
        let signature = Ed25519Signature::from_base64(signature).map_err(|_| bad())?;
        key.verify(self.signed.as_bytes(), &signature).map_err(|_| bad())
    }

    /// The object as JSON with only those signatures that `keep` says yes to, and without `unsigned`.
    #[must_use]
    pub fn to_json(&self, mut keep: impl FnMut(&str, &str) -> bool) -> String {
        let mut object = self.object.clone();
        object.remove("unsigned");
        if let Some(CanonicalJsonValue::Object(users)) = object.get_mut("signatures") {
            for (user, keys) in users.iter_mut() {
                if let CanonicalJsonValue::Object(keys) = keys {
                    keys.retain(|key_id, _| keep(user, key_id));
                }
            }
            users.retain(|_, keys| keys.as_object().is_some_and(|keys| !keys.is_empty()));
        }
        CanonicalJsonValue::Object(object).to_string()
    }

    fn signatures(&self) -> Option<&CanonicalJsonObject> {
        self.object.get("signatures")?.as_object()
    }

    fn parse_as<T: serde::de::DeserializeOwned>(&self) -> Result<T, KeyError> {
        let value = CanonicalJsonValue::Object(self.object.clone());
        serde_json::from_value(value.into()).map_err(KeyError::Malformed)
    }
}

/// The identity keys of a device, signed by itself.
#[derive(Clone, Debug)]
pub struct VerifiedDeviceKeys {
    /// The key that signs the device's one-time keys.
    pub ed25519: Ed25519PublicKey,
    /// The object with no signature but the device's own.
    pub json: String,
}

/// Verifies the identity keys of a device
/// ([`POST /keys/upload`](https://spec.matrix.org/v1.16/client-server-api/#post_matrixclientv3keysupload)).
///
/// # Errors
/// If it is malformed, of another user or device, or not signed by itself.
pub fn verify_device_keys(
    json: &str,
    user: &UserId,
    device: &DeviceId,
) -> Result<VerifiedDeviceKeys, KeyError> {
    let object = SignedObject::parse(json, limits::DEVICE_KEYS_BYTES_MAX)?;
    let keys: DeviceKeys = object.parse_as()?;
    if keys.user_id != user || keys.device_id != device {
        return Err(KeyError::OtherOwner);
    }
    let key_id = format!("ed25519:{device}");
    let mut ed25519 = None;
    for (id, key) in &keys.keys {
        let bad = || KeyError::BadKey(id.to_string());
        if id.key_name() != device {
            return Err(bad());
        }
        if id.as_str() == key_id {
            ed25519 = Some(signing_key(key).ok_or_else(bad)?);
        } else if id.as_str().starts_with("curve25519:") {
            Curve25519PublicKey::from_base64(key).map_err(|_| bad())?;
        }
    }
    let ed25519 = ed25519.ok_or_else(|| KeyError::BadKey(key_id.clone()))?;
    object.verify(user, &key_id, &ed25519)?;
    let json = object.to_json(|signer, id| signer == user && id == key_id);
    Ok(VerifiedDeviceKeys { ed25519, json })
}

/// The signing key within stored identity keys of a device.
#[must_use]
pub fn device_signing_key(json: &str, device: &DeviceId) -> Option<Ed25519PublicKey> {
    let keys: DeviceKeys = serde_json::from_str(json).ok()?;
    let wanted = format!("ed25519:{device}");
    let (_, key) = keys.keys.iter().find(|(id, _)| id.as_str() == wanted)?;
    signing_key(key)
}

/// A public signing key in Base64.
#[must_use]
pub fn signing_key(text: &str) -> Option<Ed25519PublicKey> {
    // Vodozemac's own reading panics at 33 bytes without padding.
    let bytes = Base64::<Standard>::parse(text).ok()?;
    Ed25519PublicKey::from_slice(bytes.as_bytes().try_into().ok()?).ok()
}

/// Verifies a one-time or fallback key against the signing key of its device, and answers its canonical form.
///
/// `key_id` is the whole id, such as `signed_curve25519:AAAAAQ`.
///
/// # Errors
/// If it is of another algorithm, malformed, or not signed by the device.
pub fn verify_one_time_key(
    key_id: &str,
    json: &str,
    user: &UserId,
    device: &DeviceId,
    device_key: &Ed25519PublicKey,
) -> Result<String, KeyError> {
    let Some((SIGNED_CURVE25519, name)) = key_id.split_once(':') else {
        return Err(KeyError::UnknownAlgorithm);
    };
    if name.is_empty() || key_id.len() > limits::IDENTIFIER_BYTES_MAX {
        return Err(KeyError::BadKey(key_id.to_owned()));
    }
    let object = SignedObject::parse(json, limits::ONE_TIME_KEY_BYTES_MAX)?;
    let key = object.object.get("key").and_then(CanonicalJsonValue::as_str);
    key.and_then(|key| Curve25519PublicKey::from_base64(key).ok())
        .ok_or_else(|| KeyError::BadKey(key_id.to_owned()))?;
    if object.object.get("fallback").is_some_and(|value| !value.is_bool()) {
        return Err(KeyError::BadKey(key_id.to_owned()));
    }
    let signer = format!("ed25519:{device}");
    object.verify(user, &signer, device_key)?;
    Ok(object.to_json(|who, id| who == user && id == signer))
}

/// A cross-signing key.
#[derive(Clone, Debug)]
pub struct CrossSigningPublicKey {
    /// The key itself.
    pub key: Ed25519PublicKey,
    /// Its id in signatures: `ed25519:` and the key in unpadded base64.
    pub key_id: String,
    /// The object as it was uploaded.
    pub object: SignedObject,
}

impl CrossSigningPublicKey {
    /// Parses a cross-signing key of a user, which must have this usage.
    ///
    /// # Errors
    /// If it is malformed, of another user, or meant for something else.
    pub fn parse(json: &str, user: &UserId, usage: &KeyUsage) -> Result<Self, KeyError> {
        let object = SignedObject::parse(json, limits::DEVICE_KEYS_BYTES_MAX)?;
        let parsed: ruma::encryption::CrossSigningKey = object.parse_as()?;
        if parsed.user_id != user {
            return Err(KeyError::OtherOwner);
        }
        if !parsed.usage.contains(usage) {
            return Err(KeyError::WrongUsage(usage_name(usage)));
        }
        let mut keys = parsed.keys.iter();
        let (Some((id, key)), None) = (keys.next(), keys.next()) else {
            return Err(KeyError::BadKey("ed25519".to_owned()));
        };
        let bad = || KeyError::BadKey(id.to_string());
        let public = signing_key(key).ok_or_else(bad)?;
        let key_id = format!("ed25519:{key}");
        if id.as_str() != key_id {
            return Err(bad());
        }
        Ok(Self { key: public, key_id, object })
    }

    /// The key in unpadded base64.
    #[must_use]
    pub fn public_key(&self) -> &str {
        self.key_id.strip_prefix("ed25519:").unwrap_or_default()
    }

    /// A master key as JSON with only the signatures by those of its user's devices that are in `devices`
    /// (key id to key) and that are right.
    #[must_use]
    pub fn master_json(
        &self,
        user: &UserId,
        devices: &BTreeMap<String, Ed25519PublicKey>,
    ) -> String {
        self.object.to_json(|signer, key_id| {
            signer == user
                && devices
                    .get(key_id)
                    .is_some_and(|key| self.object.verify(user, key_id, key).is_ok())
        })
    }

    /// A self-signing or user-signing key as JSON with only its master's signature.
    ///
    /// # Errors
    /// If the master key did not sign it.
    pub fn subkey_json(&self, user: &UserId, master: &Self) -> Result<String, KeyError> {
        self.object.verify(user, &master.key_id, &master.key)?;
        Ok(self.object.to_json(|signer, key_id| signer == user && key_id == master.key_id))
    }
}

fn usage_name(usage: &KeyUsage) -> &'static str {
    match usage {
        KeyUsage::Master => "master",
        KeyUsage::SelfSigning => "self_signing",
        KeyUsage::UserSigning => "user_signing",
        _ => "known",
    }
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};
    use serde_json::{Value, json};
    use vodozemac::{Ed25519SecretKey, olm::Account};

    use super::*;

    fn sign(mut object: Value, user: &UserId, key_id: &str, key: &Ed25519SecretKey) -> Value {
        let signed = SignedObject::parse(&object.to_string(), 100_000).unwrap();
        let signature = key.sign(signed.signed_part().as_bytes()).to_base64();
        object["signatures"][user.as_str()][key_id] = signature.into();
        object
    }

    fn device_keys(key: &Ed25519SecretKey) -> Value {
        let account = Account::new();
        let object = json!({
            "user_id": "@alice:alpha.test",
            "device_id": "DEVICE",
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {
                "ed25519:DEVICE": key.public_key().to_base64(),
                "curve25519:DEVICE": account.curve25519_key().to_base64(),
            },
            "signatures": {},
        });
        sign(object, user_id!("@alice:alpha.test"), "ed25519:DEVICE", key)
    }

    #[test]
    fn a_signing_key_has_32_bytes() {
        let key = Ed25519SecretKey::new().public_key();
        assert_eq!(signing_key(&key.to_base64()), Some(key));
        assert_eq!(signing_key(&format!("{}=", key.to_base64())), Some(key));
        for length in [0, 42, 44, 64] {
            assert_eq!(signing_key(&"/".repeat(length)), None, "{length}");
        }
    }

    #[test]
    fn device_keys_must_be_of_the_device_and_signed_by_it() {
        let key = Ed25519SecretKey::new();
        let good = device_keys(&key);
        let verify = |object: &Value, user: &UserId, device: &DeviceId| {
            verify_device_keys(&object.to_string(), user, device)
        };
        let (alice, device) = (user_id!("@alice:alpha.test"), device_id!("DEVICE"));
        let verified = verify(&good, alice, device).unwrap();
        assert_eq!(verified.ed25519, key.public_key());
        assert_eq!(device_signing_key(&verified.json, device), Some(key.public_key()));

        let other = user_id!("@bob:alpha.test");
        assert!(matches!(verify(&good, other, device), Err(KeyError::OtherOwner)));
        assert!(matches!(verify(&good, alice, device_id!("OTHER")), Err(KeyError::OtherOwner)));
        let mut changed = good.clone();
        changed["algorithms"] = json!(["m.megolm.v1.aes-sha2"]);
        assert!(matches!(verify(&changed, alice, device), Err(KeyError::BadSignature(_))));
        let mut unsigned = good.clone();
        unsigned["signatures"] = json!({});
        assert!(matches!(verify(&unsigned, alice, device), Err(KeyError::BadSignature(_))));
        let mut large = good.clone();
        large["junk"] = "x".repeat(limits::DEVICE_KEYS_BYTES_MAX).into();
        assert!(matches!(verify(&large, alice, device), Err(KeyError::TooLarge { .. })));
        let mut named = good;
        named["signatures"]["@bob:alpha.test"]["ed25519:X"] = "nonsense".into();
        named["unsigned"]["device_display_name"] = "x".into();
        let json = verify(&named, alice, device).unwrap().json;
        assert!(!json.contains("@bob") && !json.contains("unsigned"), "{json}");
    }

    #[test]
    fn one_time_keys_must_be_signed_by_the_device() {
        let (alice, device) = (user_id!("@alice:alpha.test"), device_id!("DEVICE"));
        let key = Ed25519SecretKey::new();
        let one_time = Account::new().curve25519_key().to_base64();
        let good = sign(json!({ "key": one_time }), alice, "ed25519:DEVICE", &key).to_string();
        let verify = |id: &str, json: &str, key: &Ed25519SecretKey| {
            verify_one_time_key(id, json, alice, device, &key.public_key())
        };
        verify("signed_curve25519:AAAAAQ", &good, &key).unwrap();
        let unknown = verify("curve25519:AAAAAQ", &good, &key);
        assert!(matches!(unknown, Err(KeyError::UnknownAlgorithm)));
        let stranger = verify("signed_curve25519:AAAAAQ", &good, &Ed25519SecretKey::new());
        assert!(matches!(stranger, Err(KeyError::BadSignature(_))));
        let short = sign(json!({ "key": "AAAA" }), alice, "ed25519:DEVICE", &key).to_string();
        assert!(matches!(verify("signed_curve25519:A", &short, &key), Err(KeyError::BadKey(_))));
    }

    #[test]
    fn subkeys_must_be_signed_by_the_master() {
        let alice = user_id!("@alice:alpha.test");
        let cross = |usage: &str, key: &Ed25519SecretKey| {
            let public = key.public_key().to_base64();
            json!({
                "user_id": alice, "usage": [usage], "keys": { format!("ed25519:{public}"): public },
            })
        };
        let (master, own) = (Ed25519SecretKey::new(), Ed25519SecretKey::new());
        let parse = |object: &Value, usage: &KeyUsage| {
            CrossSigningPublicKey::parse(&object.to_string(), alice, usage)
        };
        let public = parse(&cross("master", &master), &KeyUsage::Master).unwrap();
        assert_eq!(public.public_key(), master.public_key().to_base64());
        let bare = cross("self_signing", &own);
        let subkey = parse(&bare, &KeyUsage::SelfSigning).unwrap();
        assert!(matches!(subkey.subkey_json(alice, &public), Err(KeyError::BadSignature(_))));
        let signed = sign(bare.clone(), alice, &public.key_id, &master);
        let subkey = parse(&signed, &KeyUsage::SelfSigning).unwrap();
        assert!(subkey.subkey_json(alice, &public).unwrap().contains("signatures"));
        assert!(matches!(
            parse(&bare, &KeyUsage::UserSigning),
            Err(KeyError::WrongUsage("user_signing"))
        ));
    }

    #[test]
    fn a_master_key_keeps_only_right_signatures() {
        let alice = user_id!("@alice:alpha.test");
        let (master, device) = (Ed25519SecretKey::new(), Ed25519SecretKey::new());
        let public = master.public_key().to_base64();
        let object = json!({
            "user_id": alice, "usage": ["master"], "keys": { format!("ed25519:{public}"): public },
        });
        let mut object = sign(object, alice, "ed25519:DEVICE", &device);
        object["signatures"]["@alice:alpha.test"]["ed25519:GONE"] = "AAAA".into();
        let parsed =
            CrossSigningPublicKey::parse(&object.to_string(), alice, &KeyUsage::Master).unwrap();
        let devices = BTreeMap::from([("ed25519:DEVICE".to_owned(), device.public_key())]);
        let json = parsed.master_json(alice, &devices);
        assert!(json.contains("ed25519:DEVICE") && !json.contains("GONE"), "{json}");
    }
}
