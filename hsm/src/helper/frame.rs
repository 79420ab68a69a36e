//! Frames: how messages lie on the socket between the box and the helper.
//!
//! A frame is its length (32 bits, big-endian) without these four bytes, a byte with [`VERSION`], the number of the request
//! (64 bits, big-endian), and CBOR. An answer bears the number of its request.

use std::{
    io::{self, Read},
    sync::Arc,
};

use minicbor::{Decode, Decoder, Encode, encode};
use sallyport_core::limits::TOKEN_FRAME_BYTES_MAX;
use zeroize::{Zeroize as _, Zeroizing};

/// Raised whenever the meaning of a frame changes.
const VERSION: u8 = 2;
/// Bytes of the length that a frame begins with.
const LENGTH_BYTES: usize = 4;
/// Bytes before the message: length, version, number.
const HEAD_BYTES: usize = LENGTH_BYTES + 1 + 8;
/// Bytes of a message with a secret: such a buffer is never moved, so no copy of the secret stays behind.
const SMALL_MESSAGE_BYTES: usize = 2048;
/// Bytes that are read at once. Small messages come in crowds.
const READ_BYTES: usize = 64 * 1024;

/// A message, encoded once however often it is sent.
#[derive(Clone)]
pub(super) struct Message(Arc<Zeroizing<Vec<u8>>>);

impl Message {
    /// Encodes it. Fails if it is too long.
    pub(super) fn new<T: Encode<()>>(message: &T) -> io::Result<Self> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(SMALL_MESSAGE_BYTES));
        encode(message, &mut *bytes).map_err(io::Error::other)?;
        if bytes.len() + HEAD_BYTES - LENGTH_BYTES > TOKEN_FRAME_BYTES_MAX {
            return Err(invalid("a frame would be too long"));
        }
        Ok(Self(Arc::new(bytes)))
    }

    /// How long it is without what every frame has.
    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// The frame under this number.
    pub(super) fn numbered(&self, number: u64) -> Frame {
        let mut head = [0; HEAD_BYTES];
        // Never more than `TOKEN_FRAME_BYTES_MAX`.
        let length = (HEAD_BYTES - LENGTH_BYTES + self.0.len()) as u32;
        head[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        head[LENGTH_BYTES] = VERSION;
        head[LENGTH_BYTES + 1..].copy_from_slice(&number.to_be_bytes());
        Frame { number, head, message: self.clone() }
    }
}

/// A message on its way.
pub(super) struct Frame {
    number: u64,
    head: [u8; HEAD_BYTES],
    message: Message,
}

impl Frame {
    /// The number of the request.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The two parts that are sent, one after the other.
    pub(super) fn parts(&self) -> [&[u8]; 2] {
        [&self.head, &self.message.0]
    }

    /// Bytes of both parts.
    pub(super) fn bytes(&self) -> usize {
        HEAD_BYTES + self.message.bytes()
    }
}

