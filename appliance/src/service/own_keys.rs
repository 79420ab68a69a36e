//! The box's keys: which the token holds, and the server key document that publishes the event key.
//!
//! Public halves and names are kept in the database, so that nothing but signing needs a present token.

use std::collections::BTreeMap;

use ruma::{OwnedServerSigningKeyId, ServerName};
use sallyport_core::{
    event::canonical_json,
    limits,
    sign::{Algorithm, KeyRole, PublicKey, SigningRequest},
    time::Millis,
};
use sallyport_hsm::{KeyKind, KeyName, Token};
use sallyport_store::{OwnKey, Store};
use serde_json::json;

/// Why a key is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the box's keys cannot be read or kept")]
    Store(#[from] sallyport_store::Error),
    /// The token failed.
    #[error("the token does not do it")]
    Token(#[from] sallyport_hsm::Error),
    /// The box has no such key yet: the token was never present.
    #[error("the box has no {0} key yet: connect the token, the key is made as soon as it answers")]
    None(KeyRole),
    /// What the database has is no key.
    #[error("the database holds a damaged {0} key")]
    Damaged(KeyRole),
}

/// A key in use.
#[derive(Debug, Clone)]
pub struct Current {
    /// The token's name of it.
    pub name: KeyName,
    /// How it is kept.
    pub key: OwnKey,
}

impl Current {
    /// A key as the database has it.
    ///
    /// # Errors
    /// If its name is none.
    pub fn of(key: OwnKey, role: KeyRole) -> Result<Self, Error> {
        let name = key.name.parse().map_err(|_| Error::Damaged(role))?;
        Ok(Self { name, key })
    }

    /// The Matrix key id of an event key.
    #[must_use]
    pub fn key_id(&self) -> Option<OwnedServerSigningKeyId> {
        format!("ed25519:{}", self.name.version()).try_into().ok()
    }
}

/// The roles of which a box has a key of its own, and what kind it is unless the token prefers another.
pub(crate) const ROLES: [(KeyRole, KeyKind); 4] = [
    (KeyRole::Event, KeyKind::Ed25519),
    (KeyRole::Courier, KeyKind::Ed25519),
    (KeyRole::CourierEncryption, KeyKind::P256),
    (KeyRole::Audit, KeyKind::P256),
];

/// The roles whose keys are replaced by order of a person, in this order.
pub const ROTATED: [KeyRole; 4] =
    [KeyRole::Event, KeyRole::Courier, KeyRole::CourierEncryption, KeyRole::Audit];

/// Makes the keys that the box lacks; one that the token has already is adopted.
///
/// # Errors
/// If the token or the database fails; asking again goes on where it stopped.
pub fn ensure(store: &Store, token: &dyn Token, now: Millis) -> Result<(), Error> {
    for (role, kind) in ROLES {
        ensure_one(store, token, role, kind, now)?;
    }
    Ok(())
}

/// The key of a role that is in use. If the box has none, it is made, or one that the token has already is adopted. What the box has retired is not
/// taken into use again.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_one(
    store: &Store,
    token: &dyn Token,
    role: KeyRole,
    kind: KeyKind,
    now: Millis,
) -> Result<Current, Error> {
    if let Some(current) = current(store, role)? {
        return Ok(current);
    }
    let current = adopt_or_make(store, token, role, kind, now)?;
    let key = current.key.clone();
    store.write(move |write| write.insert_own_key(&key))?;
    log::info!(key:% = current.name; "the box has a new key");
    Ok(current)
}

/// A key of a role that the box has never used: one that the token has already, or a new one. The box does not use it yet.
///
/// # Errors
/// As [`ensure`].
pub fn adopt_or_make(
    store: &Store,
    token: &dyn Token,
    role: KeyRole,
    kind: KeyKind,
    now: Millis,
) -> Result<Current, Error> {
    let known = store.read(|read| read.own_keys(role.as_str()))?;
    let is_known = |name: &KeyName| known.iter().any(|key| key.name == name.to_string());
    let mut theirs = token.keys()?.into_iter();
    let name = match theirs.find(|name| name.role() == role && !is_known(name)) {
        Some(name) => name,
        // Now that the token has listed its keys it knows what it can do.
        None => token.generate(role, token.kind_for(role).unwrap_or(kind))?,
    };
    let key = own_key(token, &name, now)?;
    Ok(Current { name, key })
}

/// Makes a new key of a role in the token. The box does not use it yet.
///
/// # Errors
/// If the token fails.
pub fn make(token: &dyn Token, role: KeyRole, now: Millis) -> Result<OwnKey, Error> {
    let kind = token.kind_for(role).ok_or_else(|| {
        sallyport_hsm::Error::Unsupported(format!("any kind of key for the role {role}"))
    })?;
    let name = token.generate(role, kind)?;
    own_key(token, &name, now)
}

/// Destroys a new key that was not taken into use: nothing names it, so that it would only lie about in the token.
pub fn discard(token: &dyn Token, key: &KeyName) {
    let gone = token.destroy(key).is_ok();
    log::warn!(key:%, gone; "a new key was not taken into use");
}

