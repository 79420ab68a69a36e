//! Signed roster files.
//!
//! ```cddl
//! roster-file = [ "sallyport-roster/1", signed: bstr .cbor COSE_Sign1, body: bstr ]
//! statement   = { 0: tstr, 1: uint, 2: 0 / 1, 3: uint, 4: [* tstr]   ; enclave, serial, full / delta, issued at (ms), levels
//!               , 5: uint, 6: uint, 7: bstr }                        ; accounts, locks, SHA-256 of the body
//! ```
//!
//! The officer signs the statement, which fits on a screen and into the slowest token, not the accounts themselves:
//! their hash stands in it. The body is what [`Roster::encode`] writes; the envelope is that of [`cose`].

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::{self, Error},
    encode::{self, Write},
};

use super::{Head, Mode, NotARoster, Roster};
use crate::{
    cbor,
    cose::{self, KeyId, SignError},
    digest::Sha256,
    limits::ROSTER_BYTES_MAX,
    sign::{PublicKey, Signature, SigningRequest, context},
    time::Millis,
};

const MAGIC: &str = "sallyport-roster/1";
/// A statement with all levels fits; nothing larger is looked at.
const SIGNED_BYTES_MAX: usize = 64 * 1024;

/// What an officer signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What the roster is for.
    pub head: Head,
    /// Number of accounts.
    pub accounts: usize,
    /// Number of locks without an account.
    pub locks: usize,
    /// SHA-256 of the canonical encoding of the accounts.
    pub body: Sha256,
}

/// Makes a signed file of a roster. The signer is asked once; its answer is verified.
///
/// # Errors
/// If the signer fails, or answers with another key's signature.
pub fn sign<E>(
    roster: &Roster,
    key: &PublicKey,
    signer: impl FnOnce(SigningRequest) -> Result<Signature, E>,
) -> Result<Vec<u8>, SignError<E>> {
    let body = roster.encode();
    let statement = WireStatement {
        enclave: roster.head.enclave.clone(),
        serial: roster.head.serial,
        mode: roster.head.mode,
        issued_at: roster.head.issued_at,
        levels: roster.head.levels.clone(),
        accounts: roster.accounts.len(),
        locks: roster.locks.len(),
        body: Sha256::of(&body),
    };
    let payload = cbor::to_bytes(&statement).map_err(|_| SignError::Encode)?;
    let signed = cose::sign(context::ROSTER, key, payload, |tbs| {
        signer(SigningRequest::Roster(tbs.to_vec()))
    })?;
    cbor::to_bytes(&Outer { signed: &signed, body: &body }).map_err(|_| SignError::Encode)
}

/// A roster file whose outer form is right. Nothing in it is to be believed before [`RosterFile::verify`].
#[derive(Debug)]
pub struct RosterFile<'a> {
    envelope: cose::Unverified,
    statement: Statement,
    subject: Sha256,
    body: &'a [u8],
}

/// Why a roster file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Larger than any roster.
    #[error(
        "the file is larger than {} MiB: import the accounts as several delta rosters",
        ROSTER_BYTES_MAX >> 20
    )]
    TooLarge,
    /// Another kind of file, or cut short.
    #[error(
        "the file is not a signed roster: make one with `sallyctl roster make` and `sallyctl roster sign`"
    )]
    NotARosterFile,
    /// The key is none of those given.
    #[error(
        "the roster is signed with the key {0}, which is not an officer's key here: have one of roster.trusted_keys sign it"
    )]
    UnknownSigner(KeyId),
    /// The statement was changed after it was signed, or signed by somebody else.
    #[error(
        "the signature of the roster is wrong: the file was changed after it was signed; ask its maker for it again"
    )]
    Signature(#[source] cose::Error),
    /// The accounts were changed after the statement was signed.
    #[error(
        "the accounts are not those that were signed: the file was changed or damaged; copy it again"
    )]
    Body,
    /// Signed, but not sound.
    #[error("the accounts cannot be read: have the roster made again")]
    Accounts(#[source] NotARoster),
}

