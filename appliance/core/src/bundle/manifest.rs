//! What a bundle contains and what it says about the traffic in the other direction.
//!
//! The manifest is not signed by itself: the signed header holds its hash. It names its bundle, so that the two together are
//! evidence, and its predecessor, so that a sender's manifests are a chain that it cannot rewrite unnoticed.

use std::fmt;

use minicbor::{Decode, Encode, bytes::ByteVec};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, RoomId};

use super::{Error, Header, Kind};
use crate::{
    card::EncryptionKey,
    cbor,
    digest::Sha256,
    incarnation::Incarnation,
    limits::{
        BUNDLE_MANIFEST_BYTES_MAX, BUNDLE_RATIO_MAX, BUNDLE_RECORD_BYTES_MIN, BUNDLE_SECTIONS_MAX,
    },
    time::Millis,
};

/// The random name of a bundle.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct BundleId(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

/// The table of contents of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Manifest {
    /// As in the header.
    #[n(0)]
    pub id: BundleId,
    /// As in the header.
    #[cbor(n(1), with = "cbor::id")]
    pub from: OwnedServerName,
    /// As in the header.
    #[cbor(n(2), with = "cbor::id")]
    pub to: OwnedServerName,
    /// As in the header.
    #[n(3)]
    pub incarnation: Incarnation,
    /// As in the header.
    #[n(4)]
    pub seq: u64,
    /// As in the header.
    #[n(5)]
    pub created: Millis,
    /// As in the header.
    #[n(6)]
    pub expires: Millis,
    /// 32 random bytes: the header's hash of the manifest tells nothing about its content.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub blind: [u8; 32],
    /// The hash of the manifest with the number before, if there is one in this incarnation.
    #[n(8)]
    pub previous: Option<Sha256>,
    /// What the bundle is for.
    #[n(9)]
    pub kind: BundleKind,
    /// How good the sender's clock is.
    #[n(10)]
    pub clock: Clock,
    /// Fresh key documents (Server-Server API, `GET /_matrix/key/v2/server`) of the sender and of every server whose
    /// events are inside, byte for byte.
    #[n(11)]
    pub server_keys: Vec<ByteVec>,
    /// The keys to encrypt the next bundles back to, in order of preference.
    #[n(12)]
    pub encryption_keys: Vec<EncryptionKey>,
    /// What the recipient must have.
    #[n(13)]
    pub prerequisites: Prerequisites,
    /// What is inside, in this order.
    #[n(14)]
    pub sections: Vec<Section>,
    /// What the sender has of the recipient's bundles; none if it has had none.
    #[n(15)]
    pub ack: Option<Ack>,
    /// The sender's newest card, until the recipient has acknowledged a bundle with it. A card with another incarnation is
    /// the notice, signed by the root key, that the sender's box was restored.
    #[cbor(n(16), with = "minicbor::bytes")]
    pub card: Option<Vec<u8>>,
}

/// What a bundle is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum BundleKind {
    /// Everything since what the recipient acknowledged.
    #[n(1)]
    Delta,
    /// Complete rooms, for a recipient that lost too much.
    #[n(2)]
    Snapshot,
    /// What the recipient asked for again.
    #[n(3)]
    Repair,
    /// Only an acknowledgement.
    #[n(4)]
    Acknowledgement,
}

/// The sender's clock. A recipient never sets its own by it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Clock {
    /// Where it gets the time from, in words: `operator`, `gnss`, `radio`.
    #[n(0)]
    pub source: String,
    /// How far off it may be, in milliseconds, if that is known.
    #[n(1)]
    pub error_ms: Option<u64>,
}

/// What the recipient must have for the bundle to make sense.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Prerequisites {
    /// The events in each room that the bundle builds on.
    #[n(0)]
    pub rooms: Vec<RoomFrontier>,
    /// The number of the last to-device message before the first one inside; 0 if there is none.
    #[n(1)]
    pub to_device: u64,
}

/// The forward extremities of a room.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RoomFrontier {
    /// The room.
    #[cbor(n(0), with = "cbor::id")]
    pub room_id: OwnedRoomId,
    /// The events that no known event follows.
    #[cbor(n(1), with = "cbor::ids")]
    pub events: Vec<OwnedEventId>,
}

/// One section. Its number is its place in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Section {
    /// The code of a [`Kind`], or of one that this program does not know.
    #[n(0)]
    pub kind: u16,
    /// Whether a recipient that does not know the kind must refuse the bundle.
    #[n(1)]
    pub critical: bool,
    /// The room, in a section of that kind.
    #[cbor(n(2), with = "cbor::id_option", has_nil)]
    pub room_id: Option<OwnedRoomId>,
    /// How it is stored.
    #[n(3)]
    pub codec: Codec,
    /// Bytes as stored.
    #[n(4)]
    pub stored_bytes: u64,
    /// Bytes of its records: a hard limit on what is unpacked.
    #[n(5)]
    pub bytes: u64,
    /// The hash of it as stored.
    #[n(6)]
    pub sha256: Sha256,
    /// How many records it has: a hard limit.
    #[n(7)]
    pub records: u64,
}

