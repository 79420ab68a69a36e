//! One enclave: a folder, a configuration, a token, and a box that is started and stopped.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::{fs::OpenOptionsExt as _, net::UnixDatagram, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{self, Child, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    desk::Desk, http::Client, narrator::Narrator, place::Place, repository, softhsm::SoftHsm,
};

/// How long a box may take to start or stop before we call it stuck.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// How often we look whether a box that we wait for has died. What we wait for is its own message.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The PIN of the tokens that the harness makes.
pub const PIN: &str = "alpha-1234";

/// Where the enclave's key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A key file, which waits for `delay_ms` before each signature as a slow token would.
    Software {
        /// Milliseconds per signature.
        delay_ms: u64,
    },
    /// SoftHSM2 through PKCS#11.
    SoftHsm,
}

/// What an enclave is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `alpha`; the Matrix server name is `alpha.example`.
    pub name: String,
    /// Where everything of the enclave lives. Made if it is not there.
    pub folder: PathBuf,
    /// Where the key lives.
    pub token: Token,
    /// How a token keeps event keys: `auto`, `direct` or `envelope`.
    pub token_mode: &'static str,
    /// `closed`, `token` or `open`.
    pub registration: &'static str,
    /// Where clients connect with HTTPS; the plain listener is one port below.
    pub address: SocketAddr,
    /// Whether keys of the enclave root and of an officer are made, so that the box takes rosters and has a card.
    pub ceremony: bool,
    /// Who tells what the admin does.
    pub narrator: Narrator,
    /// Whether Ctrl-C in the terminal reaches the box. Where it does not, whoever started it must stop it.
    pub hears_the_terminal: bool,
}

/// An enclave and its box. The box is killed with this value.
#[derive(Debug)]
pub struct Enclave {
    plan: Plan,
    place: Place,
    desk: Desk,
    softhsm: Option<SoftHsm>,
    running: Option<Child>,
}

impl Plan {
    /// An enclave for a test: open registration, a software token, and a loopback address that no other test has.
    #[must_use]
    pub fn for_test(name: &str, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            folder: folder.join(name),
            token: Token::Software { delay_ms: 0 },
            token_mode: "auto",
            registration: "open",
            address: SocketAddr::new(unused_loopback(), 8448),
            ceremony: false,
            narrator: Narrator::Silent,
            hears_the_terminal: true,
        }
    }

    /// The Matrix server name.
    #[must_use]
    pub fn server_name(&self) -> String {
        format!("{}.example", self.name)
    }

    /// The address for clients that speak HTTPS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The plain listener.
    #[must_use]
    pub fn plain(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.address.port() - 1)
    }

    /// The administration socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    /// The configuration file.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("sallyport.toml")
    }

    /// Where the box keeps its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn text(&self, officer: Option<&str>, recovery: Option<&str>) -> String {
        let token = match self.token {
            Token::Software { delay_ms } => {
                let path = self.folder.join("keys");
                format!("kind = \"software\"\npath = \"{}\"\ndelay_ms = {delay_ms}", path.display())
            }
            Token::SoftHsm => format!(
                "kind = \"pkcs11\"\nmodule = \"{}\"\ntoken_label = \"{}\"\npin = \"file:{}\"\nwritable = [\"{}\"]\nmode = \"{}\"",
                crate::softhsm::MODULE,
                self.name,
                self.pin_file().display(),
                self.folder.join("softhsm").display(),
                self.token_mode,
            ),
        };
        format!(
            "server_name = \"{}\"\n\
             public_url = \"{}\"\n\
             data_dir = \"{}\"\n\
             allow_software_keys = {}\n\n\
             [[listeners]]\naddress = \"{}\"\napis = [\"client\", \"activate\"]\ntls = true\n\n\
             [[listeners]]\naddress = \"{}\"\napis = [\"client\", \"activate\", \"metrics\"]\ntls = false\n\n\
             [tls]\nnames = [\"{}\"]\n\n\
             [admin]\nsocket = \"{}\"\n\n\
             [registration]\nmode = \"{}\"\n\n\
             [roster]\ntrusted_keys = [{}]\n\n\
             [backup]\nrecovery_keys = [{}]\n\n\
             [token]\n{token}\n",
            self.server_name(),
            self.url(),
            self.data().display(),
            matches!(self.token, Token::Software { .. }),
            self.address,
            self.plain(),
            self.address.ip(),
            self.admin_socket().display(),
            self.registration,
            officer.map(|key| format!("{key:?}")).unwrap_or_default(),
            recovery.map(|key| format!("{key:?}")).unwrap_or_default(),
        )
    }

    /// The file that the box takes the token's PIN from.
    #[must_use]
    pub fn pin_file(&self) -> PathBuf {
        self.folder.join("token.pin")
    }
}

