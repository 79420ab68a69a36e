//! New files on FAT32. Nothing that is there is changed or removed.
//!
//! Data goes into free clusters, then the table chains them, then the folder names the file, with a flush after each: a stick that is
//! pulled out in between has lost some space and nothing else. All files have the same date, because the clock of a box is nobody's
//! business.

use std::io::Read;

use super::{
    Fat32, MASK,
    folder::{
        ARCHIVE, DELETED, END, IS_FOLDER, LAST_PIECE, LONG, PIECE_UNITS, UNIT_PLACES, checksum,
        entries,
    },
};
use crate::{
    Damage, DiskMut, Entry, FOLDER_BYTES_MAX, PIECE_BYTES, Place, System, Volume, Window,
    bytes::{u8_at, u32_at},
    error::{Error, Result},
    heap::{Chain, FIRST},
};

/// The first of January 1980, the first day that FAT knows.
const DATE: u16 = 0x0021;
/// Bytes of a name that is written.
const NAME_BYTES_MAX: usize = 64;
/// Bytes of the table that are written at a time.
const TABLE_BLOCK: u64 = 4096;
/// Entry of the last cluster of a chain.
const LAST: u32 = MASK;
/// Short names that are tried for a long one.
const SHORT_NAMES_TRIED: u32 = 10_000;

/// Bytes of content without a known end that are put onto the medium before they are chained: a multiple of every size of clusters.
const BATCH_BYTES: usize = 4 << 20;

/// Content that is on the medium, and that nothing names yet.
#[derive(Debug)]
pub struct Laid {
    clusters: Vec<u32>,
    bytes: u32,
}

impl Laid {
    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.into()
    }
}

/// Writes to a volume of FAT32.
pub struct Writer<D> {
    disk: Window<D>,
    fat: Fat32,
    /// Where the search for free clusters goes on.
    next: u32,
}

impl<D: DiskMut> Writer<D> {
    /// Of a volume that can be written.
    ///
    /// # Errors
    /// [`Error::NotWritable`] if it is not FAT32, or one whose tables are not kept alike.
    pub fn new(volume: Volume<D>) -> Result<Self> {
        match volume.system {
            System::Fat32(fat) if fat.mirrored => Ok(Self { disk: volume.disk, fat, next: FIRST }),
            _ => Err(Error::NotWritable),
        }
    }

    /// Puts a new file into a folder, which is made, with those above it, where it is not there.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Full`], [`Error::TooLarge`] or [`Error::Name`]; [`Error::Source`] if the source does not have just
    /// so many bytes. Nothing of the file can be seen then.
    pub fn put(
        &mut self,
        path: &[&str],
        name: &str,
        bytes: u64,
        source: &mut dyn Read,
    ) -> Result<()> {
        let size = u32::try_from(bytes).map_err(|_| Error::TooLarge)?;
        let folder = self.place(path, name)?;
        let clusters = self.free(self.fat.heap.clusters_of(bytes))?;
        self.fill(&clusters, bytes, source)?;
        self.chain(&clusters)?;
        self.name(&folder, name, ARCHIVE, clusters.first().copied(), size)
    }

    /// Puts what a source gives until its end onto the medium, at most so many bytes of it; [`Writer::name_laid`] gives it a name.
    ///
    /// # Errors
    /// [`Error::Full`], or [`Error::BrokenOff`] if the source fails: then its space is free again.
    pub fn lay(&mut self, source: &mut dyn Read, bytes_max: u64) -> Result<Laid> {
        let mut laid = Laid { clusters: Vec::new(), bytes: 0 };
        if let Err(error) = self.lay_to_end(source, bytes_max.min(u32::MAX.into()), &mut laid) {
            // A stick that is gone has lost some space; why it is gone is what counts.
            let _lost = self.release(laid);
            return Err(error);
        }
        Ok(laid)
    }

    /// Names what was laid. From here on it is a file like others.
    ///
    /// # Errors
    /// [`Error::Exists`] or [`Error::Name`].
    pub fn name_laid(&mut self, path: &[&str], name: &str, laid: &Laid) -> Result<()> {
        let folder = self.place(path, name)?;
        self.name(&folder, name, ARCHIVE, laid.clusters.first().copied(), laid.bytes)
    }

