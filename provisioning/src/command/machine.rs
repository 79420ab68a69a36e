//! `sallyctl machine`: what the units of the image start. Nobody needs to type it.

mod dialogue;
mod erase;
mod journal;
mod open;
mod recovery_key;
mod seal;
mod sealed;
mod stick;
mod token;

use std::path::PathBuf;

use clap::Subcommand;

pub(crate) use self::erase::WORD;
use self::{erase::EraseArgs, recovery_key::Place};
use crate::{client::Box as TheBox, output::Output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a recovery key for the data partition, unless somebody confirmed that they have one.
    RecoveryKey {
        /// The encrypted partition.
        #[arg(long, value_name = "DEVICE")]
        device: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Ask for the PIN of the token at the console, and set up a blank one.
    Token(token::Token),
    /// Wait until somebody confirms that the recovery key is written down.
    ConfirmRecoveryKey {
        #[command(flatten)]
        place: Place,
    },
    /// Have somebody give the recovery key, and seal the data partition to the TPM as it is now.
    Recover {
        /// The encrypted partition.
        #[arg(long, value_name = "DEVICE")]
        device: PathBuf,
        #[command(flatten)]
        state: State,
    },
    /// On a machine without a TPM, open the data partition with a passphrase that somebody types; make both if they are not there.
    Open {
        #[command(flatten)]
        state: State,
    },
    /// Read a recovery key from a stick, for whoever confirms at the console that it is to be tried.
    ReadRecoveryStick {
        /// The stick: a device, or an image of one.
        #[arg(long, value_name = "DEVICE")]
        device: PathBuf,
        #[command(flatten)]
        state: State,
    },
    /// Forget what a stick brought that is gone.
    ForgetRecoveryStick {
        #[command(flatten)]
        state: State,
    },
    /// Seal what is new in the machine's journal in the audit log of the box.
    SealJournal {
        /// The folder of the journal.
        #[arg(long = "journal", value_name = "FOLDER", default_value = crate::journal::FOLDER)]
        folder: PathBuf,
    },
    /// Destroy all keys of the data partition, so that nobody can read it any more, and take it off the disk.
    Erase(EraseArgs),
}

#[derive(clap::Args)]
pub(crate) struct State {
    /// The folder with the notices for the console.
    #[arg(long = "state", value_name = "FOLDER", default_value = "/run/sallyport-state")]
    folder: PathBuf,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Token(token) => token.run(the_box),
            Self::RecoveryKey { device, place } => place.enrol(&device),
            Self::ConfirmRecoveryKey { place } => place.confirm(),
            Self::Recover { device, state } => open::recover(&state.folder, &device),
            Self::Open { state } => open::open(&state.folder),
            Self::ReadRecoveryStick { device, state } => stick::read(&state.folder, &device, out),
            Self::ForgetRecoveryStick { state } => stick::forget(&state.folder),
            Self::SealJournal { folder } => journal::seal(&folder, the_box),
            Self::Erase(args) => args.run(out),
        }
    }
}
