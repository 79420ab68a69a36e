//! The part of a bundle that is in the clear: what a courier, a kiosk and the gate need to know.
//!
//! ```cddl
//! header = { 0: tstr, 1: tstr      ; from, to: server names
//!          , 2: bstr .size 16      ; bundle id
//!          , 3: bstr .size 16      ; incarnation
//!          , 4: uint               ; seq, counts from 1 in each incarnation and direction
//!          , 5: uint, 6: uint      ; created, expires (milliseconds since 1970)
//!          , 7: uint               ; bytes of plaintext in the chunks
//!          , 8: bstr .size 32      ; SHA-256 of the manifest
//!          , 9: uint               ; encryption suite
//!          , 10: bstr .size 8      ; id of the recipient's key
//!          , 11: bstr }            ; encapsulated key: the sender's ephemeral point, or the ciphertext of X-Wing
//! ```

use std::io::Read;

use minicbor::{Decode, Encode};
use ruma::OwnedServerName;

use super::{BundleId, Error, chunk, chunk::read_exact};
use crate::{
    cbor,
    cose::{self, KeyId},
    digest::Sha256,
    incarnation::Incarnation,
    limits::{BUNDLE_HEADER_BYTES_MAX, BUNDLE_LIFETIME_MS_MAX},
    sign::{PublicKey, context},
    time::Millis,
};

/// The version of the format that this program writes and reads. The preamble carries it.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 16] = b"SALLYPORT-BUNDLE";
const PREAMBLE_BYTES: usize = 24;

/// The header of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Header {
    /// The sending enclave.
    #[cbor(n(0), with = "cbor::id")]
    pub from: OwnedServerName,
    /// The receiving enclave.
    #[cbor(n(1), with = "cbor::id")]
    pub to: OwnedServerName,
    /// A random name for hand-over slips.
    #[n(2)]
    pub id: BundleId,
    /// The life of the sender's database.
    #[n(3)]
    pub incarnation: Incarnation,
    /// The place in the sequence from sender to recipient, counted from 1 in each incarnation.
    #[n(4)]
    pub seq: u64,
    /// When it was made, by the sender's clock.
    #[n(5)]
    pub created: Millis,
    /// Until when it may be imported.
    #[n(6)]
    pub expires: Millis,
    /// Bytes of plaintext.
    #[n(7)]
    pub plaintext_bytes: u64,
    /// The hash of the manifest, and so of everything.
    #[n(8)]
    pub manifest: Sha256,
    /// The code of the [`EncryptionSuite`](crate::card::EncryptionSuite).
    #[n(9)]
    pub suite: u16,
    /// The recipient's key that it is encrypted to.
    #[n(10)]
    pub recipient_key: KeyId,
    /// The sender's half of the key agreement.
    #[cbor(n(11), with = "minicbor::bytes")]
    pub encapsulated: Vec<u8>,
}

impl Header {
    /// Reads the payload of a header.
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let header: Self = cbor::from_bytes(payload).map_err(|error| Error::Header(Some(error)))?;
        header.check()?;
        Ok(header)
    }

    /// Whether number and times make sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        let lifetime = self.expires.0.checked_sub(self.created.0);
        let sound = self.seq > 0 && lifetime.is_some_and(|ms| ms <= BUNDLE_LIFETIME_MS_MAX);
        if sound { Ok(()) } else { Err(Error::Header(None)) }
    }

    /// Bytes of the whole file, of which preamble and signed header are some.
    pub(super) fn file_bytes(&self, head_bytes: usize) -> u64 {
        let head = u64::try_from(head_bytes).unwrap_or(u64::MAX);
        head.saturating_add(chunk::sealed_bytes(self.plaintext_bytes))
    }

    /// Preamble and signed header, as they stand in the file.
    pub(super) fn seal<E>(
        &self,
        key: &PublicKey,
        signer: impl FnOnce(&[u8]) -> Result<crate::sign::Signature, E>,
    ) -> Result<Vec<u8>, cose::SignError<E>> {
        let payload = cbor::to_bytes(self).map_err(|_| cose::SignError::Encode)?;
        let envelope = cose::sign(context::MANIFEST, key, payload, signer)?;
        let bytes = u32::try_from(envelope.len()).map_err(|_| cose::SignError::Encode)?;
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_be_bytes());
        head.extend(bytes.to_be_bytes());
        head.extend(envelope);
        Ok(head)
    }
}

/// Preamble and header as they were read.
pub(super) struct Head {
    /// The signed header.
    pub(super) envelope: cose::Unverified,
    /// Bytes of preamble and signed header.
    pub(super) bytes: usize,
    /// The hash of preamble and signed header: what chunks are bound to.
    pub(super) hash: Sha256,
}

impl Head {
    /// Reads as far as the first chunk. No more than the bound of a header is read before something is verified.
    pub(super) fn read(input: &mut impl Read) -> Result<Self, Error> {
        let mut preamble = [0; PREAMBLE_BYTES];
        read_exact(input, &mut preamble)?;
        let (magic, rest) = preamble.split_first_chunk::<16>().ok_or(Error::NotABundle)?;
        let (version, bytes) = rest.split_first_chunk::<4>().ok_or(Error::NotABundle)?;
        let bytes = bytes.first_chunk::<4>().ok_or(Error::NotABundle)?;
        if magic != MAGIC {
            return Err(Error::NotABundle);
        }
        let found = u32::from_be_bytes(*version);
        if found != VERSION {
            return Err(Error::NewerFormat { found });
        }
        let envelope_bytes = usize::try_from(u32::from_be_bytes(*bytes)).unwrap_or(usize::MAX);
        if envelope_bytes > BUNDLE_HEADER_BYTES_MAX {
            return Err(Error::Header(None));
        }
        let mut envelope = vec![0; envelope_bytes];
        read_exact(input, &mut envelope)?;
        let hash = Sha256::of_parts(&[&preamble, &envelope]);
        let envelope = cose::Unverified::parse(&envelope).map_err(|_| Error::Header(None))?;
        Ok(Self { envelope, bytes: PREAMBLE_BYTES.saturating_add(envelope_bytes), hash })
    }
}
