//! Where a room stands: its row.

use ruma::{OwnedEventId, OwnedRoomId, RoomId, RoomVersionId};
use rusqlite::{OptionalExtension, Row};
use sallyport_core::room::StateId;

use crate::{
    error::{Error, Result},
    pool::Read,
};

/// Where a room stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Its row.
    pub nid: i64,
    /// Its id.
    pub room_id: OwnedRoomId,
    /// Its version.
    pub version: RoomVersionId,
    /// Its current state.
    pub state: StateId,
    /// Its forward extremities.
    pub extremities: Vec<OwnedEventId>,
    /// The greatest depth among them.
    pub depth: u64,
    /// The position of the newest change that members can see.
    pub newest: i64,
    /// Whether users of other servers are, or have been, members or invited.
    pub exposed: bool,
}

const ROOM_COLUMNS: &str = "nid, room_id, version, state, extremities, depth, newest, exposed";

impl Read<'_> {
    /// Where a room stands; `None` if the box does not have it.
    pub fn room(&self, room_id: &RoomId) -> Result<Option<Room>> {
        self.prepare(&format!("SELECT {ROOM_COLUMNS} FROM rooms WHERE room_id = ?1"))?
            .query_row([room_id.as_str()], |row| Ok(parse_room(row)))
            .optional()?
            .transpose()
    }
}

fn parse_room(row: &Row<'_>) -> Result<Room> {
    let extremities: String = row.get(4)?;
    let depth: i64 = row.get(5)?;
    Ok(Room {
        nid: row.get(0)?,
        room_id: parse_room_id(row.get(1)?)?,
        version: parse_version(&row.get::<_, String>(2)?)?,
        state: StateId(row.get(3)?),
        extremities: serde_json::from_str(&extremities)
            .map_err(|error| Error::corrupt("rooms", error))?,
        depth: u64::try_from(depth).unwrap_or_default(),
        newest: row.get(6)?,
        exposed: row.get(7)?,
    })
}

pub(crate) fn parse_room_id(text: String) -> Result<OwnedRoomId> {
    OwnedRoomId::try_from(text).map_err(|error| Error::corrupt("rooms", error))
}

/// A stored room version.
pub(crate) fn parse_version(text: &str) -> Result<RoomVersionId> {
    RoomVersionId::try_from(text).map_err(|error| Error::corrupt("rooms", error))
}
