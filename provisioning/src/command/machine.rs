//! `sallyctl machine`: what the units of the image start. Nobody needs to type it.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command as Process,
};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use serde_json::json;

mod sealed;
mod token;

use crate::{
    client::Box as TheBox,
    files,
    notice::{self, Question},
};

/// The name of the notice with the recovery key, and of the pipe for its confirmation.
const NOTICE: &str = "recovery-key";
/// What enrols keys for an encrypted partition.
const ENROL: &str = "/usr/bin/systemd-cryptenroll";

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
    /// Have somebody type the recovery key, and seal the data partition to the TPM as it is now.
    Recover {
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
}

#[derive(clap::Args)]
pub(crate) struct Place {
    /// The folder with the notices for the console.
    #[arg(long, value_name = "FOLDER", default_value = "/run/sallyport-state")]
    state: PathBuf,
    /// The file that says that a recovery key was written down.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/sallyport-settings/recovery-key-confirmed"
    )]
    confirmed: PathBuf,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox) -> anyhow::Result<()> {
        match self {
            Self::Token(token) => token.run(the_box),
            Self::RecoveryKey { device, place } => place.enrol(&device),
            Self::ConfirmRecoveryKey { place } => place.confirm(),
            Self::Recover { device, place } => place.recover(&device),
        }
    }
}

impl Place {
    /// Each start makes another key until one is confirmed: nobody knows whether an earlier one was ever seen.
    fn enrol(&self, device: &Path) -> anyhow::Result<()> {
        if self.confirmed.exists() {
            return Ok(());
        }
        let options = ["--unlock-tpm2-device=auto", "--wipe-slot=recovery", "--recovery-key"];
        let made = Process::new(ENROL)
            .args(options)
            .arg(device)
            .output()
            .with_context(|| format!("cannot start {ENROL}"))?;
        ensure!(
            made.status.success(),
            "no recovery key: {}",
            String::from_utf8_lossy(&made.stderr).trim()
        );
        let key = String::from_utf8(made.stdout).context("the recovery key is not text")?;
        self.publish(key.trim(), "")
    }

    fn confirm(&self) -> anyhow::Result<()> {
        let notice = self.notice();
        if self.confirmed.exists() || !notice.exists() {
            return Ok(());
        }
        let told: serde_json::Value =
            serde_json::from_slice(&fs::read(&notice).context("cannot read the recovery key")?)?;
        let key = told
            .pointer("/lines/0")
            .and_then(|line| line.as_str())
            .context("there is no recovery key")?
            .to_owned();
        let question = Question::open(&self.state, NOTICE)?;
        loop {
            if confirms(&question.answer()?, &key) {
                break;
            }
            self.publish(&key, "That was not its last group.")?;
        }
        fs::write(&self.confirmed, "").context("cannot remember the confirmation")?;
        File::open(&self.confirmed)
            .and_then(|file| file.sync_all())
            .context("cannot remember the confirmation")?;
        fs::remove_file(notice).context("cannot take the recovery key off the console")
    }

    fn recover(&self, device: &Path) -> anyhow::Result<()> {
        let question = Question::open(&self.state, NOTICE)?;
        let mut remark = String::new();
        loop {
            self.tell(&json!({
                "title": "Recovery",
                "lines": [remark],
                "ask": "Recovery key, with its dashes (nothing changes if it is wrong):",
            }))?;
            match reseal(device, question.answer()?.trim(), &self.state.join("recovery-key.typed"))
            {
                Ok(()) => return Ok(()),
                Err(error) => remark = format!("{error:#}"),
            }
        }
    }

    /// Puts the key onto the console, which is the only place that it is ever written to in the clear.
    fn publish(&self, key: &str, remark: &str) -> anyhow::Result<()> {
        self.tell(&json!({
            "title": "RECOVERY KEY: write it down and lock it away. It opens the data of this box when its TPM does not, and is shown only now.",
            "lines": [key, remark],
            "ask": "When it is written down, type its last group of eight letters:",
        }))
    }

    fn tell(&self, notice: &serde_json::Value) -> anyhow::Result<()> {
        notice::publish(&self.state, NOTICE, notice)
    }

    fn notice(&self) -> PathBuf {
        self.state.join(format!("{NOTICE}.json"))
    }
}

/// Seals a partition to the TPM as it is now, in place of how it was sealed. The key is for that moment in a file, in memory.
fn reseal(device: &Path, key: &str, typed: &Path) -> anyhow::Result<()> {
    write_secret(typed, key)?;
    // By another policy first: where there is a key with the same policy, even if another TPM made it, nothing is done.
    let sealed = ["7+14", "7"].iter().try_for_each(|pcrs| seal(device, typed, pcrs));
    fs::remove_file(typed).context("cannot remove the typed key from memory")?;
    sealed
}

fn seal(device: &Path, key: &Path, pcrs: &str) -> anyhow::Result<()> {
    let made = Process::new(ENROL)
        .arg(format!("--unlock-key-file={}", key.display()))
        .args(["--wipe-slot=tpm2", "--tpm2-device=auto", "--tpm2-public-key-pcrs=11"])
        .arg(format!("--tpm2-pcrs={pcrs}"))
        .arg(device)
        .output()
        .with_context(|| format!("cannot start {ENROL}"))?;
    let said = String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "that did not open it: {}", said.trim());
    Ok(())
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    notice::withdraw(path)?;
    let mut file = files::create_secret(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether a typed line is the last group of a recovery key.
fn confirms(line: &str, key: &str) -> bool {
    key.rsplit('-')
        .next()
        .is_some_and(|last| !last.is_empty() && line.trim().eq_ignore_ascii_case(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_group_confirms() {
        let key = "trunchkd-bbkbdctn-gtbkgjik";
        for line in ["gtbkgjik\n", " GTBKGJIK "] {
            assert!(confirms(line, key), "{line:?}");
        }
        for line in ["", "\n", "bbkbdctn", key] {
            assert!(!confirms(line, key), "{line:?}");
        }
        assert!(!confirms("", "") && !confirms("\n", "abc-"));
    }

    #[test]
    fn a_confirmed_key_leaves_the_console() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_owned();
        let place = || Place { state: state.clone(), confirmed: state.join("confirmed") };
        place().publish("aaaaaaaa-bbbbbbbb", "").unwrap();
        let notices = notice::all(&state);
        assert_eq!(notices[0].lines[0], "aaaaaaaa-bbbbbbbb");
        let waiting = std::thread::spawn({
            let place = place();
            move || place.confirm()
        });
        for typed in ["aaaaaaaa", "bbbbbbbb"] {
            // The pipe takes an answer as soon as somebody waits for one.
            while notice::answer(&state, NOTICE, typed).is_err() {
                std::thread::yield_now();
            }
            // The next one opens the pipe anew only after the wrong answer was told.
            while typed == "aaaaaaaa" && notice::all(&state)[0].lines[1].is_empty() {
                std::thread::yield_now();
            }
        }
        waiting.join().unwrap().unwrap();
        assert!(place().confirmed.exists() && !place().notice().exists());
    }
}
