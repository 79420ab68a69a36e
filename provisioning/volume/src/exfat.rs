//! exFAT (Microsoft's specification, revision 1.00), read only.

use crate::{
    Damage, Disk, Entry, Place, Window,
    bytes::{text, u8_at, u16_at, u32_at, u64_at},
    error::Result,
    heap::{Chain, FIRST, Heap},
};

/// Types of entries in a folder, section 6.2 and following.
const END: u8 = 0x00;
const FILE: u8 = 0x85;
const STREAM: u8 = 0xc0;
const NAME: u8 = 0xc1;
const IS_FOLDER: u16 = 0x10;
/// Flags of a stream: it has clusters; they lie side by side.
const HAS_CLUSTERS: u8 = 1;
const NO_CHAIN: u8 = 2;
/// Characters of a name in one entry.
const NAME_UNITS: usize = 15;
/// Sectors that the checksum of the boot region is of.
const BOOT_SECTORS: u64 = 11;

/// A volume.
pub(crate) struct ExFat {
    pub(crate) heap: Heap,
    root: u32,
}

pub(crate) fn is_one(sector: &[u8]) -> bool {
    sector.get(3..11) == Some(b"EXFAT   ")
}

impl ExFat {
    /// Section 3.1. Every place is held against the size of the volume, and that against the device.
    pub(crate) fn open<D: Disk>(disk: &mut Window<D>, boot: &[u8]) -> Result<Self> {
        let wrong = |what| Damage::BootSector(what);
        let signature = boot.get(510..512) == Some(&[0x55, 0xaa]);
        let zeros = boot.get(11..64).is_some_and(|zeros| zeros.iter().all(|byte| *byte == 0));
        if !signature || !zeros {
            return Err(wrong("signature").into());
        }
        let (sector_shift, cluster_shift) = (u8_at(boot, 108), u8_at(boot, 109));
        if !(9..=12).contains(&sector_shift) || cluster_shift > 25 - sector_shift {
            return Err(wrong("size of sectors").into());
        }
        let tables = u8_at(boot, 110);
        let active = u16_at(boot, 106) & 1;
        if !(1..=2).contains(&tables) || (active == 1 && tables != 2) || u8_at(boot, 105) != 1 {
            return Err(wrong("revision").into());
        }
        let sectors = |value: u64| value.checked_mul(1 << sector_shift);
        let volume = sectors(u64_at(boot, 72)).ok_or(wrong("size of the volume"))?;
        if volume > disk.bytes() {
            return Err(Damage::Truncated.into());
        }
        let table_bytes = u64::from(u32_at(boot, 84)) << sector_shift;
        let table = (u64::from(u32_at(boot, 80)) << sector_shift) + u64::from(active) * table_bytes;
        let start = u64::from(u32_at(boot, 88)) << sector_shift;
        let (clusters, cluster_bytes) = (u32_at(boot, 92), 1 << (sector_shift + cluster_shift));
        let needed = (u64::from(clusters) + u64::from(FIRST)) * 4;
        if table < BOOT_SECTORS << sector_shift
            || needed > table_bytes
            || table + table_bytes > start
        {
            return Err(wrong("place of the table").into());
        }
        let end = u64::from(clusters).checked_mul(cluster_bytes).and_then(|b| b.checked_add(start));
        if clusters == 0 || end.is_none_or(|end| end > volume) {
            return Err(wrong("number of clusters").into());
        }
        checksum(disk, sector_shift)?;
        let heap = Heap { table, start, cluster_bytes, clusters, mask: u32::MAX };
        Ok(Self { heap, root: u32_at(boot, 96) })
    }

    /// Section 6.3 and following: sets of a file entry, a stream extension and names.
    pub(crate) fn list<D: Disk>(
        &self,
        disk: &mut Window<D>,
        folder: Option<Chain>,
    ) -> Result<Vec<Entry>> {
        let chain = folder.unwrap_or(Chain::Linked(self.root));
        let bytes = self.heap.folder_bytes(disk, &chain)?;
        let mut found = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some(kind) = rest.first().copied().filter(|kind| *kind != END) {
            let secondary = if kind == FILE { usize::from(u8_at(rest, 1)) } else { 0 };
            let (set, after) = rest.split_at_checked(32 * (secondary + 1)).ok_or(Damage::Entry)?;
            if kind == FILE {
                found.push(self.entry(set)?);
            }
            rest = after;
        }
        Ok(found)
    }

    fn entry(&self, set: &[u8]) -> Result<Entry> {
        let stream = set.get(32..64).ok_or(Damage::Entry)?;
        let name_units = usize::from(u8_at(stream, 3));
        let names = set.get(64..).unwrap_or_default().chunks_exact(32);
        let right_kinds = u8_at(stream, 0) == STREAM
            && names.clone().take(name_units.div_ceil(NAME_UNITS)).all(|e| u8_at(e, 0) == NAME);
        if !right_kinds || u16_at(set, 2) != set_checksum(set) || name_units == 0 {
            return Err(Damage::Entry.into());
        }
        let units: Vec<u16> =
            names.flat_map(|entry| (0..NAME_UNITS).map(|n| u16_at(entry, 2 + 2 * n))).collect();
        let name = units.get(..name_units).and_then(text).ok_or(Damage::Entry)?;
        let (flags, first, bytes) = (u8_at(stream, 1), u32_at(stream, 20), u64_at(stream, 24));
        if u64_at(stream, 8) != bytes {
            return Err(Damage::Unfinished.into());
        }
        let chain = match (first, flags) {
            (0, _) if bytes == 0 => Chain::Empty,
            (_, flags) if flags & HAS_CLUSTERS == 0 => return Err(Damage::Entry.into()),
            (first, flags) if flags & NO_CHAIN != 0 => Chain::Contiguous(first, bytes),
            (first, _) => Chain::Linked(first),
        };
        let is_folder = u16_at(set, 4) & IS_FOLDER != 0;
        let bytes = if is_folder { 0 } else { bytes };
        Ok(Entry { name, bytes, is_folder, place: Place::Clusters(chain) })
    }
}

/// Section 3.4: sector 11 repeats a checksum of those before it, without the flags and the percentage in the first.
fn checksum<D: Disk>(disk: &mut Window<D>, sector_shift: u8) -> Result<()> {
    let mut sector = vec![0; 1 << sector_shift];
    let mut sum = 0_u32;
    for number in 0..BOOT_SECTORS {
        disk.read_at(number << sector_shift, &mut sector)?;
        for (at, byte) in sector.iter().enumerate() {
            if number > 0 || !matches!(at, 106 | 107 | 112) {
                sum = sum.rotate_right(1).wrapping_add(u32::from(*byte));
            }
        }
    }
    disk.read_at(BOOT_SECTORS << sector_shift, &mut sector)?;
    let right = sector.chunks_exact(4).all(|value| u32_at(value, 0) == sum);
    if right { Ok(()) } else { Err(Damage::BootSector("checksum").into()) }
}

/// Section 6.3.3: of all entries of a set but for the sum itself.
fn set_checksum(set: &[u8]) -> u16 {
    let counted = set.iter().enumerate().filter(|(at, _)| !matches!(at, 2 | 3));
    counted.fold(0, |sum, (_, byte)| sum.rotate_right(1).wrapping_add(u16::from(*byte)))
}
