//! A folder of the boot partition: files and their entries, long names included.

use std::ops::Range;

use anyhow::{Context as _, ensure};

use super::{FIRST, Volume, u16_at, u32_at};
use crate::update::medium::{Medium, SECTOR_BYTES};

/// Bytes of an entry.
const SLOT_BYTES: usize = 32;
const SLOTS_PER_SECTOR: usize = SECTOR_BYTES / SLOT_BYTES;
/// First bytes of an entry that is gone, and of the first that never was.
const GONE: u8 = 0xe5;
const NEVER: u8 = 0;
/// Attributes: a part of a long name, a folder, the label of the volume, a file.
const LONG: u8 = 0x0f;
const FOLDER: u8 = 0x10;
const LABEL: u8 = 0x08;
const FILE: u8 = 0x20;
/// Characters of a long name in one entry, and where they are.
const UNITS: usize = 13;
const UNIT_PLACES: [usize; UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
/// Marks the entry with the end of a long name, which comes first.
const LAST_PART: u8 = 0x40;
/// Bytes of a folder that is looked at.
const FOLDER_BYTES_MAX: usize = 1 << 21;
/// 1 January 1980: the clock of a box is nothing to leave on a boot partition.
const NO_DATE: u16 = 0x0021;

/// A folder, as it is on the medium or about to be.
pub(crate) struct Folder {
    clusters: Vec<u32>,
    bytes: Vec<u8>,
}

/// A file or folder in a folder.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) name: String,
    short: [u8; 11],
    pub(crate) is_folder: bool,
    pub(super) cluster: u32,
    pub(crate) bytes: u64,
    /// Its entries.
    pub(super) slots: Range<usize>,
}

impl Item {
    /// A file whose entry is not written yet.
    pub(super) fn unplaced(cluster: u32, bytes: u64) -> Self {
        Self {
            name: String::new(),
            short: [b' '; 11],
            is_folder: false,
            cluster,
            bytes,
            slots: 0..0,
        }
    }

    /// Whether this is its name: FAT knows no upper and lower case.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    pub(super) fn is_dots(&self) -> bool {
        self.short.starts_with(b".")
    }
}

impl Folder {
    /// What is in it.
    pub(crate) fn items(&self) -> Vec<Item> {
        let mut items = Vec::new();
        let mut long: Option<Long> = None;
        for (index, slot) in self.bytes.chunks_exact(SLOT_BYTES).enumerate() {
            let (first, attributes) = (byte(slot, 0), byte(slot, 11));
            if first == NEVER {
                break;
            }
            if first == GONE {
                long = None;
            } else if attributes & 0x3f == LONG {
                long = Long::with(long, slot, index);
            } else {
                let long = long.take();
                if attributes & LABEL == 0 {
                    items.extend(item(slot, index, long));
                }
            }
        }
        items
    }

    fn slot(&mut self, index: usize) -> Option<&mut [u8]> {
        let at = index.checked_mul(SLOT_BYTES)?;
        self.bytes.get_mut(at..at.checked_add(SLOT_BYTES)?)
    }

    fn first_byte(&self, index: usize) -> u8 {
        byte(&self.bytes, index * SLOT_BYTES)
    }

    fn slots(&self) -> usize {
        self.bytes.len() / SLOT_BYTES
    }

    /// Changes the long name where it is, if it needs as many entries and they lie in one sector.
    pub(super) fn rename_in_place(&mut self, item: &Item, name: &str) -> bool {
        let entries = long_entries(name, checksum(&item.short));
        let one_sector = sectors(&item.slots).len() == 1;
        if entries.len() + 1 != item.slots.len() || !one_sector {
            return false;
        }
        for (index, entry) in item.slots.clone().zip(&entries) {
            if let Some(slot) = self.slot(index) {
                slot.copy_from_slice(entry);
            }
        }
        true
    }

    /// A short name that nobody has: `SALLYP~1.EFI`.
    fn short_name(&self, name: &str) -> anyhow::Result<[u8; 11]> {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        let plain = |text: &str, length: usize| -> Vec<u8> {
            let bytes = text.bytes().filter(u8::is_ascii_alphanumeric);
            let mut bytes: Vec<u8> = bytes.map(|b| b.to_ascii_uppercase()).take(length).collect();
            bytes.resize(length, b' ');
            bytes
        };
        let items = self.items();
        for number in 1..1000 {
            let tail = format!("~{number}");
            let mut short = [b' '; 11];
            let stem = plain(stem, 8 - tail.len());
            let text = stem.into_iter().chain(tail.bytes()).chain(plain(extension, 3));
            short.iter_mut().zip(text).for_each(|(to, from)| *to = from);
            if !items.iter().any(|item| item.short == short) {
                return Ok(short);
            }
        }
        anyhow::bail!("the folder has too many files with such a name")
    }

