//! A recovery officer's key: in a token, or wrapped by one.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use ruma::{OwnedServerName, serde::Base64};
use sallyport_core::{
    backup::{RecoveryKey, Sealed},
    bundle::PrivateHalf,
    card::EncryptionSuite,
    sign::KeyRole,
};
use sallyport_hsm::{KeyName, Secret32};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::signer::{Signer, TokenArgs};
use crate::files;

/// Bytes of a file with a wrapped key.
const FILE_BYTES_MAX: usize = 16 * 1024;

/// Which recovery key.
#[derive(Args)]
pub(crate) struct RecoveryArgs {
    #[command(flatten)]
    token: TokenArgs,
    /// The officer's file, if their key is one that the token wraps (`sallyctl ceremony recovery-key --hybrid FILE`).
    #[arg(long, value_name = "FILE")]
    hybrid: Option<PathBuf>,
}

/// A recovery key that can be used.
pub(crate) struct Recovery {
    signer: Signer,
    hybrid: Option<HybridFile>,
}

/// A key of X-Wing whose seed a token wraps. Without the token and its PIN the file is worth nothing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HybridFile {
    /// The enclave whose backups it opens.
    enclave: OwnedServerName,
    /// The public half.
    public: RecoveryKey,
    /// The token's key that wraps the seed.
    storage: KeyName,
    /// The wrapped seed.
    wrapped: Base64,
}

impl RecoveryArgs {
    /// Opens the token; asks for its PIN if it wants one.
    pub(crate) fn open(&self, enclave: OwnedServerName) -> anyhow::Result<Recovery> {
        let hybrid = self.hybrid.as_deref().map(HybridFile::read).transpose()?;
        if let Some(hybrid) = &hybrid {
            let of = &hybrid.enclave;
            ensure!(*of == enclave, "the recovery key is one for {of}, not for {enclave}");
        }
        Ok(Recovery { signer: self.token.open(enclave)?, hybrid })
    }
}

impl Recovery {
    /// The key that a backup's content is encrypted with.
    pub(crate) fn content_key<R: std::io::Read>(
        &self,
        sealed: &Sealed<R>,
    ) -> anyhow::Result<Zeroizing<[u8; 32]>> {
        let plain = |secret: Secret32| Zeroizing::new(*secret.expose());
        if let Some(hybrid) = &self.hybrid {
            return Ok(sealed.content_key(&hybrid.public, |asked| match asked {
                PrivateHalf::Seed => self
                    .signer
                    .unwrap(&hybrid.storage, hybrid.wrapped.as_bytes(), &hybrid.aad())
                    .map(plain),
                PrivateHalf::Agree(_) => Err(sallyport_hsm::Error::Damaged),
            })?);
        }
        let keys = self.signer.keys(KeyRole::Recovery)?;
        let mut last = None;
        for (name, public) in keys {
            let suite = EncryptionSuite::P256HkdfSha256Aes256Gcm;
            let key = RecoveryKey::new(suite, public.as_bytes().to_vec())
                .with_context(|| format!("the key {name} cannot be used"))?;
            if sealed.is_for(&key) {
                return Ok(sealed.content_key(&key, |asked| match asked {
                    PrivateHalf::Agree(point) => self.signer.agree(&name, point).map(plain),
                    PrivateHalf::Seed => Err(sallyport_hsm::Error::Damaged),
                })?);
            }
            last = Some(key);
        }
        match last {
            Some(key) => Err(sallyport_core::backup::Error::NotForKey { key }.into()),
            None => bail!(
                "the token has no recovery key: is it another officer's, or does the key need its file (--hybrid)?"
            ),
        }
    }
}

/// Makes a key in the token; with a file, one that the token wraps.
pub(super) fn make(
    signer: &Signer,
    enclave: &OwnedServerName,
    hybrid: Option<&Path>,
) -> anyhow::Result<(KeyName, RecoveryKey)> {
    let Some(path) = hybrid else {
        let kind = signer.kind_for(KeyRole::Recovery)?;
        let (name, public) = signer.generate(KeyRole::Recovery, kind)?;
        let suite = EncryptionSuite::P256HkdfSha256Aes256Gcm;
        let key = RecoveryKey::new(suite, public.as_bytes().to_vec())
            .context("the token's new key is not one of P-256")?;
        return Ok((name, key));
    };
    let kind = signer.kind_for(KeyRole::Storage)?;
    let storage = signer.generate_secret(KeyRole::Storage, kind)?;
    let seed = Secret32::random().context("there is no randomness")?;
    let public = RecoveryKey::x_wing(seed.expose());
    let mut file = HybridFile {
        enclave: enclave.clone(),
        public: public.clone(),
        storage: storage.clone(),
        wrapped: Base64::new(Vec::new()),
    };
    let wrapped = signer.wrap(&storage, &seed, &file.aad()).context("the token does not wrap")?;
    let again = signer.unwrap(&storage, &wrapped, &file.aad());
    let again = again.context("the token does not open what it wrapped")?;
    ensure!(again.expose() == seed.expose(), "the token opens something else than it wrapped");
    file.wrapped = Base64::new(wrapped);
    let text = toml::to_string(&file).context("the key's file cannot be written")?;
    files::write_new(path, text.as_bytes())?;
    Ok((storage, public))
}

impl HybridFile {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = String::from_utf8(files::read(path, FILE_BYTES_MAX)?)
            .with_context(|| format!("{shown} is not text"))?;
        toml::from_str(&text).with_context(|| format!("{shown} is not a recovery officer's file"))
    }

    fn aad(&self) -> Vec<u8> {
        format!("sallyport/recovery-key/1|{}|{}", self.enclave, self.public).into_bytes()
    }
}
