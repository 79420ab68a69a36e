//! Notices: small JSON files by which the services of a machine tell the person at its console what happened, and ask.
//!
//! The folder is that of the running system (`/run/sallyport-state`): it is empty after a start. A notice is a JSON object; `title`, `lines` (a list of
//! texts) and `ask` (a question; with `secret` its answer is not shown) are shown as such, every other field of the object as a name with its value. The answer to a question goes, as one
//! line, into the named pipe `answers/NAME`.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};
use serde_json::{Map, Value};

use crate::files;

/// Bytes of a notice.
pub(crate) const NOTICE_BYTES_MAX: usize = 64 * 1024;
/// Notices that are shown; further ones are left out.
const NOTICES_MAX: usize = 16;
/// Characters of one value of a notice.
const VALUE_CHARS_MAX: usize = 400;
/// Beside the notices: while it is there somebody is asked to type, and the rules for devices let a keyboard in.
pub(crate) const KEYBOARD: &str = "keyboard-wanted";
/// Bytes of a line that somebody types.
const ANSWER_BYTES_MAX: u64 = 256;
/// The folder of the pipes for answers, below that of the notices.
pub(crate) const ANSWERS: &str = "answers";

/// What a service tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// The name of its file, without `.json`.
    pub(crate) name: String,
    /// What it is about.
    pub(crate) title: String,
    /// What it says.
    pub(crate) lines: Vec<String>,
    /// What it wants to know.
    pub(crate) ask: Option<String>,
    /// Whether the answer is not to be seen.
    pub(crate) secret: bool,
}

/// The notices of a folder, by name. What cannot be read is told as such: a person should see that something is wrong.
pub(crate) fn all(folder: &Path) -> Vec<Notice> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.truncate(NOTICES_MAX);
    paths.iter().filter_map(|path| one(path)).collect()
}

/// Answers the question of a notice.
pub(crate) fn answer(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(ANSWERS).join(name);
    // Without somebody who listens there is nobody to answer to: this must not wait for one.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
    let mut pipe = fs::OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(&path)
        .context("nobody waits for this answer any more")?;
    pipe.write_all(format!("{text}\n").as_bytes()).context("the answer was not taken")
}

/// Puts a notice onto the console, in place of the one of this name. Only the group of this process, which is that of the console, may read it.
pub(crate) fn publish(folder: &Path, name: &str, notice: &Value) -> anyhow::Result<()> {
    let path = path(folder, name);
    let text = notice.to_string();
    if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    let new = path.with_extension("new");
    withdraw(&new)?;
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&new)?;
        // What the umask took; the reader of sticks may not change it, and need not.
        if file.metadata()?.mode() & 0o777 != 0o640 {
            file.set_permissions(fs::Permissions::from_mode(0o640))?;
        }
        file.write_all(text.as_bytes())?;
        fs::rename(&new, &path)
    };
    write().context("cannot write the notice")
}

/// The file of a notice.
pub(crate) fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// A question that whoever stands at the console answers. While there is one, a keyboard is let in.
pub(crate) struct Question {
    pipe: PathBuf,
    keyboard: PathBuf,
    /// The pipe, open all the time: nobody who answers finds it closed.
    typed: File,
}

impl Question {
    /// The question of the notice of this name. The group of this process, which is that of the console, may answer.
    pub(crate) fn open(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let answers = folder.join(ANSWERS);
        fs::create_dir_all(&answers).context("cannot make the folder for answers")?;
        let pipe = answers.join(name);
        // What an earlier question left may be anything.
        withdraw(&pipe)?;
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)
            .context("cannot make the pipe for the answer")?;
        fs::set_permissions(&pipe, fs::Permissions::from_mode(0o620))
            .context("cannot give the pipe to the console")?;
        // For writing as well: it has no end then.
        let typed = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&pipe)
            .context("cannot wait for an answer")?;
        let keyboard = folder.join(KEYBOARD);
        fs::write(&keyboard, b"").context("cannot ask for a keyboard")?;
        Ok(Self { pipe, keyboard, typed })
    }

    /// The next line that somebody types. This waits for them.
    pub(crate) fn answer(&self) -> anyhow::Result<String> {
        loop {
            if let Some(line) = self.poll(PollTimeout::NONE)? {
                return Ok(line);
            }
        }
    }

    /// The next line, if somebody types one within this time.
    pub(crate) fn answer_within(&self, time: Duration) -> anyhow::Result<Option<String>> {
        self.poll(PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX))
    }

    /// A line is written at once, so that it is read at once.
    fn poll(&self, timeout: PollTimeout) -> anyhow::Result<Option<String>> {
        let mut waiting = [PollFd::new(self.typed.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waiting, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            waited => waited.context("cannot wait for an answer")?,
        };
        let mut line = String::new();
        BufReader::with_capacity(1, (&self.typed).take(ANSWER_BYTES_MAX))
            .read_line(&mut line)
            .context("cannot read the answer")?;
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // The folder is gone at the next start of the machine in any case.
        let _ = withdraw(&self.pipe);
        // Another service may ask as well.
        let others = self.pipe.parent().and_then(|answers| fs::read_dir(answers).ok());
        if others.is_none_or(|mut others| others.next().is_none()) {
            let _ = withdraw(&self.keyboard);
        }
    }
}

