//! Sessions of members: logging in and out, and from an access token to the account and the device it belongs to.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{OwnedDeviceId, OwnedUserId, ServerName, UserId};
use sallyport_core::{
    limits::{
        ACCESS_TOKEN_MS, DEVICE_ID_BYTES_MAX, DISPLAY_NAME_BYTES_MAX, LAST_SEEN_MS,
        PASSWORD_BYTES_MAX, SESSIONS_CACHED,
    },
    time::Millis,
};
use sallyport_store::{NewSession, NewTokens, Session, Store};

use super::{attempts::Attempts, passwords, pepper::Pepper};

/// The hash of a token ([`Pepper::token`]): all that the box keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenHash(pub [u8; 32]);

/// The account and the device that an access token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The account.
    pub user_id: OwnedUserId,
    /// The device the token was issued to.
    pub device_id: OwnedDeviceId,
}

/// A valid access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Whose it is.
    pub identity: Identity,
    /// Whether the account is locked: then it may do no more than log out.
    pub locked: bool,
}

/// Why a token stands for nobody.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It was never issued, or its session has ended.
    #[error("the token is not known")]
    Unknown,
    /// It has expired; the client can refresh it.
    #[error("the token has expired")]
    Expired,
    /// The database failed.
    #[error("the session could not be looked up")]
    Store(#[from] sallyport_store::Error),
}

/// Access tokens that were looked up before.
///
/// Emptied after every commit that ends a session or locks an account; what was read before such a commit and comes
/// later is not kept.
#[derive(Default)]
pub struct SessionCache(Mutex<Cached>);

#[derive(Default)]
struct Cached {
    epoch: u64,
    entries: BTreeMap<TokenHash, Entry>,
}

#[derive(Clone)]
struct Entry {
    authenticated: Authenticated,
    expires: Option<Millis>,
    seen: Millis,
}

impl SessionCache {
    /// The session of a token, if it was looked up not long ago.
    pub fn get(&self, hash: &TokenHash, now: Millis) -> Option<Authenticated> {
        let cached = self.lock();
        let entry = cached.entries.get(hash)?;
        let fresh = now.since(entry.seen) < Duration::from_millis(LAST_SEEN_MS);
        let valid = entry.expires.is_none_or(|expires| now < expires);
        (fresh && valid).then(|| entry.authenticated.clone())
    }

    /// Forgets everything: sessions have ended.
    pub fn clear(&self) {
        let mut cached = self.lock();
        cached.epoch += 1;
        cached.entries.clear();
    }

    fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    fn insert(&self, epoch: u64, hash: TokenHash, entry: Entry) {
        let mut cached = self.lock();
        if cached.epoch != epoch {
            return;
        }
        if cached.entries.len() >= SESSIONS_CACHED {
            cached.entries.clear();
        }
        cached.entries.insert(hash, entry);
    }

    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks up whom a token belongs to. Its first use ends the tokens that it replaced.
///
/// # Errors
/// If it is unknown or has expired.
pub fn authenticate(
    store: &Store,
    cache: &SessionCache,
    hash: TokenHash,
    address: Option<IpAddr>,
    now: Millis,
) -> Result<Authenticated, TokenError> {
    let epoch = cache.epoch();
    let session = store.read(|read| read.session(&hash.0))?.ok_or(TokenError::Unknown)?;
    if session.expires.is_some_and(|expires| expires <= now) {
        return Err(TokenError::Expired);
    }
    let identity =
        Identity { user_id: session.user_id.clone(), device_id: session.device_id.clone() };
    if session.generation > session.used_generation {
        let (user_id, device_id) = (session.user_id.clone(), session.device_id.clone());
        let generation = session.generation;
        store.write(move |write| write.confirm_tokens(&user_id, &device_id, generation))?;
    }
    let stale = |seen: Millis| now.since(seen) >= Duration::from_millis(LAST_SEEN_MS);
    if session.last_seen.is_none_or(stale) {
        note_seen(store, &identity, address, now);
    }
    let authenticated = Authenticated { identity, locked: session.locked };
    let entry = Entry { authenticated: authenticated.clone(), expires: session.expires, seen: now };
    cache.insert(epoch, hash, entry);
    Ok(authenticated)
}

/// Nobody waits for this to be on disk.
fn note_seen(store: &Store, identity: &Identity, address: Option<IpAddr>, now: Millis) {
    let Identity { user_id, device_id } = identity.clone();
    let address = address.map(|address| address.to_string());
    store.submit(
        move |write| write.note_device_seen(&user_id, &device_id, now, address.as_deref()),
        |answer: sallyport_store::Result<()>| {
            if let Err(error) = answer {
                log::warn!(error:err = error; "the time a device was seen could not be noted");
            }
        },
    );
}

/// Fresh random values for a session, and what its tokens are hashed with.
pub struct Fresh {
    random: [u8; 72],
    pepper: Pepper,
}

impl Fresh {
    /// From random bytes.
    pub fn new(random: [u8; 72], pepper: &Pepper) -> Self {
        Self { random, pepper: pepper.clone() }
    }

