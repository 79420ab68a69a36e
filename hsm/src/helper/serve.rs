//! The inside of the helper: a thread that reads what the box asks for and holds it against the policy, ahead of the threads
//! that own sessions with the token ([`super::sessions`]).
//!
//! It trusts nobody at the other end of its socket: it takes each document apart again, and signs only what its own server
//! may say.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
    time::Duration,
};

use nix::unistd::{dup2_stdin, dup2_stdout};
use sallyport_core::sign::Policy;

use super::{
    answers::Answers,
    arguments::Arguments,
    frame::Incoming,
    harden::{end_after, harden},
    queue::{Queue, Task},
    sessions::{Keeper, require},
    wire::Request,
};
use crate::Error;

/// How long the module has to come to an end once the box has gone. Whoever supervises the process may not know that it hangs.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Is the helper until the box closes the socket, which is standard input. The arguments are those that
/// [`crate::HelperProgram`] ends with: the name of the server, the module, the label of the token, and options; or, where a
/// service manager starts it, `--settings FILE --modules FOLDER` ([`crate::BoxToken`], [`crate::Modules`]).
pub fn run_helper(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    let Arguments { policy, token } = Arguments::parse(arguments)?;
    harden(&token).map_err(Error::Helper)?;
    let socket = take_socket().map_err(Error::Helper)?;
    let mut socket = UnixStream::from(socket);
    let answers = Answers::new(socket.try_clone().map_err(Error::Helper)?);
    let queue = Arc::new(Queue::default());
    let keeper = Keeper::new(token, Arc::clone(&queue), answers.clone());
    let keeper = thread::Builder::new()
        .name("token".to_owned())
        .spawn(move || keeper.run())
        .map_err(Error::Thread)?;
    let read = read_requests(&mut socket, &policy, &queue, &answers);
    end_after(END_WITHIN);
    queue.close();
    // A panic was reported where it happened.
    drop(keeper.join());
    read.map_err(Error::Helper)
}

/// Standard input, in whose place there is nothing afterwards, nor in that of standard output: a module that reads or prints must
/// not disturb the frames.
pub(super) fn take_socket() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    Ok(socket)
}

/// Reads until the box closes the socket.
fn read_requests(
    socket: &mut UnixStream,
    policy: &Policy,
    queue: &Queue,
    answers: &Answers,
) -> io::Result<()> {
    let mut incoming = Incoming::new();
    loop {
        while let Some((number, request)) = incoming.take()? {
            let accepted = task(request, policy).and_then(|task| queue.push(number, task));
            if let Err(error) = accepted {
                answers.send_now(number, Err(error))?;
            }
        }
        if incoming.read(socket)? == 0 {
            return if incoming.is_cut() {
                Err(io::ErrorKind::UnexpectedEof.into())
            } else {
                Ok(())
            };
        }
    }
}

/// What is to be done for a request, if it may be.
fn task(request: Request, policy: &Policy) -> Result<Task, Error> {
    Ok(match request {
        Request::Open(open) => Task::Open(open),
        Request::Sign { key, request, anew } => {
            require(&key, request.role())?;
            let bytes = request.bytes_to_sign(policy).map_err(Error::Refused)?;
            Task::Sign { key, bytes, anew }
        }
        other => Task::Other(other),
    })
}
