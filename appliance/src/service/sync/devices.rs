//! What a sync says to one device: messages to it, its keys, and whose devices have changed.
//!
//! [Client-Server API, "End-to-end encryption, extensions to /sync"](https://spec.matrix.org/v1.16/client-server-api/#e2e-extensions-to-sync).

use std::collections::BTreeSet;

use ruma::{
    OneTimeKeyAlgorithm, OwnedUserId, UInt, UserId,
    api::client::sync::sync_events::{DeviceLists, v3::Response},
    events::{StateEventType, room::member::MembershipState},
    serde::Raw,
};
use sallyport_core::limits::TO_DEVICE_MESSAGES_MAX;
use sallyport_store::{Error, Read, Room};
use serde_json::value::RawValue;

use crate::service::sessions::Identity;

/// Adds messages to the device that came after `from`; answers up to where.
pub(super) fn add_messages(
    response: &mut Response,
    read: &Read<'_>,
    identity: &Identity,
    from: i64,
    to: i64,
) -> Result<i64, Error> {
    let Identity { user_id, device_id } = identity;
    let messages = read.to_device_messages(user_id, device_id, from, to, TO_DEVICE_MESSAGES_MAX)?;
    let up_to = match messages.last() {
        // The others are in the next answer.
        Some((last, _)) if messages.len() >= TO_DEVICE_MESSAGES_MAX => *last,
        _ => to,
    };
    for (_, json) in messages {
        let json = RawValue::from_string(json)
            .map_err(|error| Error::corrupt("to_device_inbox", error))?;
        response.to_device.events.push(Raw::from_json(json));
    }
    Ok(up_to)
}

/// Adds what the device has on the server of its own keys.
pub(super) fn add_key_counts(
    response: &mut Response,
    read: &Read<'_>,
    identity: &Identity,
) -> Result<(), Error> {
    let Identity { user_id, device_id } = identity;
    response.device_one_time_keys_count = read
        .one_time_key_counts(user_id, device_id)?
        .into_iter()
        .map(|(algorithm, count)| {
            (OneTimeKeyAlgorithm::from(algorithm), UInt::new_saturating(count))
        })
        .collect();
    let unused = read.unused_fallback_types(user_id, device_id)?;
    response.device_unused_fallback_key_types =
        Some(unused.into_iter().map(OneTimeKeyAlgorithm::from).collect());
    Ok(())
}

/// Whose devices a client must ask for again since a point of the stream, and whose it need not follow any more
/// ([`GET /keys/changes`](https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3keyschanges)).
///
/// # Errors
/// If the database fails.
pub fn device_list_changes(
    read: &Read<'_>,
    user_id: &UserId,
    since: i64,
) -> Result<DeviceLists, Error> {
    let mut company = Company::default();
    for place in read.memberships_of(user_id)? {
        let Some(room) = read.room(&place.room_id)?.filter(|room| room.newest > since) else {
            continue;
        };
        let was_joined = read.membership_at(&room, user_id, since)? == Some(MembershipState::Join);
        match (was_joined, place.membership == MembershipState::Join) {
            (true, true) => company.stayed_in(read, &room, since)?,
            (false, true) => company.joined(read, &room)?,
            (true, false) => company.left(read, &room)?,
            (false, false) => {}
        }
    }
    company.lists(read, user_id, since, read.position()?)
}

/// Whom a user met in their rooms since the last sync, and whom they may have lost sight of.
#[derive(Debug, Default)]
pub(super) struct Company {
    came: BTreeSet<OwnedUserId>,
    went: BTreeSet<OwnedUserId>,
}

impl Company {
    /// A room that the user was joined to all the while.
    pub(super) fn stayed_in(
        &mut self,
        read: &Read<'_>,
        room: &Room,
        since: i64,
    ) -> Result<(), Error> {
        for (kind, user_id, _) in read.current_state_changes(room, since)? {
            if kind != StateEventType::RoomMember {
                continue;
            }
            let Ok(user_id) = OwnedUserId::try_from(user_id) else { continue };
            let was_joined =
                read.membership_at(room, &user_id, since)? == Some(MembershipState::Join);
            let place = read.membership(room, &user_id)?;
            let is_joined = place.is_some_and(|place| place.membership == MembershipState::Join);
            match (was_joined, is_joined) {
                (false, true) => self.came.insert(user_id),
                (true, false) => self.went.insert(user_id),
                _ => false,
            };
        }
        Ok(())
    }

    /// A room that the user has joined.
    pub(super) fn joined(&mut self, read: &Read<'_>, room: &Room) -> Result<(), Error> {
        let members = read.members(room, &MembershipState::Join)?;
        self.came.extend(members.into_iter().map(|member| member.user_id));
        Ok(())
    }

    /// A room that the user has left.
    pub(super) fn left(&mut self, read: &Read<'_>, room: &Room) -> Result<(), Error> {
        let members = read.members(room, &MembershipState::Join)?;
        self.went.extend(members.into_iter().map(|member| member.user_id));
        Ok(())
    }

    /// Whose devices a client must ask for again, and whose it need not follow any more.
    pub(super) fn lists(
        self,
        read: &Read<'_>,
        user_id: &UserId,
        since: i64,
        to: i64,
    ) -> Result<DeviceLists, Error> {
        let mut lists = DeviceLists::new();
        let changed = read.device_list_changes(since, to)?;
        let signed = read.signature_changes(user_id, since, to)?;
        if changed.is_empty() && self.went.is_empty() {
            lists.changed = self.came.into_iter().chain(signed).collect();
        } else {
            let mut sharing = read.users_sharing_rooms(user_id)?;
            sharing.insert(user_id.to_owned());
            let changed: BTreeSet<OwnedUserId> = self
                .came
                .into_iter()
                .chain(changed)
                .filter(|user| sharing.contains(user))
                .collect();
            lists.changed = changed.into_iter().chain(signed).collect();
            lists.left = self.went.into_iter().filter(|user| !sharing.contains(user)).collect();
        }
        lists.changed.sort_unstable();
        lists.changed.dedup();
        Ok(lists)
    }
}