    /// Gives the space of what was laid back.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn release(&mut self, laid: Laid) -> Result<()> {
        self.set(&laid.clusters.into_iter().map(|cluster| (cluster, 0)).collect::<Vec<_>>())
    }

    /// Says that the count of free clusters is unknown, waits until everything is on the medium, and gives the device back.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn finish(mut self) -> Result<D> {
        if let Some(place) = self.fat.info {
            let mut sector = [0; 512];
            self.disk.read_at(place, &mut sector)?;
            if sector.starts_with(b"RRaA") && sector.get(484..488) == Some(b"rrAa") {
                self.disk.write_at(place + 488, &[0xff; 8])?;
            }
        }
        self.disk.flush()?;
        Ok(self.disk.into_inner())
    }

    /// The folder for a new file of this name; it is made, with those above it, if it is not there.
    fn place(&mut self, path: &[&str], name: &str) -> Result<Chain> {
        if !path.iter().all(|part| good(part)) || !good(name) {
            return Err(Error::Name);
        }
        let mut folder = Chain::Linked(self.fat.root);
        for part in path {
            folder = self.folder(folder, part)?;
        }
        if self.fat.list(&mut self.disk, Some(folder.clone()))?.iter().any(|e| is(e, name)) {
            return Err(Error::Exists);
        }
        Ok(folder)
    }

    fn lay_to_end(&mut self, source: &mut dyn Read, bytes_max: u64, laid: &mut Laid) -> Result<()> {
        let mut buffer = vec![0; BATCH_BYTES];
        loop {
            let room = usize::try_from(bytes_max - laid.bytes()).unwrap_or(BATCH_BYTES);
            let batch = buffer.get_mut(..room.min(BATCH_BYTES)).unwrap_or_default();
            let filled = fill(source, batch).map_err(Error::BrokenOff)?;
            let content = batch.get(..filled).unwrap_or_default();
            let clusters = self.free(self.fat.heap.clusters_of(filled as u64))?;
            self.fill(&clusters, filled as u64, &mut &*content)?;
            let last = laid.clusters.last().copied();
            laid.clusters.extend(&clusters);
            self.chain(&clusters)?;
            if let (Some(last), Some(first)) = (last, clusters.first()) {
                self.set(&[(last, *first)])?;
            }
            laid.bytes += u32::try_from(filled).map_err(|_| Error::TooLarge)?;
            if filled < BATCH_BYTES || laid.bytes() == bytes_max {
                return Ok(());
            }
        }
    }

    /// A folder in a folder; it is made if it is not there.
    fn folder(&mut self, parent: Chain, name: &str) -> Result<Chain> {
        let there = self.fat.list(&mut self.disk, Some(parent.clone()))?;
        if let Some(entry) = there.into_iter().find(|entry| is(entry, name)) {
            return match entry.place {
                Place::Clusters(chain) if entry.is_folder => Ok(chain),
                _ => Err(Damage::NotAFolder.into()),
            };
        }
        let clusters = self.free(1)?;
        let cluster = clusters.first().copied().ok_or(Error::Full)?;
        // The root is the cluster 0 to those in it.
        let above = match parent {
            Chain::Linked(first) if first != self.fat.root => first,
            _ => 0,
        };
        let mut content = vec![0; usize::try_from(self.fat.heap.cluster_bytes).unwrap_or_default()];
        let dots = [(b".          ", cluster), (b"..         ", above)];
        for (slot, (short, first)) in content.chunks_exact_mut(32).zip(dots) {
            slot.copy_from_slice(&entry(short, IS_FOLDER, first, 0));
        }
        self.disk.write_at(self.fat.heap.offset(cluster)?, &content)?;
        self.disk.flush()?;
        self.chain(&clusters)?;
        self.name(&parent, name, IS_FOLDER, Some(cluster), 0)?;
        Ok(Chain::Linked(cluster))
    }

    /// So many free clusters, not yet taken.
    fn free(&mut self, count: u64) -> Result<Vec<u32>> {
        let wanted = usize::try_from(count).map_err(|_| Error::TooLarge)?;
        let (mut found, mut walk) = (Vec::new(), self.fat.heap.walk());
        let end = FIRST + self.fat.heap.clusters;
        for cluster in (self.next..end).chain(FIRST..self.next) {
            if found.len() == wanted {
                break;
            }
            if walk.entry(&mut self.disk, cluster)? == 0 {
                found.push(cluster);
            }
        }
        if found.len() < wanted {
            return Err(Error::Full);
        }
        if let Some(last) = found.last() {
            self.next = (last + 1).min(end);
        }
        Ok(found)
    }

    /// Copies the source into clusters.
    fn fill(&mut self, clusters: &[u32], bytes: u64, source: &mut dyn Read) -> Result<()> {
        let mut left = bytes;
        let mut buffer = vec![0; PIECE_BYTES];
        for cluster in clusters {
            let start = self.fat.heap.offset(*cluster)?;
            let here = left.min(self.fat.heap.cluster_bytes);
            let mut done = 0;
            while done < here {
                let wanted = usize::try_from(here - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                let piece = buffer.get_mut(..wanted).unwrap_or_default();
                source.read_exact(piece).map_err(|_| Error::Source)?;
                self.disk.write_at(start + done, piece)?;
                done += wanted as u64;
            }
            left -= here;
        }
        let mut more = [0];
        if source.read(&mut more)? != 0 {
            return Err(Error::Source);
        }
        self.disk.flush()
    }

    /// Takes clusters: each leads to the next, the last to none.
    fn chain(&mut self, clusters: &[u32]) -> Result<()> {
        let next = clusters.iter().skip(1).copied().chain([LAST]);
        self.set(&clusters.iter().copied().zip(next).collect::<Vec<_>>())
    }

    /// Writes entries of the table, into all its copies.
    fn set(&mut self, mut entries: &[(u32, u32)]) -> Result<()> {
        let block_of = |cluster: u32| u64::from(cluster) * 4 / TABLE_BLOCK;
        while let Some((cluster, _)) = entries.first() {
            let block = block_of(*cluster);
            let together = entries.iter().take_while(|(c, _)| block_of(*c) == block).count();
            let (here, rest) = entries.split_at(together);
            let at = block * TABLE_BLOCK;
            let length = usize::try_from(TABLE_BLOCK.min(self.fat.table_bytes - at));
            let mut bytes = vec![0; length.unwrap_or_default()];
            self.disk.read_at(self.fat.heap.table + at, &mut bytes)?;
            for (cluster, value) in here {
                let place = usize::try_from(u64::from(*cluster) * 4 - at).unwrap_or_default();
                let kept = u32_at(&bytes, place) & !MASK;
                if let Some(entry) = bytes.get_mut(place..place + 4) {
                    entry.copy_from_slice(&(kept | value).to_le_bytes());
                }
            }
            for copy in 0..self.fat.copies {
                let table = self.fat.heap.table + copy * self.fat.table_bytes;
                self.disk.write_at(table + at, &bytes)?;
            }
            entries = rest;
        }
        self.disk.flush()
    }

    /// Writes an entry into a folder: from here on the file can be seen.
    fn name(
        &mut self,
        folder: &Chain,
        name: &str,
        attributes: u8,
        first: Option<u32>,
        bytes: u32,
    ) -> Result<()> {
        let mut clusters = self.fat.heap.folder(&mut self.disk, folder)?;
        let content = self.fat.heap.folder_bytes(&mut self.disk, folder)?;
        let short = unused_short(name, &content)?;
        let mut slots = long_slots(name, &short);
        slots.push(entry(&short, attributes, first.unwrap_or_default(), bytes));
        let place = run_of_free(&content, slots.len());
        let used = content.chunks_exact(32).take_while(|slot| u8_at(slot, 0) != END).count();
        let end = (place + slots.len()) * 32;
        if end as u64 > FOLDER_BYTES_MAX {
            return Err(Damage::Folder.into());
        }
        // What lies behind the end of a folder need not be zero.
        if place + slots.len() > used {
            slots.push([0; 32]);
        }
        while (clusters.len() as u64) * self.fat.heap.cluster_bytes < end as u64 {
            self.extend(&mut clusters)?;
        }
        let (cluster_bytes, room) = (self.fat.heap.cluster_bytes, clusters.len() as u64);
        for (number, slot) in (place as u64..).zip(&slots) {
            let at = number * 32;
            if at >= room * cluster_bytes {
                break;
            }
            let index = usize::try_from(at / cluster_bytes).unwrap_or_default();
            let cluster = clusters.get(index).copied().ok_or(Damage::Chain)?;
            let offset = self.fat.heap.offset(cluster)? + at % cluster_bytes;
            self.disk.write_at(offset, slot)?;
        }
        self.disk.flush()
    }

    /// One more cluster for a folder, with nothing in it.
    fn extend(&mut self, clusters: &mut Vec<u32>) -> Result<()> {
        let last = clusters.last().copied().ok_or(Damage::Chain)?;
        let new = self.free(1)?.first().copied().ok_or(Error::Full)?;
        let zeros = vec![0; usize::try_from(self.fat.heap.cluster_bytes).unwrap_or_default()];
        self.disk.write_at(self.fat.heap.offset(new)?, &zeros)?;
        self.disk.flush()?;
        self.set(&[(new, LAST)])?;
        self.set(&[(last, new)])?;
        clusters.push(new);
        Ok(())
    }
}

