//! Reading a backup: from a file of unknown origin to content that is whole and signed.

use std::{
    error::Error as StdError,
    io::{self, Read, Write},
};

use zeroize::Zeroizing;
use zstd::stream::write::Decoder;

use super::{
    BackupId, Codec, Error, Head, Header, MEDIA_ENTRY_BYTES, Manifest, RecoveryKey, Section,
    Signed, manifest::Tally, stream::ChunkReader,
};
use crate::{
    bundle::{PrivateHalf, chunk::Keys},
    cbor,
    digest::{Hasher, Sha256},
    limits::{
        BACKUP_BLOCK_BYTES_MAX, BACKUP_FILES_MAX, BACKUP_ITEM_HEAD_BYTES_MAX,
        BUNDLE_WINDOW_LOG_MAX, CARD_BYTES_MAX,
    },
};

/// A backup of which only the header was read: nothing of it is to be believed.
pub struct Sealed<R> {
    input: R,
    header: Header,
    id: BackupId,
}

/// A backup that a recovery key opens.
pub struct Opened<R> {
    chunks: ChunkReader<R>,
    header: Header,
    id: BackupId,
}

/// Where the content of a backup goes, item by item. What came is only to be used once [`Opened::read`] has come to its end.
pub trait Sink {
    /// An item begins.
    ///
    /// # Errors
    /// If it cannot be taken; so in the others.
    fn begin(&mut self, head: &Head) -> io::Result<()>;
    /// More of its content.
    ///
    /// # Errors
    /// As [`Sink::begin`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// It is complete.
    ///
    /// # Errors
    /// As [`Sink::begin`].
    fn end(&mut self) -> io::Result<()>;
}

/// What a backup that was read to its end contains.
pub struct Contents {
    /// Header, manifest and card; the signature fits.
    pub signed: Signed,
    /// Every media file that the database refers to, in order.
    pub list: Vec<(Sha256, u64)>,
    /// Which of them this backup brings.
    pub brought: Vec<bool>,
}

