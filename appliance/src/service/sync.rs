//! `/sync`: everything that is new for one device, from one snapshot of the database.
//!
//! [Client-Server API, "Syncing"](https://spec.matrix.org/v1.16/client-server-api/#syncing).
//! It only reads. Who has nothing new waits at [`crate::notify`] and asks again.

mod devices;
pub mod filter;
mod room;
pub mod token;
pub mod unread;

use std::collections::BTreeSet;

use ruma::{
    OwnedRoomId, RoomId, UInt, UserId,
    api::client::{
        filter::FilterDefinition,
        sync::sync_events::v3::{JoinedRoom, Response},
    },
    events::{
        presence::{PresenceEvent, PresenceEventContent},
        room::member::MembershipState,
    },
    presence::PresenceState,
    serde::Raw,
};
use sallyport_core::{incarnation::Incarnation, time::Millis};
use sallyport_store::{Error as StoreError, Membership, Read, Room};
use serde_json::value::{RawValue, to_raw_value};

pub use self::devices::device_list_changes;
use self::{
    devices::Company,
    filter::{allows_global, allows_kind, shows_room},
    room::RoomSync,
    token::{Token, Told},
    unread::Rules,
};
use super::{
    account_data,
    push_rules::PushRuleError,
    rooms::format::{Format, MembershipThen},
    sessions::Identity,
};
use crate::app::App;

/// What a device asks for.
#[derive(Debug, Clone)]
pub struct Query {
    /// The device.
    pub identity: Identity,
    /// Where its last sync ended.
    pub since: Option<Token>,
    /// What it wants to see.
    pub filter: FilterDefinition,
    /// Whether it wants all state of its rooms again.
    pub full_state: bool,
    /// Whether it wants the state after the timeline instead of before it.
    pub state_after: bool,
    /// The present.
    pub now: Millis,
}

/// Why a sync failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device's push rules are damaged.
    #[error("the push rules cannot be read")]
    Rules(#[from] PushRuleError),
    /// The database failed.
    #[error("what is new cannot be read")]
    Store(#[from] StoreError),
}

/// What is new, and up to where that is said.
#[derive(Debug)]
pub struct Answer {
    /// What is new.
    pub response: Response,
    /// The stream position of the snapshot.
    pub position: i64,
    /// How many changes of who types are told.
    pub typing: u64,
}

impl Answer {
    /// Whether there is nothing new, so that a long-poll goes on waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Response { rooms, presence, account_data, to_device, device_lists, .. } =
            &self.response;
        rooms.is_empty()
            && presence.is_empty()
            && account_data.is_empty()
            && to_device.is_empty()
            && device_lists.is_empty()
    }
}

/// Gathers what is new.
///
/// # Errors
/// If the database fails.
pub fn sync(app: &App, query: &Query) -> Result<Answer, Error> {
    // Before the snapshot: what changes in between is told twice rather than not at all.
    let typing = app.typing.counter();
    app.store.read(|read| {
        let position = read.position()?;
        let incarnation = read.incarnation()?;
        // A token of another incarnation counts other positions: the device starts again.
        let since = query
            .since
            .filter(|since| since.is_of(incarnation) && (0..=position).contains(&since.position));
        let mut told = Told { typing, ..Told::default() };
        let mut response = Response::new(String::new());
        let sync = Sync { app, read, query, since, incarnation, position };
        sync.add_rooms(&mut response)?;
        sync.add_account_data(&mut response)?;
        told.to_device = sync.add_messages(&mut response)?;
        told.presence = sync.add_presence(&mut response)?;
        devices::add_key_counts(&mut response, read, &query.identity)?;
        response.next_batch = Token::of_sync(incarnation, position, told).to_string();
        Ok(Answer { response, position, typing })
    })
}

/// The rooms whose news concern a user.
///
/// # Errors
/// If the database fails.
pub fn watched_rooms(app: &App, identity: &Identity) -> Result<BTreeSet<OwnedRoomId>, StoreError> {
    let rooms =
        app.store.read(|read| super::rooms::membership::joined_rooms(read, &identity.user_id))?;
    Ok(rooms.into_iter().collect())
}

/// One sync, on one snapshot.
struct Sync<'a, 'c> {
    app: &'a App,
    read: &'a Read<'c>,
    query: &'a Query,
    since: Option<Token>,
    incarnation: Incarnation,
    position: i64,
}

impl Sync<'_, '_> {
    fn add_rooms(&self, response: &mut Response) -> Result<(), Error> {
        let rules = Rules::of(self.read, &self.query.identity.user_id)?;
        let mut company = Company::default();
        for place in self.places()? {
            let Some(room) = self.read.room(&place.room_id)? else { continue };
            // Also in a room that the filter hides: whoever is met there may be written to elsewhere.
            self.meet(&mut company, &room, &place)?;
            if shows_room(&self.query.filter.room, &place.room_id) {
                self.add_room(response, &room, &place, &rules)?;
            }
        }
        if let Some(since) = &self.since {
            let user_id = &self.query.identity.user_id;
            response.device_lists =
                company.lists(self.read, user_id, since.position, self.position)?;
        }
        Ok(())
    }

