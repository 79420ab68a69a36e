//! Devices that can do less than SoftHSM, played by it through the module that hides mechanisms (`sallyport-hsm-faults`).
//!
//! One table drives the tests and is what `hsm/README.md` shows.

use std::{fmt::Write as _, path::Path, sync::Arc, time::Duration};

use sallyport_core::sign::{Algorithm, SigningRequest, verify};
use sallyport_hsm::{
    EnvelopeToken, Error, HelperToken, KeyKind, KeyName, KeyRole, Mode, ModeChoice, Secret32, Token,
};
use sallyport_hsm_faults::Orders;
use tempfile::TempDir;

use crate::{
    faults::{module, readme_shows},
    requests::{manifest, policy, x_matrix},
    softhsm::{self, HOME, SoftHsm},
};

const EC_KEY_PAIR_GEN: u64 = 0x1040;
const ECDH1_DERIVE: u64 = 0x1050;
const EC_EDWARDS_KEY_PAIR_GEN: u64 = 0x1055;
const EDDSA: u64 = 0x1057;
const RSA_PKCS_KEY_PAIR_GEN: u64 = 0x0;
const RSA_PKCS_OAEP: u64 = 0x9;
const AES_KEY_WRAP: u64 = 0x2109;
const AES_KEY_WRAP_PAD: u64 = 0x210a;

/// A device by what it does not know, and what becomes of the box's keys with it.
struct Device {
    name: &'static str,
    knows: &'static str,
    hidden: &'static [u64],
    event: Mode,
    courier: KeyKind,
    encryption: Mode,
    storage: KeyKind,
}

const SMART_CARD: Device = Device {
    name: "SmartCard-HSM, Nitrokey HSM 2",
    knows: "P-256 with ECDSA and ECDH",
    hidden: &[EDDSA, EC_EDWARDS_KEY_PAIR_GEN, AES_KEY_WRAP, AES_KEY_WRAP_PAD],
    event: Mode::Envelope,
    courier: KeyKind::P256,
    encryption: Mode::Direct,
    storage: KeyKind::P256,
};

const TPM: Device = Device {
    name: "TPM 2.0 through tpm2-pkcs11",
    knows: "P-256 with ECDSA, RSA",
    hidden: &[EDDSA, EC_EDWARDS_KEY_PAIR_GEN, ECDH1_DERIVE, AES_KEY_WRAP, AES_KEY_WRAP_PAD],
    event: Mode::Envelope,
    courier: KeyKind::P256,
    encryption: Mode::Envelope,
    storage: KeyKind::Rsa2048,
};

const NETHSM: Device = Device {
    name: "Nitrokey NetHSM",
    knows: "Ed25519, P-256 with ECDSA, RSA",
    hidden: &[ECDH1_DERIVE, AES_KEY_WRAP, AES_KEY_WRAP_PAD],
    event: Mode::Direct,
    courier: KeyKind::Ed25519,
    encryption: Mode::Envelope,
    storage: KeyKind::Rsa2048,
};

const LUNA_FIPS: Device = Device {
    name: "Luna 7 in FIPS mode",
    knows: "P-256 with ECDSA and ECDH, AES key wrap",
    hidden: &[EDDSA, EC_EDWARDS_KEY_PAIR_GEN],
    event: Mode::Envelope,
    courier: KeyKind::P256,
    encryption: Mode::Direct,
    storage: KeyKind::Aes256,
};

const ALL: [&Device; 4] = [&SMART_CARD, &TPM, &NETHSM, &LUNA_FIPS];

#[test]
fn a_smart_card() {
    Played::new(&SMART_CARD).does_what_a_box_needs();
}

#[test]
fn a_tpm() {
    Played::new(&TPM).does_what_a_box_needs();
}

#[test]
fn a_network_hsm_without_ecdh() {
    Played::new(&NETHSM).does_what_a_box_needs();
}

#[test]
fn a_certified_hsm_without_ed25519() {
    Played::new(&LUNA_FIPS).does_what_a_box_needs();
}