impl<R: Read> Sealed<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// If it is not one.
    pub fn open(mut input: R) -> Result<Self, Error> {
        let (header, id) = Header::read(&mut input)?;
        Ok(Self { input, header, id })
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its id.
    pub fn id(&self) -> BackupId {
        self.id
    }

    /// Whether there is a stanza for a recovery key.
    pub fn is_for(&self, key: &RecoveryKey) -> bool {
        self.header.recipients.iter().any(|stanza| stanza.key == key.id())
    }

    /// Has the private half do its part.
    ///
    /// # Errors
    /// If there is no stanza for the key, or it does not open.
    pub fn unlock<E: Into<Box<dyn StdError + Send + Sync>>>(
        self,
        own: &RecoveryKey,
        private: impl FnOnce(PrivateHalf<'_>) -> Result<Zeroizing<[u8; 32]>, E>,
    ) -> Result<Opened<R>, Error> {
        let content_key = self.content_key(own, private)?;
        self.unlock_with(&content_key)
    }

    /// The content key, to read the same file twice with one answer of the token.
    ///
    /// # Errors
    /// As [`Sealed::unlock`].
    pub fn content_key<E: Into<Box<dyn StdError + Send + Sync>>>(
        &self,
        own: &RecoveryKey,
        private: impl FnOnce(PrivateHalf<'_>) -> Result<Zeroizing<[u8; 32]>, E>,
    ) -> Result<Zeroizing<[u8; 32]>, Error> {
        let not_for_key = || Error::NotForKey { key: own.clone() };
        let fits =
            |stanza: &&super::Stanza| stanza.key == own.id() && stanza.suite == own.suite().code();
        let stanza = self.header.recipients.iter().find(fits).ok_or_else(not_for_key)?;
        stanza.unwrap(own, &self.header.info(), private)
    }

    /// Opens it with its content key.
    ///
    /// # Errors
    /// Never for a key of the right length.
    pub fn unlock_with(self, content_key: &Zeroizing<[u8; 32]>) -> Result<Opened<R>, Error> {
        let Self { input, header, id } = self;
        let keys = Keys::of_content_key(content_key, id.0).ok_or(Error::WrongKey)?;
        Ok(Opened { chunks: ChunkReader::new(input, keys), header, id })
    }
}

impl<R: Read> Opened<R> {
    /// Reads to the end of the file, verifies everything, and hands the content on.
    ///
    /// # Errors
    /// [`Error`] says what is wrong; then nothing that the sink was given is to be used.
    pub fn read(mut self, sink: &mut impl Sink) -> Result<Contents, Error> {
        let mut state = State::default();
        loop {
            let (head, head_bytes) = self.head()?;
            state.check(&head)?;
            if head.section == Section::Manifest {
                let mut signed = Collected::default();
                self.body(&head, &mut signed, |_| Ok(()))?;
                self.chunks.finish()?;
                return state.finish(self.header, self.id, &signed.0);
            }
            sink.begin(&head).map_err(Error::Sink)?;
            let sha256 = self.body(&head, sink, |bytes| state.watch(&head, bytes))?;
            sink.end().map_err(Error::Sink)?;
            state.ended(&head, &sha256)?;
            state.tally.count(&head, &head_bytes, &sha256);
        }
    }

    fn head(&mut self) -> Result<(Head, Vec<u8>), Error> {
        let length = self.length()?;
        if length > BACKUP_ITEM_HEAD_BYTES_MAX {
            return Err(Error::Content("the head of a part is too long"));
        }
        let mut bytes = vec![0; length];
        self.chunks.fill(&mut bytes)?;
        let head: Head =
            cbor::from_bytes(&bytes).map_err(|_| Error::Content("the head of a part"))?;
        match head.problem() {
            Some(problem) => Err(Error::Content(problem)),
            None => Ok((head, bytes)),
        }
    }

    fn length(&mut self) -> Result<usize, Error> {
        let mut length = [0; 4];
        self.chunks.fill(&mut length)?;
        Ok(usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX))
    }

    /// Reads the content of an item, and answers its hash.
    fn body(
        &mut self,
        head: &Head,
        sink: &mut impl Sink,
        watch: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<Sha256, Error> {
        let output =
            Output { sink, watch, hasher: Hasher::default(), left: head.bytes, refused: None };
        let mut body = match head.codec {
            Codec::Stored => Body::Stored(output),
            Codec::Zstd => {
                let mut decoder = Decoder::new(output).map_err(Error::Read)?;
                decoder.window_log_max(BUNDLE_WINDOW_LOG_MAX).map_err(Error::Read)?;
                Body::Zstd(Box::new(decoder))
            }
        };
        let mut block = Vec::new();
        loop {
            let length = self.length()?;
            if length == 0 {
                break;
            }
            if length > BACKUP_BLOCK_BYTES_MAX {
                return Err(Error::Content("a block is too long"));
            }
            block.resize(length, 0);
            self.chunks.fill(&mut block)?;
            if let Err(error) = body.write_all(&block) {
                return Err(body.into_output().refused.unwrap_or_else(|| unpacking(&error)));
            }
        }
        if let Err(error) = body.flush() {
            return Err(body.into_output().refused.unwrap_or_else(|| unpacking(&error)));
        }
        let output = body.into_output();
        if output.left > 0 {
            return Err(Error::Content("a part is shorter than it says"));
        }
        Ok(output.hasher.finish())
    }
}

fn unpacking(_: &io::Error) -> Error {
    Error::Content("a part does not unpack")
}

enum Body<W: Write> {
    Stored(W),
    Zstd(Box<Decoder<'static, W>>),
}

impl<W: Write> Body<W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stored(output) => output.write_all(bytes),
            Self::Zstd(decoder) => decoder.write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stored(_) => Ok(()),
            Self::Zstd(decoder) => decoder.flush(),
        }
    }

    fn into_output(self) -> W {
        match self {
            Self::Stored(output) => output,
            Self::Zstd(decoder) => decoder.into_inner(),
        }
    }
}

/// Unpacked content on its way: no byte more than the head says.
struct Output<'a, S, F> {
    sink: &'a mut S,
    watch: F,
    hasher: Hasher,
    left: u64,
    refused: Option<Error>,
}

impl<S: Sink, F: FnMut(&[u8]) -> Result<(), Error>> Output<'_, S, F> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let left = self.left.checked_sub(length);
        self.left = left.ok_or(Error::Content("a part is longer than it says"))?;
        self.hasher.update(bytes);
        (self.watch)(bytes)?;
        self.sink.write(bytes).map_err(Error::Sink)
    }
}

