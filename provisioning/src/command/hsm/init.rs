//! `sallyctl hsm init` and `generate`: a token on this machine gets its PINs and its keys.

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    path::PathBuf,
    process::{Command as Process, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use ruma::OwnedServerName;
use sallyport_core::sign::KeyRole;
use sallyport_hsm::{KeyKind, Pin, PinSource, TokenConfig, init_token};

use super::{
    dialogue::{Ceremony, Step},
    protocol::Protocol,
};
use crate::{command::signer::TokenArgs, files, output::Output, terminal};

/// Characters of a PIN: what every module takes.
const PIN_BYTES_MAX: usize = 255;

#[derive(Args)]
pub(crate) struct Init {
    #[command(flatten)]
    token: TokenArgs,
    /// Also write the user PIN into the token's PIN file, for a box that starts unattended.
    #[arg(long)]
    write_pin_file: bool,
    #[command(flatten)]
    ceremony: Ceremony,
}

#[derive(Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    token: TokenArgs,
    /// Server name of the enclave.
    #[arg(long, value_name = "NAME")]
    enclave: OwnedServerName,
    /// What the key is for.
    #[arg(long, value_parser = role)]
    role: KeyRole,
    /// The algorithm, where the role leaves a choice: otherwise what the token does best.
    #[arg(long, value_enum)]
    algorithm: Option<Algorithm>,
    #[command(flatten)]
    ceremony: Ceremony,
}

#[derive(Clone, Copy, ValueEnum)]
enum Algorithm {
    P256,
    Ed25519,
}

/// What the process is told that loads the module: the PINs come on standard input, where nobody else sees them.
#[derive(Args)]
pub(crate) struct Helper {
    #[arg(long)]
    module: PathBuf,
    #[arg(long)]
    label: String,
}

/// The role that a name on the command line means.
pub(super) fn role(name: &str) -> Result<KeyRole, String> {
    let known = KeyRole::ALL.into_iter().find(|role| role.as_str() == name);
    known.ok_or_else(|| {
        format!("no such role; there are {}", KeyRole::ALL.map(KeyRole::as_str).join(", "))
    })
}

impl Init {
    pub(super) fn run(self, actor: &str, out: &Output) -> anyhow::Result<()> {
        let Self { token, write_pin_file, ceremony } = self;
        let TokenConfig::Pkcs11 { module, token_label, pin, environment, .. } = token.config()?
        else {
            bail!(
                "only a token of kind \"pkcs11\" is set up; a software token is made when it is first used"
            );
        };
        let pin_file = match pin {
            _ if !write_pin_file => None,
            PinSource::File(path) => Some(path),
            _ => bail!(
                "--write-pin-file goes with `pin = \"file:/PATH\"` in the description of the token"
            ),
        };
        let protocol = Protocol::new("Set a token up", &token_label, actor, terminal::now());
        let mut steps = vec![Step::new(
            format!(
                "give the first blank token of {} the label {token_label}, a security officer's PIN and a user PIN; tokens that are set up already are left alone",
                module.display()
            ),
            |protocol| {
                let officer_pin = new_pin("New PIN of the security officer")?;
                let user_pin = new_pin("New PIN of the user (the box)")?;
                ensure!(
                    officer_pin != user_pin,
                    "the two PINs are the same: whoever runs the box could change it for good"
                );
                let serial =
                    in_a_process(&module, &token_label, &environment, &officer_pin, &user_pin)?;
                protocol.fact("module", module.display());
                protocol.fact("label", &token_label);
                protocol.fact("serial number", serial);
                if let Some(pin_file) = &pin_file {
                    let mut file = files::create_secret(pin_file)?;
                    writeln!(file, "{user_pin}")
                        .and_then(|()| file.sync_all())
                        .with_context(|| format!("cannot write {}", pin_file.display()))?;
                    protocol.fact("PIN file", pin_file.display());
                }
                Ok(())
            },
        )];
        steps.push(Step::note(
            "put the security officer's PIN into an envelope, seal it, and have the people present sign over the flap",
        ));
        ceremony.hold(protocol, steps, out)
    }
}

impl Generate {
    pub(super) fn run(self, actor: &str, out: &Output) -> anyhow::Result<()> {
        let Self { token, enclave, role, algorithm, ceremony } = self;
        let protocol =
            Protocol::new(format!("Make a {role} key"), enclave.as_str(), actor, terminal::now());
        let step = Step::new(
            format!(
                "make a key of the role {role} in the token; its private half never leaves the token"
            ),
            |protocol| {
                let signer = token.open(enclave.clone())?;
                let kind = match algorithm {
                    Some(Algorithm::P256) => KeyKind::P256,
                    Some(Algorithm::Ed25519) => KeyKind::Ed25519,
                    None => signer.kind_for(role)?,
                };
                let (name, public) = signer.generate(role, kind)?;
                protocol.key("made", name, &public);
                Ok(())
            },
        );
        let note = Step::note(
            "compare the fingerprint in the protocol with the one that other machines show",
        );
        ceremony.hold(protocol, vec![step, note], out)
    }
}

impl Helper {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut lines = io::stdin().lock().take(2 * (PIN_BYTES_MAX as u64 + 1)).lines();
        let mut pin = || lines.next().context("no PIN")?.context("cannot read a PIN");
        let (officer_pin, user_pin) = (Pin::new(pin()?), Pin::new(pin()?));
        let serial = init_token(&self.module, &self.label, &officer_pin, &user_pin)?;
        writeln!(io::stdout(), "{serial}").context("nobody listens")
    }
}

/// Sets the token up in a process of its own, which loads the module: this one stays whole whatever the module does. It has no other
/// environment than what the module needs.
fn in_a_process(
    module: &std::path::Path,
    label: &str,
    environment: &[String],
    officer_pin: &str,
    user_pin: &str,
) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let needed = environment.iter().map(String::as_str).chain(["SOFTHSM2_CONF"]);
    let variables = needed.filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = Process::new(program)
        .args(["hsm", "init-helper", "--label", label, "--module"])
        .arg(module)
        .env_clear()
        .envs(variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the process for the module")?;
    let mut input = child.stdin.take().context("the process for the module has no input")?;
    write!(input, "{officer_pin}\n{user_pin}\n")
        .context("the process for the module ended early")?;
    drop(input);
    let output = child.wait_with_output().context("the process for the module is lost")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the token was not set up ({}): {}",
        output.status,
        said.trim().trim_start_matches("sallyctl: ")
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A PIN that was typed twice.
fn new_pin(question: &str) -> anyhow::Result<String> {
    let pin = terminal::ask_secret(question)?;
    ensure!(pin.len() <= PIN_BYTES_MAX, "a PIN has at most {PIN_BYTES_MAX} bytes");
    let again = terminal::ask_secret("The same again")?;
    ensure!(pin == again, "the two are not the same: begin again");
    Ok(pin)
}
