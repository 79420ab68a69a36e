//! A box's request for its pairing card: its public keys, which the enclave root signs at a ceremony.
//!
//! ```cddl
//! request = { 0: tstr, 1: [+ courier-key], 2: [+ encryption-key]  ; server name; keys as in a card
//!           , 3: bstr                                             ; /_matrix/key/v2/server, byte for byte
//!           , 4: bstr .size 16, ? 5: bstr .size 32                ; incarnation; hash of the card before
//!           , ? 6: 1 / 2 / 3 }                                    ; where the event key lives, as in a card
//! ```
//!
//! Nothing protects it on its way but its SHA-256, which people carry on paper.

use minicbor::{Decode, Encode};
use ruma::OwnedServerName;

use crate::{
    card::{Content, CourierKey, EncryptionKey, Policy, VERSION},
    cbor,
    custody::Mode,
    digest::Sha256,
    incarnation::Incarnation,
    limits::CARD_BYTES_MAX,
    sign::PublicKey,
    time::Millis,
};

/// What the box knows of its next card.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CardRequest {
    /// Matrix server name.
    #[cbor(n(0), with = "cbor::id")]
    pub server_name: OwnedServerName,
    /// The keys that sign its bundles.
    #[n(1)]
    pub signing_keys: Vec<CourierKey>,
    /// The keys to encrypt bundles to.
    #[n(2)]
    pub encryption_keys: Vec<EncryptionKey>,
    /// Its Matrix key document, byte for byte.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub server_keys: Vec<u8>,
    /// The life of its database.
    #[n(4)]
    pub incarnation: Incarnation,
    /// The hash of the card that it has.
    #[n(5)]
    pub previous: Option<Sha256>,
    /// Where its event key lives.
    #[n(6)]
    pub custody: Option<Mode>,
}

/// What the people at the ceremony decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardTerms {
    /// Name of the enclave for people.
    pub enclave: String,
    /// Number of the card.
    pub serial: u64,
    /// From when on it is valid.
    pub not_before: Millis,
    /// Until when it is valid.
    pub not_after: Millis,
    /// The root key that signs it.
    pub root: PublicKey,
    /// What the enclave accepts.
    pub policy: Policy,
}

/// Bytes that are not a request for a card.
#[derive(Debug, thiserror::Error)]
pub enum NotARequest {
    /// Larger than any card.
    #[error("a request has at most {CARD_BYTES_MAX} bytes")]
    TooLarge,
    /// Not the deterministic CBOR of a request.
    #[error("not a request for a card, or damaged: fetch it again from the box")]
    Malformed(#[source] cbor::Error),
}

impl CardRequest {
    /// The file.
    ///
    /// # Errors
    /// [`cbor::Error`] if a part has no encoding.
    pub fn encode(&self) -> Result<Vec<u8>, cbor::Error> {
        cbor::to_bytes(self)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`NotARequest`].
    pub fn decode(bytes: &[u8]) -> Result<Self, NotARequest> {
        if bytes.len() > CARD_BYTES_MAX {
            return Err(NotARequest::TooLarge);
        }
        cbor::from_bytes(bytes).map_err(NotARequest::Malformed)
    }

    /// The content of the card; whether it is sound is found out when it is signed.
    #[must_use]
    pub fn into_content(self, terms: CardTerms) -> Content {
        let CardTerms { enclave, serial, not_before, not_after, root, policy } = terms;
        Content {
            version: VERSION,
            server_name: self.server_name,
            enclave,
            serial,
            not_before,
            not_after,
            root,
            signing_keys: self.signing_keys,
            encryption_keys: self.encryption_keys,
            server_keys: self.server_keys,
            policy,
            incarnation: self.incarnation,
            previous: self.previous,
            custody: self.custody,
        }
    }
}
