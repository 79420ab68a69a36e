//! Profiles of users of this and other servers, and the search for people.
//!
//! [Client-Server API, "Profiles"](https://spec.matrix.org/v1.16/client-server-api/#profiles).

use std::collections::BTreeMap;

use ruma::{OwnedUserId, UserId};
use rusqlite::{OptionalExtension, params};

use crate::{
    error::Result,
    pool::{Read, Write},
    value::user_id as parse_user_id,
};

/// The fields of a profile, each a JSON text.
pub type Profile = BTreeMap<String, String>;

impl Read<'_> {
    /// All fields of a user's profile.
    pub fn profile(&self, user_id: &UserId) -> Result<Profile> {
        let mut statement =
            self.prepare("SELECT field, value FROM profile_fields WHERE user_id = ?1")?;
        let rows = statement.query_map([user_id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// One field of a user's profile, as JSON.
    pub fn profile_field(&self, user_id: &UserId, field: &str) -> Result<Option<String>> {
        let mut statement =
            self.prepare("SELECT value FROM profile_fields WHERE user_id = ?1 AND field = ?2")?;
        Ok(statement.query_row([user_id.as_str(), field], |row| row.get(0)).optional()?)
    }

    /// Users whose id or display name contains all of these words (in lower case), at most `limit`.
    /// Those whose name begins with the first word come first.
    pub fn search_users(&self, words: &[String], limit: usize) -> Result<Vec<OwnedUserId>> {
        let Some(first) = words.first() else { return Ok(Vec::new()) };
        // The longest word leaves the fewest rows to look at closely.
        let longest = words.iter().max_by_key(|word| word.len()).unwrap_or(first);
        let mut statement = self.prepare(
            "SELECT user_id, words FROM user_directory WHERE instr(words, ?1) > 0
             ORDER BY instr(words, ?2), user_id",
        )?;
        let mut rows = statement.query([longest, first])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let all: String = row.get(1)?;
            if words.iter().all(|word| all.contains(word.as_str())) {
                found.push(parse_user_id("user_directory", &row.get::<_, String>(0)?)?);
                if found.len() == limit {
                    break;
                }
            }
        }
        Ok(found)
    }
}

impl Write<'_> {
    /// Sets or removes one field of a user's profile. Answers whether it changed.
    pub fn set_profile_field(
        &mut self,
        user_id: &UserId,
        field: &str,
        value: Option<&str>,
    ) -> Result<bool> {
        let changed = match value {
            Some(value) => self
                .prepare(
                    "INSERT INTO profile_fields (user_id, field, value) VALUES (?1, ?2, ?3)
                     ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value
                     WHERE value <> excluded.value",
                )?
                .execute(params![user_id.as_str(), field, value])?,
            None => self
                .prepare("DELETE FROM profile_fields WHERE user_id = ?1 AND field = ?2")?
                .execute([user_id.as_str(), field])?,
        };
        if changed > 0 && field == "displayname" {
            let name = value.and_then(|json| serde_json::from_str::<String>(json).ok());
            self.set_directory_words(user_id, name.as_deref())?;
        }
        Ok(changed > 0)
    }

    /// Replaces the profile of another server's user with what that server says.
    pub fn replace_profile(&mut self, user_id: &UserId, profile: &Profile) -> Result<()> {
        self.prepare("DELETE FROM profile_fields WHERE user_id = ?1")?
            .execute([user_id.as_str()])?;
        for (field, value) in profile {
            self.set_profile_field(user_id, field, Some(value))?;
        }
        if !profile.contains_key("displayname") {
            self.set_directory_words(user_id, None)?;
        }
        Ok(())
    }

    /// What a search for this user looks at.
    pub(crate) fn set_directory_words(
        &mut self,
        user_id: &UserId,
        display_name: Option<&str>,
    ) -> Result<()> {
        let name = display_name.unwrap_or_default().to_lowercase();
        let words = format!("{name}\n{}", user_id.as_str().to_lowercase());
        self.prepare(
            "INSERT INTO user_directory (user_id, words) VALUES (?1, ?2)
             ON CONFLICT (user_id) DO UPDATE SET words = excluded.words",
        )?
        .execute([user_id.as_str(), &words])?;
        Ok(())
    }
}
