//! `sallyctl machine token`: asks at the console for what the token of the box needs from a person: its PIN after each start and, where it is
//! blank, the PINs that it is set up with.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use sallyport_core::{
    admin::{TokenReport, TokenStatus, Unlock, path},
    provision::TokenPin,
};
use sallyport_hsm::{BoxToken, Pin, Secret32, Setup, SetupAnswer};

use super::{
    dialogue::{Dialogue, Told},
    sealed::Sealed,
};
use crate::client::Box as TheBox;

/// The name of the notice, and of the pipe for answers.
const NOTICE: &str = "token";
/// How often the box is asked how its token is.
const REFRESH: Duration = Duration::from_secs(2);
/// How often a token that is not there is looked for among blank ones.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How long a token may take to be looked at or set up: smart cards are slow.
const PATIENCE: Duration = Duration::from_secs(120);
/// Characters of a PIN that somebody chooses.
const PIN_CHARS_MIN: usize = 6;
/// See [`PIN_CHARS_MIN`]: what a line of the console and every module take.
const PIN_CHARS_MAX: usize = 64;
/// Digits of the PINs that the box makes. The officer's has the form that SmartCard-HSMs insist on.
const USER_DIGITS: usize = 8;
const OFFICER_DIGITS: usize = 16;
/// How often somebody may mistype before the dialogue begins anew.
const ATTEMPTS: usize = 3;

#[derive(Args)]
pub(crate) struct Token {
    /// The folder with the notices for the console.
    #[arg(long, value_name = "FOLDER", default_value = "/run/sallyport-state")]
    state: PathBuf,
    /// The socket at which blank tokens are set up.
    #[arg(long, value_name = "SOCKET", default_value = "/run/sallyport-token/setup.sock")]
    setup: PathBuf,
    /// What the provisioning document says of the token.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/sallyport-settings/token.toml")]
    token: PathBuf,
    #[command(flatten)]
    sealed: Sealed,
}

/// PINs of a token that is set up.
struct Pins {
    user: String,
    officer: String,
}

impl Token {
    /// Runs for ever.
    pub(crate) fn run(self, the_box: &TheBox) -> anyhow::Result<()> {
        if !self.seals()? {
            self.sealed.forget()?;
        }
        let mut looked: Option<Instant> = None;
        loop {
            match status(the_box) {
                Some(TokenStatus::Locked { why }) => self.unlock(the_box, why)?,
                Some(TokenStatus::Absent { why, .. })
                    if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) =>
                {
                    looked = Some(Instant::now());
                    if let Ok(SetupAnswer::Blank) = Setup::Look.ask(&self.setup, PATIENCE) {
                        self.set_up(the_box, why)?;
                    }
                }
                _ => {}
            }
            thread::sleep(REFRESH);
        }
    }

    /// Asks for the PIN until the token is open, or waits for something else.
    fn unlock(&self, the_box: &TheBox, why: String) -> anyhow::Result<()> {
        let mut remark = match self.sealed.take()? {
            None => why,
            Some(pin) => match open(the_box, pin) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    // Tried at each start, it would use up the token's attempts.
                    self.sealed.forget()?;
                    format!("The sealed PIN did not open it: {error:#}")
                }
            },
        };
        let dialogue = Dialogue::open(&self.state, NOTICE)?;
        while let Some(TokenStatus::Locked { .. }) = status(the_box) {
            let told = [remark.as_str()];
            let told = question(&told, "PIN of the token (it is not shown):", true);
            let Some(pin) = dialogue.ask_within(told, REFRESH)? else { continue };
            if pin.is_empty() {
                continue;
            }
            remark = match self.open_and_seal(the_box, &pin) {
                Ok(()) => break,
                Err(error) => format!("{error:#}"),
            };
        }
        Ok(())
    }

    /// Has somebody choose the PINs of a blank token, or makes them; sets it up, and opens it for the box.
    fn set_up(&self, the_box: &TheBox, why: String) -> anyhow::Result<()> {
        let dialogue = Dialogue::open(&self.state, NOTICE)?;
        let mut remark = why;
        loop {
            let pins = match choose(&dialogue, &remark) {
                Ok(pins) => pins,
                Err(error) => {
                    remark = format!("{error:#}");
                    continue;
                }
            };
            let lines = ["The token is being set up. This takes up to a minute."];
            dialogue.tell(Told { title: TITLE, lines: &lines, ..Told::default() })?;
            let (officer, user) = (Pin::new(pins.officer), Pin::new(pins.user.clone()));
            let setup = Setup::SetUp { officer_pin: &officer, user_pin: &user };
            match setup.ask(&self.setup, PATIENCE) {
                Ok(SetupAnswer::Done(_serial)) => {
                    // If it does not open, its state tells why, and the PIN is asked for.
                    drop(self.open_and_seal(the_box, &pins.user));
                    break;
                }
                Ok(SetupAnswer::Failed(why)) => remark = why,
                Err(error) => remark = error.to_string(),
                // Somebody else was faster, or it was pulled out.
                Ok(SetupAnswer::There | SetupAnswer::Blank | SetupAnswer::Nothing) => break,
            }
        }
        Ok(())
    }

    /// Opens the token, and seals the PIN if the document says so.
    fn open_and_seal(&self, the_box: &TheBox, pin: &str) -> anyhow::Result<()> {
        open(the_box, pin.to_owned())?;
        if self.seals()?
            && let Err(error) = self.sealed.seal(pin)
        {
            // The token is open: this start lacks nothing. The next one asks.
            writeln!(io::stderr(), "{error:#}").context("nobody listens")?;
        }
        Ok(())
    }

    /// Whether the document wants the PIN sealed.
    fn seals(&self) -> anyhow::Result<bool> {
        Ok(BoxToken::read(&self.token)?.pin == TokenPin::Sealed)
    }
}

