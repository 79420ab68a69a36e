//! Making a backup: items in, one encrypted stream out, in one pass and in flat memory.

use std::io::{self, Write};

use zeroize::Zeroizing;
use zstd::stream::{raw::CParameter, write::Encoder};

use super::{
    BackupId, Codec, Head, Header, Maker, Manifest, RecoveryKey, Section, WriteError,
    manifest::Tally,
};
use crate::{
    audit::Tip,
    bundle::{
        chunk::{ChunkWriter, Keys},
        hpke::RANDOMNESS_BYTES,
    },
    cbor,
    digest::Hasher,
    limits::{BACKUP_BLOCK_BYTES_MAX, BACKUP_FILES_MAX, BUNDLE_WINDOW_LOG_MAX},
    sign::{PublicKey, Signature},
};

/// The level of zstd: a database gets to a third of its size, faster than a stick takes it.
const LEVEL: i32 = 3;

/// Writes a backup.
pub struct Writer<W: Write> {
    chunks: ChunkWriter<W>,
    id: BackupId,
    signer: PublicKey,
    tally: Tally,
    last: Option<(Section, String)>,
}

/// One item that is being written. Dropped without [`ItemWriter::finish`], it makes the backup worthless.
pub struct ItemWriter<'a, W: Write> {
    body: Body<'a, W>,
    head: Head,
    head_bytes: Vec<u8>,
    hasher: Hasher,
    bytes: u64,
    tally: &'a mut Tally,
}

enum Body<'a, W: Write> {
    Stored(Blocks<'a, W>),
    Zstd(Box<Encoder<'static, Blocks<'a, W>>>),
}

/// Frames content into blocks.
struct Blocks<'a, W: Write> {
    chunks: &'a mut ChunkWriter<W>,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a backup for these recovery keys. `content_key` and what `randomness` gives are fresh random bytes.
    ///
    /// # Errors
    /// If there is no recovery key or too many, or the output fails.
    pub fn new<E: Into<WriteError>>(
        mut output: W,
        maker: Maker,
        to: &[RecoveryKey],
        content_key: &Zeroizing<[u8; 32]>,
        randomness: impl FnMut() -> Result<[u8; RANDOMNESS_BYTES], E>,
    ) -> Result<Self, WriteError> {
        let signer = maker.signer.clone();
        let header = Header::new(maker, to, content_key, randomness)?;
        let (bytes, id) = header.to_file()?;
        output.write_all(&bytes)?;
        let keys = Keys::of_content_key(content_key, id.0).ok_or(WriteError::Encode)?;
        let chunks = ChunkWriter::new(output, keys);
        Ok(Self { chunks, id, signer, tally: Tally::default(), last: None })
    }

    /// The id of the backup.
    #[must_use]
    pub fn id(&self) -> BackupId {
        self.id
    }

    /// Begins an item, whose content has so many bytes.
    ///
    /// # Errors
    /// If it does not belong after the one before, or is too large.
    pub fn item(
        &mut self,
        section: Section,
        name: &str,
        bytes: u64,
    ) -> Result<ItemWriter<'_, W>, WriteError> {
        let codec = match section {
            Section::Database | Section::MediaList => Codec::Zstd,
            _ => Codec::Stored,
        };
        let head = Head { section, name: name.to_owned(), bytes, codec };
        if let Some(why) = head.problem() {
            return Err(WriteError::Item { name: head.name, why });
        }
        let is_small = matches!(section, Section::Settings | Section::Wrapped);
        let files = u64::try_from(BACKUP_FILES_MAX).unwrap_or(u64::MAX);
        if is_small && self.tally.items(section) >= files {
            return Err(WriteError::Item { name: head.name, why: "too many files" });
        }
        let place = (section, head.name.clone());
        if self.last.as_ref().is_some_and(|last| *last >= place) {
            return Err(WriteError::Order(section));
        }
        self.last = Some(place);
        let head_bytes = cbor::to_bytes(&head).map_err(|_| WriteError::Encode)?;
        let length = u32::try_from(head_bytes.len()).map_err(|_| WriteError::Encode)?;
        self.chunks.write_all(&length.to_be_bytes())?;
        self.chunks.write_all(&head_bytes)?;
        let blocks = Blocks { chunks: &mut self.chunks, buffer: Vec::new() };
        let body = match codec {
            Codec::Stored => Body::Stored(blocks),
            Codec::Zstd => {
                let mut encoder = Encoder::new(blocks, LEVEL)?;
                encoder.set_parameter(CParameter::WindowLog(BUNDLE_WINDOW_LOG_MAX))?;
                Body::Zstd(Box::new(encoder))
            }
        };
        let (hasher, tally) = (Hasher::default(), &mut self.tally);
        Ok(ItemWriter { body, head, head_bytes, hasher, bytes: 0, tally })
    }

    /// Writes a small item.
    ///
    /// # Errors
    /// As [`Writer::item`].
    pub fn file(&mut self, section: Section, name: &str, content: &[u8]) -> Result<(), WriteError> {
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let mut item = self.item(section, name, bytes)?;
        item.write_all(content)?;
        item.finish()
    }

    /// Signs the manifest and ends the backup.
    ///
    /// # Errors
    /// If the signer or the output fails.
    pub fn finish<E: std::error::Error + Send + Sync + 'static>(
        mut self,
        audit: Tip,
        version: &str,
        missing_media: u64,
        signer: impl FnOnce(&[u8]) -> Result<Signature, E>,
    ) -> Result<(W, Manifest), WriteError> {
        let manifest = Manifest {
            id: self.id,
            contents: std::mem::take(&mut self.tally).finish(),
            audit_row: audit.id,
            audit_hash: audit.hash,
            version: version.to_owned(),
            missing_media,
        };
        let signed = manifest.sign(&self.signer, signer)?;
        self.file(Section::Manifest, "", &signed)?;
        Ok((self.chunks.finish()?, manifest))
    }
}

impl<W: Write> ItemWriter<'_, W> {
    /// Ends the item.
    ///
    /// # Errors
    /// If it was shorter or longer than was said.
    pub fn finish(self) -> Result<(), WriteError> {
        let Self { body, head, head_bytes, hasher, bytes, tally } = self;
        match body {
            Body::Stored(blocks) => blocks.finish()?,
            Body::Zstd(encoder) => encoder.finish()?.finish()?,
        }
        if bytes != head.bytes {
            return Err(WriteError::Changed(head.name));
        }
        tally.count(&head, &head_bytes, &hasher.finish());
        Ok(())
    }
}

impl<W: Write> Write for ItemWriter<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.body {
            Body::Stored(blocks) => blocks.write(bytes)?,
            Body::Zstd(encoder) => encoder.write(bytes)?,
        };
        self.hasher.update(bytes.get(..written).unwrap_or(bytes));
        self.bytes = self.bytes.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Blocks<'_, W> {
    fn block(&mut self) -> io::Result<()> {
        let length = u32::try_from(self.buffer.len()).map_err(io::Error::other)?;
        self.chunks.write_all(&length.to_be_bytes())?;
        self.chunks.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.block()?;
        }
        self.chunks.write_all(&0_u32.to_be_bytes())
    }
}

impl<W: Write> Write for Blocks<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BACKUP_BLOCK_BYTES_MAX.saturating_sub(self.buffer.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() == BACKUP_BLOCK_BYTES_MAX {
            self.block()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
