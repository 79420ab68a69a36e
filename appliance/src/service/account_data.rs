//! Account data: what clients keep for their user, and the tags of rooms.
//!
//! [Client config](https://spec.matrix.org/v1.16/client-server-api/#client-config).

use ruma::{
    OwnedRoomId, RoomId, UserId,
    events::tag::{TagEventContent, TagInfo, TagName, Tags},
};
use sallyport_core::limits::{ACCOUNT_DATA_BYTES_MAX, ACCOUNT_DATA_MAX, IDENTIFIER_BYTES_MAX};
use sallyport_store::{AccountData, Read, Store};

use super::push_rules::{self, PushRuleError};

/// Why account data was not stored.
#[derive(Debug, thiserror::Error)]
pub enum AccountDataError {
    /// The server keeps data of this type itself.
    #[error("data of this type is kept by the server and has endpoints of its own")]
    Reserved,
    /// Not an object.
    #[error("the content is not a JSON object")]
    NotAnObject,
    /// Larger than any real one.
    #[error("the type or the content is too large")]
    TooLarge,
    /// More pieces than anybody needs.
    #[error("there is too much account data")]
    TooMany,
    /// Stored tags cannot be written or read.
    #[error("the tags are damaged")]
    Json(#[from] serde_json::Error),
    /// The database failed.
    #[error("the account data could not be stored")]
    Store(#[from] sallyport_store::Error),
}

/// Stores a piece of account data; global without a room.
///
/// # Errors
/// If the type is reserved, or the content is not an object or too large.
pub fn set(
    store: &Store,
    user_id: &UserId,
    room_id: Option<OwnedRoomId>,
    kind: String,
    content: String,
) -> Result<(), AccountDataError> {
    let global = room_id.is_none();
    if (global && kind == push_rules::ACCOUNT_DATA_TYPE) || (!global && kind == "m.fully_read") {
        return Err(AccountDataError::Reserved);
    }
    if !content.trim_start().starts_with('{') {
        return Err(AccountDataError::NotAnObject);
    }
    if content.len() > ACCOUNT_DATA_BYTES_MAX || kind.len() > IDENTIFIER_BYTES_MAX {
        return Err(AccountDataError::TooLarge);
    }
    let user_id = user_id.to_owned();
    store.write(move |write| {
        if write.account_data(&user_id, room_id.as_deref(), &kind)?.is_none()
            && write.account_data_count(&user_id)? >= ACCOUNT_DATA_MAX
        {
            return Err(AccountDataError::TooMany);
        }
        write.set_account_data(&user_id, room_id.as_deref(), &kind, &content)?;
        Ok(())
    })
}

/// Account data set after `since` and up to `to`, for `/sync`. From the beginning (`since` = 0) the predefined push
/// rules are among it if the user has no others.
///
/// # Errors
/// If stored rules are damaged or the database fails.
pub fn changes(
    read: &Read<'_>,
    user_id: &UserId,
    since: i64,
    to: i64,
) -> Result<Vec<AccountData>, PushRuleError> {
    let mut data = read.account_data_changes(user_id, since, to)?;
    let is_rules =
        |data: &AccountData| data.room_id.is_none() && data.kind == push_rules::ACCOUNT_DATA_TYPE;
    let stored = data.iter().position(is_rules);
    if stored.is_some() || since == 0 {
        let rules = push_rules::rules(read, user_id)?;
        let content = ruma::events::push_rules::PushRulesEventContent::new(rules);
        let rules = AccountData {
            room_id: None,
            kind: push_rules::ACCOUNT_DATA_TYPE.to_owned(),
            content: serde_json::to_string(&content)?,
        };
        match stored.and_then(|at| data.get_mut(at)) {
            Some(stored) => *stored = rules,
            None => data.push(rules),
        }
    }
    Ok(data)
}

/// The tags that a user put on a room.
///
/// # Errors
/// If the stored tags are damaged or the database fails.
pub fn tags(read: &Read<'_>, user_id: &UserId, room_id: &RoomId) -> Result<Tags, AccountDataError> {
    let stored = read.account_data(user_id, Some(room_id), "m.tag")?;
    let content = stored.map(|json| serde_json::from_str::<TagEventContent>(&json)).transpose()?;
    Ok(content.map(|content| content.tags).unwrap_or_default())
}

/// Puts a tag on a room, or takes it off with `None`.
///
/// # Errors
/// If the tag is too long or the tags grow too large.
pub fn set_tag(
    store: &Store,
    user_id: &UserId,
    room_id: OwnedRoomId,
    tag: TagName,
    info: Option<TagInfo>,
) -> Result<(), AccountDataError> {
    let user_id = user_id.to_owned();
    store.write(move |write| {
        let mut tags = tags(write, &user_id, &room_id)?;
        match info {
            Some(info) => drop(tags.insert(tag, info)),
            None => drop(tags.remove(&tag)),
        }
        let content = serde_json::to_string(&TagEventContent::new(tags))?;
        if content.len() > ACCOUNT_DATA_BYTES_MAX {
            return Err(AccountDataError::TooLarge);
        }
        write.set_account_data(&user_id, Some(&room_id), "m.tag", &content)?;
        Ok(())
    })
}
