//! The software token: keys in an encrypted file, for development, benchmarks and ceremonies without hardware.
//!
//! It has the same rules as a real token (roles, typed requests, verified signatures) but its keys can be copied by whoever
//! reads the file and its key, or the memory of the process.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
    thread,
    time::Duration,
};

use ed25519_dalek::Signer as _;
use sallyport_core::sign::{Algorithm, Policy, PublicKey, Signature, SigningRequest, verify};

use crate::{
    Caps, Error, Health, KeyKind, KeyName, KeyRole, P256_POINT_BYTES, Pin, Secret32, Token, seal,
};

mod file;

use file::{KeyFile, Protection};

/// Keys in an encrypted file.
pub struct SoftwareToken {
    path: PathBuf,
    policy: Policy,
    delay: Duration,
    /// Held while a delayed signature is made: a real token makes one at a time.
    device: Mutex<()>,
    opened: RwLock<Option<Opened>>,
}

/// What is known once the file could be decrypted.
struct Opened {
    master: Secret32,
    keys: BTreeMap<KeyName, Key>,
}

enum Key {
    Ed25519(ed25519_dalek::SigningKey),
    P256(p256::SecretKey),
    Aes256(Secret32),
}

const NEEDS_PIN: &str = "the key file is protected by a PIN: give it by hand";

fn locked() -> Error {
    Error::Locked { why: NEEDS_PIN.to_owned() }
}

impl SoftwareToken {
    /// Opens the key file, or makes an empty one with a random key in a file beside it (`<path>.key`, mode 600).
    ///
    /// A file that is protected by a PIN is opened locked. `delay` is what each signature takes at least.
    pub fn open_or_create(path: &Path, delay: Duration, policy: Policy) -> Result<Self, Error> {
        if !path.exists() {
            log::warn!(path:% = path.display(); "making a new key file for software keys");
            file::create(path, None)?;
        }
        Self::open(path, delay, policy)
    }

    /// Makes a key file that a PIN protects (argon2id), and opens it.
    pub fn create_with_pin(path: &Path, pin: &Pin, policy: Policy) -> Result<Self, Error> {
        file::create(path, Some(pin))?;
        let token = Self::open(path, Duration::ZERO, policy)?;
        token.reopen(pin.clone())?;
        Ok(token)
    }

    fn open(path: &Path, delay: Duration, policy: Policy) -> Result<Self, Error> {
        let stored = KeyFile::read(path)?;
        let opened = match &stored.protection {
            Protection::File => Some(Opened::new(path, file::read_master(path)?, &stored)?),
            Protection::Argon2id(_) => None,
        };
        Ok(Self {
            path: path.to_owned(),
            policy,
            delay,
            device: Mutex::new(()),
            opened: RwLock::new(opened),
        })
    }

    /// Does something with a key. A name that is not known is looked for in the file once more: another process, such as
    /// a ceremony, may have made it.
    fn with<T>(&self, name: &KeyName, act: impl Fn(&Key) -> Result<T, Error>) -> Result<T, Error> {
        {
            let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(key) = opened.as_ref().ok_or_else(locked)?.keys.get(name) {
                return act(key);
            }
        }
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.as_mut().ok_or_else(locked)?;
        opened.reload(&self.path)?;
        act(opened.keys.get(name).ok_or_else(|| Error::NoSuchKey(name.clone()))?)
    }

    /// Changes the file and then what is in memory, under a lock that other processes respect.
    fn change<T>(
        &self,
        act: impl FnOnce(&Secret32, &mut KeyFile) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.as_mut().ok_or_else(locked)?;
        let _lock = file::lock(&self.path)?;
        let mut stored = KeyFile::read(&self.path)?;
        let result = act(&opened.master, &mut stored)?;
        stored.write(&self.path)?;
        opened.reload(&self.path)?;
        Ok(result)
    }
}

impl Token for SoftwareToken {
    fn health(&self) -> Health {
        match *self.opened.read().unwrap_or_else(PoisonError::into_inner) {
            Some(_) => Health::Ready,
            None => Health::Locked { why: NEEDS_PIN.to_owned() },
        }
    }

    fn caps(&self) -> Caps {
        Caps { ed25519: true, p256_sign: true, p256_agree: true, wrap: true }
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.as_mut().ok_or_else(locked)?;
        opened.reload(&self.path)?;
        Ok(opened.keys.keys().cloned().collect())
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        self.with(key, |secret| secret.public_key(key))
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
        if key.role() != request.role() {
            return Err(Error::WrongRole { key: key.clone(), needed: request.role() });
        }
        let bytes = request.bytes_to_sign(&self.policy).map_err(Error::Refused)?;
        if !self.delay.is_zero() {
            let _one_at_a_time = self.device.lock().unwrap_or_else(PoisonError::into_inner);
            thread::sleep(self.delay);
        }
        self.with(key, |secret| {
            let signature = secret.sign(&bytes, key)?;
            verify(&secret.public_key(key)?, &bytes, &signature)
                .map_err(|_mismatch| Error::BadSignature(key.clone()))?;
            Ok(signature)
        })
    }