#[test]
fn the_readme_shows_the_devices() {
    let mut table = "| device, played by SoftHSM2 | knows | event key (Ed25519) | courier key | courier encryption key (P-256) | secrets at rest are wrapped with |\n|---|---|---|---|---|---|\n".to_owned();
    for Device { name, knows, event, courier, encryption, storage, .. } in ALL {
        let place =
            |mode: &Mode| if *mode == Mode::Direct { "in the token" } else { "working key" };
        let courier = match courier {
            KeyKind::Ed25519 => "Ed25519, in the token",
            _ => "P-256, in the token",
        };
        let storage = match storage {
            KeyKind::Aes256 => "AES-KW",
            KeyKind::P256 => "ECDH on P-256",
            _ => "RSA-OAEP",
        };
        let (event, encryption) = (place(event), place(encryption));
        writeln!(table, "| {name} | {knows} | {event} | {courier} | {encryption} | {storage} |")
            .unwrap();
    }
    readme_shows("devices", &table);
}

#[test]
fn a_mechanism_that_is_hidden_is_refused_whoever_asks() {
    const HIDDEN: &[u64] = &[
        EDDSA,
        EC_EDWARDS_KEY_PAIR_GEN,
        EC_KEY_PAIR_GEN,
        AES_KEY_WRAP,
        RSA_PKCS_KEY_PAIR_GEN,
        RSA_PKCS_OAEP,
    ];
    let useless = Device { hidden: HIDDEN, ..LUNA_FIPS };
    let played = Played::new(&useless);
    let token = &played.token;
    assert!(matches!(token.generate(KeyRole::Event, KeyKind::Ed25519), Err(Error::Unsupported(_))));
    assert!(matches!(token.generate(KeyRole::Courier, KeyKind::P256), Err(Error::Unsupported(_))));
    for role in [KeyRole::Event, KeyRole::Courier, KeyRole::CourierEncryption, KeyRole::Storage] {
        assert_eq!(token.kind_for(role), None, "{role}");
    }
    assert!(token.keys().unwrap().is_empty());
}

#[test]
fn an_operator_may_want_all_keys_in_the_token_or_none_that_is_slow() {
    let played = Played::new(&SMART_CARD);
    let direct = played.start(ModeChoice::Direct);
    let refused = direct.generate(KeyRole::Event, KeyKind::Ed25519).unwrap_err();
    assert!(refused.to_string().contains("does not support Ed25519 keys"), "{refused}");
    assert_eq!(direct.kind_for(KeyRole::Event), None);
    drop(direct);
    drop(played);

    let played = Played::new(&NETHSM);
    let envelope = played.start(ModeChoice::Envelope);
    let event = envelope.generate(KeyRole::Event, KeyKind::Ed25519).unwrap();
    assert_eq!(envelope.custody(&event).unwrap(), Mode::Envelope);
    assert_eq!(envelope.mode(), Some(Mode::Envelope));
    signs(&envelope, &event, &x_matrix(1));
}

/// A token that plays a device, and the folder of a box.
struct Played {
    device: &'static str,
    expected: (Mode, KeyKind, Mode, KeyKind),
    folder: TempDir,
    token: EnvelopeToken,
    hsm: SoftHsm,
}

impl Played {
    fn new(device: &Device) -> Self {
        let hsm = SoftHsm::new();
        let orders = Orders::new(&HOME.join("orders"));
        orders.clear().unwrap();
        orders.hide(device.hidden).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let token = start(&hsm, ModeChoice::Auto, folder.path());
        let Device { name, event, courier, encryption, storage, .. } = *device;
        Self { device: name, expected: (event, courier, encryption, storage), folder, token, hsm }
    }

    /// Another process for the same token. SoftHSM2 rewrites the token's file at a login, and who reads it meanwhile sees no token.
    fn start(&self, choice: ModeChoice) -> EnvelopeToken {
        self.token.keys().unwrap();
        start(&self.hsm, choice, self.folder.path())
    }

