//! Profiles: names, pictures and free fields; and the search for people.
//!
//! [Profiles](https://spec.matrix.org/v1.16/client-server-api/#profiles).

use ruma::{MxcUri, OwnedUserId, UserId};
use sallyport_core::limits::{
    DISPLAY_NAME_BYTES_MAX, PROFILE_BYTES_MAX, PROFILE_FIELD_BYTES_MAX, SEARCH_TERM_BYTES_MAX,
    USERS_FOUND_MAX,
};
use sallyport_store::Store;
use serde_json::Value;

/// The field with a person's name.
pub const DISPLAY_NAME: &str = "displayname";
/// The field with a person's picture.
pub const AVATAR_URL: &str = "avatar_url";

/// Why a profile was not changed or found.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// There is no such user here, or they have said nothing about themselves.
    #[error("there is no such user or field")]
    NotFound,
    /// The value is not what this field holds.
    #[error("the value is not acceptable for this field")]
    BadValue,
    /// The field's name is too long.
    #[error("the name of the field is too long")]
    KeyTooLarge,
    /// The profile would grow too large.
    #[error("the profile would be too large")]
    TooLarge,
    /// A stored value cannot be read.
    #[error("the profile is damaged")]
    Json(#[from] serde_json::Error),
    /// The database failed.
    #[error("the profile could not be stored")]
    Store(#[from] sallyport_store::Error),
}

/// All fields of a user's profile.
///
/// # Errors
/// [`ProfileError::NotFound`] if the user is not known here.
pub fn profile(store: &Store, user_id: &UserId) -> Result<Vec<(String, Value)>, ProfileError> {
    let (profile, known) = store.read(|read| {
        let known = read.user(user_id)?.is_some_and(|user| !user.deactivated);
        Ok::<_, sallyport_store::Error>((read.profile(user_id)?, known))
    })?;
    if profile.is_empty() && !known {
        return Err(ProfileError::NotFound);
    }
    profile.into_iter().map(|(field, json)| Ok((field, serde_json::from_str(&json)?))).collect()
}

/// One field of a user's profile.
///
/// # Errors
/// [`ProfileError::NotFound`] if the user is not known here or has not set it.
pub fn field(store: &Store, user_id: &UserId, field: &str) -> Result<Value, ProfileError> {
    let json = store.read(|read| read.profile_field(user_id, field))?;
    Ok(serde_json::from_str(&json.ok_or(ProfileError::NotFound)?)?)
}

/// Sets one field of a user's profile, or removes it with `None`. Answers whether the user's membership events must be
/// sent anew: the name or the picture has changed.
///
/// # Errors
/// If the value does not belong into this field, or the profile would grow too large.
pub fn set_field(
    store: &Store,
    user_id: &UserId,
    field: &str,
    value: Option<&Value>,
) -> Result<bool, ProfileError> {
    let value = value.filter(|value| !is_unset(field, value));
    if let Some(value) = value {
        check(field, value)?;
    }
    let json = value.map(serde_json::to_string).transpose()?;
    let (user_id, name) = (user_id.to_owned(), field.to_owned());
    let changed = store.write(move |write| {
        let mut profile = write.profile(&user_id)?;
        profile.remove(&name);
        let size = |(field, json): (&String, &String)| field.len() + json.len();
        let new = json.as_ref().map_or(0, |json| name.len() + json.len());
        if new > 0 && profile.iter().map(size).sum::<usize>() + new > PROFILE_BYTES_MAX {
            return Err(ProfileError::TooLarge);
        }
        Ok(write.set_profile_field(&user_id, &name, json.as_deref())?)
    })?;
    Ok(changed && matches!(field, DISPLAY_NAME | AVATAR_URL))
}

/// An empty name or picture is none.
fn is_unset(field: &str, value: &Value) -> bool {
    matches!(field, DISPLAY_NAME | AVATAR_URL) && (value.is_null() || value.as_str() == Some(""))
}

fn check(field: &str, value: &Value) -> Result<(), ProfileError> {
    if field.len() > PROFILE_FIELD_BYTES_MAX {
        return Err(ProfileError::KeyTooLarge);
    }
    let good = match field {
        DISPLAY_NAME => value.as_str().is_some_and(|name| name.len() <= DISPLAY_NAME_BYTES_MAX),
        AVATAR_URL => value.as_str().is_some_and(|url| <&MxcUri>::from(url).is_valid()),
        _ => true,
    };
    if good { Ok(()) } else { Err(ProfileError::BadValue) }
}

/// A person that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The user id.
    pub user_id: OwnedUserId,
    /// The display name.
    pub display_name: Option<String>,
    /// The picture.
    pub avatar_url: Option<String>,
}

/// Users of this box, and those of peers that we were told about, whose name or id contains all words of the term.
/// Answers whether there are more.
///
/// # Errors
/// If the database fails.
pub fn search(store: &Store, term: &str, limit: u64) -> Result<(Vec<Found>, bool), ProfileError> {
    if term.len() > SEARCH_TERM_BYTES_MAX {
        return Ok((Vec::new(), false));
    }
    let limit = usize::try_from(limit).unwrap_or(USERS_FOUND_MAX).min(USERS_FOUND_MAX);
    let words: Vec<String> = term.split_whitespace().map(str::to_lowercase).collect();
    store.read(|read| {
        let mut users = read.search_users(&words, limit + 1)?;
        let limited = users.len() > limit;
        users.truncate(limit);
        let found = users.into_iter().map(|user_id| {
            let profile = read.profile(&user_id)?;
            let text = |field: &str| serde_json::from_str(profile.get(field)?).ok();
            let (display_name, avatar_url) = (text(DISPLAY_NAME), text(AVATAR_URL));
            Ok(Found { user_id, display_name, avatar_url })
        });
        Ok((found.collect::<Result<_, sallyport_store::Error>>()?, limited))
    })
}
