//! A token behind a PKCS#11 module, which is loaded by a process of its own: the helper.
//!
//! Modules are closed programs of vendors: they hang, crash, and read what memory they like. The box never loads one. A thread of the box
//! ([`worker`]) owns the helper and everybody else queues ([`inbox`]); several requests are under way at once ([`flights`]), and
//! one that gets no answer in time ends with the helper being killed and started again. The helper ([`serve`]) holds each document
//! against its own policy and then hands it to a thread with a session ([`sessions`]); it has given up what it does not need
//! ([`harden`]). Signatures are verified on this side, against the public key as it was read first, while the token goes on.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sallyport_core::sign::{Policy, PublicKey, Signature, SigningRequest, verify};

use crate::{
    Caps, Error, Health, KeyKind, KeyName, KeyRole, Mode, P256_POINT_BYTES, Pin, PinSource,
    Secret32, Token, wrapped,
};

mod answers;
mod arguments;
mod flights;
mod frame;
mod harden;
mod inbox;
mod process;
mod queue;
mod reopen;
mod serve;
mod sessions;
mod setup;
mod wire;
mod worker;

pub use arguments::ServedToken;
use inbox::{Pending, Retry};
pub use process::HelperProgram;
pub use serve::run_helper;
pub use setup::{Setup, SetupAnswer, run_setup};
use wire::{Answer, Request};
use worker::{Answers, Worker};

/// Requests of a batch that are handed over together.
const BATCH: usize = 32;
/// Batches that are handed over before the answers to the first are taken: enough that the token never waits for us.
const BATCHES_AHEAD: usize = 3;

/// A token behind a PKCS#11 module in another process.
pub struct HelperToken {
    policy: Policy,
    known: Arc<Known>,
    worker: Worker,
}

/// What a token is reached by.
#[derive(Clone, Debug)]
pub struct HelperSettings {
    /// Where the helper is from.
    pub place: HelperPlace,
    /// Where the PIN is from.
    pub pin: PinSource,
    /// How long a single operation may take.
    pub timeout: Duration,
    /// Which server's documents may be signed.
    pub policy: Policy,
}

/// Where a helper is from.
#[derive(Clone, Debug)]
pub enum HelperPlace {
    /// It is a process that we start.
    Child {
        /// The program that becomes the helper.
        program: HelperProgram,
        /// What it serves.
        token: ServedToken,
        /// Names of environment variables that the module needs.
        environment: Vec<String>,
    },
    /// A service manager starts one for each connection to this Unix socket, as another user. What it serves is said there.
    Service(PathBuf),
}

impl fmt::Display for HelperPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Child { token, .. } => f.write_str(&token.label),
            Self::Service(path) => path.display().fmt(f),
        }
    }
}

/// What outlives sessions and helpers.
struct Known {
    health: Mutex<Health>,
    caps: Mutex<Caps>,
    /// Public keys as they were read first: what every later signature is held against.
    public_keys: Mutex<BTreeMap<KeyName, PublicKey>>,
}

/// A request that may be signed.
struct Prepared<'a> {
    request: &'a SigningRequest,
    bytes: Vec<u8>,
    public: PublicKey,
}

/// Requests of which the token still signs some.
struct Batch<'a> {
    prepared: Vec<Result<Prepared<'a>, Error>>,
    answers: Result<Answers, Error>,
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

    /// Takes a document apart, once for us and once, after this, in the helper.
    fn prepare<'a>(
        &self,
        key: &KeyName,
        request: &'a SigningRequest,
    ) -> Result<Prepared<'a>, Error> {
        if key.role() != request.role() {
            return Err(Error::WrongRole { key: key.clone(), needed: request.role() });
        }
        let bytes = request.bytes_to_sign(&self.policy).map_err(Error::Refused)?;
        let public = self.public_key(key)?;
        Ok(Prepared { request, bytes, public })
    }

    /// A signature that does not verify is asked for once more with handles that were looked up anew: the old one may have
    /// come to mean another key.
    fn verified(
        &self,
        key: &KeyName,
        prepared: &Prepared<'_>,
        answer: Answer,
    ) -> Result<Signature, Error> {
        let Prepared { request, bytes, public } = prepared;
        let signature = signature_of(answer)?;
        if verify(public, bytes, &signature).is_ok() {
            return Ok(signature);
        }
        log::error!(key:%; "the token gave a wrong signature, asking once more");
        let signature = signature_of(self.submit_signature(key, request, true)?.wait()?)?;
        verify(public, bytes, &signature).map_err(|_mismatch| Error::BadSignature(key.clone()))?;
        Ok(signature)
    }

    fn begin_batch<'a>(&self, key: &KeyName, requests: &'a [SigningRequest]) -> Batch<'a> {
        let prepared: Vec<_> = requests.iter().map(|request| self.prepare(key, request)).collect();
        let to_sign = prepared.iter().enumerate().filter_map(|(index, prepared)| {
            let request = prepared.as_ref().ok()?.request.clone();
            Some((index, Request::Sign { key: key.clone(), request, anew: false }))
        });
        let answers = self.worker.submit_batch(to_sign);
        Batch { prepared, answers }
    }

    /// Verifies signatures as they come.
    fn finish_batch(&self, key: &KeyName, batch: Batch<'_>) -> Vec<Result<Signature, Error>> {
        let Batch { prepared, answers } = batch;
        let mut signatures: Vec<_> = prepared.iter().map(|_| None).collect();
        for (index, answer) in answers.iter().flatten() {
            if let (Some(Ok(prepared)), Some(signature)) =
                (prepared.get(index), signatures.get_mut(index))
            {
                *signature = Some(answer.and_then(|answer| self.verified(key, prepared, answer)));
            }
        }
        let missing = || match answers {
            Err(Error::Busy) => Error::Busy,
            _ => Error::Stopped,
        };
        let both = prepared.into_iter().zip(signatures);
        both.map(|(prepared, signature)| prepared.and(signature.unwrap_or_else(|| Err(missing()))))
            .collect()
    }

    fn submit_signature(
        &self,
        key: &KeyName,
        request: &SigningRequest,
        anew: bool,
    ) -> Result<Pending, Error> {
        let request = Request::Sign { key: key.clone(), request: request.clone(), anew };
        self.worker.submit(Retry::Once, &request)
    }

    fn call(&self, retry: Retry, request: Request) -> Result<Answer, Error> {
        self.worker.submit(retry, &request)?.wait()
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
        let prepared = self.prepare(key, request)?;
        let answer = self.submit_signature(key, request, false)?.wait()?;
        self.verified(key, &prepared, answer)
    }

    fn sign_many(
        &self,
        key: &KeyName,
        requests: &[SigningRequest],
    ) -> Vec<Result<Signature, Error>> {
        let mut signatures = Vec::with_capacity(requests.len());
        let mut ahead = VecDeque::with_capacity(BATCHES_AHEAD);
        for batch in requests.chunks(BATCH) {
            if ahead.len() == BATCHES_AHEAD
                && let Some(first) = ahead.pop_front()
            {
                signatures.extend(self.finish_batch(key, first));
            }
            ahead.push_back(self.begin_batch(key, batch));
        }
        signatures.extend(ahead.into_iter().flat_map(|batch| self.finish_batch(key, batch)));
        signatures
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