    fn token(&self, prefix: &str, from: usize) -> String {
        let bytes = self.random.get(from..from + 32).unwrap_or_default();
        format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    fn access_token(&self) -> String {
        self.token("spa_", 0)
    }

    fn refresh_token(&self) -> String {
        self.token("spr_", 32)
    }

    /// Ten letters, as other servers choose them.
    fn device_id(&self) -> OwnedDeviceId {
        let bytes = self.random.get(64..).unwrap_or_default();
        let mut number = bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let letters = std::iter::from_fn(|| {
            let letter = char::from(b'A' + u8::try_from(number % 26).unwrap_or_default());
            number /= 26;
            Some(letter)
        });
        letters.take(10).collect::<String>().into()
    }
}

/// A wish to log in with a password.
pub struct LogIn {
    /// A localpart or a whole user id.
    pub user: String,
    /// The password.
    pub password: String,
    /// What kind of session is wanted.
    pub device: DeviceWish,
}

/// What a client wants of a new session.
#[derive(Clone, Debug, Default)]
pub struct DeviceWish {
    /// The device to log in on; a new one by default.
    pub device_id: Option<OwnedDeviceId>,
    /// The name of a device that is made.
    pub display_name: Option<String>,
    /// Whether the client can refresh tokens.
    pub refresh: bool,
}

/// A session that was just started or refreshed: the only time when its tokens are known.
#[derive(Debug)]
pub struct Started {
    /// The account.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The access token.
    pub access_token: String,
    /// The refresh token, if the client can refresh.
    pub refresh_token: Option<String>,
    /// How long the access token is valid; for good by default.
    pub expires_in: Option<Duration>,
}

/// Why a log-in failed.
#[derive(Debug, thiserror::Error)]
pub enum LogInError {
    /// The account does not exist, the password is wrong, or the account has none: which one is not said.
    #[error("the user or the password is wrong")]
    Forbidden,
    /// The password is right, but the account is locked.
    #[error("the account is locked")]
    Locked,
    /// Too many attempts failed.
    #[error("too many attempts failed")]
    TooMany(Duration),
    /// The device id or the device's name is too long.
    #[error("the device id or the name of the device is too long")]
    BadDevice,
    /// The password could not be checked.
    #[error("the password could not be checked")]
    Password(#[from] passwords::Error),
    /// The database failed.
    #[error("the session could not be stored")]
    Store(#[from] sallyport_store::Error),
}

/// Logs in with a password ([Client-Server API](https://spec.matrix.org/v1.16/client-server-api/#post_matrixclientv3login)).
///
/// # Errors
/// [`LogInError`]; an unknown account takes as long and says the same as a wrong password.
pub fn log_in(
    store: &Store,
    attempts: &Attempts,
    server_name: &ServerName,
    login: LogIn,
    origin: Option<IpAddr>,
    now: Millis,
    fresh: &Fresh,
) -> Result<Started, LogInError> {
    let user_id = full_user_id(&login.user, server_name);
    let known = user_id.clone().filter(|user_id| user_id.server_name() == server_name);
    attempts.begin(known.as_deref(), origin, now).map_err(LogInError::TooMany)?;
    let user_id = known.ok_or(LogInError::Forbidden);
    let right = match &user_id {
        Ok(user_id) => password_is_right(store, user_id, &login.password)?,
        Err(_) => passwords::verify(&login.password, None)?,
    };
    let user_id = user_id?;
    if !right {
        attempts.failed(Some(&user_id), origin, now);
        return Err(LogInError::Forbidden);
    }
    if store.read(|read| read.user(&user_id))?.is_none_or(|user| user.locked) {
        return Err(LogInError::Locked);
    }
    start(store, user_id, login.device, now, fresh)
}

/// Whether this is the password of an account. Takes as long if there is no such account.
///
/// # Errors
/// If the hash cannot be computed or the database fails.
pub fn password_is_right(
    store: &Store,
    user_id: &UserId,
    password: &str,
) -> Result<bool, LogInError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Ok(false);
    }
    let user = store.read(|read| read.user(user_id))?;
    let hash = user.and_then(|user| user.password_hash);
    Ok(passwords::verify(password, hash.as_deref())?)
}

/// The user id that a client means: a whole one, or a localpart of this server.
pub fn full_user_id(user: &str, server_name: &ServerName) -> Option<OwnedUserId> {
    UserId::parse_with_server_name(user, server_name).ok()
}

/// Starts a session of an account whose owner has proved who they are.
///
/// # Errors
/// If the device's id or name is too long, or the database fails.
pub fn start(
    store: &Store,
    user_id: OwnedUserId,
    wish: DeviceWish,
    now: Millis,
    fresh: &Fresh,
) -> Result<Started, LogInError> {
    let too_long = |id: &OwnedDeviceId| id.as_str().len() > DEVICE_ID_BYTES_MAX;
    if wish.device_id.as_ref().is_some_and(too_long)
        || wish.display_name.as_ref().is_some_and(|name| name.len() > DISPLAY_NAME_BYTES_MAX)
    {
        return Err(LogInError::BadDevice);
    }
    let device_id = wish.device_id.unwrap_or_else(|| fresh.device_id());
    let (tokens, started) = issue(user_id, device_id, wish.refresh, now, fresh);
    let new = NewSession {
        user_id: started.user_id.clone(),
        device_id: started.device_id.clone(),
        display_name: wish.display_name,
        tokens,
    };
    store.write(move |write| write.start_session(&new, now))?;
    Ok(started)
}

/// Makes new tokens from a refresh token
/// ([Client-Server API](https://spec.matrix.org/v1.16/client-server-api/#post_matrixclientv3refresh)).
///
/// # Errors
/// If the token is unknown.
pub fn refresh(
    store: &Store,
    refresh_token: &str,
    now: Millis,
    fresh: &Fresh,
) -> Result<Started, TokenError> {
    let hash = fresh.pepper.token(refresh_token);
    let session = store.read(|read| read.session_to_refresh(&hash.0))?;
    let session = session.ok_or(TokenError::Unknown)?;
    let (user_id, device_id) = (session.user_id, session.device_id);
    let (tokens, started) = issue(user_id, device_id, true, now, fresh);
    store.write(move |write| {
        // Looked up again: the session may have ended in between.
        let session: Session = write.session_to_refresh(&hash.0)?.ok_or(TokenError::Unknown)?;
        if session.generation > session.used_generation {
            write.confirm_tokens(&session.user_id, &session.device_id, session.generation)?;
        }
        write.refresh_session(&session, &tokens)?;
        Ok::<_, TokenError>(())
    })?;
    Ok(started)
}

/// Ends the session of a device, and the device with it.
///
/// # Errors
/// If the database fails.
pub fn log_out(store: &Store, identity: Identity) -> sallyport_store::Result<()> {
    let Identity { user_id, device_id } = identity;
    store.write(move |write| write.delete_devices(&user_id, Some(&[device_id]))).map(drop)
}

/// Ends all sessions of an account.
///
/// # Errors
/// If the database fails.
pub fn log_out_everywhere(store: &Store, user_id: OwnedUserId) -> sallyport_store::Result<()> {
    store.write(move |write| write.delete_devices(&user_id, None)).map(drop)
}

fn issue(
    user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    refresh: bool,
    now: Millis,
    fresh: &Fresh,
) -> (NewTokens, Started) {
    let access_token = fresh.access_token();
    let refresh_token = refresh.then(|| fresh.refresh_token());
    let expires_in = refresh.then(|| Duration::from_millis(ACCESS_TOKEN_MS));
    let tokens = NewTokens {
        access: fresh.pepper.token(&access_token).0,
        refresh: refresh_token.as_deref().map(|token| fresh.pepper.token(token).0),
        expires: expires_in.map(|period| now.plus(period)),
    };
    let started = Started { user_id, device_id, access_token, refresh_token, expires_in };
    (tokens, started)
}

#[cfg(test)]
mod tests {
    use sallyport_hsm::Secret32;

