//! The binary: parse the command line, run it, print what went wrong.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use sallyport::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without stderr there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "sallyport: {error:#}");
            ExitCode::FAILURE
        }
    }
}
