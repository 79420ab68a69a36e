//! `sallyctl`: what an administrator does for a box, from rosters to key ceremonies.

mod approvals;
mod cli;
mod client;
mod command;
mod files;
mod journal;
mod notice;
mod output;
mod parts;
mod signal;
mod stick;
mod terminal;
mod update;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without stderr there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "sallyctl: {error:#}");
            cli::exit_code(&error)
        }
    }
}
