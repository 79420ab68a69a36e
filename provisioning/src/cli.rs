//! The command line: what the user typed, before anything is done.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::{
    client::{self, Box as TheBox},
    command::{
        approve, audit, backup, bundle, card, ceremony, certificate, clock, codes, console, hsm,
        machine, peer, power, provision, restore, roster, status, stick, token, update,
    },
    output::Output,
    terminal,
};

const AFTER_HELP: &str = "\
A first day, step by step:
  sallyctl ceremony init-root     make the enclave's root key (offline, two people)
  sallyctl ceremony officer-key   make a key for each officer who signs rosters
  sallyctl roster make|sign       turn the personnel office's list into a signed roster
  sallyctl roster dry-run|import  see what it changes, then do it
  sallyctl codes print            print the slips with the activation codes

A new box (the image asks for a stick):
  sallyctl provision new|sign     make the document that says whose box it is, have officers sign it
  sallyctl stick run              is what the box does with every stick

When officers must approve (a policy of the enclave's card, `ceremony sign-card --help`):
  sallyctl bundle export          says how many are missing and what each of them types
  sallyctl approve export|import  is what each types, at their own desk
  sallyctl bundle export --approval FILE --approval FILE

When a key or its token changes (each command explains its steps, and writes a protocol for witnesses):
  sallyctl hsm init|generate      set a blank token up, make keys in it
  sallyctl hsm status             the box's keys, and what waits for the token
  sallyctl hsm rotate event --plan
  sallyctl hsm rotate event --protocol rotation.txt
  sallyctl hsm hand-over --token NEW --protocol hand-over.txt

When a new version of the system comes (on the box; image/UPDATES.md tells it step by step):
  sallyctl update inspect FILE    what it is, and whether it is genuine
  sallyctl update apply FILE      writes it to the slot that does not run; then start the box again
  sallyctl update status          what runs, what would start next, how the last update ended

Against the loss of the box (each recovery officer keeps a token elsewhere):
  sallyctl ceremony recovery-key  make a recovery officer's key
  sallyctl backup create          a backup on a stick, encrypted to those keys
  sallyctl backup verify          can it be opened, and is everything in it
  sallyctl restore                a new box of it
  sallyctl backup grant           the same for a machine of the image, which takes it from a stick

Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 3 the box does not answer,
4 officers must approve, 5 the audit log or the journal was tampered with.";

/// Administer a Sallyport box: rosters, pairing cards, bundles, key ceremonies.
#[derive(Parser)]
#[command(name = "sallyctl", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// The box's administration socket.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SALLYPORT_ADMIN_SOCKET",
        default_value = "/run/sallyport/admin.sock"
    )]
    socket: PathBuf,
    /// Your name in the audit log; the name of your user account if you do not give one.
    #[arg(long, global = true, value_name = "NAME", env = "SALLYPORT_ACTOR")]
    actor: Option<String>,
    /// Print JSON, for scripts.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Show how the box is.
    Status,
    /// Make, sign, check and import rosters: the lists of accounts.
    #[command(subcommand)]
    Roster(roster::Command),
    /// Print or renew activation codes, with which people take over their accounts.
    #[command(subcommand)]
    Codes(codes::Command),
    /// Make, sign and check the document that makes a machine the box of an enclave.
    #[command(subcommand)]
    Provision(provision::Command),
    /// Read, apply and write USB sticks, on the box and at a desk.
    #[command(subcommand)]
    Stick(stick::Command),
    /// Make keys, and sign with the enclave root.
    #[command(subcommand)]
    Ceremony(ceremony::Command),
    /// Look after the box's keys and their token: set up, rotate, back up, hand over, destroy.
    #[command(subcommand)]
    Hsm(hsm::Command),
    /// Look at pairing cards, and exchange this box's own with the enclave root.
    #[command(subcommand)]
    Card(card::Command),
    /// Pair with another enclave, and list those paired.
    #[command(subcommand)]
    Peer(peer::Command),
    /// Export and import bundles: what enclaves send each other on sticks.
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Make backups of the box on a stick, and check them.
    #[command(subcommand)]
    Backup(backup::Command),
    /// Make a new box of backups, on new hardware and with a new token: one command for all of it.
    Restore(Box<restore::Restore>),
    /// Approve, as an officer, a command that somebody else gives: exports, imports and the like.
    #[command(subcommand)]
    Approve(approve::Command),
    /// Verify the audit log.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Look at the certificate that the box serves, and have a higher CA vouch for the enclave's.
    #[command(subcommand)]
    Certificate(certificate::Command),
    /// Look after the token that holds the box's keys.
    #[command(subcommand)]
    Token(token::Command),
    /// Update the system of this box, and look after its two slots.
    #[command(subcommand)]
    Update(update::Command),
    /// Decide what to do when the box's clock went backwards.
    #[command(subcommand)]
    Clock(clock::Command),
    /// Be the console of a machine: show how the box is, and ask what its services ask.
    #[command(hide = true)]
    Console(console::Command),
    /// Do what a unit of the image is for.
    #[command(hide = true, subcommand)]
    Machine(machine::Command),
    /// Switch the machine off in order when somebody presses its power button.
    #[command(hide = true)]
    PowerButton(power::Command),
    /// Be the process that loads the PKCS#11 module of a token on this machine.
    #[command(hide = true)]
    TokenHelper {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

impl Cli {
    /// Does what the command line says.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Common { socket, actor, json } = self.common;
        let actor = match actor {
            Some(actor) => actor,
            None => terminal::user_name()?,
        };
        let the_box = TheBox::new(socket, actor);
        let out = Output::new(json);
        match self.command {
            Command::Status => status::run(&the_box, &out),
            Command::Roster(command) => command.run(&the_box, &out),
            Command::Codes(command) => command.run(&the_box, &out),
            Command::Provision(command) => command.run(the_box.socket(), &out),
            Command::Stick(command) => command.run(&the_box, &out),
            Command::Ceremony(command) => command.run(&out),
            Command::Hsm(command) => command.run(&the_box, &out),
            Command::Card(command) => command.run(&the_box, &out),
            Command::Peer(command) => command.run(&the_box, &out),
            Command::Bundle(command) => command.run(&the_box, &out),
            Command::Backup(command) => command.run(&the_box, &out),
            Command::Restore(restore) => restore.run(&out),
            Command::Approve(command) => command.run(&out),
            Command::Audit(command) => command.run(&the_box, &out),
            Command::Certificate(command) => command.run(&the_box, &out),
            Command::Token(command) => command.run(&the_box, &out),
            Command::Update(command) => command.run(&out),
            Command::Clock(command) => command.run(&the_box, &out),
            Command::Console(command) => command.run(&the_box),
            Command::Machine(command) => command.run(&the_box, &out),
            Command::PowerButton(command) => command.run(),
            Command::TokenHelper { arguments } => {
                sallyport_hsm::run_helper(arguments).context("the token's process ends")
            }
        }
    }
}

/// The exit code that tells a script what kind of failure it was.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    let code = error.chain().find_map(|cause| {
        use sallyport_core::{
            audit::{BadCheckpoint, Broken},
            journal::Altered,
        };
        if cause.is::<Broken>() || cause.is::<BadCheckpoint>() || cause.is::<Altered>() {
            return Some(5);
        }
        cause.downcast_ref::<client::Error>().and_then(|error| match error {
            client::Error::Unreachable { .. } => Some(3),
            client::Error::NeedsApproval(_) => Some(4),
            client::Error::Refused(_) | client::Error::Unread(_) | client::Error::Broken(_) => None,
        })
    });
    ExitCode::from(code.unwrap_or(1))
}
