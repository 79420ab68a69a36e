//! The inside of the helper: one thread that owns the PKCS#11 module and the one logged-in session.
//!
//! It trusts nobody at the other end of its socket: it takes each document apart again, and signs only what its own server
//! may say.

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::PathBuf,
};

use sallyport_core::sign::{Algorithm, Policy, PublicKey, SigningRequest};

use super::{
    harden::harden,
    wire::{self, Answer, Failure, Open, Request},
};
use crate::{
    Error, KeyName, KeyRole, Pin,
    pkcs11::{Connection, Module, caps},
};

/// Is the helper until the box closes the socket, which is standard input. The arguments are those that
/// [`crate::HelperProgram`] ends with: server name, module, label of the token.
pub fn run_helper(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    let mut arguments = arguments.into_iter();
    let mut next = || arguments.next().ok_or_else(|| invalid("an argument is missing"));
    let text = |argument: OsString| argument.into_string().map_err(|_| invalid("not text"));
    let server_name = text(next()?)?.try_into().map_err(|_| invalid("not a server name"))?;
    let (path, label) = (PathBuf::from(next()?), text(next()?)?);
    harden().map_err(Error::Helper)?;
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(Error::Helper)?;
    let mut socket = UnixStream::from(socket);
    let policy = Policy { server_name };
    let mut inside = Inside { policy, path, label, pin: None, module: None, connection: None };
    while let Some(request) = wire::receive(&mut socket).map_err(Error::Helper)? {
        let mut report = || wire::send(&mut socket, &Answer::Working).map_err(Error::Helper);
        let answer = inside.answer(request, &mut report);
        let answer = answer.unwrap_or_else(|error| Answer::Failed(Failure::from(error)));
        wire::send(&mut socket, &answer).map_err(Error::Helper)?;
    }
    Ok(())
}

fn invalid(what: &str) -> Error {
    Error::Helper(io::Error::new(io::ErrorKind::InvalidInput, what))
}

struct Inside {
    policy: Policy,
    path: PathBuf,
    label: String,
    /// The one that worked last.
    pin: Option<Pin>,
    /// Closed before the module is given up: fields are dropped in this order.
    connection: Option<Connection>,
    module: Option<Module>,
}

impl Inside {
    fn answer(
        &mut self,
        request: Request,
        working: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<Answer, Error> {
        match request {
            Request::Open(open) => self.open(open, working),
            Request::Sign { key, request, anew } => self.sign(&key, &request, anew),
            other => {
                let connection = self.connection.as_mut().ok_or(Error::SessionLost)?;
                named(connection, other).map_err(|error| doubt(connection, error))
            }
        }
    }

    fn open(
        &mut self,
        open: Open,
        working: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<Answer, Error> {
        let pin = open.pin.or_else(|| self.pin.clone()).ok_or(Error::PinNeeded)?;
        self.connection = None;
        let module = match &mut self.module {
            Some(module) => module,
            none => none.insert(Module::load(&self.path)?),
        };
        if open.anew {
            module.finalize();
        }
        module.initialize()?;
        working()?;
        let (connection, serial) =
            Connection::open(module, &self.label, open.serial.as_deref(), &pin, open.by_hand)?;
        self.pin = Some(pin);
        let caps = match open.serial {
            None => Some(caps(&connection, working)?),
            Some(_) => None,
        };
        self.connection = Some(connection);
        Ok(Answer::Opened { serial, caps })
    }

    fn sign(
        &mut self,
        key: &KeyName,
        request: &SigningRequest,
        anew: bool,
    ) -> Result<Answer, Error> {
        require(key, request.role())?;
        let bytes = request.bytes_to_sign(&self.policy).map_err(Error::Refused)?;
        let connection = self.connection.as_mut().ok_or(Error::SessionLost)?;
        if anew {
            connection.forget_handles();
        }
        let signature = connection.sign(key, &bytes).map_err(|error| doubt(connection, error))?;
        Ok(Answer::Signature(*signature.as_bytes()))
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
            require(&key, KeyRole::CourierEncryption)?;
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
        Error::Device { .. } => connection.check().err().unwrap_or(error),
        other => other,
    }
}

fn require_wrapping(key: &KeyName) -> Result<(), Error> {
    if key.role().wraps() { Ok(()) } else { require(key, KeyRole::Storage) }
}

fn require(key: &KeyName, needed: KeyRole) -> Result<(), Error> {
    if key.role() == needed {
        return Ok(());
    }
    Err(Error::WrongRole { key: key.clone(), needed })
}
