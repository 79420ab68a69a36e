//! The boot partition: FAT32 (Microsoft's specification, version 1.03), written so that a file is there as a whole or not at all.
//!
//! What makes a file appear, disappear or change its name is the write of one sector, the one with its entries in the folder: on a disk a sector is old or new after a
//! power cut. Everything that the entry refers to is on the medium before (its clusters, their chain in both tables), and what it referred to is
//! given back after. What a cut leaves over is clusters that nobody refers to; [`Volume::reclaim`] takes them back.
//!
//! The partition must not be mounted meanwhile. It is ours, so what looks damaged is an error and nothing is mended by guessing.

mod folder;

use anyhow::{Context as _, bail, ensure};
use sallyport_core::digest::{Hasher, Sha256};
use sallyport_volume::bytes::{u8_at, u16_at, u32_at};

pub(crate) use self::folder::{Folder, Item};
use super::medium::{Medium, PIECE_BYTES, SECTOR_BYTES};

/// Bits of an entry of the table that count.
const MASK: u32 = 0x0fff_ffff;
/// The end of a chain, as it is written; everything from [`END_MIN`] on is one when read.
const END: u32 = 0x0fff_ffff;
const END_MIN: u32 = 0x0fff_fff8;
/// A cluster that the medium cannot hold.
const BAD: u32 = 0x0fff_fff7;
/// The first cluster.
const FIRST: u32 = 2;
/// Fewer clusters are FAT16, whatever the boot sector says.
const CLUSTERS_MIN: u32 = 65_525;
/// Clusters of the largest boot partition that is looked at: their table is in memory.
const CLUSTERS_MAX: u32 = 1 << 22;
/// Folders below each other.
const DEPTH_MAX: usize = 8;

/// An open boot partition.
pub(crate) struct Volume<M> {
    medium: M,
    cluster_bytes: usize,
    table_at: u64,
    table_bytes: u64,
    tables: u64,
    data_at: u64,
    root: u32,
    info_at: Option<u64>,
    clusters: u32,
    /// The first table, as it is on the medium or about to be.
    table: Vec<u32>,
}

impl<M: Medium> Volume<M> {
    /// Reads the boot sector and the table.
    pub(crate) fn open(mut medium: M) -> anyhow::Result<Self> {
        let mut boot = vec![0; SECTOR_BYTES];
        medium.read(0, &mut boot).context("the boot partition cannot be read")?;
        let (u8_at, u16_at, u32_at) = (
            |at| u8_at(&boot, at),
            |at| u64::from(u16_at(&boot, at)),
            |at| u64::from(u32_at(&boot, at)),
        );
        // Those of the file system, which may be larger than those of the disk (systemd-repart makes 4096); what is written at once are the disk's.
        let (sector, per_cluster) = (u16_at(11), u64::from(u8_at(13)));
        let (reserved, tables) = (u16_at(14), u64::from(u8_at(16)));
        let (total, table_sectors) = (u32_at(32), u32_at(36));
        let known = u16_at(510) == 0xaa55
            && [512, 1024, 2048, 4096].contains(&sector)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && (u16_at(17), u16_at(19), u16_at(22)) == (0, 0, 0)
            // All tables are alike, and it is version 0.
            && (u16_at(40) & 0x80, u16_at(42)) == (0, 0);
        ensure!(known, "the boot partition is not FAT32");
        let data = reserved + tables * table_sectors;
        let clusters = total.checked_sub(data).map(|sectors| sectors / per_cluster);
        let clusters = clusters.and_then(|clusters| u32::try_from(clusters).ok());
        let clusters = clusters
            .filter(|clusters| {
                (CLUSTERS_MIN..=CLUSTERS_MAX).contains(clusters)
                    && total * sector <= medium.bytes()
                    && u64::from(clusters + FIRST) * 4 <= table_sectors * sector
            })
            .context("the boot partition's sizes contradict each other")?;
        let mut bytes = vec![0; usize::try_from(table_sectors * sector)?];
        medium.read(reserved * sector, &mut bytes).context("the boot partition cannot be read")?;
        let table = bytes.chunks_exact(4).filter_map(|entry| entry.try_into().ok());
        let table: Vec<u32> = table.map(u32::from_le_bytes).collect();
        let info = u16_at(48);
        Ok(Self {
            cluster_bytes: usize::try_from(per_cluster * sector)?,
            table_at: reserved * sector,
            table_bytes: table_sectors * sector,
            tables,
            data_at: data * sector,
            root: u32_at(44).try_into()?,
            info_at: (1..reserved).contains(&info).then_some(info * sector),
            clusters,
            table,
            medium,
        })
    }

    /// Opens a folder by its path from the root.
    pub(crate) fn folder(&mut self, path: &[&str]) -> anyhow::Result<Folder> {
        let mut folder = self.read_folder(self.root)?;
        for name in path {
            let item = folder.items().into_iter().find(|item| item.is(name));
            let item = item.filter(|item| item.is_folder);
            let item = item.with_context(|| format!("the boot partition has no folder {name}"))?;
            folder = self.read_folder(item.cluster)?;
        }
        Ok(folder)
    }