const TITLE: &str =
    "TOKEN: until it is open members chat, nothing is signed, and nothing leaves the box.";

fn choose(dialogue: &Dialogue, remark: &str) -> anyhow::Result<Pins> {
    let asked =
        format!("New PIN for it, {PIN_CHARS_MIN} characters or more; nothing to have one made:");
    let blank = "A blank token is plugged in. Tokens that are set up already are left alone.";
    let user = new_pin(dialogue, &[remark, blank], &asked)?;
    let asked = "New PIN of its security officer, another one; nothing to have one made:";
    let officer = new_pin(dialogue, &["It unlocks the token after wrong PINs."], asked)?;
    ensure!(
        user.is_none() || user != officer,
        "The two PINs are the same: whoever runs the box could change it for good."
    );
    let made = (user.is_none(), officer.is_none());
    let user = user.map_or_else(|| digits(USER_DIGITS), Ok)?;
    let officer = officer.map_or_else(|| digits(OFFICER_DIGITS), Ok)?;
    let mut lines = Vec::new();
    if made.0 {
        lines.push(format!("PIN: {user}"));
    }
    if made.1 {
        lines.push(format!("security officer's PIN: {officer}"));
    }
    // Shown before they are set: a power cut leaves no token whose PIN nobody knows.
    let last = if made.1 { &officer } else { &user };
    if !lines.is_empty() {
        confirm(dialogue, lines, last)?;
    }
    Ok(Pins { user, officer })
}

/// A PIN that was typed twice, or none.
fn new_pin(dialogue: &Dialogue, lines: &[&str], asked: &str) -> anyhow::Result<Option<String>> {
    let pin = dialogue.ask(question(lines, asked, true))?;
    if pin.is_empty() {
        return Ok(None);
    }
    let fits = (PIN_CHARS_MIN..=PIN_CHARS_MAX).contains(&pin.chars().count());
    ensure!(fits, "A PIN has {PIN_CHARS_MIN} to {PIN_CHARS_MAX} characters.");
    let again = dialogue.ask(question(&[], "The same again:", true))?;
    ensure!(again == pin, "The two were not the same.");
    Ok(Some(pin.to_string()))
}

/// Shows PINs that the box made until somebody types the end of the last one.
fn confirm(dialogue: &Dialogue, mut lines: Vec<String>, last: &str) -> anyhow::Result<()> {
    let end = last.get(last.len().saturating_sub(4)..).unwrap_or(last);
    lines.push(
        "Write down what is above and lock it away: it is shown only now, and nobody can find it out."
            .to_owned(),
    );
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    for _ in 0..ATTEMPTS {
        let ask = "Then type the last four digits of the last one:";
        if *dialogue.ask(question(&lines, ask, false))? == end {
            return Ok(());
        }
    }
    bail!("Those were not the last four digits: others are made.")
}

