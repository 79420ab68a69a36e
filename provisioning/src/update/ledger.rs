//! Where a box keeps what it remembers of its updates.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use sallyport_core::{limits::UPDATE_LEDGER_BYTES_MAX, update::Ledger};

use crate::files;

/// The file that is the ledger.
pub(crate) struct LedgerFile(PathBuf);

impl LedgerFile {
    /// In this folder, which is made when something is written.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self(folder.join("ledger.json"))
    }

    /// What is remembered; nothing on a box that was never updated.
    pub(crate) fn read(&self) -> anyhow::Result<Ledger> {
        let Self(path) = self;
        if !path.exists() {
            return Ok(Ledger::default());
        }
        let text = files::read(path, UPDATE_LEDGER_BYTES_MAX)?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged: restore it from a backup", path.display()))
    }

    /// Remembers this instead.
    pub(crate) fn write(&self, ledger: &Ledger) -> anyhow::Result<()> {
        let Self(path) = self;
        let text = serde_json::to_vec_pretty(ledger).context("the ledger cannot be written")?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        files::replace(path, &text)
    }
}
