//! `sallyctl hsm`: the life of the keys and of the token that holds them, as ceremonies with a protocol.
//!
//! Each command that changes something is a guided dialogue: it says what each step does, asks before it acts, and at the end writes a
//! protocol for the people who were present. `--plan` prints the steps and touches nothing.

mod backup;
mod box_keys;
mod dialogue;
mod init;
mod protocol;

use clap::Subcommand;

use crate::{client::Box as TheBox, output::Output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Set a blank token up on this machine: label, security officer's PIN, user PIN.
    Init(init::Init),
    /// Make a key of a role in a token on this machine.
    Generate(init::Generate),
    /// Show the box's token and every key of the box.
    Status,
    /// Make a new key in the box's token and retire the old one.
    Rotate(box_keys::Rotate),
    /// Write an encrypted copy of a software token, or say how tokens of hardware are backed up.
    Backup(backup::Backup),
    /// Make a software token of an encrypted copy.
    Restore(backup::Restore),
    /// Go on with another token: make keys in it, and have the old one vouch for them.
    HandOver(box_keys::HandOver),
    /// Destroy the private half of a key that was retired.
    Destroy(box_keys::Destroy),
    /// Be the process that loads the module while a blank token is set up.
    #[command(hide = true)]
    InitHelper(init::Helper),
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Init(args) => args.run(the_box.actor(), out),
            Self::Generate(args) => args.run(the_box.actor(), out),
            Self::Status => box_keys::status(the_box, out),
            Self::Rotate(args) => args.run(the_box, out),
            Self::Backup(args) => args.run(the_box.actor(), out),
            Self::Restore(args) => args.run(the_box.actor(), out),
            Self::HandOver(args) => args.run(the_box, out),
            Self::Destroy(args) => args.run(the_box, out),
            Self::InitHelper(args) => args.run(),
        }
    }
}
