//! Rooms: where each stands, who is in it, and the ways in which events become part of it.

use std::collections::{BTreeMap, BTreeSet};

use ring::hmac;
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use rusqlite::{OptionalExtension, Row, params};
use sallyport_core::{
    event::{Pdu, Status},
    room::{
        Change, CurrentState, Draft, SealError, StateId, StateKey, StateMap, StateRef,
        create::Founded, pending_index, snapshot::Takeover,
    },
};

use crate::{
    error::{Error, Result},
    events::{NewEvent, StoredEvent, Transaction},
    pool::{Read, Write},
    states::parse_event_id,
    view::parse_version,
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

/// What came of a decision that was handed to the writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It is part of the room.
    Done(T),
    /// The room has moved since the decision was made: decide again.
    Stale,
}

/// An event that has just become part of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The event.
    pub event_id: OwnedEventId,
    /// Its stream position; `None` if clients never see it.
    pub position: Option<i64>,
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

    /// The current state events of a room.
    pub fn current_state(&self, room: &Room) -> Result<Vec<StoredEvent>> {
        self.current_state_since(room, i64::MIN)
    }

    /// The current state events of a room that became current after a position.
    pub fn current_state_since(&self, room: &Room, since: i64) -> Result<Vec<StoredEvent>> {
        let mut statement =
            self.prepare("SELECT event_id FROM current_state WHERE room = ?1 AND position > ?2")?;
        let ids = statement
            .query_map(params![room.nid, since], |row| row.get::<_, String>(0))?
            .map(|id| parse_event_id(id?))
            .collect::<Result<Vec<_>>>()?;
        self.events(ids)
    }

    /// One current state event of a room.
    pub fn state_event(
        &self,
        room: &Room,
        kind: &StateEventType,
        state_key: &str,
    ) -> Result<Option<StoredEvent>> {
        let found = self
            .prepare(
                "SELECT event_id FROM current_state
                 WHERE room = ?1 AND kind = ?2 AND state_key = ?3",
            )?
            .query_row(params![room.nid, kind.to_string(), state_key], |row| row.get(0))
            .optional()?
            .map(parse_event_id)
            .transpose()?;
        found.map_or(Ok(None), |event_id| self.event(&event_id))
    }

    /// The events of these ids that are here, in this order.
    pub fn events(&self, ids: impl IntoIterator<Item = OwnedEventId>) -> Result<Vec<StoredEvent>> {
        ids.into_iter().filter_map(|event_id| self.event(&event_id).transpose()).collect()
    }

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
    pub fn servers_in_room(&self, room: &Room) -> Result<BTreeSet<ruma::OwnedServerName>> {
        let mut statement = self.prepare(
            "SELECT user_id FROM memberships WHERE room = ?1 AND membership IN ('join', 'invite')",
        )?;
        let rows = statement.query_map([room.nid], |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(parse_user_id(row?)?.server_name().to_owned())).collect()
    }
}

