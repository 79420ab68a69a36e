//! FAT32 (Microsoft's specification, version 1.03).

mod folder;
mod writer;

use folder::entries;
pub use writer::{Laid, Writer};

use crate::{
    Damage, Disk, Entry, Window,
    bytes::{u8_at, u16_at, u32_at},
    error::{Error, Result},
    heap::{Chain, FIRST, Heap},
};

/// Bits of an entry of the table that count; the four others are kept as they are.
pub(crate) const MASK: u32 = 0x0fff_ffff;

/// A volume.
pub(crate) struct Fat32 {
    pub(crate) heap: Heap,
    /// The first cluster of the root.
    root: u32,
    /// Copies of the table, and how many bytes each has.
    copies: u64,
    table_bytes: u64,
    /// Where the sector with the count of free clusters is.
    info: Option<u64>,
    /// Whether all copies of the table are alike.
    mirrored: bool,
}

impl Fat32 {
    /// Page 9 and following. Every place is held against the size of the volume, and that against the device.
    pub(crate) fn open<D: Disk>(disk: &mut Window<D>, boot: &[u8]) -> Result<Self> {
        let wrong = |what| Error::from(Damage::BootSector(what));
        let sector = u64::from(u16_at(boot, 11));
        let jumps = matches!(u8_at(boot, 0), 0xeb | 0xe9);
        if boot.get(510..512) != Some(&[0x55, 0xaa]) || !jumps || !sector.is_power_of_two() {
            return Err(Error::NoVolume(None));
        }
        let cluster_sectors = u64::from(u8_at(boot, 13));
        if !(512..=4096).contains(&sector) || !cluster_sectors.is_power_of_two() {
            return Err(wrong("size of sectors"));
        }
        let (reserved, copies) = (u64::from(u16_at(boot, 14)), u64::from(u8_at(boot, 16)));
        if reserved == 0 || !(1..=2).contains(&copies) {
            return Err(wrong("number of tables"));
        }
        let (root_entries, short_table) = (u16_at(boot, 17), u16_at(boot, 22));
        if root_entries != 0 || short_table != 0 {
            return Err(Damage::SmallFat.into());
        }
        let (short_count, table_sectors) = (u16_at(boot, 19), u64::from(u32_at(boot, 36)));
        let sectors = if short_count == 0 { u32_at(boot, 32) } else { short_count.into() };
        let sectors = u64::from(sectors);
        if table_sectors == 0 || u16_at(boot, 42) != 0 {
            return Err(wrong("version"));
        }
        if sectors * sector > disk.bytes() {
            return Err(Damage::Truncated.into());
        }
        let start = reserved + copies * table_sectors;
        let table_bytes = table_sectors * sector;
        let space = sectors.checked_sub(start).ok_or(wrong("place of the table"))?;
        // The table may have room for more clusters than there are, and never the other way round.
        let clusters = (space / cluster_sectors).min(table_bytes / 4 - u64::from(FIRST));
        let clusters = u32::try_from(clusters).ok().filter(|n| (1..MASK - 16).contains(n));
        let clusters = clusters.ok_or(wrong("number of clusters"))?;
        let flags = u16_at(boot, 40);
        let (mirrored, active) = (flags & 0x80 == 0, u64::from(flags & 0xf));
        let active = if mirrored { 0 } else { active };
        if active >= copies {
            return Err(wrong("active table"));
        }
        let info = u64::from(u16_at(boot, 48));
        let heap = Heap {
            table: reserved * sector + active * table_bytes,
            start: start * sector,
            cluster_bytes: cluster_sectors * sector,
            clusters,
            mask: MASK,
        };
        let info = (1..reserved).contains(&info).then_some(info * sector);
        Ok(Self { heap, root: u32_at(boot, 44), copies, table_bytes, info, mirrored })
    }

    /// What is in a folder.
    pub(crate) fn list<D: Disk>(
        &self,
        disk: &mut Window<D>,
        folder: Option<Chain>,
    ) -> Result<Vec<Entry>> {
        let chain = folder.unwrap_or(Chain::Linked(self.root));
        let bytes = self.heap.folder_bytes(disk, &chain)?;
        Ok(entries(&bytes).map(|found| found.entry(self.root)).collect())
    }
}
