//! Moving a room to another version: a new room that takes over what the old one is.
//!
//! [Client-Server API, "Room upgrades"](https://spec.matrix.org/v1.16/client-server-api/#room-upgrades).

use std::{collections::BTreeSet, time::Duration};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, Int, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId,
    RoomVersionId, UserId,
    events::{StateEventType, room::member::MembershipState},
};
use sallyport_core::{
    limits::DRAFTS_MAX,
    room::{self, Draft, Intent, create::Founded},
    time::Millis,
};
use sallyport_store::{Outcome, Read, Room};
use serde_json::json;

use super::{Error, create::found, membership, send::Wish, state::parse_content, succession};
use crate::app::App;

/// State with an empty key that the new room takes over, besides the power levels.
const TAKEN_OVER: [StateEventType; 9] = [
    StateEventType::RoomJoinRules,
    StateEventType::RoomHistoryVisibility,
    StateEventType::RoomGuestAccess,
    StateEventType::RoomEncryption,
    StateEventType::RoomServerAcl,
    StateEventType::RoomName,
    StateEventType::RoomTopic,
    StateEventType::RoomAvatar,
    StateEventType::RoomCanonicalAlias,
];

/// A wish to move a room to another version.
#[derive(Debug, Clone)]
pub struct Upgrade<'a> {
    /// The old room.
    pub room_id: &'a RoomId,
    /// Who wants it. They become the new room's creator.
    pub user_id: &'a UserId,
    /// The version of the new room.
    pub version: RoomVersionId,
    /// Others with the power of creators, from version 12 on.
    pub additional_creators: BTreeSet<OwnedUserId>,
    /// When.
    pub now: Millis,
}

/// Founds the new room, ends the old one, and moves the aliases, all or nothing.
///
/// # Errors
/// If the user may not end the room, or the version is not served.
pub fn upgrade(app: &App, upgrade: &Upgrade<'_>) -> Result<OwnedRoomId, Error> {
    if room::rules(&upgrade.version).is_none() {
        return Err(Error::UnsupportedVersion(upgrade.version.clone()));
    }
    if upgrade.additional_creators.iter().any(|user| user.server_name() != app.config.server_name) {
        return Err(Error::Invalid(
            "additional_creators must be accounts of this server: they can never be removed",
        ));
    }
    let mut upgrade = upgrade.clone();
    for _ in 0..DRAFTS_MAX {
        let (founded, tombstone) = app.store.read(|read| prepare(app, read, &upgrade))?;
        let new_room = founded.room_id.clone();
        if commit(app, upgrade.room_id, founded, tombstone)? == Outcome::Done(()) {
            quieten(app, &upgrade);
            give_up_aliases(app, &upgrade);
            succession::follow(app, upgrade.user_id, &new_room);
            return Ok(new_room);
        }
        upgrade.now = upgrade.now.plus(Duration::from_millis(1));
    }
    Err(Error::Busy)
}

fn prepare(app: &App, read: &Read<'_>, upgrade: &Upgrade<'_>) -> Result<(Founded, Draft), Error> {
    let old = super::joined_room(read, upgrade.room_id, upgrade.user_id)?;
    let intents = intents(read, &old, upgrade)?;
    let creation = creation_content(read, &old, upgrade)?;
    let founded = found(app, upgrade.user_id, &upgrade.version, creation, upgrade.now, intents)?;
    let tombstone = json!({
        "body": "This room has been replaced",
        "replacement_room": founded.room_id,
    });
    let tombstone = Intent::state(
        upgrade.user_id,
        StateEventType::RoomTombstone,
        "",
        parse_content(&tombstone.to_string())?,
        upgrade.now,
    );
    let view = read.view(upgrade.room_id)?;
    let draft = room::draft(&view, upgrade.room_id, tombstone)?.map_err(Error::Refused)?;
    Ok((founded, draft))
}

