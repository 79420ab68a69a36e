//! How Sallyport remembers: one SQLite file in WAL mode, one writer thread with group commit, and snapshot readers.
//!
//! This is the only place with SQL. Functions that only ask take [`Read`]; functions that change take
//! `&mut` [`Write`], which only exists inside a command running on the writer thread. One file per group of tables;
//! each adds its functions in an `impl Read` and an `impl Write` block.
//!
//! # Adding a table
//! 1. Write `migrations/NNNN_name.sql` (never edit a released one) and list it in `schema.rs`.
//! 2. Write `src/name.rs` with the `impl Read` / `impl Write` blocks.
//! 3. If `/sync` must show a change, take its position from [`Write::next_position`] and say who must look with
//!    [`Write::touch_room`] or [`Write::touch_user`].

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod account_data;
mod activation;
mod audit;
mod backups;
mod cache;
mod copy;
mod current_state;
mod devices;
mod directory;
mod error;
mod events;
mod file;
mod history;
mod hybrid_keys;
mod key_pools;
mod keys;
mod media;
mod members;
mod meta;
mod one_time_keys;
mod peers;
mod pool;
mod profiles;
mod receipts;
mod relations;
mod restore;
mod room;
mod rooms;
mod roster;
mod schema;
mod server_keys;
mod sessions;
mod signing;
mod states;
mod to_device;
mod users;
mod value;
mod view;

pub use self::{
    account_data::{AccountData, StoredPusher},
    audit::StoredCheckpoint,
    backups::{BackupChange, BackupKey, BackupState, BackupVersion},
    copy::DatabaseCopy,
    devices::Device,
    error::{Error, Result},
    events::{Direction, StoredEvent, Transaction},
    file::{check, copy, newest_schema, schema_of},
    hybrid_keys::HybridKey,
    key_pools::{KeyClaim, PoolKey, RemoteKeys, Replaced},
    keys::{CrossSigningKey, KeySignature, UserKeys},
    media::{Completed, FileHash, Media, MediaContent, Thumbnail, ThumbnailKey},
    members::Membership,
    one_time_keys::{KeyUpload, OneTimeKey, Uploaded},
    peers::{Peer, Progress, Received, SharedRoom, Told, WaitingEvent},
    pool::{Committed, Options, Read, Store, Write},
    profiles::Profile,
    receipts::{NewReceipt, Receipt},
    relations::{Annotation, RelationQuery, ThreadSummary},
    room::Room,
    rooms::{Outcome, Placed},
    server_keys::OwnKey,
    sessions::{NewSession, NewTokens, Session, TokenHash},
    signing::{ChainEnd, SignedBatch, SigningRun, Unsigned, UnsignedEvent},
    to_device::{ToDeviceMessages, ToDeviceSend},
    users::User,
    view::View,
};
