//! Use cases: one free function per thing that a person or a peer can do.
//!
//! A service function is synchronous and runs inside [`App::run`](crate::app::App::run). It asks
//! `core` for decisions, writes through `store`, and knows neither HTTP nor SQL.

pub mod account_data;
pub mod accounts;
pub mod activation;
pub mod attempts;
pub mod audit;
pub mod backlog;
pub mod backup;
pub mod backups;
pub mod bundle;
pub mod certificates;
pub mod clock;
mod expiring;
pub mod hybrid;
pub mod ignored;
pub mod interactive;
pub mod journal;
pub mod keys;
pub mod media;
pub mod notifications;
pub mod openid;
pub mod order;
pub mod own_keys;
pub mod passwords;
pub mod peers;
pub mod pepper;
pub mod presence;
pub mod profiles;
pub mod push_rules;
pub mod receive;
pub mod rooms;
pub mod roster;
pub mod rotation;
pub mod sessions;
pub mod signer;
pub mod sync;
pub mod token;
pub mod typing;
