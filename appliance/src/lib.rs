//! Sallyport: a Matrix homeserver for networks that must never be connected.
//!
//! `ARCHITECTURE.md` beside this package explains how the parts fit together.

pub mod app;
pub mod config;
pub mod http;
pub mod service;
pub mod shutdown;
pub mod telemetry;
