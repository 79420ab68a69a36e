//! The vault's file: JSON, replaced as a whole, for this user only.

use std::{collections::BTreeMap, path::Path};

use ring::hmac;
use ruma::serde::{Base64, base64::Standard};
use sallyport_hsm::{
    KeyName, Secret32,
    seal::{seal, unseal},
};
use serde::{Deserialize, Serialize};

use super::{Error, Name};
use crate::files::{self, Readers};

const VERSION: u64 = 1;

/// AES-256-GCM: nonce ‖ ciphertext ‖ tag.
type Sealed = Base64<Standard, Vec<u8>>;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    version: u64,
    #[serde(rename = "box")]
    by_box: BySealing,
    /// The data key, wrapped by a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<Wrapped>,
    /// Each sealed with the data key.
    pub(super) secrets: BTreeMap<Name, Sealed>,
}

/// The data key, sealed with the box key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BySealing {
    /// Tells a wrong key from a damaged file.
    key_id: String,
    sealed: Sealed,
}

/// The data key, wrapped by a storage key of a token.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wrapped {
    pub(super) key: KeyName,
    pub(super) sealed: Sealed,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

impl Content {
    /// An empty vault.
    pub(super) fn new(
        data_key: &Secret32,
        box_key: &Secret32,
    ) -> Result<Self, sallyport_hsm::Error> {
        let by_box = BySealing::new(data_key, box_key)?;
        Ok(Self { version: VERSION, by_box, token: None, secrets: BTreeMap::new() })
    }

    pub(super) fn parse(stored: &[u8], path: &Path) -> Result<Self, Error> {
        let damaged = |_| Error::Damaged { path: path.to_owned() };
        let Version { version } = serde_json::from_slice(stored).map_err(damaged)?;
        if version != VERSION {
            return Err(Error::Version { path: path.to_owned(), version });
        }
        serde_json::from_slice(stored).map_err(damaged)
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let json = self.to_json(path)?;
        Ok(files::replace(path, &json, Readers::None).map_err(files::failed("write", path))?)
    }

    pub(super) fn to_json(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let json = serde_json::to_vec_pretty(self);
        Ok(json.map_err(|error| files::failed("write", path)(std::io::Error::from(error)))?)
    }

    /// The data key, if it was sealed with this box key.
    pub(super) fn open_with(
        &self,
        box_key: &Secret32,
        path: &Path,
    ) -> Result<Option<Secret32>, Error> {
        if self.by_box.key_id != key_id(box_key) {
            return Ok(None);
        }
        let damaged = || Error::Damaged { path: path.to_owned() };
        let data_key = unseal(box_key, &aad("data-key"), self.by_box.sealed.as_bytes());
        let data_key = data_key.ok().and_then(|key| Secret32::from_slice(&key));
        data_key.ok_or_else(damaged).map(Some)
    }

    pub(super) fn seal_to(
        &mut self,
        data_key: &Secret32,
        box_key: &Secret32,
    ) -> Result<(), sallyport_hsm::Error> {
        self.by_box = BySealing::new(data_key, box_key)?;
        Ok(())
    }

    pub(super) fn put(
        &mut self,
        data_key: &Secret32,
        name: Name,
        secret: &[u8],
    ) -> Result<(), sallyport_hsm::Error> {
        let sealed = seal(data_key, &aad(name.as_str()), secret)?;
        self.secrets.insert(name, Base64::new(sealed));
        Ok(())
    }

    /// Opens every secret, so that damage is seen at the start and not on the day the secret is needed.
    pub(super) fn check(&self, data_key: &Secret32, path: &Path) -> Result<(), Error> {
        let whole = self
            .secrets
            .iter()
            .all(|(name, sealed)| unseal(data_key, &aad(name.as_str()), sealed.as_bytes()).is_ok());
        let complete = Name::KEYS.iter().all(|name| self.secrets.contains_key(name));
        if whole && complete { Ok(()) } else { Err(Error::Damaged { path: path.to_owned() }) }
    }
}

impl BySealing {
    fn new(data_key: &Secret32, box_key: &Secret32) -> Result<Self, sallyport_hsm::Error> {
        let sealed = seal(box_key, &aad("data-key"), data_key.expose())?;
        Ok(Self { key_id: key_id(box_key), sealed: Base64::new(sealed) })
    }
}

/// What sealed bytes are bound to: this version of the file, and their place in it.
pub(super) fn aad(what: &str) -> Vec<u8> {
    format!("sallyport/vault/{VERSION}|{what}").into_bytes()
}

/// Names a box key and says nothing of it.
fn key_id(key: &Secret32) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
    let tag = hmac::sign(&key, &aad("key-id"));
    tag.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
