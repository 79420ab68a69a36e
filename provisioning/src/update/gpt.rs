//! The partition table (UEFI 2.10, section 5.3): read from either copy, and changed so that one of them is good at any moment.
//!
//! Crates for this write both copies in one go. Here the copy at the end of the disk is written and flushed before the first one is touched. A power cut that
//! tears the first leaves the other, which firmware and the kernel (with `gpt` on its command line) take instead; the next start mends it.

use std::{fmt, io, str::FromStr};

use anyhow::{Context as _, bail, ensure};
use sallyport_core::digest::Sha256;
use sallyport_volume::bytes::{u32_at, u64_at};

use super::medium::{Medium, SECTOR_BYTES};

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER_BYTES: usize = 92;
const ENTRY_BYTES: usize = 128;
/// Entries that are looked at; every table has 128.
const ENTRIES_MAX: u32 = 1024;
/// Places in a header.
const MY_LBA: usize = 24;
const OTHER_LBA: usize = 32;
const ENTRIES_LBA: usize = 72;
const ENTRIES: usize = 80;
const ENTRIES_CRC: usize = 88;
const HEADER_CRC: usize = 16;

/// The id of a partition or of its kind, in the order of its text form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Guid(pub(crate) [u8; 16]);

/// The kind of the boot partition.
pub(crate) const ESP: Guid = Guid([
    0xc1, 0x2a, 0x73, 0x28, 0xf8, 0x1f, 0x11, 0xd2, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
]);

/// Where a partition lies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Its place in the table.
    pub(crate) index: usize,
    pub(crate) kind: Guid,
    pub(crate) id: Guid,
    pub(crate) label: String,
    pub(crate) place: Extent,
}

/// A table.
pub(crate) struct Table {
    entries: Vec<u8>,
    first: Option<Copy>,
    last: Option<Copy>,
    /// Where the second copy is.
    last_lba: u64,
}

/// One copy as it was read.
struct Copy {
    header: Vec<u8>,
    entries: Vec<u8>,
}

impl Table {
    /// Reads both copies; the first counts if both are good.
    pub(crate) fn read(disk: &mut impl Medium) -> anyhow::Result<Self> {
        let first = Copy::read(disk, 1).context("the disk cannot be read")?;
        let sectors = disk.bytes() / SECTOR_BYTES as u64;
        let last_lba = match &first {
            Some(first) => u64_at(&first.header, OTHER_LBA),
            None => sectors.saturating_sub(1),
        };
        let last = if last_lba < sectors {
            Copy::read(disk, last_lba).context("the disk cannot be read")?
        } else {
            None
        };
        let entries = match (&first, &last) {
            (Some(copy), _) | (None, Some(copy)) => copy.entries.clone(),
            (None, None) => bail!("the disk has no partition table that can be read"),
        };
        Ok(Self { entries, first, last, last_lba })
    }

    /// The partitions that there are.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        let entries = self.entries.chunks_exact(ENTRY_BYTES).enumerate();
        entries.filter_map(|(index, entry)| Partition::parse(index, entry)).collect()
    }

    /// Gives a partition another id; nothing is written yet.
    pub(crate) fn set_id(&mut self, partition: &Partition, id: Guid) -> anyhow::Result<()> {
        let at = partition.index * ENTRY_BYTES + 16;
        let place = self.entries.get_mut(at..at + 16).context("no such partition")?;
        place.copy_from_slice(&id.to_disk());
        Ok(())
    }

    /// Takes a partition out; nothing is written yet.
    pub(crate) fn remove(&mut self, partition: &Partition) -> anyhow::Result<()> {
        let at = partition.index * ENTRY_BYTES;
        let place = self.entries.get_mut(at..at + ENTRY_BYTES).context("no such partition")?;
        place.fill(0);
        Ok(())
    }

    /// Whether both copies are good and alike.
    pub(crate) fn is_sound(&self) -> bool {
        let good =
            |copy: &Option<Copy>| copy.as_ref().is_some_and(|copy| copy.entries == self.entries);
        good(&self.first) && good(&self.last)
    }

    /// Writes what differs: the copy at the end, a flush, the copy at the beginning, a flush.
    pub(crate) fn write(&self, disk: &mut impl Medium) -> anyhow::Result<()> {
        if self.is_sound() {
            return Ok(());
        }
        let sectors_of_entries = (self.entries.len() / SECTOR_BYTES) as u64;
        let (first, last) = match (&self.first, &self.last) {
            (Some(first), Some(last)) => (first.header.clone(), last.header.clone()),
            (Some(first), None) => {
                let entries = self.last_lba.checked_sub(sectors_of_entries);
                let entries = entries.context("the partition table has no room for its copy")?;
                (first.header.clone(), moved(&first.header, self.last_lba, 1, entries)?)
            }
            (None, Some(last)) => (moved(&last.header, 1, self.last_lba, 2)?, last.header.clone()),
            (None, None) => bail!("the disk has no partition table that can be read"),
        };
        for header in [last, first] {
            let header = sealed(header, &self.entries)?;
            let sector = SECTOR_BYTES as u64;
            let written = disk
                .write(u64_at(&header, ENTRIES_LBA) * sector, &self.entries)
                .and_then(|()| disk.write(u64_at(&header, MY_LBA) * sector, &header))
                .and_then(|()| disk.flush());
            written.context("the partition table cannot be written")?;
        }
        let again = Self::read(disk)?;
        ensure!(
            again.is_sound() && again.entries == self.entries,
            "the partition table was written and reads differently: the disk is failing"
        );
        Ok(())
    }
}

