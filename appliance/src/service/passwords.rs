//! Password hashes: Argon2id with the parameters that OWASP recommends (19 MiB, two passes, one lane).
//!
//! A hash takes about 19 MiB and some tens of milliseconds of a core. Callers run in
//! [`App::run_password_check`](crate::app::App::run_password_check), which bounds how many do so at a time.

use argon2::{
    Argon2, PasswordVerifier as _,
    password_hash::{self, PasswordHasher as _, phc},
};
use sallyport_core::limits::PASSWORD_BYTES_MAX;

/// A password or a hash that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too short to resist guessing.
    #[error("the password has fewer than {characters_min} characters")]
    TooShort {
        /// How many it needs.
        characters_min: usize,
    },
    /// Longer than anybody types.
    #[error("the password has more than {PASSWORD_BYTES_MAX} bytes")]
    TooLong,
    /// The hash could not be computed or read.
    #[error("the password hash cannot be computed")]
    Hash(#[source] password_hash::Error),
}

/// The hash of a new password, as a PHC string.
///
/// # Errors
/// If the password is too short or too long.
pub fn hash(password: &str, characters_min: usize, salt: &[u8; 16]) -> Result<String, Error> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Error::TooLong);
    }
    if password.chars().count() < characters_min {
        return Err(Error::TooShort { characters_min });
    }
    Ok(compute(password, salt)?.to_string())
}

/// Whether a password belongs to a hash. Takes as long without a hash, and says no.
///
/// # Errors
/// If the hash is damaged.
pub fn verify(password: &str, hash: Option<&str>) -> Result<bool, Error> {
    let Some(hash) = hash else {
        compute(password, &[0; 16])?;
        return Ok(false);
    };
    match Argon2::default().verify_password(password.as_bytes(), hash) {
        Ok(()) => Ok(true),
        Err(password_hash::Error::PasswordInvalid) => Ok(false),
        Err(error) => Err(Error::Hash(error)),
    }
}

fn compute(password: &str, salt: &[u8; 16]) -> Result<phc::PasswordHash, Error> {
    // The default parameters of the crate are those of OWASP; a test holds them.
    Argon2::default().hash_password_with_salt(password.as_bytes(), salt).map_err(Error::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_verify_and_say_how_they_were_made() {
        let hash = hash("correct horse", 8, &[7; 16]).unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(verify("correct horse", Some(&hash)).unwrap());
        assert!(!verify("correct hors", Some(&hash)).unwrap());
        assert!(!verify("correct horse", None).unwrap());
    }

    #[test]
    fn passwords_have_bounds() {
        assert!(matches!(hash("short", 8, &[0; 16]), Err(Error::TooShort { characters_min: 8 })));
        let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
        assert!(matches!(hash(&long, 8, &[0; 16]), Err(Error::TooLong)));
        assert!(verify("x", Some("damaged")).is_err());
    }
}
