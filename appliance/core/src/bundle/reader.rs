//! Import: from a file of unknown origin to records of a peer we trust, one gate after the other.

use std::{error::Error as StdError, io::Read};

use ring::digest::{Context, SHA256};
use ruma::ServerName;
use zeroize::Zeroizing;

use super::{
    ChunkReader, Error, Header, Manifest, Records, Section, Source as _,
    chunk::Keys,
    header::Head,
    hpke::{self, SharedSecret},
};
use crate::{
    card::{Card, EncryptionKey, EncryptionSuite},
    cose::KeyId,
    digest::Sha256,
    limits::{BUNDLE_MANIFEST_BYTES_MAX, FUTURE_MS_MAX},
    sign::context,
    time::Millis,
};

/// What a bundle is held against before it is opened.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// Our server name.
    pub me: &'a ServerName,
    /// The cards of our peers.
    pub peers: &'a [Card],
    /// The time on our clock.
    pub now: Millis,
    /// The largest file that we take, in bytes.
    pub bytes_max: u64,
    /// An officer admits a bundle whose time is over.
    pub admit_expired: bool,
    /// An officer admits a bundle that was made in our future.
    pub admit_future: bool,
}

/// A bundle whose header is authentic: we know who sent it, and that it is for us.
pub struct Sealed<R> {
    input: R,
    header: Header,
    head: Sha256,
}

/// What the private half of our key is asked for.
pub enum PrivateHalf<'a> {
    /// Suite 1: agree with this point of P-256 (uncompressed, checked to be on the curve) and answer with the x-coordinate.
    Agree(&'a [u8; 65]),
    /// Suite 2: the seed of the key.
    Seed,
}

/// A bundle whose manifest is authentic. Its sections were not looked at yet.
pub struct Unlocked<R> {
    chunks: ChunkReader<R>,
    authentic: Authentic,
}

/// A bundle that is authentic to the last byte, without the bytes: [`Authentic::records`] reads them again.
pub struct Authentic {
    header: Header,
    head: Sha256,
    secret: SharedSecret,
    manifest: Manifest,
    manifest_bytes: usize,
}

/// What a bundle says of itself: for lists, and for the order in which bundles are imported. Nothing of it is to be believed before
/// [`Sealed::open`].
pub fn unverified_header<R: Read>(mut input: R) -> Result<Header, Error> {
    Header::parse(Head::read(&mut input)?.envelope.unverified_payload())
}

