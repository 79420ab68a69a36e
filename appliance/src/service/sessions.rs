//! Sessions of members: from an access token to the account and the device it belongs to.

use ring::digest;
use ruma::{OwnedDeviceId, OwnedUserId};

use crate::app::App;

/// The SHA-256 of an access token: all that the box keeps of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// The hash of a token as the client sends it.
    pub fn of(token: &str) -> Self {
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        Self(hash)
    }
}

/// The account and the device that an access token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The account.
    pub user_id: OwnedUserId,
    /// The device the token was issued to.
    pub device_id: OwnedDeviceId,
}

/// Looks up whom a token belongs to; `None` if it was never issued or is no longer valid.
pub fn authenticate(_: &App, _: &TokenHash) -> Result<Option<Identity>, sallyport_store::Error> {
    // No session can exist yet: the store has no table of devices.
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_hash_is_sha256() {
        let TokenHash(hash) = TokenHash::of("abc");
        assert_eq!(&hash[..4], &[0xba, 0x78, 0x16, 0xbf]);
    }
}
