//! The records of a bundle, one after the other, in memory that does not grow with their number.

use std::io::BufRead;

use super::{Error, Manifest, Record, RecordError, Section, order::Order, section::Unpacker};

/// Where the plaintext of a bundle comes from.
pub trait Source {
    /// Bytes that were not consumed yet; empty only at the end.
    fn available(&mut self) -> Result<&[u8], Error>;

    /// Takes some of the available bytes.
    fn consume(&mut self, bytes: usize);

    /// Fills a buffer, which there must be enough bytes for.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let available = self.available()?;
            let taken = available.len().min(rest.len());
            if taken == 0 {
                return Err(Error::Truncated);
            }
            let (now, later) = rest.split_at_mut(taken);
            now.iter_mut().zip(available).for_each(|(to, from)| *to = *from);
            self.consume(taken);
            rest = later;
        }
        Ok(())
    }

    /// Passes over bytes, which there must be enough of.
    fn skip(&mut self, bytes: u64) -> Result<(), Error> {
        let mut left = bytes;
        while left > 0 {
            let available = u64::try_from(self.available()?.len()).unwrap_or(u64::MAX);
            let now = available.min(left);
            if now == 0 {
                return Err(Error::Truncated);
            }
            self.consume(usize::try_from(now).unwrap_or(usize::MAX));
            left = left.saturating_sub(now);
        }
        Ok(())
    }
}

/// The sections of a spool, before they are sealed: an exporter imports on trial what it is about to hand out.
pub struct Spool<R>(pub R);

impl<R: BufRead> Source for Spool<R> {
    fn available(&mut self) -> Result<&[u8], Error> {
        self.0.fill_buf().map_err(Error::Read)
    }

    fn consume(&mut self, bytes: usize) {
        self.0.consume(bytes);
    }
}

/// A record and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The number of its section, counted from 0.
    pub section: usize,
    /// Its number in the section, counted from 0.
    pub number: u64,
    /// The record.
    pub record: Record,
}

/// The records of a bundle: an iterator that ends after the first error.
pub struct Records<S> {
    source: S,
    sections: Vec<Section>,
    /// The section that is read or comes next.
    at: usize,
    open: Option<Open>,
    failed: bool,
}

struct Open {
    unpacker: Unpacker,
    order: Order,
    kind: super::Kind,
    number: u64,
    records: u64,
}

impl<S: Source> Records<S> {
    /// The records of a manifest's sections, whose bytes a source gives. The manifest must have been parsed, so
    /// that it is within its bounds; the source must have been authenticated.
    pub fn new(manifest: &Manifest, source: S) -> Self {
        Self { source, sections: manifest.sections.clone(), at: 0, open: None, failed: false }
    }

    /// The numbers of the sections that are passed over because this program does not know their kind.
    pub fn skipped(&self) -> Vec<usize> {
        let unknown = |(_, section): &(usize, &Section)| section.known_kind().is_none();
        self.sections.iter().enumerate().filter(unknown).map(|(number, _)| number).collect()
    }

    /// Goes on after an interruption: the next record is the one of this number in this section. What comes before is not
    /// unpacked if it is in other sections.
    pub fn resume(&mut self, section: usize, number: u64) -> Result<(), Error> {
        while self.at < section.min(self.sections.len()) {
            self.skip_section()?;
        }
        for _ in 0..number {
            self.read()?;
        }
        Ok(())
    }

    /// Passes over what is left of the section that is read, or over the next one.
    pub fn skip_section(&mut self) -> Result<(), Error> {
        match self.open.take() {
            Some(open) => open.unpacker.skip(&mut self.source)?,
            None => {
                let bytes = self.sections.get(self.at).map_or(0, |section| section.stored_bytes);
                self.source.skip(bytes)?;
            }
        }
        self.at = self.at.saturating_add(1);
        Ok(())
    }

    fn read(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            let Some(mut open) = self.open.take() else {
                let Some(section) = self.sections.get(self.at) else { return Ok(None) };
                match Open::new(self.at, section)? {
                    Some(open) => self.open = Some(open),
                    None => self.skip_section()?,
                }
                continue;
            };
            if open.number == open.records {
                open.finish(self.at, &mut self.source)?;
                self.at = self.at.saturating_add(1);
                continue;
            }
            let entry = open.read(self.at, &mut self.source)?;
            self.open = Some(open);
            return Ok(Some(entry));
        }
    }
}

impl<S: Source> Iterator for Records<S> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let entry = self.read().transpose();
        self.failed = matches!(entry, Some(Err(_)));
        entry
    }
}

impl Open {
    /// Begins a section, if its kind is known.
    fn new(number: usize, section: &Section) -> Result<Option<Self>, Error> {
        let Some(kind) = section.known_kind() else { return Ok(None) };
        let unpacker = Unpacker::new(number, section)?;
        let order = Order::new(kind, section.room_id.as_deref());
        Ok(Some(Self { unpacker, order, kind, number: 0, records: section.records }))
    }

    fn read(&mut self, section: usize, source: &mut impl Source) -> Result<Entry, Error> {
        let number = self.number;
        let refused = |source| Error::Record { section, record: number, source };
        let length = self.unpacker.take(source, 4)?;
        let length = length.first_chunk::<4>().map_or(0, |length| u32::from_be_bytes(*length));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let max = self.kind.record_bytes_max();
        if length > max {
            return Err(refused(RecordError::TooLarge { bytes: length, max }));
        }
        let record =
            Record::parse(self.kind, self.unpacker.take(source, length)?).map_err(refused)?;
        self.order.accept(&record).map_err(refused)?;
        self.number = number.saturating_add(1);
        Ok(Entry { section, number, record })
    }

    fn finish(self, section: usize, source: &mut impl Source) -> Result<(), Error> {
        let refused = |source| Error::Record { section, record: self.records, source };
        self.order.finish().map_err(refused)?;
        self.unpacker.finish(source)
    }
}
