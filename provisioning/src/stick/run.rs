//! The two gates in their order, each in a process of its own that gives up what it does not need.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context as _, bail};
use clap::Args;
use sallyport_core::admin::{BackupMade, BackupVerified, path};

use super::{
    ERASE, Folder, IN, OUT, RESULT,
    apply::ApplyArgs,
    backup::{Wish, Written},
    inventory::Inventory,
    restore,
    state::{Phase, Report, StateFile},
};
use crate::{client::Box as TheBox, output::Output as Out};

/// What a visit of a stick needs.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// The stick: a device, or an image of one.
    #[arg(long, value_name = "DEVICE")]
    device: PathBuf,
    #[command(flatten)]
    apply: ApplyArgs,
    /// Bytes of one part of a backup on the stick, if fewer than FAT32 has room for in a file.
    #[arg(long, value_name = "BYTES", hide = true)]
    part_bytes: Option<u64>,
}

/// Reads a stick, does what it asks for, and writes to it if it is marked for that.
pub(crate) fn run(args: &RunArgs, the_box: &TheBox, out: &Out) -> anyhow::Result<()> {
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

fn visit(args: &RunArgs, the_box: &TheBox, state: &StateFile, out: &Out) -> anyhow::Result<()> {
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
    let mut refused = !apply.success();
    if let Some(wish) = Wish::read(quarantine)? {
        state.tell(Phase::Writing, false, refused, &[])?;
        out.note("Making a backup …")?;
        match back_up(args, the_box, wish) {
            Ok(line) => Report::append(quarantine, &line)?,
            Err(why) => {
                refused = true;
                Report::append(quarantine, &format!("REFUSED: the backup: {why:#}"))?;
            }
        }
    }
    if restore::is_wanted(quarantine) {
        state.tell(Phase::Reading, false, refused, &["the backups are copied".to_owned()])?;
        out.note("Copying the backups …")?;
        refused |= !copy_backups(args, the_box)?;
    }
    let lines = result_lines(quarantine);
    if inventory.takes_files() {
        state.tell(Phase::Writing, false, refused, &lines)?;
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
    if quarantine.join(IN).join(ERASE).exists() {
        state.want_erase()?;
    }
    state.tell(Phase::Done, true, refused, &lines)?;
    out.note("Done: the stick can be pulled out.")?;
    if refused { Err(Ended::Refused.into()) } else { Ok(()) }
}

/// What was done, without the words around it.
fn result_lines(quarantine: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(quarantine.join(OUT).join(RESULT)).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix("- ")).map(str::to_owned).collect()
}

/// Copies the backups that a grant opens into the quarantine; whether they are there.
fn copy_backups(args: &RunArgs, the_box: &TheBox) -> anyhow::Result<bool> {
    let quarantine = &args.apply.quarantine;
    let mut copy =
        vec![OsString::from("copy-backups"), "--device".into(), args.device.clone().into()];
    copy.extend(["--quarantine".into(), quarantine.clone().into()]);
    if gate(the_box, copy)?.success() {
        restore::ready(quarantine)?;
        return Ok(true);
    }
    restore::forget(quarantine)?;
    let refused =
        "REFUSED: the backups cannot be copied: is there room for them, and is the stick sound?";
    Report::append(quarantine, refused)?;
    Ok(false)
}

/// Has the box make a backup and the stick take it; answers what it is. It counts only now.
fn back_up(args: &RunArgs, the_box: &TheBox, wish: Wish) -> anyhow::Result<String> {
    let mut to_stick = vec!["take-backup".into(), "--device".into(), args.device.clone().into()];
    if let Some(bytes) = args.part_bytes {
        to_stick.extend(["--part-bytes".into(), bytes.to_string().into()]);
    }
    let mut from_box = vec![OsString::from("send-backup")];
    if let Some(id) = wish.since {
        from_box.extend(["--since".into(), id.to_string().into()]);
    }
    if let Some(state) = &args.apply.state {
        from_box.extend(["--state".into(), state.clone().into()]);
    }
    let started = "this program cannot be started again";
    let mut taker = program(the_box, to_stick)?;
    taker.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut taker = taker.spawn().context(started)?;
    let pipe = taker.stdin.take().context("there is no pipe")?;
    let sender = {
        // What holds our side of the pipe must be gone, or the stick's side would wait for more for ever.
        let mut sender = program(the_box, from_box)?;
        sender.stdin(Stdio::null()).stdout(pipe).stderr(Stdio::piped()).output()
    };
    let taken = taker.wait_with_output().context(started)?;
    let sent = sender.context(started)?;
    if !sent.status.success() || !taken.status.success() {
        bail!(
            "it was not made; at the box: {}; at the stick: {}",
            last_word(&sent),
            last_word(&taken)
        );
    }
    let written = Written::parse(&taken.stdout)?;
    let id = written.id;
    let made: BackupMade = the_box
        .command(path::BACKUP_VERIFIED, &BackupVerified { id })
        .context("it is on the stick, but the box did not take note of it")?;
    let kind = if made.full { "full" } else { "what is new" };
    Ok(format!(
        "BACKUP/{}: backup {} ({kind}), {} bytes in {} file(s), written and read back",
        super::shown(&written.name),
        made.number,
        written.bytes,
        written.parts
    ))
}

/// The last line that a program of ours said about its failure.
fn last_word(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("nothing is wrong");
    last.trim_start_matches("sallyctl: ").chars().filter(|c| !c.is_control()).collect()
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
    let mut program = program(the_box, arguments)?;
    program.stdin(Stdio::null()).status().context("this program cannot be started again")
}

fn program(the_box: &TheBox, arguments: Vec<OsString>) -> anyhow::Result<Command> {
    let mut program = Command::new(env::current_exe().context("this program cannot be found")?);
    program.arg("--socket").arg(the_box.socket()).arg("--actor").arg(the_box.actor());
    program.arg("stick").args(arguments);
    Ok(program)
}
