//! `sallyctl clock`: when the box's clock went backwards.

use clap::Subcommand;
use sallyport_core::{admin::path, time::Millis};

use crate::{
    client::Box as TheBox,
    output::{self, Output},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Say that the box's clock is right although it went backwards, so that bundles can be exchanged again.
    /// Look at the clock first: what is dated wrongly stays so at every peer.
    Accept,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        let Self::Accept = self;
        let now: Millis = the_box.command(path::CLOCK_ACCEPT, &())?;
        out.show(&now, |now| {
            format!("The time that counts from now on is {}.\n", output::time(*now))
        })
    }
}