impl Copy {
    /// Reads the copy whose header is here; `None` if it is not good.
    fn read(disk: &mut impl Medium, lba: u64) -> io::Result<Option<Self>> {
        let sector = SECTOR_BYTES as u64;
        let mut header = vec![0; SECTOR_BYTES];
        disk.read(lba.saturating_mul(sector), &mut header)?;
        let header_bytes = usize::try_from(u32_at(&header, 12)).unwrap_or(usize::MAX);
        let (count, size) = (u32_at(&header, ENTRIES), u32_at(&header, ENTRIES + 4));
        let good = header.starts_with(SIGNATURE)
            && u32_at(&header, 8) == REVISION
            && header_bytes == HEADER_BYTES
            && crc_of_header(&header) == u32_at(&header, HEADER_CRC)
            && u64_at(&header, MY_LBA) == lba
            && usize::try_from(size).is_ok_and(|size| size == ENTRY_BYTES)
            && (4..=ENTRIES_MAX).contains(&count)
            && count.is_multiple_of(4);
        if !good {
            return Ok(None);
        }
        let mut entries = vec![0; usize::try_from(count).unwrap_or_default() * ENTRY_BYTES];
        let at = u64_at(&header, ENTRIES_LBA).saturating_mul(sector);
        if at.saturating_add(entries.len() as u64) > disk.bytes() {
            return Ok(None);
        }
        disk.read(at, &mut entries)?;
        let good = crc32fast::hash(&entries) == u32_at(&header, ENTRIES_CRC);
        Ok(good.then_some(Self { header, entries }))
    }
}

impl Partition {
    fn parse(index: usize, entry: &[u8]) -> Option<Self> {
        let guid = |at: usize| Some(Guid::from_disk(entry.get(at..at + 16)?.try_into().ok()?));
        let kind = guid(0).filter(|kind| *kind != Guid([0; 16]))?;
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let sectors = last.checked_sub(first)?.checked_add(1)?;
        let place = Extent {
            start: first.checked_mul(SECTOR_BYTES as u64)?,
            bytes: sectors.checked_mul(SECTOR_BYTES as u64)?,
        };
        let units = entry.get(56..128)?.chunks_exact(2);
        let units = units.filter_map(|pair| pair.try_into().ok().map(u16::from_le_bytes));
        let label = char::decode_utf16(units.take_while(|unit| *unit != 0))
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect();
        Some(Self { index, kind, id: guid(16)?, label, place })
    }
}

impl Guid {
    /// The ids of a slot's partitions, root and tree, which a kernel looks for: the halves of its root hash (Discoverable Partitions Specification).
    pub(crate) fn of_slot(root_hash: &Sha256) -> (Self, Self) {
        let mut ids = (Self([0; 16]), Self([0; 16]));
        let (one, two) = root_hash.0.split_at(16);
        ids.0.0.copy_from_slice(one);
        ids.1.0.copy_from_slice(two);
        ids
    }

    /// The root hash that the ids of a slot's partitions are the halves of.
    pub(crate) fn root_hash(root: Self, tree: Self) -> Sha256 {
        let mut hash = Sha256::default();
        hash.0.iter_mut().zip(root.0.into_iter().chain(tree.0)).for_each(|(to, from)| *to = from);
        hash
    }

    /// The first three fields are numbers in little-endian order.
    pub(super) fn to_disk(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let [i, j, k, l, m, n, o, p] = rest;
        [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
    }

    fn from_disk(bytes: [u8; 16]) -> Self {
        Self(Self(bytes).to_disk())
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        ensure!(digits.len() == 32, "not an id of a partition");
        let number = u128::from_str_radix(&digits, 16).context("not an id of a partition")?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// The header of the other copy.
fn moved(header: &[u8], to: u64, other: u64, entries: u64) -> anyhow::Result<Vec<u8>> {
    let mut header = header.to_vec();
    for (at, number) in [(MY_LBA, to), (OTHER_LBA, other), (ENTRIES_LBA, entries)] {
        put(&mut header, at, &number.to_le_bytes())?;
    }
    Ok(header)
}

/// A header with the checksums of what it is to describe.
fn sealed(mut header: Vec<u8>, entries: &[u8]) -> anyhow::Result<Vec<u8>> {
    put(&mut header, ENTRIES_CRC, &crc32fast::hash(entries).to_le_bytes())?;
    let crc = crc_of_header(&header);
    put(&mut header, HEADER_CRC, &crc.to_le_bytes())?;
    Ok(header)
}

/// The checksum of a header is made as if its own place held zeros.
fn crc_of_header(header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.get(..HEADER_CRC).unwrap_or_default());
    hasher.update(&[0; 4]);
    hasher.update(header.get(HEADER_CRC + 4..HEADER_BYTES).unwrap_or_default());
    hasher.finalize()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> anyhow::Result<()> {
    let place = bytes.get_mut(at..at + value.len()).context("a header that is too short")?;
    place.copy_from_slice(value);
    Ok(())
}