    use super::*;

    #[test]
    fn fresh_values_do_not_share_bytes() {
        let mut bytes = [0; 72];
        for (number, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(number).unwrap();
        }
        let fresh = Fresh::new(bytes, &Pepper::new(&Secret32::new(&[0; 32])));
        let access = fresh.access_token();
        assert_eq!(access.len(), 4 + 43);
        assert_ne!(access[4..], fresh.refresh_token()[4..]);
        assert_eq!(fresh.device_id().as_str().len(), 10);
    }

    #[test]
    fn what_was_read_before_a_session_ended_is_not_kept() {
        let cache = SessionCache::default();
        let hash = TokenHash([1; 32]);
        let entry = Entry {
            authenticated: Authenticated {
                identity: Identity {
                    user_id: "@alice:alpha.test".try_into().unwrap(),
                    device_id: "A".into(),
                },
                locked: false,
            },
            expires: Some(Millis(2_000)),
            seen: Millis(1_000),
        };
        let before = cache.epoch();
        cache.insert(before, hash, entry.clone());
        assert!(cache.get(&hash, Millis(1_500)).is_some());
        assert!(cache.get(&hash, Millis(2_000)).is_none(), "expired");
        cache.clear();
        assert!(cache.get(&hash, Millis(1_500)).is_none());
        cache.insert(before, hash, entry);
        assert!(cache.get(&hash, Millis(1_500)).is_none());
    }
}
