//! Pairing cards: what two enclaves tell each other once, in person, before they exchange bundles.
//!
//! A card is a COSE_Sign1 by the enclave's root key over deterministic CBOR. It replaces what connected servers learn
//! from the network: DNS, TLS certificates and key notaries.
//!
//! ```cddl
//! card = { 0: 1                          ; version
//!        , 1: tstr                       ; server name
//!        , 2: tstr                       ; name of the enclave, for people
//!        , 3: uint                       ; serial, grows with every card
//!        , 4: uint, 5: uint              ; not before, not after (milliseconds since 1970)
//!        , 6: key                        ; root
//!        , 7: [+ { 0: key, 1: uint }]    ; courier signing keys, each with its not-after
//!        , 8: [+ { 0: uint, 1: bstr, 2: uint }] ; courier encryption keys: suite, public, not-after
//!        , 9: bstr                       ; /_matrix/key/v2/server, byte for byte, self-signed
//!        , 10: policy
//!        , 11: bstr .size 16             ; incarnation
//!        , ? 12: bstr .size 32           ; SHA-256 of the card before this one
//!        , ? 13: 1 / 2 / 3 }             ; where the event key lives: 1 token, 2 memory of the box, wrapped by the token, 3 file
//! key  = [algorithm: 1 / 2, bstr]        ; 1 Ed25519, 2 ECDSA P-256
//! policy = { 0: uint                     ; largest bundle, bytes
//!          , 1: [+ tstr]                 ; room versions
//!          , 2: 1 / 2 / 3                ; direction: 1 both, 2 only receives, 3 only sends
//!          , 3: uint, 4: uint }          ; officers that approve an export, an import
//! ```
//!
//! The root key is trusted because people compared its [`Fingerprint`]: [`Proposed::confirm`] is the only way from what
//! came on a stick to a [`Card`]. A later card comes inside a bundle and is trusted because the same root signed it:
//! [`Card::renew`]. Another root needs another meeting. A renewal with another incarnation says, in the name of the root key,
//! that the box was restored from a backup.

use minicbor::{Decode, Encode};
use ruma::{OwnedServerName, RoomVersionId};

use crate::{
    cbor,
    cose::{self, KeyId, SignError},
    custody::Mode,
    digest::Sha256,
    event::{KeyDocument, KeyDocumentError},
    incarnation::Incarnation,
    limits::{
        CARD_BYTES_MAX, CARD_KEYS_MAX, CARD_NAME_BYTES_MAX, CARD_ROOM_VERSIONS_MAX,
        KEY_DOCUMENT_BYTES_MAX,
    },
    sign::{PublicKey, Signature, context},
    time::Millis,
};

mod fingerprint;
mod keys;
#[cfg(test)]
pub(crate) mod tests;
mod words;

pub use fingerprint::{Fingerprint, Mismatch};
pub use keys::{CourierKey, EncryptionKey, EncryptionSuite};

/// The version of cards that this program writes and reads.
pub const VERSION: u32 = 1;

/// What a card says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Content {
    /// [`VERSION`].
    #[n(0)]
    pub version: u32,
    /// The Matrix server name of the enclave.
    #[cbor(n(1), with = "cbor::id")]
    pub server_name: OwnedServerName,
    /// The name that people use for the enclave.
    #[n(2)]
    pub enclave: String,
    /// Grows with every card of this root.
    #[n(3)]
    pub serial: u64,
    /// From when on the card is valid.
    #[n(4)]
    pub not_before: Millis,
    /// Until when the card is valid. A card that ends in the past revokes.
    #[n(5)]
    pub not_after: Millis,
    /// The key that signs this card and its successors, and nothing else.
    #[n(6)]
    pub root: PublicKey,
    /// The keys that sign bundles.
    #[n(7)]
    pub signing_keys: Vec<CourierKey>,
    /// The keys to encrypt bundles to, in order of preference.
    #[n(8)]
    pub encryption_keys: Vec<EncryptionKey>,
    /// The server's key document (Server-Server API, `GET /_matrix/key/v2/server`), byte for byte.
    #[cbor(n(9), with = "minicbor::bytes")]
    pub server_keys: Vec<u8>,
    /// What the enclave accepts.
    #[n(10)]
    pub policy: Policy,
    /// The life of the enclave's database when the card was made.
    #[n(11)]
    pub incarnation: Incarnation,
    /// The hash of the card that this one follows.
    #[n(12)]
    pub previous: Option<Sha256>,
    /// Where the key lives that signs the enclave's events, as its box said to the root key's holder.
    #[n(13)]
    pub custody: Option<Mode>,
}

/// What an enclave accepts from its peers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Policy {
    /// The largest bundle it takes, in bytes of the whole file.
    #[n(0)]
    pub bundle_bytes_max: u64,
    /// The room versions it supports.
    #[cbor(n(1), with = "cbor::ids")]
    pub room_versions: Vec<RoomVersionId>,
    /// Whether it sends, receives, or both.
    #[n(2)]
    pub direction: Direction,
    /// How many officers must approve an export. Binds the box whose card it is.
    #[n(3)]
    pub export_approvals: u8,
    /// How many officers must approve an import. Binds the box whose card it is.
    #[n(4)]
    pub import_approvals: u8,
}

