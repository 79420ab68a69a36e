//! The end of a backup: what is in it, signed.
//!
//! ```cddl
//! manifest = { 0: bstr .size 32              ; id of the backup
//!            , 1: [* content]                ; in the order of the sections, those without items left out
//!            , 2: uint, 3: bstr .size 32     ; the end of the audit log: number and hash of its last row
//!            , 4: tstr                       ; version of the program
//!            , 5: uint }                     ; media files that the database refers to and the box had lost
//! content  = { 0: section, 1: uint, 2: uint, 3: bstr .size 32 }   ; items; bytes; SHA-256 over heads and hashes of the items
//! ```

use minicbor::{Decode, Encode};

use super::{BackupId, Error, Head, Header, Section, WriteError};
use crate::{
    audit::Tip,
    card::Card,
    cbor, cose,
    cose::KeyId,
    digest::{Hasher, Sha256},
    sign::{PublicKey, Signature, context},
};

/// What a backup contains.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Manifest {
    /// The backup that it is the manifest of.
    #[n(0)]
    pub id: BackupId,
    /// Each section that has items.
    #[n(1)]
    pub contents: Vec<Content>,
    /// Number of the last row of the audit log.
    #[n(2)]
    pub audit_row: u64,
    /// Hash of that row.
    #[n(3)]
    pub audit_hash: Sha256,
    /// Version of the program that made it.
    #[n(4)]
    pub version: String,
    /// Media files that the database refers to, and that were not on the box's disk.
    #[n(5)]
    pub missing_media: u64,
}

/// What a backup contains of one section.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Content {
    /// The section.
    #[n(0)]
    pub section: Section,
    /// How many items.
    #[n(1)]
    pub items: u64,
    /// Bytes of their content, unpacked.
    #[n(2)]
    pub bytes: u64,
    /// The hash over the head and the hash of each.
    #[n(3)]
    pub sha256: Sha256,
}

/// Counts and hashes items as they pass: the same on both sides.
#[derive(Default)]
pub(super) struct Tally {
    done: Vec<Content>,
    open: Option<(Section, u64, u64, Hasher)>,
}

impl Tally {
    /// Counts an item whose content has this hash.
    pub(super) fn count(&mut self, head: &Head, head_bytes: &[u8], sha256: &Sha256) {
        if self.open.as_ref().is_some_and(|(section, ..)| *section != head.section) {
            self.close();
        }
        let (_, items, bytes, hasher) =
            self.open.get_or_insert_with(|| (head.section, 0, 0, Hasher::default()));
        *items = items.saturating_add(1);
        *bytes = bytes.saturating_add(head.bytes);
        hasher.update(head_bytes);
        hasher.update(sha256.as_bytes());
    }

    /// How many items of a section there were; of the one that is open or an earlier one.
    pub(super) fn items(&self, of: Section) -> u64 {
        let open = self.open.iter().map(|(section, items, ..)| (*section, *items));
        let done = self.done.iter().map(|content| (content.section, content.items));
        open.chain(done).find(|(section, _)| *section == of).map_or(0, |(_, items)| items)
    }

    fn close(&mut self) {
        if let Some((section, items, bytes, hasher)) = self.open.take() {
            self.done.push(Content { section, items, bytes, sha256: hasher.finish() });
        }
    }

    pub(super) fn finish(mut self) -> Vec<Content> {
        self.close();
        self.done
    }
}

impl Manifest {
    /// The end of the audit log.
    #[must_use]
    pub fn audit(&self) -> Tip {
        Tip { id: self.audit_row, hash: self.audit_hash }
    }

    /// What there is of a section.
    #[must_use]
    pub fn content(&self, section: Section) -> Option<&Content> {
        self.contents.iter().find(|content| content.section == section)
    }

    pub(super) fn sign<E: std::error::Error + Send + Sync + 'static>(
        &self,
        key: &PublicKey,
        signer: impl FnOnce(&[u8]) -> Result<Signature, E>,
    ) -> Result<Vec<u8>, WriteError> {
        let payload = cbor::to_bytes(self).map_err(|_| WriteError::Encode)?;
        cose::sign(context::BACKUP, key, payload, signer).map_err(WriteError::sign)
    }

    pub(super) fn verify(bytes: &[u8], key: &PublicKey) -> Result<Self, Error> {
        let envelope = cose::Unverified::parse(bytes).map_err(|_| Error::BadSignature)?;
        let payload = envelope.verify(context::BACKUP, key).map_err(|_| Error::BadSignature)?;
        cbor::from_bytes(&payload).map_err(|_| Error::Content("a manifest of another form"))
    }
}

/// A backup that is whole and signed by the key that its header names. Who vouches for that key is the next question.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The header.
    pub header: Header,
    /// The manifest.
    pub manifest: Manifest,
    /// The box's pairing card, if it had one.
    pub card: Option<Vec<u8>>,
}

impl Signed {
    /// Whether the enclave root vouches for the key: people typed its fingerprint as it was written down when it was made.
    ///
    /// # Errors
    /// If there is no card, it is another root's, or does not name the key for that time.
    pub fn vouched(&self, fingerprint: &str) -> Result<Card, Error> {
        let card = Card::stored(self.card.as_ref().ok_or(Error::NoCard)?)?;
        if card.content().server_name != self.header.enclave {
            return Err(Error::NotVouched("it is another enclave's"));
        }
        card.fingerprint().confirm(fingerprint)?;
        let key = card.signing_key(KeyId::of(&self.header.signer));
        let key = key.filter(|key| key.public == self.header.signer);
        let key = key.ok_or(Error::NotVouched("it does not name the key"))?;
        if self.header.created > key.not_after {
            return Err(Error::NotVouched("the key had expired"));
        }
        Ok(card)
    }
}
