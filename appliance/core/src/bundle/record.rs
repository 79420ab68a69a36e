//! Records: what the sections of a bundle are made of. JSON inside is as Matrix has it, byte for byte; it is not parsed here.
//!
//! A record is framed by its length (u32, big-endian) and is deterministic CBOR. Its length is held against
//! [`Kind::record_bytes_max`] before anything else. Rules that span the records of a
//! section are held by writer and reader alike.

use minicbor::{Decode, Encode, bytes::ByteVec};
use ruma::{
    OwnedDeviceId, OwnedEventId, OwnedMxcUri, OwnedRoomId, OwnedServerName, OwnedUserId,
    RoomVersionId,
};

use crate::{
    cbor,
    digest::Sha256,
    limits::{
        CARD_BYTES_MAX, KEY_DOCUMENT_BYTES_MAX, MEDIA_PART_BYTES_MAX, RECORD_BYTES_MAX,
        TO_DEVICE_BYTES_MAX,
    },
    time::Millis,
};

/// The kinds of sections, in the order in which they stand in a bundle and are imported. Codes are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Renewed and revoked pairing cards of other enclaves.
    Cards = 1,
    /// Key documents of servers.
    Keys = 2,
    /// Users: profiles, devices, cross-signing keys.
    Users = 3,
    /// One-time keys allotted to the recipient.
    OneTimeKeys = 4,
    /// To-device messages; before events, so that keys are there when the messages are.
    ToDevice = 5,
    /// Events of one room.
    Room = 6,
    /// Media.
    Media = 7,
    /// Read receipts.
    Receipts = 8,
    /// What the sender would like to have.
    Want = 9,
    /// One-time keys of the recipient's users that were given away.
    Claims = 10,
}

impl Kind {
    /// The kind with a code.
    pub fn from_code(code: u16) -> Option<Self> {
        [
            Self::Cards,
            Self::Keys,
            Self::Users,
            Self::OneTimeKeys,
            Self::ToDevice,
            Self::Room,
            Self::Media,
            Self::Receipts,
            Self::Want,
            Self::Claims,
        ]
        .into_iter()
        .find(|kind| kind.code() == code)
    }

    /// The code in manifests.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// Whether a recipient that does not know this kind must refuse the bundle. Receipts and wishes can be missed.
    pub fn is_critical(self) -> bool {
        !matches!(self, Self::Receipts | Self::Want)
    }

    /// Bytes that the body of one record may have.
    pub fn record_bytes_max(self) -> usize {
        // What CBOR adds to the largest member: tags, lengths, identifiers of 255 bytes.
        const FRAME: usize = 2 * 1024;
        match self {
            Self::Cards => CARD_BYTES_MAX + FRAME,
            Self::Keys => KEY_DOCUMENT_BYTES_MAX + FRAME,
            Self::ToDevice => TO_DEVICE_BYTES_MAX + FRAME,
            Self::Media => MEDIA_PART_BYTES_MAX + FRAME,
            Self::Users | Self::OneTimeKeys | Self::Room => RECORD_BYTES_MAX,
            Self::Receipts | Self::Want | Self::Claims => FRAME,
        }
    }
}

/// One record of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A signed pairing card; see [`Card::renew`](crate::card::Card::renew).
    Card(ByteVec),
    /// A key document.
    Keys(ServerKeys),
    /// A user.
    User(User),
    /// One-time keys of a device.
    OneTimeKeys(Pool),
    /// To-device messages.
    ToDevice(ToDevice),
    /// Something of a room.
    Room(Room),
    /// Something of a media file.
    Media(Media),
    /// A read receipt.
    Receipt(Receipt),
    /// A wish.
    Want(Want),
    /// A one-time key that was given away.
    Claim(OneTimeKeyClaim),
}

/// A key document (Server-Server API, `GET /_matrix/key/v2/server`).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServerKeys {
    /// The server.
    #[cbor(n(0), with = "cbor::id")]
    pub server_name: OwnedServerName,
    /// The document as it was signed.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub json: Vec<u8>,
}

