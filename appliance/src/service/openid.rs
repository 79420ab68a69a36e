//! OpenID tokens: by which a member proves to a service beside the box, such as one for calls, who they are.
//!
//! [Client-Server API, "OpenID"](https://spec.matrix.org/v1.19/client-server-api/#openid). They live for an hour and in memory only: a
//! client asks for another one after a restart, as it would after the hour.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{OwnedUserId, UserId};
use sallyport_core::{
    digest::Sha256,
    limits::{OPENID_TOKEN_MS, OPENID_TOKENS_MAX},
    time::Millis,
};

use super::expiring::Expiring;

/// Users of tokens that have not expired, by the tokens' hashes: what is looked up in an ordered map is compared byte by byte.
///
/// Services whose token went because there were too many are told that it is unknown, and their clients ask for another one.
pub struct OpenIdTokens(Expiring<Sha256, OwnedUserId>);

impl Default for OpenIdTokens {
    fn default() -> Self {
        Self(Expiring::new(Duration::from_millis(OPENID_TOKEN_MS), OPENID_TOKENS_MAX))
    }
}

impl OpenIdTokens {
    /// Issues a token of a user.
    pub fn issue(&self, user_id: &UserId, now: Millis, random: [u8; 32]) -> String {
        let token = URL_SAFE_NO_PAD.encode(random);
        self.0.insert(Sha256::of(token.as_bytes()), user_id.to_owned(), now);
        token
    }

    /// Whose token it is.
    pub fn user(&self, token: &str, now: Millis) -> Option<OwnedUserId> {
        self.0.get(&Sha256::of(token.as_bytes()), now)
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
        let issue = |number: u64| {
            let mut random = [0; 32];
            random[..8].copy_from_slice(&number.to_be_bytes());
            tokens.issue(user_id!("@alice:alpha.test"), now, random)
        };
        let issued: Vec<_> = (0..=OPENID_TOKENS_MAX as u64).map(issue).collect();
        let (last, pushed) = issued.split_last().unwrap();
        assert!(tokens.user(last, now).is_some());
        assert!(pushed.iter().all(|token| tokens.user(token, now).is_none()));
    }
}
