//! The audit log over the administration socket.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
};
use sallyport_core::{admin::AuditPage, limits::AUDIT_PAGE_ROWS_MAX};
use serde::Deserialize;

use super::command::{self, Answer};
use crate::app::App;

/// Where a page begins.
#[derive(Deserialize)]
pub(super) struct After {
    #[serde(default)]
    after: u64,
}

/// The rows after one, as many as a page holds.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    Query(After { after }): Query<After>,
) -> Answer<AuditPage> {
    let page = command::run(&app, move |app| {
        app.store.read(|read| {
            let rows = read.audit_rows(after, AUDIT_PAGE_ROWS_MAX)?;
            Ok::<_, sallyport_store::Error>(AuditPage { rows, tip: read.audit_tip()? })
        })
    });
    page.await.map(Json)
}
