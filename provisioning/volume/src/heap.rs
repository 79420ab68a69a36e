//! Clusters and the table that chains them, which FAT32 and exFAT have in common.

use std::collections::BTreeSet;

use crate::{Damage, Disk, FOLDER_BYTES_MAX, PIECE_BYTES, Window, bytes::u32_at, error::Result};

/// The number of the first cluster.
pub(crate) const FIRST: u32 = 2;
/// Bytes of the table that are read at a time.
const TABLE_BLOCK: u64 = 4096;

/// Where clusters and their table lie. Whoever makes one has held every value against the size of the volume.
#[derive(Clone, Debug)]
pub(crate) struct Heap {
    /// Where the table begins, in bytes.
    pub(crate) table: u64,
    /// Where the cluster [`FIRST`] begins, in bytes.
    pub(crate) start: u64,
    /// Bytes of a cluster.
    pub(crate) cluster_bytes: u64,
    /// How many clusters there are.
    pub(crate) clusters: u32,
    /// The bits of an entry of the table that count.
    pub(crate) mask: u32,
}

/// The clusters of a file or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chain {
    /// None at all.
    Empty,
    /// The table says which cluster follows which.
    Linked(u32),
    /// They lie side by side, so many bytes.
    Contiguous(u32, u64),
}

/// A walk along a chain.
pub(crate) struct Walk<'h> {
    heap: &'h Heap,
    block_at: u64,
    block: Vec<u8>,
}

impl Heap {
    /// Where a cluster begins.
    pub(crate) fn offset(&self, cluster: u32) -> Result<u64> {
        if !self.has(cluster) {
            return Err(Damage::Chain.into());
        }
        Ok(self.start + u64::from(cluster - FIRST) * self.cluster_bytes)
    }

    pub(crate) fn has(&self, cluster: u32) -> bool {
        cluster.checked_sub(FIRST).is_some_and(|index| index < self.clusters)
    }

    pub(crate) fn walk(&self) -> Walk<'_> {
        Walk { heap: self, block_at: u64::MAX, block: Vec::new() }
    }

    /// How many clusters so many bytes take.
    pub(crate) fn clusters_of(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_bytes)
    }

    /// The content of a file of this size, or the first so many bytes of it. Its chain must be exactly as long, if all of it is read: so no loop
    /// passes, whatever it looks like.
    pub(crate) fn read<D: Disk>(
        &self,
        disk: &mut Window<D>,
        chain: &Chain,
        bytes: u64,
        most: u64,
        each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        let mut walk = self.walk();
        let mut left = bytes.min(most);
        let mut next = match chain {
            Chain::Empty => None,
            Chain::Linked(first) => Some(*first),
            Chain::Contiguous(first, _) => {
                let count = self.clusters_of(bytes);
                let end = u64::from(*first).checked_add(count);
                let fits =
                    end.is_some_and(|end| end <= u64::from(FIRST) + u64::from(self.clusters));
                if !fits || !self.has(*first) {
                    return Err(Damage::Chain.into());
                }
                return self.stream(disk, self.offset(*first)?, left, each);
            }
        };
        while left > 0 {
            let cluster = next.ok_or(Damage::Length)?;
            let here = left.min(self.cluster_bytes);
            self.stream(disk, self.offset(cluster)?, here, each)?;
            left -= here;
            next = walk.after(disk, cluster)?;
        }
        if next.is_some() && bytes <= most { Err(Damage::Length.into()) } else { Ok(()) }
    }

    fn stream<D: Disk>(
        &self,
        disk: &mut Window<D>,
        offset: u64,
        bytes: u64,
        each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(PIECE_BYTES).min(PIECE_BYTES)];
        let mut done = 0;
        while done < bytes {
            let wanted = usize::try_from(bytes - done).unwrap_or(PIECE_BYTES).min(buffer.len());
            let piece = buffer.get_mut(..wanted).unwrap_or_default();
            disk.read_at(offset + done, piece)?;
            each(piece)?;
            done += wanted as u64;
        }
        Ok(())
    }

    /// The clusters of a folder, in order. A folder of FAT32 does not say how long it is.
    pub(crate) fn folder<D: Disk>(&self, disk: &mut Window<D>, chain: &Chain) -> Result<Vec<u32>> {
        let most = FOLDER_BYTES_MAX.div_ceil(self.cluster_bytes);
        match chain {
            Chain::Empty => Ok(Vec::new()),
            Chain::Contiguous(first, bytes) => {
                let count = self.clusters_of(*bytes);
                if count > most {
                    return Err(Damage::Folder.into());
                }
                let count = u32::try_from(count).map_err(|_| Damage::Folder)?;
                let end = first.checked_add(count).ok_or(Damage::Chain)?;
                if !self.has(*first) || !self.has(end - 1) {
                    return Err(Damage::Chain.into());
                }
                Ok((*first..end).collect())
            }
            Chain::Linked(first) => {
                let (mut walk, mut seen) = (self.walk(), BTreeSet::new());
                let (mut clusters, mut next) = (Vec::new(), Some(*first));
                while let Some(cluster) = next {
                    if !seen.insert(cluster) {
                        return Err(Damage::Loop.into());
                    }
                    if clusters.len() as u64 == most {
                        return Err(Damage::Folder.into());
                    }
                    clusters.push(cluster);
                    next = walk.after(disk, cluster)?;
                }
                Ok(clusters)
            }
        }
    }

    /// All entries of a folder, one after the other.
    pub(crate) fn folder_bytes<D: Disk>(
        &self,
        disk: &mut Window<D>,
        chain: &Chain,
    ) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for cluster in self.folder(disk, chain)? {
            let left = FOLDER_BYTES_MAX.saturating_sub(bytes.len() as u64).min(self.cluster_bytes);
            self.stream(disk, self.offset(cluster)?, left, &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
        }
        Ok(bytes)
    }
}

impl Walk<'_> {
    /// What the table says of a cluster.
    pub(crate) fn entry<D: Disk>(&mut self, disk: &mut Window<D>, cluster: u32) -> Result<u32> {
        if !self.heap.has(cluster) {
            return Err(Damage::Chain.into());
        }
        let place = u64::from(cluster) * 4;
        let block = place - place % TABLE_BLOCK;
        if block != self.block_at {
            // The last block of the table may be shorter than others.
            let table_bytes = (u64::from(self.heap.clusters) + u64::from(FIRST)) * 4;
            let length = usize::try_from(TABLE_BLOCK.min(table_bytes - block)).unwrap_or_default();
            self.block.resize(length, 0);
            self.block_at = u64::MAX;
            disk.read_at(self.heap.table + block, &mut self.block)?;
            self.block_at = block;
        }
        let at = usize::try_from(place - block).unwrap_or_default();
        Ok(u32_at(&self.block, at) & self.heap.mask)
    }

    /// The cluster after one; `None` at the end of the chain.
    pub(crate) fn after<D: Disk>(
        &mut self,
        disk: &mut Window<D>,
        cluster: u32,
    ) -> Result<Option<u32>> {
        let entry = self.entry(disk, cluster)?;
        // FAT32 knows eight marks of an end, exFAT the last of them.
        if entry >= self.heap.mask - 7 {
            return Ok(None);
        }
        if self.heap.has(entry) { Ok(Some(entry)) } else { Err(Damage::Chain.into()) }
    }
}
