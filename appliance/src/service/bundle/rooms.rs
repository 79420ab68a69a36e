//! Rooms in bundles: snapshots for a peer that does not have the room yet, and the events since.

use std::{fs::File, io::BufWriter};

use ruma::{OwnedEventId, RoomVersionId};
use sallyport_core::{
    bundle::{Kind, Pdu, PduRole, Record, Room, RoomHead, SectionWriter, Writer},
    event::{KeySource, Signed},
    room::{self, Checked, RoomView as _, snapshot},
};
use sallyport_store::{Peer, Read, SharedRoom};

use super::Error;

/// How many events are read at once.
const PAGE: usize = 500;

/// Writes what a peer does not have of a room.
pub(super) fn export(
    read: &Read<'_>,
    peer: &Peer,
    shared: &SharedRoom,
    up_to: i64,
    writer: &mut Writer<BufWriter<File>>,
) -> Result<(), Error> {
    let room = &shared.room;
    let mut after = shared.anchor.as_ref().map_or(peer.acked.position, |(_, position)| *position);
    if shared.anchor.is_none() && room.newest <= after {
        return Ok(());
    }
    let mut section = writer.section(Kind::Room, Some(&room.room_id))?;
    section.push(&Record::Room(Room::Head(RoomHead {
        room_id: room.room_id.clone(),
        version: room.version.clone(),
        snapshot: shared.anchor.is_some(),
        servers: read.servers_in_room(room)?.into_iter().collect(),
    })))?;
    if let Some((anchor, _)) = &shared.anchor {
        snapshot(read, shared, anchor, &mut section)?;
    }
    while let Some(end) = read.page_end(room, after, up_to, PAGE)? {
        for (_, event) in
            read.signed_events(room, after, end, (&peer.server, peer.returns_to), PAGE)?
        {
            push(&mut section, PduRole::Timeline, &event)?;
        }
        after = end;
    }
    Ok(section.finish()?)
}

/// Writes the state after the anchor, what authorises it, and the anchor.
fn snapshot(
    read: &Read<'_>,
    shared: &SharedRoom,
    anchor: &OwnedEventId,
    section: &mut SectionWriter<'_, BufWriter<File>>,
) -> Result<(), Error> {
    let view = read.view(&shared.room.room_id)?;
    let state = view
        .event(anchor)?
        .and_then(|known| known.state_after)
        .ok_or_else(|| Error::Content(format!("{anchor} has no place in its room")))?;
    let state = read.state_map(state)?;
    let chain = room::auth_chain(&view, state.values().cloned())?;
    let is_state = |id: &OwnedEventId| state.values().any(|other| other == id);
    let anchor_is_state = is_state(anchor);
    for event_id in chain.iter().filter(|id| !is_state(id) && *id != anchor) {
        push(section, PduRole::AuthChain, &signed(read, event_id)?)?;
    }
    for event_id in state.values().filter(|id| *id != anchor) {
        push(section, PduRole::State, &signed(read, event_id)?)?;
    }
    let role = if anchor_is_state { PduRole::StateAnchor } else { PduRole::Anchor };
    push(section, role, &signed(read, anchor)?)
}

fn signed(read: &Read<'_>, event_id: &OwnedEventId) -> Result<Signed, Error> {
    read.signed(event_id)?
        .ok_or_else(|| Error::Content(format!("{event_id} has no signature yet: try again")))
}

fn push(
    section: &mut SectionWriter<'_, BufWriter<File>>,
    role: PduRole,
    event: &Signed,
) -> Result<(), Error> {
    let json = event
        .to_wire()
        .map_err(|error| Error::Content(format!("{}: {error}", event.pdu().event_id())))?;
    Ok(section.push(&Record::Room(Room::Pdu(Pdu { role, json: json.into_bytes() })))?)
}

/// A room that comes with a snapshot, as far as it was read.
pub(super) struct Incoming {
    version: RoomVersionId,
    state: Vec<Checked>,
    auth_chain: Vec<Checked>,
    anchor: Option<Checked>,
}

impl Incoming {
    pub(super) fn new(version: RoomVersionId) -> Self {
        Self { version, state: Vec::new(), auth_chain: Vec::new(), anchor: None }
    }

    /// Takes one event of the snapshot in.
    pub(super) fn push(&mut self, pdu: &Pdu, keys: &impl KeySource) -> Result<(), Error> {
        let rules = room::rules(&self.version).ok_or_else(|| {
            Error::Content(format!("room version {} is not served", self.version))
        })?;
        let unsound = |what: String| Error::Content(format!("a room's snapshot: {what}"));
        let checked = room::parse(&pdu.json, &rules)
            .map_err(|error| unsound(error.to_string()))?
            .verify(keys, &rules)
            .map_err(|verdict| unsound(format!("an event is not accepted: {verdict:?}")))?;
        match pdu.role {
            PduRole::AuthChain => self.auth_chain.push(checked),
            PduRole::State => self.state.push(checked),
            PduRole::Anchor => self.anchor = Some(checked),
            PduRole::StateAnchor => {
                self.state.push(checked.clone());
                self.anchor = Some(checked);
            }
            PduRole::Timeline => {
                return Err(unsound("an event of the timeline in it".to_owned()));
            }
        }
        Ok(())
    }

    /// Verifies the whole snapshot.
    pub(super) fn finish(self) -> Result<snapshot::Takeover, Error> {
        let anchor = self
            .anchor
            .ok_or_else(|| Error::Content("a room's snapshot has no anchor".to_owned()))?;
        snapshot::found(snapshot::Snapshot {
            version: self.version,
            state: self.state,
            auth_chain: self.auth_chain,
            anchor,
        })
        .map_err(|error| Error::Content(format!("a room's snapshot: {error}")))
    }
}
