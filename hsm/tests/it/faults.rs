//! Faults that SoftHSM never shows but tokens do, through the module that fails on order (`sallyport-hsm-faults`).
//!
//! One table drives the tests and is what `hsm/README.md` shows.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use sallyport_core::sign::verify;
use sallyport_hsm::{
    Class, Error, Health, HelperPlace, HelperToken, KeyKind, KeyName, KeyRole, Pin, Token,
};
use sallyport_hsm_faults::{Fault, Function, ORDERS, Orders, Times};

use crate::{
    requests::{policy, x_matrix},
    softhsm::{self, HOME, PIN, SoftHsm, eventually, helpers},
};

/// Set to rewrite the table in the README.
const REWRITE: &str = "SALLYPORT_REWRITE_TABLES";
/// How long a token in these tests has for one operation: longer than a loaded machine needs, and not for ever.
const TIMEOUT: Duration = Duration::from_secs(5);

const DEVICE_REMOVED: Fault = Fault::Return(0x32);
const SESSION_HANDLE_INVALID: Fault = Fault::Return(0xb3);

/// A fault, and what becomes of it.
struct Row {
    fault: &'static str,
    /// A part of the error that the caller of `sign` gets, if any.
    sees: Option<&'static str>,
    goes_on: &'static str,
    kept: &'static str,
}

/// Makes a test of each row and the table of all of them. The body plays the fault and gives the error that a caller of `sign`
/// saw; after it, the token must become ready and sign with the key from before.
macro_rules! faults {
    ($($name:ident: $row:expr, |$faulty:ident| $play:expr;)*) => {
        $(#[test]
        fn $name() {
            Faulty::new().meets(&$row, |$faulty| $play);
        })*

        const TABLE: &[Row] = &[$($row),*];
    };
}