    /// The first place for so many entries that lies in one sector.
    fn room(&self, count: usize) -> Option<usize> {
        let free = |index: &usize| matches!(self.first_byte(*index), GONE | NEVER);
        let end = self.end();
        // Behind the end nothing was ever written.
        let free = |index: &usize| *index >= end || free(index);
        (0..self.slots()).step_by(SLOTS_PER_SECTOR).find_map(|sector| {
            let last = sector + SLOTS_PER_SECTOR - count;
            (sector..=last).find(|start| (*start..start + count).all(|index| free(&index)))
        })
    }

    /// The first entry that never was one.
    fn end(&self) -> usize {
        let end = (0..self.slots()).find(|index| self.first_byte(*index) == NEVER);
        end.unwrap_or(self.slots())
    }
}

impl<M: Medium> Volume<M> {
    pub(super) fn read_folder(&mut self, first: u32) -> anyhow::Result<Folder> {
        let clusters = self.chain(first)?;
        let bytes = clusters.len() * self.cluster_bytes;
        ensure!(bytes <= FOLDER_BYTES_MAX, "a folder of the boot partition is too large");
        let mut folder = Folder { bytes: vec![0; bytes], clusters };
        for (number, cluster) in
            folder.clusters.iter().zip(folder.bytes.chunks_exact_mut(self.cluster_bytes))
        {
            let place = self.place(*number)?;
            self.medium.read(place, cluster).context("the boot partition cannot be read")?;
        }
        Ok(folder)
    }

    /// Adds the entries of a file whose clusters are on the medium: the write of one sector, and a flush.
    pub(super) fn add_entry(
        &mut self,
        folder: &mut Folder,
        name: &str,
        cluster: u32,
        bytes: u64,
    ) -> anyhow::Result<()> {
        let short = folder.short_name(name)?;
        let mut entries = long_entries(name, checksum(&short));
        entries.push(short_entry(&short, cluster, u32::try_from(bytes)?));
        let count = entries.len();
        ensure!(count <= SLOTS_PER_SECTOR, "the name {name} is too long");
        let start = match folder.room(count) {
            Some(start) => start,
            None => {
                self.extend(folder)?;
                folder.room(count).context("a new cluster of a folder is full")?
            }
        };
        self.bridge(folder, start, count)?;
        for (index, entry) in (start..).zip(&entries) {
            if let Some(slot) = folder.slot(index) {
                slot.copy_from_slice(entry);
            }
        }
        self.write_slots(folder, start..start + count)
    }

    /// Removes the entries of a file. The short one goes first: without it the long ones are nothing, while it would be a file with another name
    /// without them.
    pub(super) fn remove_entry(&mut self, folder: &mut Folder, item: &Item) -> anyhow::Result<()> {
        for index in item.slots.clone() {
            if let Some(first) = folder.slot(index).and_then(|slot| slot.first_mut()) {
                *first = GONE;
            }
        }
        for sector in sectors(&item.slots).into_iter().rev() {
            let slots = sector * SLOTS_PER_SECTOR..(sector + 1) * SLOTS_PER_SECTOR;
            self.write_slots(folder, slots)?;
        }
        Ok(())
    }

    /// Writes the sectors of these entries, and a flush.
    pub(super) fn write_slots(
        &mut self,
        folder: &Folder,
        slots: Range<usize>,
    ) -> anyhow::Result<()> {
        for sector in sectors(&slots) {
            let at = sector * SECTOR_BYTES;
            let number = folder.clusters.get(at / self.cluster_bytes);
            let place = self.place(*number.context("an entry outside of its folder")?)?
                + (at % self.cluster_bytes) as u64;
            let bytes = folder.bytes.get(at..at + SECTOR_BYTES).unwrap_or_default();
            self.medium.write(place, bytes).context("the boot partition cannot be written")?;
        }
        self.flush()
    }

    /// Makes the first entry that never was reach up to new ones in a later sector, and never past them.
    fn bridge(&mut self, folder: &mut Folder, start: usize, count: usize) -> anyhow::Result<()> {
        let end = folder.end();
        if start + count <= end {
            return Ok(());
        }
        // What is behind the end should be zeros; if it is not, it would come to light.
        let behind = start + count..folder.slots();
        let leftover = behind.clone().any(|index| folder.first_byte(index) != NEVER);
        if leftover {
            for index in behind.clone() {
                if let Some(slot) = folder.slot(index) {
                    slot.fill(0);
                }
            }
            self.write_slots(folder, behind)?;
        }
        if end < start {
            for index in end..start {
                if let Some(slot) = folder.slot(index) {
                    slot.fill(0);
                    if let Some(first) = slot.first_mut() {
                        *first = GONE;
                    }
                }
            }
            // From the back: the old end stands until everything behind it is right.
            for sector in sectors(&(end..start)).into_iter().rev() {
                let slots = sector * SLOTS_PER_SECTOR..(sector + 1) * SLOTS_PER_SECTOR;
                self.write_slots(folder, slots)?;
            }
        }
        Ok(())
    }

