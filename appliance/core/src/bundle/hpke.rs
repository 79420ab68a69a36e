//! HPKE (RFC 9180) in base mode with HKDF-SHA256, as far as bundles need it: keys are exported (section 5.3) rather than used through
//! the one-message interface, and the recipient's private operation is a parameter, because the key belongs to a token.
//!
//! Two KEMs: DHKEM(P-256, HKDF-SHA256), whose Diffie-Hellman a token can do itself, and X-Wing (draft-connolly-cfrg-xwing-kem, KEM 0x647a),
//! X25519 with ML-KEM-768, which no token knows yet: it wraps the seed. What is recorded today stays closed if
//! quantum computers come.

use p256::{PublicKey, SecretKey, elliptic_curve::sec1::ToSec1Point as _};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use x_wing::{
    CIPHERTEXT_SIZE, Ciphertext, Decapsulate as _, DecapsulationKey, EncapsulationKey,
    KeyExport as _,
};
use zeroize::Zeroizing;

use crate::card::EncryptionSuite;

/// Bytes of an uncompressed point of P-256.
pub(crate) const POINT_BYTES: usize = 65;
/// Bytes of randomness that encapsulation takes at most.
pub(crate) const RANDOMNESS_BYTES: usize = 64;

const KEM_P256_HKDF_SHA256: u16 = 0x0010;
const KEM_X_WING: u16 = 0x647a;
const KDF_HKDF_SHA256: u16 = 0x0001;
const AEAD_AES_256_GCM: u16 = 0x0002;

/// The bytes are not a public key or an encapsulated one of their suite, or nothing can be derived from them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

/// What sender and recipient share, before it is bound to what it is for.
pub(crate) struct SharedSecret {
    kem: u16,
    secret: Zeroizing<[u8; 32]>,
}

/// The sender's side (`Encap`): gives what the recipient needs. Of the random bytes P-256 takes the first 32 (`DeriveKeyPair`), X-Wing all.
pub(crate) fn encapsulate(
    suite: EncryptionSuite,
    recipient: &[u8],
    randomness: &[u8; RANDOMNESS_BYTES],
) -> Result<(Vec<u8>, SharedSecret), Invalid> {
    match suite {
        EncryptionSuite::P256HkdfSha256Aes256Gcm => {
            let (first, _) = randomness.split_first_chunk().ok_or(Invalid)?;
            let recipient_key = PublicKey::from_sec1_bytes(recipient).map_err(|_| Invalid)?;
            let ephemeral = derive_key(first)?;
            let enc = ephemeral.public_key().to_sec1_point(false);
            let enc = enc.as_bytes().try_into().map_err(|_| Invalid)?;
            let dh = ephemeral.diffie_hellman(&recipient_key);
            let secret = SharedSecret::agreed(dh.raw_secret_bytes(), &enc, recipient);
            Ok((enc.to_vec(), secret))
        }
        EncryptionSuite::XWingHkdfSha256Aes256Gcm => {
            let recipient = EncapsulationKey::try_from(recipient).map_err(|_| Invalid)?;
            let (enc, secret) = recipient.encapsulate_deterministic(&(*randomness).into());
            Ok((enc.to_vec(), SharedSecret::of_x_wing(secret.into())))
        }
    }
}

/// Whether bytes are an uncompressed point of the curve. A token is never given anything else: its answers about
/// points of other curves can give its key away.
pub(crate) fn is_point(bytes: &[u8]) -> bool {
    bytes.len() == POINT_BYTES && PublicKey::from_sec1_bytes(bytes).is_ok()
}

/// The public key of X-Wing that belongs to a seed.
pub(crate) fn x_wing_public(seed: &[u8; 32]) -> Vec<u8> {
    x_wing::Decapsulator::encapsulation_key(&DecapsulationKey::from(*seed)).to_bytes().to_vec()
}

/// Whether bytes are a public key of X-Wing.
pub(crate) fn is_x_wing_public(bytes: &[u8]) -> bool {
    EncapsulationKey::try_from(bytes).is_ok()
}

impl SharedSecret {
    /// `ExtractAndExpand` of section 4.1: the x-coordinate of the agreed point, bound to both public keys.
    pub(crate) fn agreed(dh: &[u8], enc: &[u8; POINT_BYTES], recipient: &[u8]) -> Self {
        let suite = Suite::dhkem();
        let prk = suite.extract(&[], b"eae_prk", dh);
        let secret = suite.expand(&prk, b"shared_secret", &[enc, recipient]);
        Self { kem: KEM_P256_HKDF_SHA256, secret }
    }

