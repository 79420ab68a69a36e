//! Whether a slot is what its root hash says: the hash tree of dm-verity (version 1, SHA-256, blocks of 4096 bytes), read through to its last block.
//!
//! The kernel checks only the blocks that are read. A flipped bit in one that nobody reads stays unnoticed for years, so an update is read back as a whole, and
//! so is a running system now and then.

use crate::{
    digest::{Hasher, Sha256},
    limits::UPDATE_ROOT_BYTES_MAX,
};

/// Bytes of a block of data and of the tree.
pub const BLOCK_BYTES: usize = 4096;

const HASH_BYTES: usize = 32;
const HASHES_PER_BLOCK: u64 = (BLOCK_BYTES / HASH_BYTES) as u64;
const SALT_BYTES_MAX: usize = 256;

/// Why a slot is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Fault<E> {
    /// The medium did not give a block.
    #[error("block {block} of the {area} cannot be read")]
    Unread {
        /// Where.
        area: Area,
        /// Its number.
        block: u64,
        /// What the medium says.
        #[source]
        source: E,
    },
    /// The tree does not begin as one.
    #[error("there is no hash tree of the expected kind")]
    NoTree,
    /// A block is not the one that was hashed.
    #[error("block {block} of the {area} is damaged")]
    Rotten {
        /// Where.
        area: Area,
        /// Its number.
        block: u64,
    },
}

/// A part of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// The root file system.
    Root,
    /// Its hash tree.
    Tree,
}

impl std::fmt::Display for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Root => "root file system",
            Self::Tree => "hash tree",
        })
    }
}

/// Reads every block of a slot and holds it against the root hash. `read` fills a block from a place counted in blocks; `progress` hears how many
/// blocks of how many were right. Answers how many blocks the root file system has.
///
/// # Errors
/// The first [`Fault`].
pub fn verify<E>(
    root_hash: &Sha256,
    mut read: impl FnMut(Area, u64, &mut [u8]) -> Result<(), E>,
    mut progress: impl FnMut(u64, u64),
) -> Result<u64, Fault<E>> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut get = |area, number, block: &mut [u8]| {
        read(area, number, block).map_err(|source| Fault::Unread { area, block: number, source })
    };
    get(Area::Tree, 0, &mut block)?;
    let shape = Shape::parse(&block).ok_or(Fault::NoTree)?;
    let mut hashes = vec![*root_hash];
    // The superblock has the first block; then come the levels, the root's first.
    let mut place = 1;
    for blocks_below in shape.levels() {
        let mut below = Vec::new();
        for hash in &hashes {
            get(Area::Tree, place, &mut block)?;
            if shape.hash(&block) != *hash {
                return Err(Fault::Rotten { area: Area::Tree, block: place });
            }
            below.extend(block.chunks_exact(HASH_BYTES).filter_map(|h| Sha256::try_from(h).ok()));
            place += 1;
        }
        let unused =
            below.split_off(below.len().min(usize::try_from(blocks_below).unwrap_or(usize::MAX)));
        if unused.iter().any(|hash| *hash != Sha256::default()) {
            // The superblock, which no hash covers, says that there is less than there is.
            return Err(Fault::NoTree);
        }
        hashes = below;
    }
    for (number, hash) in (0..).zip(&hashes) {
        get(Area::Root, number, &mut block)?;
        if shape.hash(&block) != *hash {
            return Err(Fault::Rotten { area: Area::Root, block: number });
        }
        progress(number + 1, shape.blocks);
    }
    Ok(shape.blocks)
}

/// What the superblock says.
struct Shape {
    blocks: u64,
    salt: Vec<u8>,
}

impl Shape {
    /// Takes the one kind that our images have.
    fn parse(superblock: &[u8]) -> Option<Self> {
        let field = |at: usize, bytes: usize| superblock.get(at..at.checked_add(bytes)?);
        let u32_at = |at| Some(u32::from_le_bytes(field(at, 4)?.try_into().ok()?));
        let block = u32::try_from(BLOCK_BYTES).ok()?;
        let known = field(0, 8)? == b"verity\0\0"
            && (u32_at(8)?, u32_at(12)?) == (1, 1)
            && field(32, 32)?.strip_prefix(b"sha256")?.iter().all(|byte| *byte == 0)
            && (u32_at(64)?, u32_at(68)?) == (block, block);
        let blocks = u64::from_le_bytes(field(72, 8)?.try_into().ok()?);
        let salt_bytes = usize::from(u16::from_le_bytes(field(80, 2)?.try_into().ok()?));
        let bounded = (1..=UPDATE_ROOT_BYTES_MAX / BLOCK_BYTES as u64).contains(&blocks)
            && salt_bytes <= SALT_BYTES_MAX;
        if !(known && bounded) {
            return None;
        }
        Some(Self { blocks, salt: field(88, salt_bytes)?.to_vec() })
    }

    /// For each level of the tree, from the root, how many blocks lie below it.
    fn levels(&self) -> Vec<u64> {
        let mut counts = Vec::new();
        let mut blocks = self.blocks;
        while blocks > 1 {
            counts.push(blocks);
            blocks = blocks.div_ceil(HASHES_PER_BLOCK);
        }
        counts.reverse();
        counts
    }

    fn hash(&self, block: &[u8]) -> Sha256 {
        let mut hasher = Hasher::default();
        hasher.update(&self.salt);
        hasher.update(block);
        hasher.finish()
    }
}
