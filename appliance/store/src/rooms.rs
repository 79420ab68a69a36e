//! Rooms: where each stands, who is in it, and the ways in which events become part of it.

use ring::hmac;
use ruma::{EventId, OwnedEventId, RoomId, RoomVersionId, events::StateEventType};
use rusqlite::params;
use sallyport_core::{
    event::{Pdu, Status},
    room::{
        Change, CurrentState, Draft, SealError, StateId, StateKey, StateMap, StateRef,
        create::Founded, pending_index, snapshot::Takeover,
    },
    time::Millis,
};

use crate::{
    error::{Error, Result},
    events::{NewEvent, StoredEvent, Transaction},
    pool::{Read, Write},
    room::Room,
    value::to_sql,
};

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

impl Read<'_> {
    /// The events of these ids that are here, in this order.
    pub fn events(&self, ids: impl IntoIterator<Item = OwnedEventId>) -> Result<Vec<StoredEvent>> {
        ids.into_iter().filter_map(|event_id| self.event(&event_id).transpose()).collect()
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
        self.set_mac(nid, &chain, founded.events.len())?;
        let time = founded.events.last().map(|pdu| pdu.origin_server_ts());
        self.after_change(nid, &founded.room_id, exposed, time)?;
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
        self.set_mac(room.nid, &chain, 1)?;
        let time = Some(pdu.origin_server_ts());
        self.after_change(room.nid, &room.room_id, room.exposed || exposed, time)?;
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
        let time = changes.last().map(|change| change.event.pdu().origin_server_ts());
        self.after_change(room.nid, room_id, room.exposed, time)?;
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
        let time = Some(anchor.pdu().origin_server_ts());
        self.after_change(nid, &takeover.room_id, true, time)?;
        Ok(Outcome::Done(Placed { event_id, position: Some(position) }))
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
                if let (Some(kept), Some(position)) = (self.replace_event(nid, &new)?, position) {
                    self.insert_relation(room, pdu, kept)?;
                    self.tell_again(room, pdu.event_id(), position)?;
                }
                nid
            }
            None => self.insert_event(room, &new)?,
        };
        self.insert_signatures(nid, change.event.signatures())
    }

    /// `time` is that of the newest event: from then on what has no signature waits for it.
    fn after_change(
        &mut self,
        nid: i64,
        room_id: &RoomId,
        exposed: bool,
        time: Option<Millis>,
    ) -> Result<()> {
        self.touch_room(room_id);
        if exposed {
            self.prepare("UPDATE rooms SET exposed = 1 WHERE nid = ?1 AND exposed = 0")?
                .execute([nid])?;
            self.prepare(
                "UPDATE rooms SET unsigned_since = ?2
                 WHERE nid = ?1 AND unsigned > 0 AND unsigned_since IS NULL",
            )?
            .execute(params![nid, to_sql(time.unwrap_or_default())])?;
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

    /// `events` is how many local events the chain has grown by.
    fn set_mac(&mut self, nid: i64, chain: &RoomChain, events: usize) -> Result<()> {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        self.prepare("UPDATE rooms SET mac = ?2, unsigned = unsigned + ?3 WHERE nid = ?1")?
            .execute(params![nid, chain.mac, events])?;
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

fn state_key(pdu: &Pdu) -> Option<StateKey> {
    let key = pdu.state_key()?;
    Some((StateEventType::from(pdu.kind().to_string()), key.to_owned()))
}
