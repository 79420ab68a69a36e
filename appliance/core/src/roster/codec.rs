//! The canonical encoding of a roster's accounts: deterministic CBOR (RFC 8949, section 4.2.1).
//!
//! ```cddl
//! body     = [ accounts: [* account], locks: [* tstr] ]      ; both ascending by localpart
//! account  = { 0: tstr            ; localpart
//!            , ? 1: tstr          ; display name
//!            , ? 2: tstr          ; unit
//!            , ? 3: [+ clearance]
//!            , 4: bool            ; active
//!            , ? 5: tstr          ; home enclave
//!            , ? 6: tstr          ; moved from
//!            , ? 7: tstr          ; moved to
//!            , ? 8: [+ bstr]      ; SHA-256 of certificates
//!            , ? 9: tstr }        ; external id
//! clearance = [ category: bool, name: tstr, until: uint / null ]  ; until: last day, days since 1970-01-01
//! ```

use std::{collections::BTreeSet, str::FromStr};

use minicbor::{Decoder, Encoder, decode::Error};

use super::{
    Account, AccountState, Clearance, ClearanceKind, Date, Head, Place, Problems, Roster,
    check::Collector,
};
use crate::{
    digest::Sha256,
    limits::{ROSTER_ACCOUNTS_MAX, ROSTER_BYTES_MAX, ROSTER_CERTS_MAX, ROSTER_CLEARANCES_MAX},
};

