//! A PKCS#11 module for tests: it hands every call on to another module, and fails on order in the ways in which tokens do.
//!
//! The shared library of this package is the module. It finds what it stands in front of, and the folder with its orders, in
//! two environment variables ([`REAL`], [`ORDERS`]). The Rust library is the other end: a test gives orders with [`Orders`].
//!
//! An order is a file that is named after the PKCS#11 function that is to fail. It appears whole and disappears whole (by
//! renaming), and an order for one call goes to the one call that renames it first: tests and modules in any number of
//! processes need no other agreement. Every call of a function that can fail is a line in `log`. Another order hides mechanisms, so that SoftHSM2
//! can play devices that know less.

use std::{
    fmt, fs,
    io::{self, Write as _},
    net::UdpSocket,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
    time::Duration,
};

pub mod module;

/// The environment variable with the path of the module that does the work.
pub const REAL: &str = "SALLYPORT_FAULTS_REAL";
/// The environment variable with the folder of the orders.
pub const ORDERS: &str = "SALLYPORT_FAULTS_ORDERS";

/// What somebody types at the PIN pad of [`Fault::PinPad`].
pub const PAD_PIN: &str = "correct horse";

/// The file in which the module says what it succeeded in.
const ESCAPES: &str = "escapes";

/// The file of an order to hide mechanisms.
const HIDDEN: &str = "hidden";

/// A function that can be told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `C_Finalize`: cannot fail, but its calls are counted.
    Finalize,
    /// `C_GetSlotList`: the first thing that an attempt to open the token asks.
    GetSlotList,
    /// `C_GetTokenInfo`.
    GetTokenInfo,
    /// `C_Login`.
    Login,
    /// `C_SignInit`.
    SignInit,
    /// `C_Sign`; the call that only asks for the length does not count.
    Sign,
}

impl Function {
    /// The name in the standard.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Finalize => "C_Finalize",
            Self::GetSlotList => "C_GetSlotList",
            Self::GetTokenInfo => "C_GetTokenInfo",
            Self::Login => "C_Login",
            Self::SignInit => "C_SignInit",
            Self::Sign => "C_Sign",
        }
    }
}

/// How often an order holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// For one call.
    Once,
    /// Until it is revoked.
    Always,
    /// Until the module is finalised.
    UntilFinalize,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The function returns this value (a `CKR_…`) instead of its own.
    Return(u64),
    /// The function never returns.
    Hang,
    /// The process is aborted inside the function, as by a bug of the module.
    Crash,
    /// `C_Sign` takes this much longer.
    Delay(Duration),
    /// `C_Sign` gives a signature with one bit flipped.
    Flip,
    /// From now on the handles of the two keys that signed last stand for one another, as after a login that gave the same
    /// numbers out in another order (`C_SignInit`).
    SwapHandles,
    /// `C_GetTokenInfo` tells of one attempt at the PIN left.
    FinalTry,
    /// `C_GetTokenInfo` gives another serial number: somebody put another token in.
    OtherSerial,
    /// `C_GetTokenInfo` tells of a PIN pad, at which somebody types [`PAD_PIN`] when `C_Login` is called without a PIN.
    PinPad,
    /// The module tries to get out of its process, and leaves word of what succeeded ([`Orders::escapes`]).
    Escape,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return(rv) => write!(f, "return {rv}"),
            Self::Delay(time) => write!(f, "delay {}", time.as_millis()),
            Self::Hang => f.write_str("hang"),
            Self::Crash => f.write_str("crash"),
            Self::Flip => f.write_str("flip"),
            Self::SwapHandles => f.write_str("swap-handles"),
            Self::FinalTry => f.write_str("final-try"),
            Self::OtherSerial => f.write_str("other-serial"),
            Self::PinPad => f.write_str("pin-pad"),
            Self::Escape => f.write_str("escape"),
        }
    }
}

/// Not the text of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFault;

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(text: &str) -> Result<Self, UnknownFault> {
        let (word, number) = text.split_once(' ').unwrap_or((text, ""));
        let number = number.parse().map_err(|_| UnknownFault);
        Ok(match word {
            "return" => Self::Return(number?),
            "delay" => Self::Delay(Duration::from_millis(number?)),
            "hang" => Self::Hang,
            "crash" => Self::Crash,
            "flip" => Self::Flip,
            "swap-handles" => Self::SwapHandles,
            "final-try" => Self::FinalTry,
            "other-serial" => Self::OtherSerial,
            "pin-pad" => Self::PinPad,
            "escape" => Self::Escape,
            _ => return Err(UnknownFault),
        })
    }
}