/// The ways that bundles travel, seen from the enclave whose card it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Direction {
    /// It sends and receives.
    #[n(1)]
    Both,
    /// It only receives: it can never acknowledge.
    #[n(2)]
    Receives,
    /// It only sends.
    #[n(3)]
    Sends,
}

/// The card of a peer that is trusted: its root key was compared by people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    content: Content,
    hash: Sha256,
}

/// A card as it came on a stick: consistent in itself, but anybody can make one. Show [`Proposed::content`], compare
/// [`Proposed::fingerprint`] with what the peer's officer reads aloud, then [`Proposed::confirm`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed(Card);

/// Why a card was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// Longer than any card.
    #[error(
        "not a pairing card, which has at most {max} bytes and not {bytes}: is it the right file?"
    )]
    TooLarge {
        /// The bytes given.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Not a signed card.
    #[error("not a pairing card, or damaged: copy it again from the peer's stick")]
    Malformed(#[source] Option<cbor::Error>),
    /// Written by a later version of this program.
    #[error("the card has format {found}, this box reads {VERSION}: update this box first")]
    NewerFormat {
        /// The version it says.
        found: u32,
    },
    /// Signed by no or another key than the root key it names.
    #[error("the card's signature is wrong: it was damaged or forged, ask for a new one in person")]
    BadSignature,
    /// It contradicts itself.
    #[error("the card is not sound ({0}): ask the peer for a new one")]
    Unsound(&'static str),
    /// The Matrix key document inside is not one of this server.
    #[error("the card's Matrix keys are not sound: ask the peer for a new one")]
    ServerKeys(#[source] Option<KeyDocumentError>),
    /// Its time has not come.
    #[error("the card is not valid yet: compare the clocks of both boxes")]
    NotYetValid {
        /// From when on it is.
        not_before: Millis,
    },
    /// Its time is over, or it was revoked.
    #[error("the card has expired or was revoked: exchange new cards")]
    Expired {
        /// Until when it was valid.
        not_after: Millis,
    },
    /// A renewal that is not of the enclave that we paired with.
    #[error("the card is of {found}, not of {expected}: it renews another peer's card")]
    OtherServer {
        /// Whose card it is.
        found: OwnedServerName,
        /// Whose card was to be renewed.
        expected: OwnedServerName,
    },
    /// A renewal by another root key.
    #[error("the card is signed by another root key: meet the peer's officer and pair again")]
    OtherRoot,
    /// A renewal that is not newer than the card we have.
    #[error(
        "the card has serial {found}, but serial {known} is already known: use the newest card"
    )]
    NotNewer {
        /// The serial of the renewal.
        found: u64,
        /// The serial of the known card.
        known: u64,
    },
    /// Two different cards claim the same place in the sequence.
    #[error(
        "the card does not follow the one we have, as the peer's root key signed two histories: ask its officer in person how that came"
    )]
    Forked,
}

impl Proposed {
    /// Reads a card from a stick.
    pub fn parse(bytes: &[u8], now: Millis) -> Result<Self, CardError> {
        let card = Card::stored(bytes)?;
        card.check_time(now)?;
        Ok(Self(card))
    }

    /// What the card says; not to be trusted yet.
    pub fn content(&self) -> &Content {
        &self.0.content
    }

    /// What the officers of both enclaves compare.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint()
    }

    /// Trusts the card if an officer typed its fingerprint, in words or in hexadecimal digits, as the peer's officer
    /// read it aloud. Case, spaces and punctuation do not matter.
    pub fn confirm(self, typed: &str) -> Result<Card, Mismatch> {
        self.fingerprint().confirm(typed)?;
        Ok(self.0)
    }
}

impl Card {
    /// Signs a card with the root key. The signer gets the bytes that the signature covers.
    pub fn sign<E>(
        content: &Content,
        signer: impl FnOnce(&[u8]) -> Result<Signature, E>,
    ) -> Result<Vec<u8>, SealError<E>> {
        content.check().map_err(SealError::Content)?;
        let payload = cbor::to_bytes(content).map_err(SealError::Encode)?;
        let card =
            cose::sign(context::CARD, &content.root, payload, signer).map_err(SealError::Sign)?;
        // What cannot be read must not be signed.
        Self::stored(&card).map_err(SealError::Content)?;
        Ok(card)
    }

    /// Reads back a card that this box confirmed earlier and kept. Nothing else may come in this way.
    pub fn stored(bytes: &[u8]) -> Result<Self, CardError> {
        if bytes.len() > CARD_BYTES_MAX {
            return Err(CardError::TooLarge { bytes: bytes.len(), max: CARD_BYTES_MAX });
        }
        let envelope = cose::Unverified::parse(bytes).map_err(|_| CardError::Malformed(None))?;
        let content = Content::parse(envelope.unverified_payload())?;
        envelope.verify(context::CARD, &content.root).map_err(|_| CardError::BadSignature)?;
        content.check()?;
        Ok(Self { content, hash: Sha256::of(bytes) })
    }

