//! Rosters over the administration socket.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use sallyport_core::{
    admin::{RosterImported, RosterReport},
    limits::ROSTER_BYTES_MAX,
};

use super::command::{self, Answer};
use crate::{app::App, app::random, service::roster};

/// What a roster would change.
pub(super) async fn dry_run(State(app): State<Arc<App>>, request: Request) -> Answer<RosterReport> {
    let file = command::body(request.into_body(), ROSTER_BYTES_MAX).await?;
    let report = command::run(&app, move |app| {
        let config = &app.config;
        roster::dry_run(&app.store, &config.server_name, &config.roster.trusted_keys, &file)
    });
    report.await.map(Json)
}

/// Imports a roster.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    request: Request,
) -> Answer<RosterImported> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let file = command::body(body, ROSTER_BYTES_MAX).await?;
    let imported = command::run(&app, move |app| {
        let config = &app.config;
        let officers = &config.roster.trusted_keys;
        roster::import(&app.store, &config.server_name, officers, &file, &order, &random)
    });
    let imported = imported.await?;
    let report = &imported.report;
    log::info!(target: "admin", serial = report.head.serial, changes:% = report.counts; "roster imported");
    Ok(Json(imported))
}