/// The folder in which a test and its modules meet.
#[derive(Clone, Debug)]
pub struct Orders {
    folder: PathBuf,
}

impl Orders {
    /// Uses a folder that is there.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Has a function fail from its next call on.
    ///
    /// # Errors
    /// If the order cannot be written.
    pub fn give(&self, function: Function, times: Times, fault: Fault) -> io::Result<()> {
        let times = match times {
            Times::Once => "once",
            Times::Always => "always",
            Times::UntilFinalize => "until-finalize",
        };
        let draft = self.folder.join("draft");
        fs::write(&draft, format!("{times} {fault}"))?;
        fs::rename(draft, self.folder.join(function.name()))
    }

    /// Makes the module one that does not know these mechanisms (numbers of `CKM_…`), in all processes, until the orders are
    /// taken back.
    ///
    /// # Errors
    /// If the order cannot be written.
    pub fn hide(&self, mechanisms: &[u64]) -> io::Result<()> {
        let draft = self.folder.join("draft");
        let numbers: Vec<_> = mechanisms.iter().map(ToString::to_string).collect();
        fs::write(&draft, numbers.join(" "))?;
        fs::rename(draft, self.folder.join(HIDDEN))
    }

    /// Takes all orders back and forgets the calls.
    ///
    /// # Errors
    /// If the folder cannot be read or changed.
    pub fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            gone_is_fine(fs::remove_file(entry?.path()))?;
        }
        Ok(())
    }

    /// How often a function was called since the last [`Orders::clear`].
    #[must_use]
    pub fn calls(&self, function: Function) -> usize {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines().filter(|line| *line == function.name()).count()
    }

    /// What a module succeeded in when it was told to escape; `None` if it was not told, or could not leave word.
    #[must_use]
    pub fn escapes(&self) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.folder.join(ESCAPES)).ok()?;
        Some(text.split_whitespace().map(str::to_owned).collect())
    }

    /// The module's side: tries what a hostile one would.
    fn escape(&self) -> io::Result<()> {
        let beside = self.folder.with_file_name("escaped");
        let attempts = [
            ("network", UdpSocket::bind("127.0.0.1:0").is_ok()),
            ("network6", UdpSocket::bind("[::1]:0").is_ok()),
            ("daemons", UnixDatagram::unbound().is_ok()),
            ("program", Command::new("true").status().is_ok()),
            ("files", fs::write(&beside, "").is_ok()),
            ("folders", fs::create_dir(beside.with_extension("d")).is_ok()),
            ("orders", fs::write(self.folder.join("draft"), "").is_ok()),
        ];
        let done: Vec<_> =
            attempts.iter().filter(|(_, done)| *done).map(|(what, _)| *what).collect();
        fs::write(self.folder.join(ESCAPES), done.join(" "))
    }

    /// The module's side: notes a call, and gives the fault that is ordered for it.
    fn take(&self, function: Function) -> Option<Fault> {
        let log = self.folder.join("log");
        let mut log = fs::OpenOptions::new().create(true).append(true).open(log).ok()?;
        // One write of a short line to a file that is only appended to: lines do not mix.
        log.write_all(format!("{}\n", function.name()).as_bytes()).ok()?;
        let path = self.folder.join(function.name());
        let order = fs::read_to_string(&path).ok()?;
        let (times, fault) = order.split_once(' ')?;
        if times == "once" {
            fs::rename(&path, self.folder.join("taken")).ok()?;
        }
        fault.parse().ok()
    }

    /// The module's side: whether the device that is played does not have a mechanism.
    fn hides(&self, mechanism: u64) -> bool {
        let numbers = fs::read_to_string(self.folder.join(HIDDEN)).unwrap_or_default();
        numbers.split(' ').any(|number| number.parse() == Ok(mechanism))
    }

    /// The module's side: the orders that end with `C_Finalize`.
    fn end_at_finalize(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if fs::read_to_string(&path).is_ok_and(|order| order.starts_with("until-finalize ")) {
                gone_is_fine(fs::remove_file(path))?;
            }
        }
        Ok(())
    }
}

fn gone_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