/// Everything that is released about a user. It replaces what was known: a device that is not there is gone.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct User {
    /// The user, an account of the sender.
    #[cbor(n(0), with = "cbor::id")]
    pub user_id: OwnedUserId,
    /// Grows with every change (Server-Server API, "Device Management").
    #[n(1)]
    pub stream_id: u64,
    /// Whether the account is in use.
    #[n(2)]
    pub status: UserStatus,
    /// The account that the user has in another enclave now.
    #[cbor(n(3), with = "cbor::id_option", has_nil)]
    pub moved_to: Option<OwnedUserId>,
    /// The profile: a JSON object with `displayname`, `avatar_url` and what else is released.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub profile: Option<Vec<u8>>,
    /// The devices.
    #[n(5)]
    pub devices: Vec<Device>,
    /// The cross-signing master key (JSON, as in `/user/keys/query`).
    #[cbor(n(6), with = "minicbor::bytes")]
    pub master_key: Option<Vec<u8>>,
    /// The self-signing key (JSON, as in `/user/keys/query`).
    #[cbor(n(7), with = "minicbor::bytes")]
    pub self_signing_key: Option<Vec<u8>>,
    /// Devices that were deleted since they were last told of.
    #[cbor(n(8), with = "cbor::ids")]
    pub deleted_devices: Vec<OwnedDeviceId>,
}

/// Whether an account is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum UserStatus {
    /// In use.
    #[n(1)]
    Active,
    /// Locked: it may come back.
    #[n(2)]
    Locked,
    /// Deactivated for ever.
    #[n(3)]
    Deactivated,
}

/// A device of a user.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Device {
    /// The device.
    #[cbor(n(0), with = "cbor::id")]
    pub device_id: OwnedDeviceId,
    /// Its signed keys (JSON, as in `device_keys` of `/user/keys/query`); none if it does not encrypt.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub keys: Option<Vec<u8>>,
    /// Its name, if names are released.
    #[n(2)]
    pub display_name: Option<String>,
}

/// One-time keys of a device that only the recipient may hand out.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pool {
    /// The user.
    #[cbor(n(0), with = "cbor::id")]
    pub user_id: OwnedUserId,
    /// The device.
    #[cbor(n(1), with = "cbor::id")]
    pub device_id: OwnedDeviceId,
    /// In the order in which the device uploaded them, which is the order to hand them out in.
    #[n(2)]
    pub keys: Vec<OneTimeKey>,
    /// The key for when no other is left.
    #[n(3)]
    pub fallback: Option<OneTimeKey>,
    /// When the keys are void.
    #[n(4)]
    pub expires: Millis,
}

/// A one-time or fallback key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OneTimeKey {
    /// The place in the queue of one-time keys from sender to recipient: each is received once. 0 for a fallback key.
    #[n(0)]
    pub n: u64,
    /// Algorithm and name, as in `signed_curve25519:AAAAHQ`.
    #[n(1)]
    pub key_id: String,
    /// The signed key (JSON, as in `/user/keys/claim`).
    #[cbor(n(2), with = "minicbor::bytes")]
    pub json: Vec<u8>,
}

/// A one-time key of the recipient's that the sender gave away: it no longer counts, and its pool is filled up again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OneTimeKeyClaim {
    /// The place in the queue from sender to recipient.
    #[n(0)]
    pub n: u64,
    /// The user.
    #[cbor(n(1), with = "cbor::id")]
    pub user_id: OwnedUserId,
    /// The device.
    #[cbor(n(2), with = "cbor::id")]
    pub device_id: OwnedDeviceId,
    /// Algorithm and name.
    #[n(3)]
    pub key_id: String,
}

/// To-device messages of one sender (Server-Server API, `m.direct_to_device`).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ToDevice {
    /// The place in the queue from sender to recipient. Delivered once, in this order.
    #[n(0)]
    pub n: u64,
    /// Who sends.
    #[cbor(n(1), with = "cbor::id")]
    pub sender: OwnedUserId,
    /// The message's own name.
    #[n(2)]
    pub message_id: String,
    /// The type.
    #[n(3)]
    pub event_type: String,
    /// User to device to content: a JSON object.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub messages: Vec<u8>,
}

