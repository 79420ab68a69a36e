//! A raw volume: a label in ASCII, and one file behind it.

use crate::{Damage, Disk, Entry, PIECE_BYTES, Place, Window, error::Result};

const MAGIC: &[u8] = b"sallyport-raw/1\n";
/// Where the file begins: LBA 2048.
const START: u64 = 1 << 20;
/// What every stick's folder is below.
const TOP: &str = "SALLYPORT";

/// The label.
pub(crate) struct Raw {
    folder: String,
    name: String,
    bytes: u64,
}

pub(crate) fn is_one(sector: &[u8]) -> bool {
    sector.starts_with(MAGIC)
}

impl Raw {
    pub(crate) fn open<D: Disk>(disk: &Window<D>, sector: &[u8]) -> Result<Self> {
        let text = sector.get(MAGIC.len()..).unwrap_or_default();
        let raw = std::str::from_utf8(text).ok().and_then(Self::parse).ok_or(Damage::RawLabel)?;
        let end = START.checked_add(raw.bytes).ok_or(Damage::RawLabel)?;
        if end > disk.bytes() { Err(Damage::Truncated.into()) } else { Ok(raw) }
    }

    fn parse(text: &str) -> Option<Self> {
        let (path, rest) = text.split_once('\n')?;
        let (digits, padding) = rest.split_once('\n')?;
        let (folder, name) = path.split_once('/')?;
        let good = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let padded = padding.bytes().all(|b| matches!(b, 0 | b' ' | b'\n'));
        let bytes = digits.parse().ok().filter(|_| decimal && padded)?;
        (good(folder) && good(name)).then(|| Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            bytes,
        })
    }

    /// `SALLYPORT`, in it the folder, in it the file.
    pub(crate) fn list(&self, folder: Option<&Entry>) -> Result<Vec<Entry>> {
        let entry = |name: &str, bytes, is_folder| Entry {
            name: name.to_owned(),
            bytes,
            is_folder,
            place: Place::Raw { folder: is_folder },
        };
        Ok(vec![match folder {
            None => entry(TOP, 0, true),
            Some(Entry { place: Place::Raw { folder: true }, name, .. }) if name == TOP => {
                entry(&self.folder, 0, true)
            }
            Some(Entry { place: Place::Raw { folder: true }, .. }) => {
                entry(&self.name, self.bytes, false)
            }
            Some(_) => return Err(Damage::NotAFolder.into()),
        }])
    }

    pub(crate) fn read<D: Disk>(
        &self,
        disk: &mut Window<D>,
        most: u64,
        each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        let (mut at, end) = (START, START + self.bytes.min(most));
        let mut buffer = vec![0; PIECE_BYTES];
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let piece = buffer.get_mut(..wanted).unwrap_or_default();
            disk.read_at(at, piece)?;
            each(piece)?;
            at += wanted as u64;
        }
        Ok(())
    }
}
