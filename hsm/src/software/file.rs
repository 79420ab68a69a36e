//! The key file of the software token: JSON, each key sealed on its own, rewritten atomically.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    Error, KeyKind, KeyName, Pin, Secret32,
    private_file::{beside, lock, read_private, write_atomically},
    seal,
};

/// Bytes of a key file: thousands of keys.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Version of the format.
const VERSION: u32 = 1;

/// The whole file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyFile {
    version: u32,
    pub(super) protection: Protection,
    keys: Vec<SealedKey>,
}

/// Where the master key comes from under which the keys are sealed.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kdf", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Protection {
    /// 32 random bytes in the file `<path>.key`. Costs nothing at the start of a box.
    File,
    /// A PIN.
    Argon2id(Argon2id),
}

/// Cost and salt of the key derivation (RFC 9106), and the master key sealed under what it gives.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Argon2id {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    master: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedKey {
    name: KeyName,
    kind: KeyKind,
    sealed: String,
}

/// Makes an empty key file; with a PIN, or with a random key in the file beside it.
pub(super) fn create(path: &Path, pin: Option<&Pin>) -> Result<(), Error> {
    let _lock = lock(path)?;
    if path.exists() {
        return Err(Error::FileExists { path: path.to_owned() });
    }
    let protection = match pin {
        Some(pin) => Protection::Argon2id(Argon2id::new(path, pin)?),
        None => {
            write_atomically(&master_path(path), Secret32::random()?.expose())?;
            Protection::File
        }
    };
    KeyFile { version: VERSION, protection, keys: Vec::new() }.write(path)
}

/// Reads the master key of a file with [`Protection::File`] from the file beside it.
pub(super) fn read_master(path: &Path) -> Result<Secret32, Error> {
    let path = master_path(path);
    let bytes = read_private(&path, Secret32::BYTES as u64)?;
    Secret32::from_slice(&bytes).ok_or(Error::FileFormat { path })
}

impl KeyFile {
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let text = read_private(path, FILE_BYTES_MAX)?;
        let invalid = || Error::FileFormat { path: path.to_owned() };
        let file: Self = serde_json::from_slice(&text).map_err(|_invalid| invalid())?;
        if file.version == VERSION { Ok(file) } else { Err(invalid()) }
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|_unserialisable| Error::FileFormat { path: path.to_owned() })?;
        text.push(b'\n');
        write_atomically(path, &text)
    }

    /// Decrypts all keys.
    pub(super) fn open(
        &self,
        path: &Path,
        master: &Secret32,
    ) -> Result<Vec<(KeyName, KeyKind, Secret32)>, Error> {
        let invalid = || Error::FileFormat { path: path.to_owned() };
        let open_one = |key: &SealedKey| {
            let sealed = STANDARD.decode(&key.sealed).map_err(|_invalid| invalid())?;
            let secret = seal::unseal(master, &aad(&key.name, key.kind), &sealed)
                .map_err(|_damaged| invalid())?;
            let secret = Secret32::from_slice(&secret).ok_or_else(invalid)?;
            if !key.kind.suits(key.name.role()) {
                return Err(invalid());
            }
            Ok((key.name.clone(), key.kind, secret))
        };
        self.keys.iter().map(open_one).collect()
    }

    pub(super) fn add(
        &mut self,
        master: &Secret32,
        name: &KeyName,
        kind: KeyKind,
        secret: &Secret32,
    ) -> Result<(), Error> {
        let sealed = seal::seal(master, &aad(name, kind), secret.expose())?;
        self.keys.push(SealedKey { name: name.clone(), kind, sealed: STANDARD.encode(sealed) });
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &KeyName) -> Result<(), Error> {
        let before = self.keys.len();
        self.keys.retain(|key| key.name != *name);
        if self.keys.len() == before {
            return Err(Error::NoSuchKey(name.clone()));
        }
        Ok(())
    }
}

impl Argon2id {
    /// Second recommended choice of RFC 9106: 64 MiB, 3 passes, 4 lanes.
    fn new(path: &Path, pin: &Pin) -> Result<Self, Error> {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(Error::Random)?;
        let mut new = Self {
            memory_kib: 64 * 1024,
            passes: 3,
            lanes: 4,
            salt: STANDARD.encode(salt),
            master: String::new(),
        };
        let key = new.derive(path, pin)?;
        new.master = STANDARD.encode(seal::seal(&key, MASTER_AAD, Secret32::random()?.expose())?);
        Ok(new)
    }

    /// The master key, if the PIN is right.
    pub(super) fn master(&self, path: &Path, pin: &Pin) -> Result<Secret32, Error> {
        let invalid = || Error::FileFormat { path: path.to_owned() };
        let sealed = STANDARD.decode(&self.master).map_err(|_invalid| invalid())?;
        let master = seal::unseal(&self.derive(path, pin)?, MASTER_AAD, &sealed)
            .map_err(|_damaged| Error::PinIncorrect)?;
        Secret32::from_slice(&master).ok_or_else(invalid)
    }

    fn derive(&self, path: &Path, pin: &Pin) -> Result<Secret32, Error> {
        let invalid = || Error::FileFormat { path: path.to_owned() };
        let bounded = self.memory_kib <= 1024 * 1024 && self.passes <= 16 && self.lanes <= 16;
        let params = argon2::Params::new(self.memory_kib, self.passes, self.lanes, None)
            .ok()
            .filter(|_| bounded)
            .ok_or_else(invalid)?;
        let salt = STANDARD.decode(&self.salt).map_err(|_invalid| invalid())?;
        let mut key = Zeroizing::new([0; Secret32::BYTES]);
        argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(pin.expose().as_bytes(), &salt, key.as_mut_slice())
            .map_err(|_invalid| invalid())?;
        Ok(Secret32::new(&key))
    }
}

const MASTER_AAD: &[u8] = b"sallyport/software-token/1|master";

fn aad(name: &KeyName, kind: KeyKind) -> Vec<u8> {
    format!("sallyport/software-token/1|{name}|{kind}").into_bytes()
}

fn master_path(path: &Path) -> PathBuf {
    beside(path, ".key")
}
