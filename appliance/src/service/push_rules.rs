//! Push rules: which events should make a noise. Kept as the account data `m.push_rules`.
//!
//! [Push rules](https://spec.matrix.org/v1.16/client-server-api/#push-rules). Nobody has rules stored until they
//! change one; until then they have the predefined ones.

use ruma::{
    OwnedUserId, UserId,
    events::push_rules::PushRulesEventContent,
    push::{InsertPushRuleError, RemovePushRuleError, RuleNotFoundError, Ruleset},
};
use sallyport_core::limits::PUSH_RULES_MAX;
use sallyport_store::{Read, Store};

/// The type of the account data that holds the rules.
pub const ACCOUNT_DATA_TYPE: &str = "m.push_rules";

/// Why a rule was not changed.
#[derive(Debug, thiserror::Error)]
pub enum PushRuleError {
    /// There is no such rule.
    #[error("there is no such rule")]
    NotFound(#[from] RuleNotFoundError),
    /// The rule cannot be put there.
    #[error("the rule cannot be stored")]
    Insert(#[from] InsertPushRuleError),
    /// The rule cannot be removed.
    #[error("the rule cannot be removed")]
    Remove(#[from] RemovePushRuleError),
    /// More rules than anybody needs.
    #[error("there are too many rules")]
    TooMany,
    /// The stored rules cannot be written or read.
    #[error("the rules are damaged")]
    Json(#[from] serde_json::Error),
    /// The database failed.
    #[error("the rules could not be stored")]
    Store(#[from] sallyport_store::Error),
}

/// The rules of a user, with the predefined ones of this version.
///
/// # Errors
/// If the stored rules are damaged or the database fails.
pub fn rules(read: &Read<'_>, user_id: &UserId) -> Result<Ruleset, PushRuleError> {
    let predefined = Ruleset::server_default(user_id);
    let Some(stored) = read.account_data(user_id, None, ACCOUNT_DATA_TYPE)? else {
        return Ok(predefined);
    };
    let mut rules = serde_json::from_str::<PushRulesEventContent>(&stored)?.global;
    rules.update_with_server_default(predefined);
    Ok(rules)
}

/// Changes the rules of a user.
///
/// # Errors
/// What the change answers; then nothing was stored.
pub fn change<E>(
    store: &Store,
    user_id: OwnedUserId,
    change: impl FnOnce(&mut Ruleset) -> Result<(), E> + Send + 'static,
) -> Result<(), PushRuleError>
where
    PushRuleError: From<E>,
{
    store.write(move |write| {
        let mut rules = rules(write, &user_id)?;
        change(&mut rules)?;
        if rules.iter().count() > PUSH_RULES_MAX {
            return Err(PushRuleError::TooMany);
        }
        let content = serde_json::to_string(&PushRulesEventContent::new(rules))?;
        write.set_account_data(&user_id, None, ACCOUNT_DATA_TYPE, &content)?;
        Ok(())
    })
}