    /// The recipient's side of X-Wing (`Decap`). A ciphertext that was not made for this key gives a secret that opens nothing.
    pub(crate) fn decapsulated(seed: &[u8; 32], enc: &[u8]) -> Result<Self, Invalid> {
        let enc: &[u8; CIPHERTEXT_SIZE] = enc.try_into().map_err(|_| Invalid)?;
        let secret = DecapsulationKey::from(*seed).decapsulate(&Ciphertext::from(*enc));
        Ok(Self::of_x_wing(secret.into()))
    }

    fn of_x_wing(secret: [u8; 32]) -> Self {
        Self { kem: KEM_X_WING, secret: Zeroizing::new(secret) }
    }

    /// A key for a purpose, bound to `info`: `KeySchedule` in base mode, then `Context.Export`.
    pub(crate) fn export(&self, info: &[u8], purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        self.export_for(AEAD_AES_256_GCM, info, purpose)
    }

    fn export_for(&self, aead: u16, info: &[u8], purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let exporter = self.exporter_secret(aead, info);
        let exporter = Prk::new_less_safe(HKDF_SHA256, exporter.as_slice());
        Suite::hpke(self.kem, aead).expand(&exporter, b"sec", &[purpose])
    }

    fn exporter_secret(&self, aead: u16, info: &[u8]) -> Zeroizing<[u8; 32]> {
        let suite = Suite::hpke(self.kem, aead);
        // Base mode (0) has no pre-shared key.
        let psk_id_hash = suite.extract_bytes(b"psk_id_hash", b"");
        let info_hash = suite.extract_bytes(b"info_hash", info);
        let secret = suite.extract(self.secret.as_slice(), b"secret", b"");
        suite.expand(&secret, b"exp", &[&[0], &psk_id_hash, &info_hash])
    }
}

/// `DeriveKeyPair` of section 7.1.3: tries candidates until one is a scalar of the group; the first nearly always is.
fn derive_key(randomness: &[u8; 32]) -> Result<SecretKey, Invalid> {
    let suite = Suite::dhkem();
    let prk = suite.extract(&[], b"dkp_prk", randomness);
    (0..=u8::MAX)
        .find_map(|counter| {
            let candidate = suite.expand(&prk, b"candidate", &[&[counter]]);
            SecretKey::from_slice(candidate.as_slice()).ok()
        })
        .ok_or(Invalid)
}

/// `suite_id`: separates what is derived for one suite from the others.
struct Suite(Vec<u8>);

impl Suite {
    fn dhkem() -> Self {
        Self([b"KEM".as_slice(), &KEM_P256_HKDF_SHA256.to_be_bytes()].concat())
    }

    fn hpke(kem: u16, aead: u16) -> Self {
        let [kem, kdf, aead] = [kem, KDF_HKDF_SHA256, aead].map(u16::to_be_bytes);
        Self([b"HPKE".as_slice(), &kem, &kdf, &aead].concat())
    }

    /// `LabeledExtract`.
    fn extract(&self, salt: &[u8], label: &[u8], key: &[u8]) -> Prk {
        let input = Zeroizing::new([b"HPKE-v1".as_slice(), &self.0, label, key].concat());
        Salt::new(HKDF_SHA256, salt).extract(&input)
    }

