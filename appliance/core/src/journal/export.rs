//! Reads entries as `journalctl --output=export` writes them ([Journal Export Formats](https://systemd.io/JOURNAL_EXPORT_FORMATS/)).
//!
//! A field is `NAME=text` and a line feed, or `NAME`, a line feed, the length in eight bytes (the least first), that many bytes and a
//! line feed; an empty line ends an entry. No field is ever in memory as a whole: a service may log what it likes.

use std::io::{self, BufRead};

use super::{Entry, SeqnumId};
use crate::{
    digest::{Hasher, Sha256},
    limits::{JOURNAL_FIELDS_MAX, JOURNAL_WORD_BYTES_MAX},
};

/// Where journald counts the entry.
const CURSOR: &[u8] = b"__CURSOR";
/// What journald says of the entry itself and is the same in every version; its other words of this kind are not.
const TIMES: [&[u8]; 2] = [b"__REALTIME_TIMESTAMP", b"__MONOTONIC_TIMESTAMP"];

/// What is not a journal in the export format.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The source failed.
    #[error("the entries of the journal cannot be read")]
    Read(#[from] io::Error),
    /// It ends within an entry.
    #[error("the entries of the journal end within one of them")]
    Ends,
    /// It is something else.
    #[error("what was read is not a journal in the export format: {0}")]
    Malformed(&'static str),
}

/// The entries of a stream. It ends with the first error.
#[derive(Debug)]
pub struct Entries<R> {
    source: R,
    is_over: bool,
}

impl<R: BufRead> Entries<R> {
    /// Of this stream.
    pub fn new(source: R) -> Self {
        Self { source, is_over: false }
    }

    fn entry(&mut self) -> Result<Option<Entry>, Unreadable> {
        let mut place = None;
        let mut fields = Vec::new();
        loop {
            let name = match self.name()? {
                Name::End if fields.is_empty() && place.is_none() => return Ok(None),
                Name::End => return Err(Unreadable::Ends),
                Name::Empty if fields.is_empty() && place.is_none() => continue,
                Name::Empty => break,
                Name::Of(name) => name,
            };
            if fields.len() >= JOURNAL_FIELDS_MAX {
                return Err(Unreadable::Malformed("an entry has too many fields"));
            }
            if name.text == CURSOR {
                let mut cursor = Vec::new();
                self.value(&name, |piece| {
                    let room = JOURNAL_WORD_BYTES_MAX.saturating_sub(cursor.len());
                    cursor.extend(piece.iter().take(room));
                })?;
                place = Some(place_of(&cursor)?);
            } else {
                let mut hasher = Hasher::default();
                hasher.update(&name.text);
                hasher.update(b"=");
                self.value(&name, |piece| hasher.update(piece))?;
                if !name.text.starts_with(b"__") || TIMES.contains(&&*name.text) {
                    fields.push(hasher.finish());
                }
            }
        }
        let (seqnum_id, seqnum) =
            place.ok_or(Unreadable::Malformed("an entry does not say where it stands"))?;
        fields.sort_unstable();
        let mut hasher = Hasher::default();
        hasher.update(b"sallyport/journal/1");
        hasher.update(&seqnum_id.0.to_be_bytes());
        hasher.update(&seqnum.to_be_bytes());
        fields.iter().for_each(|field: &Sha256| hasher.update(field.as_bytes()));
        Ok(Some(Entry { seqnum_id, seqnum, hash: hasher.finish() }))
    }

    /// The name of the next field, with what ends it.
    fn name(&mut self) -> Result<Name, Unreadable> {
        let mut text = Vec::new();
        loop {
            let Some(byte) = self.byte()? else {
                return if text.is_empty() { Ok(Name::End) } else { Err(Unreadable::Ends) };
            };
            match byte {
                b'\n' if text.is_empty() => return Ok(Name::Empty),
                b'=' if text.is_empty() => {
                    return Err(Unreadable::Malformed("a field has no name"));
                }
                b'\n' | b'=' => return Ok(Name::Of(Field { text, is_text: byte == b'=' })),
                _ if text.len() >= JOURNAL_WORD_BYTES_MAX => {
                    return Err(Unreadable::Malformed("the name of a field is too long"));
                }
                _ => text.push(byte),
            }
        }
    }

    fn byte(&mut self) -> Result<Option<u8>, Unreadable> {
        let byte = self.source.fill_buf()?.first().copied();
        self.source.consume(usize::from(byte.is_some()));
        Ok(byte)
    }

    /// Reads the value of a field, and the line feed behind it.
    fn value(&mut self, name: &Field, mut take: impl FnMut(&[u8])) -> Result<(), Unreadable> {
        if name.is_text {
            loop {
                let buffer = self.source.fill_buf()?;
                if buffer.is_empty() {
                    return Err(Unreadable::Ends);
                }
                let end = buffer.iter().position(|byte| *byte == b'\n');
                let length = end.unwrap_or(buffer.len());
                take(buffer.get(..length).unwrap_or_default());
                self.source.consume(length + usize::from(end.is_some()));
                if end.is_some() {
                    return Ok(());
                }
            }
        }
        let mut left = [0; 8];
        for byte in &mut left {
            *byte = self.byte()?.ok_or(Unreadable::Ends)?;
        }
        let mut left = u64::from_le_bytes(left);
        while left > 0 {
            let buffer = self.source.fill_buf()?;
            if buffer.is_empty() {
                return Err(Unreadable::Ends);
            }
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            take(buffer.get(..length).unwrap_or_default());
            self.source.consume(length);
            left -= u64::try_from(length).unwrap_or(left);
        }
        match self.byte()? {
            Some(b'\n') => Ok(()),
            Some(_) => Err(Unreadable::Malformed("a field is longer than it says")),
            None => Err(Unreadable::Ends),
        }
    }
}

impl<R: BufRead> Iterator for Entries<R> {
    type Item = Result<Entry, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let entry = self.entry().transpose();
        self.is_over = !matches!(entry, Some(Ok(_)));
        entry
    }
}

