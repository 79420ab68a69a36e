//! AES-256-GCM over short secrets: nonce ‖ ciphertext ‖ tag.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::{Error, Secret32};

/// Encrypts under a fresh random nonce (AES-256-GCM; nonce ‖ ciphertext ‖ tag). A key seals far fewer than 2^32 secrets, so
/// nonces do not meet.
///
/// # Errors
/// [`Error::Random`] if the operating system has no randomness.
pub fn seal(key: &Secret32, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(Error::Random)?;
    let mut body = Zeroizing::new(plain.to_vec());
    let tag = cipher(key)
        .ok_or(Error::Damaged)?
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut body)
        .map_err(|_unspecified| Error::Damaged)?;
    Ok([nonce.as_slice(), body.as_slice(), tag.as_ref()].concat())
}

/// Decrypts what [`seal`] made.
///
/// # Errors
/// [`Error::Damaged`] if key, `aad` or a bit of the sealed bytes differ.
pub fn unseal(key: &Secret32, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Error::Damaged)?;
    let mut body = Zeroizing::new(body.to_vec());
    let length = cipher(key)
        .ok_or(Error::Damaged)?
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), &mut body)
        .map_err(|_unspecified| Error::Damaged)?
        .len();
    body.truncate(length);
    Ok(body)
}

fn cipher(key: &Secret32) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key.expose()).ok().map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_sealed_opens_only_whole_and_with_the_same_key_and_aad(
            plain: Vec<u8>, aad: Vec<u8>, flip: prop::sample::Index,
        ) {
            let key = Secret32::new(&[5; 32]);
            let sealed = seal(&key, &aad, &plain).unwrap();
            prop_assert_eq!(&*unseal(&key, &aad, &sealed).unwrap(), &plain);

            let mut damaged = sealed.clone();
            damaged[flip.index(sealed.len())] ^= 1;
            prop_assert!(unseal(&key, &aad, &damaged).is_err());
            prop_assert!(unseal(&key, &aad, &sealed[..flip.index(sealed.len())]).is_err());
            prop_assert!(unseal(&Secret32::new(&[6; 32]), &aad, &sealed).is_err());
            let other = [aad.as_slice(), b"!"].concat();
            prop_assert!(unseal(&key, &other, &sealed).is_err());
        }
    }
}
