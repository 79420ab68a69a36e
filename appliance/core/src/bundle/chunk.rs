//! The encrypted part of a bundle: chunks of 1 MiB under AES-256-GCM, the last one under a key of its own.

use std::io::{self, ErrorKind, Read, Write};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};
use zeroize::Zeroizing;

use super::{Error, hpke::SharedSecret, records::Source};
use crate::digest::Sha256;

/// Bytes of plaintext in each chunk but the last.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// Bytes that encryption adds to a chunk.
pub(crate) const TAG_BYTES: usize = 16;

/// Bytes that a plaintext takes in the file.
pub(super) fn sealed_bytes(plaintext_bytes: u64) -> u64 {
    plaintext_bytes.saturating_add(chunks(plaintext_bytes).saturating_mul(TAG_BYTES as u64))
}

/// There is always a last chunk, if only an empty one.
fn chunks(plaintext_bytes: u64) -> u64 {
    plaintext_bytes.div_ceil(CHUNK_BYTES as u64).max(1)
}

/// The keys of one bundle, or of one backup, bound to its header.
pub(crate) struct Keys {
    body: LessSafeKey,
    last: LessSafeKey,
    header: Sha256,
}

impl Keys {
    pub(super) fn new(secret: &SharedSecret, header: Sha256) -> Option<Self> {
        let key = |purpose: &[u8]| {
            let key: Zeroizing<[u8; 32]> = secret.export(header.as_bytes(), purpose);
            UnboundKey::new(&AES_256_GCM, key.as_slice()).ok().map(LessSafeKey::new)
        };
        Some(Self { body: key(b"sallyport chunk")?, last: key(b"sallyport last chunk")?, header })
    }

    /// For content whose key is chosen, and wrapped for several recipients: HKDF with the header as its salt takes the place of HPKE's export.
    pub(crate) fn of_content_key(content_key: &[u8; 32], header: Sha256) -> Option<Self> {
        let prk = Salt::new(HKDF_SHA256, header.as_bytes()).extract(content_key);
        let key = |purpose: &[u8]| {
            let info = [purpose];
            let okm = prk.expand(&info, &AES_256_GCM).ok()?;
            Some(LessSafeKey::new(UnboundKey::from(okm)))
        };
        Some(Self { body: key(b"sallyport chunk")?, last: key(b"sallyport last chunk")?, header })
    }

    /// Encrypts a chunk in its place and gives its tag.
    fn seal(&self, chunk: u64, is_last: bool, buffer: &mut [u8]) -> io::Result<Tag> {
        let aad = Aad::from(self.header.as_bytes());
        self.of_chunk(is_last)
            .seal_in_place_separate_tag(Self::nonce(chunk), aad, buffer)
            .map_err(|_| io::Error::other("chunk cannot be encrypted"))
    }

    /// Decrypts a chunk in its place; what does not verify is wiped, so that nobody reads it.
    pub(crate) fn open(
        &self,
        chunk: u64,
        is_last: bool,
        buffer: &mut Vec<u8>,
        tag: [u8; TAG_BYTES],
    ) -> Result<(), Error> {
        let aad = Aad::from(self.header.as_bytes());
        let nonce = Self::nonce(chunk);
        let key = self.of_chunk(is_last);
        let opened =
            key.open_in_place_separate_tag(nonce, aad, Tag::from(tag), buffer, 0..).map(drop);
        opened.map_err(|_| {
            buffer.clear();
            Error::Damaged { chunk }
        })
    }

    fn of_chunk(&self, is_last: bool) -> &LessSafeKey {
        if is_last { &self.last } else { &self.body }
    }

    fn nonce(chunk: u64) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce.iter_mut().rev().zip(chunk.to_le_bytes()).for_each(|(to, from)| *to = from);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Encrypts a plaintext of any length.
pub(crate) struct ChunkWriter<W> {
    output: W,
    keys: Keys,
    buffer: Vec<u8>,
    chunk: u64,
}

impl<W: Write> ChunkWriter<W> {
    pub(crate) fn new(output: W, keys: Keys) -> Self {
        Self { output, keys, buffer: Vec::with_capacity(CHUNK_BYTES), chunk: 0 }
    }

    /// Writes the last chunk.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        self.output.flush()?;
        Ok(self.output)
    }

    /// Writes the last chunk of a plaintext whose length was said before. Fails if it had another one.
    pub(super) fn finish_as_announced(self, plaintext_bytes: u64) -> io::Result<W> {
        if self.chunk.saturating_add(1) != chunks(plaintext_bytes) {
            return Err(io::Error::other("plaintext of another length than announced"));
        }
        self.finish()
    }

    fn seal(&mut self, is_last: bool) -> io::Result<()> {
        let tag = self.keys.seal(self.chunk, is_last, &mut self.buffer)?;
        self.output.write_all(&self.buffer)?;
        self.output.write_all(tag.as_ref())?;
        self.buffer.clear();
        self.chunk = self.chunk.saturating_add(1);
        Ok(())
    }
}

