//! Tests of the rules from outside the crate: one binary.

mod checks;
mod convergence;
mod creation;
mod server;
