//! The entries of a folder of FAT32: short names, and the long ones before them.

use crate::{
    Entry, Place,
    bytes::{text, u8_at, u16_at, u32_at},
    heap::Chain,
};

/// The first byte of an entry: none from here on; deleted; and a name that begins with the byte of the deleted.
pub(super) const END: u8 = 0;
pub(super) const DELETED: u8 = 0xe5;
const KANJI: u8 = 0x05;
/// Attributes of an entry.
const VOLUME: u8 = 0x08;
pub(super) const IS_FOLDER: u8 = 0x10;
pub(super) const ARCHIVE: u8 = 0x20;
pub(super) const LONG: u8 = 0x0f;
/// Mark of the last piece of a long name, which comes first.
pub(super) const LAST_PIECE: u8 = 0x40;
/// Characters in a piece of a long name, and where they are.
pub(super) const PIECE_UNITS: usize = 13;
pub(super) const UNIT_PLACES: [usize; PIECE_UNITS] =
    [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
/// Pieces of a long name.
const PIECES_MAX: u8 = 20;

/// An entry that names a file or a folder.
pub(super) struct Found {
    pub(super) name: String,
    /// Name and extension, padded with spaces, as they stand there.
    pub(super) short: [u8; 11],
    attributes: u8,
    first: u32,
    bytes: u32,
}

impl Found {
    /// `root` is where an entry that points to the cluster 0 points to.
    pub(super) fn entry(self, root: u32) -> Entry {
        let Self { name, attributes, first, bytes, .. } = self;
        let is_folder = attributes & IS_FOLDER != 0;
        let chain = match (first, is_folder) {
            (0, true) => Chain::Linked(root),
            (0, false) if bytes == 0 => Chain::Empty,
            (first, _) => Chain::Linked(first),
        };
        let bytes = if is_folder { 0 } else { bytes.into() };
        Entry { name, bytes, is_folder, place: Place::Clusters(chain) }
    }
}

/// All files and folders but `.` and `..`.
pub(super) fn entries(folder: &[u8]) -> impl Iterator<Item = Found> {
    let mut long = LongName::default();
    let slots = folder.chunks_exact(32).take_while(|slot| u8_at(slot, 0) != END);
    slots.filter_map(move |slot| {
        let attributes = u8_at(slot, 11);
        if u8_at(slot, 0) == DELETED {
            long = LongName::default();
            return None;
        }
        if attributes & 0x3f == LONG {
            long.push(slot);
            return None;
        }
        let short: [u8; 11] = *slot.first_chunk()?;
        let long_name = std::mem::take(&mut long).finish(&short);
        if attributes & VOLUME != 0 || short.starts_with(b".") {
            return None;
        }
        Some(Found {
            name: long_name.unwrap_or_else(|| short_name(&short, u8_at(slot, 12))),
            short,
            attributes,
            first: u32::from(u16_at(slot, 20)) << 16 | u32::from(u16_at(slot, 26)),
            bytes: u32_at(slot, 28),
        })
    })
}

/// The sum that ties a long name to its short one.
pub(super) fn checksum(short: &[u8; 11]) -> u8 {
    short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// A long name of which pieces were seen, the last one first.
#[derive(Default)]
struct LongName {
    /// Pieces that are still to come.
    missing: u8,
    checksum: u8,
    /// Pieces in the order in which they came.
    pieces: Vec<[u16; PIECE_UNITS]>,
}

impl LongName {
    /// A piece that does not belong to those before it makes all of them worth nothing.
    fn push(&mut self, slot: &[u8]) {
        let (order, checksum) = (u8_at(slot, 0), u8_at(slot, 13));
        let number = order & !LAST_PIECE;
        if order & LAST_PIECE != 0 && (1..=PIECES_MAX).contains(&number) {
            *self = Self { missing: number, checksum, pieces: Vec::new() };
        }
        if number == 0 || number != self.missing || checksum != self.checksum {
            *self = Self::default();
            return;
        }
        self.missing -= 1;
        self.pieces.push(UNIT_PLACES.map(|at| u16_at(slot, at)));
    }

    fn finish(self, short: &[u8; 11]) -> Option<String> {
        if self.pieces.is_empty() || self.missing != 0 || self.checksum != checksum(short) {
            return None;
        }
        let units: Vec<u16> = self.pieces.into_iter().rev().flatten().collect();
        let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
        text(units.get(..end)?).filter(|name| !name.is_empty())
    }
}

/// The name in eight and three characters. Those beyond ASCII depend on a code page that the medium does not name.
fn short_name(short: &[u8; 11], case: u8) -> String {
    let part = |bytes: &[u8], lower: bool| -> String {
        let kept = bytes.iter().map(|b| if *b == KANJI { DELETED } else { *b });
        let chars =
            kept.map(|b| if b.is_ascii() { char::from(b) } else { char::REPLACEMENT_CHARACTER });
        let name: String = chars.collect();
        let name = name.trim_end_matches(' ');
        if lower { name.to_ascii_lowercase() } else { name.to_owned() }
    };
    let (base, extension) = short.split_at(8);
    let (base, extension) = (part(base, case & 0x08 != 0), part(extension, case & 0x10 != 0));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}