/// What the database keeps of a key that the token has.
fn own_key(token: &dyn Token, name: &KeyName, now: Millis) -> Result<OwnKey, Error> {
    Ok(of_public(name, &token.public_key(name)?, now))
}

/// What the database keeps of a key with this public half.
#[must_use]
pub fn of_public(name: &KeyName, public: &PublicKey, now: Millis) -> OwnKey {
    OwnKey {
        name: name.to_string(),
        role: name.role().as_str().to_owned(),
        algorithm: public.algorithm().as_str().to_owned(),
        public: public.as_bytes().to_vec(),
        created: now,
        retired: None,
        destroyed: None,
    }
}

/// The key of this name, whether it is in use or was replaced.
///
/// # Errors
/// [`Error::None`] if the box never had it.
pub fn named(store: &Store, name: &KeyName) -> Result<Current, Error> {
    let text = name.to_string();
    let keys = store.read(|read| read.own_keys(name.role().as_str()))?;
    let key = keys.into_iter().find(|key| key.name == text);
    let key = key.ok_or_else(|| Error::None(name.role()))?;
    Ok(Current { name: name.clone(), key })
}

/// The public half of one of the box's keys, as signatures are verified with it.
///
/// # Errors
/// If the database holds something else.
pub fn public_key(key: &OwnKey) -> Result<PublicKey, Error> {
    let damaged = || {
        let role = KeyRole::ALL.into_iter().find(|role| role.as_str() == key.role);
        Error::Damaged(role.unwrap_or(KeyRole::Event))
    };
    let algorithm = [Algorithm::Ed25519, Algorithm::P256]
        .into_iter()
        .find(|algorithm| algorithm.as_str() == key.algorithm)
        .ok_or_else(damaged)?;
    PublicKey::new(algorithm, &key.public).map_err(|_| damaged())
}

/// The key of a role that is in use, if there is one.
///
/// # Errors
/// If the database fails or holds something else.
pub fn current(store: &Store, role: KeyRole) -> Result<Option<Current>, Error> {
    let keys = store.read(|read| read.own_keys(role.as_str()))?;
    keys.into_iter().find(|key| key.retired.is_none()).map(|key| Current::of(key, role)).transpose()
}

/// The key of a role that is in use.
///
/// # Errors
/// [`Error::None`] if there is none yet.
pub fn required(store: &Store, role: KeyRole) -> Result<Current, Error> {
    current(store, role)?.ok_or(Error::None(role))
}

/// The keys of a role whose private halves are there, the current one first.
///
/// # Errors
/// If the database fails or holds something else.
pub fn usable(store: &Store, role: KeyRole) -> Result<Vec<Current>, Error> {
    let keys = store.read(|read| read.own_keys(role.as_str()))?;
    keys.into_iter()
        .filter(|key| key.destroyed.is_none())
        .map(|key| Current::of(key, role))
        .collect()
}

/// A fresh server key document, signed by the event key.
///
/// [Server-Server API, `GET /_matrix/key/v2/server`](https://spec.matrix.org/v1.16/server-server-api/#get_matrixkeyv2server).
/// It is valid for seven days, the longest that other servers rely on it.
///
/// # Errors
/// If there is no event key, or the token does not sign.
pub fn key_document(
    store: &Store,
    token: &dyn Token,
    server_name: &ServerName,
    now: Millis,
) -> Result<String, Error> {
    let role = KeyRole::Event;
    let event_key = required(store, role)?;
    let key_id = event_key.key_id().ok_or(Error::Damaged(role))?;
    let keys = store.read(|read| read.own_keys(role.as_str()))?;
    let mut old = BTreeMap::new();
    for key in keys {
        if let Some(retired) = key.retired {
            let name: KeyName = key.name.parse().map_err(|_| Error::Damaged(role))?;
            let id = format!("ed25519:{}", name.version());
            old.insert(id, json!({ "key": base64(&key.public), "expired_ts": retired.0 }));
        }
    }
    let mut document = json!({
        "server_name": server_name,
        "valid_until_ts": now.0.saturating_add(limits::KEY_VALIDITY_MS_MAX),
        "verify_keys": { key_id.as_str(): { "key": base64(&event_key.key.public) } },
        "old_verify_keys": old,
    });
    let unsigned = canonical_json(&document).ok_or(Error::Damaged(role))?;
    let request = SigningRequest::KeyDocument { json: unsigned };
    let signature = token.sign(&event_key.name, &request)?;
    if let Some(document) = document.as_object_mut() {
        let signatures =
            json!({ server_name.as_str(): { key_id.as_str(): signature.to_base64() } });
        document.insert("signatures".to_owned(), signatures);
    }
    canonical_json(&document).ok_or(Error::Damaged(role))
}

fn base64(bytes: &[u8]) -> String {
    ruma::serde::Base64::<ruma::serde::base64::Standard, _>::new(bytes).encode()
}
