//! The box's own keys over the administration socket.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use sallyport_core::{
    admin::{KeyOrder, KeyReport, Keys},
    limits::ADMIN_BODY_BYTES_MAX,
};

use super::command::{self, Answer};
use crate::{
    app::App,
    service::{backlog::backlog, rotation},
};

/// All keys, and what waits for the token.
pub(super) async fn list(State(app): State<Arc<App>>) -> Answer<Keys> {
    let keys = command::run(&app, |app| {
        let abilities = app.token.as_ref().map(|token| token.caps().words()).unwrap_or_default();
        Ok::<_, rotation::Error>(Keys {
            keys: rotation::list(&app.store, app.token.as_deref())?,
            abilities: abilities.into_iter().map(str::to_owned).collect(),
            backlog: backlog(&app.store, &app.config.data_dir)?,
            approvals_needed: rotation::approvals_needed(&app.store)?,
            incarnation: app.store.read(|read| read.incarnation())?.to_string(),
        })
    });
    keys.await.map(Json)
}

/// Plans an order about keys, or carries it out.
pub(super) async fn order(State(app): State<Arc<App>>, request: Request) -> Answer<KeyReport> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let wish: KeyOrder = command::json(body, ADMIN_BODY_BYTES_MAX).await?;
    if wish.plan {
        return command::run(&app, move |app| rotation::plan(app, &wish)).await.map(Json);
    }
    let (action, subject) = (wish.action.as_str(), wish.action.subject().to_owned());
    let done = command::carry_out(&app, order, action, subject, move |app, order| {
        rotation::carry_out(app, &wish, order)
    });
    done.await.map(Json)
}
