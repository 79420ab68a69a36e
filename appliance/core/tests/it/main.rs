//! Tests of the rules from outside the crate: one binary.

#![cfg(test)]

mod authorisation;
mod checks;
mod convergence;
mod creation;
mod events;
mod graphs;
mod refusals;
mod server;
mod short;
