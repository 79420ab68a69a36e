//! `sallyctl token`: the token that holds the box's keys.

use clap::Subcommand;
use sallyport_core::admin::{TokenReport, Unlock, path};

use super::status::report_text;
use crate::{client::Box as TheBox, output::Output, terminal};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show how the token is.
    Status,
    /// Give the box the PIN of its token. A wrong PIN counts: most tokens lock for good after a few.
    Unlock,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        let report: TokenReport = match self {
            Self::Status => the_box.ask(path::TOKEN)?,
            Self::Unlock => {
                let pin = terminal::ask_secret("PIN of the box's token")?;
                the_box.command(path::TOKEN_UNLOCK, &Unlock { pin })?
            }
        };
        out.show(&report, report_text)
    }
}
