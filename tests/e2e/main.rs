//! Whole-system tests: the real binaries, real clients and real tokens, and the rules that hold the repository together.

#![cfg(test)]

mod approvals;
mod cards;
mod carried;
mod dependencies;
mod dev;
mod durability;
mod encrypted;
mod hand_over;
mod hsm;
mod restore;
mod stick_restore;
mod sticks;
mod talk;
mod tidy;
mod tls;
mod token;
mod trial;
