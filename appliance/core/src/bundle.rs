//! Bundles: what one enclave has for one peer, as one file that may be carried by anybody.
//!
//! # Layout
//! ```text
//! preamble   24 bytes: "SALLYPORT-BUNDLE", version (u32), bytes of the header (u32), both big-endian
//! header     COSE_Sign1 by the sender's courier key, in the clear: what a courier and the gate need ([`Header`])
//! chunk*     AES-256-GCM, 1 MiB of plaintext and a tag of 16 bytes each; the last one is shorter
//!
//! plaintext  = bytes of the manifest (u32), manifest ([`Manifest`]), sections in the order of the manifest
//! section    = records, compressed by zstd or as they are ([`Codec`])
//! record     = bytes of the body (u32), body in deterministic CBOR ([`Record`])
//! ```
//!
//! # Two passes on both sides, and why
//! **Export.** [`Writer`] streams records, in one pass and in flat memory, into a spool on the box's own disk: only then
//! are the length and the hash of every section known. The manifest is made, officers may look at it and approve
//! its hash, and [`Envelope::seal`] copies the spool, encrypted, to the stick. Because sizes and hashes are known before
//! the first byte is written, the manifest comes first and one signature is enough: the header holds the manifest's
//! hash, and the manifest the hash of each section.
//!
//! **Import.** A bundle is read from the quarantine, never from the stick. [`Sealed::open`] verifies the header;
//! [`Sealed::unlock`] has the token agree on the key and verifies the manifest; [`Unlocked::authenticate`] reads to the
//! last byte and verifies every chunk and the hash of every section. Until then nothing is unpacked and no record
//! is parsed. [`Authentic::records`] then reads the file a second time. A bundle that was cut, changed or mixed with
//! another one is refused as a whole before it has an effect, and what could break the decompressor or a parser can only
//! come from a peer that we trust.
//!
//! # Keys
//! HPKE (RFC 9180) in base mode with an ephemeral key per bundle. The recipient's half is its token's affair ([`PrivateHalf`]): one
//! ECDH on P-256, or the seed of an X-Wing key that the token has wrapped. `info` is the SHA-256 of preamble and signed header, and so is
//! the additional data of each chunk: chunks belong to this header, this sender and this recipient. The keys of the chunks
//! are exported from the context, one for all but the last chunk and one for the last; the nonce counts chunks. A bundle
//! cut after a whole chunk fails by its key, not only by its length. The header commits to the whole plaintext, so
//! that one key never encrypts two plaintexts, even if randomness should repeat.
//!
//! # What is refused
//! A section of an unknown kind is refused with its bundle if the sender marked it critical, else it is passed over
//! and reported ([`Records::skipped`]). A later version of the format is refused with the advice to update. For the rest see
//! [`Error`], and [`sequence()`] for bundles that are sound but come twice or out of order.

pub(crate) mod chunk;
mod error;
mod header;
pub(crate) mod hpke;
mod manifest;
mod order;
mod reader;
mod record;
mod records;
mod section;
mod sequence;
#[cfg(test)]
mod tests;
mod writer;

pub use chunk::ChunkReader;
pub use error::{Error, SealError, WriteError};
pub use header::{Header, VERSION};
pub(crate) use hpke::{is_x_wing_public, x_wing_public};
pub use manifest::{
    Ack, BundleId, BundleKind, Clock, Codec, Manifest, Outcome, Prerequisites, Range, RoomFrontier,
    Section, Status,
};
pub use reader::{Authentic, Gate, PrivateHalf, Sealed, Unlocked, unverified_header};
pub use record::{
    Device, Kind, Media, MediaHead, OneTimeKey, OneTimeKeyClaim, Pdu, PduRole, Pool, Receipt,
    Record, RecordError, Room, RoomGap, RoomHead, ServerKeys, ToDevice, User, UserStatus, Verdict,
    Want, Withheld,
};
pub use records::{Entry, Records, Source, Spool};
pub use sequence::{Last, Position, Sequence, continues, sequence};
pub use writer::{Contents, Envelope, SectionWriter, Writer};