faults! {
    a_device_is_removed: Row {
        fault: "`CKR_DEVICE_REMOVED`: the device is unplugged",
        sees: Some("the token was removed or does not answer: check the device"),
        goes_on: "the box looks for the token after 1 s, 2 s, … 15 s and opens it as soon as it is there",
        kept: "the keys in the token; events wait for their signatures",
    }, |faulty| {
        faulty.order(Function::Sign, Times::Always, DEVICE_REMOVED);
        faulty.order(Function::GetSlotList, Times::Always, DEVICE_REMOVED);
        let error = faulty.sign().err();
        assert_eq!(error.as_ref().map(Error::class), Some(Class::Reopen));
        assert!(matches!(faulty.token.health(), Health::Absent { .. }));
        // No answer takes long while it is away.
        let start = Instant::now();
        let answers = faulty.token.sign_many(&faulty.event, &vec![x_matrix(1); 500]);
        assert!(answers.iter().all(Result::is_err));
        assert!(start.elapsed() < TIMEOUT);
        error
    };

    a_session_is_lost: Row {
        fault: "`CKR_SESSION_HANDLE_INVALID` and its kin: the session or the login is gone",
        sees: None,
        goes_on: "the session is opened again and the request repeated, once",
        kept: "the request",
    }, |faulty| {
        for rv in [0xb0, 0xb3, 0x60, 0x82, 0x90, 0x101, 0x190, 0x30, 0x32, 0xe0] {
            faulty.order(Function::Sign, Times::Once, Fault::Return(rv));
            faulty.sign().unwrap();
            assert_eq!(faulty.token.health(), Health::Ready, "{rv:x}");
        }
        None
    };

    an_error_has_no_meaning: Row {
        fault: "`CKR_GENERAL_ERROR`, or a vendor's own value",
        sees: Some("the token failed in C_Sign with GeneralError"),
        goes_on: "the token is asked whether it is still there; if it is, the session stays",
        kept: "everything but this request",
    }, |faulty| {
        for rv in [6, 0x8000_0001] {
            faulty.order(Function::Sign, Times::Once, Fault::Return(rv));
            assert!(matches!(faulty.sign(), Err(Error::Device { .. })));
        }
        faulty.order(Function::Sign, Times::Once, Fault::Return(5));
        let error = faulty.sign().err();
        faulty.sign().unwrap();
        assert_eq!(faulty.orders.calls(Function::Login), 0);
        error
    };

    a_call_never_returns: Row {
        fault: "a call hangs for ever",
        sees: Some("the token did not answer in time"),
        goes_on: "the helper is killed at the deadline and started again after 1 s, then ever more rarely until a request works",
        kept: "the box and its memory; the keys in the token",
    }, |faulty| {
        let before = helpers();
        faulty.order(Function::Sign, Times::Once, Fault::Hang);
        let start = Instant::now();
        let error = faulty.sign().err();
        assert!(start.elapsed() >= TIMEOUT);
        eventually("a signature by another helper", || faulty.sign().is_ok());
        assert_eq!(helpers().len(), 1);
        assert!(helpers().is_disjoint(&before));
        error
    };

    a_module_crashes: Row {
        fault: "the module crashes inside a call",
        sees: Some("the process with the PKCS#11 module died (signal: 6 (SIGABRT)"),
        goes_on: "the helper is started again after 1 s, then ever more rarely until a request works",
        kept: "the box and its memory; the keys in the token",
    }, |faulty| {
        let before = helpers();
        faulty.order(Function::Sign, Times::Once, Fault::Crash);
        let error = faulty.sign().err();
        assert!(matches!(faulty.token.health(), Health::Absent { why, attempts: 1 } if why.contains("started again")));
        eventually("a signature by another helper", || faulty.sign().is_ok());
        assert!(helpers().is_disjoint(&before));
        error
    };

    a_module_crashes_at_the_login: Row {
        fault: "the module crashes or hangs while it is given the PIN",
        sees: Some("the token is not open: the process with the PKCS#11 module died"),
        goes_on: "as after any crash: nobody knows whether this cost an attempt, so the box stops before the last one",
        kept: "the last attempt at the PIN, where the token tells how many are left",
    }, |faulty| {
        faulty.order(Function::Sign, Times::Once, SESSION_HANDLE_INVALID);
        faulty.order(Function::Login, Times::Once, Fault::Crash);
        let error = faulty.sign().err();
        eventually("a signature by another helper", || faulty.sign().is_ok());
        assert_eq!(faulty.orders.calls(Function::Login), 2);
        error
    };

    a_signature_is_wrong_once: Row {
        fault: "a wrong signature, once",
        sees: None,
        goes_on: "the key is looked up anew and the signature asked for once more",
        kept: "the request; a signature that does not verify is never given out",
    }, |faulty| {
        faulty.order(Function::Sign, Times::Once, Fault::Flip);
        faulty.sign().unwrap();
        None
    };

    every_signature_is_wrong: Row {
        fault: "a wrong signature, always",
        sees: Some("the token gave a wrong signature"),
        goes_on: "nothing is signed until an operator has replaced the module or the token",
        kept: "a signature that does not verify is never given out",
    }, |faulty| {
        faulty.order(Function::Sign, Times::Always, Fault::Flip);
        let answers = faulty.token.sign_many(&faulty.event, &[x_matrix(1), x_matrix(2)]);
        assert!(answers.iter().all(|answer| matches!(answer, Err(Error::BadSignature(_)))));
        faulty.sign().err()
    };

    handles_are_used_again: Row {
        fault: "after a login behind our back, handle numbers mean other keys",
        sees: None,
        goes_on: "the signature by the other key is noticed, the key looked up anew",
        kept: "the request; no key signs for another",
    }, |faulty| {
        let other = faulty.token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
        faulty.sign_with(&other).unwrap();
        faulty.sign().unwrap();
        let before = faulty.orders.calls(Function::Sign);
        faulty.order(Function::SignInit, Times::Once, Fault::SwapHandles);
        faulty.sign().unwrap();
        // The first of the two was by the other key.
        assert_eq!(faulty.orders.calls(Function::Sign), before + 2);
        faulty.sign_with(&other).unwrap();
        None
    };

    a_token_is_slow: Row {
        fault: "each signature takes 300 ms",
        sees: None,
        goes_on: "all requests are answered in order",
        kept: "every request",
    }, |faulty| {
        faulty.order(Function::Sign, Times::Always, Fault::Delay(Duration::from_millis(300)));
        let start = Instant::now();
        let requests: Vec<_> = (0..4).map(x_matrix).collect();
        let public = faulty.token.public_key(&faulty.event).unwrap();
        for (request, answer) in requests.iter().zip(faulty.token.sign_many(&faulty.event, &requests)) {
            verify(&public, &request.bytes_to_sign(&policy()).unwrap(), &answer.unwrap()).unwrap();
        }
        // Two sessions sign side by side.
        assert!(start.elapsed() >= Duration::from_millis(2 * 300));
        assert_eq!(faulty.token.health(), Health::Ready);
        None
    };

    a_pin_is_refused: Row {
        fault: "`CKR_PIN_INCORRECT` or `CKR_PIN_EXPIRED` at a login",
        sees: Some("the token refused the PIN: give the right one"),
        goes_on: "nothing is tried until somebody gives a PIN (`sallyctl token unlock`)",
        kept: "the token's attempts: a refused PIN is tried once",
    }, |faulty| {
        faulty.locked_by(Fault::Return(0xa3), "expired");
        faulty.locked_by(Fault::Return(0xa0), "give the right one")
    };

    a_pin_is_locked: Row {
        fault: "`CKR_PIN_LOCKED`",
        sees: Some("unlock it with its security officer's PIN"),
        goes_on: "nothing is tried until somebody has unlocked the token and gives the PIN",
        kept: "the keys in the token",
    }, |faulty| faulty.locked_by(Fault::Return(0xa4), "security officer");

    one_attempt_is_left: Row {
        fault: "the token says that one attempt at the PIN is left",
        sees: Some("the token has one attempt at the PIN left"),
        goes_on: "the box does not spend it; a person may",
        kept: "the last attempt",
    }, |faulty| {
        faulty.order(Function::GetTokenInfo, Times::Always, Fault::FinalTry);
        faulty.order(Function::Sign, Times::Once, SESSION_HANDLE_INVALID);
        let error = faulty.sign().err();
        assert_eq!(faulty.orders.calls(Function::Login), 0);
        faulty.token.reopen(pin()).unwrap();
        assert_eq!(faulty.orders.calls(Function::Login), 1);
        error
    };

    a_token_is_exchanged: Row {
        fault: "another token with the same label is put in",
        sees: Some("has the serial number ANOTHER TOKEN"),
        goes_on: "the box waits for the one that it opened first; it does not log in to the other",
        kept: "no PIN goes to a strange token, no key is taken for another",
    }, |faulty| {
        faulty.order(Function::GetTokenInfo, Times::Always, Fault::OtherSerial);
        faulty.order(Function::Sign, Times::Once, SESSION_HANDLE_INVALID);
        let error = faulty.sign().err();
        assert_eq!(faulty.orders.calls(Function::Login), 0);
        error
    };

    a_module_needs_a_fresh_start: Row {
        fault: "the module sees no token until it is initialised anew",
        sees: Some("check the device"),
        goes_on: "the second attempt finalises the module and initialises it",
        kept: "the keys in the token",
    }, |faulty| {
        faulty.order(Function::Sign, Times::Once, DEVICE_REMOVED);
        faulty.order(Function::GetSlotList, Times::UntilFinalize, Fault::Return(0xe0));
        let error = faulty.sign().err();
        eventually("opening the token", || faulty.sign().is_ok());
        assert!(faulty.orders.calls(Function::Finalize) > 0);
        error
    };
}

