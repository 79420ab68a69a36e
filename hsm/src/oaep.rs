//! RSA-OAEP encryption of a key (RFC 8017, section 7.1.1), to the public half of a key pair in a token.
//!
//! In software, because some modules decrypt with RSA and do not encrypt: that of the NetHSM is one. It takes no private key, so nothing
//! of what makes RSA in software dangerous is here.
//!
//! The hash is SHA-1, for the label and for MGF1. SoftHSM 2.6 and most modules take no other. OAEP does not need what SHA-1 has lost: nobody
//! gains from two labels with the same hash where the label is always empty, and MGF1 needs only outputs that look random (the proof of Fujisaki, Okamoto,
//! Pointcheval and Stern, 2001, asks for no collision resistance; neither does NIST SP 800-131A for this use).

use crypto_bigint::{
    Odd, U64, U2048,
    modular::{FixedMontyForm, FixedMontyParams},
};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA1_OUTPUT_LEN, digest};
use zeroize::Zeroizing;

use crate::{Error, Secret32};

/// Bytes of a modulus of 2048 bits.
pub(crate) const MODULUS_BYTES: usize = 256;
/// 2^16 + 1.
pub(crate) const EXPONENT: u64 = 65_537;
/// Bits of [`EXPONENT`].
const EXPONENT_BITS: u32 = 17;

/// Encrypts a key to a modulus, which the caller has read from the token.
pub(crate) fn encrypt(modulus: &[u8], message: &Secret32) -> Result<Vec<u8>, Error> {
    let mut seed = Zeroizing::new([0; SHA1_OUTPUT_LEN]);
    getrandom::fill(seed.as_mut_slice()).map_err(Error::Random)?;
    encrypt_with(modulus, message, &seed).ok_or_else(not_supported)
}

fn not_supported() -> Error {
    Error::Unsupported("RSA keys of 2048 bits".to_owned())
}

fn encrypt_with(
    modulus: &[u8],
    message: &Secret32,
    seed: &[u8; SHA1_OUTPUT_LEN],
) -> Option<Vec<u8>> {
    // Some modules put a zero before a number whose first bit is set.
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let modulus = modulus.get(zeros..)?;
    if modulus.len() != MODULUS_BYTES || modulus.first()? & 0x80 == 0 {
        return None;
    }
    let modulus: Odd<U2048> = Odd::new(U2048::from_be_slice(modulus)).into_option()?;
    let number = Zeroizing::new(U2048::from_be_slice(&encode(message, seed)));
    let number = FixedMontyForm::new(&number, &FixedMontyParams::new(modulus));
    let power = number.pow_bounded_exp(&U64::from_u64(EXPONENT), EXPONENT_BITS).retrieve();
    Some(power.to_be_bytes().as_ref().to_vec())
}

/// `0x00 ‖ masked seed ‖ masked (SHA-1 of the empty label ‖ zeros ‖ 0x01 ‖ message)`.
fn encode(message: &Secret32, seed: &[u8; SHA1_OUTPUT_LEN]) -> Zeroizing<Vec<u8>> {
    let label = digest(&SHA1_FOR_LEGACY_USE_ONLY, b"");
    let zeros = MODULUS_BYTES - Secret32::BYTES - 2 * SHA1_OUTPUT_LEN - 2;
    let mut block = Zeroizing::new(Vec::with_capacity(MODULUS_BYTES));
    block.extend(label.as_ref());
    block.resize(SHA1_OUTPUT_LEN + zeros, 0);
    block.push(1);
    block.extend(message.expose());
    mask(seed, &mut block);
    let mut masked_seed = *seed;
    mask(&block, &mut masked_seed);
    let mut encoded = Zeroizing::new(Vec::with_capacity(MODULUS_BYTES));
    encoded.push(0);
    encoded.extend(masked_seed);
    encoded.extend(&*block);
    encoded
}

/// Adds MGF1 with SHA-1 (RFC 8017, appendix B.2.1) over `seed` to `bytes`.
fn mask(seed: &[u8], bytes: &mut [u8]) {
    for (counter, chunk) in (0_u32..).zip(bytes.chunks_mut(SHA1_OUTPUT_LEN)) {
        let input = Zeroizing::new([seed, &counter.to_be_bytes()].concat());
        let mask = digest(&SHA1_FOR_LEGACY_USE_ONLY, &input);
        chunk.iter_mut().zip(mask.as_ref()).for_each(|(byte, mask)| *byte ^= mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_can_be_undone_and_is_what_the_standard_says() {
        let (message, seed) = (Secret32::new(&[42; 32]), [7; SHA1_OUTPUT_LEN]);
        let mut encoded = encode(&message, &seed).to_vec();
        assert_eq!((encoded.len(), encoded[0]), (MODULUS_BYTES, 0));
        let block = encoded.split_off(1 + SHA1_OUTPUT_LEN);
        mask(&block, &mut encoded[1..]);
        assert_eq!(encoded[1..], seed);
        let mut plain = block;
        mask(&seed, &mut plain);
        // SHA-1 of nothing.
        assert_eq!(plain[..4], [0xda, 0x39, 0xa3, 0xee]);
        assert!(plain[SHA1_OUTPUT_LEN..202].iter().all(|byte| *byte == 0));
        assert_eq!(plain[202], 1);
        assert_eq!(plain[203..], *message.expose());
    }

    #[test]
    fn a_modulus_of_another_size_is_refused() {
        let message = Secret32::new(&[42; 32]);
        let mut modulus = [0xff; MODULUS_BYTES];
        let padded = [&[0], modulus.as_slice()].concat();
        assert_eq!(encrypt(&modulus, &message).unwrap().len(), MODULUS_BYTES);
        assert_eq!(encrypt(&padded, &message).unwrap().len(), MODULUS_BYTES);
        for wrong in [&modulus[1..], &[], &[0; MODULUS_BYTES]] {
            assert!(matches!(encrypt(wrong, &message), Err(Error::Unsupported(_))));
        }
        modulus[MODULUS_BYTES - 1] = 0xfe;
        assert!(matches!(encrypt(&modulus, &message), Err(Error::Unsupported(_))));
    }
}
