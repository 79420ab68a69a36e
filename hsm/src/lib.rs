//! The keys of a box: in a PKCS#11 token, or for development in an encrypted file.
//!
//! A PKCS#11 module is loaded by a process of its own, the *helper* ([`HelperToken`], [`run_helper`]): a module that crashes or
//! hangs takes nothing with it, and the helper signs only what this server may say.
//!
//! [`open`] gives a [`Token`] at once and connects behind it, so that a slow or absent token never holds up the start of
//! a box; [`Token::health`] tells how it stands. Callers name keys by [`KeyName`] and hand over typed requests
//! ([`SigningRequest`]), which are held against the [`Policy`] before the token sees a byte. No signature is given out that
//! does not verify against the key it should be from.
//!
//! All calls are synchronous and may take as long as the token does: never make them from an async worker, nor while
//! holding a lock on the database.

#![deny(missing_docs)]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sallyport_core::sign::{Policy, PublicKey, Signature, SigningRequest};
use serde::{Deserialize, Serialize};

mod builtin;
mod envelope;
mod error;
mod helper;
mod key;
mod keypair;
mod locked;
mod oaep;
mod pkcs11;
mod private_file;
pub mod sandbox;
pub mod seal;
mod secret;
mod settings;
mod software;
#[cfg(test)]
mod wiped;
mod wrapped;

pub use builtin::{BoxToken, Module, Modules};
pub use envelope::EnvelopeToken;
pub use error::{Class, Error};
pub use helper::{
    HelperPlace, HelperProgram, HelperSettings, HelperToken, ServedToken, Setup, SetupAnswer,
    run_helper, run_setup,
};
pub use key::{Caps, KeyKind, KeyName, ParseKeyNameError};
pub use pkcs11::init_token;
pub use sallyport_core::{
    custody::{Attacker, Mode, ModeChoice},
    sign::KeyRole,
};
pub use secret::{Pin, Secret32};
pub use settings::{ParsePinSourceError, PinSource, Sessions, SessionsError};
pub use software::SoftwareToken;

/// Bytes of an uncompressed point of P-256 (SEC 1, section 2.3.3), as [`Token::agree`] takes it.
pub const P256_POINT_BYTES: usize = PublicKey::P256_BYTES;

/// A place where keys live and from which they never come out.
///
/// Errors have a [`Class`] that says who can help: waiting, the caller, or an operator.
pub trait Token: Send + Sync {
    /// How the token stands. Never waits for the token.
    fn health(&self) -> Health;

    /// What the token can do: nothing until it was open once. Never waits for the token.
    fn caps(&self) -> Caps;

    /// How new event keys are kept; `None` until the token was open once. Never waits for the token.
    fn mode(&self) -> Option<Mode>;

    /// How this key is kept. Does not ask the token.
    fn custody(&self, key: &KeyName) -> Result<Mode, Error>;

    /// The kind of key to make for a role, `None` if there is none that suits: until the token was open once, and if it
    /// is not good enough. Never waits for the token.
    fn kind_for(&self, role: KeyRole) -> Option<KeyKind> {
        self.caps().kind_for(role)
    }

    /// The names of all our keys in the token, by role and then id.
    fn keys(&self) -> Result<Vec<KeyName>, Error>;

    /// The public half of a signing or agreement key.
    fn public_key(&self, key: &KeyName) -> Result<PublicKey, Error>;

    /// Signs one request with a key of the request's role.
    fn sign(&self, key: &KeyName, request: &SigningRequest) -> Result<Signature, Error>;

    /// Signs many requests; the answers stand in the order of the requests. The token signs on while earlier answers are
    /// being verified, and requests of other callers come in between.
    fn sign_many(
        &self,
        key: &KeyName,
        requests: &[SigningRequest],
    ) -> Vec<Result<Signature, Error>> {
        requests.iter().map(|request| self.sign(key, request)).collect()
    }

    /// The x-coordinate of the ECDH shared point with `peer`, an uncompressed point of P-256 (raw: derive keys from it,
    /// for example with HKDF, and never use it as one).
    fn agree(&self, key: &KeyName, peer: &[u8; P256_POINT_BYTES]) -> Result<Secret32, Error>;

    /// Makes a key that cannot leave the token and gives its name.
    fn generate(&self, role: KeyRole, kind: KeyKind) -> Result<KeyName, Error>;

    /// Destroys a key for ever.
    fn destroy(&self, key: &KeyName) -> Result<(), Error>;

    /// Encrypts a secret under a storage key, bound to `aad`, which must be given again to [`Token::unwrap`].
    fn wrap(&self, key: &KeyName, secret: &Secret32, aad: &[u8]) -> Result<Vec<u8>, Error>;

    /// Decrypts what [`Token::wrap`] made with the same key and `aad`.
    fn unwrap(&self, key: &KeyName, wrapped: &[u8], aad: &[u8]) -> Result<Secret32, Error>;

    /// Opens the token with a PIN that an operator gave, at once, whatever happened before. The only way out of
    /// [`Health::Locked`].
    fn reopen(&self, pin: Pin) -> Result<(), Error>;
}