    /// `LabeledExtract`, where its output is not a key but part of a context: HKDF-Extract is HMAC.
    fn extract_bytes(&self, label: &[u8], input: &[u8]) -> Vec<u8> {
        let salt = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"");
        let input = [b"HPKE-v1".as_slice(), &self.0, label, input].concat();
        ring::hmac::sign(&salt, &input).as_ref().to_vec()
    }

    /// `LabeledExpand` to 32 bytes, with the parts of `info` one after the other.
    fn expand(&self, prk: &Prk, label: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut parts = vec![[0, 32].as_slice(), b"HPKE-v1", &self.0, label];
        parts.extend_from_slice(info);
        let mut key = Zeroizing::new([0; 32]);
        // HKDF cannot fail for 32 bytes; if it did, the key would be one that opens nothing.
        let filled = prk.expand(&parts, Length).and_then(|okm| okm.fill(key.as_mut_slice()));
        debug_assert!(filled.is_ok());
        key
    }
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P256: EncryptionSuite = EncryptionSuite::P256HkdfSha256Aes256Gcm;
    const X_WING: EncryptionSuite = EncryptionSuite::XWingHkdfSha256Aes256Gcm;

    /// RFC 9180, appendix A.3.1: the same KEM and KDF, with AES-128-GCM (1).
    const IKM_E: &str = "4270e54ffd08d79d5928020af4686d8f6b7d35dbe470265f1f5aa22816ce860e";
    const PK_E: &str = "04a92719c6195d5085104f469a8b9814d5838ff72b60501e2c4466e5e67b325ac98536d7b61a1af4b78e5b7f951c0900be863c403ce65c9bfcb9382657222d18c4";
    const SK_R: &str = "f3ce7fdae57e1a310d87f1ebbde6f328be0a99cdbcadf4d6589cf29de4b8ffd2";
    const PK_R: &str = "04fe8c19ce0905191ebc298a9245792531f26f0cece2460639e8bc39cb7f706a826a779b4cf969b8a0e539c7f62fb3d30ad6aa8f80e30f1d128aafd68a2ce72ea0";
    const SHARED: &str = "c0d26aeab536609a572b07695d933b589dcf363ff9d93c93adea537aeabb8cb8";
    const INFO: &[u8] = b"Ode on a Grecian Urn";
    const EXPORTER: &str = "14ad94af484a7ad3ef40e9f3be99ecc6fa9036df9d4920548424df127ee0d99f";
    const EXPORT_EMPTY: &str = "5e9bc3d236e1911d95e65b576a8a86d478fb827e8bdfe77b741b289890490d4d";

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }

    fn randomness(first: [u8; 32]) -> [u8; RANDOMNESS_BYTES] {
        [first, [0xa5; 32]].concat().try_into().unwrap()
    }

    #[test]
    fn published_vector() {
        let recipient: [u8; POINT_BYTES] = bytes(PK_R);
        let (enc, sender) = encapsulate(P256, &recipient, &randomness(bytes(IKM_E))).unwrap();
        let enc: [u8; POINT_BYTES] = enc.try_into().unwrap();
        assert_eq!(enc, bytes(PK_E));
        assert_eq!(*sender.secret, bytes(SHARED));

        let private = SecretKey::from_slice(&bytes::<32>(SK_R)).unwrap();
        let dh = private.diffie_hellman(&PublicKey::from_sec1_bytes(&enc).unwrap());
        let receiver = SharedSecret::agreed(dh.raw_secret_bytes(), &enc, &recipient);
        assert_eq!(receiver.secret, sender.secret);
        assert_eq!(*receiver.exporter_secret(1, INFO), bytes(EXPORTER));
        assert_eq!(*receiver.export_for(1, INFO, b""), bytes(EXPORT_EMPTY));
    }

    #[test]
    fn keys_differ_by_purpose_info_and_suite() {
        let (_, secret) = encapsulate(P256, &bytes::<65>(PK_R), &[1; 64]).unwrap();
        let keys = [
            secret.export(b"a", b"x"),
            secret.export(b"a", b"y"),
            secret.export(b"b", b"x"),
            secret.export_for(1, b"a", b"x"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(keys.iter().skip(at + 1).all(|other| other != key));
        }
    }

    #[test]
    fn what_is_not_a_point_is_refused() {
        let good: [u8; POINT_BYTES] = bytes(PK_R);
        let mut off_the_curve = good;
        off_the_curve[64] ^= 1;
        assert!(is_point(&good));
        for bad in [&off_the_curve[..], &good[..64], &[0], &[4; 65], &[]] {
            assert!(!is_point(bad));
            assert!(encapsulate(P256, bad, &[1; 64]).is_err());
            assert!(encapsulate(X_WING, bad, &[1; 64]).is_err());
        }
    }

    #[test]
    fn x_wing_opens_with_its_seed_only() {
        let recipient = x_wing_public(&[7; 32]);
        assert!(is_x_wing_public(&recipient) && !is_x_wing_public(&recipient[1..]));
        let (enc, sender) = encapsulate(X_WING, &recipient, &[1; 64]).unwrap();
        let receiver = SharedSecret::decapsulated(&[7; 32], &enc).unwrap();
        assert_eq!(receiver.secret, sender.secret);
        assert_eq!(receiver.export(INFO, b"x"), sender.export(INFO, b"x"));
        let stranger = SharedSecret::decapsulated(&[8; 32], &enc).unwrap();
        assert_ne!(stranger.secret, sender.secret);
        // Either half of the ciphertext decides: ML-KEM's first 1088 bytes, X25519's last 32.
        for at in [0, CIPHERTEXT_SIZE - 32] {
            let mut damaged = enc.clone();
            damaged[at] ^= 1;
            let other = SharedSecret::decapsulated(&[7; 32], &damaged).unwrap();
            assert_ne!(other.secret, sender.secret, "byte {at}");
        }
        assert_eq!(SharedSecret::decapsulated(&[7; 32], &enc[1..]).err(), Some(Invalid));
    }

    /// What the crate `hpke` 0.14.1 exports for the same seed, ciphertext and `info`: an implementation that is not ours.
    #[test]
    fn x_wing_agrees_with_another_implementation() {
        const EXPORTED: &str = "5e7d847e87596b42b3c0c164f4910790b187fc2f8fa37a4354c9a13b9989ee41";
        let recipient = x_wing_public(&[7; 32]);
        let (_, sender) = encapsulate(X_WING, &recipient, &[1; 64]).unwrap();
        assert_eq!(*sender.export(INFO, b"purpose"), bytes(EXPORTED));
    }
}
