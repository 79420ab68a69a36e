//! Bytes on a disk: what a partition, a whole disk and a test's record of both have in common.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Bytes of a sector: what is written as a whole or not at all.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Bytes that are read or written at a time.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// Bytes that are read and written in whole sectors.
pub(crate) trait Medium {
    /// How many there are.
    fn bytes(&self) -> u64;

    /// Fills a buffer from a place on.
    fn read(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes bytes in a place. Until the next [`Medium::flush`], a power cut keeps any of its sectors and loses others.
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Waits until everything is on the medium. What is read afterwards comes from there.
    fn flush(&mut self) -> io::Result<()>;
}

/// A part of a device or of an image file.
pub(crate) struct Window {
    file: File,
    start: u64,
    bytes: u64,
    /// For devices that are read and written without the kernel's cache, which want aligned memory.
    buffer: Vec<u8>,
}

impl Window {
    /// A part of an open file.
    pub(crate) fn new(file: File, start: u64, bytes: u64) -> Self {
        Self { file, start, bytes, buffer: vec![0; PIECE_BYTES + ALIGNMENT] }
    }

    /// Where in the file, if these are whole sectors of this part.
    fn place(&self, at: u64, bytes: usize) -> io::Result<u64> {
        let whole = |number: u64| number.is_multiple_of(SECTOR_BYTES as u64);
        let end = at.checked_add(bytes as u64).filter(|end| *end <= self.bytes);
        match end {
            Some(end) if whole(at) && whole(end) => Ok(self.start + at),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{bytes} bytes at {at} are not sectors of this partition"),
            )),
        }
    }
}

/// What memory must be aligned to when the kernel's cache is passed by.
const ALIGNMENT: usize = 4096;

/// An aligned piece of a buffer.
fn aligned(buffer: &mut [u8], bytes: usize) -> io::Result<&mut [u8]> {
    let skipped = buffer.as_ptr().align_offset(ALIGNMENT);
    let end = skipped.checked_add(bytes);
    end.and_then(|end| buffer.get_mut(skipped..end)).ok_or(io::ErrorKind::OutOfMemory.into())
}

impl Medium for Window {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut place = self.place(at, buffer.len())?;
        for piece in buffer.chunks_mut(PIECE_BYTES) {
            let aligned = aligned(&mut self.buffer, piece.len())?;
            self.file.read_exact_at(aligned, place)?;
            piece.copy_from_slice(aligned);
            place += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut place = self.place(at, bytes.len())?;
        for piece in bytes.chunks(PIECE_BYTES) {
            let aligned = aligned(&mut self.buffer, piece.len())?;
            aligned.copy_from_slice(piece);
            self.file.write_all_at(aligned, place)?;
            place += piece.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        // Only an image file has a cache here; a device is read past it.
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    }
}
