//! Harness of the whole-system tests: starts the real binaries, drives real clients, and stands in for the stick.

pub mod repository;
