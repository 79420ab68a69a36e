//! Backups: everything that another machine needs to go on as this box, as one file that recovery officers can open.
//!
//! # Layout
//! ```text
//! preamble   24 bytes: "SALLYPORT-BACKUP", version (u32), bytes of the header (u32), both big-endian
//! header     deterministic CBOR, in the clear ([`Header`]): whose backup, which one, and a stanza for each recovery key
//! chunk*     AES-256-GCM, 1 MiB of plaintext and a tag of 16 bytes each; the last one is shorter and under a key of its own
//!
//! plaintext  = item*, the last of which is the manifest
//! item       = bytes of the head (u32), head in deterministic CBOR ([`Head`]), block*, 0 (u32)
//! block      = bytes (u32, at most 256 KiB), bytes of the content, compressed by zstd or as it is
//! ```
//! Items come in the order of their [`Section`]: settings, files with wrapped keys, the database, the list of all media, the media files that
//! the backup brings, the manifest. A *full* backup brings every media file on its list; an *incremental* one names the backup that it follows
//! and brings those that are new. The database is in each of them as a whole: it is what is small and changes everywhere, and a restore
//! that puts pages of several files together would be one more thing to go wrong.
//!
//! # One pass, because a stick is slow
//! The sizes of a backup are not known before it is made, and it may be larger than what is free on the box. So unlike a bundle it is written in one pass,
//! and the manifest comes last: how many items of each section there are and a hash over them. The chunks are those of bundles ([`crate::bundle`]); whether one is the last is known by the end of the file,
//! and proven by the key that opens it: a backup that was cut after a whole chunk does not open.
//!
//! # Keys
//! The content key is random. For each recovery key a stanza wraps it with a key that HPKE exports (RFC 9180, base mode, both suites of
//! [`crate::card::EncryptionSuite`]). The chunk keys are derived from the content key with the hash of preamble and header as salt, and that hash, which is the backup's
//! id, is the additional data of each chunk.
//!
//! # Whose it is
//! Whoever knows the public recovery keys can encrypt to them, so that a backup opens says nothing about who made it. The manifest is signed by the
//! *courier key*, because that is the only key of the box of which people hold proof elsewhere: the enclave root vouches for it on the pairing card. The audit key is
//! vouched for by nobody outside of the box, and the event key signs nothing but Matrix. A reader compares the fingerprint of the root as it was
//! written down ([`Signed::vouched`]), and needs nothing from the lost box.

mod chain;
mod error;
mod grant;
mod header;
mod item;
mod manifest;
mod reader;
mod recipient;
mod restored;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

pub use crate::bundle::Codec;
pub use chain::{Chain, Link};
pub use error::{Error, WriteError};
pub use grant::{ContentKeys, Grant, Granted};
pub use header::{BackupId, Header, Maker, VERSION};
pub use item::{Head, MEDIA_ENTRY_BYTES, Section, WRAPPED_FILES, is_settings_name};
pub use manifest::{Content, Manifest, Signed};
pub use reader::{Contents, Opened, Sealed, Sink};
pub use recipient::{NotARecoveryKey, RecoveryKey, Stanza};
pub use restored::{RESTORED_FILE, RESTORING_FOLDER, Restored};
pub use writer::{ItemWriter, Writer};