/// What was received and not yet understood.
pub(super) struct Incoming {
    /// Of fixed length: reading never moves what may be secret. The bytes from `start` to `end` are received.
    buffer: Zeroizing<Vec<u8>>,
    start: usize,
    end: usize,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self { buffer: Zeroizing::new(vec![0; READ_BYTES]), start: 0, end: 0 }
    }

    /// Reads once, and tells how many bytes there were: none at the end of the stream. To be called when
    /// [`Incoming::take`] has nothing more.
    pub(super) fn read(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.make_room();
        let read = from.read(self.buffer.get_mut(self.end..).unwrap_or_default())?;
        self.end += read;
        Ok(read)
    }

    /// The next message and its number, if it is there as a whole.
    pub(super) fn take<T: for<'b> Decode<'b, ()>>(&mut self) -> io::Result<Option<(u64, T)>> {
        let Some(length) = self.frame_length()? else { return Ok(None) };
        let received = self.received();
        let Some((frame, _)) =
            received.get(LENGTH_BYTES..).unwrap_or_default().split_at_checked(length)
        else {
            return Ok(None);
        };
        let Some((&VERSION, rest)) = frame.split_first() else {
            return Err(invalid("a frame is of another version"));
        };
        let Some((number, body)) = rest.split_first_chunk() else {
            return Err(invalid("a frame is too short"));
        };
        let mut decoder = Decoder::new(body);
        let message = decoder.decode().map_err(|error| invalid(&error.to_string()))?;
        if decoder.position() != body.len() {
            return Err(invalid("a frame is longer than its message"));
        }
        let number = u64::from_be_bytes(*number);
        self.start += LENGTH_BYTES + length;
        Ok(Some((number, message)))
    }

    /// Whether a frame has begun and is not complete.
    pub(super) fn is_cut(&self) -> bool {
        self.start < self.end
    }

    fn received(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The length that the next frame says it has, within its bound.
    fn frame_length(&self) -> io::Result<Option<usize>> {
        let Some(length) = self.received().first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(io::Error::other)?;
        if length > TOKEN_FRAME_BYTES_MAX {
            return Err(invalid("a frame is too long"));
        }
        Ok(Some(length))
    }

    /// Moves what is left to the front of a buffer that has room for the frame to come, and wipes where it was.
    fn make_room(&mut self) {
        let length = self.frame_length().ok().flatten().unwrap_or_default();
        let needed = READ_BYTES.max(LENGTH_BYTES + length);
        let left = self.end - self.start;
        if needed == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.buffer.get_mut(left..self.end).unwrap_or_default().zeroize();
        } else {
            let mut other = Zeroizing::new(vec![0; needed]);
            if let Some(front) = other.get_mut(..left) {
                front.copy_from_slice(self.received());
            }
            self.buffer = other;
        }
        (self.start, self.end) = (0, left);
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Secret32, wiped::leaks};

    #[test]
    fn secrets_leave_nothing_in_the_heap_on_their_way() {
        let secret = *Secret32::random().unwrap().expose();
        let way = || {
            let message = Message::new(&Secret32::new(&secret)).unwrap();
            let frames = [message.numbered(7), message.numbered(8)];
            let mut bytes = Zeroizing::new(Vec::with_capacity(2 * SMALL_MESSAGE_BYTES));
            frames.iter().flat_map(Frame::parts).for_each(|part| bytes.extend(part));
            let mut incoming = Incoming::new();
            incoming.read(&mut bytes.as_slice()).unwrap();
            for number in [7, 8] {
                let (received, again) = incoming.take::<Secret32>().unwrap().unwrap();
                assert_eq!((received, again.expose()), (number, &secret));
            }
        };
        assert_eq!(leaks(&secret, way), 0);
    }

    fn frame(number: u64, text: &str) -> Vec<u8> {
        Message::new(&text).unwrap().numbered(number).parts().concat()
    }

    /// Reads a few bytes at a time.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            assert!(!buffer.is_empty());
            let bytes = self.1.min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(bytes);
            buffer[..bytes].copy_from_slice(now);
            self.0 = later;
            Ok(bytes)
        }
    }

    fn read_all(bytes: &[u8], at_once: usize) -> io::Result<Vec<(u64, String)>> {
        let mut from = Dribble(bytes, at_once);
        let mut incoming = Incoming::new();
        let mut messages = Vec::new();
        loop {
            while let Some(message) = incoming.take()? {
                messages.push(message);
            }
            if incoming.read(&mut from)? == 0 {
                return if incoming.is_cut() { Err(invalid("cut")) } else { Ok(messages) };
            }
        }
    }

    proptest! {
        #[test]
        fn messages_arrive_whole_and_in_order_however_they_are_cut(
            texts in prop::collection::vec(".{0,40}", 0..8), at_once in 1_usize..70, cut in 1_usize..9,
        ) {
            let numbered: Vec<_> = (7..).zip(texts).collect();
            let bytes: Vec<u8> = numbered.iter().flat_map(|(n, text)| frame(*n, text)).collect();
            prop_assert_eq!(read_all(&bytes, at_once).unwrap(), numbered);
            if let Some(cut) = bytes.len().checked_sub(cut) {
                prop_assert_eq!(read_all(&bytes[..cut], at_once).is_ok(), cut == 0);
            }
        }

        #[test]
        fn a_frame_with_more_than_its_message_is_refused(text: String, more: Vec<u8>) {
            let mut long = [frame(1, &text), more.clone()].concat();
            let length = u32::try_from(long.len() - 4).unwrap();
            long[..4].copy_from_slice(&length.to_be_bytes());
            prop_assert_eq!(read_all(&long, 1000).is_ok(), more.is_empty());
        }
    }

    #[test]
    fn a_message_of_the_greatest_length_passes() {
        let text = "x".repeat(TOKEN_FRAME_BYTES_MAX - 9 - 5);
        let sent = [frame(1, "before"), frame(2, &text), frame(3, "after")].concat();
        let received = read_all(&sent, 100_000).unwrap();
        assert_eq!(received.len(), 3);
        assert_eq!(received[1].1, text);
        assert!(Message::new(&format!("{text}x")).is_err());
    }

    #[test]
    fn the_length_is_bounded_before_anything_is_read() {
        for (frame, why) in [
            (&[0xff, 0xff, 0xff, 0xff, VERSION, 0][..], "too long"),
            (&[0, 0, 0, 2, VERSION + 1, 0], "another version"),
            (&[0, 0, 0, 2, VERSION, 0], "too short"),
            (&[0, 0, 0, 0], "another version"),
        ] {
            let refused = read_all(frame, 1).unwrap_err();
            assert!(refused.to_string().contains(why), "{refused}");
        }
        assert!(read_all(&[], 1).unwrap().is_empty());
    }

    #[test]
    fn what_was_received_is_wiped() {
        let mut from: &[u8] = &frame(1, "correct horse");
        let mut incoming = Incoming::new();
        incoming.read(&mut from).unwrap();
        assert!(incoming.take::<String>().unwrap().is_some());
        incoming.read(&mut from).unwrap();
        assert!(incoming.buffer.iter().all(|byte| *byte == 0));
    }
}
