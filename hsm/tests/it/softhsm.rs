//! SoftHSM 2 in a directory of its own: one per process, because the module has one configuration per process.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    session::{Session, UserType},
};
use sallyport_hsm::{
    HelperPlace, HelperProgram, HelperSettings, HelperToken, Pin, PinSource, ServedToken, Sessions,
    init_token,
};

use sallyport_hsm_faults::{ORDERS, REAL};

use crate::requests::policy;

/// User PIN of every token here.
pub(crate) const PIN: &str = "correct horse";
/// Long enough for a loaded machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// A token that was set up for one test. Only one test at a time has one.
pub(crate) struct SoftHsm {
    pub(crate) label: String,
    /// SoftHSM's directory of this token.
    pub(crate) directory: PathBuf,
    pub(crate) pin_file: PathBuf,
    _one_at_a_time: MutexGuard<'static, ()>,
}

impl SoftHsm {
    /// Sets a token up.
    pub(crate) fn new() -> Self {
        let guard = serialize();
        let (label, pin_file) = unused_label();
        let directory = make(&label);
        Self { label, directory, pin_file, _one_at_a_time: guard }
    }

    /// Starts the backend on this token.
    pub(crate) fn start(&self) -> HelperToken {
        start(&module(), &self.label, &self.pin_file)
    }

    /// A logged-in session beside the backend's.
    pub(crate) fn session(&self) -> Session {
        let pkcs11 = pkcs11();
        let slots = pkcs11.get_slots_with_token().unwrap();
        let slot = slots
            .into_iter()
            .find(|slot| pkcs11.get_token_info(*slot).is_ok_and(|info| info.label() == self.label))
            .unwrap();
        let session = pkcs11.open_rw_session(slot).unwrap();
        session.login(UserType::User, Some(&PIN.into())).unwrap();
        session
    }
}

/// Waits until the one test before has let the module go.
pub(crate) fn serialize() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    LazyLock::force(&HOME);
    guard
}

/// A label that no token has yet, and a file with the right PIN.
pub(crate) fn unused_label() -> (String, PathBuf) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let label = format!("test {}", COUNT.fetch_add(1, Ordering::Relaxed));
    let pin_file = HOME.join(format!("{label}.pin"));
    write_pin(&pin_file, PIN);
    (label, pin_file)
}

/// Sets up a token with a label and gives its directory.
pub(crate) fn make(label: &str) -> PathBuf {
    let before = tokens();
    let officer_pin = Pin::new("officer's PIN".to_owned());
    init_token(&module(), label, &officer_pin, &Pin::new(PIN.to_owned())).unwrap();
    tokens().difference(&before).next().unwrap().clone()
}

pub(crate) fn start(module: &Path, label: &str, pin_file: &Path) -> HelperToken {
    HelperToken::start(settings(module, label, pin_file, TIMEOUT)).unwrap()
}

pub(crate) fn settings(
    module: &Path,
    label: &str,
    pin_file: &Path,
    timeout: Duration,
) -> HelperSettings {
    HelperSettings {
        place: place(served(module, label)),
        pin: PinSource::File(pin_file.to_owned()),
        timeout,
        policy: policy(),
    }
}

/// A helper of ours with all that both modules need.
pub(crate) fn place(token: ServedToken) -> HelperPlace {
    let environment = vec![REAL.to_owned(), ORDERS.to_owned()];
    HelperPlace::Child { program: program(), token, environment }
}

pub(crate) fn served(module: &Path, label: &str) -> ServedToken {
    ServedToken {
        module: module.to_owned(),
        label: label.to_owned(),
        serial: None,
        sessions: Sessions::default(),
        network: false,
        writable: vec![HOME.join("tokens"), HOME.join("orders")],
    }
}

pub(crate) fn program() -> HelperProgram {
    HelperProgram { path: example("token-helper"), arguments: Vec::new() }
}

/// Cargo builds examples with the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let profile = executable.ancestors().nth(2).unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// The processes that the tests have started and that still run.
pub(crate) fn helpers() -> BTreeSet<u32> {
    let us = std::process::id().to_string();
    let processes = fs::read_dir("/proc").unwrap();
    let numbers = processes.filter_map(|e| e.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let ours = |process: &u32| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
        // After the name, which stands in brackets: state and parent.
        let mut words = stat.rsplit(')').next().unwrap().split_whitespace();
        words.next() != Some("Z") && words.next() == Some(&us)
    };
    numbers.filter(ours).collect()
}

pub(crate) fn write_pin(path: &Path, pin: &str) {
    drop(fs::remove_file(path));
    let mut options = fs::OpenOptions::new();
    let mut file = options.create_new(true).write(true).mode(0o600).open(path).unwrap();
    std::io::Write::write_all(&mut file, pin.as_bytes()).unwrap();
}

/// The module beside the backend, initialised.
pub(crate) fn pkcs11() -> Pkcs11 {
    let pkcs11 = Pkcs11::new(module()).unwrap();
    drop(pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)));
    pkcs11
}

/// Asks again and again, for what happens by itself.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + 2 * TIMEOUT;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::park_timeout(Duration::from_millis(20));
    }
}

pub(crate) fn module() -> PathBuf {
    let known = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib64/pkcs11/libsofthsm2.so",
        "/usr/local/lib/softhsm/libsofthsm2.so",
    ];
    known.iter().map(PathBuf::from).find(|path| path.exists()).expect(
        "these tests need SoftHSM 2: install the package `softhsm2` (Debian) or `softhsm` (Fedora)",
    )
}

/// Directory of this process: configuration, tokens, PIN files.
pub(crate) static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
    let home =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("softhsm-{}", std::process::id()));
    drop(fs::remove_dir_all(&home));
    fs::create_dir_all(home.join("tokens")).unwrap();
    fs::create_dir_all(home.join("orders")).unwrap();
    fs::create_dir_all(home.join("credentials")).unwrap();
    let configuration = home.join("softhsm2.conf");
    let tokens = home.join("tokens");
    fs::write(
        &configuration,
        format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display()),
    )
    .unwrap();
    #[expect(unsafe_code, reason = "both modules are configured by their environment only")]
    // SAFETY: each test that touches the environment waits for this first, and nothing else here reads it meanwhile.
    unsafe {
        std::env::set_var("SOFTHSM2_CONF", configuration);
        std::env::set_var(REAL, module());
        std::env::set_var(ORDERS, home.join("orders"));
        std::env::set_var("CREDENTIALS_DIRECTORY", home.join("credentials"));
    }
    home
});

fn tokens() -> BTreeSet<PathBuf> {
    fs::read_dir(HOME.join("tokens")).unwrap().map(|entry| entry.unwrap().path()).collect()
}
