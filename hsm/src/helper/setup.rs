//! Setting up a blank token, in a process of its own that a service manager starts for each connection to a socket.
//!
//! It is not the helper that serves the box: whoever takes the box over can have no token set up. Only blank tokens are, so nothing
//! is lost by it. One line asks (`look`; or `set-up` and two lines with the PINs), and one in JSON answers.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use sallyport_core::limits::TOKEN_SETUP_BYTES_MAX;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{arguments::Arguments, harden::harden, serve::take_socket, wire::explain};
use crate::{
    Error, Pin,
    pkcs11::{self, Blank},
};

const LOOK: &str = "look";
const SET_UP: &str = "set-up";

/// What [`run_setup`] is asked for.
pub enum Setup<'a> {
    /// Is there a blank token?
    Look,
    /// Give the first blank token its label and these PINs.
    SetUp {
        /// The security officer's PIN.
        officer_pin: &'a Pin,
        /// The PIN of the box.
        user_pin: &'a Pin,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetupAnswer {
    /// The token of this label is set up already.
    There,
    /// It is not there, and a blank one is.
    Blank,
    /// Neither is there.
    Nothing,
    /// It was set up, and has this serial number.
    Done(String),
    /// It failed, for this reason.
    Failed(String),
}

impl Setup<'_> {
    /// Asks the process that a service manager starts at a socket; `patience` is how long the token may take.
    ///
    /// # Errors
    /// If there is no such process, or it does not answer.
    pub fn ask(&self, socket: &Path, patience: Duration) -> Result<SetupAnswer, Error> {
        let failed = |source| Error::HelperSocket { path: socket.to_owned(), source };
        let mut stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(patience)).map_err(failed)?;
        let question = match self {
            Self::Look => Zeroizing::new(format!("{LOOK}\n")),
            Self::SetUp { officer_pin, user_pin } => {
                let (officer, user) = (officer_pin.expose(), user_pin.expose());
                Zeroizing::new(format!("{SET_UP}\n{officer}\n{user}\n"))
            }
        };
        stream.write_all(question.as_bytes()).map_err(failed)?;
        stream.shutdown(Shutdown::Write).map_err(failed)?;
        let mut line = String::new();
        let mut answer = BufReader::new(stream.take(TOKEN_SETUP_BYTES_MAX));
        answer.read_line(&mut line).map_err(failed)?;
        serde_json::from_str(&line)
            .map_err(|_end| Error::HelperDied { how: "it gave no answer".to_owned() })
    }
}

/// Answers the one question that comes over standard input, which is a socket. The arguments are those of [`super::run_helper`].
///
/// # Errors
/// If nobody asks anything that makes sense. What the token says to it is an answer.
pub fn run_setup(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    let Arguments { token, .. } = Arguments::parse(arguments)?;
    harden(&token).map_err(Error::Helper)?;
    let mut socket = UnixStream::from(take_socket().map_err(Error::Helper)?);
    let reader = socket.try_clone().map_err(Error::Helper)?;
    let mut lines = BufReader::new(reader.take(TOKEN_SETUP_BYTES_MAX));
    let (module, label) = (&token.module, &token.label);
    let came = match line(&mut lines)?.as_str() {
        LOOK => pkcs11::look_for_blank(module, label).map(|found| match found {
            Blank::There => SetupAnswer::There,
            Blank::Slot(_) => SetupAnswer::Blank,
            Blank::Nothing => SetupAnswer::Nothing,
        }),
        SET_UP => {
            let (officer, user) = (pin(&mut lines)?, pin(&mut lines)?);
            pkcs11::init_token(module, label, &officer, &user).map(SetupAnswer::Done)
        }
        _ => return Err(Error::Helper(std::io::ErrorKind::InvalidData.into())),
    };
    let answer = came.unwrap_or_else(|error| SetupAnswer::Failed(explain(&error)));
    let mut answer =
        serde_json::to_vec(&answer).map_err(|error| Error::Helper(std::io::Error::other(error)))?;
    answer.push(b'\n');
    socket.write_all(&answer).map_err(Error::Helper)
}

fn line(lines: &mut impl BufRead) -> Result<Zeroizing<String>, Error> {
    let mut line = Zeroizing::new(String::with_capacity(TOKEN_SETUP_BYTES_MAX as usize));
    lines.read_line(&mut line).map_err(Error::Helper)?;
    let length = line.trim_end_matches('\n').len();
    line.truncate(length);
    Ok(line)
}

fn pin(lines: &mut impl BufRead) -> Result<Pin, Error> {
    let line = line(lines)?;
    if line.is_empty() { Err(Error::PinForm) } else { Ok(Pin::new(line.as_str().to_owned())) }
}