    /// Reads a card that is to follow this one. It may be one that has expired: that is how a peer revokes itself.
    pub fn renew(&self, bytes: &[u8]) -> Result<Self, CardError> {
        let next = Self::stored(bytes)?;
        let (found, known) = (&next.content, &self.content);
        if found.server_name != known.server_name {
            return Err(CardError::OtherServer {
                found: found.server_name.clone(),
                expected: known.server_name.clone(),
            });
        }
        if found.root != known.root {
            return Err(CardError::OtherRoot);
        }
        if found.serial <= known.serial {
            return Err(CardError::NotNewer { found: found.serial, known: known.serial });
        }
        // A card in between may have been lost; its direct successor must name this one.
        if found.serial == known.serial.saturating_add(1) && found.previous != Some(self.hash) {
            return Err(CardError::Forked);
        }
        Ok(next)
    }

    /// What the card says.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The hash of the card's bytes.
    pub fn hash(&self) -> Sha256 {
        self.hash
    }

    /// The fingerprint of the root key: the same for all cards of an enclave.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.content.root, &self.content.server_name)
    }

    /// Whether the card is valid at a time.
    pub fn check_time(&self, now: Millis) -> Result<(), CardError> {
        let Content { not_before, not_after, .. } = self.content;
        if now < not_before {
            return Err(CardError::NotYetValid { not_before });
        }
        if now > not_after {
            return Err(CardError::Expired { not_after });
        }
        Ok(())
    }

    /// The signing key with an id, whether or not its time is over.
    pub fn signing_key(&self, id: KeyId) -> Option<&CourierKey> {
        self.content.signing_keys.iter().find(|key| KeyId::of(&key.public) == id)
    }

    /// The encryption key to use now: the first that is valid and of a suite that this program knows.
    pub fn encryption_key(&self, now: Millis) -> Option<&EncryptionKey> {
        self.content.encryption_keys.iter().find(|key| key.is_usable(now))
    }
}

/// Why a card was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SealError<E> {
    /// The content would not be accepted by a peer.
    #[error("card would not be accepted by a peer")]
    Content(#[source] CardError),
    /// The content has no encoding.
    #[error("card cannot be encoded")]
    Encode(#[source] cbor::Error),
    /// The root key did not sign.
    #[error("card was not signed")]
    Sign(#[source] SignError<E>),
}

/// Only this much of a card is read to tell its version.
#[derive(Decode)]
#[cbor(map)]
struct Version {
    #[n(0)]
    version: u32,
}

impl Content {
    fn parse(payload: &[u8]) -> Result<Self, CardError> {
        let version = minicbor::decode::<Version>(payload)
            .map_err(|error| CardError::Malformed(Some(cbor::Error::Shape(error))))?
            .version;
        if version != VERSION {
            return Err(CardError::NewerFormat { found: version });
        }
        cbor::from_bytes(payload).map_err(|error| CardError::Malformed(Some(error)))
    }

    fn check(&self) -> Result<(), CardError> {
        let policy = &self.policy;
        let sound = [
            (self.version == VERSION, "unknown version"),
            (!self.enclave.is_empty(), "no name"),
            (self.enclave.len() <= CARD_NAME_BYTES_MAX, "name too long"),
            (!self.enclave.contains(char::is_control), "control characters in the name"),
            (!self.signing_keys.is_empty(), "no signing key"),
            (self.signing_keys.len() <= CARD_KEYS_MAX, "too many signing keys"),
            (self.signing_keys.iter().all(|k| k.public != self.root), "root key signs bundles"),
            (distinct(self.signing_keys.iter().map(CourierKey::id)), "a signing key twice"),
            (self.encryption_keys.len() <= CARD_KEYS_MAX, "too many encryption keys"),
            (self.encryption_keys.iter().any(|k| k.suite().is_some()), "no encryption key we know"),
            (self.encryption_keys.iter().all(EncryptionKey::is_sound), "an encryption key is bad"),
            (distinct(self.encryption_keys.iter().map(EncryptionKey::id)), "encryption key twice"),
            (self.server_keys.len() <= KEY_DOCUMENT_BYTES_MAX, "key document too large"),
            (policy.bundle_bytes_max > 0, "takes no bundle"),
            (!policy.room_versions.is_empty(), "supports no room version"),
            (policy.room_versions.len() <= CARD_ROOM_VERSIONS_MAX, "too many room versions"),
        ];
        if let Some((_, what)) = sound.into_iter().find(|(holds, _)| !holds) {
            return Err(CardError::Unsound(what));
        }
        let json = str::from_utf8(&self.server_keys).map_err(|_| CardError::ServerKeys(None))?;
        KeyDocument::verify(json, &self.server_name, self.not_before)
            .map(drop)
            .map_err(|error| CardError::ServerKeys(Some(error)))
    }
}

fn distinct(ids: impl Iterator<Item = KeyId>) -> bool {
    let mut ids: Vec<_> = ids.collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    ids.len() == count
}
