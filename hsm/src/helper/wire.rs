//! What the box and the process with the PKCS#11 module say to each other.
//!
//! One request, then its answer; nothing is sent unasked. Each is a frame: its length (32 bits, big-endian) without these four
//! bytes, a byte with [`VERSION`], and CBOR. Requests name keys and documents and never carry bare bytes to sign.

use std::io::{self, Read, Write};

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use sallyport_core::{
    limits::TOKEN_FRAME_BYTES_MAX,
    sign::{Algorithm, SigningRequest},
};
use zeroize::Zeroizing;

use crate::{
    Caps, Error, KeyKind, KeyName, KeyRole, P256_POINT_BYTES, Pin, Secret32, wrapped::Capsule,
};

/// Raised whenever the meaning of a frame changes.
const VERSION: u8 = 1;
/// Bytes of a frame with a secret: such a buffer is never moved, so no copy of the secret stays behind.
const SMALL_FRAME_BYTES: usize = 1024;

/// What the box asks for.
#[derive(Encode, Decode)]
pub(crate) enum Request {
    /// Find the token and log in.
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
    /// Without it, the PIN that this process was last given and that worked.
    #[n(0)]
    pub(crate) pin: Option<Pin>,
    /// Serial number of the token that was opened first.
    #[n(1)]
    pub(crate) serial: Option<String>,
    /// A person asked for it, and may spend the last attempt at the PIN.
    #[n(2)]
    pub(crate) by_hand: bool,
    /// Initialise the module anew: some do not see a token again otherwise.
    #[n(3)]
    pub(crate) anew: bool,
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
        /// Found out when no serial number was given.
        #[n(1)]
        caps: Option<Caps>,
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
            Error::Absent => Self::Absent,
            Error::SessionLost => Self::SessionLost,
            Error::NotLoggedIn => Self::NotLoggedIn,
            Error::PinNeeded => Self::PinNeeded,
            Error::PinIncorrect => Self::PinIncorrect,
            Error::PinLastTry => Self::PinLastTry,
            Error::PinLocked => Self::PinLocked,
            Error::PinExpired => Self::PinExpired,
            Error::PinNotSet => Self::PinNotSet,
            Error::PinForm => Self::PinForm,
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
            Failure::Absent => Self::Absent,
            Failure::SessionLost => Self::SessionLost,
            Failure::NotLoggedIn => Self::NotLoggedIn,
            Failure::PinNeeded => Self::PinNeeded,
            Failure::PinIncorrect => Self::PinIncorrect,
            Failure::PinLastTry => Self::PinLastTry,
            Failure::PinLocked => Self::PinLocked,
            Failure::PinExpired => Self::PinExpired,
            Failure::PinNotSet => Self::PinNotSet,
            Failure::PinForm => Self::PinForm,
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

/// Sends one frame.
pub(crate) fn send<T: Encode<()>>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let mut frame = Zeroizing::new(Vec::with_capacity(SMALL_FRAME_BYTES));
    frame.extend([0, 0, 0, 0, VERSION]);
    encode(message, &mut *frame).map_err(io::Error::other)?;
    let length = frame.len() - 4;
    if length > TOKEN_FRAME_BYTES_MAX {
        return Err(invalid("a frame would be too long"));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?.to_be_bytes();
    if let Some(head) = frame.first_chunk_mut() {
        *head = length;
    }
    to.write_all(&frame)
}

/// Receives one frame; `None` at the end of the stream.
pub(crate) fn receive<T: for<'b> Decode<'b, ()>>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let read = from.read(&mut length)?;
    if read == 0 {
        return Ok(None);
    }
    from.read_exact(length.get_mut(read..).unwrap_or_default())?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > TOKEN_FRAME_BYTES_MAX {
        return Err(invalid("a frame is too long"));
    }
    let mut frame = Zeroizing::new(vec![0; length]);
    from.read_exact(&mut frame)?;
    let Some((&VERSION, body)) = frame.split_first() else {
        return Err(invalid("a frame is of another version"));
    };
    let mut decoder = Decoder::new(body);
    let message = decoder.decode().map_err(|error| invalid(&error.to_string()))?;
    if decoder.position() != body.len() {
        return Err(invalid("a frame is longer than its message"));
    }
    Ok(Some(message))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
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
            _ => return Err(DecodeError::message("no such kind of document")),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        ]
    }

    fn frame(request: SigningRequest) -> Vec<u8> {
        let key = KeyName::new(KeyRole::Event, [7; 8]);
        let mut frame = Vec::new();
        send(&mut frame, &Request::Sign { key, request, anew: false }).unwrap();
        frame
    }

    proptest! {
        #[test]
        fn documents_survive_the_way(request in documents()) {
            let frame = frame(request.clone());
            let Some(Request::Sign { request: received, .. }) =
                receive(&mut frame.as_slice()).unwrap() else { panic!("another request") };
            prop_assert_eq!(received, request);
        }

        #[test]
        fn a_frame_that_is_cut_or_followed_by_more_is_refused(
            request in documents(), cut in 1_usize..20, more: Vec<u8>,
        ) {
            let frame = frame(request);
            let short = &frame[..frame.len().saturating_sub(cut).max(1)];
            prop_assert!(receive::<Request>(&mut &*short).is_err());
            let mut long = [&frame[..], &more].concat();
            let length = u32::try_from(long.len() - 4).unwrap();
            long[..4].copy_from_slice(&length.to_be_bytes());
            prop_assert_eq!(receive::<Request>(&mut &*long).is_ok(), more.is_empty());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            let length = u32::try_from(bytes.len() + 1).unwrap().to_be_bytes();
            let frame = [&length[..], &[VERSION], &bytes].concat();
            drop(receive::<Request>(&mut frame.as_slice()));
            drop(receive::<Answer>(&mut frame.as_slice()));
        }
    }

    #[test]
    fn the_length_is_bounded_before_anything_is_read() {
        let mut frame = &[0xff, 0xff, 0xff, 0xff, VERSION, 0][..];
        let refused = receive::<Request>(&mut frame).err().unwrap();
        assert!(refused.to_string().contains("too long"), "{refused}");
        let mut frame = &[0, 0, 0, 2, VERSION + 1, 0][..];
        let refused = receive::<Request>(&mut frame).err().unwrap();
        assert!(refused.to_string().contains("another version"), "{refused}");
        assert!(receive::<Request>(&mut [].as_slice()).unwrap().is_none());
    }
}
