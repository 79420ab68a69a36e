//! The vault: the box's own secrets at rest, in one file under one data key.
//!
//! The data key is in the file twice: sealed with the *box key*, with which every start opens it without a token, and, once
//! a token was there, wrapped by that token's storage key. The box key is the systemd credential [`BOX_KEY_CREDENTIAL`]
//! (which the image seals to the TPM) or else the file `box.key` on the encrypted data partition. On new hardware, where the box key is
//! gone, the token opens the vault, and it is sealed to the new box. Whatever does not open is left as it is.

mod content;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ruma::serde::Base64;
use sallyport_core::{
    admin::{BoxKeyPlace, VaultStatus},
    limits::VAULT_BYTES_MAX,
};
use sallyport_hsm::{Health, KeyName, KeyRole, Secret32, Token, seal::unseal};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::files::{self, Readers};
use content::{Content, Wrapped, aad};

/// Name of the systemd credential with the box key: 32 bytes.
pub const BOX_KEY_CREDENTIAL: &str = "sallyport.box-key";
/// How long a start waits for the token if nothing else opens the vault.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks in the meantime.
const RECOVERY_LOOK: Duration = Duration::from_millis(50);

/// A secret in the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    /// Key of the HMAC chain over local events: the signer signs only what was accepted here.
    EventMac,
    /// Key of the stored hashes of access tokens, refresh tokens and activation codes.
    Pepper,
    /// The serving certificate's key, if the box holds it, and the certificate.
    TlsLeaf,
}

impl Name {
    /// Those that are made with the vault and never change.
    const KEYS: [Self; 2] = [Self::EventMac, Self::Pepper];

    fn as_str(self) -> &'static str {
        match self {
            Self::EventMac => "event-mac",
            Self::Pepper => "pepper",
            Self::TlsLeaf => "tls-leaf",
        }
    }
}

