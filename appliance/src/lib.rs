//! Sallyport: a Matrix homeserver for networks that must never be connected.
//!
//! `ARCHITECTURE.md` beside this package explains how the parts fit together. Read [`serve`]
//! for the order in which a box starts and stops, [`http`] for the list of its endpoints.

#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
mod files;
pub mod http;
pub mod listen;
pub mod notify;
pub mod serve;
pub mod service;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod trial;
pub mod upkeep;
pub mod vault;
