//! Harness of the whole-system tests: starts the real binaries, drives real clients, and stands in for the stick.

#![expect(
    clippy::indexing_slicing,
    reason = "reading a field that a JSON value does not have gives null"
)]

pub mod desk;
pub mod enclave;
pub mod http;
pub mod medium;
pub mod narrator;
pub mod person;
pub mod place;
pub mod repository;
pub mod softhsm;