/// Takes a notice back; it may be gone already.
pub(crate) fn withdraw(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn one(path: &Path) -> Option<Notice> {
    let name = path.file_stem()?.to_string_lossy().into_owned();
    let bytes = match files::read(path, NOTICE_BYTES_MAX) {
        Ok(bytes) => bytes,
        // It was withdrawn, or is not for this reader.
        Err(_) => return None,
    };
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(&bytes) else {
        let lines = vec!["its notice cannot be read".to_owned()];
        return Some(Notice { title: name.clone(), name, lines, ask: None, secret: false });
    };
    let title = take_text(&mut fields, "title").unwrap_or_else(|| name.clone());
    let ask = take_text(&mut fields, "ask");
    let secret = fields.remove("secret").is_some_and(|secret| secret == true);
    let mut lines = match fields.remove("lines") {
        Some(Value::Array(lines)) => lines.iter().map(text).collect(),
        Some(other) => vec![text(&other)],
        None => Vec::new(),
    };
    lines.extend(fields.iter().map(|(key, value)| format!("{}: {}", printable(key), text(value))));
    Some(Notice { name, title, lines, ask, secret })
}

fn take_text(fields: &mut Map<String, Value>, key: &str) -> Option<String> {
    match fields.remove(key)? {
        Value::Null => None,
        value => Some(text(&value)),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        other => printable(&other.to_string()),
    }
}

/// One line without control characters: what a service repeats may be from a stick, and a terminal obeys what it shows.
pub(crate) fn printable(text: &str) -> String {
    let shown = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    shown.take(VALUE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notices(files: &[(&str, &str)]) -> Vec<Notice> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        all(folder.path())
    }

    #[test]
    fn notices_are_read_by_name() {
        let found = notices(&[
            ("b.json", r#"{"title":"Update","lines":["written"],"ask":"Restart?"}"#),
            ("a.json", r#"{"state":"working","percent":30}"#),
            ("c.txt", "{}"),
        ]);
        let names: Vec<_> = found.iter().map(|notice| notice.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(found[0].title, "a");
        assert_eq!(found[0].lines, ["percent: 30", "state: working"]);
        assert_eq!(found[1].ask.as_deref(), Some("Restart?"));
        assert_eq!(found[1].lines, ["written"]);
    }

    #[test]
    fn what_is_no_notice_is_told() {
        for text in ["", "[]", "{", "\"text\""] {
            let found = notices(&[("stick.json", text)]);
            assert_eq!(found[0].lines, ["its notice cannot be read"], "{text:?}");
        }
    }

    #[test]
    fn a_terminal_is_given_no_orders() {
        let found = notices(&[("stick.json", r#"{"lines":["a\u001b[2Jb\nc"]}"#)]);
        assert_eq!(found[0].lines, ["a [2Jb c"]);
    }

    #[test]
    fn an_answer_without_a_listener_does_not_wait() {
        let folder = tempfile::tempdir().unwrap();
        let answers = folder.path().join(ANSWERS);
        fs::create_dir(&answers).unwrap();
        mkfifo(&answers.join("key"), Mode::S_IRWXU).unwrap();
        assert!(answer(folder.path(), "key", "yes").is_err());
        assert!(answer(folder.path(), "other", "yes").is_err());
    }
}
