//! Export: records into a spool, the spool into a sealed file.

use std::{
    collections::BTreeSet,
    error::Error as StdError,
    io::{self, Read, Write},
};

use ring::digest::{Context, SHA256};
use ruma::{OwnedRoomId, RoomId};
use zstd::stream::{raw::CParameter, write::Encoder};

use super::{
    Codec, Header, Kind, Manifest, Record, RecordError, SealError, Section, WriteError,
    chunk::{ChunkWriter, Keys},
    hpke,
    order::Order,
};
use crate::{
    card::EncryptionKey,
    cose,
    digest::Sha256,
    limits::{BUNDLE_RATIO_MAX, BUNDLE_SECTIONS_MAX, BUNDLE_WINDOW_LOG_MAX},
    sign::{PublicKey, Signature},
};

/// The level of zstd: beyond it, signatures and hashes do not get smaller.
const LEVEL: i32 = 3;
/// Bytes that are copied in one step.
const COPY_BYTES: usize = 128 * 1024;

/// Writes sections into a spool: plaintext, so it belongs on the box's own encrypted disk.
pub struct Writer<W> {
    spool: W,
    bytes_max: u64,
    contents: Contents,
    rooms: BTreeSet<OwnedRoomId>,
    is_open: bool,
}

/// What was written into a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// For [`Manifest::sections`].
    pub sections: Vec<Section>,
    /// Bytes of the spool.
    pub bytes: u64,
}

/// One section that is being written. Dropped without [`SectionWriter::finish`], it makes the spool worthless.
pub struct SectionWriter<'a, W: Write> {
    body: Body<'a, W>,
    order: Order,
    section: Section,
    kind: Kind,
    buffer: Vec<u8>,
    bytes_max: u64,
    contents: &'a mut Contents,
    is_open: &'a mut bool,
}

enum Body<'a, W: Write> {
    Stored(Box<Sink<'a, W>>),
    Zstd(Box<Encoder<'static, Sink<'a, W>>>),
}

/// The end of the pipe: counts and hashes what goes into the spool.
struct Sink<'a, W> {
    spool: &'a mut W,
    hash: Context,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a spool. It refuses to grow beyond a number of bytes; what encryption adds comes on top of that.
    pub fn new(spool: W, bytes_max: u64) -> Self {
        let (contents, rooms) = Default::default();
        Self { spool, bytes_max, contents, rooms, is_open: false }
    }

    /// Begins a section of a kind, which must not come before another one in [`Kind`]; of a room, if it is of that kind.
    pub fn section(
        &mut self,
        kind: Kind,
        room_id: Option<&RoomId>,
    ) -> Result<SectionWriter<'_, W>, WriteError> {
        if self.is_open {
            return Err(WriteError::Unfinished);
        }
        if self.contents.sections.len() >= BUNDLE_SECTIONS_MAX {
            return Err(WriteError::TooManySections);
        }
        let is_late = self.contents.sections.last().is_some_and(|last| last.kind > kind.code());
        let is_new = room_id.is_none_or(|room| self.rooms.insert(room.to_owned()));
        if is_late || !is_new || room_id.is_some() != (kind == Kind::Room) {
            return Err(WriteError::Order { kind });
        }
        self.is_open = true;
        let sink = Sink { spool: &mut self.spool, hash: Context::new(&SHA256), bytes: 0 };
        // Media are compressed already, or encrypted.
        let (codec, body) = match kind {
            Kind::Media => (Codec::Stored, Body::Stored(Box::new(sink))),
            _ => (Codec::Zstd, Body::zstd(sink)?),
        };
        let section = Section {
            kind: kind.code(),
            critical: kind.is_critical(),
            room_id: room_id.map(ToOwned::to_owned),
            codec,
            stored_bytes: 0,
            bytes: 0,
            sha256: Sha256::default(),
            records: 0,
        };
        Ok(SectionWriter {
            body,
            order: Order::new(kind, room_id),
            section,
            kind,
            buffer: Vec::new(),
            bytes_max: self.bytes_max,
            contents: &mut self.contents,
            is_open: &mut self.is_open,
        })
    }

    /// Bytes in the spool so far.
    pub fn bytes(&self) -> u64 {
        self.contents.bytes
    }

    /// Ends the spool.
    pub fn finish(mut self) -> Result<(W, Contents), WriteError> {
        if self.is_open {
            return Err(WriteError::Unfinished);
        }
        self.spool.flush()?;
        Ok((self.spool, self.contents))
    }
}

