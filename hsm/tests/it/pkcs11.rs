//! The helper and PKCS#11 over SoftHSM: what it does, and what it withstands.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use sallyport_core::sign::verify;
use sallyport_hsm::{
    Caps, Class, Error, Health, HelperToken, KeyKind, KeyName, KeyRole, Mode, ModeChoice, Pin,
    PinSource, Sessions, Token, TokenConfig, init_token, open,
};

use crate::{
    requests::{policy, x_matrix},
    softhsm::{self, PIN, SoftHsm, eventually, module},
    software,
};

#[test]
fn keys_of_every_kind_do_what_their_role_says() {
    let wrapping = [KeyKind::Aes256, KeyKind::P256, KeyKind::Rsa2048];
    software::every_kind_of_key(&SoftHsm::new().start(), &wrapping);
}

#[test]
fn a_batch_answers_in_order_and_each_on_its_own() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    software::batch(&token, &event_key(&token));
}

#[test]
fn what_softhsm_can_do_is_found_out() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    assert!(token.keys().unwrap().is_empty());
    let caps = Caps {
        ed25519: true,
        p256_sign: true,
        p256_agree: true,
        wrap: true,
        rsa_decrypt: false,
        x25519: true,
    };
    assert_eq!(token.caps(), caps);
    assert_eq!(token.mode(), Some(Mode::Direct));
    assert_eq!(token.health(), Health::Ready);
}

#[test]
fn keys_cannot_leave_the_token_and_outlive_the_session() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    let event = event_key(&token);
    let storage = token.generate(KeyRole::Storage, KeyKind::Aes256).unwrap();
    let public = token.public_key(&event).unwrap();
    let session = hsm.session();
    for class in [ObjectClass::PRIVATE_KEY, ObjectClass::SECRET_KEY] {
        let objects = session.find_objects(&[Attribute::Class(class)]).unwrap();
        assert_eq!(objects.len(), 1);
        let wanted = [
            AttributeType::Sensitive,
            AttributeType::NeverExtractable,
            AttributeType::Local,
            AttributeType::Value,
        ];
        assert_eq!(
            session.get_attributes(objects[0], &wanted).unwrap(),
            [Attribute::Sensitive(true), Attribute::NeverExtractable(true), Attribute::Local(true)]
        );
    }
    drop((session, token));

    let token = hsm.start();
    assert_eq!(token.keys().unwrap(), [event.clone(), storage]);
    assert_eq!(token.public_key(&event).unwrap(), public);
    works(&token, &event);
}

#[test]
fn keys_of_others_are_left_alone() {
    let hsm = SoftHsm::new();
    let session = hsm.session();
    let template = [
        Attribute::Token(true),
        Attribute::Label(b"somebody's".to_vec()),
        Attribute::ValueLen(32.into()),
    ];
    session.generate_key(&cryptoki::mechanism::Mechanism::AesKeyGen, &template).unwrap();
    assert!(hsm.start().keys().unwrap().is_empty());
}

#[test]
fn a_wrong_pin_locks_until_the_right_one_is_given() {
    let hsm = SoftHsm::new();
    softhsm::write_pin(&hsm.pin_file, "battery staple");
    let token = hsm.start();
    let refused = token.keys().unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");
    assert_eq!(refused.class(), Class::Operator);
    assert!(refused.to_string().contains("give the right one"), "{refused}");
    assert!(matches!(token.health(), Health::Locked { .. }));

    // Putting the file right is not enough: the box does not guess that it may try again.
    softhsm::write_pin(&hsm.pin_file, PIN);
    assert!(matches!(token.keys(), Err(Error::Locked { .. })));

    let wrong = token.reopen(Pin::new("battery staple".to_owned()));
    assert!(matches!(wrong, Err(Error::PinIncorrect)));
    assert!(matches!(token.health(), Health::Locked { .. }));
    token.reopen(Pin::new(PIN.to_owned())).unwrap();
    assert_eq!(token.health(), Health::Ready);
    works(&token, &event_key(&token));
}

#[test]
fn a_pin_file_that_is_missing_or_open_to_others_locks() {
    let hsm = SoftHsm::new();
    fs::remove_file(&hsm.pin_file).unwrap();
    let token = hsm.start();
    let refused = token.keys().unwrap_err().to_string();
    assert!(refused.contains("cannot be read") && refused.contains("os error 2"), "{refused}");
    token.reopen(Pin::new(PIN.to_owned())).unwrap();
    works(&token, &event_key(&token));
}

