//! The client-server API: one file per section of the
//! [specification](https://spec.matrix.org/v1.19/client-server-api/), in its order.

mod account;
mod account_data;
mod backups;
mod capabilities;
mod devices;
mod directory;
mod discovery;
mod interactive;
mod keys;
mod media;
mod membership;
mod modules;
mod openid;
mod presence;
mod profiles;
mod push;
mod receipts;
mod relations;
mod reporting;
mod rooms;
mod search;
mod send;
mod session;
mod state;
mod sync;
mod timeline;
mod to_device;
mod tokens;

use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::Value;

use super::{Routes, error::ApiError};

/// The endpoints of all sections.
pub(super) fn routes() -> Routes {
    [
        discovery::routes(),
        session::routes(),
        account::routes(),
        capabilities::routes(),
        profiles::routes(),
        presence::routes(),
        media::routes(),
        to_device::routes(),
        devices::routes(),
        keys::routes(),
        backups::routes(),
        push::routes(),
        account_data::routes(),
        modules::routes(),
        openid::routes(),
        sync::routes(),
        state::routes(),
        timeline::routes(),
        relations::routes(),
        send::routes(),
        rooms::routes(),
        directory::routes(),
        membership::routes(),
        receipts::routes(),
        reporting::routes(),
        search::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// An answer with fields that ruma leaves out because a client may assume them: not every client does.
fn said_in_full<const N: usize>(
    answer: &impl Serialize,
    more: [(&str, Value); N],
) -> Result<Response, ApiError> {
    let mut answer = serde_json::to_value(answer).map_err(ApiError::internal)?;
    if let Some(fields) = answer.as_object_mut() {
        fields.extend(more.map(|(name, value)| (name.to_owned(), value)));
    }
    Ok(axum::Json(answer).into_response())
}