impl<W: Write> SectionWriter<'_, W> {
    /// Appends a record.
    pub fn push(&mut self, record: &Record) -> Result<(), WriteError> {
        self.buffer.clear();
        self.buffer.extend([0; 4]);
        record.append_to(&mut self.buffer)?;
        let bytes = self.buffer.len().saturating_sub(4);
        let max = self.kind.record_bytes_max();
        let length = u32::try_from(bytes).ok().filter(|_| bytes <= max);
        let length = length.ok_or(RecordError::TooLarge { bytes, max })?;
        self.order.accept(record)?;
        if let Some(place) = self.buffer.first_chunk_mut::<4>() {
            *place = length.to_be_bytes();
        }
        match &mut self.body {
            Body::Stored(sink) => sink.write_all(&self.buffer)?,
            Body::Zstd(encoder) => encoder.write_all(&self.buffer)?,
        }
        let framed = u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
        self.section.bytes = self.section.bytes.saturating_add(framed);
        self.section.records = self.section.records.saturating_add(1);
        self.check_size(self.body.sink().bytes)
    }

    /// Bytes that the spool has now, without what the compressor holds back (8 MiB at most).
    pub fn bytes(&self) -> u64 {
        self.contents.bytes.saturating_add(self.body.sink().bytes)
    }

    /// Ends the section.
    pub fn finish(self) -> Result<(), WriteError> {
        self.order.finish()?;
        let mut sink = self.body.finish(self.section.bytes)?;
        sink.flush()?;
        let Sink { hash, bytes, .. } = sink;
        let total = self.contents.bytes.saturating_add(bytes);
        if total > self.bytes_max {
            return Err(WriteError::Full { max: self.bytes_max });
        }
        let sha256 = Sha256::try_from(hash.finish().as_ref()).map_err(io::Error::other)?;
        self.contents.sections.push(Section { stored_bytes: bytes, sha256, ..self.section });
        self.contents.bytes = total;
        *self.is_open = false;
        Ok(())
    }

    fn check_size(&self, section_bytes: u64) -> Result<(), WriteError> {
        if self.contents.bytes.saturating_add(section_bytes) > self.bytes_max {
            return Err(WriteError::Full { max: self.bytes_max });
        }
        Ok(())
    }
}

impl<'a, W: Write> Body<'a, W> {
    fn zstd(sink: Sink<'a, W>) -> io::Result<Self> {
        let mut encoder = Encoder::new(sink, LEVEL)?;
        encoder.set_parameter(CParameter::WindowLog(BUNDLE_WINDOW_LOG_MAX))?;
        Ok(Self::Zstd(Box::new(encoder)))
    }

    fn sink(&self) -> &Sink<'a, W> {
        match self {
            Self::Stored(sink) => sink,
            Self::Zstd(encoder) => encoder.get_ref(),
        }
    }

    fn finish(self, bytes: u64) -> io::Result<Sink<'a, W>> {
        match self {
            Self::Stored(sink) => Ok(*sink),
            Self::Zstd(encoder) => {
                let mut sink = encoder.finish()?;
                pad(&mut sink, bytes)?;
                Ok(sink)
            }
        }
    }
}

/// Recipients refuse what unpacks to more than 50 times its size. Users can write what compresses better than that, and
/// must not be able to stop an export by it, so such a section is made longer: by a skippable frame (RFC 8878, section 3.1.2).
fn pad<W: Write>(sink: &mut Sink<'_, W>, bytes: u64) -> io::Result<()> {
    const MAGIC: u32 = 0x184d_2a50;
    let missing = bytes.div_ceil(BUNDLE_RATIO_MAX).saturating_sub(sink.bytes);
    let Ok(length) = u32::try_from(missing) else {
        return Err(io::Error::other("section too long to be padded"));
    };
    if length == 0 {
        return Ok(());
    }
    sink.write_all(&MAGIC.to_le_bytes())?;
    sink.write_all(&length.to_le_bytes())?;
    io::copy(&mut io::repeat(0).take(length.into()), sink).map(drop)
}

