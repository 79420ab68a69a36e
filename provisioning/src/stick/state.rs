//! What the console shows of a stick, and the result for people: one small file each, replaced in one step.
//!
//! The file is a *notice*: `title`, `lines` and `ask` are shown to whoever stands in front of the machine, and their answer comes through
//! the named pipe `answers/NAME` beside it.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, ErrorKind, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde::Serialize;

use super::{OUT, RESULT};
use crate::{files, output, terminal};

/// Beside the notice: while it is there somebody is asked to type, and a keyboard is let in.
const KEYBOARD: &str = "keyboard-wanted";
/// The folder of the pipes, beside the notice.
const ANSWERS: &str = "answers";
/// Bytes of a line that somebody types.
const ANSWER_BYTES_MAX: u64 = 256;

/// Where a stick stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Gate 1 reads it.
    Reading,
    /// Gate 2 looks at what it brought.
    Applying,
    /// Somebody is asked for the code of a provisioning document.
    Confirm,
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
            Self::Writing => "The stick is being written: do not pull it out",
            Self::Done => "The stick is done",
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
    pub(crate) fn ask(&self, lines: &[String], question: &str) -> anyhow::Result<String> {
        let path = self.0.as_deref().context("there is no console: say --state")?;
        let pipe = pipe(path)?;
        let mark = path.with_file_name(KEYBOARD);
        fs::write(&mark, b"").with_context(|| format!("cannot write {}", mark.display()))?;
        let phase = Phase::Confirm;
        let (title, ask) = (phase.title(), Some(question));
        let notice = Notice { title, phase, safe_to_remove: false, refused: false, lines, ask };
        let answer = publish(path, &notice).and_then(|()| answer(&pipe));
        withdraw(&mark)?;
        answer
    }

    /// Says nothing more of a stick that is gone.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        withdraw(&path.with_file_name(KEYBOARD))?;
        withdraw(path)
    }
}

fn publish(path: &Path, notice: &Notice<'_>) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(notice).context("cannot write the state")?;
    let new = path.with_extension("new");
    let written = fs::write(&new, json).and_then(|()| fs::rename(&new, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn withdraw(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The pipe for the answer, which the group of this process, that of the console, may write to.
fn pipe(notice: &Path) -> anyhow::Result<PathBuf> {
    let folder = notice.with_file_name(ANSWERS);
    fs::create_dir_all(&folder).context("cannot make the folder for answers")?;
    let pipe = folder.join(notice.file_stem().unwrap_or_default());
    // What an earlier question left may be anything.
    withdraw(&pipe)?;
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).context("cannot make the pipe for the answer")?;
    fs::set_permissions(&pipe, fs::Permissions::from_mode(0o620))
        .context("cannot give the pipe to the console")?;
    Ok(pipe)
}

/// The next line that somebody types. Opening the pipe waits for them.
fn answer(pipe: &Path) -> anyhow::Result<String> {
    let mut line = String::new();
    let open = File::open(pipe).context("cannot wait for an answer")?;
    BufReader::new(open.take(ANSWER_BYTES_MAX))
        .read_line(&mut line)
        .context("cannot read the answer")?;
    ensure!(!line.is_empty(), "nobody answered");
    Ok(line)
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

    /// Writes the result for people into the quarantine, from where it goes onto the stick if that is marked for it.
    pub(crate) fn write(&self, quarantine: &Path, enclave: Option<&str>) -> anyhow::Result<()> {
        let enclave = enclave.unwrap_or("a box that is not provisioned");
        let time = output::time(terminal::now());
        let lines: String = self.lines.iter().map(|line| format!("- {line}\n")).collect();
        let text = format!(
            "What {enclave} did with this stick on {time}\n\n{lines}\n\
             The console of the box says when the stick can be pulled out.\n"
        );
        files::write_new(&quarantine.join(OUT).join(RESULT), text.as_bytes())
    }
}
