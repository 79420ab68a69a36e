//! The PKCS#11 backend: one thread owns the module and the one logged-in session, everybody else queues.
//!
//! Facts that shape it, measured or from the standard (PKCS#11 3.0): login is per process and token, not per session; handles
//! die with the login and their numbers are used again for other keys; a call cannot be aborted; a removed token comes back
//! in another slot. Hence keys are found by label and `CKA_ID`, the token by label and serial number, each signature is
//! verified before it is given out, and a thread that hangs is left behind.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sallyport_core::sign::{Algorithm, Policy, PublicKey, Signature, SigningRequest, verify};

use crate::{
    Caps, Error, Health, KeyKind, KeyName, KeyRole, P256_POINT_BYTES, Pin, Secret32, Token, seal,
};

mod codes;
mod connection;
mod init;
mod module;
mod probe;
mod reopen;
mod worker;

use connection::Connection;
pub use init::init_token;
use worker::{Pending, Retry, Workers};

/// Signatures of a batch that wait in the queue at once: enough that the token never waits for us.
const BATCH_WINDOW: usize = 4;

/// A token behind a PKCS#11 module.
pub struct Pkcs11Token {
    policy: Policy,
    known: Arc<Known>,
    workers: Workers,
}

/// What a token is reached by.
struct Settings {
    module: std::path::PathBuf,
    label: String,
    timeout: Duration,
}

/// What outlives sessions and threads.
struct Known {
    health: Mutex<Health>,
    caps: Mutex<Caps>,
    pin: Mutex<PinSource>,
    /// Serial number of the token that was opened first.
    serial: Mutex<Option<String>>,
    /// Public keys as they were read first: what every later signature is held against.
    public_keys: Mutex<BTreeMap<KeyName, PublicKey>>,
}

#[derive(Clone)]
enum PinSource {
    File(std::path::PathBuf),
    Given(Pin),
}

/// A signature that the token is still making.
struct InFlight {
    bytes: Arc<Vec<u8>>,
    public: PublicKey,
    pending: Pending<Signature>,
}

impl Pkcs11Token {
    /// Starts to open a token and returns at once; [`Token::health`] tells what came of it.
    pub fn start(
        module: &Path,
        token_label: &str,
        pin_file: &Path,
        timeout: Duration,
        policy: Policy,
    ) -> Result<Self, Error> {
        let settings =
            Settings { module: module.to_owned(), label: token_label.to_owned(), timeout };
        let known = Arc::new(Known {
            health: Mutex::new(Health::Starting),
            caps: Mutex::default(),
            pin: Mutex::new(PinSource::File(pin_file.to_owned())),
            serial: Mutex::default(),
            public_keys: Mutex::default(),
        });
        let workers = Workers::start(Arc::new(settings), Arc::clone(&known))?;
        Ok(Self { policy, known, workers })
    }

    fn begin(&self, key: &KeyName, request: &SigningRequest) -> Result<InFlight, Error> {
        if key.role() != request.role() {
            return Err(Error::WrongRole { key: key.clone(), needed: request.role() });
        }
        let bytes = Arc::new(request.bytes_to_sign(&self.policy).map_err(Error::Refused)?);
        let public = self.public_key(key)?;
        let pending = self.submit_signature(key, &bytes, public.algorithm(), false)?;
        Ok(InFlight { bytes, public, pending })
    }

    /// A signature that does not verify is asked for once more with handles that were looked up anew: the old one may have
    /// come to mean another key.
    fn finish(&self, key: &KeyName, in_flight: InFlight) -> Result<Signature, Error> {
        let InFlight { bytes, public, pending } = in_flight;
        let signature = self.workers.wait(pending)?;
        if verify(&public, &bytes, &signature).is_ok() {
            return Ok(signature);
        }
        log::error!(key:%; "the token gave a wrong signature, asking once more");
        let again = self.submit_signature(key, &bytes, public.algorithm(), true)?;
        let signature = self.workers.wait(again)?;
        verify(&public, &bytes, &signature)
            .map_err(|_mismatch| Error::BadSignature(key.clone()))?;
        Ok(signature)
    }

