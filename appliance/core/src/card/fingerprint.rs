//! The fingerprint of an enclave's root key: what two officers compare by voice when they pair.
//!
//! Eight words are 64 bits. Finding another root key with the same words means making keys until one fits, so each try
//! is made expensive: the fingerprint is PBKDF2-HMAC-SHA256 (RFC 8018) of the key with [`ROUNDS`] rounds, which brings
//! the work to about 2^80 hashes. The hexadecimal form shows all 256 bits, for those who can read it.

use std::{fmt, num::NonZeroU32};

use ring::pbkdf2;
use ruma::ServerName;

use super::words::{EVEN, ODD};
use crate::{digest::Sha256, sign::PublicKey};

/// Rounds of PBKDF2: about 20 ms.
const ROUNDS: NonZeroU32 = NonZeroU32::new(1 << 16).unwrap();
/// Words of the spoken form, one per byte.
const WORDS: usize = 8;

/// The fingerprint of a root key and the server it is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// Why a typed fingerprint does not confirm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Neither eight words nor 64 hexadecimal digits.
    #[error("type the eight words, or all 64 digits, of the fingerprint")]
    Incomplete,
    /// A word that stands in no fingerprint at this place: misheard or mistyped.
    #[error("word {place} is not in the list of words: ask for it again")]
    UnknownWord {
        /// Counted from 1.
        place: usize,
    },
    /// It is the fingerprint of another key.
    #[error("the fingerprint is another one: do not trust this card, someone may have replaced it")]
    Different,
}

impl Fingerprint {
    /// The fingerprint of a root key.
    pub fn of(root: &PublicKey, server: &ServerName) -> Self {
        let mut fingerprint = [0; 32];
        let identity = Sha256::of_parts(&[
            root.algorithm().as_str().as_bytes(),
            b"\0",
            root.as_bytes(),
            server.as_bytes(),
        ]);
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            ROUNDS,
            b"sallyport/fingerprint/1",
            identity.as_bytes(),
            &mut fingerprint,
        );
        Self(fingerprint)
    }

    /// The first eight bytes in words of the PGP word list. Words at even places have two syllables and those at odd
    /// places three, so that a word left out or exchanged is heard.
    pub fn words(&self) -> String {
        let places = self.0.iter().take(WORDS).zip([EVEN, ODD].into_iter().cycle());
        let words: Vec<_> =
            places.filter_map(|(byte, list)| list.get(usize::from(*byte)).copied()).collect();
        words.join(" ")
    }

    /// All 256 bits: 16 groups of four hexadecimal digits.
    pub fn hex(&self) -> String {
        let groups: Vec<_> = self.0.chunks(2).map(hex).collect();
        groups.join(" ")
    }

    /// Whether someone typed this fingerprint, in either form. Case, spaces and punctuation do not matter.
    pub fn confirm(&self, typed: &str) -> Result<(), Mismatch> {
        let typed = typed.to_lowercase();
        let parts: Vec<_> =
            typed.split(|c: char| !c.is_ascii_alphanumeric()).filter(|p| !p.is_empty()).collect();
        let digits = parts.concat();
        let same = if digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
            digits == hex(&self.0)
        } else if parts.len() == WORDS {
            let lists = [EVEN, ODD].into_iter().cycle();
            if let Some(at) = parts.iter().zip(lists).position(|(word, list)| !list.contains(word))
            {
                return Err(Mismatch::UnknownWord { place: at + 1 });
            }
            parts.join(" ") == self.words()
        } else {
            return Err(Mismatch::Incomplete);
        };
        if same { Ok(()) } else { Err(Mismatch::Different) }
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;
    use crate::sign::Algorithm;

    fn fingerprint(seed: u8) -> Fingerprint {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
        let root = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
        Fingerprint::of(&root, server_name!("alpha.example"))
    }

    #[test]
    fn lists_are_complete_and_without_doubles() {
        for list in [EVEN, ODD] {
            let mut distinct = list.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 256);
            assert!(list.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase())));
        }
        assert!(EVEN.iter().all(|word| !ODD.contains(word)));
        // The first and last of each list, as published.
        assert_eq!(
            [EVEN[0], EVEN[255], ODD[0], ODD[255]],
            ["aardvark", "zulu", "adroitness", "yucatan"]
        );
    }

    #[test]
    fn confirms_tolerantly_but_only_the_same() {
        let other = fingerprint(2);
        let fingerprint = fingerprint(1);
        let (words, hex) = (fingerprint.words(), fingerprint.hex());
        let reordered = words.split(' ').rev().collect::<Vec<_>>().join(" ");
        let cut = words.rsplit_once(' ').unwrap().0.to_owned();
        let table = [
            (words.clone(), Ok(())),
            (words.to_uppercase().replace(' ', " - "), Ok(())),
            (format!("  {}\n", words.replace(' ', "\n")), Ok(())),
            (hex.clone(), Ok(())),
            (hex.to_uppercase().replace(' ', ":"), Ok(())),
            (hex.replace(' ', ""), Ok(())),
            (other.words(), Err(Mismatch::Different)),
            (other.hex(), Err(Mismatch::Different)),
            (reordered, Err(Mismatch::UnknownWord { place: 1 })),
            (format!("{cut} sesame"), Err(Mismatch::UnknownWord { place: 8 })),
            (cut, Err(Mismatch::Incomplete)),
            (hex[..19].to_owned(), Err(Mismatch::Incomplete)),
            (String::new(), Err(Mismatch::Incomplete)),
        ];
        for (typed, expected) in table {
            assert_eq!(fingerprint.confirm(&typed), expected, "{typed:?}");
        }
    }

    #[test]
    fn the_server_name_is_part_of_it() {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
        let root = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
        assert_ne!(fingerprint(1), Fingerprint::of(&root, server_name!("bravo.example")));
    }
}