    /// Events, bundles out, bundles in, secrets at rest: now, after a restart, and what still works without the token.
    fn does_what_a_box_needs(self) {
        let (event_mode, courier_kind, encryption_mode, storage_kind) = self.expected;
        let token = &self.token;
        assert_eq!(token.mode(), None);
        token.keys().unwrap();
        assert_eq!(token.mode(), Some(event_mode), "{}", self.device);
        let make = |role| token.generate(role, token.kind_for(role).unwrap()).unwrap();
        let (event, courier) = (make(KeyRole::Event), make(KeyRole::Courier));
        let encryption = make(KeyRole::CourierEncryption);
        assert_eq!(token.kind_for(KeyRole::Storage), Some(storage_kind));
        assert_eq!(token.custody(&event).unwrap(), event_mode);
        assert_eq!(token.custody(&encryption).unwrap(), encryption_mode);
        assert_eq!(token.custody(&courier).unwrap(), Mode::Direct);
        let algorithm = token.public_key(&courier).unwrap().algorithm();
        assert_eq!(KeyKind::from(algorithm), courier_kind);
        let storage = make(KeyRole::Storage);
        let secret = Secret32::new(&[42; 32]);
        let wrapped = token.wrap(&storage, &secret, b"pepper").unwrap();
        let names = token.keys().unwrap();
        works(token, &event, &courier, &encryption);

        let again = self.start(ModeChoice::Auto);
        assert_eq!(again.keys().unwrap(), names);
        assert_eq!(again.unwrap(&storage, &wrapped, b"pepper").unwrap().expose(), secret.expose());
        assert!(matches!(again.unwrap(&storage, &wrapped, b"other"), Err(Error::Damaged)));
        works(&again, &event, &courier, &encryption);

        // Unplugged: what is open in memory goes on, nothing else does.
        let elsewhere = HOME.join(format!("{} unplugged", self.hsm.label));
        std::fs::rename(&self.hsm.directory, &elsewhere).unwrap();
        assert!(again.sign(&courier, &manifest()).is_err());
        assert_eq!(again.sign(&event, &x_matrix(2)).is_ok(), event_mode == Mode::Envelope);
        std::fs::rename(&elsewhere, &self.hsm.directory).unwrap();
        softhsm::eventually("finding the token again", || {
            again.sign(&courier, &manifest()).is_ok()
        });
        works(&again, &event, &courier, &encryption);
    }
}

fn start(hsm: &SoftHsm, choice: ModeChoice, folder: &Path) -> EnvelopeToken {
    let timeout = Duration::from_secs(30);
    let settings = softhsm::settings(&module(), &hsm.label, &hsm.pin_file, timeout);
    let inner = HelperToken::start(settings).unwrap();
    EnvelopeToken::new(Arc::new(inner), choice, folder, policy())
}

fn works(token: &dyn Token, event: &KeyName, courier: &KeyName, encryption: &KeyName) {
    signs(token, event, &x_matrix(1));
    signs(token, courier, &manifest());
    let peer = p256::SecretKey::from_slice(&[9; 32]).unwrap();
    let point: [u8; 65] = peer.public_key().to_sec1_bytes().as_ref().try_into().unwrap();
    let ours = token.public_key(encryption).unwrap();
    assert_eq!(ours.algorithm(), Algorithm::P256);
    let theirs = peer.diffie_hellman(&p256::PublicKey::from_sec1_bytes(ours.as_bytes()).unwrap());
    let shared = token.agree(encryption, &point).unwrap();
    assert_eq!(shared.expose().as_slice(), theirs.raw_secret_bytes().as_slice());
    let mut off_curve = point;
    off_curve[64] ^= 1;
    assert!(matches!(token.agree(encryption, &off_curve), Err(Error::InvalidPeer)));
}

fn signs(token: &dyn Token, key: &KeyName, request: &SigningRequest) {
    let signature = token.sign(key, request).unwrap();
    let bytes = request.bytes_to_sign(&policy()).unwrap();
    verify(&token.public_key(key).unwrap(), &bytes, &signature).unwrap();
}