impl Enclave {
    /// Makes the folder, the configuration and the token, or finds those of an earlier call. Starts nothing.
    ///
    /// # Errors
    /// When the folder or the token cannot be made.
    pub fn create(plan: Plan, place: Place) -> Result<Self> {
        fs::create_dir_all(plan.data())?;
        let softhsm = match plan.token {
            Token::SoftHsm => {
                write_secret(&plan.pin_file(), PIN)?;
                Some(SoftHsm::create(&plan.folder.join("softhsm"), &plan.name, PIN)?)
            }
            Token::Software { .. } => None,
        };
        let folder = plan.folder.join("desk");
        let desk = Desk::new(&plan.name, folder, plan.admin_socket(), plan.narrator)?;
        let (officer, recovery) = if plan.ceremony {
            let name = plan.server_name();
            (Some(desk.hold_ceremony(&name)?), Some(desk.recovery_key(&name)?))
        } else {
            (None, None)
        };
        let text = plan.text(officer.as_deref(), recovery.as_deref());
        fs::write(plan.configuration(), text)?;
        Ok(Self { plan, place, desk, softhsm, running: None })
    }

    /// An enclave for a test, started, on this machine's network.
    ///
    /// # Errors
    /// When it does not start.
    pub fn for_test(name: &str, folder: &Path) -> Result<Self> {
        let mut enclave = Self::create(Plan::for_test(name, folder), Place::Here)?;
        enclave.start()?;
        Ok(enclave)
    }

    /// As [`Enclave::for_test`], with keys of an enclave root and of an officer.
    ///
    /// # Errors
    /// When it does not start.
    pub fn with_officer(name: &str, folder: &Path) -> Result<Self> {
        let mut plan = Plan::for_test(name, folder);
        plan.ceremony = true;
        let mut enclave = Self::create(plan, Place::Here)?;
        enclave.start()?;
        Ok(enclave)
    }

    /// Enclaves alpha and bravo for a test, paired. So many officers must approve each export and each import.
    ///
    /// # Errors
    /// When one does not start, or a step is refused.
    pub fn paired(folder: &Path, approvals: &str) -> Result<(Self, Self)> {
        let alpha = Self::with_officer("alpha", folder)?;
        let bravo = Self::with_officer("bravo", folder)?;
        for enclave in [&alpha, &bravo] {
            enclave.desk.issue_card_with(approvals)?;
        }
        alpha.desk.pair_with(&bravo.desk)?;
        bravo.desk.pair_with(&alpha.desk)?;
        Ok((alpha, bravo))
    }

    /// Stops the box, and starts it without a PIN: a person must give it.
    ///
    /// # Errors
    /// When its configuration names no file with the PIN, or it does not start.
    pub fn restart_without_pin(&mut self) -> Result<()> {
        self.stop()?;
        let text = fs::read_to_string(self.plan.configuration())?;
        let source = format!("file:{}", self.plan.pin_file().display());
        ensure!(text.contains(&source), "no PIN is configured: {text}");
        fs::write(self.plan.configuration(), text.replace(&source, "ask"))?;
        self.start().map(drop)
    }

    /// What the enclave is like.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where its processes run.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Starts the box and waits until it says that it is ready. Answers how long that took.
    ///
    /// # Errors
    /// When the box ends instead, or is stuck; with the end of its log.
    pub fn start(&mut self) -> Result<Duration> {
        self.start_with(&[])
    }

