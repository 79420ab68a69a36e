//! Update files: a whole new system in one signed file, as it comes on a stick.
//!
//! ```text
//! update-file = "sallyport-update" ‖ length of what is signed (4 bytes, big-endian) ‖ COSE_Sign1 over the manifest ‖ root ‖ hash tree ‖ kernel
//! ```
//! ```cddl
//! manifest = { 0: tstr, 1: tstr, 2: tstr               ; version, floor, the oldest version it may be installed over
//!            , 3: uint                                 ; when it was built (milliseconds since 1970)
//!            , 4: payload, 5: payload, 6: payload      ; root file system, its dm-verity hash tree, unified kernel image
//!            , 7: bstr .size 32                        ; root hash of the tree
//!            , 8: uint, 9: tstr }                      ; schema of the database that it needs, one line about the release
//! payload  = { 0: uint, 1: bstr .size 32 }             ; bytes, SHA-256
//! ```
//!
//! The release key signs the manifest (context [`context::UPDATE`]) and the manifest names everything else by its hash, so nothing of the file is believed
//! that was not signed. The envelope is that of [`cose`].
//!
//! The rules around it: which update a box takes ([`Running::admit`]), which boot entry starts next ([`entry`]), what a kernel says of its root
//! ([`uki`]), whether a slot is what it should be ([`verity`]), and what the box remembers ([`Ledger`]).

use minicbor::{
    Decode, Decoder, Encode, Encoder, decode,
    encode::{self, Write},
};
use serde::Serialize;

use crate::{
    cbor,
    cose::{self, KeyId, SignError},
    digest::Sha256,
    limits::{
        UPDATE_MANIFEST_BYTES_MAX, UPDATE_NOTES_BYTES_MAX, UPDATE_ROOT_BYTES_MAX,
        UPDATE_UKI_BYTES_MAX,
    },
    sign::{PublicKey, Signature, SigningRequest, context},
    time::Millis,
};

mod admission;
pub mod entry;
mod ledger;
pub mod uki;
pub mod verity;
mod version;

pub use self::{
    admission::{Direction, NotAdmitted, Running},
    ledger::{Ledger, Outcome, Pending, Settled},
    version::{NotAVersion, Version},
};

#[cfg(test)]
mod tests;

const MAGIC: &[u8; 16] = b"sallyport-update";

/// Bytes before what is signed: what a reader needs to know how much to read next.
pub const PREFIX_BYTES: usize = MAGIC.len() + 4;

/// What an update is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Manifest {
    /// The version of the system in the file.
    #[n(0)]
    pub version: Version,
    /// The oldest version that may be installed once this one runs.
    #[n(1)]
    pub floor: Version,
    /// The oldest version that this one may be installed over.
    #[n(2)]
    pub from: Version,
    /// When it was built.
    #[n(3)]
    pub built: Millis,
    /// The root file system.
    #[n(4)]
    pub root: Payload,
    /// Its hash tree, with superblock.
    #[n(5)]
    pub tree: Payload,
    /// The unified kernel image.
    #[n(6)]
    pub uki: Payload,
    /// The root hash of the tree: what the kernel image names.
    #[n(7)]
    pub root_hash: Sha256,
    /// The schema of the database that this version makes and needs.
    #[n(8)]
    pub schema: u32,
    /// One line about the release, for people.
    #[n(9)]
    pub notes: String,
}

/// A part of the file behind what is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Payload {
    /// Its size.
    #[n(0)]
    pub bytes: u64,
    /// Its hash.
    #[n(1)]
    pub sha256: Sha256,
}

/// Which part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The root file system.
    Root,
    /// Its hash tree.
    Tree,
    /// The unified kernel image.
    Uki,
}

impl Part {
    /// The name for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root file system",
            Self::Tree => "hash tree",
            Self::Uki => "kernel",
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a file is not an update that this box believes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another kind of file, or cut short.
    #[error("the file is not an update of Sallyport, or its beginning is damaged: copy it again")]
    NotAnUpdate,
    /// The manifest contradicts itself or a bound.
    #[error("the update says something impossible ({0}): have it made again")]
    Impossible(&'static str),
    /// The key is none of the release keys in the running system.
    #[error(
        "the update is signed with the key {0}, which is no release key of the system that runs here: it was made by somebody else"
    )]
    UnknownSigner(KeyId),
    /// The manifest was changed after it was signed, or signed by somebody else.
    #[error(
        "the signature of the update is wrong: the file was changed or damaged after it was signed; get it again"
    )]
    Signature,
}

impl Manifest {
    /// The parts in the order of the file, each with its place behind what is signed.
    #[must_use]
    pub fn parts(&self) -> [(Part, Payload, u64); 3] {
        let tree_at = self.root.bytes;
        let uki_at = tree_at.saturating_add(self.tree.bytes);
        [
            (Part::Root, self.root, 0),
            (Part::Tree, self.tree, tree_at),
            (Part::Uki, self.uki, uki_at),
        ]
    }