/// A roster whose signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The roster.
    pub roster: Roster,
    /// The officer's key.
    pub signer: PublicKey,
    /// What approvals and the audit log name the roster by.
    pub subject: Sha256,
}

impl<'a> RosterFile<'a> {
    /// Reads the outer form and the statement; the accounts are left alone.
    ///
    /// # Errors
    /// [`Refused::TooLarge`] or [`Refused::NotARosterFile`].
    pub fn parse(file: &'a [u8]) -> Result<Self, Refused> {
        if file.len() > ROSTER_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        let not_one = |_| Refused::NotARosterFile;
        let Outer { signed, body } = minicbor::decode(file).map_err(|_| Refused::NotARosterFile)?;
        if signed.len() > SIGNED_BYTES_MAX {
            return Err(Refused::NotARosterFile);
        }
        let envelope = cose::Unverified::parse(signed).map_err(|_| Refused::NotARosterFile)?;
        let payload = envelope.unverified_payload();
        let wire: WireStatement = cbor::from_bytes(payload).map_err(not_one)?;
        let subject = Sha256::of(payload);
        Ok(Self { envelope, statement: wire.into(), subject, body })
    }

    /// What the file says of itself.
    #[must_use]
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The key that the file says it is signed with.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.envelope.key_id()
    }

    /// SHA-256 of the statement: what approvals and the audit log name the roster by.
    #[must_use]
    pub fn subject(&self) -> Sha256 {
        self.subject
    }

    /// Verifies signature and accounts against the officers' keys.
    ///
    /// # Errors
    /// [`Refused`] says what is wrong.
    pub fn verify(self, officers: &[PublicKey]) -> Result<Verified, Refused> {
        let signer = officers
            .iter()
            .find(|key| KeyId::of(key) == self.key_id())
            .ok_or(Refused::UnknownSigner(self.key_id()))?;
        self.envelope.verify(context::ROSTER, signer).map_err(Refused::Signature)?;
        if Sha256::of(self.body) != self.statement.body {
            return Err(Refused::Body);
        }
        let roster = Roster::decode(self.statement.head, self.body).map_err(Refused::Accounts)?;
        Ok(Verified { roster, signer: signer.clone(), subject: self.subject })
    }
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireStatement {
    #[cbor(n(0), with = "cbor::id")]
    enclave: ruma::OwnedServerName,
    #[n(1)]
    serial: u64,
    #[cbor(n(2), with = "mode")]
    mode: Mode,
    #[n(3)]
    issued_at: Millis,
    #[n(4)]
    levels: Vec<String>,
    #[n(5)]
    accounts: usize,
    #[n(6)]
    locks: usize,
    #[n(7)]
    body: Sha256,
}

impl From<WireStatement> for Statement {
    fn from(wire: WireStatement) -> Self {
        let WireStatement { enclave, serial, mode, issued_at, levels, accounts, locks, body } =
            wire;
        Self { head: Head { enclave, serial, mode, issued_at, levels }, accounts, locks, body }
    }
}

struct Outer<'a> {
    signed: &'a [u8],
    body: &'a [u8],
}

impl<C> Encode<C> for Outer<'_> {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(3)?.str(MAGIC)?.bytes(self.signed)?.bytes(self.body)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Outer<'b> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        if d.array()? != Some(3) || d.str()? != MAGIC {
            return Err(Error::message("not a roster file"));
        }
        let outer = Self { signed: d.bytes()?, body: d.bytes()? };
        if d.position() != d.input().len() {
            return Err(Error::message("bytes after the end"));
        }
        Ok(outer)
    }
}

mod mode {
    use super::{Decoder, Encoder, Mode, Write, decode, encode as cbor_encode};

    pub(super) fn encode<C, W: Write>(
        mode: &Mode,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), cbor_encode::Error<W::Error>> {
        e.u8(u8::from(*mode == Mode::Delta))?.ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Mode, decode::Error> {
        match d.u8()? {
            0 => Ok(Mode::Full),
            1 => Ok(Mode::Delta),
            _ => Err(decode::Error::message("neither full nor delta")),
        }
    }
}
