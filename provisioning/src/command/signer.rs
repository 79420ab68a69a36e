//! A token on this machine, for officers and for the enclave root.

use std::{path::PathBuf, sync::Arc, thread::sleep, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use ruma::OwnedServerName;
use sallyport_core::sign::{KeyRole, Policy, PublicKey, Signature, SigningRequest};
use sallyport_hsm::{
    Health, HelperProgram, KeyName, P256_POINT_BYTES, Pin, Secret32, Token, TokenConfig,
};

use crate::{files, terminal};

/// How long a token may take to open, in steps of [`PAUSE`].
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Which token, and which key in it.
#[derive(Args)]
pub(crate) struct TokenArgs {
    /// A file that describes the token, like the `[token]` table of the box's configuration:
    /// kind = "pkcs11" for a smart card or HSM, kind = "software" and path = "FILE" for development.
    #[arg(long, value_name = "FILE")]
    token: PathBuf,
    /// Accept a token of kind "software": whoever copies its file has the key.
    #[arg(long)]
    allow_software_keys: bool,
}

/// For what no enclave's name stands in: updates, which are for all of them.
pub(crate) fn no_enclave() -> OwnedServerName {
    ruma::owned_server_name!("release.invalid")
}

/// An open token.
pub(crate) struct Signer {
    token: Arc<dyn Token>,
}

impl TokenArgs {
    /// What the file says.
    pub(crate) fn config(&self) -> anyhow::Result<TokenConfig> {
        const CONFIG_BYTES_MAX: usize = 64 * 1024;
        let shown = self.token.display();
        let text = String::from_utf8(files::read(&self.token, CONFIG_BYTES_MAX)?)
            .with_context(|| format!("{shown} is not text"))?;
        toml::from_str(&text).with_context(|| format!("{shown} does not describe a token"))
    }

    /// Opens the token for work on this enclave; asks for the PIN if it wants one.
    pub(crate) fn open(&self, enclave: OwnedServerName) -> anyhow::Result<Signer> {
        let config = self.config()?;
        let policy = Policy { server_name: enclave };
        let program = HelperProgram::this_one();
        let token = sallyport_hsm::open(&config, self.allow_software_keys, policy, program, None)
            .context("cannot open the token")?;
        let signer = Signer { token };
        signer.wait()?;
        Ok(signer)
    }
}

impl Signer {
    /// Makes a key.
    pub(crate) fn generate(
        &self,
        role: KeyRole,
        kind: sallyport_hsm::KeyKind,
    ) -> anyhow::Result<(KeyName, PublicKey)> {
        let name = self.token.generate(role, kind).context("the token made no key")?;
        let public = self.token.public_key(&name).context("the new key cannot be read")?;
        Ok((name, public))
    }

    /// The kind of key to make for a role: the best that the token can do.
    pub(crate) fn kind_for(&self, role: KeyRole) -> anyhow::Result<sallyport_hsm::KeyKind> {
        let kind = self.token.kind_for(role);
        kind.with_context(|| format!("the token can make no key of the role {role}"))
    }

    /// The key of a role: the named one, or the only one.
    pub(crate) fn key(
        &self,
        role: KeyRole,
        named: Option<&KeyName>,
    ) -> anyhow::Result<(KeyName, PublicKey)> {
        let keys = self.token.keys().context("the token does not list its keys")?;
        let mut fitting = keys
            .into_iter()
            .filter(|key| key.role() == role && named.is_none_or(|named| named == key));
        let (first, more) = (fitting.next(), fitting.next().is_some());
        let Some(name) = first else {
            match named {
                Some(named) => bail!("the token has no key {named} of the role {role}"),
                None => bail!(
                    "the token has no key of the role {role}: make one with `sallyctl ceremony`"
                ),
            }
        };
        ensure!(!more, "the token has several keys of the role {role}: choose one with --key");
        let public = self.token.public_key(&name).context("the key cannot be read")?;
        Ok((name, public))
    }

    /// Makes a key that has no public half.
    pub(crate) fn generate_secret(
        &self,
        role: KeyRole,
        kind: sallyport_hsm::KeyKind,
    ) -> anyhow::Result<KeyName> {
        self.token.generate(role, kind).context("the token made no key")
    }

    /// All keys of a role.
    pub(crate) fn keys(&self, role: KeyRole) -> anyhow::Result<Vec<(KeyName, PublicKey)>> {
        let names = self.token.keys().context("the token does not list its keys")?;
        let names = names.into_iter().filter(|name| name.role() == role);
        names
            .map(|name| {
                let public = self.token.public_key(&name).context("a key cannot be read")?;
                Ok((name, public))
            })
            .collect()
    }

    /// Agrees with a point of P-256.
    pub(crate) fn agree(
        &self,
        key: &KeyName,
        point: &[u8; P256_POINT_BYTES],
    ) -> Result<Secret32, sallyport_hsm::Error> {
        self.token.agree(key, point)
    }

    /// Wraps a secret.
    pub(crate) fn wrap(
        &self,
        key: &KeyName,
        secret: &Secret32,
        aad: &[u8],
    ) -> Result<Vec<u8>, sallyport_hsm::Error> {
        self.token.wrap(key, secret, aad)
    }

    /// Opens what was wrapped.
    pub(crate) fn unwrap(
        &self,
        key: &KeyName,
        wrapped: &[u8],
        aad: &[u8],
    ) -> Result<Secret32, sallyport_hsm::Error> {
        self.token.unwrap(key, wrapped, aad)
    }

    /// Signs one request.
    pub(crate) fn sign(
        &self,
        key: &KeyName,
        request: &SigningRequest,
    ) -> Result<Signature, sallyport_hsm::Error> {
        self.token.sign(key, request)
    }

    /// Waits until the token is open; asks for a PIN at most once.
    fn wait(&self) -> anyhow::Result<()> {
        let mut waited = Duration::ZERO;
        let mut asked = false;
        loop {
            match self.token.health() {
                Health::Ready => return Ok(()),
                Health::Locked { why } => {
                    ensure!(!asked, "the token stays locked ({why})");
                    asked = true;
                    let pin = terminal::ask_secret("PIN of the token")?;
                    self.token.reopen(Pin::new(pin)).context("the token does not open")?;
                }
                Health::Absent { why, .. } if waited >= PATIENCE => {
                    bail!("the token cannot be used ({why})")
                }
                Health::Starting if waited >= PATIENCE => bail!("the token does not answer"),
                Health::Absent { .. } | Health::Starting => {
                    sleep(PAUSE);
                    waited += PAUSE;
                }
            }
        }
    }
}
