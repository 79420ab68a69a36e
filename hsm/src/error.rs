//! What can go wrong with a token, told so that an operator knows what to do, and sorted by who can help.

use std::{io, path::PathBuf};

use sallyport_core::{
    provision::TokenKind,
    sign::{KeyRole, Refusal},
};

use crate::{KeyKind, KeyName};

/// Why a token did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The shared library is missing or not a PKCS#11 module.
    #[error("the PKCS#11 module {path} cannot be loaded: install it or correct `module` ({why})")]
    Module {
        /// The configured path.
        path: PathBuf,
        /// What the loader said.
        why: String,
    },
    /// The system has no module for the configured kind of token.
    #[error(
        "this system was not built for tokens of the kind {kind} (it has {known}): name another, or install a system that has it"
    )]
    NoModule {
        /// The configured kind.
        kind: TokenKind,
        /// The kinds that there are.
        known: String,
    },
    /// The process with the module cannot be started, or its socket does not work.
    #[error("the process for the PKCS#11 module cannot work")]
    Helper(#[source] io::Error),
    /// No service manager starts a helper at the configured socket.
    #[error(
        "no process for the PKCS#11 module is to be had at {path}: start its socket unit, or correct `helper`"
    )]
    HelperSocket {
        /// The configured socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process with the module crashed, was killed, or answered nonsense.
    #[error(
        "the process with the PKCS#11 module died ({how}): it is started again by itself; if that goes on, update the module"
    )]
    HelperDied {
        /// Its exit status, or what was wrong with its answer.
        how: String,
    },
    /// No plugged-in token has the configured label.
    #[error(
        "no token with the label `{label}` is plugged in (found: {found}): plug it in or correct `token_label`"
    )]
    TokenMissing {
        /// The configured label.
        label: String,
        /// Labels of the tokens that are there, or `none`.
        found: String,
    },
    /// Several tokens have the configured label.
    #[error(
        "several tokens have the label `{label}`: unplug all but the right one, or name its serial number in `token_serial`"
    )]
    TokenAmbiguous {
        /// The configured label.
        label: String,
    },
    /// Another token than at the start has the label.
    #[error(
        "the token `{label}` has the serial number {serial}, but {expected} was opened first: plug in that one, or restart the box if the token was replaced on purpose"
    )]
    TokenExchanged {
        /// The configured label.
        label: String,
        /// Serial number of the token that is there.
        serial: String,
        /// Serial number of the token that was open before.
        expected: String,
    },
    /// Another token than the configured one has the label.
    #[error(
        "the token `{label}` has the serial number {serial}, but `token_serial` is {configured}: plug in the right one, or correct `token_serial`"
    )]
    TokenSerial {
        /// The configured label.
        label: String,
        /// Serial number of the token that is there.
        serial: String,
        /// The configured serial number.
        configured: String,
    },
    /// The device was removed, or answers that it is broken.
    #[error("the token was removed or does not answer: check the device and its connection")]
    Absent,
    /// The session or the handles in it are no longer valid.
    #[error("the session with the token was lost: it is opened again by itself")]
    SessionLost,
    /// Somebody logged out.
    #[error(
        "the token is no longer logged in: this is repeated by itself with the PIN that is known"
    )]
    NotLoggedIn,
    /// The backend waits before it opens the token again ([`crate::Health::Absent`]).
    #[error("the token is not open: {why}")]
    Unavailable {
        /// What happened and what to do.
        why: String,
    },
    /// The backend waits for a PIN ([`crate::Health::Locked`]).
    #[error("the token is locked: {why}")]
    Locked {
        /// What happened and what to do.
        why: String,
    },
    /// The PIN that a person gave was not kept.
    #[error("the PIN was given by hand and is not kept: give it again")]
    PinNeeded,
    /// The configuration says that a person gives the PIN, and nobody has.
    #[error(
        "the token waits for its PIN, which is not stored: type it at the console, or give it with `sallyctl token unlock`"
    )]
    PinAsked,
    /// Wrong PIN. Never tried again by itself: tokens lock themselves for good after a few attempts.
    #[error(
        "the token refused the PIN: give the right one; the wrong one is not tried again, because tokens lock after a few attempts"
    )]
    PinIncorrect,
    /// One wrong PIN more and the token is locked.
    #[error(
        "the token has one attempt at the PIN left, which the box does not spend by itself: make sure of the PIN and give it by hand"
    )]
    PinLastTry,
    /// Too many wrong PINs.
    #[error(
        "the token is locked after too many wrong PINs: unlock it with its security officer's PIN"
    )]
    PinLocked,
    /// The token wants a new PIN.
    #[error("the PIN of the token has expired: set a new one with the vendor's tool")]
    PinExpired,
    /// No PIN was ever set.
    #[error("the token has no user PIN yet: set it up with the key ceremony")]
    PinNotSet,
    /// The token does not accept such a PIN, for example because it is too short.
    #[error("the token does not accept a PIN of this form: choose one of the length it asks for")]
    PinForm,
    /// The PIN was to be typed at the token, which has no keys for it.
    #[error(
        "the token has no PIN pad (CKF_PROTECTED_AUTHENTICATION_PATH): set `pin` to a credential, a file or `ask`"
    )]
    NoPinPad,
    /// The PIN file cannot be read.
    #[error("the PIN file {path} cannot be read: put the PIN there, or give it by hand")]
    PinFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others than the owner may read a secret file.
    #[error("{path} may be read by others (mode {mode:o}): set its mode to 600")]
    FileMode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The key is not in the token.
    #[error("there is no key {0} in the token: check that it is the right token, or make the key")]
    NoSuchKey(KeyName),
    /// Two keys have the same name.
    #[error("the token holds two keys {0}: destroy the wrong one with the vendor's tool")]
    DuplicateKey(KeyName),
    /// A key was to sign what is not its to sign.
    #[error("the key {key} was asked for what only a key of role {needed} may do")]
    WrongRole {
        /// The key.
        key: KeyName,
        /// The role it would need.
        needed: KeyRole,
    },
    /// A key of this kind cannot have this role.
    #[error("a key of kind {kind} cannot have the role {role}")]
    WrongKind {
        /// The role.
        role: KeyRole,
        /// The kind.
        kind: KeyKind,
    },
    /// The request itself is not one that we sign.
    #[error("the request is not one that may be signed")]
    Refused(#[source] Refusal),
    /// The process with the module refused to have it signed.
    #[error("the process with the PKCS#11 module refused the request ({why})")]
    RefusedByHelper {
        /// What is wrong with it.
        why: String,
    },
    /// The token cannot do this at all.
    #[error("the token does not support {0}: choose one that does")]
    Unsupported(String),
    /// The token's own rules forbid it.
    #[error("the token forbids {0}: check its policy and the attributes of the key")]
    Forbidden(String),
    /// The token, or the queue before it, is full.
    #[error("the token has too much to do: try again later")]
    Busy,
    /// More signatures of a kind than an honest box needs.
    #[error(
        "the box has asked its token for too many signatures of the kind {kind}: somebody keeps it busy; the next one is made in {wait_s} s"
    )]
    TooMany {
        /// The kind.
        kind: &'static str,
        /// Seconds until the next one is admitted.
        wait_s: u64,
    },
    /// No answer in time.
    #[error("the token did not answer in time: check the device")]
    Timeout,
    /// The thread that works for the token is gone.
    #[error("the token's thread is gone: restart the box")]
    Stopped,
    /// A signature that is not by the expected key over the message.
    #[error(
        "the token gave a wrong signature for the key {0}, which was held back: it or its module is broken or tampered with, replace it"
    )]
    BadSignature(KeyName),
    /// The token made a key that can leave it.
    #[error(
        "the token made a key that could be copied out of it, which was destroyed: check its policy"
    )]
    Extractable,
    /// The peer's point is not on the curve.
    #[error("the peer's key is not a point of P-256")]
    InvalidPeer,
    /// Wrapped under another key, for another purpose, or changed.
    #[error(
        "the wrapped secret is damaged, or was wrapped with another key or for another purpose"
    )]
    Damaged,
    /// Software keys are for development.
    #[error(
        "the keys are to be in the file {path}, where they can be copied: configure a PKCS#11 token, or for development set `allow_software_keys = true`"
    )]
    SoftwareKeysNotAllowed {
        /// The configured key file.
        path: PathBuf,
    },
    /// A file with keys cannot be read or written.
    #[error("{path} cannot be read or written")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file with keys is not what it should be.
    #[error("{path} is not a valid key file: restore it from a backup")]
    FileFormat {
        /// The file.
        path: PathBuf,
    },
    /// A working key is not what the token certified, or cannot be opened by it.
    #[error(
        "the working key {key} in {path} cannot be used ({why}): restore the file from a backup, or replace the key"
    )]
    WorkingKey {
        /// The key.
        key: KeyName,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A key that is to be destroyed holds another one, and there is none that could take over.
    #[error(
        "the key {key} is needed to open the working key {by}: make another of its role first, or destroy that one first"
    )]
    KeyInUse {
        /// The key.
        key: KeyName,
        /// The working key that needs it.
        by: KeyName,
    },
    /// The system locks no memory.
    #[error(
        "no memory can be locked for a working key: raise the limit (`LimitMEMLOCK=` of the service, `ulimit -l`)"
    )]
    MemoryLock(#[source] io::Error),
    /// A key file is in the way of a new one.
    #[error("{path} is there already: move it away first")]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// The system started no thread.
    #[error("no thread could be started for the token")]
    Thread(#[source] io::Error),
    /// Anything else that a module said.
    #[error("the token failed in {function} with {code}: see the vendor's manual")]
    Device {
        /// The PKCS#11 function.
        function: String,
        /// The return value's name, or its number if the vendor defined it.
        code: String,
    },
}

/// Who can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Time: try again later.
    Retry,
    /// A new session: the backend opens one by itself.
    Reopen,
    /// An operator: nothing changes until someone acts.
    Operator,
    /// The caller: this request will never succeed.
    Caller,
}

