//! Rooms that replace others, and what a member keeps for a room: it goes with them to the room that replaces it.
//!
//! The specification is silent about push rules, tags and the place among direct chats; clients expect what other homeservers do when a
//! member joins the new room.

use std::collections::BTreeMap;

use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, UserId,
    events::{StateEventType, push_rules::PushRulesEventContent},
    push::{ConditionalPushRule, NewConditionalPushRule, NewPushRule, PushCondition, Ruleset},
};
use sallyport_core::limits::{ACCOUNT_DATA_BYTES_MAX, PUSH_RULES_MAX};
use sallyport_store::{Error as StoreError, Read, Write};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::summary;
use crate::{
    app::App,
    service::{
        account_data::{AccountDataError, tags},
        push_rules::{self, PushRuleError},
    },
};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the push rules could not be copied")]
    Rules(#[from] PushRuleError),
    #[error("the tags could not be copied")]
    Tags(#[from] AccountDataError),
    #[error("the account data is damaged")]
    Json(#[from] serde_json::Error),
    #[error("the account data could not be copied")]
    Store(#[from] StoreError),
}

/// Copies what a user keeps for the room that this one replaces. They are in the new room whatever comes of it.
pub fn follow(app: &App, user_id: &UserId, room_id: &RoomId) {
    if let Err(error) = copy(app, user_id, room_id) {
        log::warn!(user_id:%, room_id:%, error:% = error; "settings did not follow to the new room");
    }
}

fn copy(app: &App, user_id: &UserId, room_id: &RoomId) -> Result<(), Error> {
    // Most rooms replace none: their joins do not wait for the writer.
    let Some(old) = app.store.read(|read| replaced(read, room_id))? else { return Ok(()) };
    let (user, new) = (user_id.to_owned(), room_id.to_owned());
    app.store.write(move |write| {
        copy_push_rules(write, &user, &old, &new)?;
        copy_tags(write, &user, &old, &new)?;
        copy_direct(write, &user, &old, &new)
    })
}

/// The room before, as the create event has it.
pub(super) fn predecessor(
    read: &Read<'_>,
    room_id: &RoomId,
) -> Result<Option<OwnedRoomId>, StoreError> {
    // Older rooms may have left the event out of it, or have it wrong.
    #[derive(Deserialize)]
    struct Predecessor {
        room_id: OwnedRoomId,
    }
    let predecessor: Option<Predecessor> =
        field(read, room_id, StateEventType::RoomCreate, "predecessor")?;
    Ok(predecessor.map(|predecessor| predecessor.room_id))
}

/// The room that this one replaces, if that room says the same: anybody can name a predecessor.
fn replaced(read: &Read<'_>, new: &RoomId) -> Result<Option<OwnedRoomId>, Error> {
    let Some(old) = predecessor(read, new)? else { return Ok(None) };
    let replacement: Option<OwnedRoomId> =
        field(read, &old, StateEventType::RoomTombstone, "replacement_room")?;
    Ok(Some(old).filter(|_| replacement.is_some_and(|room| room == new)))
}

fn field<T: DeserializeOwned>(
    read: &Read<'_>,
    room_id: &RoomId,
    kind: StateEventType,
    name: &str,
) -> Result<Option<T>, StoreError> {
    let Some(room) = read.room(room_id)? else { return Ok(None) };
    summary::field(read, &room, kind, name)
}

fn copy_push_rules(
    write: &mut Write<'_>,
    user_id: &OwnedUserId,
    old: &RoomId,
    new: &RoomId,
) -> Result<(), Error> {
    let mut rules = push_rules::rules(write, user_id)?;
    let copies = copies(&rules, old, new);
    if copies.is_empty() || rules.iter().count() + copies.len() > PUSH_RULES_MAX {
        return Ok(());
    }
    for copy in copies {
        rules.insert(copy, None, None).map_err(PushRuleError::from)?;
    }
    let content = serde_json::to_string(&PushRulesEventContent::new(rules))?;
    write.set_account_data(user_id, None, push_rules::ACCOUNT_DATA_TYPE, &content)?;
    Ok(())
}

/// The rules about the old room, made to be about the new one; none that is there already.
fn copies(rules: &Ruleset, old: &RoomId, new: &RoomId) -> Vec<NewPushRule> {
    let mut copies = Vec::new();
    if let Some(rule) = rules.room.iter().find(|rule| rule.rule_id == *old)
        && !rules.room.iter().any(|rule| rule.rule_id == *new)
    {
        let rule = ruma::push::NewSimplePushRule::new(new.to_owned(), rule.actions.clone());
        copies.push(NewPushRule::Room(rule));
    }
    let about = |rule: &&ConditionalPushRule| {
        !rule.default && rule.conditions.iter().any(|condition| names(condition, old))
    };
    let copied = |rule: &ConditionalPushRule| {
        let conditions = rule.conditions.iter().map(|condition| renamed(condition, old, new));
        let id = rule.rule_id.replace(old.as_str(), new.as_str());
        NewConditionalPushRule::new(id, conditions.collect(), rule.actions.clone())
    };
    let there =
        |id: &str| rules.override_.iter().chain(&rules.underride).any(|rule| rule.rule_id == id);
    let conditional =
        |rule: &ConditionalPushRule| Some(copied(rule)).filter(|rule| !there(&rule.rule_id));
    let overriding = rules.override_.iter().filter(about).filter_map(conditional);
    copies.extend(overriding.map(NewPushRule::Override));
    let underriding = rules.underride.iter().filter(about).filter_map(conditional);
    copies.extend(underriding.map(NewPushRule::Underride));
    copies
}

fn names(condition: &PushCondition, room_id: &RoomId) -> bool {
    matches!(condition, PushCondition::EventMatch(data) if data.key == "room_id" && data.pattern == room_id.as_str())
}

fn renamed(condition: &PushCondition, old: &RoomId, new: &RoomId) -> PushCondition {
    let mut condition = condition.clone();
    if names(&condition, old)
        && let PushCondition::EventMatch(data) = &mut condition
    {
        data.pattern = new.to_string();
    }
    condition
}

fn copy_tags(
    write: &mut Write<'_>,
    user_id: &UserId,
    old: &RoomId,
    new: &RoomId,
) -> Result<(), Error> {
    if tags(write, user_id, old)?.is_empty() || !tags(write, user_id, new)?.is_empty() {
        return Ok(());
    }
    if let Some(content) = write.account_data(user_id, Some(old), "m.tag")? {
        write.set_account_data(user_id, Some(new), "m.tag", &content)?;
    }
    Ok(())
}

fn copy_direct(
    write: &mut Write<'_>,
    user_id: &UserId,
    old: &RoomId,
    new: &RoomId,
) -> Result<(), Error> {
    const DIRECT: &str = "m.direct";
    let Some(stored) = write.account_data(user_id, None, DIRECT)? else { return Ok(()) };
    // Whatever a client wrote: where it is not what the specification says, it stays as it is.
    let Ok(mut direct) = serde_json::from_str::<BTreeMap<String, Value>>(&stored) else {
        return Ok(());
    };
    let mut changed = false;
    for rooms in direct.values_mut().filter_map(Value::as_array_mut) {
        if rooms.iter().any(|room| room == old.as_str())
            && !rooms.iter().any(|room| room == new.as_str())
        {
            rooms.push(Value::from(new.as_str()));
            changed = true;
        }
    }
    let content = serde_json::to_string(&direct)?;
    if changed && content.len() <= ACCOUNT_DATA_BYTES_MAX {
        write.set_account_data(user_id, None, DIRECT, &content)?;
    }
    Ok(())
}
