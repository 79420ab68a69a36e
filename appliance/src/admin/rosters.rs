//! Rosters over the administration socket.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Request, State},
};
use sallyport_core::{
    admin::{ErrorCode, RosterImported, RosterReport},
    digest::Sha256,
    limits::ROSTER_BYTES_MAX,
};
use tokio::sync::Mutex;

use super::{
    command::{self, Answer},
    error::AdminError,
};
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

/// Held while a roster is imported: two imports would make each other's activation codes void.
#[derive(Clone, Default)]
pub(super) struct OneAtATime(Arc<Mutex<()>>);

/// Imports a roster. It goes on if the caller goes away.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Extension(OneAtATime(gate)): Extension<OneAtATime>,
    request: Request,
) -> Answer<RosterImported> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let file = command::body(body, ROSTER_BYTES_MAX).await?;
    let Ok(only) = gate.try_lock_owned() else {
        let text = "another roster is being imported: wait until it is finished";
        return Err(AdminError::of_text(ErrorCode::Unavailable, text));
    };
    let hash = Sha256::of(&file);
    let imported = command::carry_out(&app, order, "roster.import", hash, move |app, order| {
        let _only = only;
        let config = &app.config;
        let officers = &config.roster.trusted_keys;
        let new_code = || Ok(app.pepper.new_code(&random()?));
        roster::import(&app.store, &config.server_name, officers, &file, order, &new_code)
    });
    let imported = imported.await?;
    let report = &imported.report;
    log::info!(target: "admin", serial = report.head.serial, changes:% = report.counts; "roster imported");
    Ok(Json(imported))
}
