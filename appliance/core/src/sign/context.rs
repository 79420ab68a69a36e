//! The contexts of our binary documents: what keeps a signed manifest from being shown as a signed card.
//!
//! Each kind of document puts its context into `external_aad` of the COSE `Sig_structure` (RFC 9052, section 4.4), for
//! example `sign1.tbs_data(context::MANIFEST)` of `coset`. The context is signed but does not travel: a reader must
//! know what it expects.

use minicbor::{Decoder, Encoder};

use super::Refusal;
use crate::limits::SIGNED_BYTES_MAX;

/// Context of a bundle manifest.
pub const MANIFEST: &[u8] = b"sallyport/manifest/1";
/// Context of an acknowledgement or receipt.
pub const ACKNOWLEDGEMENT: &[u8] = b"sallyport/acknowledgement/1";
/// Context of a pairing card.
pub const CARD: &[u8] = b"sallyport/card/1";
/// Context of a roster.
pub const ROSTER: &[u8] = b"sallyport/roster/1";
/// Context of an officer's approval.
pub const APPROVAL: &[u8] = b"sallyport/approval/1";
/// Context of a checkpoint of the audit log.
pub const CHECKPOINT: &[u8] = b"sallyport/checkpoint/1";
/// Context of what a backup contains.
pub const BACKUP: &[u8] = b"sallyport/backup/1";
/// Context of what a token says of a key that it wraps.
pub const WORKING_KEY: &[u8] = b"sallyport/working-key/1";
/// Context of the manifest of an update of the system.
pub const UPDATE: &[u8] = b"sallyport/update/1";

/// The `context` text of a COSE_Sign1 (as opposed to `Signature` of COSE_Sign).
const SIGN1: &str = "Signature1";

/// Gives `bytes` back if they are `["Signature1", protected, expected, payload]` in deterministic encoding, with
/// something in `protected` (the algorithm stands there) and in `payload`.
pub(super) fn check(
    what: &'static str,
    expected: &'static [u8],
    bytes: &[u8],
) -> Result<Vec<u8>, Refusal> {
    if bytes.len() > SIGNED_BYTES_MAX {
        return Err(Refusal::TooLarge { what, bytes: bytes.len(), max: SIGNED_BYTES_MAX });
    }
    let fields = SigStructure::decode(bytes).ok_or(Refusal::SigStructure { what })?;
    if fields.external_aad != expected {
        return Err(Refusal::Context { what });
    }
    if fields.protected.is_empty() || fields.payload.is_empty() || fields.encode() != bytes {
        return Err(Refusal::SigStructure { what });
    }
    Ok(bytes.to_vec())
}

/// The payload of a `Sig_structure`.
pub(super) fn payload(bytes: &[u8]) -> Option<&[u8]> {
    SigStructure::decode(bytes).map(|fields| fields.payload)
}

struct SigStructure<'a> {
    protected: &'a [u8],
    external_aad: &'a [u8],
    payload: &'a [u8],
}

impl<'a> SigStructure<'a> {
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut decoder = Decoder::new(bytes);
        if decoder.array().ok()? != Some(4) || decoder.str().ok()? != SIGN1 {
            return None;
        }
        Some(Self {
            protected: decoder.bytes().ok()?,
            external_aad: decoder.bytes().ok()?,
            payload: decoder.bytes().ok()?,
        })
    }

    /// The one deterministic encoding (RFC 8949, section 4.2.1). Comparing with it also finds trailing bytes.
    fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        let encoded = encoder
            .array(4)
            .and_then(|e| e.str(SIGN1))
            .and_then(|e| e.bytes(self.protected))
            .and_then(|e| e.bytes(self.external_aad))
            .and_then(|e| e.bytes(self.payload))
            .is_ok();
        if encoded { encoder.into_writer() } else { Vec::new() }
    }
}
