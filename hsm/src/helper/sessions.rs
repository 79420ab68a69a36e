//! The threads of the helper that own sessions with the token, and what each can do.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use sallyport_core::sign::{Algorithm, PublicKey};

use super::{
    answers::Answers,
    arguments::ServedToken,
    queue::{Queue, Task},
    wire::{Answer, Credential, Open, Request},
};
use crate::{
    Error, KeyName, KeyRole, Pin, Sessions,
    pkcs11::{Anchor, Connection, Connections, Login, Module, Wanted, caps, find_token},
};

/// The thread that loads the module and logs in. It has the first session, and starts threads for the others.
pub(super) struct Keeper {
    token: ServedToken,
    queue: Arc<Queue>,
    answers: Answers,
    /// The one that worked last.
    pin: Option<Pin>,
    /// Threads with the other sessions. They end with the generation.
    others: Vec<JoinHandle<()>>,
    first: Option<Worked>,
    /// Closed after all sessions that work, and before the module is given up: fields are dropped in this order.
    anchor: Option<Anchor>,
    module: Option<Module>,
}

impl Keeper {
    pub(super) fn new(token: ServedToken, queue: Arc<Queue>, answers: Answers) -> Self {
        let (pin, others, first, anchor, module) = (None, Vec::new(), None, None, None);
        Self { token, queue, answers, pin, others, first, anchor, module }
    }

    /// Works until the queue is closed.
    pub(super) fn run(mut self) {
        // A box that is gone is noticed by the thread that reads.
        while let Some((number, task)) = self.queue.next(|| drop(self.answers.flush())) {
            let answer = match task {
                Task::Open(open) => self.open(number, open),
                task => match &mut self.first {
                    Some(session) => session.answer(task),
                    None => Err(Error::SessionLost),
                },
            };
            if self.answers.send(number, answer).is_err() {
                break;
            }
        }
        self.close();
    }

    /// Ends all sessions, and with the last one the login.
    fn close(&mut self) {
        let _ = self.queue.next_generation();
        for thread in self.others.drain(..) {
            // A panic was reported where it happened.
            drop(thread.join());
        }
        self.first = None;
        self.anchor = None;
    }

    fn open(&mut self, number: u64, open: Open) -> Result<Answer, Error> {
        self.close();
        let pin = match open.credential {
            Credential::Given(pin) => Ok(Some(pin)),
            Credential::Kept => self.pin.clone().map(Some).ok_or(Error::PinNeeded),
            Credential::Pad => Ok(None),
            Credential::Missing => Err(Error::PinAsked),
        };
        let module = match &mut self.module {
            Some(module) => module,
            none => none.insert(Module::load(&self.token.module)?),
        };
        if open.anew || module.is_tpm2() {
            module.finalize();
        }
        module.initialize()?;
        let mut working =
            || self.answers.send_now(number, Ok(Answer::Working)).map_err(Error::Helper);
        working()?;
        let wanted = Wanted {
            label: &self.token.label,
            configured: self.token.serial.as_deref(),
            opened: open.serial.as_deref(),
        };
        // Only a token that is there waits for its PIN.
        if pin.is_err() {
            find_token(module, wanted)?;
        }
        let pin = pin?;
        let login = Login::open(module, wanted, pin.as_ref(), open.by_hand)?;
        let serial = login.serial().to_owned();
        let Connections { first, others, anchor } = login.connections(self.token.sessions.get())?;
        let caps = if open.probe { Some(caps(&first, &mut working)?) } else { None };
        if pin.is_some() {
            self.pin = pin;
        }
        let sessions = u8::try_from(1 + others.len()).unwrap_or(Sessions::MAX);
        self.start(first, others, anchor).map_err(Error::Thread)?;
        Ok(Answer::Opened { serial, caps, sessions })
    }

    fn start(
        &mut self,
        first: Connection,
        others: Vec<Connection>,
        anchor: Option<Anchor>,
    ) -> io::Result<()> {
        let epoch = Arc::new(AtomicU64::new(0));
        let generation = self.queue.next_generation();
        self.anchor = anchor;
        self.first = Some(Worked::new(first, &epoch));
        for connection in others {
            let mut session = Worked::new(connection, &epoch);
            let (queue, answers) = (Arc::clone(&self.queue), self.answers.clone());
            let work = move || {
                let idle = || drop(answers.flush());
                while let Some((number, task)) = queue.next_in(generation, idle) {
                    if answers.send(number, session.answer(task)).is_err() {
                        break;
                    }
                }
            };
            self.others.push(thread::Builder::new().name("session".to_owned()).spawn(work)?);
        }
        Ok(())
    }
}