fn commit(
    app: &App,
    old: &RoomId,
    founded: Founded,
    tombstone: Draft,
) -> Result<Outcome<()>, Error> {
    let (old, mac) = (old.to_owned(), app.event_mac.clone());
    app.store.write(move |write| {
        // Its id may be taken, as for any new room.
        if write.room(&founded.room_id)?.is_some() {
            return Ok(Outcome::Stale);
        }
        match write.append(tombstone, None, &mac)? {
            Outcome::Stale => return Ok(Outcome::Stale),
            Outcome::Done(placed) => placed.map_err(Error::Seal)?,
        };
        let new = founded.room_id.clone();
        write.found_room(&founded, &mac)?;
        write.move_aliases(&old, &new)?;
        if let Some(room) = write.room(&old)?
            && write.is_published(&room)?
        {
            write.publish(&old, false)?;
            write.publish(&new, true)?;
        }
        Ok(Outcome::Done(()))
    })
}

/// Lets only those with power speak in the old room.
fn quieten(app: &App, upgrade: &Upgrade<'_>) {
    amend(app, upgrade, StateEventType::RoomPowerLevels, |levels| {
        for field in ["events_default", "invite"] {
            levels.insert(field.to_owned(), CanonicalJsonValue::Integer(ruma::int!(50)));
        }
    });
}

/// The aliases have moved: the old room no longer says that they are its own.
fn give_up_aliases(app: &App, upgrade: &Upgrade<'_>) {
    let own = format!(":{}", app.config.server_name);
    let is_own =
        |alias: &CanonicalJsonValue| alias.as_str().is_some_and(|alias| alias.ends_with(&own));
    amend(app, upgrade, StateEventType::RoomCanonicalAlias, |announced| {
        announced.retain(|field, alias| field != "alias" || !is_own(alias));
        if let Some(CanonicalJsonValue::Array(others)) = announced.get_mut("alt_aliases") {
            others.retain(|alias| !is_own(alias));
        }
    });
}

/// Changes state of the old room, if it has it. Whoever may end a room need not be able to: then it stays as it is.
fn amend(
    app: &App,
    upgrade: &Upgrade<'_>,
    kind: StateEventType,
    change: impl FnOnce(&mut CanonicalJsonObject),
) {
    let before = app.store.read(|read| {
        let Some(room) = read.room(upgrade.room_id)? else { return Ok(None) };
        content(read, &room, &kind)
    });
    let Ok(Some(before)) = before else { return };
    let mut after = before.clone();
    change(&mut after);
    if after == before {
        return;
    }
    let intent = Intent::state(upgrade.user_id, kind.clone(), "", after, upgrade.now);
    if let Err(error) = super::send(app, Wish::new(upgrade.room_id.to_owned(), intent)) {
        log::debug!(room_id:% = upgrade.room_id, kind:%, error:% = error; "the old room stays as it is");
    }
}

fn creation_content(
    read: &Read<'_>,
    old: &Room,
    upgrade: &Upgrade<'_>,
) -> Result<CanonicalJsonObject, Error> {
    let mut creation = content(read, old, &StateEventType::RoomCreate)?.unwrap_or_default();
    for field in ["creator", "room_version", "predecessor", "additional_creators"] {
        creation.remove(field);
    }
    let mut predecessor = json!({ "room_id": old.room_id });
    if !has_privileged_creators(&upgrade.version) {
        let last: Option<&OwnedEventId> = old.extremities.first();
        predecessor = json!({ "room_id": old.room_id, "event_id": last });
    } else if !upgrade.additional_creators.is_empty() {
        let creators = upgrade.additional_creators.iter().map(ToString::to_string);
        let creators = creators.map(CanonicalJsonValue::String).collect();
        creation.insert("additional_creators".to_owned(), CanonicalJsonValue::Array(creators));
    }
    let predecessor = CanonicalJsonValue::Object(parse_content(&predecessor.to_string())?);
    creation.insert("predecessor".to_owned(), predecessor);
    Ok(creation)
}