impl<S: Sink, F: FnMut(&[u8]) -> Result<(), Error>> Write for Output<'_, S, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.take(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                self.refused = Some(error);
                Err(io::Error::other("refused"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A small item in memory: heads bound how small.
#[derive(Default)]
struct Collected(Vec<u8>);

impl Sink for Collected {
    fn begin(&mut self, _: &Head) -> io::Result<()> {
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was seen so far.
#[derive(Default)]
struct State {
    tally: Tally,
    last: Option<(Section, String)>,
    card: Option<Vec<u8>>,
    list: Vec<(Sha256, u64)>,
    /// Bytes of an entry of the list that has not come to its end.
    entry: Vec<u8>,
    brought: Vec<bool>,
}

impl State {
    /// Whether an item belongs after the ones before.
    fn check(&mut self, head: &Head) -> Result<(), Error> {
        let place = (head.section, head.name.clone());
        if self.last.as_ref().is_some_and(|last| *last >= place) {
            return Err(Error::Content("parts are out of order"));
        }
        self.last = Some(place);
        let files = u64::try_from(BACKUP_FILES_MAX).unwrap_or(u64::MAX);
        let is_small = matches!(head.section, Section::Settings | Section::Wrapped);
        if is_small && self.tally.items(head.section) >= files {
            return Err(Error::Content("too many files"));
        }
        if let Some(sha256) = head.media() {
            let at = self.list.binary_search_by_key(&sha256, |(sha256, _)| *sha256);
            let at = at.map_err(|_| Error::Content("a media file that is not on the list"))?;
            if self.list.get(at).is_none_or(|(_, bytes)| *bytes != head.bytes) {
                return Err(Error::Content("a media file of another size"));
            }
            if let Some(brought) = self.brought.get_mut(at) {
                *brought = true;
            }
        }
        Ok(())
    }

    /// Keeps what the reader itself needs of the content.
    fn watch(&mut self, head: &Head, bytes: &[u8]) -> Result<(), Error> {
        match head.section {
            Section::Wrapped if head.name == "card" => {
                let card = self.card.get_or_insert_default();
                card.extend_from_slice(bytes);
                if card.len() > CARD_BYTES_MAX {
                    return Err(Error::Content("a card that is too large"));
                }
                Ok(())
            }
            Section::MediaList => self.entries(bytes),
            _ => Ok(()),
        }
    }

    fn entries(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for byte in bytes {
            self.entry.push(*byte);
            if self.entry.len() < MEDIA_ENTRY_BYTES {
                continue;
            }
            let (sha256, size) = self.entry.split_first_chunk::<32>().unwrap_or((&[0; 32], &[]));
            let size = size.first_chunk::<8>().map_or(0, |size| u64::from_be_bytes(*size));
            let entry = (Sha256(*sha256), size);
            if self.list.last().is_some_and(|(last, _)| *last >= entry.0) {
                return Err(Error::Content("the list of media is out of order"));
            }
            self.list.push(entry);
            self.brought.push(false);
            self.entry.clear();
        }
        Ok(())
    }

    fn ended(&mut self, head: &Head, sha256: &Sha256) -> Result<(), Error> {
        match head.section {
            Section::Media if head.media() != Some(*sha256) => Err(Error::Media),
            Section::MediaList if !self.entry.is_empty() => {
                Err(Error::Content("the list of media ends in the middle"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the manifest says what came, and nothing is missing that every backup has.
    fn finish(self, header: Header, id: BackupId, signed: &[u8]) -> Result<Contents, Error> {
        let manifest = Manifest::verify(signed, &header.signer)?;
        if manifest.id != id {
            return Err(Error::BadSignature);
        }
        let came = self.tally.finish();
        for section in Section::CONTENT {
            let found = came.iter().find(|content| content.section == section);
            if found != manifest.content(section) || (section.is_single() && found.is_none()) {
                return Err(Error::Manifest(section));
            }
        }
        if came.len() != manifest.contents.len() {
            return Err(Error::Manifest(Section::Manifest));
        }
        if header.is_full() && self.brought.contains(&false) {
            return Err(Error::Manifest(Section::Media));
        }
        let signed = Signed { header, manifest, card: self.card };
        Ok(Contents { signed, list: self.list, brought: self.brought })
    }
}