#[test]
fn the_readme_shows_the_table() {
    let mut table = "| fault | who asked for the signature sees | what goes on | what is never lost |\n|---|---|---|---|\n".to_owned();
    for Row { fault, sees, goes_on, kept } in TABLE {
        let sees = sees.map_or("nothing".to_owned(), |sees| format!("“{sees} …”"));
        writeln!(table, "| {fault} | {sees} | {goes_on} | {kept} |").unwrap();
    }
    readme_shows("faults", &table);
}

/// Compares a table with the one of that name in the README, or writes it there.
pub(crate) fn readme_shows(name: &str, table: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(&begin).unwrap();
    let (shown, tail) = rest.split_once(&end).unwrap();
    if env::var_os(REWRITE).is_some() {
        fs::write(&path, [head, &begin, table, &end, tail].concat()).unwrap();
    } else {
        assert_eq!(shown, table, "run `make fault-table`");
    }
}

#[test]
fn a_pin_that_was_given_by_hand_outlives_the_session_and_not_the_helper() {
    let faulty = Faulty::new();
    softhsm::write_pin(&faulty.hsm.pin_file, "not the PIN");
    faulty.token.reopen(pin()).unwrap();
    faulty.order(Function::Sign, Times::Once, SESSION_HANDLE_INVALID);
    faulty.sign().unwrap();

    faulty.order(Function::Sign, Times::Once, Fault::Crash);
    assert!(matches!(faulty.sign(), Err(Error::HelperDied { .. })));
    eventually("missing the PIN", || matches!(faulty.token.health(), Health::Locked { .. }));
    let locked = faulty.sign().unwrap_err();
    assert!(locked.to_string().contains("given by hand and is not kept"), "{locked}");
    faulty.token.reopen(pin()).unwrap();
    faulty.sign().unwrap();
}

