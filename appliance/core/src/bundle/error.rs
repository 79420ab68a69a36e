//! What can be wrong with a bundle. Each kind says what happened and what to do about it.

use std::{error::Error as StdError, io};

use ruma::OwnedServerName;

use super::{Kind, RecordError, VERSION};
use crate::{card::CardError, cbor, cose::KeyId, time::Millis};

/// Why a bundle was not accepted. Nothing of it was used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not one of our files.
    #[error("the file is not a bundle: is it the right one?")]
    NotABundle,
    /// Written by a later version of this program.
    #[error("the bundle has format {found}, this box reads {VERSION}: update this box first")]
    NewerFormat {
        /// The version it says.
        found: u32,
    },
    /// The file ends early.
    #[error(
        "the bundle is cut short: copy it again from the stick, or ask the sender for it again"
    )]
    Truncated,
    /// The file goes on after the end.
    #[error("the bundle is followed by other data: copy it again from the stick")]
    Trailing,
    /// The header is not what a box writes.
    #[error("the bundle's header is damaged: copy it again from the stick")]
    Header(#[source] Option<cbor::Error>),
    /// Signed by a key that stands on no card that we have.
    #[error(
        "no paired enclave has the signing key {key}: pair with the sender, or import its newer card first"
    )]
    UnknownSender {
        /// The key it names.
        key: KeyId,
    },
    /// The signature of the header is wrong.
    #[error(
        "the bundle's signature is wrong: it was damaged or forged, copy it again from the stick"
    )]
    BadSignature,
    /// The card of the sender is not valid now: expired, or revoked.
    #[error("the sender's pairing card is not valid: exchange new cards")]
    SenderCard(#[source] CardError),
    /// The key's owner and the sender that the header names are not the same.
    #[error("the bundle says it is from {claimed}, but {signer} signed it: report it to both")]
    WrongSender {
        /// The sender in the header.
        claimed: OwnedServerName,
        /// The owner of the key.
        signer: OwnedServerName,
    },
    /// The signing key's time was over when the bundle was made.
    #[error(
        "the signing key {key} had expired when the bundle was made: import the sender's newer card first"
    )]
    SenderKeyExpired {
        /// The key.
        key: KeyId,
    },
    /// It is for another enclave.
    #[error("the bundle is for {to}, not for this enclave: give it to its recipient")]
    WrongRecipient {
        /// Whom it is for.
        to: OwnedServerName,
    },
    /// Its time is over.
    #[error("the bundle has expired: ask the sender for a new one, or have an officer admit it")]
    Expired {
        /// Until when it could be imported.
        expires: Millis,
    },
    /// Made at a time that has not come yet.
    #[error(
        "the bundle was made in the future of this box: compare the clocks of both boxes, or have an officer admit it"
    )]
    FromTheFuture {
        /// When it says that it was made.
        created: Millis,
    },
    /// Larger than we take.
    #[error("the bundle has {bytes} bytes, this enclave takes {max}: ask for several smaller ones")]
    Oversized {
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// Encrypted to a key that is not the one given, in a suite or with a point that is not one.
    #[error(
        "the bundle is encrypted to the key {key}, which this box does not have (any more): ask for a new one"
    )]
    WrongKey {
        /// The key that it is encrypted to.
        key: KeyId,
    },
    /// The token did not agree on the key.
    #[error(
        "the token could not open the bundle: see `sallyctl token status`, then import it again"
    )]
    Token(#[source] Box<dyn StdError + Send + Sync>),
    /// A chunk does not open: its bytes were changed, or are not of this bundle.
    #[error("the bundle is damaged in MiB {chunk}: copy it again from the stick")]
    Damaged {
        /// Which chunk, counted from 0.
        chunk: u64,
    },
    /// The manifest is not what a box writes. Not damage: chunks are authenticated.
    #[error("the bundle's manifest is not sound ({0}): report it to the sender")]
    Manifest(&'static str),
    /// A section is not the one that the manifest describes. Not damage: chunks are authenticated.
    #[error("section {section} is not the one in the manifest: report it to the sender")]
    SectionHash {
        /// Which section, counted from 0.
        section: usize,
    },
    /// A kind of section that must be understood and is not.
    #[error("section {section} is of the unknown kind {kind}: update this box first")]
    UnknownSection {
        /// Which section.
        section: usize,
        /// The code of its kind.
        kind: u16,
    },
    /// A section unpacks to more than its manifest says.
    #[error("section {section} unpacks to more than it says: report it to the sender")]
    Bomb {
        /// Which section.
        section: usize,
    },
    /// A section does not unpack, or not to what its manifest says.
    #[error("section {section} does not unpack to what the manifest says: report it to the sender")]
    Section {
        /// Which section.
        section: usize,
    },
    /// A record is not sound.
    #[error("record {record} of section {section} is not sound: report it to the sender")]
    Record {
        /// Which section.
        section: usize,
        /// Which record of it, counted from 0.
        record: u64,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// The bytes are not those that were authenticated before.
    #[error("the bundle was exchanged while it was read: copy it again from the stick")]
    Exchanged,
    /// The quarantine cannot be read.
    #[error("the bundle cannot be read: import it again")]
    Read(#[source] io::Error),
}

/// Why records could not be written into a spool.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The record would not be accepted by the recipient.
    #[error("record would not be accepted by the recipient")]
    Record(#[from] RecordError),
    /// Sections must be written in the order of [`Kind`], rooms once each.
    #[error("section of kind {kind:?} comes too late, or twice for its room")]
    Order {
        /// The kind of the section.
        kind: Kind,
    },
    /// More sections than a bundle may have: close this bundle and begin another.
    #[error("the bundle has as many sections as it may have")]
    TooManySections,
    /// A section was begun and not finished.
    #[error("a section was not finished")]
    Unfinished,
    /// Larger than the recipient takes: close this bundle and begin another.
    #[error("the bundle grows beyond {max} bytes")]
    Full {
        /// The bound.
        max: u64,
    },
    /// The spool cannot be written.
    #[error("spool cannot be written")]
    Io(#[from] io::Error),
}

/// Why a bundle was not sealed. What was written of it is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The manifest would not be accepted by the recipient.
    #[error("manifest would not be accepted by the recipient")]
    Manifest(#[source] Error),
    /// A value has no encoding.
    #[error("manifest or header cannot be encoded")]
    Encode(#[from] cbor::Error),
    /// Larger than the recipient takes.
    #[error("the bundle has {bytes} bytes, the recipient takes {max}")]
    Oversized {
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The recipient's key is not one that we can encrypt to.
    #[error("recipient's encryption key is of an unknown suite or not a key")]
    RecipientKey,
    /// The courier key did not sign.
    #[error("bundle was not signed")]
    Sign(#[source] Box<dyn StdError + Send + Sync>),
    /// The spool is not what was written into it.
    #[error("spool was changed since it was written")]
    Spool,
    /// The spool cannot be read, or the bundle not written.
    #[error("bundle cannot be written")]
    Io(#[from] io::Error),
}
