//! Tokens of pages and syncs in requests and answers.

use sallyport_store::{Error as StoreError, Read};

use crate::service::{rooms, sync::token::Token};

/// The position that a token names; `None` if there is no token, or one of the database before a restore.
pub(super) fn position_of(
    read: &Read<'_>,
    token: Option<&str>,
) -> Result<Option<i64>, rooms::Error> {
    let Some(token) = token else { return Ok(None) };
    let token = Token::parse(token).map_err(|_| rooms::Error::Invalid(MALFORMED))?;
    let incarnation = read.incarnation()?;
    Ok(token.is_of(incarnation).then_some(token.position))
}

/// The token that names a position.
pub(super) fn page_token(read: &Read<'_>, position: i64) -> Result<String, StoreError> {
    Ok(Token::of_page(read.incarnation()?, position).to_string())
}

const MALFORMED: &str = "the token is not one that this server gives out";