#[test]
fn a_token_that_is_taken_away_and_brought_back_is_found_again() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    let event = event_key(&token);
    works(&token, &event);

    let elsewhere = softhsm::HOME.join("elsewhere");
    fs::rename(&hsm.directory, &elsewhere).unwrap();
    let gone = token.sign(&event, &x_matrix(1)).unwrap_err();
    assert_eq!(gone.class(), Class::Reopen, "{gone}");
    assert!(matches!(token.health(), Health::Absent { .. }), "{:?}", token.health());
    // No answer takes long while it is away.
    let start = Instant::now();
    let answers = token.sign_many(&event, &vec![x_matrix(1); 1000]);
    assert!(answers.iter().all(Result::is_err));
    assert!(start.elapsed() < Duration::from_secs(10));

    fs::rename(&elsewhere, &hsm.directory).unwrap();
    eventually("finding the token again", || token.sign(&event, &x_matrix(1)).is_ok());
    assert_eq!(token.health(), Health::Ready);
    works(&token, &event);
}

#[test]
fn an_idle_token_that_is_taken_away_is_noticed() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    token.keys().unwrap();
    let elsewhere = softhsm::HOME.join("elsewhere idle");
    fs::rename(&hsm.directory, &elsewhere).unwrap();
    eventually("noticing", || matches!(token.health(), Health::Absent { .. }));
    fs::rename(&elsewhere, &hsm.directory).unwrap();
    eventually("finding the token again", || token.health() == Health::Ready);
}

#[test]
fn a_key_that_is_destroyed_elsewhere_is_missed() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    let (event, other) = (event_key(&token), event_key(&token));
    works(&token, &event);
    let session = hsm.session();
    let id = Attribute::Id(event.id().to_vec());
    for object in session.find_objects(&[id]).unwrap() {
        session.destroy_object(object).unwrap();
    }
    let missing = token.sign(&event, &x_matrix(1)).unwrap_err();
    assert!(matches!(missing, Error::NoSuchKey(_)), "{missing}");
    works(&token, &other);
}

#[test]
fn the_start_does_not_wait_for_a_token_that_comes_later() {
    let _guard = softhsm::serialize();
    let (label, pin_file) = softhsm::unused_label();
    let config = TokenConfig::Pkcs11 {
        module: module(),
        token_label: label.clone(),
        token_serial: None,
        pin: PinSource::File(pin_file),
        timeout_ms: 30_000,
        environment: Vec::new(),
        mode: ModeChoice::Auto,
        sessions: Sessions::default(),
        network: false,
        writable: vec![softhsm::HOME.join("tokens")],
    };
    let start = Instant::now();
    let token = open(&config, false, policy(), softhsm::program(), None).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    let missing = token.keys().unwrap_err();
    assert_eq!(missing.class(), Class::Reopen);
    assert!(missing.to_string().contains(&label), "{missing}");

    softhsm::make(&label);
    eventually("finding the new token", || token.health() == Health::Ready);
    assert!(token.keys().unwrap().is_empty());
}

#[test]
fn a_missing_module_is_reported() {
    let _guard = softhsm::serialize();
    let (label, pin_file) = softhsm::unused_label();
    let token = softhsm::start(&PathBuf::from("/nonexistent/module.so"), &label, &pin_file);
    let missing = token.keys().unwrap_err().to_string();
    assert!(missing.contains("/nonexistent/module.so cannot be loaded: install it"), "{missing}");
}

#[test]
fn another_token_with_the_same_label_is_refused() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    let event = event_key(&token);
    fs::remove_dir_all(&hsm.directory).unwrap();
    assert!(token.sign(&event, &x_matrix(1)).is_err());
    softhsm::make(&hsm.label);
    eventually("noticing the exchange", || match token.health() {
        Health::Absent { why, .. } => why.contains("was opened first"),
        _ => false,
    });
}

#[test]
fn a_token_is_set_up_once() {
    let hsm = SoftHsm::new();
    let pin = || Pin::new("1234".to_owned());
    let again = init_token(&module(), &hsm.label, &pin(), &pin());
    assert!(matches!(again, Err(Error::TokenAmbiguous { .. })));
    let long = init_token(&module(), &"x".repeat(33), &pin(), &pin());
    assert!(matches!(long, Err(Error::Unsupported(_))));
}

#[test]
fn many_threads_share_the_token() {
    let hsm = SoftHsm::new();
    let token = hsm.start();
    let event = event_key(&token);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| works(&token, &event)));
        }
    });
}

fn event_key(token: &HelperToken) -> KeyName {
    token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap()
}

fn works(token: &HelperToken, event: &KeyName) {
    let signature = token.sign(event, &x_matrix(1)).unwrap();
    let bytes = x_matrix(1).bytes_to_sign(&policy()).unwrap();
    verify(&token.public_key(event).unwrap(), &bytes, &signature).unwrap();
}
