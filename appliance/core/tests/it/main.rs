//! Tests of the rules from outside the crate: one binary.

#![cfg(test)]

mod checks;
mod convergence;
mod creation;
mod server;
