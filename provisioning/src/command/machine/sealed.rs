//! The PIN of a token sealed to the TPM: a file that opens on this machine only, under these keys of Secure Boot, in a version that the
//! builder signed, and only in the first moments of a start.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::PathBuf,
    process::{Command as Process, Stdio},
};

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::{files, notice};

/// What seals and opens credentials.
const CREDENTIALS: &str = "/usr/bin/systemd-creds";
/// The credential knows its name: another one in its place is not taken.
const NAME: &str = "token-pin";
/// Bytes of a PIN.
const PIN_BYTES_MAX: usize = 255;

#[derive(Args)]
pub(super) struct Sealed {
    /// The sealed PIN.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/sallyport-settings/token-pin.sealed"
    )]
    pub(super) sealed: PathBuf,
    /// Where a unit has put the PIN at the start of the machine.
    #[arg(long, value_name = "FILE", default_value = "/run/sallyport-token-pin/pin")]
    pub(super) opened: PathBuf,
}

impl Sealed {
    /// The PIN that this start opened, once: it is removed before anybody uses it.
    pub(super) fn take(&self) -> anyhow::Result<Option<String>> {
        match fs::metadata(&self.opened) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            looked_at => looked_at.context("the sealed PIN cannot be looked at")?,
        };
        let pin = files::read(&self.opened, PIN_BYTES_MAX)?;
        notice::withdraw(&self.opened)?;
        Ok(Some(String::from_utf8(pin).context("the sealed PIN is not text")?))
    }

    /// Seals a PIN that worked, in place of the one before.
    pub(super) fn seal(&self, pin: &str) -> anyhow::Result<()> {
        let new = self.sealed.with_extension("new");
        notice::withdraw(&new)?;
        let mut child = Process::new(CREDENTIALS)
            .args(["encrypt", "--with-key=tpm2-with-public-key", "--tpm2-device=auto"])
            .args(["--tpm2-pcrs=7", "--tpm2-public-key-pcrs=11"])
            .arg(format!("--name={NAME}"))
            .arg("-")
            .arg(&new)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {CREDENTIALS}"))?;
        let mut input = child.stdin.take().context("nothing takes the PIN")?;
        input.write_all(pin.as_bytes()).context("nothing takes the PIN")?;
        drop(input);
        let ended = child.wait_with_output().context("the sealing is lost")?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "the PIN was not sealed: {}", said.trim());
        let replaced = || {
            fs::File::open(&new)?.sync_all()?;
            fs::rename(&new, &self.sealed)?;
            self.sealed.parent().map_or(Ok(()), files::sync_folder)
        };
        replaced().context("the sealed PIN cannot be written")
    }

    /// Removes a sealed PIN that is wrong, or no longer wanted.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        notice::withdraw(&self.sealed)?;
        notice::withdraw(&self.opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opened_pin_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let (sealed, opened) = (folder.path().join("sealed"), folder.path().join("opened"));
        let place = Sealed { sealed: sealed.clone(), opened: opened.clone() };
        assert_eq!(place.take().unwrap(), None);
        fs::write(&opened, "alpha-1234").unwrap();
        assert_eq!(place.take().unwrap().as_deref(), Some("alpha-1234"));
        assert!(!opened.exists());
        assert_eq!(place.take().unwrap(), None);
        fs::write(&sealed, "").unwrap();
        place.forget().unwrap();
        place.forget().unwrap();
        assert!(!sealed.exists());
    }
}
