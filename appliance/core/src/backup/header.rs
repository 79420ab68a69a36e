//! The part of a backup that is in the clear: what a person sorts sticks by, and what a recovery key needs to begin.
//!
//! ```cddl
//! header = { 0: tstr               ; server name of the enclave
//!          , 1: bstr .size 16      ; incarnation
//!          , 2: uint               ; number, counts up in each incarnation
//!          , 3: uint               ; created (milliseconds since 1970)
//!          , ? 4: bstr .size 32    ; id of the backup that this one follows; absent: it is full
//!          , 5: [uint, bstr]       ; the courier key that signs the manifest
//!          , 6: [1*16 stanza] }
//! ```

use std::{fmt, io::Read, str::FromStr};

use minicbor::{Decode, Encode};
use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

use super::{Error, RecoveryKey, Stanza, WriteError};
use crate::{
    bundle::hpke::RANDOMNESS_BYTES,
    cbor,
    digest::{NotSha256, Sha256},
    incarnation::Incarnation,
    limits::{BACKUP_HEADER_BYTES_MAX, BACKUP_RECIPIENTS_MAX},
    sign::PublicKey,
    time::Millis,
};

/// The version of the format that this program writes and reads.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 16] = b"SALLYPORT-BACKUP";
const PREAMBLE_BYTES: usize = 24;

/// Names a backup: the SHA-256 of its preamble and header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct BackupId(#[n(0)] pub Sha256);

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BackupId {
    type Err = NotSha256;

    fn from_str(text: &str) -> Result<Self, NotSha256> {
        text.parse().map(Self)
    }
}

/// Who makes a backup, and which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maker {
    /// The enclave.
    pub enclave: OwnedServerName,
    /// The life of its database.
    pub incarnation: Incarnation,
    /// Which backup of this life it is, from 1.
    pub number: u64,
    /// When it is made, by the box's clock.
    pub created: Millis,
    /// The backup that it follows; `None` makes a full one.
    pub follows: Option<BackupId>,
    /// The courier key that will sign the manifest.
    pub signer: PublicKey,
}

/// The header of a backup. Nothing in it is to be believed before the manifest was verified, which names its hash.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Header {
    /// The enclave.
    #[cbor(n(0), with = "cbor::id")]
    pub enclave: OwnedServerName,
    /// The life of its database.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Which backup of this life it is.
    #[n(2)]
    pub number: u64,
    /// When it was made.
    #[n(3)]
    pub created: Millis,
    /// The backup that it follows; `None` if it is full.
    #[n(4)]
    pub follows: Option<BackupId>,
    /// The courier key that signed the manifest.
    #[n(5)]
    pub signer: PublicKey,
    /// The content key for each recovery key.
    #[n(6)]
    pub recipients: Vec<Stanza>,
}

impl Header {
    /// A header for these recovery keys; `randomness` gives each its own bytes, used once.
    pub(super) fn new<E: Into<WriteError>>(
        maker: Maker,
        to: &[RecoveryKey],
        content_key: &[u8; 32],
        mut randomness: impl FnMut() -> Result<[u8; RANDOMNESS_BYTES], E>,
    ) -> Result<Self, WriteError> {
        if to.is_empty() {
            return Err(WriteError::NoRecipients);
        }
        if to.len() > BACKUP_RECIPIENTS_MAX {
            return Err(WriteError::TooManyRecipients);
        }
        let Maker { enclave, incarnation, number, created, follows, signer } = maker;
        let mut header =
            Self { enclave, incarnation, number, created, follows, signer, recipients: vec![] };
        let info = header.info();
        for key in to {
            let randomness = randomness().map_err(Into::into)?;
            header.recipients.push(Stanza::wrap(key, content_key, &info, &randomness)?);
        }
        Ok(header)
    }

    /// Whether the backup brings every media file.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.follows.is_none()
    }

    /// What the content key is bound to.
    pub(super) fn info(&self) -> Vec<u8> {
        let Self { enclave, incarnation, number, .. } = self;
        format!("sallyport/backup/1|{enclave}|{incarnation}|{number}").into_bytes()
    }

    /// Preamble and header as they stand in the file, and their hash.
    pub(super) fn to_file(&self) -> Result<(Vec<u8>, BackupId), WriteError> {
        let header = cbor::to_bytes(self).map_err(|_| WriteError::Encode)?;
        let bytes = u32::try_from(header.len()).map_err(|_| WriteError::Encode)?;
        let mut file = MAGIC.to_vec();
        file.extend(VERSION.to_be_bytes());
        file.extend(bytes.to_be_bytes());
        file.extend(header);
        let id = BackupId(Sha256::of(&file));
        Ok((file, id))
    }

    /// Reads as far as the first chunk.
    pub(super) fn read(input: &mut impl Read) -> Result<(Self, BackupId), Error> {
        let mut preamble = [0; PREAMBLE_BYTES];
        let read = |input: &mut _, buffer: &mut [u8]| -> Result<(), Error> {
            Ok(crate::bundle::chunk::read_exact(input, buffer)?)
        };
        match read(input, &mut preamble) {
            Err(Error::Truncated) => return Err(Error::NotABackup),
            other => other?,
        }
        let (magic, rest) = preamble.split_first_chunk::<16>().ok_or(Error::NotABackup)?;
        let (version, bytes) = rest.split_first_chunk::<4>().ok_or(Error::NotABackup)?;
        let bytes = bytes.first_chunk::<4>().ok_or(Error::NotABackup)?;
        if magic != MAGIC {
            return Err(Error::NotABackup);
        }
        let found = u32::from_be_bytes(*version);
        if found != VERSION {
            return Err(Error::NewerFormat { found });
        }
        let bytes = usize::try_from(u32::from_be_bytes(*bytes)).unwrap_or(usize::MAX);
        if bytes > BACKUP_HEADER_BYTES_MAX {
            return Err(Error::Header);
        }
        let mut encoded = vec![0; bytes];
        read(input, &mut encoded)?;
        let header: Self = cbor::from_bytes(&encoded).map_err(|_| Error::Header)?;
        if header.recipients.is_empty() || header.recipients.len() > BACKUP_RECIPIENTS_MAX {
            return Err(Error::Header);
        }
        Ok((header, BackupId(Sha256::of_parts(&[&preamble, &encoded]))))
    }
}