/// A session that a thread works in.
struct Worked {
    connection: Connection,
    /// How often the handles of all sessions were found to be stale, and how many of these times this one knows of.
    epoch: Arc<AtomicU64>,
    known: u64,
}

impl Worked {
    fn new(connection: Connection, epoch: &Arc<AtomicU64>) -> Self {
        Self { connection, epoch: Arc::clone(epoch), known: 0 }
    }

    fn answer(&mut self, task: Task) -> Result<Answer, Error> {
        let done = match task {
            Task::Sign { key, bytes, anew } => self.sign(&key, &bytes, anew),
            Task::Other(request) => named(&mut self.connection, request),
            Task::Open(_) => Err(Error::SessionLost),
        };
        done.map_err(|error| doubt(&self.connection, error))
    }

    fn sign(&mut self, key: &KeyName, bytes: &[u8], anew: bool) -> Result<Answer, Error> {
        // What came to mean another key for one session may have for all.
        let now = self.epoch.fetch_add(u64::from(anew), Ordering::Relaxed) + u64::from(anew);
        if now != self.known {
            self.connection.forget_handles();
            self.known = now;
        }
        Ok(Answer::Signature(*self.connection.sign(key, bytes)?.as_bytes()))
    }
}

/// The operations that need no more than the session.
fn named(connection: &mut Connection, request: Request) -> Result<Answer, Error> {
    Ok(match request {
        Request::Open(_) | Request::Sign { .. } | Request::Check => {
            connection.check()?;
            Answer::Done
        }
        Request::Keys => Answer::Keys(connection.keys()?),
        Request::PublicKey(key) => {
            let public = connection.public_key(&key)?;
            Answer::PublicKey { algorithm: public.algorithm(), point: public.as_bytes().to_vec() }
        }
        Request::Agree { key, peer } => {
            require_agreeing(&key)?;
            // Tokens differ in whether they check the point; one off the curve would leak the key bit by bit.
            PublicKey::new(Algorithm::P256, &peer).map_err(|_off_curve| Error::InvalidPeer)?;
            Answer::Secret(connection.agree(&key, &peer)?)
        }
        Request::Generate { key, kind } => {
            if !kind.suits(key.role()) {
                return Err(Error::WrongKind { role: key.role(), kind });
            }
            connection.generate(&key, kind)?;
            Answer::Done
        }
        Request::Destroy(key) => {
            connection.destroy(&key)?;
            Answer::Done
        }
        Request::Wrap(key) => {
            require_wrapping(&key)?;
            let (fresh, capsule) = connection.wrap(&key)?;
            Answer::Wrapped { fresh, capsule }
        }
        // A storage key of P-256 agrees too, but what it gives out is not the shared point: it cannot stand for a key that
        // opens bundles, nor such a key for it.
        Request::Unwrap { key, capsule } => {
            require_wrapping(&key)?;
            Answer::Secret(connection.unwrap(&key, &capsule)?)
        }
    })
}

/// What a module cannot name may be the token dying.
fn doubt(connection: &Connection, error: Error) -> Error {
    match error {
        // The TPM is full: it has room again once the session is opened anew.
        Error::Device { .. } if connection.is_tpm2() => Error::SessionLost,
        Error::Device { .. } => connection.check().err().unwrap_or(error),
        other => other,
    }
}

fn require_wrapping(key: &KeyName) -> Result<(), Error> {
    if key.role().wraps() { Ok(()) } else { require(key, KeyRole::Storage) }
}

fn require_agreeing(key: &KeyName) -> Result<(), Error> {
    if key.role().agrees() { Ok(()) } else { require(key, KeyRole::CourierEncryption) }
}

/// A key only does what is its role's.
pub(super) fn require(key: &KeyName, needed: KeyRole) -> Result<(), Error> {
    if key.role() == needed {
        return Ok(());
    }
    Err(Error::WrongRole { key: key.clone(), needed })
}