/// A record of a room's section. The head comes first and once; events come after those that they refer to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Room {
    /// What the section is about.
    #[n(1)]
    Head(#[n(0)] RoomHead),
    /// An event.
    #[n(2)]
    Pdu(#[n(0)] Pdu),
    /// A place where the sender's own history has a hole.
    #[n(3)]
    Gap(#[n(0)] RoomGap),
    /// How the sender judged an event that others refer to.
    #[n(4)]
    Withheld(#[n(0)] Withheld),
}

/// What a room's section is about.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RoomHead {
    /// The room.
    #[cbor(n(0), with = "cbor::id")]
    pub room_id: OwnedRoomId,
    /// Its version.
    #[cbor(n(1), with = "cbor::id")]
    pub version: RoomVersionId,
    /// Whether the section begins with a snapshot: the state, its auth chain and an anchor.
    #[n(2)]
    pub snapshot: bool,
    /// The servers in the room, as the sender knows them.
    #[cbor(n(3), with = "cbor::ids")]
    pub servers: Vec<OwnedServerName>,
}

/// An event as JSON, byte for byte as it was signed. Its id is computed, not told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pdu {
    /// Why it is here.
    #[n(0)]
    pub role: PduRole,
    /// The event.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub json: Vec<u8>,
}

/// Why an event is in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum PduRole {
    /// Snapshot: it authorises the state and is not part of it.
    #[n(0)]
    AuthChain,
    /// Snapshot: part of the state after the anchor.
    #[n(1)]
    State,
    /// Snapshot: where the room is taken over, a message.
    #[n(2)]
    Anchor,
    /// Snapshot: where the room is taken over, and part of the state after itself.
    #[n(3)]
    StateAnchor,
    /// An event to be judged at its place in the graph.
    #[n(4)]
    Timeline,
}

/// Events before one that the sender does not have. The state before it stands in for them; a large one takes several
/// records, whose states are to be joined.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RoomGap {
    /// The event after the hole.
    #[cbor(n(0), with = "cbor::id")]
    pub event_id: OwnedEventId,
    /// Those of its `prev_events` that are missing.
    #[cbor(n(1), with = "cbor::ids")]
    pub missing: Vec<OwnedEventId>,
    /// The state before it.
    #[cbor(n(2), with = "cbor::ids")]
    pub state: Vec<OwnedEventId>,
}

/// How the sender judged an event. The recipient judges again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Withheld {
    /// The event.
    #[cbor(n(0), with = "cbor::id")]
    pub event_id: OwnedEventId,
    /// The judgement.
    #[n(1)]
    pub verdict: Verdict,
}

/// The two judgements that keep an event from users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Verdict {
    /// Against the state before it, or what it cites.
    #[n(1)]
    Rejected,
    /// Against the state of the room when it came.
    #[n(2)]
    SoftFailed,
}

/// A record of the media section: a head, then the file in parts.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Media {
    /// What the next parts are.
    #[n(1)]
    Head(#[n(0)] MediaHead),
    /// The next bytes of the file, 1 MiB at most.
    #[n(2)]
    Part(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
}

/// A media file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MediaHead {
    /// Where it is kept.
    #[cbor(n(0), with = "cbor::id")]
    pub uri: OwnedMxcUri,
    /// The hash of its bytes.
    #[n(1)]
    pub sha256: Sha256,
    /// Its length.
    #[n(2)]
    pub bytes: u64,
    /// What the uploader called it. A claim.
    #[n(3)]
    pub content_type: Option<String>,
    /// The name of the file. A claim, and never one of a file here.
    #[n(4)]
    pub filename: Option<String>,
}

/// The latest public read receipt of a user in a room or thread.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Receipt {
    /// The room.
    #[cbor(n(0), with = "cbor::id")]
    pub room_id: OwnedRoomId,
    /// The reader, an account of the sender.
    #[cbor(n(1), with = "cbor::id")]
    pub user_id: OwnedUserId,
    /// What was read.
    #[cbor(n(2), with = "cbor::id")]
    pub event_id: OwnedEventId,
    /// The thread: `main` or the id of its first event.
    #[n(3)]
    pub thread_id: Option<String>,
    /// When.
    #[n(4)]
    pub time: Millis,
}

