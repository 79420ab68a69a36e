//! A new life after a restore from backup: our own, and what becomes of the exchange when a peer begins one.
//!
//! A restore goes back in time, and others remember what was undone. So nothing that was counted is counted again: bundles begin a new sequence under
//! a new incarnation, stream positions leave out more than can have been used, and keys that may have been given away are given up.

use ruma::ServerName;
use rusqlite::params;
use sallyport_core::{incarnation::Incarnation, limits::RESTORE_POSITIONS_SKIPPED, time::Millis};

use crate::{
    error::Result,
    pool::{Read, Write},
    room::parse_room_id,
    value::{to_sql, user_id as parse_user_id},
};

/// Problems of one kind that are told before the rest is only counted.
const FAULTS_TOLD: usize = 20;

impl Read<'_> {
    /// What SQLite finds wrong with the file: pages, indexes and references. Empty if nothing is. It reads everything.
    ///
    /// # Errors
    /// If it cannot be read at all.
    pub fn file_faults(&self) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        let sql = format!("PRAGMA integrity_check({FAULTS_TOLD})");
        let mut statement = self.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let fault: String = row.get(0)?;
            if fault != "ok" {
                faults.push(fault);
            }
        }
        let mut statement = self.prepare("PRAGMA foreign_key_check")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            faults.push(format!("a row of {} refers to nothing", row.get::<_, String>(0)?));
        }
        Ok(faults)
    }

    /// Rooms whose current state is not the one that their last events lead to, or whose last events are not here. Empty if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn room_faults(&self) -> Result<Vec<String>> {
        let mut statement = self.prepare("SELECT room_id FROM rooms ORDER BY nid")?;
        let ids = statement.query_map([], |row| row.get::<_, String>(0))?;
        let ids = ids.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut faults = Vec::new();
        for room_id in ids {
            let room_id = parse_room_id(room_id)?;
            let Some(room) = self.room(&room_id)? else { continue };
            for extremity in &room.extremities {
                let known: bool = self
                    .prepare("SELECT EXISTS (SELECT 1 FROM events WHERE event_id = ?1 AND room = ?2 AND status = 0)")?
                    .query_row(params![extremity.as_str(), room.nid], |row| row.get(0))?;
                if !known {
                    faults.push(format!("{room_id}: its last event {extremity} is not here"));
                }
            }
            let state = self.state_map(room.state)?;
            let mut statement = self
                .prepare("SELECT kind, state_key, event_id FROM current_state WHERE room = ?1")?;
            let mut rows = statement.query([room.nid])?;
            let mut current = 0;
            while let Some(row) = rows.next()? {
                let (kind, key, event): (String, String, String) =
                    (row.get(0)?, row.get(1)?, row.get(2)?);
                current += 1;
                let place = (kind.as_str().into(), key.clone());
                if state.get(&place).is_none_or(|id| id.as_str() != event) {
                    faults.push(format!("{room_id}: {kind} {key:?} is not of its state"));
                }
            }
            if current != state.len() {
                faults.push(format!("{room_id}: {current} of {} parts of its state", state.len()));
            }
        }
        faults.truncate(FAULTS_TOLD);
        Ok(faults)
    }

    /// How many rooms there are.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn room_count(&self) -> Result<u64> {
        let count: i64 =
            self.prepare("SELECT count(*) FROM rooms")?.query_row([], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// Every media file that is referred to, after one in the order of their hashes, at most `limit`: hash and size in bytes.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn media_files(
        &self,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<([u8; 32], u64)>> {
        let mut statement = self.prepare(
            "SELECT sha256, size FROM (
                 SELECT sha256, size FROM media WHERE sha256 IS NOT NULL AND size IS NOT NULL
                 UNION SELECT sha256, size FROM thumbnails)
             WHERE ?1 IS NULL OR sha256 > ?1 ORDER BY sha256 LIMIT ?2",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![after, limit], |row| {
            Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The lives of a peer's database before its restores.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn retired_incarnations(&self, server: &ServerName) -> Result<Vec<Incarnation>> {
        let mut statement =
            self.prepare("SELECT incarnation FROM retired_incarnations WHERE server = ?1")?;
        let rows = statement.query_map([server.as_str()], |row| row.get(0).map(Incarnation))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether this database is in a life after a restore, so that peers have events of ours to give back.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn was_restored(&self) -> Result<bool> {
        Ok(self.meta("restored")?.is_some())
    }

    pub(crate) fn pragma(&self, name: &str) -> Result<i64> {
        Ok(self.prepare(&format!("PRAGMA {name}"))?.query_row([], |row| row.get(0))?)
    }
}

impl Write<'_> {
    /// Begins a new life of the database after it was restored from a backup.
    ///
    /// # Errors
    /// If the database fails; then nothing of it is kept.
    pub fn begin_new_life(&mut self, incarnation: Incarnation, now: Millis) -> Result<()> {
        self.set_meta("incarnation", &incarnation.0)?;
        self.set_meta("restored", &now.0.to_be_bytes())?;
        self.skip_positions(RESTORE_POSITIONS_SKIPPED);
        // Which of them were given away since the backup is not known: none is given away again, and repeated uploads bring none back.
        for sql in [
            "INSERT INTO issued_one_time_keys (user_id, device_id, key_id, n)
             SELECT user_id, device_id, key_id, n FROM one_time_keys WHERE true
             ON CONFLICT (user_id, device_id, key_id) DO NOTHING",
            "DELETE FROM one_time_keys",
            "DELETE FROM received_one_time_keys",
            "DELETE FROM key_claims",
            // A snapshot that the peer has not acknowledged is told again with the first bundle.
            "UPDATE peer_rooms SET bundle = CASE WHEN bundle <=
                 (SELECT acked_seq FROM peers WHERE peers.server = peer_rooms.server) THEN 0 ELSE 1 END",
            "UPDATE peers SET sent_seq = 0, sent_manifest = NULL, acked_seq = 0",
            "DELETE FROM sent_bundles",
        ] {
            self.prepare(sql)?.execute([])?;
        }
        self.renew_device_lists()
    }

    /// A peer begins a new life: what it is told begins anew, and what it said in the life before comes too late from now on.
    ///
    /// # Errors
    /// If the database fails; then nothing of it is kept.
    pub fn note_peer_restored(
        &mut self,
        server: &ServerName,
        before: Incarnation,
        now: Millis,
    ) -> Result<()> {
        self.prepare(
            "INSERT INTO retired_incarnations (server, incarnation, retired) VALUES (?1, ?2, ?3)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![server.as_str(), before.0, to_sql(now)])?;
        self.burn_pools(server)?;
        let position = self.position()?;
        self.prepare(
            "UPDATE peers SET acked_position = 0, acked_time = 0, returns_to = ?2 WHERE server = ?1",
        )?
        .execute(params![server.as_str(), position])?;
        for sql in
            ["DELETE FROM sent_bundles WHERE server = ?1", "DELETE FROM imports WHERE server = ?1"]
        {
            self.prepare(sql)?.execute([server.as_str()])?;
        }
        Ok(())
    }

    /// Device lists never go back: every one is newer now than whatever peers and clients were told.
    fn renew_device_lists(&mut self) -> Result<()> {
        let mut statement = self.prepare("SELECT user_id FROM users")?;
        let users = statement.query_map([], |row| row.get::<_, String>(0))?;
        let users = users.collect::<rusqlite::Result<Vec<_>>>()?;
        for user in users {
            self.note_device_change(&parse_user_id("users", &user)?)?;
        }
        Ok(())
    }
}
