//! OpenID tokens: by which a member proves to a service beside the box, such as one for calls, who they are.
//!
//! [Client-Server API, "OpenID"](https://spec.matrix.org/v1.19/client-server-api/#openid). They live for an hour and in memory only: a
//! client asks for another one after a restart, as it would after the hour.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{OwnedUserId, UserId};
use sallyport_core::{
    digest::Sha256,
    limits::{OPENID_TOKEN_MS, OPENID_TOKENS_MAX},
    time::Millis,
};

/// Tokens that have not expired, by their hashes: what is looked up in an ordered map is compared byte by byte.
#[derive(Default)]
pub struct OpenIdTokens(Mutex<BTreeMap<Sha256, Issued>>);

struct Issued {
    user_id: OwnedUserId,
    expires: Millis,
}

impl OpenIdTokens {
    /// Issues a token of a user.
    pub fn issue(&self, user_id: &UserId, now: Millis, random: [u8; 32]) -> String {
        let mut tokens = self.lock();
        if tokens.len() >= OPENID_TOKENS_MAX {
            tokens.retain(|_, issued| now < issued.expires);
        }
        if tokens.len() >= OPENID_TOKENS_MAX {
            // Services whose token went are told so, and their clients ask for another one.
            tokens.clear();
        }
        let token = URL_SAFE_NO_PAD.encode(random);
        let expires = now.plus(Duration::from_millis(OPENID_TOKEN_MS));
        tokens
            .insert(Sha256::of(token.as_bytes()), Issued { user_id: user_id.to_owned(), expires });
        token
    }

    /// Whose token it is.
    pub fn user(&self, token: &str, now: Millis) -> Option<OwnedUserId> {
        let tokens = self.lock();
        let issued = tokens.get(&Sha256::of(token.as_bytes()))?;
        (now < issued.expires).then(|| issued.user_id.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Sha256, Issued>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn a_token_names_its_user_for_an_hour() {
        let (tokens, now) = (OpenIdTokens::default(), Millis(1_000));
        let token = tokens.issue(user_id!("@alice:alpha.test"), now, [1; 32]);
        assert_eq!(tokens.user(&token, now).unwrap(), "@alice:alpha.test");
        assert_eq!(tokens.user("another", now), None);
        let later = now.plus(Duration::from_millis(OPENID_TOKEN_MS));
        assert_eq!(tokens.user(&token, later), None);
    }

    #[test]
    fn many_tokens_push_old_ones_out() {
        let (tokens, now) = (OpenIdTokens::default(), Millis(1_000));
        for number in 0..=OPENID_TOKENS_MAX as u64 {
            let mut random = [0; 32];
            random[..8].copy_from_slice(&number.to_be_bytes());
            tokens.issue(user_id!("@alice:alpha.test"), now, random);
        }
        assert_eq!(tokens.lock().len(), 1);
    }
}
