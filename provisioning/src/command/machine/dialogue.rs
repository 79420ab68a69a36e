//! A conversation with whoever stands at the console.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    files,
    notice::{self, Question},
};

/// Wrong answers before each further one is followed by a pause.
const FREE_TRIES: u32 = 3;
/// How many times as long as the first pause the longest is.
const LONGEST_PAUSE: u32 = 4;

/// A notice, and what its question is answered with.
pub(super) struct Dialogue {
    state: PathBuf,
    name: &'static str,
    question: Question,
}

/// What is told.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Told<'a> {
    pub(super) title: &'a str,
    pub(super) lines: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ask: Option<&'a str>,
    /// Whether what is typed is not to be seen.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) secret: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Dialogue {
    /// A conversation below the notice of this name. Keyboards are let in until it ends.
    pub(super) fn open(state: &Path, name: &'static str) -> anyhow::Result<Self> {
        Ok(Self { state: state.to_owned(), name, question: Question::open(state, name)? })
    }

    /// Tells something, and waits for the line that answers it.
    pub(super) fn ask(&self, told: Told<'_>) -> anyhow::Result<Zeroizing<String>> {
        self.tell(told)?;
        Ok(trimmed(self.question.answer()?))
    }

    /// As [`Self::ask`], but waits for no longer than this.
    pub(super) fn ask_within(
        &self,
        told: Told<'_>,
        time: Duration,
    ) -> anyhow::Result<Option<Zeroizing<String>>> {
        self.tell(told)?;
        Ok(self.question.answer_within(time)?.map(trimmed))
    }

    /// Tells something that needs no answer.
    pub(super) fn tell(&self, told: Told<'_>) -> anyhow::Result<()> {
        tell(&self.state, self.name, told)
    }

    /// Asks until an answer is taken. After some wrong ones, each is followed by a pause, which becomes longer.
    pub(super) fn ask_until<T>(
        &self,
        told: Told<'_>,
        pause: Duration,
        mut take: impl FnMut(Zeroizing<String>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let (mut wrong, mut remark) = (0_u32, String::new());
        loop {
            let lines: Vec<&str> = told.lines.iter().copied().chain([remark.as_str()]).collect();
            let answer = self.ask(Told { lines: &lines, ..told })?;
            match take(answer) {
                Ok(taken) => return Ok(taken),
                Err(error) => {
                    wrong += 1;
                    remark = format!("Try {wrong}: {error:#}");
                }
            }
            if let Some(over) = wrong.checked_sub(FREE_TRIES).filter(|_| !pause.is_zero()) {
                let pause = pause * (over + 1).min(LONGEST_PAUSE);
                let wait = format!("The next try is possible in {} seconds.", pause.as_secs());
                let lines = [remark.as_str(), wait.as_str()];
                self.tell(Told { lines: &lines, title: told.title, ..Told::default() })?;
                sleep(pause);
            }
        }
    }
}

fn trimmed(line: String) -> Zeroizing<String> {
    Zeroizing::new(Zeroizing::new(line).trim().to_owned())
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        // The folder is gone at the next start of the machine in any case.
        let _ = notice::withdraw(&notice::path(&self.state, self.name));
    }
}

/// Writes a notice that the console's group may read.
pub(super) fn tell(state: &Path, name: &str, told: Told<'_>) -> anyhow::Result<()> {
    notice::publish(state, name, &serde_json::to_value(told).context("cannot write the notice")?)
}

/// Writes a new file for its owner only, in place of one that may be there.
pub(super) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    notice::withdraw(path)?;
    let mut file = files::create_secret(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;

    #[test]
    fn wrong_answers_are_told_and_followed_by_pauses() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_owned();
        let pause = Duration::from_millis(1);
        let asking = std::thread::spawn({
            let state = state.clone();
            move || {
                let dialogue = Dialogue::open(&state, "data").unwrap();
                let told = Told { title: "Locked", ask: Some("Word:"), ..Told::default() };
                let mut tries = 0;
                dialogue
                    .ask_until(told, pause, |answer| {
                        tries += 1;
                        ensure!(*answer == "right", "try {tries} was wrong");
                        Ok(tries)
                    })
                    .unwrap()
            }
        });
        for typed in ["a", "b", "c", "d", "right"] {
            let before = notice::all(&state);
            while notice::answer(&state, "data", typed).is_err() {
                std::thread::yield_now();
            }
            // The next answer belongs to the next question.
            while !asking.is_finished() && notice::all(&state) == before {
                std::thread::yield_now();
            }
        }
        assert_eq!(asking.join().unwrap(), 5);
        assert!(notice::all(&state).is_empty(), "the notice goes with the conversation");
    }
}
