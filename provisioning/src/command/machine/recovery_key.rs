//! The recovery key of the data partition: made, shown, and confirmed by somebody.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    dialogue::{self, Told},
    seal::Typed,
};
use crate::notice::{self, Question};

/// The name of the notice with the recovery key, and of the pipe for its confirmation.
const NOTICE: &str = "recovery-key";
const QUESTION: &str = "When it is written down, type its last group of eight letters:";

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

impl Place {
    /// Each start makes another key until one is confirmed: nobody knows whether an earlier one was ever seen.
    pub(super) fn enrol(&self, device: &Path) -> anyhow::Result<()> {
        let typed = Typed::new(&self.state);
        if self.confirmed.exists() {
            return typed.forget();
        }
        let made = typed.new_recovery_key(device);
        typed.forget()?;
        // Nobody listens yet: the question comes with `confirm`.
        self.publish(&made.context("no recovery key")?, "", None)
    }

    pub(super) fn confirm(&self) -> anyhow::Result<()> {
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
        self.publish(&key, "", Some(QUESTION))?;
        while !confirms(&question.answer()?, &key) {
            self.publish(&key, "That was not its last group.", Some(QUESTION))?;
        }
        fs::write(&self.confirmed, "").context("cannot remember the confirmation")?;
        File::open(&self.confirmed)
            .and_then(|file| file.sync_all())
            .context("cannot remember the confirmation")?;
        fs::remove_file(notice).context("cannot take the recovery key off the console")
    }

    /// Puts the key onto the console, which is the only place that it is ever written to in the clear.
    fn publish(&self, key: &str, remark: &str, ask: Option<&str>) -> anyhow::Result<()> {
        dialogue::tell(
            &self.state,
            NOTICE,
            Told {
                title: "RECOVERY KEY: write it down and lock it away. It opens the data of this box when its TPM or passphrase does not, and is shown only now.",
                lines: &[key, remark],
                ask,
                secret: false,
            },
        )
    }

    fn notice(&self) -> PathBuf {
        notice::path(&self.state, NOTICE)
    }
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
        place().publish("aaaaaaaa-bbbbbbbb", "", None).unwrap();
        let shown =
            || notice::all(&state).into_iter().find(|notice| notice.name == NOTICE).unwrap();
        assert_eq!(shown().lines[0], "aaaaaaaa-bbbbbbbb");
        assert_eq!(shown().ask, None, "nobody would take the answer");
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
            while typed == "aaaaaaaa" && shown().lines[1].is_empty() {
                std::thread::yield_now();
            }
        }
        waiting.join().unwrap().unwrap();
        assert!(place().confirmed.exists() && notice::all(&state).is_empty());
    }
}