#[test]
fn the_module_gets_no_environment_but_what_is_configured() {
    let hsm = SoftHsm::new();
    let mut settings = softhsm::settings(&module(), &hsm.label, &hsm.pin_file, TIMEOUT);
    // Without the variable with the real module the faulty one does not load.
    if let HelperPlace::Child { environment, .. } = &mut settings.place {
        *environment = vec![ORDERS.to_owned()];
    }
    let token = HelperToken::start(settings).unwrap();
    let missing = token.keys().unwrap_err().to_string();
    assert!(missing.contains("cannot be loaded"), "{missing}");
}

/// A token behind the faulty module, with an event key, and no order given yet.
struct Faulty {
    hsm: SoftHsm,
    orders: Orders,
    token: HelperToken,
    event: KeyName,
}

impl Faulty {
    fn new() -> Self {
        let hsm = SoftHsm::new();
        let orders = Orders::new(&HOME.join("orders"));
        orders.clear().unwrap();
        let settings = softhsm::settings(&module(), &hsm.label, &hsm.pin_file, TIMEOUT);
        let token = HelperToken::start(settings).unwrap();
        let event = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
        let faulty = Self { hsm, orders, token, event };
        faulty.sign().unwrap();
        faulty.orders.clear().unwrap();
        faulty
    }

    fn meets(&self, row: &Row, play: impl FnOnce(&Self) -> Option<Error>) {
        let public = self.token.public_key(&self.event).unwrap();
        let saw = play(self).map(|error| error.to_string());
        match (&saw, row.sees) {
            (Some(saw), Some(part)) => assert!(saw.contains(part), "{saw}"),
            (saw, sees) => assert!(saw.is_none() && sees.is_none(), "{saw:?}"),
        }
        self.orders.clear().unwrap();
        if matches!(self.token.health(), Health::Locked { .. }) {
            self.token.reopen(pin()).unwrap();
        }
        eventually("a signature after the fault", || self.sign().is_ok());
        assert_eq!(self.token.health(), Health::Ready);
        assert!(self.token.keys().unwrap().contains(&self.event));
        assert_eq!(self.token.public_key(&self.event).unwrap(), public);
    }

    fn order(&self, function: Function, times: Times, fault: Fault) {
        self.orders.give(function, times, fault).unwrap();
    }

    /// Has every login fail after the session is lost: there must be one, however often a signature is asked for.
    fn locked_by(&self, fault: Fault, why: &str) -> Option<Error> {
        if matches!(self.token.health(), Health::Locked { .. }) {
            self.orders.clear().unwrap();
            self.token.reopen(pin()).unwrap();
        }
        self.orders.clear().unwrap();
        self.order(Function::Login, Times::Always, fault);
        self.order(Function::Sign, Times::Once, SESSION_HANDLE_INVALID);
        let error = self.sign().err();
        for _ in 0..20 {
            assert!(matches!(self.sign(), Err(Error::Locked { .. })));
        }
        assert!(matches!(self.token.health(), Health::Locked { why: told } if told.contains(why)));
        assert_eq!(self.orders.calls(Function::Login), 1);
        error
    }

    fn sign(&self) -> Result<(), Error> {
        self.sign_with(&self.event)
    }

    fn sign_with(&self, key: &KeyName) -> Result<(), Error> {
        let signature = self.token.sign(key, &x_matrix(1))?;
        let bytes = x_matrix(1).bytes_to_sign(&policy()).unwrap();
        verify(&self.token.public_key(key)?, &bytes, &signature).unwrap();
        Ok(())
    }
}

fn pin() -> Pin {
    Pin::new(PIN.to_owned())
}

/// Cargo builds the module beside the tests, which depend on its package.
pub(crate) fn module() -> PathBuf {
    let executable = env::current_exe().unwrap();
    let module = executable.with_file_name("libsallyport_hsm_faults.so");
    assert!(module.exists(), "{} is not built", module.display());
    module
}