/// How a section of a bundle, or an item of a backup, is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Codec {
    /// As it is.
    #[n(0)]
    Stored,
    /// Compressed by zstd (RFC 8878), with a window of 8 MiB at most.
    #[n(1)]
    Zstd,
}

/// What an enclave has of a peer's bundles. It is cumulative: a later one makes up for those that were lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ack {
    /// The life of the peer's database that the numbers are of.
    #[n(0)]
    pub incarnation: Incarnation,
    /// Every bundle up to this number was imported, or declared lost.
    #[n(1)]
    pub seq: u64,
    /// The numbers that are missing below others that came.
    #[n(2)]
    pub missing: Vec<Range>,
    /// What became of the latest bundles.
    #[n(3)]
    pub outcomes: Vec<Outcome>,
    /// Every to-device message up to this number was delivered, or declared lost.
    #[n(4)]
    pub to_device: u64,
    /// What this enclave has of each shared room.
    #[n(5)]
    pub rooms: Vec<RoomFrontier>,
}

/// Numbers from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Range {
    /// The first number.
    #[n(0)]
    pub first: u64,
    /// The last number.
    #[n(1)]
    pub last: u64,
}

/// What became of one bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Outcome {
    /// Its number.
    #[n(0)]
    pub seq: u64,
    /// Whether it was imported.
    #[n(1)]
    pub status: Status,
    /// Events that were accepted.
    #[n(2)]
    pub accepted: u64,
    /// Events that were accepted but withheld from users (Server-Server API, "Soft failure").
    #[n(3)]
    pub soft_failed: u64,
    /// Events that the rules of their rooms reject.
    #[n(4)]
    pub rejected: u64,
    /// Events with a bad signature or form.
    #[n(5)]
    pub dropped: u64,
    /// Events that wait for newer keys or a later time.
    #[n(6)]
    pub held: u64,
}

/// Whether a bundle was imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Status {
    /// Completely.
    #[n(1)]
    Imported,
    /// Refused by its form, its time, or an officer.
    #[n(2)]
    Refused,
    /// Never came, and an officer does not wait for it any more.
    #[n(3)]
    DeclaredLost,
}

impl Manifest {
    /// Reads a manifest. Whether it is the one that a header names is another question.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > BUNDLE_MANIFEST_BYTES_MAX {
            return Err(Error::Manifest("too large"));
        }
        let manifest: Self =
            cbor::from_bytes(bytes).map_err(|_| Error::Manifest("not deterministic CBOR"))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The encoding that is hashed. What officers approve is the hash of it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, cbor::Error> {
        cbor::to_bytes(self)
    }

    /// Whether the manifest describes sections that can be read within the bounds.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.sections.len() > BUNDLE_SECTIONS_MAX {
            return Err(Error::Manifest("too many sections"));
        }
        let mut rooms: Vec<&RoomId> = Vec::new();
        let mut last = 0;
        for (number, section) in self.sections.iter().enumerate() {
            if section.kind < last {
                return Err(Error::Manifest("sections out of order"));
            }
            last = section.kind;
            section.check(number)?;
            rooms.extend(section.room_id.as_deref());
        }
        let count = rooms.len();
        rooms.sort_unstable();
        rooms.dedup();
        if rooms.len() != count {
            return Err(Error::Manifest("two sections for one room"));
        }
        Ok(())
    }

    /// Whether this is the manifest of a header and fills the plaintext that the header announces.
    pub(super) fn belongs_to(&self, header: &Header, own_bytes: usize) -> bool {
        let same = self.id == header.id
            && self.from == header.from
            && self.to == header.to
            && self.incarnation == header.incarnation
            && self.seq == header.seq
            && self.created == header.created
            && self.expires == header.expires;
        same && self.plaintext_bytes(own_bytes) == Some(header.plaintext_bytes)
    }

    /// Bytes of the plaintext: the length of the manifest (4 bytes), the manifest, the sections.
    pub(super) fn plaintext_bytes(&self, own_bytes: usize) -> Option<u64> {
        let own = u64::try_from(own_bytes).ok()?.checked_add(4)?;
        self.sections.iter().try_fold(own, |sum, section| sum.checked_add(section.stored_bytes))
    }
}

impl Section {
    /// The kind, if this program knows it.
    pub fn known_kind(&self) -> Option<Kind> {
        Kind::from_code(self.kind)
    }

    fn check(&self, number: usize) -> Result<(), Error> {
        let Some(kind) = self.known_kind() else {
            return if self.critical {
                Err(Error::UnknownSection { section: number, kind: self.kind })
            } else {
                Ok(())
            };
        };
        match self.codec {
            Codec::Stored if self.bytes != self.stored_bytes => {
                return Err(Error::Manifest("a stored section of two lengths"));
            }
            Codec::Zstd if self.bytes.div_ceil(BUNDLE_RATIO_MAX) > self.stored_bytes => {
                return Err(Error::Bomb { section: number });
            }
            _ => {}
        }
        if self.records.saturating_mul(BUNDLE_RECORD_BYTES_MIN) > self.bytes {
            return Err(Error::Manifest("more records than bytes for them"));
        }
        if self.room_id.is_some() != (kind == Kind::Room) {
            return Err(Error::Manifest("a room where there should be none, or none"));
        }
        Ok(())
    }
}

impl fmt::Debug for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
