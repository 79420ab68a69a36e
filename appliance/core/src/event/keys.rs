//! Server key documents: which key of a server may have signed an event of a given time.
//!
//! [Server-Server API, "Retrieving server keys"](https://spec.matrix.org/v1.16/server-server-api/#retrieving-server-keys);
//! the validity rule is that of [room version 5](https://spec.matrix.org/v1.16/rooms/v5/#signing-key-validity-period).

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, OwnedServerName, ServerName,
    api::federation::discovery::ServerSigningKeys, serde::Base64, signatures::PublicKeySet,
};

use crate::{limits, time::Millis};

/// A verified `/_matrix/key/v2/server` document, and when it was made.
#[derive(Debug, Clone)]
pub struct KeyDocument {
    keys: ServerSigningKeys,
    json: Box<str>,
    made: Millis,
}

/// Why a key document was refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyDocumentError {
    /// Larger than a PDU may be.
    #[error("the key document is larger than {} bytes", limits::PDU_BYTES_MAX)]
    TooLarge,
    /// Not a key document.
    #[error("not a server key document")]
    Json(#[source] serde_json::Error),
    /// It names another server.
    #[error("the key document is of {found}, not of {wanted}")]
    OtherServer {
        /// Server that the document names.
        found: OwnedServerName,
        /// Server that it should name.
        wanted: OwnedServerName,
    },
    /// It is not signed by one of its own keys.
    #[error("the key document is not signed by its own keys")]
    BadSignature(#[source] ruma::signatures::VerificationError),
}

impl KeyDocument {
    /// Verifies a key document of `server`; `made` is when it was signed, or at the latest when it was received.
    ///
    /// # Errors
    /// If it is malformed, of another server, or not signed by its own keys.
    pub fn verify(json: &str, server: &ServerName, made: Millis) -> Result<Self, KeyDocumentError> {
        if json.len() > limits::PDU_BYTES_MAX {
            return Err(KeyDocumentError::TooLarge);
        }
        let keys: ServerSigningKeys = serde_json::from_str(json).map_err(KeyDocumentError::Json)?;
        if keys.server_name != server {
            return Err(KeyDocumentError::OtherServer {
                found: keys.server_name,
                wanted: server.to_owned(),
            });
        }
        let object: CanonicalJsonObject =
            serde_json::from_str(json).map_err(KeyDocumentError::Json)?;
        let set: PublicKeySet =
            keys.verify_keys.iter().map(|(id, key)| (id.to_string(), key.key.clone())).collect();
        let map = BTreeMap::from([(server.to_string(), set)]);
        ruma::signatures::verify_json(&map, &object).map_err(KeyDocumentError::BadSignature)?;
        Ok(Self { keys, json: json.into(), made })
    }

    /// The document as it was signed.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The server whose keys these are.
    #[must_use]
    pub fn server_name(&self) -> &ServerName {
        &self.keys.server_name
    }

    /// When it was made.
    #[must_use]
    pub fn made(&self) -> Millis {
        self.made
    }

    /// Until when its current keys may be relied on: the lesser of `valid_until_ts` and seven days after it was made.
    #[must_use]
    pub fn valid_until(&self) -> Millis {
        let limit = Millis(self.made.0.saturating_add(limits::KEY_VALIDITY_MS_MAX));
        Millis::from(self.keys.valid_until_ts).min(limit)
    }

    /// The keys that may have signed an event of this time.
    #[must_use]
    pub fn keys_at(&self, time: Millis) -> PublicKeySet {
        let mut set = PublicKeySet::new();
        if time <= self.valid_until() {
            let current = self.keys.verify_keys.iter();
            set.extend(current.map(|(id, key)| (id.to_string(), key.key.clone())));
        }
        for (id, key) in &self.keys.old_verify_keys {
            if time < Millis::from(key.expired_ts) {
                set.insert(id.to_string(), key.key.clone());
            }
        }
        set
    }

    /// Every current public key with its id.
    pub fn current(&self) -> impl Iterator<Item = (&str, &Base64)> {
        self.keys.verify_keys.iter().map(|(id, key)| (id.as_str(), &key.key))
    }
}

/// What is known of a server's keys for an event of a given time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyLookup {
    /// These keys may have signed it.
    Keys(PublicKeySet),
    /// We have the server's keys, but none fresh enough: wait for a newer document.
    Stale,
    /// We know nothing of this server.
    Unknown,
}

/// Where decisions look for servers' keys.
pub trait KeySource {
    /// The keys of a server that may have signed an event of this time.
    fn keys(&self, server: &ServerName, time: Millis) -> KeyLookup;
}

impl KeySource for BTreeMap<OwnedServerName, KeyDocument> {
    fn keys(&self, server: &ServerName, time: Millis) -> KeyLookup {
        let Some(document) = self.get(server) else { return KeyLookup::Unknown };
        let keys = document.keys_at(time);
        if keys.is_empty() { KeyLookup::Stale } else { KeyLookup::Keys(keys) }
    }
}
