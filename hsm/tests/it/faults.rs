//! Faults that SoftHSM never shows but tokens do, through a module that fails on order (`tests/fault_module`).

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use sallyport_core::sign::verify;
use sallyport_hsm::{Class, Error, Health, KeyKind, KeyName, KeyRole, Pin, Pkcs11Token, Token};

use crate::{
    requests::{policy, x_matrix},
    softhsm::{self, PIN, SoftHsm, eventually, orders},
};

/// A token behind the faulty module, with an event key, and no order given yet.
struct Faulty {
    hsm: SoftHsm,
    token: Pkcs11Token,
    event: KeyName,
}

impl Faulty {
    fn new() -> Self {
        let hsm = SoftHsm::new();
        for suffix in ["", ".log", ".release"] {
            drop(fs::remove_file(orders(suffix)));
        }
        let token = softhsm::start(&module(), &hsm.label, &hsm.pin_file);
        let event = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
        Self { hsm, token, event }
    }

    fn sign(&self) -> Result<(), Error> {
        let signature = self.token.sign(&self.event, &x_matrix(1))?;
        let bytes = x_matrix(1).bytes_to_sign(&policy()).unwrap();
        verify(&self.token.public_key(&self.event)?, &bytes, &signature).unwrap();
        Ok(())
    }
}

#[test]
fn what_a_session_loses_is_mended_within_the_request() {
    let faulty = Faulty::new();
    for rv in ["b0", "b3", "60", "82", "90", "101", "190", "30", "32", "e0"] {
        order(&format!("C_Sign once {rv}"));
        faulty.sign().unwrap();
        assert_eq!(faulty.token.health(), Health::Ready, "{rv}");
    }
}

#[test]
fn a_device_that_stays_away_is_reported_and_found_again() {
    let faulty = Faulty::new();
    order("C_GetSlotList always 32");
    faulty.sign().unwrap();
    // The session is lost only when it is used.
    drop(faulty.token.reopen(Pin::new(PIN.to_owned())));
    let gone = faulty.sign().unwrap_err();
    assert!(matches!(gone, Error::Unavailable { .. }), "{gone}");
    assert_eq!(gone.class(), Class::Reopen);
    assert!(gone.to_string().contains("check the device"), "{gone}");
    revoke();
    eventually("finding the device again", || faulty.sign().is_ok());
}

#[test]
fn a_module_that_must_be_initialized_anew_is() {
    let faulty = Faulty::new();
    order("C_GetSlotList until-finalize e0");
    drop(faulty.token.reopen(Pin::new(PIN.to_owned())));
    eventually("opening the token", || faulty.sign().is_ok());
    assert!(calls("C_Finalize") > 0);
}

#[test]
fn a_wrong_signature_is_asked_for_again_and_never_given_out() {
    let faulty = Faulty::new();
    order("C_Sign once flip");
    faulty.sign().unwrap();
    order("C_Sign always flip");
    let wrong = faulty.sign().unwrap_err();
    assert!(matches!(&wrong, Error::BadSignature(key) if *key == faulty.event), "{wrong}");
    let answers = faulty.token.sign_many(&faulty.event, &[x_matrix(1), x_matrix(2)]);
    assert!(answers.iter().all(|answer| matches!(answer, Err(Error::BadSignature(_)))));
    revoke();
    faulty.sign().unwrap();
}

#[test]
fn a_refused_pin_is_tried_once() {
    let faulty = Faulty::new();
    for (rv, text) in [("a0", "give the right one"), ("a4", "security officer"), ("a3", "expired")]
    {
        fs::remove_file(orders(".log")).unwrap();
        order(&format!("C_Login always {rv}"));
        assert!(faulty.token.reopen(Pin::new(PIN.to_owned())).is_err());
        for _ in 0..20 {
            assert!(matches!(faulty.sign(), Err(Error::Locked { .. })));
        }
        let Health::Locked { why } = faulty.token.health() else { panic!("not locked") };
        assert!(why.contains(text), "{why}");
        assert_eq!(calls("C_Login"), 1);
    }
    revoke();
    faulty.token.reopen(Pin::new(PIN.to_owned())).unwrap();
    faulty.sign().unwrap();
}

#[test]
fn the_last_try_at_the_pin_is_left_to_a_person() {
    let faulty = Faulty::new();
    drop(faulty.token);
    order("C_GetTokenInfo always final-try");
    fs::remove_file(orders(".log")).unwrap();
    let token = softhsm::start(&module(), &faulty.hsm.label, &faulty.hsm.pin_file);
    let locked = token.keys().unwrap_err();
    assert!(locked.to_string().contains("one attempt at the PIN left"), "{locked}");
    assert_eq!(calls("C_Login"), 0);
    token.reopen(Pin::new(PIN.to_owned())).unwrap();
    assert_eq!(calls("C_Login"), 1);
    assert_eq!(token.keys().unwrap(), [faulty.event]);
}

#[test]
fn a_failure_without_a_name_costs_one_request_and_not_the_session() {
    let faulty = Faulty::new();
    fs::remove_file(orders(".log")).unwrap();
    for rv in ["5", "6", "80000001"] {
        order(&format!("C_Sign once {rv}"));
        let failed = faulty.sign().unwrap_err();
        assert!(matches!(failed, Error::Device { .. }), "{failed}");
        faulty.sign().unwrap();
    }
    assert_eq!(calls("C_Login"), 0);
}

#[test]
fn a_module_that_hangs_is_left_behind() {
    let faulty = Faulty::new();
    let timeout = Duration::from_millis(400);
    let token =
        Pkcs11Token::start(&module(), &faulty.hsm.label, &faulty.hsm.pin_file, timeout, policy())
            .unwrap();
    let sign = || token.sign(&faulty.event, &x_matrix(1));
    for hung in 1..=3 {
        eventually("a first signature", || sign().is_ok());
        order("C_Sign once hang");
        let start = Instant::now();
        let late = sign().unwrap_err();
        assert!(matches!(late, Error::Timeout), "{late}");
        assert!(start.elapsed() >= timeout);
        if hung < 3 {
            // Another thread serves while the first one still hangs.
            eventually("a signature by another thread", || sign().is_ok());
        }
    }
    // Nobody waits any more for a module that hangs each time.
    let start = Instant::now();
    assert!(matches!(sign(), Err(Error::Stuck)));
    assert!(start.elapsed() < timeout);
    assert!(matches!(token.health(), Health::Absent { why, .. } if why.contains("restart")));
    fs::write(orders(".release"), "").unwrap();
}

fn order(text: &str) {
    fs::write(orders(""), text).unwrap();
}

fn revoke() {
    drop(fs::remove_file(orders("")));
}

/// How often a function was called since the log was removed.
fn calls(function: &str) -> usize {
    let log = fs::read_to_string(orders(".log")).unwrap_or_default();
    log.lines().filter(|line| *line == function).count()
}

/// Cargo builds the module with the tests, as an example.
fn module() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let profile = executable.ancestors().nth(2).unwrap();
    let module = profile.join("examples/libfault_module.so");
    assert!(
        module.exists(),
        "{} is not built: run the tests with `cargo test -p sallyport-hsm`, or build it with `--examples`",
        module.display()
    );
    module
}