enum Name {
    Of(Field),
    /// An empty line.
    Empty,
    /// Nothing comes any more.
    End,
}

struct Field {
    text: Vec<u8>,
    /// Whether the value goes up to the next line feed.
    is_text: bool,
}

/// The place that a cursor (`s=ID;i=NUMBER;…`, both hexadecimal) names.
fn place_of(cursor: &[u8]) -> Result<(SeqnumId, u64), Unreadable> {
    let text = str::from_utf8(cursor).unwrap_or_default();
    let word = |key| text.split(';').find_map(|word| word.strip_prefix(key));
    let id = word("s=").and_then(|id| id.parse().ok());
    let number = word("i=").and_then(|number| u64::from_str_radix(number, 16).ok());
    id.zip(number).ok_or(Unreadable::Malformed("the position of an entry is not understood"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: u128 = 0x739a_d463_348b_4ceb_a5a9_e69c_95a3_c93f;

    fn read(bytes: &[u8]) -> Result<Vec<Entry>, Unreadable> {
        // A small buffer: fields end within it, at its end, and behind it.
        Entries::new(io::BufReader::with_capacity(7, bytes)).collect()
    }

    fn one(fields: &str) -> Entry {
        let cursor = format!("__CURSOR=s={ID:032x};i=4ece7;b=1;m=2;t=3;x=4\n");
        let entries = read(format!("{cursor}{fields}\n").as_bytes()).unwrap();
        let [entry] = entries.as_slice() else { panic!("{entries:?}") };
        *entry
    }

    #[test]
    fn an_entry_has_its_place_and_a_hash_of_its_fields() {
        let entry = one("__REALTIME_TIMESTAMP=1\n__SEQNUM=9\nMESSAGE=hello\nPRIORITY=6\n");
        assert_eq!((entry.seqnum_id, entry.seqnum), (SeqnumId(ID), 0x4ece7));
        // Another order, another version's words, and the other way to write a text.
        let same = [
            "PRIORITY=6\nMESSAGE=hello\n__REALTIME_TIMESTAMP=1\n",
            "__REALTIME_TIMESTAMP=1\nMESSAGE\n\x05\0\0\0\0\0\0\0hello\nPRIORITY=6\n__NEW=x\n",
        ];
        for fields in same {
            assert_eq!(one(fields), entry, "{fields:?}");
        }
        let others = [
            "__REALTIME_TIMESTAMP=2\nMESSAGE=hello\nPRIORITY=6\n",
            "__REALTIME_TIMESTAMP=1\nMESSAGE=hell\nPRIORITY=6\n",
            "__REALTIME_TIMESTAMP=1\nMESSAGE=hello\n",
            "__REALTIME_TIMESTAMP=1\nMESSAGE=hello\nPRIORITY=6\nMESSAGE=hello\n",
            "__REALTIME_TIMESTAMP=1\nMESSAG=Ehello\nPRIORITY=6\n",
        ];
        for fields in others {
            assert_ne!(one(fields).hash, entry.hash, "{fields:?}");
        }
    }

    #[test]
    fn entries_come_one_after_the_other() {
        let entry = |n: u64| format!("__CURSOR=s={ID:032x};i={n:x};b=1\nMESSAGE={n}\n");
        let text = [entry(1), entry(2), entry(3)].join("\n") + "\n";
        let numbers = |text: &str| -> Vec<u64> {
            read(text.as_bytes()).unwrap().iter().map(|entry| entry.seqnum).collect()
        };
        assert_eq!(numbers(&text), [1, 2, 3]);
        assert_eq!(numbers(&format!("\n\n{}", text.replace("\n\n", "\n\n\n"))), [1, 2, 3]);
        assert_eq!(numbers(""), [] as [u64; 0]);
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        let long = "X".repeat(JOURNAL_WORD_BYTES_MAX + 1);
        let many = "A=b\n".repeat(JOURNAL_FIELDS_MAX + 1);
        let table = [
            ("MESSAGE=hello\n\n", "where it stands"),
            ("__CURSOR=s=1;i=1\n\n", "the position of an entry"),
            ("__CURSOR=x\n\n", "the position of an entry"),
            ("MESSAGE=hello\n", "end within one"),
            ("MESSAGE=hello", "end within one"),
            ("MESSAGE", "end within one"),
            ("MESSAGE\n\x05\0\0\0\0\0\0\0hel", "end within one"),
            ("MESSAGE\n\x02\0\0\0\0\0\0\0hello\n\n", "longer than it says"),
            ("=hello\n\n", "no name"),
            (&long, "too long"),
            (&many, "too many"),
        ];
        for (text, says) in table {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{text:.40}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_binary_field_may_hold_anything(value in any::<Vec<u8>>()) {
            let length = u64::try_from(value.len()).unwrap().to_le_bytes();
            let cursor = format!("__CURSOR=s={ID:032x};i=1\nMESSAGE\n");
            let text = [cursor.as_bytes(), &length, &value, b"\nPRIORITY=6\n\n"].concat();
            let entries = read(&text).unwrap();
            prop_assert_eq!(entries.len(), 1);
        }
    }
}
