//! Use cases: one free function per thing that a person or a peer can do.
//!
//! A service function is synchronous and runs inside [`App::run`](crate::app::App::run). It asks
//! `core` for decisions, writes through `store`, and knows neither HTTP nor SQL.

pub mod bundle;
pub mod own_keys;
pub mod peers;
pub mod receive;
pub mod sessions;
pub mod signer;