    /// Appends an empty cluster to a folder: zeros and the end of its chain, a flush, then the link to it, a flush.
    fn extend(&mut self, folder: &mut Folder) -> anyhow::Result<()> {
        self.forget_count()?;
        let new = self.allocate(1)?;
        let number = *new.first().context("no cluster")?;
        let zeros = vec![0; self.cluster_bytes];
        let place = self.place(number)?;
        self.medium.write(place, &zeros).context("the boot partition cannot be written")?;
        self.write_table(&new)?;
        self.flush()?;
        let last = *folder.clusters.last().context("a folder without clusters")?;
        self.set(last, number);
        self.write_table(&[last])?;
        self.flush()?;
        folder.clusters.push(number);
        folder.bytes.extend_from_slice(&zeros);
        Ok(())
    }
}

/// A long name that is being read, from its last part to its first.
struct Long {
    start: usize,
    next: u8,
    checksum: u8,
    units: Vec<u16>,
}

impl Long {
    fn with(before: Option<Self>, slot: &[u8], index: usize) -> Option<Self> {
        let (order, checksum) = (byte(slot, 0), byte(slot, 13));
        let part = UNIT_PLACES.map(|at| u16_at(slot, at));
        let number = order & !LAST_PART;
        if order & LAST_PART != 0 {
            let next = number.checked_sub(1)?;
            return Some(Self { start: index, next, checksum, units: part.to_vec() });
        }
        let before = before.filter(|long| long.next == number && long.checksum == checksum)?;
        let units = part.into_iter().chain(before.units).collect();
        Some(Self { next: number.checked_sub(1)?, units, ..before })
    }

    /// The name, if all of its parts were there and it belongs to this short name.
    fn name(&self, short: &[u8; 11]) -> Option<String> {
        if self.next != 0 || self.checksum != checksum(short) {
            return None;
        }
        let units = self.units.iter().copied().take_while(|unit| *unit != 0);
        char::decode_utf16(units).collect::<Result<_, _>>().ok()
    }
}

fn item(slot: &[u8], index: usize, long: Option<Long>) -> Option<Item> {
    let short: [u8; 11] = slot.get(..11)?.try_into().ok()?;
    let long = long.and_then(|long| Some((long.name(&short)?, long.start)));
    let (name, start) = long.unwrap_or_else(|| {
        let (stem, extension) = short.split_at(8);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        let (stem, extension) = (text(stem), text(extension));
        (if extension.is_empty() { stem } else { format!("{stem}.{extension}") }, index)
    });
    Some(Item {
        name,
        short,
        is_folder: byte(slot, 11) & FOLDER != 0,
        cluster: u32::from(u16_at(slot, 20)) << 16 | u32::from(u16_at(slot, 26)),
        bytes: u32_at(slot, 28).into(),
        slots: start..index + 1,
    })
}

/// The parts of a long name in the order of the folder: the last comes first.
fn long_entries(name: &str, checksum: u8) -> Vec<[u8; SLOT_BYTES]> {
    let units: Vec<u16> = name.encode_utf16().collect();
    let parts = units.chunks(UNITS).zip(1_u8..);
    let mut entries: Vec<[u8; SLOT_BYTES]> = parts
        .map(|(part, number)| {
            let is_last = usize::from(number) * UNITS >= units.len();
            let mut entry = [0; SLOT_BYTES];
            // The name ends with a zero, and what is behind it is filled up.
            let padded = part.iter().copied().chain([0]).chain(std::iter::repeat(0xffff));
            let characters = UNIT_PLACES.into_iter().zip(padded);
            let fields =
                [(0, number | if is_last { LAST_PART } else { 0 }), (11, LONG), (13, checksum)];
            for (at, value) in fields {
                put(&mut entry, at, &[value]);
            }
            characters.for_each(|(at, unit)| put(&mut entry, at, &unit.to_le_bytes()));
            entry
        })
        .collect();
    entries.reverse();
    entries
}

fn short_entry(short: &[u8; 11], cluster: u32, bytes: u32) -> [u8; SLOT_BYTES] {
    debug_assert!(cluster >= FIRST, "a file without clusters");
    let mut entry = [0; SLOT_BYTES];
    put(&mut entry, 0, short);
    put(&mut entry, 11, &[FILE]);
    for at in [16, 18, 24] {
        put(&mut entry, at, &NO_DATE.to_le_bytes());
    }
    let [a, b, c, d] = cluster.to_le_bytes();
    put(&mut entry, 20, &[c, d]);
    put(&mut entry, 26, &[a, b]);
    put(&mut entry, 28, &bytes.to_le_bytes());
    entry
}

/// The checksum over a short name that ties a long one to it (page 28).
fn checksum(short: &[u8; 11]) -> u8 {
    short.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The sectors that these entries lie in.
fn sectors(slots: &Range<usize>) -> Vec<usize> {
    (slots.start / SLOTS_PER_SECTOR..slots.end.div_ceil(SLOTS_PER_SECTOR)).collect()
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn put(entry: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = entry.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}