impl Write<'_> {
    /// Stores a room that was just founded. Its first events are local.
    pub fn found_room(&mut self, founded: &Founded, mac: &hmac::Key) -> Result<Vec<Placed>> {
        let nid = self.insert_room(&founded.room_id, &founded.version)?;
        let mut state = self.store_copy(nid, &StateMap::new())?;
        let mut chain = RoomChain::default();
        let mut placed = Vec::with_capacity(founded.events.len());
        let mut exposed = false;
        for pdu in &founded.events {
            let position = self.next_position();
            let before = state;
            if let Some(key) = state_key(pdu) {
                let event_id = pdu.event_id().to_owned();
                state = self.store_delta(nid, before, [(&key, Some(&event_id))].into_iter())?;
                exposed |= self.set_current(nid, &key, &event_id, pdu, position)?;
            }
            chain.advance(mac, pdu.event_id());
            self.insert_event(
                nid,
                &NewEvent {
                    pdu,
                    position: Some(position),
                    status: Status::Accepted,
                    gutted: false,
                    local: true,
                    before: Some(before),
                    after: Some(state),
                    transaction: None,
                },
            )?;
            placed.push(Placed { event_id: pdu.event_id().to_owned(), position: Some(position) });
        }
        if let (Some(last), Some(newest)) = (founded.events.last(), placed.last()) {
            self.update_room(
                nid,
                &RoomUpdate {
                    state,
                    extremities: &[last.event_id().to_owned()],
                    depth: last.depth(),
                    newest: newest.position.unwrap_or_default(),
                },
            )?;
        }
        self.set_mac(nid, &chain)?;
        self.after_change(nid, &founded.room_id, exposed)?;
        Ok(placed)
    }

    /// Seals a local draft onto the room's forward extremities and makes it part of the room.
    ///
    /// Answers [`Outcome::Stale`] if the room's state is no longer the one that the draft was authorised against.
    pub fn append(
        &mut self,
        draft: Draft,
        transaction: Option<Transaction<'_>>,
        mac: &hmac::Key,
    ) -> Result<Outcome<std::result::Result<Placed, SealError>>> {
        let Some(room) = self.room(draft.room_id())? else { return Ok(Outcome::Stale) };
        if room.state != draft.based_on() {
            return Ok(Outcome::Stale);
        }
        let key = draft.state_key().map(|(kind, key)| (kind, key.to_owned()));
        let depth = room.depth.saturating_add(1);
        let prev = room.extremities.get(..sallyport_core::limits::PREV_EVENTS_MAX);
        let prev = prev.unwrap_or(&room.extremities);
        let pdu = match draft.seal(prev, depth) {
            Ok(pdu) => pdu,
            Err(error) => return Ok(Outcome::Done(Err(error))),
        };
        let event_id = pdu.event_id().to_owned();
        // What is beyond the limit stays an extremity for the next event.
        let mut extremities = room.extremities.get(prev.len()..).unwrap_or_default().to_vec();
        extremities.push(event_id.clone());
        let position = self.next_position();
        let (mut state, mut exposed) = (room.state, false);
        if let Some(key) = &key {
            state = self.store_delta(room.nid, room.state, [(key, Some(&event_id))].into_iter())?;
            exposed = self.set_current(room.nid, key, &event_id, &pdu, position)?;
        }
        self.insert_event(
            room.nid,
            &NewEvent {
                pdu: &pdu,
                position: Some(position),
                status: Status::Accepted,
                gutted: false,
                local: true,
                before: Some(room.state),
                after: Some(state),
                transaction,
            },
        )?;
        let update = RoomUpdate { state, extremities: &extremities, depth, newest: position };
        self.update_room(room.nid, &update)?;
        let mut chain = self.mac_chain(room.nid)?;
        chain.advance(mac, &event_id);
        self.set_mac(room.nid, &chain)?;
        self.after_change(room.nid, &room.room_id, room.exposed || exposed)?;
        Ok(Outcome::Done(Ok(Placed { event_id, position: Some(position) })))
    }

    /// Applies a redaction that a local user just sent, which [`sallyport_core::room::may_redact`] allows.
    pub fn apply_redaction(
        &mut self,
        room: &Room,
        target: &EventId,
        redaction: &EventId,
    ) -> Result<()> {
        let Some(rules) = sallyport_core::room::rules(&room.version) else { return Ok(()) };
        self.redact(&room.room_id, target, redaction, &rules)
    }

    /// Stores decisions about events from elsewhere, made one on top of the other over a
    /// [`sallyport_core::room::Overlay`].
    ///
    /// Answers [`Outcome::Stale`] if the room has moved since they were made.
    pub fn apply(&mut self, room_id: &RoomId, changes: &[Change]) -> Result<Outcome<Vec<Placed>>> {
        let Some(mut room) = self.room(room_id)? else { return Ok(Outcome::Stale) };
        let Some(rules) = sallyport_core::room::rules(&room.version) else {
            return Ok(Outcome::Stale);
        };
        let based_on = changes.first().map(|change| &change.based_on);
        if based_on
            .is_none_or(|head| room.state != head.state || room.extremities != head.extremities)
        {
            return Ok(Outcome::Stale);
        }
        let mut pending = Vec::new();
        let mut placed = Vec::with_capacity(changes.len());
        for change in changes {
            placed.push(self.apply_one(&mut room, change, &mut pending)?);
            for (target, redaction) in &change.redactions {
                self.redact(room_id, target, redaction, &rules)?;
            }
        }
        self.update_room(
            room.nid,
            &RoomUpdate {
                state: room.state,
                extremities: &room.extremities,
                depth: room.depth,
                newest: room.newest,
            },
        )?;
        self.after_change(room.nid, room_id, room.exposed)?;
        Ok(Outcome::Done(placed))
    }

    fn apply_one(
        &mut self,
        room: &mut Room,
        change: &Change,
        pending: &mut Vec<StateId>,
    ) -> Result<Placed> {
        let pdu = change.event.pdu();
        let event_id = pdu.event_id().to_owned();
        let before = self.store_pending(room.nid, &change.state_before, pending)?;
        let key = state_key(pdu).filter(|_| change.sets_state);
        let after = match &key {
            Some(key) => {
                let entry = [(key, Some(&event_id))].into_iter();
                let after = self.store_delta(room.nid, before, entry)?;
                pending.push(after);
                after
            }
            None => before,
        };
        let position = (change.status == Status::Accepted).then(|| self.next_position());
        self.place(room.nid, change, before, after, position)?;
        let state = match &change.current {
            CurrentState::Unchanged => room.state,
            CurrentState::AfterEvent => after,
            CurrentState::Resolved(state) => self.store_pending(room.nid, state, pending)?,
        };
        if let Some(position) = position {
            room.exposed |= self.move_current(room, state, key.as_ref(), pdu, position)?;
            room.state = state;
            room.extremities.clone_from(&change.extremities);
            room.depth = room.depth.max(pdu.depth());
            room.newest = position;
        }
        Ok(Placed { event_id, position })
    }

    /// Stores a state whose parent may itself have been stored a moment ago.
    fn store_pending(
        &mut self,
        room: i64,
        state: &StateRef,
        pending: &mut Vec<StateId>,
    ) -> Result<StateId> {
        let stored = |id: StateId, pending: &[StateId]| match pending_index(id) {
            None => Ok(id),
            Some(index) => pending.get(index).copied().ok_or_else(|| {
                Error::corrupt("states", "a decision names a state that is not there")
            }),
        };
        match state {
            StateRef::Stored(id) => stored(*id, pending),
            StateRef::Changed { parent, set, removed } => {
                let parent = stored(*parent, pending)?;
                let state =
                    StateRef::Changed { parent, set: set.clone(), removed: removed.clone() };
                let id = self.store_state(room, &state)?;
                pending.push(id);
                Ok(id)
            }
        }
    }

    /// Takes a room over from a verified snapshot. A room that is here already stays as it is.
    pub fn take_over(&mut self, takeover: &Takeover) -> Result<Outcome<Placed>> {
        if self.room(&takeover.room_id)?.is_some() {
            return Ok(Outcome::Stale);
        }
        let nid = self.insert_room(&takeover.room_id, &takeover.version)?;
        for (event, gutted) in &takeover.outliers {
            let row = self.insert_event(
                nid,
                &NewEvent {
                    pdu: event.pdu(),
                    position: None,
                    status: Status::Accepted,
                    gutted: *gutted,
                    local: false,
                    before: None,
                    after: None,
                    transaction: None,
                },
            )?;
            self.insert_signatures(row, event.signatures())?;
        }
        let state = self.store_copy(nid, &takeover.state)?;
        let (anchor, gutted) = &takeover.anchor;
        let position = self.next_position();
        let row = self.insert_event(
            nid,
            &NewEvent {
                pdu: anchor.pdu(),
                position: Some(position),
                status: Status::Accepted,
                gutted: *gutted,
                local: false,
                before: Some(state),
                after: Some(state),
                transaction: None,
            },
        )?;
        self.insert_signatures(row, anchor.signatures())?;
        for (key, event_id) in &takeover.state {
            if let Some(event) = self.event(event_id)? {
                self.set_current(nid, key, event_id, &event.pdu, position)?;
            }
        }
        let event_id = anchor.pdu().event_id().to_owned();
        self.update_room(
            nid,
            &RoomUpdate {
                state,
                extremities: std::slice::from_ref(&event_id),
                depth: anchor.pdu().depth(),
                newest: position,
            },
        )?;
        self.after_change(nid, &takeover.room_id, true)?;
        Ok(Outcome::Done(Placed { event_id, position: Some(position) }))
    }

    /// Notes that a user has forgotten a room that they left.
    pub fn forget(&mut self, room: &Room, user_id: &UserId) -> Result<()> {
        self.prepare("UPDATE memberships SET forgotten = 1 WHERE user_id = ?1 AND room = ?2")?
            .execute(params![user_id.as_str(), room.nid])?;
        Ok(())
    }

    fn insert_room(&mut self, room_id: &RoomId, version: &RoomVersionId) -> Result<i64> {
        self.prepare(
            "INSERT INTO rooms (room_id, version, state, extremities, depth, newest)
             VALUES (?1, ?2, 0, '[]', 0, 0)",
        )?
        .execute(params![room_id.as_str(), version.as_str()])?;
        Ok(self.last_insert_rowid())
    }

    fn update_room(&mut self, nid: i64, update: &RoomUpdate<'_>) -> Result<()> {
        let extremities = serde_json::to_string(update.extremities)
            .map_err(|error| Error::corrupt("rooms", error))?;
        self.prepare(
            "UPDATE rooms SET state = ?2, extremities = ?3, depth = ?4, newest = ?5 WHERE nid = ?1",
        )?
        .execute(params![
            nid,
            update.state.0,
            extremities,
            i64::try_from(update.depth).unwrap_or(i64::MAX),
            update.newest
        ])?;
        Ok(())
    }

    fn place(
        &mut self,
        room: i64,
        change: &Change,
        before: StateId,
        after: StateId,
        position: Option<i64>,
    ) -> Result<()> {
        let pdu = change.event.pdu();
        let new = NewEvent {
            pdu,
            position,
            status: change.status,
            gutted: change.gutted,
            local: false,
            before: Some(before),
            after: Some(after),
            transaction: None,
        };
        let nid = match self.event_nid(pdu.event_id())? {
            Some(nid) => {
                self.replace_event(nid, &new)?;
                if let Some(position) = position {
                    self.insert_relation(room, pdu, position)?;
                }
                nid
            }
            None => self.insert_event(room, &new)?,
        };
        self.insert_signatures(nid, change.event.signatures())
    }

    /// Brings `current_state` to a new current state; answers whether a user of another server now has a place in it.
    fn move_current(
        &mut self,
        room: &Room,
        state: StateId,
        key: Option<&StateKey>,
        pdu: &Pdu,
        position: i64,
    ) -> Result<bool> {
        if state == room.state {
            return Ok(false);
        }
        // The usual case: one state event further along a line.
        if let Some(key) = key
            && self.is_child(state, room.state)?
        {
            return self.set_current(room.nid, key, pdu.event_id(), pdu, position);
        }
        let (old, new) = (self.state_map(room.state)?, self.state_map(state)?);
        let set = new
            .iter()
            .filter(|(key, id)| old.get(*key) != Some(*id))
            .map(|(key, id)| (key.clone(), id.clone()))
            .collect();
        let removed = old.keys().filter(|key| !new.contains_key(*key)).cloned().collect();
        self.change_current(room.nid, &set, &removed, position)
    }

    fn is_child(&self, state: StateId, parent: StateId) -> Result<bool> {
        let found: Option<i64> = self
            .prepare("SELECT parent FROM states WHERE nid = ?1")?
            .query_row([state.0], |row| row.get(0))?;
        Ok(found == Some(parent.0))
    }

    fn change_current(
        &mut self,
        room: i64,
        set: &BTreeMap<StateKey, OwnedEventId>,
        removed: &BTreeSet<StateKey>,
        position: i64,
    ) -> Result<bool> {
        let mut exposed = false;
        for (key, event_id) in set {
            if let Some(event) = self.event(event_id)? {
                exposed |= self.set_current(room, key, event_id, &event.pdu, position)?;
            }
        }
        for (kind, state_key) in removed {
            self.prepare(
                "DELETE FROM current_state WHERE room = ?1 AND kind = ?2 AND state_key = ?3",
            )?
            .execute(params![room, kind.to_string(), state_key])?;
            if *kind == StateEventType::RoomMember {
                // State resolution took the member event away: to clients the user has left.
                self.prepare(
                    "UPDATE memberships SET membership = 'leave', position = ?3
                     WHERE user_id = ?1 AND room = ?2",
                )?
                .execute(params![state_key, room, position])?;
                self.touch_member(state_key);
            }
        }
        Ok(exposed)
    }

    /// Makes an event current; answers whether it gives a user of another server a place.
    fn set_current(
        &mut self,
        room: i64,
        (kind, state_key): &StateKey,
        event_id: &EventId,
        pdu: &Pdu,
        position: i64,
    ) -> Result<bool> {
        self.prepare(
            "INSERT INTO current_state (room, kind, state_key, event_id, position)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (room, kind, state_key)
             DO UPDATE SET event_id = excluded.event_id, position = excluded.position",
        )?
        .execute(params![
            room,
            kind.to_string(),
            state_key,
            event_id.as_str(),
            position
        ])?;
        if *kind != StateEventType::RoomMember {
            return Ok(false);
        }
        let membership =
            pdu.content_field::<MembershipState>("membership").unwrap_or(MembershipState::Leave);
        self.prepare(
            "INSERT INTO memberships (user_id, room, membership, event_id, position)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (user_id, room) DO UPDATE SET membership = excluded.membership,
                 event_id = excluded.event_id, position = excluded.position, forgotten = 0",
        )?
        .execute(params![
            state_key,
            room,
            membership.as_str(),
            event_id.as_str(),
            position
        ])?;
        self.touch_member(state_key);
        Ok(<&UserId>::try_from(state_key.as_str())
            .is_ok_and(|user| user.server_name() != self.server_name()))
    }

    fn touch_member(&mut self, state_key: &str) {
        if let Ok(user_id) = <&UserId>::try_from(state_key) {
            self.touch_user(user_id);
        }
    }

    fn after_change(&mut self, nid: i64, room_id: &RoomId, exposed: bool) -> Result<()> {
        self.touch_room(room_id);
        if exposed {
            self.prepare("UPDATE rooms SET exposed = 1 WHERE nid = ?1 AND exposed = 0")?
                .execute([nid])?;
            self.touch_unsigned(room_id);
        }
        Ok(())
    }

    fn mac_chain(&self, nid: i64) -> Result<RoomChain> {
        Ok(RoomChain {
            mac: self
                .prepare("SELECT mac FROM rooms WHERE nid = ?1")?
                .query_row([nid], |row| row.get(0))?,
        })
    }

    fn set_mac(&mut self, nid: i64, chain: &RoomChain) -> Result<()> {
        self.prepare("UPDATE rooms SET mac = ?2 WHERE nid = ?1")?
            .execute(params![nid, chain.mac])?;
        Ok(())
    }
}

/// HMAC chain over the ids of a room's local events: the signer signs only what was accepted here.
#[derive(Default)]
pub(crate) struct RoomChain {
    pub(crate) mac: Vec<u8>,
}

impl RoomChain {
    pub(crate) fn advance(&mut self, key: &hmac::Key, event_id: &EventId) {
        let mut context = hmac::Context::with_key(key);
        context.update(&self.mac);
        context.update(event_id.as_bytes());
        self.mac = context.sign().as_ref().to_vec();
    }
}

struct RoomUpdate<'a> {
    state: StateId,
    extremities: &'a [OwnedEventId],
    depth: u64,
    newest: i64,
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

pub(crate) fn parse_user_id(text: String) -> Result<OwnedUserId> {
    OwnedUserId::try_from(text).map_err(|error| Error::corrupt("memberships", error))
}

fn state_key(pdu: &Pdu) -> Option<StateKey> {
    let key = pdu.state_key()?;
    Some((StateEventType::from(pdu.kind().to_string()), key.to_owned()))
}