/// A question about the token.
fn question<'a>(lines: &'a [&'a str], ask: &'a str, secret: bool) -> Told<'a> {
    Told { title: TITLE, lines, ask: Some(ask), secret }
}

/// How the token is; nothing if the server does not answer, which the console tells.
fn status(the_box: &TheBox) -> Option<TokenStatus> {
    the_box.ask::<TokenReport>(path::TOKEN).ok().map(|report| report.state)
}

fn open(the_box: &TheBox, pin: String) -> anyhow::Result<()> {
    the_box.command::<TokenReport>(path::TOKEN_UNLOCK, &Unlock { pin }).map(drop)
}

/// Random digits.
fn digits(count: usize) -> anyhow::Result<String> {
    /// Bytes below it are as often each digit.
    const FAIR: u8 = 250;
    let mut digits = String::with_capacity(count);
    while digits.len() < count {
        let random = Secret32::random()?;
        let fair = random.expose().iter().filter(|byte| **byte < FAIR);
        let missing = count - digits.len();
        digits.extend(fair.take(missing).map(|byte| char::from(b'0' + byte % 10)));
    }
    Ok(digits)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::notice;

    /// Answers each question of the notice once it is there, and returns what was shown with it.
    fn converse(state: &Path, answers: &[(&str, &str)]) -> Vec<notice::Notice> {
        let asked = |what: &str| {
            let notices = notice::all(state);
            notices.into_iter().find(|n| n.ask.as_deref().is_some_and(|ask| ask.contains(what)))
        };
        let mut seen = Vec::new();
        for (what, answer) in answers {
            let notice = loop {
                match asked(what) {
                    Some(notice) => break notice,
                    None => thread::yield_now(),
                }
            };
            let last = notice.lines.iter().rev().nth(1).and_then(|line| line.rsplit(' ').next());
            let end = last.map_or("", |pin| &pin[pin.len().saturating_sub(4)..]);
            notice::answer(state, NOTICE, &answer.replace("END", end)).unwrap();
            seen.push(notice);
        }
        seen
    }

    fn choosing(answers: &[(&str, &str)]) -> (anyhow::Result<Pins>, Vec<notice::Notice>) {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().to_owned();
        let chosen = thread::spawn({
            let state = state.clone();
            move || choose(&Dialogue::open(&state, NOTICE).unwrap(), "")
        });
        let seen = converse(&state, answers);
        (chosen.join().unwrap(), seen)
    }

    #[test]
    fn pins_are_typed_twice_and_not_shown() {
        let (pins, seen) = choosing(&[
            ("New PIN for it", "alpha-1234"),
            ("The same again", "alpha-1234"),
            ("security officer", "officer-1"),
            ("The same again", "officer-1"),
        ]);
        let pins = pins.unwrap();
        assert_eq!((pins.user.as_str(), pins.officer.as_str()), ("alpha-1234", "officer-1"));
        assert!(seen.iter().all(|notice| notice.secret));
    }

    #[test]
    fn pins_are_made_and_shown_until_somebody_has_them() {
        let (pins, seen) = choosing(&[
            ("New PIN for it", ""),
            ("security officer", ""),
            ("last four", "nothing"),
            ("last four", "END"),
        ]);
        let pins = pins.unwrap();
        for (pin, length) in [(&pins.user, USER_DIGITS), (&pins.officer, OFFICER_DIGITS)] {
            assert_eq!(pin.len(), length);
            assert!(pin.bytes().all(|byte| byte.is_ascii_digit()), "{pin}");
            assert!(seen[3].lines.iter().any(|line| line.ends_with(pin.as_str())));
        }
        assert!(!seen[3].secret);
    }

    #[test]
    fn pins_that_are_of_no_use_are_not_taken() {
        for (answers, says) in [
            (&[("New PIN for it", "12345")][..], "6 to 64 characters"),
            (&[("New PIN for it", "123456"), ("The same again", "123457")], "not the same"),
            (
                &[
                    ("New PIN for it", "123456"),
                    ("The same again", "123456"),
                    ("security officer", "123456"),
                    ("The same again", "123456"),
                ],
                "The two PINs are the same",
            ),
        ] {
            let refused = choosing(answers).0.err().unwrap().to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