/// Something that the sender would like to have in the next bundle.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Want {
    /// An event.
    #[n(1)]
    Event {
        /// The room.
        #[cbor(n(0), with = "cbor::id")]
        room_id: OwnedRoomId,
        /// The event.
        #[cbor(n(1), with = "cbor::id")]
        event_id: OwnedEventId,
    },
    /// A media file.
    #[n(2)]
    Media(#[cbor(n(0), with = "cbor::id")] OwnedMxcUri),
    /// A user's devices and keys.
    #[n(3)]
    User(#[cbor(n(0), with = "cbor::id")] OwnedUserId),
    /// More one-time keys.
    #[n(4)]
    OneTimeKeys {
        /// The user.
        #[cbor(n(0), with = "cbor::id")]
        user_id: OwnedUserId,
        /// The device.
        #[cbor(n(1), with = "cbor::id")]
        device_id: OwnedDeviceId,
    },
    /// A room from the beginning.
    #[n(5)]
    Room(#[cbor(n(0), with = "cbor::id")] OwnedRoomId),
}

/// Why a record is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Larger than a record of its kind may be.
    #[error("record has {bytes} bytes, one of this kind has at most {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Not what a record of its kind looks like.
    #[error("record is not one of its kind")]
    Malformed(#[source] cbor::Error),
    /// Of another kind than its section.
    #[error("record does not belong into its section")]
    OtherKind,
    /// It breaks a rule that spans the records of a section.
    #[error("record is out of place: {0}")]
    OutOfPlace(&'static str),
}

impl Record {
    /// The kind of section that it belongs into.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Card(_) => Kind::Cards,
            Self::Keys(_) => Kind::Keys,
            Self::User(_) => Kind::Users,
            Self::OneTimeKeys(_) => Kind::OneTimeKeys,
            Self::ToDevice(_) => Kind::ToDevice,
            Self::Room(_) => Kind::Room,
            Self::Media(_) => Kind::Media,
            Self::Receipt(_) => Kind::Receipts,
            Self::Want(_) => Kind::Want,
            Self::Claim(_) => Kind::Claims,
        }
    }

    /// Reads the body of a record.
    pub fn parse(kind: Kind, body: &[u8]) -> Result<Self, RecordError> {
        let max = kind.record_bytes_max();
        if body.len() > max {
            return Err(RecordError::TooLarge { bytes: body.len(), max });
        }
        let record = match kind {
            Kind::Cards => cbor::from_bytes(body).map(Self::Card),
            Kind::Keys => cbor::from_bytes(body).map(Self::Keys),
            Kind::Users => cbor::from_bytes(body).map(Self::User),
            Kind::OneTimeKeys => cbor::from_bytes(body).map(Self::OneTimeKeys),
            Kind::ToDevice => cbor::from_bytes(body).map(Self::ToDevice),
            Kind::Room => cbor::from_bytes(body).map(Self::Room),
            Kind::Media => cbor::from_bytes(body).map(Self::Media),
            Kind::Receipts => cbor::from_bytes(body).map(Self::Receipt),
            Kind::Want => cbor::from_bytes(body).map(Self::Want),
            Kind::Claims => cbor::from_bytes(body).map(Self::Claim),
        };
        record.map_err(RecordError::Malformed)
    }

    /// Appends the body of the record to a buffer.
    pub fn append_to(&self, buffer: &mut Vec<u8>) -> Result<(), RecordError> {
        match self {
            Self::Card(card) => cbor::append(card, buffer),
            Self::Keys(keys) => cbor::append(keys, buffer),
            Self::User(user) => cbor::append(user, buffer),
            Self::OneTimeKeys(pool) => cbor::append(pool, buffer),
            Self::ToDevice(message) => cbor::append(message, buffer),
            Self::Room(record) => cbor::append(record, buffer),
            Self::Media(record) => cbor::append(record, buffer),
            Self::Receipt(receipt) => cbor::append(receipt, buffer),
            Self::Want(want) => cbor::append(want, buffer),
            Self::Claim(claim) => cbor::append(claim, buffer),
        }
        .map_err(RecordError::Malformed)
    }
}