    fn submit_signature(
        &self,
        key: &KeyName,
        bytes: &Arc<Vec<u8>>,
        algorithm: Algorithm,
        anew: bool,
    ) -> Result<Pending<Signature>, Error> {
        let (key, bytes) = (key.clone(), Arc::clone(bytes));
        self.workers.submit(Retry::Once, move |connection| {
            if anew {
                connection.forget_handles();
            }
            connection.sign(&key, algorithm, &bytes)
        })
    }

    fn call<T: Send + 'static>(
        &self,
        retry: Retry,
        act: impl FnMut(&mut Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.workers.wait(self.workers.submit(retry, act)?)
    }
}

impl Token for Pkcs11Token {
    fn health(&self) -> Health {
        self.workers.health()
    }

    fn caps(&self) -> Caps {
        *lock(&self.known.caps)
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        self.call(Retry::Once, |connection| connection.keys())
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        if let Some(public) = lock(&self.known.public_keys).get(key) {
            return Ok(public.clone());
        }
        let name = key.clone();
        let public = self.call(Retry::Once, move |connection| connection.public_key(&name))?;
        Ok(lock(&self.known.public_keys).entry(key.clone()).or_insert(public).clone())
    }

    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error> {
        self.finish(key, self.begin(key, request)?)
    }

    fn sign_many(
        &self,
        key: &KeyName,
        requests: &[SigningRequest],
    ) -> Vec<Result<Signature, Error>> {
        let finish = |begun: Result<InFlight, Error>| self.finish(key, begun?);
        let mut answers = Vec::with_capacity(requests.len());
        let mut window = VecDeque::with_capacity(BATCH_WINDOW);
        for request in requests {
            if window.len() == BATCH_WINDOW {
                answers.extend(window.pop_front().map(finish));
            }
            window.push_back(self.begin(key, request));
        }
        answers.extend(window.into_iter().map(finish));
        answers
    }

    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error> {
        if key.role() != KeyRole::CourierEncryption {
            let needed = KeyRole::CourierEncryption;
            return Err(Error::WrongRole { key: key.clone(), needed });
        }
        // Tokens differ in whether they check the point; one off the curve would leak the key bit by bit.
        PublicKey::new(Algorithm::P256, peer).map_err(|_off_curve| Error::InvalidPeer)?;
        let (key, peer) = (key.clone(), *peer);
        self.call(Retry::Once, move |connection| connection.agree(&key, &peer))
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        if !kind.suits(role) {
            return Err(Error::WrongKind { role, kind });
        }
        let mut id = [0; KeyName::ID_BYTES];
        getrandom::fill(&mut id).map_err(Error::Random)?;
        let name = KeyName::new(role, id);
        let made = name.clone();
        self.call(Retry::Never, move |connection| connection.generate(&made, kind))?;
        Ok(name)
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        let name = key.clone();
        self.call(Retry::Never, move |connection| connection.destroy(&name))?;
        lock(&self.known.public_keys).remove(key);
        Ok(())
    }

    /// PKCS#11 wraps keys without additional data, so the token wraps a fresh key with AES-KW (RFC 3394) and that key
    /// seals the secret together with `aad`: 40 bytes, then nonce ‖ ciphertext ‖ tag.
    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        require_storage(key)?;
        let fresh = Secret32::random()?;
        let sealed = seal::seal(&fresh, &seal::wrap_aad(key, aad), secret.expose())?;
        let kek = key.clone();
        let mut wrapped =
            self.call(Retry::Once, move |connection| connection.wrap(&kek, &fresh))?;
        wrapped.extend(sealed);
        Ok(wrapped)
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        require_storage(key)?;
        let (wrapped, sealed) =
            wrapped.split_first_chunk::<{ connection::WRAPPED_BYTES }>().ok_or(Error::Damaged)?;
        let (kek, wrapped) = (key.clone(), *wrapped);
        let fresh = self.call(Retry::Once, move |connection| connection.unwrap(&kek, &wrapped))?;
        let secret = seal::unseal(&fresh, &seal::wrap_aad(key, aad), sealed)?;
        Secret32::from_slice(&secret).ok_or(Error::Damaged)
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.workers.reopen(pin)
    }
}

fn require_storage(key: &KeyName) -> Result<(), Error> {
    if key.role() == KeyRole::Storage {
        return Ok(());
    }
    Err(Error::WrongRole { key: key.clone(), needed: KeyRole::Storage })
}

/// What a lock guards here is replaced whole, so a thread that died holding it left nothing half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