/// Fills a buffer as far as the source goes.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn is(entry: &Entry, name: &str) -> bool {
    entry.name.eq_ignore_ascii_case(name)
}

fn good(name: &str) -> bool {
    let chars = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && chars
        && !name.starts_with('.')
        && !name.ends_with('.')
}

/// The slot of a file or folder.
fn entry(short: &[u8; 11], attributes: u8, first: u32, bytes: u32) -> [u8; 32] {
    let mut slot = [0; 32];
    let [low0, low1, high0, high1] = first.to_le_bytes();
    let date = DATE.to_le_bytes();
    let fields: [(usize, &[u8]); 7] = [
        (0, short),
        (11, &[attributes]),
        (16, &date),
        (18, &date),
        (20, &[high0, high1]),
        (24, &[date, [low0, low1]].concat()),
        (28, &bytes.to_le_bytes()),
    ];
    for (at, field) in fields {
        slot.iter_mut().skip(at).zip(field).for_each(|(to, from)| *to = *from);
    }
    slot
}

/// The slots of a long name, the last piece first. It ends with a zero and is filled up with ones.
fn long_slots(name: &str, short: &[u8; 11]) -> Vec<[u8; 32]> {
    let units: Vec<u16> = name.encode_utf16().collect();
    let pieces: Vec<&[u16]> = units.chunks(PIECE_UNITS).collect();
    let last = pieces.len();
    let slot = |number: usize, piece: &[u16]| {
        let mark = if number == last { LAST_PIECE } else { 0 };
        let mut slot = [0; 32];
        let units = piece.iter().copied().chain([0]).chain(std::iter::repeat(u16::MAX));
        let units = UNIT_PLACES.into_iter().zip(units).flat_map(|(at, unit)| {
            let [low, high] = unit.to_le_bytes();
            [(at, low), (at + 1, high)]
        });
        let order = u8::try_from(number).unwrap_or_default() | mark;
        let head = [(0, order), (11, LONG), (13, checksum(short))];
        for (at, byte) in units.chain(head) {
            if let Some(place) = slot.get_mut(at) {
                *place = byte;
            }
        }
        slot
    };
    pieces.iter().enumerate().map(|(index, piece)| slot(index + 1, piece)).rev().collect()
}

/// A short name that nothing in the folder has: eight digits made of the long one, and its extension.
fn unused_short(name: &str, folder: &[u8]) -> Result<[u8; 11]> {
    let taken: Vec<[u8; 11]> = entries(folder).map(|found| found.short).collect();
    // FNV-1a: any spread will do.
    let start = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
    });
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let extension: String = extension.chars().filter(char::is_ascii_alphanumeric).take(3).collect();
    for number in 0..SHORT_NAMES_TRIED {
        let text =
            format!("{:08X}{:3}", start.wrapping_add(number), extension.to_ascii_uppercase());
        let mut short = [b' '; 11];
        short.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        if !taken.contains(&short) {
            return Ok(short);
        }
    }
    Err(Damage::Folder.into())
}

/// Where so many slots side by side are free, if need be behind the last one.
fn run_of_free(folder: &[u8], wanted: usize) -> usize {
    let (mut run, mut place, mut ended) = (0, 0, false);
    for (number, slot) in folder.chunks_exact(32).enumerate() {
        let first = u8_at(slot, 0);
        ended |= first == END;
        if !ended && first != DELETED {
            (run, place) = (0, number + 1);
            continue;
        }
        run += 1;
        if run == wanted {
            break;
        }
    }
    place
}
