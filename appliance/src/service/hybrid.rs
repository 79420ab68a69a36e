//! Hybrid encryption keys: what is copied from a stick today must stay closed when quantum computers break the curves.
//!
//! No token knows ML-KEM yet, so the seed of such a key is made here and wrapped by a key of the token that wraps nothing else. When the
//! courier encryption key beside it is destroyed, that key of the token is destroyed too, and no copy of the database opens the seed any more.

use ruma::ServerName;
use sallyport_core::{card::EncryptionKey, sign::KeyRole, time::Millis};
use sallyport_hsm::{KeyName, Secret32, Token};
use sallyport_store::{HybridKey, Store};
use zeroize::Zeroizing;

use super::own_keys::{self, Current, Error};

/// Makes the hybrid key that goes with the courier encryption key in use, if there is none and the token can wrap.
///
/// # Errors
/// If the token or the database fails.
pub fn ensure(store: &Store, token: &dyn Token, server_name: &ServerName) -> Result<(), Error> {
    let Some(current) = own_keys::current(store, KeyRole::CourierEncryption)? else {
        return Ok(());
    };
    if store.read(|read| read.hybrid_key(&current.key.name))?.is_some() {
        return Ok(());
    }
    // After a hand-over the keys are in the new token, and the box still has the old one until it is restarted.
    if !token.keys()?.contains(&current.name) {
        return Ok(());
    }
    let Some(kind) = token.kind_for(KeyRole::CourierStorage) else { return Ok(()) };
    let storage = token.generate(KeyRole::CourierStorage, kind)?;
    let kept = make(store, token, server_name, &current, &storage);
    if !matches!(kept, Ok(true)) {
        own_keys::discard(token, &storage);
    }
    kept.map(drop)
}

fn make(
    store: &Store,
    token: &dyn Token,
    server_name: &ServerName,
    current: &Current,
    storage: &KeyName,
) -> Result<bool, Error> {
    let seed = Secret32::random()?;
    let wrapped = token.wrap(storage, &seed, &aad(server_name, &current.key.name))?;
    let again = token.unwrap(storage, &wrapped, &aad(server_name, &current.key.name))?;
    if again.expose() != seed.expose() {
        return Err(sallyport_hsm::Error::Damaged.into());
    }
    let public = EncryptionKey::x_wing(seed.expose(), Millis(0)).public;
    let wrapped_by = storage.to_string();
    let key = HybridKey { key: current.key.name.clone(), public, storage: wrapped_by, wrapped };
    let kept = store.write(move |write| write.insert_hybrid_key(&key))?;
    log::info!(key:% = current.name, wrapped_by:% = storage; "the box has a new hybrid key");
    Ok(kept)
}

/// The private half.
///
/// # Errors
/// If the token does not open it.
pub fn seed(
    token: &dyn Token,
    server_name: &ServerName,
    key: &HybridKey,
) -> Result<Zeroizing<[u8; 32]>, sallyport_hsm::Error> {
    let seed = token.unwrap(&storage(key)?, &key.wrapped, &aad(server_name, &key.key))?;
    Ok(Zeroizing::new(*seed.expose()))
}

/// The token's key that wraps the private half.
///
/// # Errors
/// If the database holds no name of a key.
pub fn storage(key: &HybridKey) -> Result<KeyName, sallyport_hsm::Error> {
    key.storage.parse().map_err(|_no_name| sallyport_hsm::Error::Damaged)
}

/// The public half, as cards and bundles name it.
#[must_use]
pub fn public_half(key: &HybridKey, not_after: Millis) -> EncryptionKey {
    let suite = sallyport_core::card::EncryptionSuite::XWingHkdfSha256Aes256Gcm.code();
    EncryptionKey { suite, public: key.public.clone(), not_after }
}

fn aad(server_name: &ServerName, key: &str) -> Vec<u8> {
    format!("sallyport/hybrid-key/1|{server_name}|{key}").into_bytes()
}
