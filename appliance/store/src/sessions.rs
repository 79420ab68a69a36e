//! Sessions: access and refresh tokens, of which only the SHA-256 is kept.
//!
//! [Refreshing access tokens](https://spec.matrix.org/v1.16/client-server-api/#refreshing-access-tokens): tokens come in
//! pairs, numbered by generation within their device. The old pair stays good until the new one is used for the
//! first time, so that an answer that was lost locks nobody out.

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use rusqlite::{OptionalExtension, Row, params};
use sallyport_core::time::Millis;

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    value::{device_id, millis, to_sql, user_id as parse_user_id},
};

/// The SHA-256 of a token.
pub type TokenHash = [u8; 32];

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The account.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// When the token expires, if it does.
    pub expires: Option<Millis>,
    /// Whether the account is locked.
    pub locked: bool,
    /// Number of the token's pair within the device.
    pub generation: i64,
    /// Newest number of which a token was used.
    pub used_generation: i64,
    /// When the device was last heard of.
    pub last_seen: Option<Millis>,
}

/// A session to start.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The account.
    pub user_id: OwnedUserId,
    /// The device; made if there is none of this id.
    pub device_id: OwnedDeviceId,
    /// Name for a device that is made.
    pub display_name: Option<String>,
    /// The tokens.
    pub tokens: NewTokens,
}

/// A pair of tokens to remember.
#[derive(Clone, Debug)]
pub struct NewTokens {
    /// The access token's hash.
    pub access: TokenHash,
    /// The refresh token's hash, if the client can refresh.
    pub refresh: Option<TokenHash>,
    /// When the access token expires, if it does.
    pub expires: Option<Millis>,
}

const COLUMNS: &str = "t.user_id, t.device_id, t.generation, d.generation, d.last_seen, u.locked";
const JOINS: &str = "JOIN devices d ON d.user_id = t.user_id AND d.device_id = t.device_id
                     JOIN users u ON u.user_id = t.user_id";

impl Read<'_> {
    /// What an access token stands for, also if it has expired or the account is locked.
    pub fn session(&self, hash: &TokenHash) -> Result<Option<Session>> {
        self.prepare(&format!(
            "SELECT {COLUMNS}, t.expires FROM access_tokens t {JOINS} WHERE t.hash = ?1"
        ))?
        .query_row([hash], |row| Ok(parse_session(row)))
        .optional()?
        .transpose()
    }

    /// What a refresh token stands for.
    pub fn session_to_refresh(&self, hash: &TokenHash) -> Result<Option<Session>> {
        self.prepare(&format!(
            "SELECT {COLUMNS}, NULL FROM refresh_tokens t {JOINS} WHERE t.hash = ?1"
        ))?
        .query_row([hash], |row| Ok(parse_session(row)))
        .optional()?
        .transpose()
    }
}

impl Write<'_> {
    /// Starts a session. Earlier tokens of the same device end.
    pub fn start_session(&mut self, new: &NewSession, now: Millis) -> Result<()> {
        let (user, device) = (new.user_id.as_str(), new.device_id.as_str());
        self.prepare(
            "INSERT INTO devices (user_id, device_id, display_name, created, last_seen)
             VALUES (?1, ?2, ?3, ?4, ?4)
             ON CONFLICT (user_id, device_id)
             DO UPDATE SET last_seen = excluded.last_seen, generation = generation + 2",
        )?
        .execute(params![user, device, new.display_name, to_sql(now)])?;
        let generation = self.generation(&new.user_id, &new.device_id)?;
        self.end_tokens(&new.user_id, &new.device_id, i64::MAX)?;
        self.insert_tokens(&new.user_id, &new.device_id, &new.tokens, generation)
    }

    /// Makes the next pair of tokens for the session of a refresh token. Pairs that were made from it earlier and never used end.
    pub fn refresh_session(&mut self, session: &Session, tokens: &NewTokens) -> Result<()> {
        let (user, device) = (&session.user_id, &session.device_id);
        for sql in [
            "DELETE FROM access_tokens
             WHERE user_id = ?1 AND device_id = ?2 AND generation > ?3",
            "DELETE FROM refresh_tokens
             WHERE user_id = ?1 AND device_id = ?2 AND generation > ?3",
        ] {
            self.prepare(sql)?.execute(params![
                user.as_str(),
                device.as_str(),
                session.generation
            ])?;
        }
        self.touch_sessions();
        self.insert_tokens(user, device, tokens, session.generation.saturating_add(1))
    }

    /// A token of this generation was used: older ones end.
    pub fn confirm_tokens(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        generation: i64,
    ) -> Result<()> {
        let changed = self
            .prepare(
                "UPDATE devices SET generation = ?3
                 WHERE user_id = ?1 AND device_id = ?2 AND generation < ?3",
            )?
            .execute(params![user_id.as_str(), device_id.as_str(), generation])?;
        if changed > 0 {
            self.end_tokens(user_id, device_id, generation)?;
        }
        Ok(())
    }

    fn generation(&self, user_id: &UserId, device_id: &DeviceId) -> Result<i64> {
        Ok(self
            .prepare("SELECT generation FROM devices WHERE user_id = ?1 AND device_id = ?2")?
            .query_row([user_id.as_str(), device_id.as_str()], |row| row.get(0))?)
    }

    fn insert_tokens(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        tokens: &NewTokens,
        generation: i64,
    ) -> Result<()> {
        self.prepare(
            "INSERT INTO access_tokens (hash, user_id, device_id, generation, expires)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            tokens.access,
            user_id.as_str(),
            device_id.as_str(),
            generation,
            tokens.expires.map(to_sql)
        ])?;
        if let Some(refresh) = &tokens.refresh {
            self.prepare(
                "INSERT INTO refresh_tokens (hash, user_id, device_id, generation)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                refresh,
                user_id.as_str(),
                device_id.as_str(),
                generation
            ])?;
        }
        Ok(())
    }

    fn end_tokens(&mut self, user_id: &UserId, device_id: &DeviceId, before: i64) -> Result<()> {
        for sql in [
            "DELETE FROM access_tokens WHERE user_id = ?1 AND device_id = ?2 AND generation < ?3",
            "DELETE FROM refresh_tokens WHERE user_id = ?1 AND device_id = ?2 AND generation < ?3",
        ] {
            self.prepare(sql)?.execute(params![user_id.as_str(), device_id.as_str(), before])?;
        }
        self.touch_sessions();
        Ok(())
    }
}

fn parse_session(row: &Row<'_>) -> Result<Session> {
    let user: String = row.get(0)?;
    let device: String = row.get(1)?;
    let (generation, used_generation) = (row.get(2)?, row.get(3)?);
    if generation < 0 {
        return Err(Error::corrupt("access_tokens", "a negative generation"));
    }
    Ok(Session {
        user_id: parse_user_id("devices", &user)?,
        device_id: device_id(&device),
        generation,
        used_generation,
        last_seen: row.get::<_, Option<i64>>(4)?.map(millis),
        locked: row.get(5)?,
        expires: row.get::<_, Option<i64>>(6)?.map(millis),
    })
}
