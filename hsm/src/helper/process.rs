//! The process with the PKCS#11 module, from the outside: started, asked with a deadline, and killed when it does not answer.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    HelperSettings,
    wire::{self, Answer, Request},
};
use crate::Error;

/// Environment variables that every helper gets; the configuration can name more.
const ENVIRONMENT: &[&str] = &["SOFTHSM2_CONF"];
/// How long a helper may take to close its session, or the kernel to end one that was killed.
const END_WITHIN: Duration = Duration::from_secs(2);
/// Steps of which a request may consist, each with the full time.
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
    child: Child,
    socket: UnixStream,
    timeout: Duration,
}

impl Helper {
    /// Starts one. It knows the server it signs for from its command line: nothing that comes over the socket changes that.
    pub(super) fn start(settings: &HelperSettings) -> Result<Self, Error> {
        let (socket, theirs) = UnixStream::pair().map_err(Error::Helper)?;
        let allowed = ENVIRONMENT.iter().copied().chain(settings.environment.iter().map(|s| &**s));
        let child = Command::new(&settings.program.path)
            .arg0("sallyport")
            .args(&settings.program.arguments)
            .arg(settings.policy.server_name.as_str())
            .arg(&settings.module)
            .arg(&settings.label)
            .env_clear()
            .envs(allowed.filter_map(|name| Some((name, std::env::var_os(name)?))))
            .current_dir("/")
            // A Ctrl-C is for the box, which ends its helper in order.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::Helper)?;
        Ok(Self { child, socket, timeout: settings.timeout })
    }

    /// Asks, and waits for the answer. After an error of its own (not one in an [`Answer`]) the helper is of no use any more
    /// and must be dropped; one that hangs is killed already.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Answer, Error> {
        self.exchange(request).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                drop(self.child.kill());
                Error::Timeout
            }
            _ => Error::HelperDied { how: self.how_it_died(&error) },
        })
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Answer> {
        let mut pipe = Deadline { socket: &self.socket, at: Instant::now() + self.timeout };
        wire::send(&mut pipe, request)?;
        for _ in 0..STEPS_MAX {
            pipe.at = Instant::now() + self.timeout;
            match wire::receive(&mut pipe)? {
                Some(Answer::Working) => {}
                Some(answer) => return Ok(answer),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "it never came to an end"))
    }

    fn how_it_died(&mut self, error: &io::Error) -> String {
        // Its end of the socket closes a little before it can be waited for.
        if error.kind() != io::ErrorKind::InvalidData && self.socket_closes() {
            return self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        }
        error.to_string()
    }

    /// Waits until the other end of the socket is closed, which the end of the process does.
    fn socket_closes(&mut self) -> bool {
        let mut pipe = Deadline { socket: &self.socket, at: Instant::now() + END_WITHIN };
        io::copy(&mut pipe, &mut io::sink()).is_ok()
    }
}

/// Lets the helper close its session, and kills it if it does not.
impl Drop for Helper {
    fn drop(&mut self) {
        // Killed or dead already: then there is nobody to tell.
        drop(self.socket.shutdown(Shutdown::Write));
        if !self.socket_closes() {
            log::error!("the process with the PKCS#11 module does not end and is killed");
            drop(self.child.kill());
            if !self.socket_closes() {
                log::error!(
                    "the process with the PKCS#11 module cannot be killed: the kernel holds it in a call to the device, which must be unplugged"
                );
                return;
            }
        }
        drop(self.child.wait());
    }
}

/// A socket whose reads and writes fail with `TimedOut` or `WouldBlock` when the time has come.
struct Deadline<'a> {
    socket: &'a UnixStream,
    at: Instant,
}

impl Deadline<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl io::Read for Deadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buffer)
    }
}

impl io::Write for Deadline<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