    /// Bytes of all parts.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.parts().iter().fold(0, |sum, (_, payload, _)| sum.saturating_add(payload.bytes))
    }

    fn check(&self) -> Result<(), Refused> {
        let block = verity::BLOCK_BYTES as u64;
        let blocks = |payload: Payload| {
            payload.bytes > 0
                && payload.bytes.is_multiple_of(block)
                && payload.bytes <= UPDATE_ROOT_BYTES_MAX
        };
        let uki = self.uki.bytes > 0 && self.uki.bytes <= UPDATE_UKI_BYTES_MAX;
        let plain =
            self.notes.len() <= UPDATE_NOTES_BYTES_MAX && !self.notes.chars().any(char::is_control);
        let rules = [
            (blocks(self.root) && blocks(self.tree), "the size of the root file system"),
            (uki, "the size of the kernel"),
            (self.floor <= self.version, "its floor is above its own version"),
            (self.from <= self.version, "it wants to be installed over a newer version"),
            (plain, "the line about the release"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(Refused::Impossible(what)),
            None => Ok(()),
        }
    }
}

/// Signs a manifest: the answer is the beginning of the file, to which root, tree and kernel are appended. The signer is asked once; its answer is verified.
///
/// # Errors
/// If the manifest breaks a rule ([`SignError::Encode`]), or the signer fails or answers with another key's signature.
pub fn sign<E>(
    manifest: &Manifest,
    key: &PublicKey,
    signer: impl FnOnce(SigningRequest) -> Result<Signature, E>,
) -> Result<Vec<u8>, SignError<E>> {
    manifest.check().map_err(|_| SignError::Encode)?;
    let payload = cbor::to_bytes(manifest).map_err(|_| SignError::Encode)?;
    let signed = cose::sign(context::UPDATE, key, payload, |tbs| {
        signer(SigningRequest::Update(tbs.to_vec()))
    })?;
    let length = u32::try_from(signed.len()).map_err(|_| SignError::Encode)?;
    Ok([MAGIC.as_slice(), &length.to_be_bytes(), &signed].concat())
}

/// How many bytes behind the prefix are signed, if the prefix is that of an update.
///
/// # Errors
/// [`Refused::NotAnUpdate`].
pub fn signed_bytes(prefix: &[u8; PREFIX_BYTES]) -> Result<usize, Refused> {
    let length = prefix.strip_prefix(MAGIC).and_then(|length| length.try_into().ok());
    let length = length.map(u32::from_be_bytes).and_then(|length| usize::try_from(length).ok());
    length
        .filter(|length| (1..=UPDATE_MANIFEST_BYTES_MAX).contains(length))
        .ok_or(Refused::NotAnUpdate)
}

/// The beginning of an update file. Nothing in it is to be believed before [`Unverified::verify`].
#[derive(Debug)]
pub struct Unverified {
    envelope: cose::Unverified,
    manifest: Manifest,
    payloads_at: u64,
}

/// The manifest of an update whose signature was verified. The hashes of the parts are still to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The manifest.
    pub manifest: Manifest,
    /// The release key.
    pub signer: PublicKey,
    /// Where the parts begin in the file.
    pub payloads_at: u64,
}

impl Unverified {
    /// Reads what is signed: the [`signed_bytes`] behind the prefix.
    ///
    /// # Errors
    /// [`Refused::NotAnUpdate`] or [`Refused::Impossible`].
    pub fn parse(signed: &[u8]) -> Result<Self, Refused> {
        if signed.len() > UPDATE_MANIFEST_BYTES_MAX {
            return Err(Refused::NotAnUpdate);
        }
        let envelope = cose::Unverified::parse(signed).map_err(|_| Refused::NotAnUpdate)?;
        let manifest: Manifest =
            cbor::from_bytes(envelope.unverified_payload()).map_err(|_| Refused::NotAnUpdate)?;
        manifest.check()?;
        let payloads_at = (PREFIX_BYTES + signed.len()) as u64;
        Ok(Self { envelope, manifest, payloads_at })
    }

    /// What the file says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The key that the file says it is signed with.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.envelope.key_id()
    }

    /// Where the parts begin in the file.
    #[must_use]
    pub fn payloads_at(&self) -> u64 {
        self.payloads_at
    }

    /// Bytes that the whole file must have.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.payloads_at.saturating_add(self.manifest.payload_bytes())
    }

    /// Verifies the signature against the release keys of the running system.
    ///
    /// # Errors
    /// [`Refused::UnknownSigner`] or [`Refused::Signature`].
    pub fn verify(self, release_keys: &[PublicKey]) -> Result<Verified, Refused> {
        let key_id = self.key_id();
        let signer = release_keys
            .iter()
            .find(|key| KeyId::of(key) == key_id)
            .ok_or(Refused::UnknownSigner(key_id))?;
        self.envelope.verify(context::UPDATE, signer).map_err(|_| Refused::Signature)?;
        Ok(Verified {
            manifest: self.manifest,
            signer: signer.clone(),
            payloads_at: self.payloads_at,
        })
    }
}

/// Reads a list of release keys: one in its text form per line; empty lines and those that begin with `#` are left out.
///
/// # Errors
/// The number of the first line that is no key; 0 if there is none at all.
pub fn release_keys(text: &str) -> Result<Vec<PublicKey>, usize> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let keys = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| line.parse().map_err(|_| number))
        .collect::<Result<Vec<PublicKey>, usize>>()?;
    if keys.is_empty() { Err(0) } else { Ok(keys) }
}

/// The text form.
impl<C> Encode<C> for Version {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.str(&self.to_string())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Version {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        d.str()?.parse().map_err(|_| decode::Error::message("not a version").at(at))
    }
}
