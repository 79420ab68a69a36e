//! Faults that SoftHSM never shows but tokens do, through the module that fails on order (`sallyport-hsm-faults`).

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use sallyport_core::sign::verify;
use sallyport_hsm::{Class, Error, Health, KeyKind, KeyName, KeyRole, Pin, Pkcs11Token, Token};
use sallyport_hsm_faults::{Fault, Function, Orders, Times};

use crate::{
    requests::{policy, x_matrix},
    softhsm::{self, HOME, PIN, SoftHsm, eventually},
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
        orders().clear().unwrap();
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
    for rv in [0xb0, 0xb3, 0x60, 0x82, 0x90, 0x101, 0x190, 0x30, 0x32, 0xe0] {
        order(Function::Sign, Times::Once, Fault::Return(rv));
        faulty.sign().unwrap();
        assert_eq!(faulty.token.health(), Health::Ready, "{rv}");
    }
}

#[test]
fn a_device_that_stays_away_is_reported_and_found_again() {
    let faulty = Faulty::new();
    order(Function::GetSlotList, Times::Always, Fault::Return(0x32));
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
    order(Function::GetSlotList, Times::UntilFinalize, Fault::Return(0xe0));
    drop(faulty.token.reopen(Pin::new(PIN.to_owned())));
    eventually("opening the token", || faulty.sign().is_ok());
    assert!(orders().calls(Function::Finalize) > 0);
}

#[test]
fn a_wrong_signature_is_asked_for_again_and_never_given_out() {
    let faulty = Faulty::new();
    order(Function::Sign, Times::Once, Fault::Flip);
    faulty.sign().unwrap();
    order(Function::Sign, Times::Always, Fault::Flip);
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
    for (rv, text) in [(0xa0, "give the right one"), (0xa4, "security officer"), (0xa3, "expired")]
    {
        revoke();
        order(Function::Login, Times::Always, Fault::Return(rv));
        assert!(faulty.token.reopen(Pin::new(PIN.to_owned())).is_err());
        for _ in 0..20 {
            assert!(matches!(faulty.sign(), Err(Error::Locked { .. })));
        }
        let Health::Locked { why } = faulty.token.health() else { panic!("not locked") };
        assert!(why.contains(text), "{why}");
        assert_eq!(orders().calls(Function::Login), 1);
    }
    revoke();
    faulty.token.reopen(Pin::new(PIN.to_owned())).unwrap();
    faulty.sign().unwrap();
}

#[test]
fn the_last_try_at_the_pin_is_left_to_a_person() {
    let faulty = Faulty::new();
    drop(faulty.token);
    revoke();
    order(Function::GetTokenInfo, Times::Always, Fault::FinalTry);
    let token = softhsm::start(&module(), &faulty.hsm.label, &faulty.hsm.pin_file);
    let locked = token.keys().unwrap_err();
    assert!(locked.to_string().contains("one attempt at the PIN left"), "{locked}");
    assert_eq!(orders().calls(Function::Login), 0);
    token.reopen(Pin::new(PIN.to_owned())).unwrap();
    assert_eq!(orders().calls(Function::Login), 1);
    assert_eq!(token.keys().unwrap(), [faulty.event]);
}

#[test]
fn a_failure_without_a_name_costs_one_request_and_not_the_session() {
    let faulty = Faulty::new();
    revoke();
    for rv in [5, 6, 0x8000_0001] {
        order(Function::Sign, Times::Once, Fault::Return(rv));
        let failed = faulty.sign().unwrap_err();
        assert!(matches!(failed, Error::Device { .. }), "{failed}");
        faulty.sign().unwrap();
    }
    assert_eq!(orders().calls(Function::Login), 0);
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
        order(Function::Sign, Times::Once, Fault::Hang);
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
}

fn orders() -> Orders {
    Orders::new(&HOME.join("orders"))
}

fn order(function: Function, times: Times, fault: Fault) {
    orders().give(function, times, fault).unwrap();
}

fn revoke() {
    orders().clear().unwrap();
}

/// Cargo builds the module beside the tests, which depend on its package.
fn module() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let module = executable.with_file_name("libsallyport_hsm_faults.so");
    assert!(module.exists(), "{} is not built", module.display());
    module
}
