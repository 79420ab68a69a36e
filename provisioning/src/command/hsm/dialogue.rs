//! A ceremony as a dialogue: numbered steps, a question before each, and a protocol at the end.

use std::path::PathBuf;

use anyhow::{bail, ensure};
use clap::Args;

use super::protocol::Protocol;
use crate::{files, output::Output, terminal};

/// How a ceremony is held.
#[derive(Args)]
pub(super) struct Ceremony {
    /// Print the steps and touch nothing.
    #[arg(long)]
    plan: bool,
    /// Ask nothing: for scripts.
    #[arg(long)]
    yes: bool,
    /// Where to write the protocol, for the people present to sign.
    #[arg(long, value_name = "FILE", required_unless_present = "plan")]
    protocol: Option<PathBuf>,
    /// Somebody who is present, by name; may be given several times. Asked for if it is not given.
    #[arg(long = "witness", value_name = "NAME")]
    witnesses: Vec<String>,
}

/// One step.
pub(super) struct Step<'a> {
    /// What it does, and why, in one sentence.
    pub(super) text: String,
    /// Does it.
    pub(super) act: Act<'a>,
}

/// What a step does; it notes in the protocol what the people present should know later.
pub(super) type Act<'a> = Box<dyn FnOnce(&mut Protocol) -> anyhow::Result<()> + 'a>;

impl<'a> Step<'a> {
    pub(super) fn new(
        text: impl Into<String>,
        act: impl FnOnce(&mut Protocol) -> anyhow::Result<()> + 'a,
    ) -> Self {
        Self { text: text.into(), act: Box::new(act) }
    }

    /// Something that others do, or that the step before brings with it.
    pub(super) fn note(text: impl Into<String>) -> Self {
        Self::new(text, |_| Ok(()))
    }
}

impl Ceremony {
    pub(super) fn is_plan(&self) -> bool {
        self.plan
    }

    /// Holds the ceremony. If a step fails, the protocol of what was done until then is written all the same.
    pub(super) fn hold(
        self,
        mut protocol: Protocol,
        steps: Vec<Step<'_>>,
        out: &Output,
    ) -> anyhow::Result<()> {
        let count = steps.len();
        out.note(&protocol.title())?;
        for (number, step) in (1..).zip(&steps) {
            out.note(&format!("  {number}. {}", step.text))?;
        }
        let Some(path) = self.protocol.filter(|_| !self.plan) else {
            return out.note("Nothing was done: this is the plan.");
        };
        ensure!(
            !path.exists(),
            "{} is there already: give the protocol another name",
            path.display()
        );
        protocol.present = present(self.witnesses, self.yes)?;
        let mut ended = Ok(());
        for (number, step) in (1..).zip(steps) {
            let question = format!("Step {number} of {count}: {}.\nGo on?", step.text);
            if !self.yes && !terminal::confirm(&question)? {
                protocol.stopped(number);
                ended = Err(anyhow::anyhow!("stopped before step {number}: nobody said yes"));
                break;
            }
            let acted = (step.act)(&mut protocol);
            protocol.done(number, &step.text, acted.as_ref().err());
            if acted.is_err() {
                ended = acted;
                break;
            }
        }
        let text = protocol.text(terminal::now());
        files::write_new(&path, text.as_bytes())?;
        out.show(&protocol, |_| text)?;
        out.note(&format!("The protocol is in {}: print it, and have it signed.", path.display()))?;
        ended
    }
}

/// Who is present, as they are to stand in the protocol.
fn present(given: Vec<String>, scripted: bool) -> anyhow::Result<Vec<String>> {
    const PEOPLE_MAX: usize = 32;
    let mut people = given;
    if people.is_empty() && !scripted {
        while people.len() < PEOPLE_MAX {
            let name =
                terminal::ask("Who is present? One name a line; an empty line ends the list")?;
            if name.is_empty() {
                break;
            }
            people.push(name);
        }
    }
    if people.iter().any(|name| name.chars().any(char::is_control)) {
        bail!("a name has control characters");
    }
    Ok(people)
}