    /// Reads a piece of a file, or less at its end.
    pub(crate) fn read(&mut self, item: &Item, at: u64, bytes: usize) -> anyhow::Result<Vec<u8>> {
        let chain = self.chain(item.cluster)?;
        let end = item.bytes.min(at.saturating_add(bytes as u64));
        let mut found = Vec::new();
        let mut cluster = vec![0; self.cluster_bytes];
        let size = self.cluster_bytes as u64;
        for index in at / size..end.div_ceil(size) {
            let number = usize::try_from(index).ok().and_then(|index| chain.get(index));
            let place = self.place(*number.context("a file is shorter than it says")?)?;
            self.medium.read(place, &mut cluster).context("the boot partition cannot be read")?;
            let from = usize::try_from(at.saturating_sub(index * size))?;
            let to = usize::try_from(size.min(end - index * size))?;
            found.extend_from_slice(cluster.get(from..to).unwrap_or_default());
        }
        Ok(found)
    }

    /// The hash of a file.
    pub(crate) fn hash(&mut self, item: &Item) -> anyhow::Result<Sha256> {
        let mut hasher = Hasher::default();
        let mut at = 0;
        while at < item.bytes {
            let piece = self.read(item, at, PIECE_BYTES)?;
            ensure!(!piece.is_empty(), "a file is shorter than it says");
            at += piece.len() as u64;
            hasher.update(&piece);
        }
        Ok(hasher.finish())
    }