impl<R: Read> Sealed<R> {
    /// Reads the header, verifies its signature and checks sender, recipient, time and size.
    pub fn open(mut input: R, gate: &Gate<'_>) -> Result<Self, Error> {
        let head = Head::read(&mut input)?;
        let key_id = head.envelope.key_id();
        let (card, key) = gate
            .peers
            .iter()
            .find_map(|card| Some((card, card.signing_key(key_id)?)))
            .ok_or_else(|| gate.unknown_signer(&head, key_id))?;
        let payload = head
            .envelope
            .verify(context::MANIFEST, &key.public)
            .map_err(|_| Error::BadSignature)?;
        let header = Header::parse(&payload)?;
        if header.from != card.content().server_name {
            let signer = card.content().server_name.clone();
            return Err(Error::WrongSender { claimed: header.from, signer });
        }
        card.check_time(gate.now).map_err(Error::SenderCard)?;
        // By the bundle's own date: a key that expired while the courier was under way still counts. A stolen old key
        // can back-date, but a bundle's life is bounded.
        if header.created > key.not_after {
            return Err(Error::SenderKeyExpired { key: key_id });
        }
        gate.check(&header, header.file_bytes(head.bytes))?;
        Ok(Self { input, header, head: head.hash })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Has the token do its part, then reads the manifest and verifies that it is the one of the header.
    ///
    /// `own` is our key with the id [`Header::recipient_key`].
    pub fn unlock<E: Into<Box<dyn StdError + Send + Sync>>>(
        self,
        own: &EncryptionKey,
        private: impl FnOnce(PrivateHalf<'_>) -> Result<Zeroizing<[u8; 32]>, E>,
    ) -> Result<Unlocked<R>, Error> {
        let Self { input, header, head } = self;
        let wrong_key = Error::WrongKey { key: header.recipient_key };
        let suite = EncryptionSuite::from_code(header.suite);
        let suite = suite.filter(|_| own.id() == header.recipient_key && own.suite() == suite);
        let private =
            |asked: PrivateHalf<'_>| private(asked).map_err(|error| Error::Token(error.into()));
        let secret = match suite.ok_or(wrong_key)? {
            EncryptionSuite::P256HkdfSha256Aes256Gcm => {
                let point = header.encapsulated.first_chunk::<{ hpke::POINT_BYTES }>();
                let point = point.filter(|_| hpke::is_point(&header.encapsulated));
                let point = point.ok_or(Error::Header(None))?;
                let agreed = private(PrivateHalf::Agree(point))?;
                SharedSecret::agreed(agreed.as_slice(), point, &own.public)
            }
            EncryptionSuite::XWingHkdfSha256Aes256Gcm => {
                let seed = private(PrivateHalf::Seed)?;
                SharedSecret::decapsulated(&seed, &header.encapsulated)
                    .map_err(|_| Error::Header(None))?
            }
        };
        let wrong_key = Error::WrongKey { key: header.recipient_key };
        let keys = Keys::new(&secret, head).ok_or(wrong_key)?;
        let mut chunks = ChunkReader::new(input, keys, header.plaintext_bytes);
        let (manifest, manifest_bytes) = read_manifest(&mut chunks, &header)?;
        let authentic = Authentic { header, head, secret, manifest, manifest_bytes };
        Ok(Unlocked { chunks, authentic })
    }
}

impl<R: Read> Unlocked<R> {
    /// The header.
    pub fn header(&self) -> &Header {
        &self.authentic.header
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.authentic.manifest
    }

    /// Reads to the last byte and verifies all of it. Nothing is unpacked.
    pub fn authenticate(mut self) -> Result<Authentic, Error> {
        for (number, section) in self.authentic.manifest.sections.iter().enumerate() {
            if hash(&mut self.chunks, section)? != section.sha256 {
                return Err(Error::SectionHash { section: number });
            }
        }
        self.chunks.finish()?;
        Ok(self.authentic)
    }
}

impl Authentic {
    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The records. `input` gives the same file again, from its beginning.
    pub fn records<R: Read>(&self, mut input: R) -> Result<Records<ChunkReader<R>>, Error> {
        if Head::read(&mut input)?.hash != self.head {
            return Err(Error::Exchanged);
        }
        let keys = Keys::new(&self.secret, self.head).ok_or(Error::Exchanged)?;
        let mut chunks = ChunkReader::new(input, keys, self.header.plaintext_bytes);
        chunks.skip(4)?;
        chunks.skip(u64::try_from(self.manifest_bytes).unwrap_or(u64::MAX))?;
        Ok(Records::new(&self.manifest, chunks))
    }
}

impl Gate<'_> {
    /// Nothing that an unknown signer says is believed; but if it does not even claim to be for us, a card would not help.
    fn unknown_signer(&self, head: &Head, key: KeyId) -> Error {
        match Header::parse(head.envelope.unverified_payload()) {
            Ok(header) if header.to != *self.me => Error::WrongRecipient { to: header.to },
            _ => Error::UnknownSender { key },
        }
    }

    fn check(&self, header: &Header, file_bytes: u64) -> Result<(), Error> {
        if header.to != *self.me {
            return Err(Error::WrongRecipient { to: header.to.clone() });
        }
        if header.expires < self.now && !self.admit_expired {
            return Err(Error::Expired { expires: header.expires });
        }
        let in_the_future = header.created.0 > self.now.0.saturating_add(FUTURE_MS_MAX);
        if in_the_future && !self.admit_future {
            return Err(Error::FromTheFuture { created: header.created });
        }
        if file_bytes > self.bytes_max {
            return Err(Error::Oversized { bytes: file_bytes, max: self.bytes_max });
        }
        Ok(())
    }
}

fn read_manifest<R: Read>(
    chunks: &mut ChunkReader<R>,
    header: &Header,
) -> Result<(Manifest, usize), Error> {
    let mut length = [0; 4];
    chunks.fill(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > BUNDLE_MANIFEST_BYTES_MAX {
        return Err(Error::Manifest("too large"));
    }
    let mut bytes = vec![0; length];
    chunks.fill(&mut bytes)?;
    if Sha256::of(&bytes) != header.manifest {
        return Err(Error::Manifest("not the one that the header names"));
    }
    let manifest = Manifest::parse(&bytes)?;
    if !manifest.belongs_to(header, length) {
        return Err(Error::Manifest("contradicts the header"));
    }
    Ok((manifest, length))
}

fn hash<R: Read>(chunks: &mut ChunkReader<R>, section: &Section) -> Result<Sha256, Error> {
    let mut hash = Context::new(&SHA256);
    let mut left = section.stored_bytes;
    while left > 0 {
        let available = chunks.available()?;
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(available.len());
        let bytes = available.get(..now).unwrap_or_default();
        if bytes.is_empty() {
            return Err(Error::Truncated);
        }
        hash.update(bytes);
        chunks.consume(now);
        left = left.saturating_sub(u64::try_from(now).unwrap_or(u64::MAX));
    }
    Sha256::try_from(hash.finish().as_ref()).map_err(|_| Error::Manifest("no hash"))
}
