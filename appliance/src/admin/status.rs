//! How the box and its token are, and the PIN of the token.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use sallyport_core::{
    admin::{Backlog, ErrorCode, Status, TokenReport, TokenStatus, Unlock},
    limits::ADMIN_BODY_BYTES_MAX,
    provision::Trust,
    sign::KeyRole,
    time::Millis,
};
use sallyport_hsm::{Health, Pin};

use super::{
    command::{self, Answer},
    error::AdminError,
};
use crate::{
    app::App,
    service::{backlog::backlog, backup, clock, token},
};

/// How the box is.
pub(super) async fn status(State(app): State<Arc<App>>) -> Answer<Status> {
    let now = (app.clock)();
    let status = command::run(&app, move |app| {
        let token = token_report(app);
        let backlog = backlog(&app.store, &app.config.data_dir)?;
        let backup = backup::state(&app.store)?;
        let mut warnings = warnings(app, &backlog, now);
        warnings.extend(backup::warnings(app, &backup, now));
        app.store.read(|read| {
            Ok::<_, sallyport_store::Error>(Status {
                server_name: app.config.server_name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                now,
                accounts: read.roster_account_counts()?,
                roster: read.last_roster()?,
                audit: read.audit_tip()?,
                token,
                certificate: app.certificates.as_ref().and_then(|tls| tls.status().ok()),
                vault: app.vault.status(),
                backlog,
                backup,
                warnings,
            })
        })
    });
    status.await.map(Json)
}

/// How the token is.
pub(super) async fn token_state(State(app): State<Arc<App>>) -> Answer<TokenReport> {
    let report = command::run(&app, |app| Ok::<_, sallyport_store::Error>(token_report(app)));
    report.await.map(Json)
}

/// Opens the token with a PIN.
pub(super) async fn unlock(State(app): State<Arc<App>>, request: Request) -> Answer<TokenReport> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let unlock: Unlock = command::json(body, ADMIN_BODY_BYTES_MAX).await?;
    let status = command::carry_out(&app, order, "token.unlock", "", move |app, order| {
        let Some(token) = app.token.as_deref() else {
            return Err(AdminError::of_text(ErrorCode::NotFound, "no token is configured"));
        };
        token::unlock(&app.store, token, Pin::new(unlock.pin.clone()), order)?;
        Ok(token_report(app))
    });
    status.await.map(Json)
}

fn warnings(app: &App, backlog: &Backlog, now: Millis) -> Vec<String> {
    let rolled_back = app.start.rolled_back.iter().map(ToString::to_string);
    let waiting = backlog.warnings(now).into_iter().map(|warning| warning.to_string());
    let unattended = app.config.unattended.then(|| Trust::Unattended.meaning().to_owned());
    rolled_back.chain(waiting).chain(unattended).collect()
}

fn token_report(app: &App) -> TokenReport {
    let custody = |role| token::custody(&app.store, app.token.as_deref()?, role);
    TokenReport {
        state: token_status(app),
        event_key: custody(KeyRole::Event),
        courier_encryption_key: custody(KeyRole::CourierEncryption),
    }
}

fn token_status(app: &App) -> TokenStatus {
    match app.token.as_ref().map(|token| token.health()) {
        None => TokenStatus::None,
        Some(Health::Starting) => TokenStatus::Starting,
        Some(Health::Ready) => TokenStatus::Ready,
        Some(Health::Locked { why }) => TokenStatus::Locked { why },
        Some(Health::Absent { why, attempts }) => TokenStatus::Absent { why, attempts },
    }
}

/// Takes an officer's word that the clock is right although it went backwards.
pub(super) async fn accept_clock(State(app): State<Arc<App>>, request: Request) -> Answer<Millis> {
    let (head, _) = request.into_parts();
    let order = command::order(&app, &head)?;
    let accepted = command::carry_out(&app, order, "clock.accept", "", |app, order| {
        clock::accept(&app.store, order)
    });
    accepted.await.map(Json)
}
