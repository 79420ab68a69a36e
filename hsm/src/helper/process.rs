//! The process with the PKCS#11 module, from the outside: started or connected to, written to and read from without waiting, and
//! given up when it does not answer.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{self, IoSlice, Write as _},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    HelperPlace, HelperSettings,
    arguments::command_line,
    frame::{Frame, Incoming, Message},
    wire::{Answer, Request},
};
use crate::Error;

/// Environment variables that every helper gets; the configuration can name more.
const ENVIRONMENT: &[&str] = &["SOFTHSM2_CONF"];
/// How long a helper may take to end: two seconds for its module, and a moment for the kernel.
const END_WITHIN: Duration = Duration::from_secs(3);
/// Frames that are written at once.
const WRITE_AT_ONCE: usize = 32;
/// The number of requests that nothing else is under way with. Those of [`super::flights`] are counted from 0.
const ALONE: u64 = u64::MAX;
/// Steps of such a request, each with the full time.
const STEPS_MAX: usize = 16;

/// The program that becomes the helper: it calls [`crate::run_helper`] with the arguments that come after its own.
#[derive(Clone, Debug)]
pub struct HelperProgram {
    /// The program.
    pub path: PathBuf,
    /// What stands before the helper's own arguments.
    pub arguments: Vec<String>,
}

impl HelperProgram {
    /// The program that runs, with the argument `token-helper`. The file may be replaced while it runs; this is still the
    /// old one, which speaks the same version.
    pub fn this_one() -> Self {
        let arguments = vec!["token-helper".to_owned()];
        Self { path: PathBuf::from("/proc/self/exe"), arguments }
    }
}

/// A helper that runs.
pub(super) struct Helper {
    /// None of ours, where a service manager starts it.
    child: Option<Child>,
    socket: UnixStream,
    outgoing: VecDeque<Frame>,
    /// Bytes of the first outgoing frame that were written.
    written: usize,
    incoming: Incoming,
}

/// Why a helper is of no use any more.
pub(super) enum GivenUp {
    /// It did not answer in time.
    Hangs,
    /// It is dead, or answered what makes no sense.
    Died(String),
}

impl GivenUp {
    /// What those are told whose requests were under way.
    pub(super) fn error(&self) -> Error {
        match self {
            Self::Hangs => Error::Timeout,
            Self::Died(how) => Error::HelperDied { how: how.clone() },
        }
    }
}

impl Helper {
    /// Starts one, or has one started. It knows the server it signs for from its command line: nothing that comes over the socket
    /// changes that.
    pub(super) fn start(settings: &HelperSettings) -> Result<Self, Error> {
        let (child, socket) = match &settings.place {
            HelperPlace::Child { program, token, environment } => {
                let (socket, theirs) = UnixStream::pair().map_err(Error::Helper)?;
                let line = command_line(&settings.policy, token);
                let child = spawn(program, line, environment, theirs).map_err(Error::Helper)?;
                (Some(child), socket)
            }
            HelperPlace::Service(path) => (None, connect(path)?),
        };
        socket.set_nonblocking(true).map_err(Error::Helper)?;
        let (outgoing, incoming) = (VecDeque::new(), Incoming::new());
        Ok(Self { child, socket, outgoing, written: 0, incoming })
    }

    /// Asks while nothing else is under way, and waits for the answer, `timeout` for each step.
    pub(super) fn ask_alone(
        &mut self,
        request: &Request,
        timeout: Duration,
    ) -> Result<Answer, GivenUp> {
        let message = Message::new(request).map_err(|error| self.died(&error))?;
        self.send(message.numbered(ALONE));
        for _ in 0..STEPS_MAX {
            match self.answer_alone(Instant::now() + timeout)? {
                Answer::Working => {}
                answer => return Ok(answer),
            }
        }
        Err(GivenUp::Died("it never came to an end".to_owned()))
    }

    fn answer_alone(&mut self, until: Instant) -> Result<Answer, GivenUp> {
        loop {
            self.write().map_err(|error| self.died(&error))?;
            match self.take()? {
                Some((ALONE, answer)) => return Ok(answer),
                Some(_) => return Err(out_of_turn()),
                None => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(GivenUp::Hangs);
            }
            poll(&mut [self.poll_fd()], poll_timeout(left)).map_err(|e| self.died(&e.into()))?;
            self.read()?;
        }
    }

    /// Puts a frame in the row of those that [`Helper::write`] sends.
    pub(super) fn send(&mut self, frame: Frame) {
        self.outgoing.push_back(frame);
    }