impl<W: Write> Write for ChunkWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full buffer is sealed only when more comes: it may be the last chunk.
        if self.buffer.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.seal(false)?;
        }
        let room = CHUNK_BYTES.saturating_sub(self.buffer.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.buffer.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// The plaintext of a bundle, decrypted and authenticated chunk by chunk.
pub struct ChunkReader<R> {
    input: R,
    keys: Keys,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were consumed.
    consumed: usize,
    chunk: u64,
    chunks: u64,
    /// Bytes of plaintext in the chunks that were not read yet.
    remaining: u64,
}

impl<R: Read> ChunkReader<R> {
    pub(super) fn new(input: R, keys: Keys, plaintext_bytes: u64) -> Self {
        Self {
            input,
            keys,
            buffer: Vec::new(),
            consumed: 0,
            chunk: 0,
            chunks: chunks(plaintext_bytes),
            remaining: plaintext_bytes,
        }
    }

    /// Opens what chunks are left (an empty plaintext has one) and looks for the end of the file.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        while self.chunk < self.chunks {
            self.open()?;
        }
        let mut one = [0];
        match self.input.read(&mut one) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Error::Trailing),
            Err(error) => Err(Error::Read(error)),
        }
    }

    fn open(&mut self) -> Result<(), Error> {
        let bytes = self.remaining.min(CHUNK_BYTES as u64);
        self.buffer.resize(usize::try_from(bytes).unwrap_or(CHUNK_BYTES), 0);
        self.consumed = 0;
        let mut tag = [0; TAG_BYTES];
        read_exact(&mut self.input, &mut self.buffer)?;
        read_exact(&mut self.input, &mut tag)?;
        let is_last = self.chunk.saturating_add(1) == self.chunks;
        self.keys.open(self.chunk, is_last, &mut self.buffer, tag)?;
        self.remaining = self.remaining.saturating_sub(bytes);
        self.chunk = self.chunk.saturating_add(1);
        Ok(())
    }
}

impl<R: Read> Source for ChunkReader<R> {
    fn available(&mut self) -> Result<&[u8], Error> {
        if self.consumed == self.buffer.len() && self.remaining > 0 {
            self.open()?;
        }
        Ok(self.buffer.get(self.consumed..).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.consumed = self.consumed.saturating_add(bytes).min(self.buffer.len());
    }
}

/// Fills a buffer; an early end of the file is [`Error::Truncated`].
pub(crate) fn read_exact(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), Error> {
    input.read_exact(buffer).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Error::Truncated,
        _ => Error::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bundle::hpke, card::EncryptionSuite};
    use p256::elliptic_curve::sec1::ToSec1Point as _;

    fn keys(header: &[u8]) -> Keys {
        let point = p256::SecretKey::from_slice(&[3; 32]).unwrap().public_key();
        let point = point.to_sec1_point(false);
        let suite = EncryptionSuite::P256HkdfSha256Aes256Gcm;
        let (_, secret) = hpke::encapsulate(suite, point.as_bytes(), &[1; 64]).unwrap();
        Keys::new(&secret, Sha256::of(header)).unwrap()
    }

    fn seal(plaintext: &[u8]) -> Vec<u8> {
        let mut writer = ChunkWriter::new(Vec::new(), keys(b"h"));
        writer.write_all(plaintext).unwrap();
        writer.finish_as_announced(plaintext.len() as u64).unwrap()
    }

    fn open(sealed: &[u8], header: &[u8], bytes: usize) -> Result<Vec<u8>, Error> {
        let mut reader = ChunkReader::new(sealed, keys(header), bytes as u64);
        let mut plaintext = vec![0; bytes];
        reader.fill(&mut plaintext)?;
        reader.finish()?;
        Ok(plaintext)
    }

    #[test]
    fn lengths_around_the_boundaries() {
        for bytes in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES] {
            let plaintext: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
            let sealed = seal(&plaintext);
            assert_eq!(sealed.len() as u64, sealed_bytes(bytes as u64));
            assert_eq!(open(&sealed, b"h", bytes).unwrap(), plaintext);
        }
    }

    #[test]
    fn chunks_cannot_be_cut_swapped_or_moved_to_another_header() {
        let plaintext = vec![9; 3 * CHUNK_BYTES];
        let sealed = seal(&plaintext);
        let whole = CHUNK_BYTES + TAG_BYTES;
        // Two whole chunks, and a reader that believes in that length.
        let cut = open(&sealed[..2 * whole], b"h", 2 * CHUNK_BYTES);
        assert!(matches!(cut, Err(Error::Damaged { chunk: 1 })));
        let swapped = [&sealed[whole..2 * whole], &sealed[..whole], &sealed[2 * whole..]].concat();
        assert!(matches!(open(&swapped, b"h", plaintext.len()), Err(Error::Damaged { chunk: 0 })));
        let moved = open(&sealed, b"other header", plaintext.len());
        assert!(matches!(moved, Err(Error::Damaged { chunk: 0 })));
        let longer = [&sealed[..], &[0]].concat();
        assert!(matches!(open(&longer, b"h", plaintext.len()), Err(Error::Trailing)));
    }

    #[test]
    fn another_length_than_announced_is_noticed() {
        let mut writer = ChunkWriter::new(Vec::new(), keys(b"h"));
        writer.write_all(&[0; 5]).unwrap();
        assert!(writer.finish_as_announced(2 * CHUNK_BYTES as u64).is_err());
    }
}
