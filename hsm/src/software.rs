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

use sallyport_core::sign::{Policy, PublicKey, Signature, SigningRequest, verify};

use crate::{
    Caps, Error, Health, KeyKind, KeyName, KeyRole, Mode, P256_POINT_BYTES, Pin, Secret32, Token,
    keypair, private_file,
    wrapped::{self, Capsule, Method},
};

mod backup;
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

struct Key {
    kind: KeyKind,
    secret: Secret32,
    /// Of a key pair.
    public: Option<PublicKey>,
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

    fn with_storage<T>(
        &self,
        name: &KeyName,
        act: impl Fn(&Key) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if !name.role().wraps() {
            return Err(Error::WrongRole { key: name.clone(), needed: KeyRole::Storage });
        }
        self.with(name, act)
    }

    /// Changes the file and then what is in memory, under a lock that other processes respect.
    fn change<T>(
        &self,
        act: impl FnOnce(&Secret32, &mut KeyFile) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.as_mut().ok_or_else(locked)?;
        let _lock = private_file::lock(&self.path)?;
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
        Caps {
            ed25519: true,
            p256_sign: true,
            p256_agree: true,
            wrap: true,
            rsa_decrypt: false,
            x25519: false,
        }
    }

    fn mode(&self) -> Option<Mode> {
        Some(Mode::Software)
    }

    fn custody(&self, _key: &KeyName) -> Result<Mode, Error> {
        Ok(Mode::Software)
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

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        if !key.role().agrees() {
            let needed = KeyRole::CourierEncryption;
            return Err(Error::WrongRole { key: key.clone(), needed });
        }
        self.with(key, |secret| {
            let shared = keypair::agree(secret.secret.expose(), peer)?;
            shared.ok_or_else(|| Error::NoSuchKey(key.clone()))
        })
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        if !kind.suits(role) {
            return Err(Error::WrongKind { role, kind });
        }
        if kind == KeyKind::Rsa2048 {
            return Err(Error::Unsupported("RSA".to_owned()));
        }
        let mut id = [0; KeyName::ID_BYTES];
        getrandom::fill(&mut id).map_err(Error::Random)?;
        let name = KeyName::new(role, id);
        let secret = kind.algorithm().map_or_else(Secret32::random, keypair::fresh)?;
        self.change(|master, stored| stored.add(master, &name, kind, &secret))?;
        Ok(name)
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        self.change(|_master, stored| stored.remove(key))
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        self.with_storage(key, |storage| match &storage.public {
            None => wrapped::seal(key, &storage.secret, &Capsule::PLAIN, secret, aad),
            Some(public) => {
                let (fresh, capsule) = Capsule::to_p256(public)?;
                wrapped::seal(key, &fresh, &capsule, secret, aad)
            }
        })
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        self.with_storage(key, |storage| {
            wrapped::open(key, wrapped, aad, |capsule| storage.unwrap(&capsule))
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
        let key = Key::new(kind, secret);
        let key = key.ok_or_else(|| Error::FileFormat { path: path.to_owned() })?;
        keys.insert(name, key);
    }
    Ok(keys)
}

impl Key {
    fn new(kind: KeyKind, secret: Secret32) -> Option<Self> {
        let public = match kind {
            KeyKind::Aes256 => None,
            KeyKind::Ed25519 | KeyKind::P256 | KeyKind::Rsa2048 => {
                Some(keypair::public_key(kind.algorithm()?, &secret)?)
            }
        };
        Some(Self { kind, secret, public })
    }

    fn public_key(&self, name: &KeyName) -> Result<PublicKey, Error> {
        self.public.clone().ok_or_else(|| Error::NoSuchKey(name.clone()))
    }

    fn sign(&self, bytes: &[u8], name: &KeyName) -> Result<Signature, Error> {
        let algorithm = self.kind.algorithm();
        algorithm
            .and_then(|algorithm| keypair::sign(algorithm, self.secret.expose(), bytes))
            .ok_or_else(|| Error::NoSuchKey(name.clone()))
    }

    /// The key in a capsule, as a token would find it.
    fn unwrap(&self, capsule: &Capsule) -> Result<Secret32, Error> {
        match (capsule.method, &self.public) {
            (Method::Plain, None) => Ok(Secret32::new(self.secret.expose())),
            (Method::EcdhP256, Some(public)) => {
                let point =
                    capsule.bytes.as_slice().try_into().map_err(|_length| Error::Damaged)?;
                // A point off the curve was damaged.
                let shared = keypair::agree(self.secret.expose(), point).ok().flatten();
                wrapped::p256_key(&shared.ok_or(Error::Damaged)?, point, public.as_bytes())
            }
            _ => Err(Error::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiped::leaks;

    #[test]
    fn keys_leave_nothing_in_the_heap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let policy = Policy { server_name: "alpha.example".try_into().unwrap() };
        let open = || SoftwareToken::open_or_create(&path, Duration::ZERO, policy.clone()).unwrap();
        let token = open();
        let kinds = [
            (KeyRole::Event, KeyKind::Ed25519),
            (KeyRole::CourierEncryption, KeyKind::P256),
            (KeyRole::Storage, KeyKind::Aes256),
            (KeyRole::Storage, KeyKind::P256),
        ];
        let names = kinds.map(|(role, kind)| token.generate(role, kind).unwrap());
        let mut secrets = Vec::new();
        {
            let opened = token.opened.read().unwrap();
            let opened = opened.as_ref().unwrap();
            secrets.push(*opened.master.expose());
            secrets.extend(names.each_ref().map(|name| *opened.keys[name].secret.expose()));
        }
        drop(token);
        let json = r#"{"method":"GET","uri":"/_matrix/x","origin":"alpha.example","destination":"bravo.example"}"#;
        let request = SigningRequest::XMatrix { json: json.to_owned() };
        let point = keypair::public_key(p256(), &keypair::fresh(p256()).unwrap()).unwrap();
        let kept = Secret32::random().unwrap();
        let a_day = || {
            let token = open();
            token.sign(&names[0], &request).unwrap();
            token.agree(&names[1], point.as_bytes().try_into().unwrap()).unwrap();
            for storage in &names[2..] {
                let wrapped = token.wrap(storage, &kept, b"test").unwrap();
                token.unwrap(storage, &wrapped, b"test").unwrap();
            }
            token.keys().unwrap();
        };
        for secret in &secrets {
            assert_eq!(leaks(secret, a_day), 0);
        }
        assert_eq!(leaks(kept.expose(), a_day), 0);
    }

    fn p256() -> sallyport_core::sign::Algorithm {
        sallyport_core::sign::Algorithm::P256
    }
}