    /// As [`Enclave::start`], with more on the command line.
    ///
    /// # Errors
    /// As [`Enclave::start`].
    pub fn start_with(&mut self, more: &[(&str, &Path)]) -> Result<Duration> {
        ensure!(self.running.is_none(), "{} runs already", self.plan.name);
        let notices = self.plan.folder.join("notify.sock");
        if let Err(error) = fs::remove_file(&notices) {
            ensure!(error.kind() == ErrorKind::NotFound, "{}: {error}", notices.display());
        }
        let socket = UnixDatagram::bind(&notices)?;
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        // Building the program, which the first start may have to do, is not part of starting it.
        let mut command = self.place.command(repository::sallyport()?);
        let started = Instant::now();
        command.arg("serve").arg("--config").arg(self.plan.configuration());
        for (option, path) in more {
            command.arg(option).arg(path);
        }
        command.env("NOTIFY_SOCKET", &notices);
        if let Some(softhsm) = &self.softhsm {
            command.env(SoftHsm::VARIABLE, softhsm.configuration());
        }
        if !self.plan.hears_the_terminal {
            command.process_group(0);
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let child = self.running.insert(child);
        loop {
            let mut notice = [0; 4096];
            match socket.recv(&mut notice) {
                Ok(length) => {
                    let text = notice.get(..length).unwrap_or_default();
                    if String::from_utf8_lossy(text).lines().any(|line| line == "READY=1") {
                        return Ok(started.elapsed());
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = child.try_wait()? {
                self.running = None;
                bail!("{} did not start ({status}):\n{}", self.plan.name, self.last_words());
            }
            if started.elapsed() > STUCK_AFTER {
                bail!("{} is not ready:\n{}", self.plan.name, self.last_words());
            }
        }
    }

    /// Asks the box to stop and waits until it has.
    ///
    /// # Errors
    /// When it is stuck or ends with an error.
    pub fn stop(&mut self) -> Result<()> {
        let mut child = self.running.take().context("it does not run")?;
        kill(pid(&child)?, Signal::SIGTERM)?;
        let status = child.wait()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.plan.name, self.last_words());
        Ok(())
    }

    /// Kills the box as a power cut would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.running.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Loses everything that was on the machine of the box: data and configuration. Desk and token are elsewhere.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn lose_machine(&mut self) -> Result<()> {
        self.kill()?;
        fs::remove_dir_all(self.plan.data())?;
        Ok(fs::remove_file(self.plan.configuration())?)
    }

    /// Stops the box in the middle of what it does, until [`Enclave::resume`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a paused box go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.running.as_ref().context("it does not run")?;
        Ok(kill(pid(child)?, signal)?)
    }

    /// Whether the box has ended by itself, and how.
    ///
    /// # Errors
    /// When it was not started.
    pub fn ended(&mut self) -> Result<Option<process::ExitStatus>> {
        Ok(self.running.as_mut().context("it does not run")?.try_wait()?)
    }

    /// Speaks to the plain listener. Only for enclaves on this machine's network.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn client(&self) -> Result<Client> {
        Client::new(self.plan.plain())
    }

    /// The token, if it is SoftHSM2.
    #[must_use]
    pub fn softhsm(&self) -> Option<&SoftHsm> {
        self.softhsm.as_ref()
    }

    /// Where its admin works.
    #[must_use]
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// The certificate of the enclave's own authority, which clients must trust.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.plan.data().join("ca.pem")
    }

    /// The SHA-256 fingerprint of [`Enclave::authority`], as the box said it at its last start.
    ///
    /// # Errors
    /// When it has not been started.
    pub fn authority_fingerprint(&self) -> Result<String> {
        let log = fs::read_to_string(self.log())?;
        let said = log.lines().rev().find_map(|line| line.split_once("sha256="));
        let (_, fingerprint) = said.context("the box did not say the fingerprint")?;
        Ok(fingerprint.split_whitespace().next().unwrap_or_default().trim_matches('"').to_owned())
    }

    /// The files that are mapped into the box's memory, as the kernel lists them.
    ///
    /// # Errors
    /// When the box does not run.
    pub fn mapped_files(&self) -> Result<String> {
        let child = self.running.as_ref().context("it does not run")?;
        Ok(fs::read_to_string(format!("/proc/{}/maps", child.id()))?)
    }

    /// The process that loaded the PKCS#11 module for the box: its only child.
    ///
    /// # Errors
    /// When the box does not run, or has no child.
    pub fn token_process(&self) -> Result<Pid> {
        let child = self.running.as_ref().context("it does not run")?;
        for entry in fs::read_dir("/proc")? {
            let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A process that has just ended is not the one.
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            // After the name, which stands in brackets: state and parent.
            let mut words = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            let alive = words.next().is_some_and(|state| state != "Z");
            if alive && words.next() == Some(&child.id().to_string()) {
                return Ok(Pid::from_raw(process));
            }
        }
        bail!("the box has no child")
    }

    /// A field of the box's `/proc/PID/status` in KiB, for example `VmRSS` or `VmHWM`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn memory_kib(&self, field: &str) -> Result<u64> {
        let child = self.running.as_ref().context("it does not run")?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number =
            line.and_then(|rest| rest.split_whitespace().next()).context("no such field")?;
        Ok(number.parse()?)
    }

    /// Makes `VmHWM` count from now.
    ///
    /// # Errors
    /// When it does not run, or the kernel refuses.
    pub fn forget_peak_memory(&self) -> Result<()> {
        let child = self.running.as_ref().context("it does not run")?;
        Ok(fs::write(format!("/proc/{}/clear_refs", child.id()), "5")?)
    }

    /// Everything that the box has logged.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.plan.folder.join("box.log")
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(20)).copied().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Enclave {
    fn drop(&mut self) {
        if self.running.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("{}: {error:#}", self.plan.name);
        }
    }
}

/// Writes a file that only its owner may read: the box refuses a PIN that others can.
///
/// # Errors
/// When it cannot be written.
pub fn write_secret(path: &Path, secret: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(secret.as_bytes())?)
}

fn pid(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(child.id().try_into()?))
}

/// A loopback address that no other running test uses: made of this process's id and a counter.
fn unused_loopback() -> IpAddr {
    static COUNTER: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, high, low, COUNTER.fetch_add(1, Ordering::Relaxed)))
}
