//! The audit log over the administration socket.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, Request, State},
};
use sallyport_core::{
    admin::{AuditPage, ErrorCode, SignedCheckpoint},
    audit::Tip,
    limits::{AUDIT_KEYS_MAX, AUDIT_PAGE_ROWS_MAX},
    sign::KeyRole,
};
use serde::Deserialize;

use super::{
    command::{self, Answer},
    error::AdminError,
};
use crate::{
    app::App,
    service::{audit, own_keys},
};

/// Where a page begins.
#[derive(Deserialize)]
pub(super) struct After {
    #[serde(default)]
    after: u64,
}

/// The rows after one, as many as a page holds, with their checkpoints and the keys that signed those.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    Query(After { after }): Query<After>,
) -> Answer<AuditPage> {
    let page = command::run(&app, move |app| {
        app.store.read(|read| {
            let rows = read.audit_rows(after, AUDIT_PAGE_ROWS_MAX)?;
            let last = rows.last().map_or(after, |row| row.id);
            let checkpoints = read.checkpoints(after, last)?.into_iter();
            let keys = read.own_keys(KeyRole::Audit.as_str())?;
            Ok::<_, audit::Error>(AuditPage {
                rows,
                checkpoints: checkpoints
                    .map(|checkpoint| SignedCheckpoint::new(checkpoint.row, &checkpoint.bytes))
                    .collect(),
                keys: keys
                    .iter()
                    .take(AUDIT_KEYS_MAX)
                    .map(own_keys::public_key)
                    .collect::<Result<_, _>>()?,
                tip: read.audit_tip()?,
            })
        })
    });
    page.await.map(Json)
}

/// Has the token vouch for the log at once.
pub(super) async fn checkpoint(State(app): State<Arc<App>>, request: Request) -> Answer<Tip> {
    let (head, _) = request.into_parts();
    let order = command::order(&app, &head)?;
    let tip = command::carry_out(&app, order, "audit.checkpoint", "", |app, order| {
        let Some(token) = app.token.as_deref() else {
            return Err(AdminError::of_text(ErrorCode::NotFound, "no token is configured"));
        };
        let tip = audit::checkpoint_on_order(&app.store, token, &app.config.server_name, order);
        tip.map_err(AdminError::from)
    });
    tip.await.map(Json)
}
