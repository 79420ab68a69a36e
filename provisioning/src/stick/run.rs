//! The two gates in their order, each in a process of its own that gives up what it does not need.

use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{
    Folder, OUT, RESULT,
    apply::ApplyArgs,
    inventory::Inventory,
    state::{Phase, StateFile},
};
use crate::{client::Box as TheBox, output::Output};

/// What a visit of a stick needs.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// The stick: a device, or an image of one.
    #[arg(long, value_name = "DEVICE")]
    device: PathBuf,
    #[command(flatten)]
    apply: ApplyArgs,
}

/// Reads a stick, does what it asks for, and writes to it if it is marked for that.
pub(crate) fn run(args: &RunArgs, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
    let state = StateFile::new(args.apply.state.clone());
    let came = visit(args, the_box, &state, out);
    if let Err(error) = &came
        && !matches!(error.downcast_ref(), Some(Ended::Refused))
    {
        state.tell(Phase::Failed, true, true, &[format!("{error:#}")])?;
    }
    came
}

/// How a gate ended, other than well.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// All was looked at, and something was refused.
    #[error("something on the stick was refused: the result above says what and why")]
    Refused,
}

fn visit(args: &RunArgs, the_box: &TheBox, state: &StateFile, out: &Output) -> anyhow::Result<()> {
    let quarantine = &args.apply.quarantine;
    state.tell(Phase::Reading, false, false, &[])?;
    out.note("Reading the stick …")?;
    let device = || [OsString::from("--device"), args.device.clone().into()];
    let read = gate(
        the_box,
        [
            &[OsString::from("read")][..],
            &device(),
            &["--quarantine".into(), quarantine.clone().into()],
        ]
        .concat(),
    )?;
    if !read.success() {
        bail!("the stick could not be read; it can be pulled out");
    }
    out.note("Looking at what it brought …")?;
    let apply = gate(the_box, apply_arguments(&args.apply))?;
    let judged = quarantine.join(OUT).join(RESULT).exists();
    if !apply.success() && !judged {
        bail!("what the stick brought could not be looked at; the stick can be pulled out");
    }
    let inventory = Inventory::read(quarantine)?;
    let lines = std::fs::read_to_string(quarantine.join(OUT).join(RESULT)).unwrap_or_default();
    // What was done, without the words around it.
    let lines: Vec<String> =
        lines.lines().filter_map(|line| line.strip_prefix("- ")).map(str::to_owned).collect();
    if inventory.takes_files() {
        state.tell(Phase::Writing, false, !apply.success(), &lines)?;
        out.note("Writing to the stick: do not pull it out …")?;
        let from = ["--from".into(), quarantine.clone().into()];
        let write = gate(the_box, [&[OsString::from("write")][..], &device(), &from].concat())?;
        if !write.success() {
            bail!(
                "the stick could not be written; it can be pulled out, and what was to go onto it lies in quarantine"
            );
        }
    }
    if inventory.of(Folder::Update, "update").next().is_some() {
        state.want_update()?;
    }
    state.tell(Phase::Done, true, !apply.success(), &lines)?;
    out.note("Done: the stick can be pulled out.")?;
    if apply.success() { Ok(()) } else { Err(Ended::Refused.into()) }
}

fn apply_arguments(args: &ApplyArgs) -> Vec<OsString> {
    let mut arguments = vec![
        "apply".into(),
        "--quarantine".into(),
        args.quarantine.clone().into(),
        "--settings".into(),
        args.settings.folder().into(),
        "--data-dir".into(),
        args.settings.data_dir().into(),
        "--journal".into(),
        args.journal.clone().into(),
        "--wait".into(),
        args.wait.to_string().into(),
    ];
    if let Some(state) = &args.state {
        arguments.extend(["--state".into(), state.clone().into()]);
    }
    if args.ask {
        arguments.push("--ask".into());
    }
    if let Some(code) = &args.confirm {
        arguments.extend(["--confirm".into(), code.into()]);
    }
    arguments
}

/// Runs one gate: this program again.
fn gate(the_box: &TheBox, arguments: Vec<OsString>) -> anyhow::Result<ExitStatus> {
    let program = env::current_exe().context("this program cannot be found")?;
    Command::new(program)
        .arg("--socket")
        .arg(the_box.socket())
        .arg("--actor")
        .arg(the_box.actor())
        .arg("stick")
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .context("this program cannot be started again")
}
