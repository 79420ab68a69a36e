//! The keys that seal the journal: made before somebody has written down the recovery key, and shown with it.
//!
//! Every 15 minutes journald signs what it wrote since with a key, which it replaces with the next one of a chain that runs forwards only
//! (journalctl(1), `--setup-keys`). Who takes the box over later changes nothing older unnoticed by whoever has the verification key. The console is
//! the only place where that is ever written to.

use std::{path::Path, process::Command as Process};

use anyhow::{Context as _, ensure};

use super::dialogue::{self, Told};

/// The name of the notice with the verification key.
pub(super) const NOTICE: &str = "journal-key";
const JOURNALCTL: &str = "/usr/bin/journalctl";

/// `sallyctl machine journal-key`. As with recovery keys, each start makes another one until one is confirmed.
pub(super) fn make(state: &Path) -> anyhow::Result<()> {
    let key = journalctl(&["--setup-keys", "--force"])?;
    // A file that is open has no seals.
    journalctl(&["--rotate"])?;
    let told = Told {
        title: "JOURNAL KEY: write it down as well, and keep it where nobody of this box comes. It shows whether a journal that a stick brings was changed, and is shown only now.",
        lines: &[key.trim()],
        ..Told::default()
    };
    dialogue::tell(state, NOTICE, told)
}

fn journalctl(options: &[&str]) -> anyhow::Result<String> {
    let made = Process::new(JOURNALCTL).args(options).output();
    let made = made.with_context(|| format!("cannot start {JOURNALCTL}"))?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "the journal is not sealed: {}", said.trim());
    String::from_utf8(made.stdout).context("the verification key is not text")
}
