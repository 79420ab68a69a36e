//! The person at the terminal: their name, their clock, their PIN.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr},
    unistd::{User, getuid},
};
use sallyport_core::time::Millis;

/// The name of the user account, for the audit log.
pub(crate) fn user_name() -> anyhow::Result<String> {
    let user = User::from_uid(getuid()).context("cannot find out who you are")?;
    Ok(user.map_or_else(|| format!("uid {}", getuid()), |user| user.name))
}

/// The time of this machine.
pub(crate) fn now() -> Millis {
    Millis(0).plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Asks for a secret without showing it. From a pipe, the first line is taken.
pub(crate) fn ask_secret(question: &str) -> anyhow::Result<String> {
    let stdin = io::stdin();
    let hidden = if stdin.is_terminal() {
        write!(io::stderr(), "{question}: ").context("cannot ask")?;
        let before = tcgetattr(&stdin).context("cannot hide what you type")?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &quiet).context("cannot hide what you type")?;
        Some(before)
    } else {
        None
    };
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if let Some(before) = hidden {
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &before).context("cannot show what you type again")?;
        writeln!(io::stderr()).context("cannot ask")?;
    }
    read.context("cannot read the answer")?;
    let secret = line.trim_end_matches(['\r', '\n']).to_owned();
    ensure!(!secret.is_empty(), "nothing was typed");
    Ok(secret)
}

/// Asks for a line of text; empty at the end of the input.
pub(crate) fn ask(question: &str) -> anyhow::Result<String> {
    write!(io::stderr(), "{question}: ").context("cannot ask")?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("cannot read the answer")?;
    Ok(line.trim().to_owned())
}

/// Asks a question that only the whole word `yes` agrees to.
pub(crate) fn confirm(question: &str) -> anyhow::Result<bool> {
    Ok(ask(&format!("{question} (yes/no)"))? == "yes")
}
