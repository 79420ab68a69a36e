//! Which of our keys a bundle was encrypted to, and what its private half does.

use std::io::Read;

use sallyport_core::{
    bundle::{PrivateHalf, Sealed, Unlocked},
    card::EncryptionKey,
    cose::KeyId,
    sign::KeyRole,
    time::Millis,
};
use sallyport_hsm::KeyName;
use sallyport_store::{HybridKey, Store};
use zeroize::Zeroizing;

use super::Error;
use crate::{
    app::App,
    service::{hybrid, own_keys, peers},
};

/// One of our encryption keys.
struct OurKey {
    public: EncryptionKey,
    private: Private,
}

/// Where its private half is.
enum Private {
    /// In the token.
    Held(KeyName),
    /// With us, wrapped by the token.
    Wrapped(HybridKey),
}

/// Opens a bundle with the key that its header names: peers use that of the newest card they have.
pub(super) fn unlock<R: Read>(
    app: &App,
    sealed: Sealed<R>,
    now: Millis,
) -> Result<Unlocked<R>, Error> {
    let token = app.token.as_deref().ok_or(peers::Error::NoToken)?;
    let OurKey { public, private } = named(&app.store, sealed.header().recipient_key, now)?;
    let server_name = &app.config.server_name;
    Ok(sealed.unlock(&public, |asked| match (asked, &private) {
        (PrivateHalf::Agree(point), Private::Held(name)) => {
            token.agree(name, point).map(|secret| Zeroizing::new(*secret.expose()))
        }
        (PrivateHalf::Seed, Private::Wrapped(key)) => hybrid::seed(token, server_name, key),
        // The suite of the public half says which it is.
        (PrivateHalf::Agree(_) | PrivateHalf::Seed, _) => Err(sallyport_hsm::Error::Damaged),
    })?)
}

/// Our key with this id, or the one in use: the error is then about that.
fn named(store: &Store, wanted: KeyId, now: Millis) -> Result<OurKey, Error> {
    let current = own_keys::required(store, KeyRole::CourierEncryption)?;
    for key in own_keys::usable(store, KeyRole::CourierEncryption)? {
        let public = peers::encryption_half(&key, now);
        if public.id() == wanted {
            return Ok(OurKey { public, private: Private::Held(key.name) });
        }
        let Some(hybrid) = store.read(|read| read.hybrid_key(&key.key.name))? else { continue };
        let public = hybrid::public_half(&hybrid, now);
        if public.id() == wanted {
            return Ok(OurKey { public, private: Private::Wrapped(hybrid) });
        }
    }
    let public = peers::encryption_half(&current, now);
    Ok(OurKey { public, private: Private::Held(current.name) })
}
