//! A token behind a PKCS#11 module, which is loaded by a process of its own: the helper.
//!
//! Modules are closed programs of vendors: they hang, crash, and read what memory they like. The box never loads one. A thread of the box
//! ([`worker`]) owns the helper and everybody else queues; a request that gets no answer in time ends with the helper being
//! killed and started again. The helper ([`serve`]) owns the module, holds each document against its own policy, and has
//! given up what it does not need ([`harden`]). Signatures are verified on this side, against the public key as it was read
//! first.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sallyport_core::sign::{Policy, PublicKey, Signature, SigningRequest, verify};

use crate::{
    Caps, Error, Health, KeyKind, KeyName, KeyRole, Mode, P256_POINT_BYTES, Pin, Secret32, Token,
    wrapped,
};

mod harden;
mod process;
mod reopen;
mod serve;
mod wire;
mod worker;

pub use process::HelperProgram;
pub use serve::run_helper;
use wire::{Answer, Request};
use worker::{Pending, Retry, Worker};

/// Signatures of a batch that wait in the queue at once: enough that the token never waits for us.
const BATCH_WINDOW: usize = 4;

/// A token behind a PKCS#11 module in another process.
pub struct HelperToken {
    policy: Policy,
    known: Arc<Known>,
    worker: Worker,
}

/// What a token is reached by.
#[derive(Clone, Debug)]
pub struct HelperSettings {
    /// The program that becomes the helper.
    pub program: HelperProgram,
    /// The PKCS#11 module.
    pub module: PathBuf,
    /// Label of the token.
    pub label: String,
    /// File with the PIN.
    pub pin_file: PathBuf,
    /// How long a single operation may take.
    pub timeout: Duration,
    /// Names of environment variables that the module needs.
    pub environment: Vec<String>,
    /// Which server's documents may be signed.
    pub policy: Policy,
}

/// What outlives sessions and helpers.
struct Known {
    health: Mutex<Health>,
    caps: Mutex<Caps>,
    /// Public keys as they were read first: what every later signature is held against.
    public_keys: Mutex<BTreeMap<KeyName, PublicKey>>,
}

/// A signature that the token is still making.
struct InFlight<'a> {
    request: &'a SigningRequest,
    bytes: Vec<u8>,
    public: PublicKey,
    pending: Pending,
}

impl HelperToken {
    /// Starts to open a token and returns at once; [`Token::health`] tells what came of it.
    pub fn start(settings: HelperSettings) -> Result<Self, Error> {
        let policy = settings.policy.clone();
        let known = Arc::new(Known {
            health: Mutex::new(Health::Starting),
            caps: Mutex::default(),
            public_keys: Mutex::default(),
        });
        let worker = Worker::start(settings, Arc::clone(&known))?;
        Ok(Self { policy, known, worker })
    }

    fn begin<'a>(&self, key: &KeyName, request: &'a SigningRequest) -> Result<InFlight<'a>, Error> {
        if key.role() != request.role() {
            return Err(Error::WrongRole { key: key.clone(), needed: request.role() });
        }
        let bytes = request.bytes_to_sign(&self.policy).map_err(Error::Refused)?;
        let public = self.public_key(key)?;
        let pending = self.submit_signature(key, request, false)?;
        Ok(InFlight { request, bytes, public, pending })
    }

    /// A signature that does not verify is asked for once more with handles that were looked up anew: the old one may have
    /// come to mean another key.
    fn finish(&self, key: &KeyName, in_flight: InFlight<'_>) -> Result<Signature, Error> {
        let InFlight { request, bytes, public, pending } = in_flight;
        let signature = signature_of(pending.wait()?)?;
        if verify(&public, &bytes, &signature).is_ok() {
            return Ok(signature);
        }
        log::error!(key:%; "the token gave a wrong signature, asking once more");
        let signature = signature_of(self.submit_signature(key, request, true)?.wait()?)?;
        verify(&public, &bytes, &signature)
            .map_err(|_mismatch| Error::BadSignature(key.clone()))?;
        Ok(signature)
    }

    fn submit_signature(
        &self,
        key: &KeyName,
        request: &SigningRequest,
        anew: bool,
    ) -> Result<Pending, Error> {
        let request = Request::Sign { key: key.clone(), request: request.clone(), anew };
        self.worker.submit(Retry::Once, request)
    }

    fn call(&self, retry: Retry, request: Request) -> Result<Answer, Error> {
        self.worker.submit(retry, request)?.wait()
    }
}

impl Token for HelperToken {
    fn health(&self) -> Health {
        lock(&self.known.health).clone()
    }

    fn caps(&self) -> Caps {
        *lock(&self.known.caps)
    }

    fn mode(&self) -> Option<Mode> {
        (self.caps() != Caps::default()).then_some(Mode::Direct)
    }

    fn custody(&self, _key: &KeyName) -> Result<Mode, Error> {
        Ok(Mode::Direct)
    }

    fn keys(&self) -> Result<Vec<KeyName>, Error> {
        match self.call(Retry::Once, Request::Keys)? {
            Answer::Keys(names) => Ok(names),
            _ => Err(out_of_turn()),
        }
    }

    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error> {
        if let Some(public) = lock(&self.known.public_keys).get(key) {
            return Ok(public.clone());
        }
        let answer = self.call(Retry::Once, Request::PublicKey(key.clone()))?;
        let Answer::PublicKey { algorithm, point } = answer else { return Err(out_of_turn()) };
        let public = PublicKey::new(algorithm, &point).map_err(|_invalid| out_of_turn())?;
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
        let finish = |begun: Result<InFlight<'_>, Error>| self.finish(key, begun?);
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
        let request = Request::Agree { key: key.clone(), peer: *peer };
        secret_of(self.call(Retry::Once, request)?)
    }

    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error> {
        if !kind.suits(role) {
            return Err(Error::WrongKind { role, kind });
        }
        let mut id = [0; KeyName::ID_BYTES];
        getrandom::fill(&mut id).map_err(Error::Random)?;
        let key = KeyName::new(role, id);
        self.call(Retry::Never, Request::Generate { key: key.clone(), kind })?;
        Ok(key)
    }

    fn destroy(&self, key: &KeyName) -> Result<(), Error> {
        self.call(Retry::Never, Request::Destroy(key.clone()))?;
        lock(&self.known.public_keys).remove(key);
        Ok(())
    }

    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error> {
        match self.call(Retry::Once, Request::Wrap(key.clone()))? {
            Answer::Wrapped { fresh, capsule } => wrapped::seal(key, &fresh, &capsule, secret, aad),
            _ => Err(out_of_turn()),
        }
    }

    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error> {
        wrapped::open(key, wrapped, aad, |capsule| {
            secret_of(self.call(Retry::Once, Request::Unwrap { key: key.clone(), capsule })?)
        })
    }

    fn reopen(&self, pin: Pin) -> Result<(), Error> {
        self.worker.reopen(pin)?.wait().map(drop)
    }
}

fn signature_of(answer: Answer) -> Result<Signature, Error> {
    match answer {
        Answer::Signature(bytes) => bytes.as_slice().try_into().map_err(|_length| out_of_turn()),
        _ => Err(out_of_turn()),
    }
}

fn secret_of(answer: Answer) -> Result<Secret32, Error> {
    match answer {
        Answer::Secret(secret) => Ok(secret),
        _ => Err(out_of_turn()),
    }
}

fn out_of_turn() -> Error {
    Error::HelperDied { how: "it answered what was not asked".to_owned() }
}

/// What a lock guards here is replaced whole, so a thread that died holding it left nothing half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
