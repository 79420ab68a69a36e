//! `sallyctl hsm backup` and `restore`: what can be copied, and what to do where nothing can.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use sallyport_hsm::{Pin, SoftwareToken, TokenConfig};

use super::{
    dialogue::{Ceremony, Step},
    protocol::Protocol,
};
use crate::{command::signer::TokenArgs, files, output::Output, terminal};

/// Bytes of a copy: thousands of keys.
const COPY_BYTES_MAX: usize = 1 << 20;

/// What is said of tokens whose keys never leave them.
const NOT_COPIED: &str = "\
The keys of this token were made so that they never leave it, so `sallyctl` cannot copy them and nobody else can.
There are two ways to be safe against its loss:
  - the vendor's own: a second device of the same domain or security world (Luna cloning, nShield Security World, YubiHSM wrap keys,
    SmartCard-HSM key shares, NetHSM backup files). Follow the vendor's manual, with the same people present.
  - none is needed: what the token signed stays valid. Get another token and run `sallyctl hsm hand-over --token NEW`, with
    --old-token-is-lost if the old one is gone. The enclave root in the safe is what peers trust, so keep that one twice.";

#[derive(Args)]
pub(crate) struct Backup {
    #[command(flatten)]
    token: TokenArgs,
    /// Where to write the encrypted copy.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    ceremony: Ceremony,
}

#[derive(Args)]
pub(crate) struct Restore {
    /// The encrypted copy.
    copy: PathBuf,
    /// A file that describes the software token to make; its key file must not exist yet.
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    ceremony: Ceremony,
}

impl Backup {
    pub(super) fn run(self, actor: &str, out: &Output) -> anyhow::Result<()> {
        let Self { token, out: copy, ceremony } = self;
        let TokenConfig::Software { path, .. } = token.config()? else {
            return out.note(NOT_COPIED);
        };
        let copy = copy.context("say where to write the copy: --out FILE")?;
        let what = format!("Copy the keys of {}", path.display());
        let protocol = Protocol::new(what, "software token", actor, terminal::now());
        let step = Step::new(
            format!("write the keys to {}, encrypted with a PIN (argon2id)", copy.display()),
            |protocol| {
                let pin = terminal::ask_secret("PIN for the copy")?;
                ensure!(pin == terminal::ask_secret("The same again")?, "the two are not the same");
                SoftwareToken::copy_with_pin(&path, &copy, &Pin::new(pin))?;
                protocol.file(copy.display(), &files::read(&copy, COPY_BYTES_MAX)?);
                Ok(())
            },
        );
        let note = Step::note("put the copy and its PIN into different safes");
        ceremony.hold(protocol, vec![step, note], out)
    }
}

impl Restore {
    pub(super) fn run(self, actor: &str, out: &Output) -> anyhow::Result<()> {
        let Self { copy, token, ceremony } = self;
        let TokenConfig::Software { path, .. } = token.config()? else {
            bail!("only a software token is made of a copy\n{NOT_COPIED}");
        };
        let what = format!("Make {} of a copy", path.display());
        let protocol = Protocol::new(what, "software token", actor, terminal::now());
        let step = Step::new(
            format!(
                "make the software token {} with the keys of {}",
                path.display(),
                copy.display()
            ),
            |protocol| {
                let pin = Pin::new(terminal::ask_secret("PIN of the copy")?);
                SoftwareToken::of_copy(&copy, &pin, &path)?;
                protocol.file(copy.display(), &files::read(&copy, COPY_BYTES_MAX)?);
                Ok(())
            },
        );
        ceremony.hold(protocol, vec![step], out)
    }
}
