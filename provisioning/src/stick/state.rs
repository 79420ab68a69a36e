//! What the console shows of a stick, and the result for people: one small file each, replaced in one step.
//!
//! The file is a notice ([`crate::notice`]).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::{OUT, RESULT};
use crate::{
    files,
    notice::{self, KEYBOARD, NOTICE_BYTES_MAX, Question},
    output, terminal,
};

/// Beside the notice: the stick brought a new version of the box, which a service of its own writes.
const UPDATE: &str = "update-wanted";
/// The same for a factory reset.
const ERASE: &str = "erase-wanted";

/// Where a stick stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Gate 1 reads it.
    Reading,
    /// Gate 2 looks at what it brought.
    Applying,
    /// Somebody is asked for the code of a provisioning document.
    Confirm,
    /// Somebody is asked for the word that destroys everything.
    Erase,
    /// Gate 1 writes to it.
    Writing,
    /// All is done.
    Done,
    /// It cannot be used.
    Failed,
}

impl Phase {
    fn title(self) -> &'static str {
        match self {
            Self::Reading => "The stick is being read",
            Self::Applying => "What the stick brought is being looked at",
            Self::Confirm => "A stick wants to make this machine a box",
            Self::Erase => "A STICK WANTS TO DESTROY EVERYTHING ON THIS BOX",
            Self::Writing => "The stick is being written: do not pull it out",
            Self::Done => "The stick is done and can be pulled out",
            Self::Failed => "The stick could not be used",
        }
    }
}

#[derive(Serialize)]
struct Notice<'a> {
    title: &'static str,
    phase: Phase,
    safe_to_remove: bool,
    refused: bool,
    lines: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    ask: Option<&'a str>,
}

/// The file with the notice; without one nobody is told.
#[derive(Clone)]
pub(crate) struct StateFile(Option<PathBuf>);

impl StateFile {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// Tells where the stick stands.
    pub(crate) fn tell(
        &self,
        phase: Phase,
        safe_to_remove: bool,
        refused: bool,
        lines: &[String],
    ) -> anyhow::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let title = phase.title();
        publish(path, &Notice { title, phase, safe_to_remove, refused, lines, ask: None })
    }

    /// Asks whoever stands at the console, and waits for a line. Meanwhile a keyboard is let in.
    pub(crate) fn ask(&self, phase: Phase, lines: &[String], ask: &str) -> anyhow::Result<String> {
        let path = self.0.as_deref().context("there is no console: say --state")?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let question = Question::open(folder, &name)?;
        let (title, ask) = (phase.title(), Some(ask));
        let notice = Notice { title, phase, safe_to_remove: false, refused: false, lines, ask };
        publish(path, &notice)?;
        question.answer()
    }

    /// Asks for the service that writes updates.
    pub(crate) fn want_update(&self) -> anyhow::Result<()> {
        self.want(UPDATE)
    }

    /// Asks for the service that destroys the keys of the data.
    pub(crate) fn want_erase(&self) -> anyhow::Result<()> {
        self.want(ERASE)
    }

    fn want(&self, mark: &str) -> anyhow::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        let mark = path.with_file_name(mark);
        fs::write(&mark, b"").with_context(|| format!("cannot write {}", mark.display()))
    }

    /// Says nothing more of a stick that is gone; unless it went too early, which stays on the screen until the next one comes.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        notice::withdraw(&path.with_file_name(KEYBOARD))?;
        let consequence = match phase(path) {
            None | Some(Phase::Done) => return notice::withdraw(path),
            Some(Phase::Failed) => return Ok(()),
            Some(Phase::Reading | Phase::Confirm | Phase::Erase) => "Nothing of it was used.",
            Some(Phase::Applying) => {
                "Each thing on it was done as a whole or not at all; what was done is in the audit log."
            }
            Some(Phase::Writing) => "What was not on it to the end has no name there.",
        };
        let again = "Plug it in again: what is done already is left alone.".to_owned();
        let lines = [consequence.to_owned(), again];
        let title = "The stick was pulled out too early";
        let (phase, ask) = (Phase::Failed, None);
        let notice =
            Notice { title, phase, safe_to_remove: true, refused: true, lines: &lines, ask };
        publish(path, &notice)
    }
}

/// What the notice says now, if it is one.
fn phase(path: &Path) -> Option<Phase> {
    #[derive(Deserialize)]
    struct Told {
        phase: Phase,
    }
    let json = files::read(path, NOTICE_BYTES_MAX).ok()?;
    serde_json::from_slice(&json).ok().map(|Told { phase }| phase)
}

fn publish(path: &Path, notice: &Notice<'_>) -> anyhow::Result<()> {
    files::replace(path, &serde_json::to_vec_pretty(notice).context("cannot write the state")?)
}

/// What became of a stick, line by line.
#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<String>,
    refused: usize,
}

impl Report {
    pub(crate) fn done(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    pub(crate) fn refused(&mut self, what: &str, why: &anyhow::Error) {
        self.lines.push(format!("REFUSED: {what}: {why:#}"));
        self.refused += 1;
    }

    /// Notes what came of one thing.
    pub(crate) fn note(&mut self, what: &str, came: anyhow::Result<Vec<String>>) {
        match came {
            Ok(lines) => self.lines.extend(lines),
            Err(why) => self.refused(what, &why),
        }
    }

    pub(crate) fn has_refused(&self) -> bool {
        self.refused > 0
    }

    pub(crate) fn lines(&self) -> &[String] {
        &self.lines
    }

    /// One more line for the result in the quarantine, of what was done after the gate had closed.
    pub(crate) fn append(quarantine: &Path, line: &str) -> anyhow::Result<()> {
        let path = quarantine.join(OUT).join(RESULT);
        let append = || -> io::Result<()> {
            let mut file = OpenOptions::new().append(true).open(&path)?;
            writeln!(file, "- {line}")?;
            file.sync_all()
        };
        append().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes the result for people into the quarantine, from where it goes onto the stick if that is marked for it.
    pub(crate) fn write(&self, quarantine: &Path, enclave: Option<&str>) -> anyhow::Result<()> {
        let enclave = enclave.unwrap_or("a box that is not provisioned");
        let time = output::time(terminal::now());
        let lines: String = self.lines.iter().map(|line| format!("- {line}\n")).collect();
        let text = format!(
            "What {enclave} did with this stick on {time}\n\
             The console of the box says when the stick can be pulled out.\n\n{lines}"
        );
        files::write_new(&quarantine.join(OUT).join(RESULT), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stick_that_went_too_early_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stick.json");
        let state = StateFile::new(Some(path.clone()));
        for (at, stays) in [
            (Phase::Reading, Some("Nothing of it was used.")),
            (Phase::Confirm, Some("Nothing of it was used.")),
            (Phase::Applying, Some("as a whole or not at all")),
            (Phase::Writing, Some("has no name there")),
            (Phase::Failed, Some("why it failed")),
            (Phase::Done, None),
        ] {
            state.tell(at, false, false, &["why it failed".to_owned()]).unwrap();
            state.forget().unwrap();
            let text = fs::read_to_string(&path).ok();
            assert_eq!(text.is_some(), stays.is_some(), "{at:?}");
            assert!(text.unwrap_or_default().contains(stays.unwrap_or_default()), "{at:?}");
            assert_eq!(phase(&path), stays.map(|_| Phase::Failed));
        }
        state.forget().unwrap();
    }
}
