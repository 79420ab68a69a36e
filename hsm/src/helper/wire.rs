//! What the box and the process with the PKCS#11 module say to each other.
//!
//! Requests and their answers; nothing is sent unasked. Several requests are on their way at once, and answers come in any order.
//! Requests name keys and documents and never carry bare bytes to sign.

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use sallyport_core::sign::{Algorithm, SigningRequest};

use crate::{
    Caps, Error, KeyKind, KeyName, KeyRole, P256_POINT_BYTES, Pin, Secret32, wrapped::Capsule,
};

/// What the box asks for.
#[derive(Encode, Decode)]
pub(crate) enum Request {
    /// Find the token and log in. Sent when no other request waits for an answer.
    #[n(0)]
    Open(#[n(0)] Open),
    /// Does the token still answer, logged in?
    #[n(1)]
    Check,
    /// The names of our keys.
    #[n(2)]
    Keys,
    /// The public half of a key.
    #[n(3)]
    PublicKey(#[n(0)] KeyName),
    /// A signature.
    #[n(4)]
    Sign {
        #[n(0)]
        key: KeyName,
        #[cbor(n(1), with = "document")]
        request: SigningRequest,
        /// Look the key up anew: its handle may have come to mean another one.
        #[n(2)]
        anew: bool,
    },
    /// The x-coordinate of an ECDH shared point.
    #[n(5)]
    Agree {
        #[n(0)]
        key: KeyName,
        #[cbor(n(1), with = "minicbor::bytes")]
        peer: [u8; P256_POINT_BYTES],
    },
    /// A new key of this name.
    #[n(6)]
    Generate {
        #[n(0)]
        key: KeyName,
        #[n(1)]
        kind: KeyKind,
    },
    /// The end of a key.
    #[n(7)]
    Destroy(#[n(0)] KeyName),
    /// A fresh key, and the capsule in which a storage key keeps it.
    #[n(8)]
    Wrap(#[n(0)] KeyName),
    /// The key in a capsule of [`Request::Wrap`].
    #[n(9)]
    Unwrap {
        #[n(0)]
        key: KeyName,
        #[n(1)]
        capsule: Capsule,
    },
}

/// How to open the token.
#[derive(Encode, Decode)]
pub(crate) struct Open {
    /// What to log in with.
    #[n(0)]
    pub(crate) credential: Credential,
    /// Serial number of the token that was opened first.
    #[n(1)]
    pub(crate) serial: Option<String>,
    /// A person asked for it, and may spend the last attempt at the PIN.
    #[n(2)]
    pub(crate) by_hand: bool,
    /// Initialise the module anew: some do not see a token again otherwise.
    #[n(3)]
    pub(crate) anew: bool,
    /// Find out what the token can do.
    #[n(4)]
    pub(crate) probe: bool,
}

/// What to log in with.
#[derive(Encode, Decode)]
pub(crate) enum Credential {
    /// This PIN.
    #[n(0)]
    Given(#[n(0)] Pin),
    /// The PIN that this process was last given and that worked.
    #[n(1)]
    Kept,
    /// Whatever the token asks for on its own keypad.
    #[n(2)]
    Pad,
    /// Nobody has given one yet: only look whether the token is there, and say [`Failure::PinAsked`] if it is.
    #[n(3)]
    Missing,
}

/// What came of a request.
#[derive(Encode, Decode)]
pub(crate) enum Answer {
    /// Still at it: a step was done, and the next has as long again. Another answer follows.
    #[n(0)]
    Working,
    #[n(1)]
    Failed(#[n(0)] Failure),
    #[n(2)]
    Done,
    #[n(3)]
    Opened {
        #[n(0)]
        serial: String,
        /// Found out if that was asked for.
        #[n(1)]
        caps: Option<Caps>,
        /// Requests that are worked on at once, one in each session.
        #[n(2)]
        sessions: u8,
    },
    #[n(4)]
    Keys(#[n(0)] Vec<KeyName>),
    #[n(5)]
    PublicKey {
        #[cbor(n(0), with = "algorithm")]
        algorithm: Algorithm,
        #[cbor(n(1), with = "minicbor::bytes")]
        point: Vec<u8>,
    },
    #[n(6)]
    Signature(#[cbor(n(0), with = "minicbor::bytes")] [u8; 64]),
    #[n(7)]
    Secret(#[n(0)] Secret32),
    #[n(8)]
    Wrapped {
        #[n(0)]
        fresh: Secret32,
        #[n(1)]
        capsule: Capsule,
    },
}

/// An [`Error`] on its way: those that the module's side of the socket can have.
#[derive(Encode, Decode)]
pub(crate) enum Failure {
    #[n(0)]
    Module {
        #[n(0)]
        path: String,
        #[n(1)]
        why: String,
    },
    #[n(1)]
    TokenMissing {
        #[n(0)]
        label: String,
        #[n(1)]
        found: String,
    },
    #[n(2)]
    TokenAmbiguous(#[n(0)] String),
    #[n(3)]
    TokenExchanged {
        #[n(0)]
        label: String,
        #[n(1)]
        serial: String,
        #[n(2)]
        expected: String,
    },
    #[n(4)]
    Absent,
    #[n(5)]
    SessionLost,
    #[n(6)]
    NotLoggedIn,
    #[n(7)]
    PinNeeded,
    #[n(8)]
    PinIncorrect,
    #[n(9)]
    PinLastTry,
    #[n(10)]
    PinLocked,
    #[n(11)]
    PinExpired,
    #[n(12)]
    PinNotSet,
    #[n(13)]
    PinForm,
    #[n(14)]
    NoSuchKey(#[n(0)] KeyName),
    #[n(15)]
    DuplicateKey(#[n(0)] KeyName),
    #[n(16)]
    WrongRole {
        #[n(0)]
        key: KeyName,
        #[cbor(n(1), with = "role")]
        needed: KeyRole,
    },
    #[n(17)]
    Unsupported(#[n(0)] String),
    #[n(18)]
    Forbidden(#[n(0)] String),
    #[n(19)]
    Busy,
    #[n(20)]
    Timeout,
    #[n(21)]
    BadSignature(#[n(0)] KeyName),
    #[n(22)]
    Extractable,
    #[n(23)]
    InvalidPeer,
    #[n(24)]
    Damaged,
    #[n(25)]
    Refused(#[n(0)] String),
    #[n(26)]
    Device {
        #[n(0)]
        function: String,
        #[n(1)]
        code: String,
    },
    #[n(27)]
    NoPinPad,
    #[n(28)]
    TokenSerial {
        #[n(0)]
        label: String,
        #[n(1)]
        serial: String,
        #[n(2)]
        configured: String,
    },
    #[n(29)]
    PinAsked,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Module { path, why } => Self::Module { path: path.display().to_string(), why },
            Error::TokenMissing { label, found } => Self::TokenMissing { label, found },
            Error::TokenAmbiguous { label } => Self::TokenAmbiguous(label),
            Error::TokenExchanged { label, serial, expected } => {
                Self::TokenExchanged { label, serial, expected }
            }
            Error::TokenSerial { label, serial, configured } => {
                Self::TokenSerial { label, serial, configured }
            }
            Error::Absent => Self::Absent,
            Error::SessionLost => Self::SessionLost,
            Error::NotLoggedIn => Self::NotLoggedIn,
            Error::PinNeeded => Self::PinNeeded,
            Error::PinAsked => Self::PinAsked,
            Error::PinIncorrect => Self::PinIncorrect,
            Error::PinLastTry => Self::PinLastTry,
            Error::PinLocked => Self::PinLocked,
            Error::PinExpired => Self::PinExpired,
            Error::PinNotSet => Self::PinNotSet,
            Error::PinForm => Self::PinForm,
            Error::NoPinPad => Self::NoPinPad,
            Error::NoSuchKey(key) => Self::NoSuchKey(key),
            Error::DuplicateKey(key) => Self::DuplicateKey(key),
            Error::WrongRole { key, needed } => Self::WrongRole { key, needed },
            Error::Unsupported(what) => Self::Unsupported(what),
            Error::Forbidden(what) => Self::Forbidden(what),
            Error::Busy => Self::Busy,
            Error::Timeout => Self::Timeout,
            Error::BadSignature(key) => Self::BadSignature(key),
            Error::Extractable => Self::Extractable,
            Error::InvalidPeer => Self::InvalidPeer,
            Error::Damaged => Self::Damaged,
            Error::Refused(why) => Self::Refused(why.to_string()),
            Error::Device { function, code } => Self::Device { function, code },
            other => Self::Device { function: "the helper".to_owned(), code: explain(&other) },
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Module { path, why } => Self::Module { path: path.into(), why },
            Failure::TokenMissing { label, found } => Self::TokenMissing { label, found },
            Failure::TokenAmbiguous(label) => Self::TokenAmbiguous { label },
            Failure::TokenExchanged { label, serial, expected } => {
                Self::TokenExchanged { label, serial, expected }
            }
            Failure::TokenSerial { label, serial, configured } => {
                Self::TokenSerial { label, serial, configured }
            }
            Failure::Absent => Self::Absent,
            Failure::SessionLost => Self::SessionLost,
            Failure::NotLoggedIn => Self::NotLoggedIn,
            Failure::PinNeeded => Self::PinNeeded,
            Failure::PinAsked => Self::PinAsked,
            Failure::PinIncorrect => Self::PinIncorrect,
            Failure::PinLastTry => Self::PinLastTry,
            Failure::PinLocked => Self::PinLocked,
            Failure::PinExpired => Self::PinExpired,
            Failure::PinNotSet => Self::PinNotSet,
            Failure::PinForm => Self::PinForm,
            Failure::NoPinPad => Self::NoPinPad,
            Failure::NoSuchKey(key) => Self::NoSuchKey(key),
            Failure::DuplicateKey(key) => Self::DuplicateKey(key),
            Failure::WrongRole { key, needed } => Self::WrongRole { key, needed },
            Failure::Unsupported(what) => Self::Unsupported(what),
            Failure::Forbidden(what) => Self::Forbidden(what),
            Failure::Busy => Self::Busy,
            Failure::Timeout => Self::Timeout,
            Failure::BadSignature(key) => Self::BadSignature(key),
            Failure::Extractable => Self::Extractable,
            Failure::InvalidPeer => Self::InvalidPeer,
            Failure::Damaged => Self::Damaged,
            Failure::Refused(why) => Self::RefusedByHelper { why },
            Failure::Device { function, code } => Self::Device { function, code },
        }
    }
}

/// The error with everything below it.
pub(crate) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl<C> Encode<C> for KeyName {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.str(&self.to_string())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for KeyName {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.str()?.parse().map_err(decode::Error::custom)
    }
}

impl<C> Encode<C> for Pin {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.str(self.expose())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Pin {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Ok(Self::new(d.str()?.to_owned()))
    }
}

impl<C> Encode<C> for Secret32 {
    fn encode<W: encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(self.expose())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Secret32 {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Self::from_slice(d.bytes()?).ok_or_else(|| decode::Error::message("not 32 bytes"))
    }
}

/// A key's role by its name.
mod role {
    use minicbor::{
        Decoder, Encoder,
        decode::Error as DecodeError,
        encode::{Error as EncodeError, Write},
    };

    use crate::KeyRole;

    pub(super) fn encode<C, W: Write>(
        role: &KeyRole,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.str(role.as_str())?.ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<KeyRole, DecodeError> {
        let name = d.str()?;
        let found = KeyRole::ALL.into_iter().find(|role| role.as_str() == name);
        found.ok_or_else(|| DecodeError::message("no such role"))
    }
}

/// An algorithm by its name.
mod algorithm {
    use minicbor::{
        Decoder, Encoder,
        decode::Error as DecodeError,
        encode::{Error as EncodeError, Write},
    };
    use sallyport_core::sign::Algorithm;

    pub(super) fn encode<C, W: Write>(
        algorithm: &Algorithm,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.str(algorithm.as_str())?.ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Algorithm, DecodeError> {
        match d.str()? {
            "ed25519" => Ok(Algorithm::Ed25519),
            "p256" => Ok(Algorithm::P256),
            _ => Err(DecodeError::message("no such algorithm")),
        }
    }
}

/// A document to sign: an array of its kind and its parts.
mod document {
    use minicbor::{
        Decoder, Encoder,
        decode::Error as DecodeError,
        encode::{Error as EncodeError, Write},
    };
    use sallyport_core::sign::SigningRequest;

    const PDU: u8 = 0;
    const KEY_DOCUMENT: u8 = 1;
    const X_MATRIX: u8 = 2;
    const MANIFEST: u8 = 3;
    const ACKNOWLEDGEMENT: u8 = 4;
    const CARD: u8 = 5;
    const ROSTER: u8 = 6;
    const APPROVAL: u8 = 7;
    const CHECKPOINT: u8 = 8;
    const WORKING_KEY: u8 = 9;
    const CERTIFICATE: u8 = 10;
    const CA_REQUEST: u8 = 11;
    const TLS_REQUEST: u8 = 12;
    const TLS_HANDSHAKE: u8 = 13;
    const UPDATE: u8 = 14;
    const BACKUP: u8 = 15;

    pub(super) fn encode<C, W: Write>(
        request: &SigningRequest,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        let (kind, bytes) = match request {
            SigningRequest::Pdu { room_version, json } => {
                return e.array(3)?.u8(PDU)?.str(room_version.as_str())?.str(json)?.ok();
            }
            SigningRequest::KeyDocument { json } => {
                return e.array(2)?.u8(KEY_DOCUMENT)?.str(json)?.ok();
            }
            SigningRequest::XMatrix { json } => return e.array(2)?.u8(X_MATRIX)?.str(json)?.ok(),
            SigningRequest::Manifest(bytes) => (MANIFEST, bytes),
            SigningRequest::Acknowledgement(bytes) => (ACKNOWLEDGEMENT, bytes),
            SigningRequest::Card(bytes) => (CARD, bytes),
            SigningRequest::Roster(bytes) => (ROSTER, bytes),
            SigningRequest::Approval(bytes) => (APPROVAL, bytes),
            SigningRequest::Checkpoint(bytes) => (CHECKPOINT, bytes),
            SigningRequest::WorkingKey(bytes) => (WORKING_KEY, bytes),
            SigningRequest::Certificate(bytes) => (CERTIFICATE, bytes),
            SigningRequest::CaRequest(bytes) => (CA_REQUEST, bytes),
            SigningRequest::TlsRequest(bytes) => (TLS_REQUEST, bytes),
            SigningRequest::TlsHandshake(bytes) => (TLS_HANDSHAKE, bytes),
            SigningRequest::Update(bytes) => (UPDATE, bytes),
            SigningRequest::Backup(bytes) => (BACKUP, bytes),
        };
        e.array(2)?.u8(kind)?.bytes(bytes)?.ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<SigningRequest, DecodeError> {
        let parts = d.array()?;
        let kind = d.u8()?;
        if parts != Some(if kind == PDU { 3 } else { 2 }) {
            return Err(DecodeError::message("a document with a wrong number of parts"));
        }
        Ok(match kind {
            PDU => SigningRequest::Pdu {
                room_version: d.str()?.try_into().map_err(DecodeError::custom)?,
                json: d.str()?.to_owned(),
            },
            KEY_DOCUMENT => SigningRequest::KeyDocument { json: d.str()?.to_owned() },
            X_MATRIX => SigningRequest::XMatrix { json: d.str()?.to_owned() },
            MANIFEST => SigningRequest::Manifest(d.bytes()?.to_vec()),
            ACKNOWLEDGEMENT => SigningRequest::Acknowledgement(d.bytes()?.to_vec()),
            CARD => SigningRequest::Card(d.bytes()?.to_vec()),
            ROSTER => SigningRequest::Roster(d.bytes()?.to_vec()),
            APPROVAL => SigningRequest::Approval(d.bytes()?.to_vec()),
            CHECKPOINT => SigningRequest::Checkpoint(d.bytes()?.to_vec()),
            WORKING_KEY => SigningRequest::WorkingKey(d.bytes()?.to_vec()),
            CERTIFICATE => SigningRequest::Certificate(d.bytes()?.to_vec()),
            CA_REQUEST => SigningRequest::CaRequest(d.bytes()?.to_vec()),
            TLS_REQUEST => SigningRequest::TlsRequest(d.bytes()?.to_vec()),
            TLS_HANDSHAKE => SigningRequest::TlsHandshake(d.bytes()?.to_vec()),
            UPDATE => SigningRequest::Update(d.bytes()?.to_vec()),
            BACKUP => SigningRequest::Backup(d.bytes()?.to_vec()),
            _ => return Err(DecodeError::message("no such kind of document")),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::helper::frame::{Incoming, Message};

    fn documents() -> impl Strategy<Value = SigningRequest> {
        prop_oneof![
            any::<String>().prop_map(|json| SigningRequest::Pdu {
                room_version: "11".try_into().unwrap(),
                json
            }),
            any::<String>().prop_map(|json| SigningRequest::KeyDocument { json }),
            any::<String>().prop_map(|json| SigningRequest::XMatrix { json }),
            any::<Vec<u8>>().prop_map(SigningRequest::Manifest),
            any::<Vec<u8>>().prop_map(SigningRequest::Acknowledgement),
            any::<Vec<u8>>().prop_map(SigningRequest::Card),
            any::<Vec<u8>>().prop_map(SigningRequest::Roster),
            any::<Vec<u8>>().prop_map(SigningRequest::Approval),
            any::<Vec<u8>>().prop_map(SigningRequest::Checkpoint),
            any::<Vec<u8>>().prop_map(SigningRequest::WorkingKey),
            any::<Vec<u8>>().prop_map(SigningRequest::Certificate),
            any::<Vec<u8>>().prop_map(SigningRequest::CaRequest),
            any::<Vec<u8>>().prop_map(SigningRequest::TlsRequest),
            any::<Vec<u8>>().prop_map(SigningRequest::TlsHandshake),
            any::<Vec<u8>>().prop_map(SigningRequest::Update),
            any::<Vec<u8>>().prop_map(SigningRequest::Backup),
        ]
    }

    proptest! {
        #[test]
        fn documents_survive_the_way(document in documents()) {
            let key = KeyName::new(KeyRole::Event, [7; 8]);
            let request = Request::Sign { key, request: document.clone(), anew: false };
            let frame = Message::new(&request).unwrap().numbered(5).parts().concat();
            let mut incoming = Incoming::new();
            incoming.read(&mut frame.as_slice()).unwrap();
            let Some((5, Request::Sign { request: received, .. })) =
                incoming.take().unwrap() else { panic!("another request") };
            prop_assert_eq!(received, document);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            drop(decode::<Request>(&bytes));
            drop(decode::<Answer>(&bytes));
        }
    }
}
