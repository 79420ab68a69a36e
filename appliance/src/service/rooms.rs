//! Rooms: what local members do in them and what they may see of them.
//!
//! A change is drafted on a snapshot of the database and handed to the writer, which seals it onto
//! the room's newest events. If the room's state has moved in between, it is drafted again.

pub mod access;
pub mod create;
pub mod directory;
pub mod format;
pub mod membership;
pub mod merge;
pub mod receipts;
pub mod relations;
pub mod search;
pub mod send;
pub mod state;
pub mod succession;
pub mod summary;
pub mod timeline;
pub mod typing;
pub mod upgrade;

use ruma::{OwnedUserId, RoomId, RoomVersionId, UserId, events::room::member::MembershipState};
use sallyport_core::room::{Refusal, SealError, create::CreateError};
use sallyport_store::{Read, Room};

pub use self::send::{Wish, send};

/// Why something about a room was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The box does not have the room, or the user may not know of it.
    #[error("you are not in this room")]
    NotInRoom,
    /// The user may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The rules of the room, or of the enclaves that share it, forbid it.
    #[error(transparent)]
    Refused(Refusal),
    /// What was asked for does not exist, or the user may not see it.
    #[error("{0}")]
    NotFound(&'static str),
    /// A parameter does not make sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// What was given is not what the endpoint takes.
    #[error("{0}")]
    BadJson(String),
    /// An alias that does not name this room.
    #[error("the alias {0} does not name this room")]
    BadAlias(ruma::OwnedRoomAliasId),
    /// The alias names another room.
    #[error("this alias is taken")]
    AliasTaken,
    /// Users of a server that this box is not paired with.
    #[error("{0} is on a server that this one is not paired with")]
    NotAPeer(OwnedUserId),
    /// A room version that is not served here.
    #[error("room version {0} is not supported by this server")]
    UnsupportedVersion(RoomVersionId),
    /// The first events of a new room are against its rules.
    #[error("the room could not be created: {0}")]
    NotFounded(CreateError),
    /// The event is too large or cannot be hashed.
    #[error(transparent)]
    Seal(SealError),
    /// The sender has put the same annotation on the event before.
    #[error("you have said the same of this event before")]
    DuplicateAnnotation,
    /// The room's state moved again and again while the event was drafted.
    #[error("the room changes too fast")]
    Busy,
    /// The peers cannot be read.
    #[error("the list of peers cannot be read")]
    Peers(#[from] super::peers::Error),
    /// The operating system gave no random bytes.
    #[error("no randomness is available")]
    NoRandomness(#[source] crate::app::Interrupted),
    /// The database failed.
    #[error("the room could not be read or written")]
    Store(#[from] sallyport_store::Error),
}

/// A room and a user's place in it, if they are joined to it.
pub(crate) fn joined_room(
    read: &Read<'_>,
    room_id: &RoomId,
    user_id: &UserId,
) -> Result<Room, Error> {
    let room = read.room(room_id)?.ok_or(Error::NotInRoom)?;
    match read.membership(&room, user_id)? {
        Some(place) if place.membership == MembershipState::Join => Ok(room),
        _ => Err(Error::NotInRoom),
    }
}
