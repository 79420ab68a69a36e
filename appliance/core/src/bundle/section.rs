//! Unpacks one section within the bounds of its manifest: no byte more than it says, and no window above 8 MiB.

use zstd::stream::raw::{DParameter, Decoder, Operation as _};

use super::{Codec, Error, Section, Source};
use crate::limits::BUNDLE_WINDOW_LOG_MAX;

/// Bytes that are unpacked in one step.
const STEP_BYTES: usize = 128 * 1024;

/// A section that is being unpacked.
pub(super) struct Unpacker {
    number: usize,
    decoder: Option<Decoder<'static>>,
    /// Bytes that were not taken from the source yet.
    stored_left: u64,
    /// Bytes that may still come out.
    bytes_left: u64,
    /// What came out and was not used yet, from `used` on.
    buffer: Vec<u8>,
    used: usize,
    step: Vec<u8>,
    /// Whether the decoder stands at the end of a frame, where a section may end.
    at_frame_end: bool,
}

impl Unpacker {
    pub(super) fn new(number: usize, section: &Section) -> Result<Self, Error> {
        let decoder = match section.codec {
            Codec::Stored => None,
            Codec::Zstd => Some(decoder().map_err(Error::Read)?),
        };
        Ok(Self {
            number,
            decoder,
            stored_left: section.stored_bytes,
            bytes_left: section.bytes,
            buffer: Vec::new(),
            used: 0,
            step: vec![0; STEP_BYTES],
            at_frame_end: true,
        })
    }

    /// The next bytes, as many as are asked for.
    pub(super) fn take(&mut self, source: &mut impl Source, bytes: usize) -> Result<&[u8], Error> {
        let wanted = u64::try_from(bytes).unwrap_or(u64::MAX);
        let here = u64::try_from(self.pending()).unwrap_or(u64::MAX);
        if wanted > here.saturating_add(self.bytes_left) {
            return Err(Error::Section { section: self.number });
        }
        self.buffer.drain(..self.used);
        self.used = 0;
        while self.buffer.len() < bytes {
            if self.is_exhausted() {
                return Err(Error::Section { section: self.number });
            }
            self.unpack(source)?;
        }
        self.used = bytes;
        self.buffer.get(..bytes).ok_or(Error::Section { section: self.number })
    }

    /// Whether everything that the manifest announced came out, and nothing else.
    pub(super) fn finish(mut self, source: &mut impl Source) -> Result<(), Error> {
        while !self.is_exhausted() {
            self.unpack(source)?;
        }
        if self.pending() == 0 && self.bytes_left == 0 {
            Ok(())
        } else {
            Err(Error::Section { section: self.number })
        }
    }

    /// Leaves the rest packed and goes to its end.
    pub(super) fn skip(self, source: &mut impl Source) -> Result<(), Error> {
        source.skip(self.stored_left)
    }

    fn pending(&self) -> usize {
        self.buffer.len().saturating_sub(self.used)
    }

    fn is_exhausted(&self) -> bool {
        self.stored_left == 0 && self.at_frame_end
    }

    /// Takes some stored bytes and appends what they become.
    fn unpack(&mut self, source: &mut impl Source) -> Result<(), Error> {
        let left = usize::try_from(self.stored_left).unwrap_or(usize::MAX);
        let input = if left == 0 { &[] } else { source.available()? };
        let input = input.get(..left.min(STEP_BYTES)).unwrap_or(input);
        if input.is_empty() && left > 0 {
            return Err(Error::Truncated);
        }
        let (taken, output) = match &mut self.decoder {
            None => (input.len(), input),
            Some(decoder) => {
                let step = decoder
                    .run_on_buffers(input, &mut self.step)
                    .map_err(|_| Error::Section { section: self.number })?;
                if step.bytes_read == 0 && step.bytes_written == 0 {
                    return Err(Error::Section { section: self.number });
                }
                self.at_frame_end = step.remaining == 0;
                let output = self.step.get(..step.bytes_written).unwrap_or_default();
                (step.bytes_read, output)
            }
        };
        let length = u64::try_from(output.len()).unwrap_or(u64::MAX);
        self.bytes_left =
            self.bytes_left.checked_sub(length).ok_or(Error::Bomb { section: self.number })?;
        self.buffer.extend_from_slice(output);
        self.stored_left =
            self.stored_left.saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX));
        source.consume(taken);
        self.next_frame()
    }

    /// A section is one frame, or several: the writer pads with skippable ones.
    fn next_frame(&mut self) -> Result<(), Error> {
        match &mut self.decoder {
            Some(decoder) if self.at_frame_end && self.stored_left > 0 => {
                decoder.reinit().map_err(|_| Error::Section { section: self.number })
            }
            _ => Ok(()),
        }
    }
}

fn decoder() -> std::io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(BUNDLE_WINDOW_LOG_MAX))?;
    Ok(decoder)
}
