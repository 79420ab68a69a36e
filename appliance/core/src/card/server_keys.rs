//! Checks a server's published key document (Server-Server API, "Publishing Keys").

use std::collections::BTreeMap;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, ServerName,
    serde::Base64,
    signatures::{PublicKeyMap, VerificationError, verify_json},
};

use crate::limits::KEY_DOCUMENT_BYTES_MAX;

/// Why a key document was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum InvalidServerKeys {
    /// Longer than any key document.
    #[error("key document has {0} bytes, more than any has")]
    TooLarge(usize),
    /// Not JSON, or not the JSON that can be signed.
    #[error("key document is not canonical JSON")]
    Json(#[source] serde_json::Error),
    /// A field is missing or not what it should be.
    #[error("key document has no valid `{0}`")]
    Field(&'static str),
    /// It is of another server.
    #[error("key document is of another server")]
    OtherServer,
    /// It is not signed by the keys it publishes.
    #[error("key document is not signed by its own keys")]
    Signature(#[source] VerificationError),
}

/// Whether a document is one of a server and signed by a key that it publishes. Its age is not looked at.
pub fn verify_server_keys(json: &[u8], server: &ServerName) -> Result<(), InvalidServerKeys> {
    if json.len() > KEY_DOCUMENT_BYTES_MAX {
        return Err(InvalidServerKeys::TooLarge(json.len()));
    }
    let document: CanonicalJsonObject =
        serde_json::from_slice(json).map_err(InvalidServerKeys::Json)?;
    if text(&document, "server_name")? != server.as_str() {
        return Err(InvalidServerKeys::OtherServer);
    }
    if document.get("valid_until_ts").and_then(CanonicalJsonValue::as_integer).is_none() {
        return Err(InvalidServerKeys::Field("valid_until_ts"));
    }
    let published = document
        .get("verify_keys")
        .and_then(CanonicalJsonValue::as_object)
        .filter(|keys| !keys.is_empty())
        .ok_or(InvalidServerKeys::Field("verify_keys"))?;
    let mut keys = BTreeMap::new();
    for (id, key) in published {
        let key = key.as_object().ok_or(InvalidServerKeys::Field("verify_keys"))?;
        let key = Base64::parse(text(key, "key")?).map_err(|_| InvalidServerKeys::Field("key"))?;
        keys.insert(id.clone(), key);
    }
    let keys = PublicKeyMap::from([(server.as_str().to_owned(), keys)]);
    verify_json(&keys, &document).map_err(InvalidServerKeys::Signature)
}

fn text<'a>(
    object: &'a CanonicalJsonObject,
    field: &'static str,
) -> Result<&'a str, InvalidServerKeys> {
    object.get(field).and_then(CanonicalJsonValue::as_str).ok_or(InvalidServerKeys::Field(field))
}