/// How a token stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Being opened for the first time.
    Starting,
    /// Open and logged in.
    Ready,
    /// Waiting for a PIN from an operator ([`Token::reopen`]); nothing is tried until then.
    Locked {
        /// What happened and what to do.
        why: String,
    },
    /// Not usable at the moment; tried again by itself.
    Absent {
        /// What happened and what to do.
        why: String,
        /// Attempts to open it since it was last open.
        attempts: u32,
    },
}

/// Where the keys are: the table of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenConfig {
    /// A token behind a PKCS#11 module.
    Pkcs11 {
        /// The module, a shared library.
        module: PathBuf,
        /// Label of the token. Slot numbers change when a token is plugged in again; labels do not.
        token_label: String,
        /// Serial number of the token, for when several have the label.
        token_serial: Option<String>,
        /// Where the PIN is from.
        pin: PinSource,
        /// Milliseconds that the token has to answer before the process with its module is killed. At least the slowest
        /// single operation of the device: smart cards take seconds to make a key.
        #[serde(default = "default_timeout_ms")]
        timeout_ms: u64,
        /// Names of environment variables that the module needs, for example `YUBIHSM_PKCS11_CONF`. It is given these and
        /// `SOFTHSM2_CONF`, and no others.
        #[serde(default)]
        environment: Vec<String>,
        /// How the box's event keys are kept. Keys of officers and of the enclave root are in the token in any case.
        #[serde(default)]
        mode: ModeChoice,
        /// Sessions that work at once: more than one for a token behind a network.
        #[serde(default)]
        sessions: Sessions,
        /// Whether the module may use the network, as that of a network HSM must.
        #[serde(default)]
        network: bool,
        /// Folders that the module may write to, beside devices: SoftHSM2 its folder of tokens, others their log.
        #[serde(default)]
        writable: Vec<PathBuf>,
    },
    /// A token behind a PKCS#11 module in a process that a service manager starts, so that it can be another user's. Module and
    /// token are named in the command line there.
    Pkcs11Service {
        /// The Unix socket: whoever connects to it gets a helper of their own.
        helper: PathBuf,
        /// Where the PIN is from.
        pin: PinSource,
        /// As for [`TokenConfig::Pkcs11`].
        #[serde(default = "default_timeout_ms")]
        timeout_ms: u64,
        /// As for [`TokenConfig::Pkcs11`].
        #[serde(default)]
        mode: ModeChoice,
    },
    /// An encrypted file, for development only.
    Software {
        /// The key file; it is made if there is none, with its own key beside it.
        path: PathBuf,
        /// Milliseconds that each signature takes, one at a time: a stand-in for a slow token in benchmarks.
        #[serde(default)]
        delay_ms: u64,
    },
}

/// Opens the configured token, or, for a PKCS#11 token, starts to: the answer comes at once and the token is connected
/// behind it. `program` becomes the process that loads the module. `working_keys` is the folder for keys that the token
/// cannot hold; without one there are none, and such a token is of no use for the roles that need them.
///
/// Software keys can be copied by whoever reads the disk; without `allow_software_keys` they are refused.
pub fn open(
    config: &TokenConfig,
    allow_software_keys: bool,
    policy: Policy,
    program: HelperProgram,
    working_keys: Option<&Path>,
) -> Result<Arc<dyn Token>, Error> {
    let start = |place, pin: &PinSource, timeout_ms, mode| -> Result<Arc<dyn Token>, Error> {
        let (pin, timeout) = (pin.clone(), Duration::from_millis(timeout_ms));
        let settings = HelperSettings { place, pin, timeout, policy: policy.clone() };
        let token = Arc::new(HelperToken::start(settings)?);
        Ok(match working_keys {
            None => token,
            Some(folder) => Arc::new(EnvelopeToken::new(token, mode, folder, policy.clone())),
        })
    };
    match config {
        TokenConfig::Pkcs11 {
            module,
            token_label,
            token_serial,
            pin,
            timeout_ms,
            environment,
            mode,
            sessions,
            network,
            writable,
        } => {
            let token = ServedToken {
                module: module.clone(),
                label: token_label.clone(),
                serial: token_serial.clone(),
                sessions: *sessions,
                network: *network,
                writable: writable.clone(),
            };
            let environment = environment.clone();
            start(HelperPlace::Child { program, token, environment }, pin, *timeout_ms, *mode)
        }
        TokenConfig::Pkcs11Service { helper, pin, timeout_ms, mode } => {
            start(HelperPlace::Service(helper.clone()), pin, *timeout_ms, *mode)
        }
        TokenConfig::Software { path, delay_ms } => {
            if !allow_software_keys {
                return Err(Error::SoftwareKeysNotAllowed { path: path.clone() });
            }
            log::warn!(mode:% = Mode::Software; "{}", Mode::Software.meaning());
            let delay = Duration::from_millis(*delay_ms);
            Ok(Arc::new(SoftwareToken::open_or_create(path, delay, policy)?))
        }
    }
}

const fn default_timeout_ms() -> u64 {
    10_000
}
