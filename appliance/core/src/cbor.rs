//! Deterministic CBOR (RFC 8949, section 4.2): the encoding of cards, bundle headers, manifests and records.
//!
//! A value has exactly one accepted encoding. [`from_bytes`] encodes again what it decoded and compares the bytes: duplicate
//! and unknown keys, indefinite lengths, longer integers than needed and trailing bytes are refused by that one comparison.

use minicbor::{
    Decode, Decoder, Encode, Encoder, decode,
    encode::{self, Write},
};

use crate::{
    digest::Sha256,
    sign::{Algorithm, PublicKey},
    time::Millis,
};

/// Why bytes were not accepted, or a value not encoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not CBOR, or not of the expected shape.
    #[error("not CBOR of the expected shape")]
    Shape(#[source] decode::Error),
    /// Decodes, but is not the one deterministic encoding of what it says.
    #[error("not the deterministic encoding of its content")]
    NotDeterministic,
    /// The value has no encoding.
    #[error("value cannot be encoded")]
    Encode(#[source] encode::Error<std::convert::Infallible>),
}

/// The deterministic encoding of a value.
pub fn to_bytes<T: Encode<()>>(value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    append(value, &mut bytes)?;
    Ok(bytes)
}

/// Appends the deterministic encoding of a value to a buffer.
pub fn append<T: Encode<()>>(value: &T, buffer: &mut Vec<u8>) -> Result<(), Error> {
    minicbor::encode(value, buffer).map_err(Error::Encode)
}

/// Decodes bytes that are the deterministic encoding of a value, and nothing else.
///
/// The caller bounds the length of the bytes first: no more memory is used than a small multiple of it.
pub fn from_bytes<'b, T: Decode<'b, ()> + Encode<()>>(bytes: &'b [u8]) -> Result<T, Error> {
    let value = decode(bytes).map_err(Error::Shape)?;
    if to_bytes(&value)? != bytes {
        return Err(Error::NotDeterministic);
    }
    Ok(value)
}

impl<C> Encode<C> for Sha256 {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(self.as_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Sha256 {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        Self::try_from(d.bytes()?).map_err(|_| decode::Error::message("not a SHA-256 value").at(at))
    }
}

/// Milliseconds since the Unix epoch.
impl<C> Encode<C> for Millis {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.u64(self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Millis {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.u64().map(Self)
    }
}

/// `[algorithm, bytes]`: 1 is Ed25519 with 32 bytes, 2 is P-256 with an uncompressed point of 65.
impl<C> Encode<C> for PublicKey {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        let algorithm = match self.algorithm() {
            Algorithm::Ed25519 => 1,
            Algorithm::P256 => 2,
        };
        e.array(2)?.u8(algorithm)?.bytes(self.as_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for PublicKey {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        let refused = |what| decode::Error::message(what).at(at);
        if d.array()? != Some(2) {
            return Err(refused("not a public key"));
        }
        let algorithm = match d.u8()? {
            1 => Algorithm::Ed25519,
            2 => Algorithm::P256,
            _ => return Err(refused("unknown signature algorithm")),
        };
        Self::new(algorithm, d.bytes()?).map_err(|_| refused("not a usable public key"))
    }
}

/// Field codec (`#[cbor(with = "cbor::id")]`) of a Matrix identifier: a text string that its type accepts.
pub(crate) mod id {
    use minicbor::{
        Decoder, Encoder,
        decode::Error,
        encode::{self, Write},
    };

    pub(crate) fn encode<C, T: AsRef<str>, W: Write>(
        id: &T,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.str(id.as_ref())?.ok()
    }

    pub(crate) fn decode<C, T: for<'a> TryFrom<&'a str>>(
        d: &mut Decoder<'_>,
        _: &mut C,
    ) -> Result<T, Error> {
        let at = d.position();
        T::try_from(d.str()?).map_err(|_| Error::message("not a valid Matrix identifier").at(at))
    }
}

/// Field codec of an optional Matrix identifier.
pub(crate) mod id_option {
    use minicbor::{
        Decoder, Encoder,
        data::Type,
        decode::Error,
        encode::{self, Write},
    };

    pub(crate) fn encode<C, T: AsRef<str>, W: Write>(
        id: &Option<T>,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        match id {
            Some(id) => super::id::encode(id, e, ctx),
            None => e.null()?.ok(),
        }
    }

    pub(crate) fn decode<C, T: for<'a> TryFrom<&'a str>>(
        d: &mut Decoder<'_>,
        ctx: &mut C,
    ) -> Result<Option<T>, Error> {
        if d.datatype()? == Type::Null {
            d.null()?;
            return Ok(None);
        }
        super::id::decode(d, ctx).map(Some)
    }

    // Absent from a map when there is none.
    pub(crate) fn nil<T>() -> Option<Option<T>> {
        Some(None)
    }

    pub(crate) fn is_nil<T>(id: &Option<T>) -> bool {
        id.is_none()
    }
}

/// Field codec of a list of Matrix identifiers.
pub(crate) mod ids {
    use minicbor::{
        Decoder, Encoder,
        decode::Error,
        encode::{self, Write},
    };

    pub(crate) fn encode<C, T: AsRef<str>, W: Write>(
        ids: &[T],
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(ids.len() as u64)?;
        ids.iter().try_for_each(|id| super::id::encode(id, e, ctx))
    }

    pub(crate) fn decode<C, T: for<'a> TryFrom<&'a str>>(
        d: &mut Decoder<'_>,
        ctx: &mut C,
    ) -> Result<Vec<T>, Error> {
        let Some(count) = d.array()? else {
            return Err(Error::message("indefinite length").at(d.position()));
        };
        // Not reserved ahead: the count is only a claim until its items have been read.
        (0..count).map(|_| super::id::decode(d, ctx)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Sample {
        #[n(0)]
        number: u64,
        #[n(1)]
        text: Option<String>,
        #[n(2)]
        list: Vec<u8>,
    }

    #[test]
    fn only_the_deterministic_encoding_is_accepted() {
        // {0: 1, 2: [2]}
        assert_eq!(
            from_bytes::<Sample>(&[0xa2, 0, 1, 2, 0x81, 2]).unwrap(),
            Sample { number: 1, text: None, list: vec![2] }
        );
        let refused: &[(&str, &[u8])] = &[
            ("trailing byte", &[0xa2, 0, 1, 2, 0x81, 2, 0]),
            ("truncated", &[0xa2, 0, 1, 2, 0x81]),
            ("longer integer than needed", &[0xa2, 0, 0x18, 1, 2, 0x81, 2]),
            ("keys out of order", &[0xa2, 2, 0x81, 2, 0, 1]),
            ("duplicate key", &[0xa3, 0, 1, 0, 1, 2, 0x81, 2]),
            ("unknown key", &[0xa3, 0, 1, 2, 0x81, 2, 3, 0]),
            ("explicit null", &[0xa3, 0, 1, 1, 0xf6, 2, 0x81, 2]),
            ("map of indefinite length", &[0xbf, 0, 1, 2, 0x81, 2, 0xff]),
            ("array of indefinite length", &[0xa2, 0, 1, 2, 0x9f, 2, 0xff]),
            ("missing key", &[0xa1, 0, 1]),
            (
                "length beyond the end",
                &[0xa2, 0, 1, 2, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            ),
        ];
        for (what, bytes) in refused {
            assert!(from_bytes::<Sample>(bytes).is_err(), "{what}");
        }
    }
}
