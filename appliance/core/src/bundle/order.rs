//! The rules that span the records of a section. Writer and reader hold them alike.

use ring::digest::{Context, SHA256};
use ruma::{OwnedRoomId, RoomId};

use super::{Kind, Media, MediaHead, PduRole, Record, RecordError, Room, RoomHead};
use crate::limits::{MEDIA_PART_BYTES_MAX, PDU_BYTES_MAX, TO_DEVICE_BYTES_MAX};

/// What was seen of a section so far.
pub(super) struct Order {
    kind: Kind,
    room_id: Option<OwnedRoomId>,
    head: Option<RoomHead>,
    anchors: u32,
    to_device: u64,
    file: Option<File>,
}

/// A media file of which parts are still to come.
struct File {
    head: MediaHead,
    missing: u64,
    hash: Context,
}

impl Order {
    pub(super) fn new(kind: Kind, room_id: Option<&RoomId>) -> Self {
        let room_id = room_id.map(ToOwned::to_owned);
        Self { kind, room_id, head: None, anchors: 0, to_device: 0, file: None }
    }

    /// Takes the next record; after an error the section is not to be used any more.
    pub(super) fn accept(&mut self, record: &Record) -> Result<(), RecordError> {
        if record.kind() != self.kind {
            return Err(RecordError::OtherKind);
        }
        match record {
            Record::ToDevice(message) => {
                within(message.messages.len(), TO_DEVICE_BYTES_MAX)?;
                holds(
                    message.n > self.to_device,
                    "to-device messages are numbered upwards from 1",
                )?;
                self.to_device = message.n;
                Ok(())
            }
            Record::Room(record) => self.room(record),
            Record::Media(Media::Head(head)) => self.file_begins(head),
            Record::Media(Media::Part(bytes)) => self.file_goes_on(bytes),
            _ => Ok(()),
        }
    }

    /// Whether the section may end here.
    pub(super) fn finish(&self) -> Result<(), RecordError> {
        holds(self.file.is_none(), "the media file is not complete")?;
        if self.kind != Kind::Room {
            return Ok(());
        }
        let head = self.head.as_ref().ok_or(RecordError::OutOfPlace("the room has no head"))?;
        holds(self.anchors == u32::from(head.snapshot), "a snapshot has one anchor")
    }

    fn room(&mut self, record: &Room) -> Result<(), RecordError> {
        match (record, &self.head) {
            (Room::Head(head), None) => {
                holds(Some(&head.room_id) == self.room_id.as_ref(), "the head is of another room")?;
                self.head = Some(head.clone());
                Ok(())
            }
            (Room::Head(_), Some(_)) => Err(RecordError::OutOfPlace("the room has two heads")),
            (_, None) => Err(RecordError::OutOfPlace("the room does not begin with its head")),
            (Room::Pdu(pdu), Some(head)) => {
                within(pdu.json.len(), PDU_BYTES_MAX)?;
                let is_timeline = pdu.role == PduRole::Timeline;
                holds(head.snapshot || is_timeline, "a snapshot's event without a snapshot")?;
                let is_anchor = matches!(pdu.role, PduRole::Anchor | PduRole::StateAnchor);
                self.anchors = self.anchors.saturating_add(u32::from(is_anchor));
                Ok(())
            }
            (Room::Gap(_) | Room::Withheld(_), Some(_)) => Ok(()),
        }
    }

    fn file_begins(&mut self, head: &MediaHead) -> Result<(), RecordError> {
        holds(self.file.is_none(), "the media file before is not complete")?;
        let file = File { head: head.clone(), missing: head.bytes, hash: Context::new(&SHA256) };
        self.file_continues(file)
    }

    fn file_goes_on(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        within(bytes.len(), MEDIA_PART_BYTES_MAX)?;
        holds(!bytes.is_empty(), "a part of a media file is empty")?;
        let mut file =
            self.file.take().ok_or(RecordError::OutOfPlace("a part of no media file"))?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        file.missing = file
            .missing
            .checked_sub(length)
            .ok_or(RecordError::OutOfPlace("the media file is longer than it should be"))?;
        file.hash.update(bytes);
        self.file_continues(file)
    }

    fn file_continues(&mut self, file: File) -> Result<(), RecordError> {
        if file.missing > 0 {
            self.file = Some(file);
            return Ok(());
        }
        let same = file.hash.finish().as_ref() == file.head.sha256.as_bytes();
        holds(same, "the media file has another hash")
    }
}

fn within(bytes: usize, max: usize) -> Result<(), RecordError> {
    if bytes <= max { Ok(()) } else { Err(RecordError::TooLarge { bytes, max }) }
}

fn holds(rule: bool, otherwise: &'static str) -> Result<(), RecordError> {
    if rule { Ok(()) } else { Err(RecordError::OutOfPlace(otherwise)) }
}
