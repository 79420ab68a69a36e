//! The pepper: a secret key of the hashes that the box stores of tokens and codes, so that who reads the database alone
//! can neither try candidates nor put in hashes of tokens of their own.

use ring::hmac;
use sallyport_core::{
    digest::Sha256,
    roster::activation::{ActivationCode, RANDOM_BYTES},
};
use sallyport_hsm::Secret32;

use super::sessions::TokenHash;

/// The key of stored hashes (HMAC-SHA256).
#[derive(Clone)]
pub struct Pepper(hmac::Key);

/// A new activation code, and what is stored of it.
pub struct NewCode {
    /// The code.
    pub code: ActivationCode,
    /// Its hash.
    pub hash: Sha256,
}

impl Pepper {
    /// Takes the key from the vault.
    pub fn new(key: &Secret32) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.expose()))
    }

    /// The hash of an access or refresh token as the client sends it.
    pub fn token(&self, token: &str) -> TokenHash {
        TokenHash(self.hash(b"token|", token.as_bytes()))
    }

    /// The hash of an activation code.
    pub fn code(&self, code: &ActivationCode) -> Sha256 {
        Sha256(self.hash(b"code|", code.hash().as_bytes()))
    }

    /// A new code from random bytes.
    pub fn new_code(&self, random: &[u8; RANDOM_BYTES]) -> NewCode {
        let code = ActivationCode::from_random(random);
        let hash = self.code(&code);
        NewCode { code, hash }
    }

    fn hash(&self, kind: &[u8], secret: &[u8]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(kind);
        context.update(secret);
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_the_pepper_and_on_what_is_hashed() {
        let pepper = Pepper::new(&Secret32::new(&[1; 32]));
        let other = Pepper::new(&Secret32::new(&[2; 32]));
        assert_eq!(pepper.token("spa_1"), pepper.token("spa_1"));
        assert_ne!(pepper.token("spa_1"), pepper.token("spa_2"));
        assert_ne!(pepper.token("spa_1"), other.token("spa_1"));
        let NewCode { code, hash } = pepper.new_code(&[7; RANDOM_BYTES]);
        assert_eq!(hash, pepper.code(&code));
        assert!(hash != code.hash() && hash != other.code(&code));
    }

    #[test]
    fn it_is_hmac_sha256() {
        // Computed with Python's `hmac`.
        let TokenHash(hash) = Pepper::new(&Secret32::new(&[0x0b; 32])).token("abc");
        assert_eq!(hash[..8], [0x3e, 0xf5, 0xaf, 0xbc, 0x7d, 0x22, 0x5f, 0x34]);
    }
}