    fn sign_many(
        &self,
        key: &KeyName,
        requests: &[SigningRequest],
    ) -> Vec<Result<Signature, Error>> {
        requests.iter().map(|request| self.sign(key, request)).collect()
    }

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        if key.role() != KeyRole::CourierEncryption {
            let needed = KeyRole::CourierEncryption;
            return Err(Error::WrongRole { key: key.clone(), needed });
        }
        let peer = p256::PublicKey::from_sec1_bytes(peer).map_err(|_off| Error::InvalidPeer)?;
        self.with(key, |secret| match secret {
            Key::P256(secret) => {
                let shared = secret.diffie_hellman(&peer);
                Ok(Secret32::new(shared.raw_secret_bytes().as_ref()))
            }
            Key::Ed25519(_) | Key::Aes256(_) => Err(Error::NoSuchKey(key.clone())),
        })
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        if !kind.suits(role) {
            return Err(Error::WrongKind { role, kind });
        }
        let mut id = [0; KeyName::ID_BYTES];
        getrandom::fill(&mut id).map_err(Error::Random)?;
        let name = KeyName::new(role, id);
        let mut secret = Secret32::random()?;
        // All but about one of 2^32 numbers is a scalar of P-256.
        while kind == KeyKind::P256 && p256::SecretKey::from_slice(secret.expose()).is_err() {
            secret = Secret32::random()?;
        }
        self.change(|master, stored| stored.add(master, &name, kind, &secret))?;
        Ok(name)
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        self.change(|_master, stored| stored.remove(key))
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        self.with(key, |kek| seal::seal(kek.aes(key)?, &seal::wrap_aad(key, aad), secret.expose()))
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        self.with(key, |kek| {
            let secret = seal::unseal(kek.aes(key)?, &seal::wrap_aad(key, aad), wrapped)?;
            Secret32::from_slice(&secret).ok_or(Error::Damaged)
        })
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        let stored = KeyFile::read(&self.path)?;
        let master = match &stored.protection {
            Protection::File => file::read_master(&self.path)?,
            Protection::Argon2id(argon2id) => argon2id.master(&self.path, &pin)?,
        };
        let opened = Opened::new(&self.path, master, &stored)?;
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        Ok(())
    }
}

impl Opened {
    fn new(path: &Path, master: Secret32, stored: &KeyFile) -> Result<Self, Error> {
        let keys = load(path, &master, stored)?;
        Ok(Self { master, keys })
    }

    fn reload(&mut self, path: &Path) -> Result<(), Error> {
        self.keys = load(path, &self.master, &KeyFile::read(path)?)?;
        Ok(())
    }
}

fn load(path: &Path, master: &Secret32, stored: &KeyFile) -> Result<BTreeMap<KeyName, Key>, Error> {
    let mut keys = BTreeMap::new();
    for (name, kind, secret) in stored.open(path, master)? {
        let key =
            Key::new(kind, &secret).ok_or_else(|| Error::FileFormat { path: path.to_owned() })?;
        keys.insert(name, key);
    }
    Ok(keys)
}

impl Key {
    fn new(kind: KeyKind, secret: &Secret32) -> Option<Self> {
        Some(match kind {
            KeyKind::Ed25519 => {
                Self::Ed25519(ed25519_dalek::SigningKey::from_bytes(secret.expose()))
            }
            KeyKind::P256 => Self::P256(p256::SecretKey::from_slice(secret.expose()).ok()?),
            KeyKind::Aes256 => Self::Aes256(Secret32::new(secret.expose())),
        })
    }

    fn public_key(&self, name: &KeyName) -> Result<PublicKey, Error> {
        let key = match self {
            Self::Ed25519(key) => {
                PublicKey::new(Algorithm::Ed25519, key.verifying_key().as_bytes())
            }
            Self::P256(key) => PublicKey::new(Algorithm::P256, &key.public_key().to_sec1_bytes()),
            Self::Aes256(_) => return Err(Error::NoSuchKey(name.clone())),
        };
        key.map_err(|_invalid| Error::NoSuchKey(name.clone()))
    }

    fn sign(&self, bytes: &[u8], name: &KeyName) -> Result<Signature, Error> {
        match self {
            Self::Ed25519(key) => Ok(key.sign(bytes).to_bytes().into()),
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature =
                    p256::ecdsa::SigningKey::from(key).sign(bytes);
                let bytes: [u8; Signature::BYTES] = signature.to_bytes().into();
                Ok(bytes.into())
            }
            Self::Aes256(_) => Err(Error::NoSuchKey(name.clone())),
        }
    }

    fn aes(&self, name: &KeyName) -> Result<&Secret32, Error> {
        match self {
            Self::Aes256(key) => Ok(key),
            Self::Ed25519(_) | Self::P256(_) => {
                Err(Error::WrongRole { key: name.clone(), needed: KeyRole::Storage })
            }
        }
    }
}