/// Why the vault does not open, or takes nothing in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// There is a database, but no vault.
    #[error(
        "{} is not there, but the database is: restore both, and the box key, from the same backup",
        path.display()
    )]
    Missing {
        /// The vault.
        path: PathBuf,
    },
    /// A newer or older Sallyport wrote it.
    #[error("{} has version {version}, which this Sallyport does not know: run the one that wrote it", path.display())]
    Version {
        /// The vault.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
    /// A byte of it has changed.
    #[error("the vault {} is damaged: restore it from a backup; nothing was overwritten", path.display())]
    Damaged {
        /// The vault.
        path: PathBuf,
    },
    /// A box key has another length.
    #[error("{} is no box key of 32 bytes: put the right one there", path.display())]
    NoKey {
        /// The credential or file.
        path: PathBuf,
    },
    /// No box key fits, and no token is there to help.
    #[error("the vault {} does not open: {why}; {fix}", path.display())]
    Closed {
        /// The vault.
        path: PathBuf,
        /// What was tried.
        why: String,
        /// What to do.
        fix: String,
    },
    /// The token that could open it does not.
    #[error("no box key opens the vault {}, and the token {key} does not either", path.display())]
    Token {
        /// The vault.
        path: PathBuf,
        /// The token's key.
        key: KeyName,
        /// What the token said.
        #[source]
        source: sallyport_hsm::Error,
    },
    /// The token has no kind of key that wraps.
    #[error("the token cannot wrap: the vault opens with its box key only, so keep a copy of that")]
    CannotWrap,
    /// The token did not wrap the data key.
    #[error("the token does not wrap the vault's key")]
    Wrap(#[source] sallyport_hsm::Error),
    /// The operating system gave no random bytes.
    #[error("nothing can be sealed")]
    Seal(#[source] sallyport_hsm::Error),
}

/// The open vault.
pub struct Vault {
    path: PathBuf,
    data_key: Secret32,
    holder: BoxKeyPlace,
    content: Mutex<Content>,
}

impl Vault {
    /// Opens the vault in the folder of the box's data, or makes it at the first start. `credentials` is the service manager's folder of
    /// them. The token is asked only if no box key opens the vault; then this waits for it.
    ///
    /// # Errors
    /// [`Error`] says what to do. Nothing was changed.
    pub fn open(
        data_dir: &Path,
        credentials: Option<&Path>,
        token: Option<&dyn Token>,
    ) -> Result<Self, Error> {
        let path = data_dir.join("vault");
        let mut keys = BoxKeys::find(data_dir, credentials)?;
        let read = files::read(&path, VAULT_BYTES_MAX).map_err(files::failed("read", &path))?;
        let Some(stored) = read else {
            if data_dir.join("sallyport.db").exists() {
                return Err(Error::Missing { path });
            }
            return Self::found(path, &mut keys);
        };
        let content = Content::parse(&stored, &path)?;
        let (data_key, opened_by) = match keys.open(&content, &path)? {
            Some((data_key, holder)) => (data_key, Some(holder)),
            None => (recover(&content, token, &keys, &path)?, None),
        };
        content.check(&data_key, &path)?;
        let holder = keys.preferred();
        let vault = Self { path, data_key, holder, content: Mutex::new(content) };
        if opened_by != Some(holder) {
            vault.seal_to(&mut keys)?;
        }
        Ok(vault)
    }

    fn found(path: PathBuf, keys: &mut BoxKeys) -> Result<Self, Error> {
        let data_key = Secret32::random().map_err(Error::Seal)?;
        let mut content = Content::new(&data_key, keys.preferred_key()?).map_err(Error::Seal)?;
        for name in Name::KEYS {
            let secret = Secret32::random().map_err(Error::Seal)?;
            content.put(&data_key, name, secret.expose()).map_err(Error::Seal)?;
        }
        content.write(&path)?;
        let holder = keys.preferred();
        Ok(Self { path, data_key, holder, content: Mutex::new(content) })
    }

    /// Seals the data key with the box key that the next start finds first; makes one if there is none.
    fn seal_to(&self, keys: &mut BoxKeys) -> Result<(), Error> {
        let key = keys.preferred_key()?;
        self.change(|content| content.seal_to(&self.data_key, key).map_err(Error::Seal))?;
        if self.holder == BoxKeyPlace::Credential {
            files::remove(&keys.path).map_err(files::failed("remove", &keys.path))?;
        }
        log::warn!(path:% = self.path.display(); "the vault is sealed with another box key than before");
        Ok(())
    }

    /// Where its box key is.
    pub fn holder(&self) -> BoxKeyPlace {
        self.holder
    }

    /// The token's key that opens it when the box key is lost.
    pub fn wrapped_by(&self) -> Option<KeyName> {
        self.lock().token.as_ref().map(|wrapped| wrapped.key.clone())
    }

    /// How it is kept.
    pub fn status(&self) -> VaultStatus {
        let token_key = self.wrapped_by().map(|key| key.to_string());
        VaultStatus { box_key: self.holder, token_key }
    }

    /// A copy of the vault for a backup, and the box key that opens it: it was made for the copy, so that the box's own never leaves the box. Key and copy
    /// belong into something that is encrypted.
    ///
    /// # Errors
    /// If the operating system has no randomness.
    pub fn copy(&self) -> Result<(Secret32, Zeroizing<Vec<u8>>), Error> {
        let key = Secret32::random().map_err(Error::Seal)?;
        let mut content = self.lock().clone();
        content.seal_to(&self.data_key, &key).map_err(Error::Seal)?;
        Ok((key, Zeroizing::new(content.to_json(&self.path)?)))
    }

    /// A key that was made with the vault.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not there.
    pub fn key(&self, name: Name) -> Result<Secret32, Error> {
        let secret = self.get(name)?;
        let secret = secret.as_ref().and_then(|secret| Secret32::from_slice(secret));
        secret.ok_or_else(|| Error::Damaged { path: self.path.clone() })
    }

    /// A secret, if it is there.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it does not open.
    pub fn get(&self, name: Name) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let content = self.lock();
        let Some(sealed) = content.secrets.get(&name) else { return Ok(None) };
        let secret = unseal(&self.data_key, &aad(name.as_str()), sealed.as_bytes());
        secret.map(Some).map_err(|_| Error::Damaged { path: self.path.clone() })
    }

    /// Keeps a secret in place of the one before.
    ///
    /// # Errors
    /// If the file cannot be written; then the one before is still there.
    pub fn put(&self, name: Name, secret: &[u8]) -> Result<(), Error> {
        self.change(|content| content.put(&self.data_key, name, secret).map_err(Error::Seal))
    }

    /// Has the token wrap the data key, unless a key that is still in it has done so. `true` if it was done now.
    ///
    /// # Errors
    /// If the token cannot wrap or does not answer.
    pub fn wrap_with(&self, token: &dyn Token) -> Result<bool, Error> {
        let mut keys = token.keys().map_err(Error::Wrap)?;
        keys.retain(|key| key.role() == KeyRole::Storage);
        if self.wrapped_by().is_some_and(|key| keys.contains(&key)) {
            return Ok(false);
        }
        let key = match keys.into_iter().next() {
            Some(key) => key,
            None => {
                let kind = token.caps().kind_for(KeyRole::Storage).ok_or(Error::CannotWrap)?;
                token.generate(KeyRole::Storage, kind).map_err(Error::Wrap)?
            }
        };
        let sealed = token.wrap(&key, &self.data_key, &aad("data-key")).map_err(Error::Wrap)?;
        let again = token.unwrap(&key, &sealed, &aad("data-key")).map_err(Error::Wrap)?;
        if again.expose() != self.data_key.expose() {
            return Err(Error::Wrap(sallyport_hsm::Error::Damaged));
        }
        self.change(|content| {
            content.token = Some(Wrapped { key: key.clone(), sealed: Base64::new(sealed) });
            Ok(())
        })?;
        Ok(true)
    }

    /// Changes the file, and then what is in memory.
    fn change(&self, act: impl FnOnce(&mut Content) -> Result<(), Error>) -> Result<(), Error> {
        let mut content = self.lock();
        let mut changed = content.clone();
        act(&mut changed)?;
        changed.write(&self.path)?;
        *content = changed;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The box keys that a start finds.
struct BoxKeys {
    credential: Option<Secret32>,
    file: Option<Secret32>,
    path: PathBuf,
}

impl BoxKeys {
    fn find(data_dir: &Path, credentials: Option<&Path>) -> Result<Self, Error> {
        let path = data_dir.join("box.key");
        let credential = match credentials {
            Some(folder) => read_key(&folder.join(BOX_KEY_CREDENTIAL))?,
            None => None,
        };
        Ok(Self { credential, file: read_key(&path)?, path })
    }

    fn open(
        &self,
        content: &Content,
        path: &Path,
    ) -> Result<Option<(Secret32, BoxKeyPlace)>, Error> {
        let keys = [(&self.credential, BoxKeyPlace::Credential), (&self.file, BoxKeyPlace::File)];
        for (key, holder) in keys {
            let Some(key) = key else { continue };
            if let Some(data_key) = content.open_with(key, path)? {
                return Ok(Some((data_key, holder)));
            }
        }
        Ok(None)
    }

    fn preferred(&self) -> BoxKeyPlace {
        if self.credential.is_some() { BoxKeyPlace::Credential } else { BoxKeyPlace::File }
    }

    /// The key to seal with; made in its file if there is none.
    fn preferred_key(&mut self) -> Result<&Secret32, Error> {
        if let Some(key) = &self.credential {
            return Ok(key);
        }
        if self.file.is_none() {
            let key = Secret32::random().map_err(Error::Seal)?;
            files::replace(&self.path, key.expose(), Readers::None)
                .map_err(files::failed("write", &self.path))?;
            self.file = Some(key);
        }
        self.file.as_ref().ok_or_else(|| Error::NoKey { path: self.path.clone() })
    }

    /// What was tried in vain.
    fn tried(&self) -> String {
        let file = self.path.display();
        match (&self.credential, &self.file) {
            (None, None) => format!(
                "there is no box key, neither the credential {BOX_KEY_CREDENTIAL} nor {file}"
            ),
            (Some(_), None) => {
                format!("the credential {BOX_KEY_CREDENTIAL} is the key of another vault")
            }
            (None, Some(_)) => format!("{file} is the key of another vault"),
            (Some(_), Some(_)) => {
                format!("the credential {BOX_KEY_CREDENTIAL} and {file} are keys of other vaults")
            }
        }
    }
}

fn read_key(path: &Path) -> Result<Option<Secret32>, Error> {
    let read = files::read(path, Secret32::BYTES);
    let no_key = || Error::NoKey { path: path.to_owned() };
    match read {
        Ok(None) => Ok(None),
        Ok(Some(key)) => Secret32::from_slice(&key).ok_or_else(no_key).map(Some),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(no_key()),
        Err(error) => Err(files::failed("read", path)(error).into()),
    }
}

/// The data key from the token, for a box whose own key is gone.
fn recover(
    content: &Content,
    token: Option<&dyn Token>,
    keys: &BoxKeys,
    path: &Path,
) -> Result<Secret32, Error> {
    let closed = |fix| Error::Closed { path: path.to_owned(), why: keys.tried(), fix };
    let Some(Wrapped { key, sealed }) = &content.token else {
        let fix = "put the right key back from a backup: no token can open this vault";
        return Err(closed(fix.to_owned()));
    };
    let connect = format!("put the right key back, or start with the token that has {key}");
    let Some(token) = token else { return Err(closed(connect)) };
    log::warn!(key:% = key; "no box key opens the vault: waiting for the token");
    if let Err(why) = wait_until_ready(token) {
        return Err(closed(format!("{connect} ({why})")));
    }
    token.unwrap(key, sealed.as_bytes(), &aad("data-key")).map_err(|source| Error::Token {
        path: path.to_owned(),
        key: key.clone(),
        source,
    })
}

fn wait_until_ready(token: &dyn Token) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let why = match token.health() {
            Health::Ready => return Ok(()),
            Health::Locked { why } => return Err(why),
            Health::Absent { why, .. } => why,
            Health::Starting => "it does not answer".to_owned(),
        };
        if began.elapsed() > RECOVERY_PATIENCE {
            return Err(why);
        }
        thread::sleep(RECOVERY_LOOK);
    }
}

#[cfg(test)]
mod tests;
