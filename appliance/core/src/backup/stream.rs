//! Reads the chunks of a backup, whose length is not known before its end.

use std::io::{ErrorKind, Read};

use super::Error;
use crate::bundle::chunk::{CHUNK_BYTES, Keys, TAG_BYTES};

/// Decrypts and authenticates chunk by chunk. Nothing comes out of a chunk that does not verify.
pub(super) struct ChunkReader<R> {
    input: R,
    keys: Keys,
    buffer: Vec<u8>,
    consumed: usize,
    chunk: u64,
    /// The first byte of the next chunk: whether there is one decides with which key this one opens.
    ahead: Option<u8>,
    is_over: bool,
}

impl<R: Read> ChunkReader<R> {
    pub(super) fn new(input: R, keys: Keys) -> Self {
        Self { input, keys, buffer: Vec::new(), consumed: 0, chunk: 0, ahead: None, is_over: false }
    }

    /// Fills a buffer with plaintext.
    pub(super) fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), Error> {
        while !buffer.is_empty() {
            if self.consumed == self.buffer.len() {
                self.open()?;
            }
            let available = self.buffer.get(self.consumed..).unwrap_or_default();
            let count = available.len().min(buffer.len());
            let (now, rest) = buffer.split_at_mut(count);
            now.copy_from_slice(available.get(..count).unwrap_or_default());
            self.consumed = self.consumed.saturating_add(count);
            buffer = rest;
        }
        Ok(())
    }

    /// Whether everything was read, to the end of the file.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        if self.consumed < self.buffer.len() {
            return Err(Error::Trailing);
        }
        if !self.is_over {
            // A last chunk may be empty.
            self.open()?;
            if !self.buffer.is_empty() || !self.is_over {
                return Err(Error::Trailing);
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<(), Error> {
        if self.is_over {
            return Err(Error::Truncated);
        }
        self.buffer.clear();
        self.consumed = 0;
        self.buffer.extend(self.ahead.take());
        let missing = (CHUNK_BYTES + TAG_BYTES).saturating_sub(self.buffer.len());
        let missing = u64::try_from(missing).unwrap_or(u64::MAX);
        (&mut self.input).take(missing).read_to_end(&mut self.buffer).map_err(Error::Read)?;
        let is_last = match self.next_byte()? {
            Some(byte) => {
                self.ahead = Some(byte);
                false
            }
            None => true,
        };
        let plain = self.buffer.len().checked_sub(TAG_BYTES).ok_or(Error::Truncated)?;
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(self.buffer.get(plain..).unwrap_or_default());
        self.buffer.truncate(plain);
        self.keys.open(self.chunk, is_last, &mut self.buffer, tag)?;
        self.chunk = self.chunk.saturating_add(1);
        self.is_over = is_last;
        Ok(())
    }

    fn next_byte(&mut self) -> Result<Option<u8>, Error> {
        let mut byte = [0];
        loop {
            match self.input.read(&mut byte) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(byte.first().copied()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
    }
}
