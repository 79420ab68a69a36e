//! The officers' approvals that go along with a command.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use sallyport_core::{
    admin::{Approval, Consent},
    limits::ADMIN_AUTHORITY_BYTES_MAX,
};

use crate::files;

/// The approvals that go along with a command.
#[derive(Args)]
pub(crate) struct Approvals {
    /// An officer's approval, from `sallyctl approve`; may be given several times. Officers are counted, not approvals.
    #[arg(long = "approval", value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Approvals {
    /// Those in files that were found, not named.
    pub(crate) fn of(files: Vec<PathBuf>) -> Self {
        Self { files }
    }

    /// All of them, for a command on one thing.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<Approval>> {
        let approvals = self.files.iter().map(|file| {
            let text = files::read(file, ADMIN_AUTHORITY_BYTES_MAX)?;
            Ok(Approval::from_text(&String::from_utf8_lossy(&text)))
        });
        approvals.collect()
    }

    /// Those for each of these things. One that is for none of them is a mistake that must not pass in silence.
    pub(crate) fn sorted(&self, things: &[Consent]) -> anyhow::Result<Vec<Vec<Approval>>> {
        let mut sorted = vec![Vec::new(); things.len()];
        for (approval, file) in self.read()?.into_iter().zip(&self.files) {
            let shown = file.display();
            let consent = approval
                .unverified_consent()
                .with_context(|| format!("{shown} is not an approval, or damaged"))?;
            let place = things.iter().position(|thing| *thing == consent);
            let place = place.and_then(|place| sorted.get_mut(place));
            place
                .with_context(|| format!("{shown} is for {consent}, which is not there"))?
                .push(approval);
        }
        Ok(sorted)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}
