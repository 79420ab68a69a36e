//! Where on a device a volume may lie: everywhere, or in a partition of an MBR or a GPT (UEFI 2.10, section 5).

use crate::{
    Disk, PARTITIONS_MAX, Window,
    bytes::{u8_at, u32_at, u64_at},
    error::Result,
};

/// Sizes of sectors that partition tables are written for.
const SECTOR_BYTES: [u64; 2] = [512, 4096];
/// MBR types: the table is a GPT; the partition holds others, which are not followed.
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A part of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Extent {
    /// Of sectors on a device, if it is there and has any.
    fn of(first: u64, count: u64, sector: u64, device: u64) -> Option<Self> {
        let (offset, bytes) = (first.checked_mul(sector)?, count.checked_mul(sector)?);
        let end = offset.checked_add(bytes)?;
        (first > 0 && bytes > 0 && end <= device).then_some(Self { offset, bytes })
    }
}

/// All places, the most likely first: the whole device, then the partitions.
pub(crate) fn extents<D: Disk>(disk: &mut Window<D>) -> Result<Vec<Extent>> {
    let device = disk.device_bytes();
    let mut found = vec![Extent { offset: 0, bytes: device }];
    let mut sector = [0; 512];
    disk.read_at(0, &mut sector)?;
    if sector.get(510..) != Some(&[0x55, 0xaa]) {
        return Ok(found);
    }
    let table = sector.get(446..510).unwrap_or_default();
    let types: Vec<u8> = table.chunks_exact(16).map(|entry| u8_at(entry, 4)).collect();
    if types.contains(&PROTECTIVE) {
        for sector_bytes in SECTOR_BYTES {
            let partitions = gpt(disk, sector_bytes, device)?;
            if !partitions.is_empty() {
                found.extend(partitions);
                break;
            }
        }
        return Ok(found);
    }
    for (entry, kind) in table.chunks_exact(16).zip(types) {
        let status = u8_at(entry, 0);
        if kind != 0 && !EXTENDED.contains(&kind) && matches!(status, 0 | 0x80) {
            let (first, count) = (u32_at(entry, 8).into(), u32_at(entry, 12).into());
            found.extend(Extent::of(first, count, 512, device));
        }
    }
    Ok(found)
}

fn gpt<D: Disk>(disk: &mut Window<D>, sector_bytes: u64, device: u64) -> Result<Vec<Extent>> {
    let mut header = [0; 512];
    if device < 2 * sector_bytes {
        return Ok(Vec::new());
    }
    disk.read_at(sector_bytes, &mut header)?;
    let entry_bytes = u32_at(&header, 84);
    if !header.starts_with(b"EFI PART") || !matches!(entry_bytes, 128 | 256 | 512) {
        return Ok(Vec::new());
    }
    let count = usize::try_from(u32_at(&header, 80)).unwrap_or(usize::MAX).min(PARTITIONS_MAX);
    let Some(table) = u64_at(&header, 72).checked_mul(sector_bytes) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let places = (0..count as u64).filter_map(|n| table.checked_add(n * u64::from(entry_bytes)));
    for place in places.take_while(|place| *place <= device.saturating_sub(128)) {
        let mut entry = [0; 128];
        disk.read_at(place, &mut entry)?;
        let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        let used = entry.iter().take(16).any(|byte| *byte != 0);
        let sectors = last.checked_sub(first).and_then(|more| more.checked_add(1));
        if let Some(sectors) = sectors.filter(|_| used) {
            found.extend(Extent::of(first, sectors, sector_bytes, device));
        }
    }
    Ok(found)
}