/// Why bytes are not the accounts of a roster.
#[derive(Debug, thiserror::Error)]
pub enum NotARoster {
    /// Larger than any roster.
    #[error("the roster is larger than {} MiB", ROSTER_BYTES_MAX >> 20)]
    TooLarge,
    /// Not the CBOR that a roster is made of.
    #[error("the roster is not well-formed")]
    Malformed(#[source] Error),
    /// Well-formed, but not what [`Roster::encode`] writes: another order or spelling.
    #[error("the roster is not in canonical form: make it again with sallyctl")]
    NotCanonical,
    /// The accounts themselves are wrong.
    #[error("the roster has faults")]
    Content(#[source] Problems),
}

impl Roster {
    /// The accounts in canonical encoding; equal accounts give equal bytes. The head is not part of it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        let written = self.write(&mut encoder);
        debug_assert!(written.is_ok(), "writing to memory does not fail");
        encoder.into_writer()
    }

    /// Reads what [`Roster::encode`] wrote, and checks it again: a signature says who wrote a roster, not that it is
    /// sound.
    ///
    /// # Errors
    /// [`NotARoster`]; other encodings of the same accounts are refused too.
    pub fn decode(head: Head, body: &[u8]) -> Result<Self, NotARoster> {
        if body.len() > ROSTER_BYTES_MAX {
            return Err(NotARoster::TooLarge);
        }
        let mut collector = Collector::new(head);
        read(&mut Decoder::new(body), &mut collector).map_err(NotARoster::Malformed)?;
        let roster = collector.finish().map_err(NotARoster::Content)?;
        if roster.encode() == body { Ok(roster) } else { Err(NotARoster::NotCanonical) }
    }

    fn write(&self, e: &mut Encoder<Vec<u8>>) -> Written {
        e.array(2)?.array(count(self.accounts.len()))?;
        self.accounts.iter().try_for_each(|account| write_account(e, account))?;
        e.array(count(self.locks.len()))?;
        self.locks.iter().try_for_each(|localpart| e.str(localpart.as_str()).map(drop))
    }
}

type Written = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

fn write_account(e: &mut Encoder<Vec<u8>>, account: &Account) -> Written {
    let first = [
        (0, Some(account.localpart.as_str())),
        (1, account.display_name.as_deref()),
        (2, account.unit.as_deref()),
    ];
    let places = [
        (5, account.home_enclave.as_ref().map(|name| name.as_str())),
        (6, account.moved_from.as_ref().map(|id| id.as_str())),
        (7, account.moved_to.as_ref().map(|id| id.as_str())),
    ];
    let external_id = account.external_id.as_deref();
    let texts = first.iter().chain(&places).filter(|(_, text)| text.is_some()).count();
    let lists = [!account.clearances.is_empty(), !account.cert_sha256.is_empty()];
    let others = lists.into_iter().chain([external_id.is_some(), true]);
    let present = texts + others.filter(|present| *present).count();
    e.map(count(present))?;
    first.into_iter().try_for_each(|(key, text)| write_text(e, key, text))?;
    if !account.clearances.is_empty() {
        e.u8(3)?.array(count(account.clearances.len()))?;
        account.clearances.iter().try_for_each(|clearance| write_clearance(e, clearance))?;
    }
    e.u8(4)?.bool(account.state == AccountState::Active)?;
    places.into_iter().try_for_each(|(key, text)| write_text(e, key, text))?;
    if !account.cert_sha256.is_empty() {
        e.u8(8)?.array(count(account.cert_sha256.len()))?;
        account.cert_sha256.iter().try_for_each(|hash| e.bytes(hash.as_bytes()).map(drop))?;
    }
    write_text(e, 9, external_id)
}

fn write_text(e: &mut Encoder<Vec<u8>>, key: u8, text: Option<&str>) -> Written {
    match text {
        Some(text) => e.u8(key)?.str(text).map(drop),
        None => Ok(()),
    }
}

fn write_clearance(e: &mut Encoder<Vec<u8>>, clearance: &Clearance) -> Written {
    e.array(3)?.bool(clearance.kind == ClearanceKind::Category)?.str(&clearance.name)?;
    match clearance.until {
        Some(until) => e.u32(until.days()).map(drop),
        None => e.null().map(drop),
    }
}

fn count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn read(d: &mut Decoder<'_>, collector: &mut Collector) -> Result<(), Error> {
    exactly(d, 2)?;
    for entry in 1..=length(d.array()?, ROSTER_ACCOUNTS_MAX)? {
        collector.add(Place::Entry(entry), read_account(d)?);
    }
    for entry in 1..=length(d.array()?, ROSTER_ACCOUNTS_MAX)? {
        collector.lock(Place::Entry(entry), parsed(d)?);
    }
    if d.position() == d.input().len() {
        Ok(())
    } else {
        Err(Error::message("bytes after the end"))
    }
}

/// Order, repetition and spelling of the keys are left to the comparison with our own encoding.
fn read_account(d: &mut Decoder<'_>) -> Result<Account, Error> {
    let keys = length(d.map()?, 10)?;
    if keys == 0 || d.u8()? != 0 {
        return Err(Error::message("an account without localpart"));
    }
    let mut account = Account::new(parsed(d)?);
    for _ in 1..keys {
        match d.u8()? {
            1 => account.display_name = Some(d.str()?.to_owned()),
            2 => account.unit = Some(d.str()?.to_owned()),
            3 => account.clearances = set(d, ROSTER_CLEARANCES_MAX, read_clearance)?,
            4 if d.bool()? => account.state = AccountState::Active,
            4 => account.state = AccountState::Locked,
            5 => account.home_enclave = Some(parsed(d)?),
            6 => account.moved_from = Some(parsed(d)?),
            7 => account.moved_to = Some(parsed(d)?),
            8 => account.cert_sha256 = set(d, ROSTER_CERTS_MAX, read_hash)?,
            9 => account.external_id = Some(d.str()?.to_owned()),
            _ => return Err(Error::message("an unknown key in an account")),
        }
    }
    Ok(account)
}

fn read_clearance(d: &mut Decoder<'_>) -> Result<Clearance, Error> {
    exactly(d, 3)?;
    let kind = if d.bool()? { ClearanceKind::Category } else { ClearanceKind::Level };
    let name = d.str()?.to_owned();
    let until = match d.datatype()? {
        minicbor::data::Type::Null => {
            d.null()?;
            None
        }
        _ => Some(Date::from_days(d.u32()?).ok_or_else(|| Error::message("a day after 9999"))?),
    };
    Ok(Clearance { kind, name, until })
}

fn read_hash(d: &mut Decoder<'_>) -> Result<Sha256, Error> {
    Sha256::try_from(d.bytes()?).map_err(|_| Error::message("a hash that is not of 32 bytes"))
}

fn parsed<T: FromStr>(d: &mut Decoder<'_>) -> Result<T, Error> {
    d.str()?.parse().map_err(|_| Error::message("a name that is not well-formed"))
}

fn set<T: Ord>(
    d: &mut Decoder<'_>,
    max: usize,
    mut read: impl FnMut(&mut Decoder<'_>) -> Result<T, Error>,
) -> Result<BTreeSet<T>, Error> {
    (0..length(d.array()?, max)?).map(|_| read(d)).collect()
}

fn exactly(d: &mut Decoder<'_>, len: u64) -> Result<(), Error> {
    if d.array()? == Some(len) { Ok(()) } else { Err(Error::message("an array of another length")) }
}

/// A definite length within a bound.
fn length(announced: Option<u64>, max: usize) -> Result<u64, Error> {
    match announced {
        Some(len) if len <= count(max) => Ok(len),
        _ => Err(Error::message("a list without length, or too long")),
    }
}
