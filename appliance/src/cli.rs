//! The command line of the box.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::{
    config::{Config, LogLevel},
    serve, telemetry,
    trial::Boot,
};

/// A Matrix homeserver for networks that must never be connected.
#[derive(Debug, Parser)]
#[command(name = "sallyport", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the box until SIGTERM or SIGINT.
    Serve {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/sallyport/sallyport.toml")]
        config: PathBuf,
        /// The EFI variable LoaderBootCountPath. If it says that the system is on trial, the box stays closed until it was blessed.
        #[arg(long, value_name = "FILE", requires = "blessed")]
        boot_count: Option<PathBuf>,
        /// The file that `sallyctl update bless --signal` makes.
        #[arg(long, value_name = "FILE")]
        blessed: Option<PathBuf>,
    },
    /// Check a configuration file and print it with all defaults filled in.
    CheckConfig {
        /// The configuration file.
        #[arg(value_name = "FILE", default_value = "/etc/sallyport/sallyport.toml")]
        config: PathBuf,
    },
    /// Check what `sallyctl restore` put into place and begin a new life with it; prints what came of it as JSON. A start does the same.
    FinishRestore {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/sallyport/sallyport.toml")]
        config: PathBuf,
    },
    /// Print the version.
    Version {
        /// Print the schema of the database that this version makes instead.
        #[arg(long)]
        schema: bool,
    },
    /// Be the process that loads the PKCS#11 module; the box starts it.
    #[command(hide = true)]
    TokenHelper {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Be the process that looks for a blank token, or sets one up; a service manager starts it.
    #[command(hide = true)]
    TokenSetup {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What went wrong and what to do, as a chain.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve { config, boot_count, blessed } => {
                serve::run(Config::read(&config)?, Boot { count: boot_count, blessed })
            }
            Command::CheckConfig { config } => {
                let config = Config::read(&config)?;
                let text = toml::to_string(&config).context("cannot print the configuration")?;
                print(&text)
            }
            Command::FinishRestore { config } => {
                let report = serve::finish_restore(Config::read(&config)?)?;
                let report = report.context("there is no restore to finish")?;
                let json = serde_json::to_string(&report).context("cannot print the report")?;
                print(&json)
            }
            Command::TokenHelper { arguments } => {
                telemetry::log::install(LogLevel::Warn);
                sallyport_hsm::run_helper(arguments).context("the token's process ends")
            }
            Command::TokenSetup { arguments } => {
                telemetry::log::install(LogLevel::Warn);
                sallyport_hsm::run_setup(arguments).context("nothing was asked for")
            }
            Command::Version { schema: true } => {
                print(&format!("{}\n", sallyport_store::newest_schema()))
            }
            Command::Version { schema: false } => {
                print(concat!("sallyport ", env!("CARGO_PKG_VERSION"), "\n"))
            }
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