    /// Writes as much as the socket takes.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let parts = self.outgoing.iter().take(WRITE_AT_ONCE).flat_map(Frame::parts);
            let mut slices: Vec<IoSlice<'_>> = parts.map(IoSlice::new).collect();
            let mut slices = slices.as_mut_slice();
            IoSlice::advance_slices(&mut slices, self.written);
            match self.socket.write_vectored(slices) {
                Ok(bytes) => self.wrote(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        while let Some(first) = self.outgoing.front()
            && self.written >= first.bytes()
        {
            self.written -= first.bytes();
            self.outgoing.pop_front();
        }
    }

    /// Reads what is there. Fails at the end of the stream: nobody has closed it on our side.
    pub(super) fn read(&mut self) -> Result<(), GivenUp> {
        match self.incoming.read(&mut self.socket) {
            Ok(0) => Err(self.died(&io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(self.died(&error)),
        }
    }

    /// The next answer of those that were read, with the number of its request. What was not sent as a whole cannot be answered.
    pub(super) fn take(&mut self) -> Result<Option<(u64, Answer)>, GivenUp> {
        let taken = self.incoming.take().map_err(|error| self.died(&error))?;
        if let Some((number, _)) = &taken
            && self.outgoing.iter().any(|frame| frame.number() == *number)
        {
            return Err(out_of_turn());
        }
        Ok(taken)
    }

    /// What there is to wait for.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        let out = if self.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
        PollFd::new(self.as_fd(), PollFlags::POLLIN | out)
    }

    /// Kills one that hangs, if that is ours to do: one that a service manager started ends by itself when the socket closes.
    pub(super) fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
        }
    }

    /// Tells how it died from an error of its socket.
    pub(super) fn died(&mut self, error: &io::Error) -> GivenUp {
        GivenUp::Died(match &mut self.child {
            // Its end of the socket closes a little before it can be waited for.
            Some(child) if error.kind() != io::ErrorKind::InvalidData && closes(&self.socket) => {
                child.wait().map_or_else(|e| e.to_string(), |status| status.to_string())
            }
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                "it closed the connection; its service manager's log tells more".to_owned()
            }
            _ => error.to_string(),
        })
    }
}

impl AsFd for Helper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Lets the helper close its session, and kills it if it does not.
impl Drop for Helper {
    fn drop(&mut self) {
        // Killed or dead already: then there is nobody to tell.
        drop(self.socket.shutdown(Shutdown::Write));
        if closes(&self.socket) {
            drop(self.child.as_mut().map(Child::wait));
            return;
        }
        log::error!("the process with the PKCS#11 module does not end");
        let Some(child) = &mut self.child else { return };
        drop(child.kill());
        if closes(&self.socket) {
            drop(child.wait());
        } else {
            log::error!(
                "the process with the PKCS#11 module cannot be killed: the kernel holds it in a call to the device, which must be unplugged"
            );
        }
    }
}

/// The answer is to nothing that was asked.
pub(super) fn out_of_turn() -> GivenUp {
    GivenUp::Died("it answered what was not asked".to_owned())
}

/// How long to poll: a moment longer rather than a moment too short.
pub(super) fn poll_timeout(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}

fn spawn(
    program: &HelperProgram,
    arguments: Vec<OsString>,
    environment: &[String],
    socket: UnixStream,
) -> io::Result<Child> {
    let allowed = ENVIRONMENT.iter().copied().chain(environment.iter().map(|s| &**s));
    Command::new(&program.path)
        .arg0("sallyport")
        .args(&program.arguments)
        .args(arguments)
        .env_clear()
        .envs(allowed.filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir("/")
        // A Ctrl-C is for the box, which ends its helper in order.
        .process_group(0)
        .stdin(OwnedFd::from(socket))
        .stdout(Stdio::null())
        .spawn()
}

fn connect(path: &Path) -> Result<UnixStream, Error> {
    UnixStream::connect(path)
        .map_err(|source| Error::HelperSocket { path: path.to_owned(), source })
}

/// Waits until the other end of the socket is closed, which the end of the process does.
fn closes(socket: &UnixStream) -> bool {
    let until = Instant::now() + END_WITHIN;
    let mut buffer = [0; 1024];
    loop {
        match io::Read::read(&mut &*socket, &mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = until.saturating_duration_since(Instant::now());
                let mut closed = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                if left.is_zero() || poll(&mut closed, poll_timeout(left)).is_err() {
                    return false;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Reset: it is gone.
            Err(_) => return true,
        }
    }
}