    /// Notes whose devices come into sight or go out of it with the news of a room.
    fn meet(
        &self,
        company: &mut Company,
        room: &Room,
        place: &Membership,
    ) -> Result<(), StoreError> {
        let Some(since) = &self.since else { return Ok(()) };
        let was_joined = self.was_joined(room, place, since.position)?;
        match (was_joined, place.membership == MembershipState::Join) {
            (true, true) => company.stayed_in(self.read, room, since.position),
            (false, true) => company.joined(self.read, room),
            (true, false) => company.left(self.read, room),
            (false, false) => Ok(()),
        }
    }

    /// The user's places in rooms that may have news.
    fn places(&self) -> Result<Vec<Membership>, StoreError> {
        let user_id = &self.query.identity.user_id;
        let since = match &self.since {
            Some(since) if !self.query.full_state => since,
            _ => return self.read.memberships_of(user_id),
        };
        let mut changed: BTreeSet<OwnedRoomId> =
            self.read.rooms_changed_for(user_id, since.position)?.into_iter().collect();
        changed.extend(self.app.typing.rooms_changed_since(since.told.unwrap_or_default().typing));
        let mut places = Vec::with_capacity(changed.len());
        for room_id in changed {
            if let Some(room) = self.read.room(&room_id)? {
                places.extend(self.read.membership(&room, user_id)?);
            }
        }
        Ok(places)
    }