fn intents(read: &Read<'_>, old: &Room, upgrade: &Upgrade<'_>) -> Result<Vec<Intent>, Error> {
    let user_id = upgrade.user_id;
    let intent = |kind: StateEventType, key: &str, content| {
        Intent::state(user_id, kind, key, content, upgrade.now)
    };
    let join = membership::content(read, user_id, MembershipState::Join, None)?;
    let mut intents = vec![intent(StateEventType::RoomMember, user_id.as_str(), join)];
    let levels = new_power_levels(read, old, upgrade)?;
    intents.push(intent(StateEventType::RoomPowerLevels, "", levels));
    for kind in TAKEN_OVER {
        if let Some(content) = content(read, old, &kind)? {
            intents.push(intent(kind, "", content));
        }
    }
    for kind in [StateEventType::SpaceChild, StateEventType::SpaceParent] {
        for (key, event_id) in read.state_of_kind(old, &kind)? {
            if let Some(event) = read.event(&event_id)? {
                let content = parse_content(event.pdu.content().get())?;
                intents.push(intent(kind.clone(), &key, content));
            }
        }
    }
    for banned in read.members(old, &MembershipState::Ban)? {
        if let Some(event) = read.event(&banned.event_id)? {
            let content = parse_content(event.pdu.content().get())?;
            intents.push(intent(StateEventType::RoomMember, banned.user_id.as_str(), content));
        }
    }
    Ok(intents)
}

/// The old room's power levels, in which the creator may do what founding the new room takes.
fn new_power_levels(
    read: &Read<'_>,
    old: &Room,
    upgrade: &Upgrade<'_>,
) -> Result<CanonicalJsonObject, Error> {
    let kind = StateEventType::RoomPowerLevels;
    let mut levels = content(read, old, &kind)?.unwrap_or_default();
    let mut users = match levels.remove("users") {
        Some(CanonicalJsonValue::Object(users)) => users,
        _ => CanonicalJsonObject::new(),
    };
    if has_privileged_creators(&upgrade.version) {
        // They have more power than any number says, and must not be listed.
        users.remove(upgrade.user_id.as_str());
        for creator in &upgrade.additional_creators {
            users.remove(creator.as_str());
        }
    } else {
        // As much as anything takes: rooms of version 12 want 150 for their end, which creators have there without a number.
        let most = highest(&levels).max(highest(&users)).max(ruma::int!(100));
        for creator in creators(read, old)?.iter().chain([&upgrade.user_id.to_owned()]) {
            users.insert(creator.to_string(), CanonicalJsonValue::Integer(most));
        }
    }
    levels.insert("users".to_owned(), CanonicalJsonValue::Object(users));
    Ok(levels)
}

/// The highest number in power levels, those of kinds of events included.
fn highest(levels: &CanonicalJsonObject) -> Int {
    let most = levels.values().map(|value| match value {
        CanonicalJsonValue::Integer(level) => *level,
        CanonicalJsonValue::Object(levels) => highest(levels),
        _ => Int::MIN,
    });
    most.max().unwrap_or(Int::MIN)
}

/// Who has more power in the old room than any number says; nobody before version 12.
fn creators(read: &Read<'_>, old: &Room) -> Result<Vec<OwnedUserId>, Error> {
    if !has_privileged_creators(&old.version) {
        return Ok(Vec::new());
    }
    let Some(event) = read.state_event(old, &StateEventType::RoomCreate, "")? else {
        return Ok(Vec::new());
    };
    let content = parse_content(event.pdu.content().get())?;
    let additional = content.get("additional_creators").and_then(CanonicalJsonValue::as_array);
    let additional = additional.into_iter().flatten().filter_map(CanonicalJsonValue::as_str);
    let additional = additional.filter_map(|user| OwnedUserId::try_from(user).ok());
    Ok(additional.chain([event.pdu.sender().to_owned()]).collect())
}

fn content(
    read: &Read<'_>,
    room: &Room,
    kind: &StateEventType,
) -> Result<Option<CanonicalJsonObject>, Error> {
    let event = read.state_event(room, kind, "")?;
    event.map(|event| parse_content(event.pdu.content().get())).transpose()
}

fn has_privileged_creators(version: &RoomVersionId) -> bool {
    room::rules(version).is_some_and(|rules| rules.authorization.explicitly_privilege_room_creators)
}
