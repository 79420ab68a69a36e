//! The names under which rooms are found: aliases, and the rooms that the directory shows.

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedUserId, RoomAliasId, RoomId, UserId};
use rusqlite::{OptionalExtension, params};

use crate::{
    error::{Error, Result},
    members::parse_user_id,
    pool::{Read, Write},
    room::{Room, parse_room_id},
};

impl Read<'_> {
    /// The room that an alias names, and who made the alias.
    pub fn alias(&self, alias: &RoomAliasId) -> Result<Option<(OwnedRoomId, OwnedUserId)>> {
        let found = self
            .prepare(
                "SELECT r.room_id, a.creator FROM aliases a JOIN rooms r ON r.nid = a.room
                 WHERE a.alias = ?1",
            )?
            .query_row([alias.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        found
            .map(|(room_id, creator)| Ok((parse_room_id(room_id)?, parse_user_id(creator)?)))
            .transpose()
    }

    /// The aliases of a room.
    pub fn aliases(&self, room: &Room) -> Result<Vec<OwnedRoomAliasId>> {
        let mut statement =
            self.prepare("SELECT alias FROM aliases WHERE room = ?1 ORDER BY alias")?;
        let rows = statement.query_map([room.nid], |row| row.get::<_, String>(0))?;
        rows.map(|row| {
            OwnedRoomAliasId::try_from(row?).map_err(|error| Error::corrupt("aliases", error))
        })
        .collect()
    }

    /// Whether the directory shows a room.
    pub fn is_published(&self, room: &Room) -> Result<bool> {
        Ok(self
            .prepare("SELECT EXISTS (SELECT 1 FROM published_rooms WHERE room = ?1)")?
            .query_row([room.nid], |row| row.get(0))?)
    }

    /// The rooms that the directory shows, those with the most members first.
    pub fn published_rooms(&self) -> Result<Vec<OwnedRoomId>> {
        let mut statement = self.prepare(
            "SELECT r.room_id FROM published_rooms p JOIN rooms r ON r.nid = p.room
             ORDER BY (SELECT count(*) FROM memberships m
                       WHERE m.room = p.room AND m.membership = 'join') DESC, r.room_id",
        )?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| parse_room_id(row?)).collect()
    }
}

impl Write<'_> {
    /// Gives a room an alias; answers `false` if the alias names a room already.
    pub fn insert_alias(
        &mut self,
        alias: &RoomAliasId,
        room_id: &RoomId,
        creator: &UserId,
    ) -> Result<bool> {
        let inserted = self
            .prepare(
                "INSERT INTO aliases (alias, room, creator)
                 SELECT ?1, nid, ?3 FROM rooms WHERE room_id = ?2
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![alias.as_str(), room_id.as_str(), creator.as_str()])?;
        Ok(inserted > 0)
    }

    /// Takes an alias away; answers whether there was one.
    pub fn delete_alias(&mut self, alias: &RoomAliasId) -> Result<bool> {
        Ok(self.prepare("DELETE FROM aliases WHERE alias = ?1")?.execute([alias.as_str()])? > 0)
    }

    /// Lets all aliases of one room name another.
    pub fn move_aliases(&mut self, from: &RoomId, to: &RoomId) -> Result<()> {
        self.prepare(
            "UPDATE aliases SET room = (SELECT nid FROM rooms WHERE room_id = ?2)
             WHERE room = (SELECT nid FROM rooms WHERE room_id = ?1)",
        )?
        .execute([from.as_str(), to.as_str()])?;
        Ok(())
    }

    /// Shows a room in the directory, or no longer.
    pub fn publish(&mut self, room_id: &RoomId, published: bool) -> Result<()> {
        let sql = if published {
            "INSERT INTO published_rooms (room) SELECT nid FROM rooms WHERE room_id = ?1
             ON CONFLICT DO NOTHING"
        } else {
            "DELETE FROM published_rooms
             WHERE room = (SELECT nid FROM rooms WHERE room_id = ?1)"
        };
        self.prepare(sql)?.execute([room_id.as_str()])?;
        Ok(())
    }
}