    fn add_room(
        &self,
        response: &mut Response,
        room: &Room,
        place: &Membership,
        rules: &Rules,
    ) -> Result<(), Error> {
        let since = self.since.map(|since| since.position);
        let is_news = since.is_none_or(|since| place.position > since);
        let room_id = place.room_id.clone();
        match place.membership {
            MembershipState::Join => {
                let joined = self.joined(room, place, rules)?;
                if since.is_none() || self.query.full_state || !is_quiet(&joined) {
                    response.rooms.join.insert(room_id, joined);
                }
            }
            MembershipState::Invite if is_news && !self.is_ignored(place, rules)? => {
                let invited = self.room_sync(room, since).invited()?;
                response.rooms.invite.insert(room_id, invited);
            }
            MembershipState::Knock if is_news => {
                let knocked = self.room_sync(room, since).knocked()?;
                response.rooms.knock.insert(room_id, knocked);
            }
            MembershipState::Leave | MembershipState::Ban
                if !place.forgotten
                    && is_news
                    && (since.is_some() || self.query.filter.room.include_leave) =>
            {
                let was_joined = match since {
                    Some(since) => self.was_joined(room, place, since)?,
                    None => false,
                };
                let left = self.room_sync(room, since).left(place, was_joined, &rules.ignored)?;
                response.rooms.leave.insert(room_id, left);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether an invite comes from someone whom the user does not want to hear from.
    fn is_ignored(&self, invite: &Membership, rules: &Rules) -> Result<bool, StoreError> {
        let event = self.read.event(&invite.event_id)?;
        Ok(event.is_some_and(|event| rules.ignored.names(event.pdu.sender())))
    }

    fn joined(
        &self,
        room: &Room,
        place: &Membership,
        rules: &Rules,
    ) -> Result<JoinedRoom, StoreError> {
        let since = match &self.since {
            Some(since) if self.was_joined(room, place, since.position)? => Some(since.position),
            _ => None,
        };
        let told = self.since.and_then(|since| since.told).unwrap_or_default();
        self.room_sync(room, since).joined(
            &self.app.typing,
            told.typing,
            &self.app.unread,
            rules,
            self.position,
        )
    }

    fn was_joined(&self, room: &Room, place: &Membership, since: i64) -> Result<bool, StoreError> {
        if place.position <= since {
            return Ok(place.membership == MembershipState::Join);
        }
        let then = self.read.membership_at(room, &place.user_id, since)?;
        Ok(then == Some(MembershipState::Join))
    }

    fn room_sync<'s>(&'s self, room: &'s Room, since: Option<i64>) -> RoomSync<'s, 's> {
        let Identity { user_id, device_id } = &self.query.identity;
        RoomSync {
            read: self.read,
            room,
            format: Format {
                read: self.read,
                room,
                user_id,
                device_id,
                now: self.query.now,
                names_room: false,
                membership: MembershipThen::default(),
            },
            user_id,
            filter: &self.query.filter,
            incarnation: self.incarnation,
            since,
            full_state: self.query.full_state,
            state_after: self.query.state_after,
        }
    }

    fn add_account_data(&self, response: &mut Response) -> Result<(), Error> {
        let user_id = &self.query.identity.user_id;
        let since = self.since.map_or(0, |since| since.position);
        for data in account_data::changes(self.read, user_id, since, self.position)? {
            let event = AccountDataEvent { kind: &data.kind, content: parse(&data.content)? };
            match &data.room_id {
                None if allows_global(&self.query.filter.account_data, &data.kind, None) => {
                    response.account_data.events.push(raw(&event)?);
                }
                Some(room_id) if self.shows_account_data(room_id, &data.kind) => {
                    let rooms = &mut response.rooms;
                    if let Some(left) = rooms.leave.get_mut(room_id) {
                        left.account_data.events.push(raw(&event)?);
                    } else if self.is_joined(room_id)? {
                        let joined = rooms.join.entry(room_id.clone()).or_default();
                        joined.account_data.events.push(raw(&event)?);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn shows_account_data(&self, room_id: &RoomId, kind: &str) -> bool {
        let filter = &self.query.filter.room;
        shows_room(filter, room_id) && allows_kind(&filter.account_data, room_id, kind)
    }

    fn is_joined(&self, room_id: &RoomId) -> Result<bool, Error> {
        let Some(room) = self.read.room(room_id)? else { return Ok(false) };
        let place = self.read.membership(&room, &self.query.identity.user_id)?;
        Ok(place.is_some_and(|place| place.membership == MembershipState::Join))
    }

    /// Adds messages to the device; answers up to where. Those that it says to have are deleted.
    fn add_messages(&self, response: &mut Response) -> Result<i64, StoreError> {
        let identity = &self.query.identity;
        let from = self.since.and_then(|since| since.told).map_or(0, |told| told.to_device);
        let Identity { user_id, device_id } = identity;
        if from > 0 && !self.read.to_device_messages(user_id, device_id, 0, from, 1)?.is_empty() {
            let (user_id, device_id) = (user_id.clone(), device_id.clone());
            self.app.store.submit(
                move |write| write.delete_to_device_messages(&user_id, &device_id, from),
                // If it fails, the next sync tries again.
                |deleted: Result<(), StoreError>| drop(deleted),
            );
        }
        devices::add_messages(response, self.read, identity, from, self.position)
    }

    /// Adds who came and went among those that the user shares a room with; answers up to which change.
    ///
    /// Nobody is woken for it: a thousand people who come to work would wake a thousand others
    /// each. It goes along with the next answer, at the latest when a long-poll's time is over.
    fn add_presence(&self, response: &mut Response) -> Result<u64, Error> {
        let filter = &self.query.filter.presence;
        let since = self.since.and_then(|since| since.told).map_or(0, |told| told.presence);
        let presences = &self.app.presences;
        let newest = presences.version();
        // A count that is ahead of ours is from before a restart.
        let since = if since > newest { 0 } else { since };
        // Among those whose devices are news are all who came into sight.
        let met: BTreeSet<&UserId> =
            response.device_lists.changed.iter().map(|user_id| &**user_id).collect();
        if newest == since && met.is_empty() {
            return Ok(newest);
        }
        let sharing = self.read.users_sharing_rooms(&self.query.identity.user_id)?;
        let sharing = sharing.iter().map(|user_id| &**user_id);
        for (user_id, presence) in presences.changes(sharing, since, &met) {
            if !allows_global(filter, "m.presence", Some(&user_id)) {
                continue;
            }
            let mut content = PresenceEventContent::new(presence.state.clone());
            content.status_msg = presence.status;
            content.currently_active = Some(presence.state == PresenceState::Online);
            let ago = self.query.now.since(presence.active).as_millis();
            content.last_active_ago = UInt::try_from(u64::try_from(ago).unwrap_or(u64::MAX)).ok();
            let event = PresenceEvent { content, sender: user_id };
            response.presence.events.push(raw(&event)?);
        }
        Ok(newest)
    }
}

#[derive(serde::Serialize)]
struct AccountDataEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    content: &'a RawValue,
}

fn parse(json: &str) -> Result<&RawValue, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::corrupt("account_data", error))
}

/// Writes an event that is made here.
fn raw<T>(event: &impl serde::Serialize) -> Result<Raw<T>, StoreError> {
    let json = to_raw_value(event).map_err(|error| StoreError::corrupt("account_data", error))?;
    Ok(Raw::from_json(json))
}

/// Whether there is nothing to tell of a joined room but how much is unread.
fn is_quiet(joined: &JoinedRoom) -> bool {
    joined.timeline.is_empty()
        && joined.state.is_empty()
        && joined.ephemeral.is_empty()
        && joined.account_data.is_empty()
        && joined.summary.is_empty()
}