    /// Writes a new file: its clusters and their chain, a flush, reads it back, and only then its entry, and a flush. `source` fills each piece in turn.
    pub(crate) fn create(
        &mut self,
        folder: &mut Folder,
        name: &str,
        bytes: u64,
        sha256: &Sha256,
        mut source: impl FnMut(u64, &mut [u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let taken = folder.items().iter().any(|item| item.is(name));
        ensure!(!taken, "the boot partition has a file {name} already");
        self.forget_count()?;
        let clusters = self.allocate(bytes.div_ceil(self.cluster_bytes as u64))?;
        let first = *clusters.first().context("an empty file")?;
        let mut at = 0;
        for run in runs(&clusters, PIECE_BYTES / self.cluster_bytes) {
            let mut piece = vec![0; run.len() * self.cluster_bytes];
            let wanted = usize::try_from((bytes - at).min(piece.len() as u64))?;
            source(at, piece.get_mut(..wanted).unwrap_or_default())?;
            let place = self.place(*run.first().unwrap_or(&first))?;
            self.medium.write(place, &piece).context("the boot partition cannot be written")?;
            at += wanted as u64;
        }
        self.write_table(&clusters)?;
        self.flush()?;
        let item = Item::unplaced(first, bytes);
        ensure!(
            self.hash(&item)? == *sha256,
            "the kernel was written and reads differently: the disk is failing"
        );
        self.add_entry(folder, name, first, bytes)
    }

    /// Removes a file: its entry, a flush, and then its clusters, unless another entry has them as well.
    pub(crate) fn remove(&mut self, folder: &mut Folder, item: &Item) -> anyhow::Result<()> {
        self.forget_count()?;
        self.remove_entry(folder, item)?;
        if item.cluster < FIRST || folder.items().iter().any(|other| other.cluster == item.cluster)
        {
            return Ok(());
        }
        let chain = self.chain(item.cluster)?;
        self.free(&chain)
    }

    /// Gives a file another name: in place where that is one sector, else by a second entry before the first one goes.
    pub(crate) fn rename(
        &mut self,
        folder: &mut Folder,
        item: &Item,
        name: &str,
    ) -> anyhow::Result<()> {
        if folder.rename_in_place(item, name) {
            return self.write_slots(folder, item.slots.clone());
        }
        self.add_entry(folder, name, item.cluster, item.bytes)?;
        self.remove_entry(folder, item)
    }

    /// Frees clusters that no file has: what a power cut left. Answers how many there were.
    pub(crate) fn reclaim(&mut self) -> anyhow::Result<usize> {
        let mut used = vec![false; self.table.len()];
        let mut waiting = vec![(self.root, 0)];
        while let Some((cluster, depth)) = waiting.pop() {
            ensure!(depth <= DEPTH_MAX, "the boot partition has folders that are too deep");
            self.mark(cluster, &mut used)?;
            let mut seen = Vec::new();
            for item in self.read_folder(cluster)?.items() {
                if item.cluster < FIRST || item.is_dots() {
                    continue;
                }
                if item.is_folder {
                    waiting.push((item.cluster, depth + 1));
                } else if !seen.contains(&item.cluster) {
                    // Two names of one file are what a power cut leaves of a change of name.
                    seen.push(item.cluster);
                    self.mark(item.cluster, &mut used)?;
                }
            }
        }
        let numbers = FIRST..FIRST + self.clusters;
        let lost: Vec<u32> = numbers
            .filter(|number| {
                let index = *number as usize;
                let value = self.table.get(index).copied().unwrap_or_default() & MASK;
                value != 0 && value != BAD && !used.get(index).copied().unwrap_or(true)
            })
            .collect();
        if !lost.is_empty() {
            self.forget_count()?;
            self.free(&lost)?;
        }
        Ok(lost.len())
    }

    /// Bytes of the clusters that are free.
    pub(crate) fn free_bytes(&self) -> u64 {
        let free = self.numbers().filter(|number| self.is_free(*number)).count();
        free as u64 * self.cluster_bytes as u64
    }

    fn mark(&self, first: u32, used: &mut [bool]) -> anyhow::Result<()> {
        for cluster in self.chain(first)? {
            let place = used.get_mut(cluster as usize).context("a cluster that is not there")?;
            ensure!(!*place, "two files of the boot partition have a cluster in common");
            *place = true;
        }
        Ok(())
    }

    fn numbers(&self) -> impl Iterator<Item = u32> + use<M> {
        FIRST..FIRST + self.clusters
    }

    fn is_free(&self, number: u32) -> bool {
        self.table.get(number as usize).is_some_and(|value| value & MASK == 0)
    }

    /// The clusters of a chain.
    fn chain(&self, first: u32) -> anyhow::Result<Vec<u32>> {
        let mut chain = Vec::new();
        let mut next = first;
        while next < END_MIN {
            let valid = (FIRST..FIRST + self.clusters).contains(&next);
            let value = self.table.get(next as usize).map(|value| value & MASK);
            let looped = chain.len() > self.clusters as usize;
            match value {
                Some(value) if valid && !looped && value != 0 && value != BAD => {
                    chain.push(next);
                    next = value;
                }
                _ => bail!("a chain of clusters of the boot partition leads nowhere"),
            }
        }
        Ok(chain)
    }

    /// Chains so many free clusters in memory; [`Self::write_table`] writes it.
    fn allocate(&mut self, count: u64) -> anyhow::Result<Vec<u32>> {
        let wanted = usize::try_from(count)?;
        let free: Vec<u32> =
            self.numbers().filter(|number| self.is_free(*number)).take(wanted).collect();
        ensure!(free.len() == wanted, "the boot partition is full");
        let next = free.iter().skip(1).copied().chain([END]);
        for (number, next) in free.iter().zip(next) {
            self.set(*number, next);
        }
        Ok(free)
    }

    fn free(&mut self, clusters: &[u32]) -> anyhow::Result<()> {
        clusters.iter().for_each(|number| self.set(*number, 0));
        self.write_table(clusters)?;
        self.flush()
    }

    fn set(&mut self, number: u32, value: u32) {
        if let Some(entry) = self.table.get_mut(number as usize) {
            // The upper bits are not ours.
            *entry = *entry & !MASK | value;
        }
    }

    /// Writes the sectors of all tables that have these clusters' entries.
    fn write_table(&mut self, clusters: &[u32]) -> anyhow::Result<()> {
        const PER_SECTOR: usize = SECTOR_BYTES / 4;
        let sectors: std::collections::BTreeSet<usize> =
            clusters.iter().map(|number| *number as usize / PER_SECTOR).collect();
        for sector in sectors {
            let entries = self.table.chunks_exact(PER_SECTOR).nth(sector).unwrap_or_default();
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            for table in 0..self.tables {
                let at = self.table_at + table * self.table_bytes + (sector * SECTOR_BYTES) as u64;
                self.medium.write(at, &bytes).context("the boot partition cannot be written")?;
            }
        }
        Ok(())
    }

    /// Says that nobody has counted the free clusters, before their number changes.
    fn forget_count(&mut self) -> anyhow::Result<()> {
        let Some(at) = self.info_at else { return Ok(()) };
        let mut info = vec![0; SECTOR_BYTES];
        self.medium.read(at, &mut info).context("the boot partition cannot be read")?;
        let known = u32_at(&info, 0) == 0x4161_5252 && u32_at(&info, 484) == 0x6141_7272;
        match info.get_mut(488..496) {
            Some(counts) if known && *counts != [0xff; 8] => counts.fill(0xff),
            _ => return Ok(()),
        }
        self.medium.write(at, &info).context("the boot partition cannot be written")?;
        self.flush()
    }

    /// Where a cluster begins.
    fn place(&self, number: u32) -> anyhow::Result<u64> {
        let index = number.checked_sub(FIRST).filter(|index| *index < self.clusters);
        let index = index.context("a cluster that is not there")?;
        Ok(self.data_at + u64::from(index) * self.cluster_bytes as u64)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.medium.flush().context("the boot partition cannot be written")
    }
}

/// Neighbouring clusters together, at most so many.
fn runs(clusters: &[u32], most: usize) -> impl Iterator<Item = &[u32]> {
    let neighbours = clusters.chunk_by(|one, next| next.checked_sub(1) == Some(*one));
    neighbours.flat_map(move |run| run.chunks(most.max(1)))
}
