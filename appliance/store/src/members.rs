//! Who is in which room: the current member events, by user and by room.

use std::collections::BTreeSet;

use ruma::{
    OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, UserId,
    events::room::member::MembershipState,
};
use rusqlite::{OptionalExtension, Row, params};

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    room::{Room, parse_room_id},
    states::parse_event_id,
};

/// A user's place in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The user.
    pub user_id: OwnedUserId,
    /// What they are there.
    pub membership: MembershipState,
    /// The member event.
    pub event_id: OwnedEventId,
    /// Since which stream position.
    pub position: i64,
    /// Whether the user has forgotten the room.
    pub forgotten: bool,
}

impl Read<'_> {
    /// A user's place in a room, if they ever had one.
    pub fn membership(&self, room: &Room, user_id: &UserId) -> Result<Option<Membership>> {
        self.prepare(&format!("{MEMBERSHIPS} WHERE m.user_id = ?1 AND m.room = ?2"))?
            .query_row(params![user_id.as_str(), room.nid], |row| Ok(parse_membership(row)))
            .optional()?
            .transpose()
    }

    /// All places of a user.
    pub fn memberships_of(&self, user_id: &UserId) -> Result<Vec<Membership>> {
        let mut statement = self.prepare(&format!("{MEMBERSHIPS} WHERE m.user_id = ?1"))?;
        let rows = statement.query_map([user_id.as_str()], |row| Ok(parse_membership(row)))?;
        rows.map(|row| row?).collect()
    }

    /// The users with this membership in a room, in the order of their ids.
    pub fn members(&self, room: &Room, membership: &MembershipState) -> Result<Vec<Membership>> {
        let mut statement = self.prepare(&format!(
            "{MEMBERSHIPS} WHERE m.room = ?1 AND m.membership = ?2 ORDER BY m.user_id"
        ))?;
        let rows = statement
            .query_map(params![room.nid, membership.as_str()], |row| Ok(parse_membership(row)))?;
        rows.map(|row| row?).collect()
    }

    /// How many users have this membership in a room.
    pub fn member_count(&self, room: &Room, membership: &MembershipState) -> Result<u64> {
        let count: i64 = self
            .prepare("SELECT count(*) FROM memberships WHERE room = ?1 AND membership = ?2")?
            .query_row(params![room.nid, membership.as_str()], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// Rooms with something new after a position in which the user has, or had, a place.
    pub fn rooms_changed_for(&self, user_id: &UserId, since: i64) -> Result<Vec<OwnedRoomId>> {
        let mut statement = self.prepare(
            "SELECT r.room_id FROM memberships m JOIN rooms r ON r.nid = m.room
             WHERE m.user_id = ?1 AND r.newest > ?2",
        )?;
        let rows =
            statement.query_map(params![user_id.as_str(), since], |row| row.get::<_, String>(0))?;
        rows.map(|row| parse_room_id(row?)).collect()
    }

    /// Users that share a joined room with this one, themselves included.
    pub fn users_sharing_rooms(&self, user_id: &UserId) -> Result<BTreeSet<OwnedUserId>> {
        let mut statement = self.prepare(
            "SELECT DISTINCT o.user_id FROM memberships m
             JOIN memberships o ON o.room = m.room AND o.membership = 'join'
             WHERE m.user_id = ?1 AND m.membership = 'join'",
        )?;
        let rows = statement.query_map([user_id.as_str()], |row| row.get::<_, String>(0))?;
        rows.map(|row| parse_user_id(row?)).collect()
    }

    /// Servers with a joined or invited user in a room.
    pub fn servers_in_room(&self, room: &Room) -> Result<BTreeSet<OwnedServerName>> {
        let mut statement = self.prepare(
            "SELECT user_id FROM memberships WHERE room = ?1 AND membership IN ('join', 'invite')",
        )?;
        let rows = statement.query_map([room.nid], |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(parse_user_id(row?)?.server_name().to_owned())).collect()
    }
}

impl Write<'_> {
    /// Notes that a user has forgotten a room that they left.
    pub fn forget(&mut self, room: &Room, user_id: &UserId) -> Result<()> {
        self.prepare("UPDATE memberships SET forgotten = 1 WHERE user_id = ?1 AND room = ?2")?
            .execute(params![user_id.as_str(), room.nid])?;
        Ok(())
    }
}

const MEMBERSHIPS: &str =
    "SELECT r.room_id, m.user_id, m.membership, m.event_id, m.position, m.forgotten
     FROM memberships m JOIN rooms r ON r.nid = m.room";

fn parse_membership(row: &Row<'_>) -> Result<Membership> {
    Ok(Membership {
        room_id: parse_room_id(row.get(0)?)?,
        user_id: parse_user_id(row.get(1)?)?,
        membership: MembershipState::from(row.get::<_, String>(2)?),
        event_id: parse_event_id(row.get(3)?)?,
        position: row.get(4)?,
        forgotten: row.get(5)?,
    })
}

pub(crate) fn parse_user_id(text: String) -> Result<OwnedUserId> {
    OwnedUserId::try_from(text).map_err(|error| Error::corrupt("memberships", error))
}
