//! Why a backup is not read, or not written.

use std::io;

use ruma::OwnedServerName;

use super::{BackupId, RecoveryKey, Section};
use crate::{bundle, card::CardError, cose::SignError};

/// Why a backup is refused. Nothing of a refused backup is used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another kind of file.
    #[error("the file is not a backup of a Sallyport box")]
    NotABackup,
    /// Written by a later version of this program.
    #[error(
        "the backup has format {found}, this program reads {}: use a newer one",
        super::VERSION
    )]
    NewerFormat {
        /// The version it says.
        found: u32,
    },
    /// The header is not sound.
    #[error("the header of the backup is damaged: take another copy")]
    Header,
    /// No stanza for the key at hand.
    #[error(
        "the backup is not encrypted to the recovery key {key}: ask the other recovery officers, or take a backup of this enclave"
    )]
    NotForKey {
        /// The key.
        key: RecoveryKey,
    },
    /// The private half did not do its part.
    #[error("the token with the recovery key does not do it")]
    Token(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The stanza does not open.
    #[error("the recovery key does not open the backup: its header is damaged or was changed")]
    WrongKey,
    /// The file ends early.
    #[error("the backup ends early: it was cut off, take another copy")]
    Truncated,
    /// A chunk is not what was written.
    #[error("the backup is damaged in chunk {chunk}: take another copy")]
    Damaged {
        /// Which chunk, from 0.
        chunk: u64,
    },
    /// The file goes on after its end.
    #[error("there is something after the end of the backup: take another copy")]
    Trailing,
    /// What is inside contradicts itself.
    #[error("the content of the backup is not sound ({0}): take another one")]
    Content(&'static str),
    /// A media file is not what its name says.
    #[error("the backup holds a media file that is not what its name says: take another one")]
    Media,
    /// What came is not what the manifest says.
    #[error("the backup is not what its manifest says ({0}): take another one")]
    Manifest(Section),
    /// The manifest is not one of the key that it should be of.
    #[error("the backup's signature is wrong: it was not made by the box that it names")]
    BadSignature,
    /// Nobody vouches for the key.
    #[error("the box had no card when the backup was made, so that nobody vouches for its key")]
    NoCard,
    /// The card inside does not vouch for the key.
    #[error("the card in the backup does not vouch for its key ({0})")]
    NotVouched(&'static str),
    /// The card inside cannot be read.
    #[error("the card in the backup is not sound")]
    Card(#[from] CardError),
    /// The fingerprint is another.
    #[error("the backup is of an enclave with another root key")]
    Fingerprint(#[from] crate::card::Mismatch),
    /// It is of another enclave than the others.
    #[error("the backups are of {found} and of {expected}: take those of one enclave")]
    OtherEnclave {
        /// Whose it is.
        found: OwnedServerName,
        /// Whose the others are.
        expected: OwnedServerName,
    },
    /// The first one is not full.
    #[error(
        "backup {number} follows the backup {follows}, which is not among the files: name that one first"
    )]
    NotFull {
        /// Its number.
        number: u64,
        /// What it follows.
        follows: BackupId,
    },
    /// One does not follow the one before.
    #[error(
        "backup {number} does not follow the backup before it: name a full one, and then those that follow it in their order"
    )]
    OutOfOrder {
        /// Its number.
        number: u64,
    },
    /// A media file is in none of the files.
    #[error(
        "{missing} media files of the backup are in none of the files: name the full backup and all that follow it"
    )]
    Incomplete {
        /// How many.
        missing: u64,
    },
    /// Bytes that are no grant.
    #[error("the grant of the restore is damaged: have the recovery officer's desk make it again")]
    Grant,
    /// It is for another machine, or for an earlier request of this one.
    #[error(
        "the grant is for another request: bring this machine's newest request to the recovery officer's desk"
    )]
    OtherRequest,
    /// It cannot be read.
    #[error("the backup cannot be read")]
    Read(#[source] io::Error),
    /// What it contains cannot be put where it belongs.
    #[error("the content cannot be written")]
    Sink(#[source] io::Error),
}

impl From<bundle::Error> for Error {
    /// What chunks complain about.
    fn from(error: bundle::Error) -> Self {
        match error {
            bundle::Error::Damaged { chunk } => Self::Damaged { chunk },
            bundle::Error::Truncated => Self::Truncated,
            bundle::Error::Trailing => Self::Trailing,
            bundle::Error::Read(error) => Self::Read(error),
            _ => Self::Header,
        }
    }
}

/// Why a backup is not made.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Nobody could open it.
    #[error(
        "there are no recovery keys: name those of the recovery officers in the configuration, [backup] recovery_keys"
    )]
    NoRecipients,
    /// More than a header holds.
    #[error("there are more than {} recovery keys", crate::limits::BACKUP_RECIPIENTS_MAX)]
    TooManyRecipients,
    /// A key is not one of its suite.
    #[error("the recovery key {0} cannot be used")]
    Recipient(RecoveryKey),
    /// Items must come in the order of their sections.
    #[error("{0} is out of its place in the backup")]
    Order(Section),
    /// A file is too large or too long, or has a name that it must not have.
    #[error("{name:?} cannot be in a backup ({why})")]
    Item {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file was shorter or longer than was said.
    #[error("{0:?} changed while it was read: try again")]
    Changed(String),
    /// What is written has no encoding.
    #[error("the backup cannot be encoded")]
    Encode,
    /// The manifest was not signed.
    #[error("the manifest was not signed")]
    Sign(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It cannot be written.
    #[error("the backup cannot be written")]
    Write(#[from] io::Error),
}

impl WriteError {
    /// What a signer complains about.
    pub(super) fn sign<E: std::error::Error + Send + Sync + 'static>(error: SignError<E>) -> Self {
        Self::Sign(Box::new(error))
    }
}