impl Error {
    /// Who can help.
    pub fn class(&self) -> Class {
        match self {
            Self::Busy
            | Self::TooMany { .. }
            | Self::Timeout
            | Self::Random(_)
            | Self::Thread(_) => Class::Retry,
            Self::Module { .. }
            | Self::TokenMissing { .. }
            | Self::TokenAmbiguous { .. }
            | Self::TokenExchanged { .. }
            | Self::TokenSerial { .. }
            | Self::Absent
            | Self::Unavailable { .. }
            | Self::SessionLost
            | Self::NotLoggedIn
            | Self::Helper(_)
            | Self::HelperSocket { .. }
            | Self::HelperDied { .. } => Class::Reopen,
            Self::Locked { .. }
            | Self::PinNeeded
            | Self::PinAsked
            | Self::PinIncorrect
            | Self::PinLastTry
            | Self::PinLocked
            | Self::PinExpired
            | Self::PinNotSet
            | Self::PinForm
            | Self::NoPinPad
            | Self::PinFile { .. }
            | Self::FileMode { .. }
            | Self::Stopped
            | Self::BadSignature(_)
            | Self::SoftwareKeysNotAllowed { .. }
            | Self::File { .. }
            | Self::FileFormat { .. }
            | Self::WorkingKey { .. }
            | Self::MemoryLock(_)
            | Self::FileExists { .. }
            | Self::NoModule { .. } => Class::Operator,
            Self::NoSuchKey(_)
            | Self::DuplicateKey(_)
            | Self::WrongRole { .. }
            | Self::WrongKind { .. }
            | Self::Refused(_)
            | Self::RefusedByHelper { .. }
            | Self::Unsupported(_)
            | Self::Forbidden(_)
            | Self::Extractable
            | Self::InvalidPeer
            | Self::Damaged
            | Self::KeyInUse { .. }
            | Self::Device { .. } => Class::Caller,
        }
    }
}
