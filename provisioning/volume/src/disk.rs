//! What a volume lies on: bytes with a size, and a window into them.

use std::io;

use crate::{Error, error::Result, partition::Extent};

/// Bytes that are read in places. A read beyond the end is an error.
pub trait Disk {
    /// How many there are.
    fn bytes(&self) -> u64;

    /// Fills a buffer from a place on.
    ///
    /// # Errors
    /// When the device does not answer, or has fewer bytes.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// Bytes that are written as well.
pub trait DiskMut: Disk {
    /// Writes bytes in a place.
    ///
    /// # Errors
    /// When the device does not answer, or has fewer bytes.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Waits until everything is on the medium.
    ///
    /// # Errors
    /// When the device does not answer.
    fn flush(&mut self) -> io::Result<()>;
}

/// A medium in memory.
impl Disk for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(buffer.len());
        let place = end.and_then(|end| self.get(start..end)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(place);
        Ok(())
    }
}

impl DiskMut for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(bytes.len());
        let place = end.and_then(|end| self.get_mut(start..end));
        place.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The part of a disk that a volume lies in. Nothing outside of it is reached.
pub(crate) struct Window<D> {
    disk: D,
    extent: Extent,
}

impl<D: Disk> Window<D> {
    pub(crate) fn whole(disk: D) -> Self {
        let extent = Extent { offset: 0, bytes: disk.bytes() };
        Self { disk, extent }
    }

    pub(crate) fn set(&mut self, extent: Extent) {
        self.extent = extent;
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.extent.bytes
    }

    /// Bytes of the whole device, however large the window is.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.disk.bytes()
    }

    pub(crate) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let place = self.place(offset, buffer.len())?;
        Ok(self.disk.read_at(place, buffer)?)
    }

    pub(crate) fn into_inner(self) -> D {
        self.disk
    }

    fn place(&self, offset: u64, length: usize) -> Result<u64> {
        let fits = offset.checked_add(length as u64).is_some_and(|end| end <= self.extent.bytes);
        let place = self.extent.offset.checked_add(offset).filter(|_| fits);
        place.ok_or(Error::Damaged(crate::Damage::Truncated))
    }
}

impl<D: DiskMut> Window<D> {
    pub(crate) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let place = self.place(offset, bytes.len())?;
        Ok(self.disk.write_at(place, bytes)?)
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.disk.flush()?)
    }
}
