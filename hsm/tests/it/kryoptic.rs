//! The same over kryoptic, a PKCS#11 token that shares no code with SoftHSM: `make kryoptic` builds it and runs these.
//!
//! It is not in Debian and needs a newer OpenSSL than Debian 12 has, so these tests do not run with the others.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use sallyport_hsm::{
    Health, HelperPlace, HelperSettings, HelperToken, KeyKind, KeyRole, Pin, PinSource,
    ServedToken, Sessions, Token, init_token,
};

use crate::{
    requests::policy,
    softhsm::{self, PIN, TIMEOUT, eventually},
    software,
};

/// Path of the module.
const MODULE: &str = "KRYOPTIC_MODULE";
/// Where the module finds its configuration.
const CONFIGURATION: &str = "KRYOPTIC_CONF";

#[test]
fn a_box_works_with_kryoptic() {
    let folder = tempfile::tempdir().unwrap();
    let token = start(folder.path());
    eventually("opening", || token.health() != Health::Starting);
    assert_eq!(token.health(), Health::Ready);
    let caps = token.caps();
    assert!(caps.ed25519 && caps.p256_sign && caps.p256_agree, "{caps:?}");
    software::every_kind_of_key(&token, &[KeyKind::Aes256, KeyKind::P256, KeyKind::Rsa2048]);
    let event = token.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    software::batch(&token, &event);
}

fn start(folder: &Path) -> HelperToken {
    let module =
        PathBuf::from(env::var_os(MODULE).expect("KRYOPTIC_MODULE is the path of the module"));
    let configuration = folder.join("kryoptic.conf");
    let database = folder.join("token.sql");
    fs::write(
        &configuration,
        format!("[[slots]]\nslot = 1\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", database.display()),
    )
    .unwrap();
    #[expect(unsafe_code, reason = "the module is configured by its environment only")]
    // SAFETY: this is the only test of its process, see the Makefile.
    unsafe {
        env::set_var(CONFIGURATION, &configuration);
    }
    let officer_pin = Pin::new("officer's PIN".to_owned());
    init_token(&module, "kryoptic", &officer_pin, &Pin::new(PIN.to_owned())).unwrap();
    let pin_file = folder.join("pin");
    softhsm::write_pin(&pin_file, PIN);
    let token = ServedToken {
        module,
        label: "kryoptic".to_owned(),
        serial: None,
        sessions: Sessions::default(),
        network: false,
        writable: vec![folder.to_owned()],
    };
    let environment = vec![CONFIGURATION.to_owned()];
    let place = HelperPlace::Child { program: softhsm::program(), token, environment };
    let pin = PinSource::File(pin_file);
    HelperToken::start(HelperSettings { place, pin, timeout: TIMEOUT, policy: policy() }).unwrap()
}