impl<W: Write> Write for Sink<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.spool.write(bytes)?;
        let written_bytes = bytes.get(..written).unwrap_or(bytes);
        self.hash.update(written_bytes);
        let count = u64::try_from(written).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(count);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spool.flush()
    }
}

/// What a spool is sealed with.
#[derive(Clone, Debug)]
pub struct Envelope<'a> {
    /// The manifest, with the sections of the spool.
    pub manifest: &'a Manifest,
    /// The recipient's key.
    pub recipient_key: &'a EncryptionKey,
    /// The largest file that the recipient takes, in bytes.
    pub bytes_max: u64,
    /// The courier key that signs.
    pub signing_key: &'a PublicKey,
    /// Random bytes, of which the ephemeral key is made. Used once.
    pub randomness: &'a [u8; 64],
}

impl Envelope<'_> {
    /// Signs and encrypts: reads the spool once, writes the file once. After an error the file is to be thrown away.
    ///
    /// The signer gets the bytes that the signature covers (`Sig_structure`).
    pub fn seal<R: Read, W: Write, E: StdError + Send + Sync + 'static>(
        &self,
        spool: R,
        mut output: W,
        signer: impl FnOnce(&[u8]) -> Result<Signature, E>,
    ) -> Result<Header, SealError> {
        let manifest = self.manifest.to_bytes()?;
        // What a recipient refuses must not leave.
        Manifest::parse(&manifest).map_err(SealError::Manifest)?;
        let suite = self.recipient_key.suite().ok_or(SealError::RecipientKey)?;
        let (encapsulated, secret) =
            hpke::encapsulate(suite, &self.recipient_key.public, self.randomness)
                .map_err(|_| SealError::RecipientKey)?;
        let header = self.header(&manifest, encapsulated)?;
        let head = header.seal(self.signing_key, signer).map_err(sign_error)?;
        let file_bytes = header.file_bytes(head.len());
        if file_bytes > self.bytes_max {
            return Err(SealError::Oversized { bytes: file_bytes, max: self.bytes_max });
        }
        output.write_all(&head)?;
        let keys = Keys::new(&secret, Sha256::of(&head)).ok_or(SealError::RecipientKey)?;
        let mut chunks = ChunkWriter::new(output, keys);
        let length = u32::try_from(manifest.len()).map_err(io::Error::other)?;
        chunks.write_all(&length.to_be_bytes())?;
        chunks.write_all(&manifest)?;
        copy(spool, &self.manifest.sections, &mut chunks)?;
        chunks.finish_as_announced(header.plaintext_bytes)?;
        Ok(header)
    }

    fn header(&self, manifest: &[u8], encapsulated: Vec<u8>) -> Result<Header, SealError> {
        let Manifest { id, from, to, incarnation, seq, created, expires, .. } = self.manifest;
        let plaintext_bytes = self
            .manifest
            .plaintext_bytes(manifest.len())
            .ok_or(SealError::Oversized { bytes: u64::MAX, max: self.bytes_max })?;
        let header = Header {
            from: from.clone(),
            to: to.clone(),
            id: *id,
            incarnation: *incarnation,
            seq: *seq,
            created: *created,
            expires: *expires,
            plaintext_bytes,
            manifest: Sha256::of(manifest),
            suite: self.recipient_key.suite,
            recipient_key: self.recipient_key.id(),
            encapsulated,
        };
        header.check().map_err(SealError::Manifest)?;
        Ok(header)
    }
}

/// Copies the spool and holds each section against the hash that was taken when it was written.
fn copy(
    mut spool: impl Read,
    sections: &[Section],
    output: &mut impl Write,
) -> Result<(), SealError> {
    let mut buffer = vec![0; COPY_BYTES];
    for section in sections {
        let mut hash = Context::new(&SHA256);
        let mut left = section.stored_bytes;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let bytes = buffer.get_mut(..now).unwrap_or_default();
            spool.read_exact(bytes)?;
            hash.update(bytes);
            output.write_all(bytes)?;
            left = left.saturating_sub(u64::try_from(now).unwrap_or(u64::MAX));
        }
        if hash.finish().as_ref() != section.sha256.as_bytes() {
            return Err(SealError::Spool);
        }
    }
    Ok(())
}

fn sign_error<E: StdError + Send + Sync + 'static>(error: cose::SignError<E>) -> SealError {
    SealError::Sign(Box::new(error))
}
