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

mod cache;
mod error;
mod events;
mod meta;
mod pool;
mod rooms;
mod schema;
mod server_keys;
mod signing;
mod states;
mod view;

pub use self::{
    error::{Error, Result},
    events::{Direction, StoredEvent, Transaction},
    meta::Incarnation,
    pool::{Committed, Options, Read, Store, Write},
    rooms::{Membership, Outcome, Placed, Room},
    server_keys::OwnKey,
    signing::{SignedBatch, Unsigned, UnsignedEvent},
    view::View,
};
