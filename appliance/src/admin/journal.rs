//! Seals of the machine's journal over the administration socket.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, Request, State},
};
use sallyport_core::{
    admin::JournalSealed,
    journal::{JOURNAL_SEALED, Seal, SeqnumId},
    limits::ADMIN_BODY_BYTES_MAX,
};
use serde::Deserialize;

use super::command::{self, Answer};
use crate::{app::App, service::journal};

/// Which counting of entries.
#[derive(Deserialize)]
pub(super) struct Of {
    seqnum_id: SeqnumId,
}

/// How far it is sealed.
pub(super) async fn sealed(
    State(app): State<Arc<App>>,
    Query(Of { seqnum_id }): Query<Of>,
) -> Answer<JournalSealed> {
    let up_to = command::run(&app, move |app| journal::sealed_up_to(&app.store, seqnum_id));
    up_to.await.map(|up_to| Json(JournalSealed { up_to }))
}

/// Puts a seal on record.
pub(super) async fn seal(State(app): State<Arc<App>>, request: Request) -> Answer<JournalSealed> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let seal: Seal = command::json(body, ADMIN_BODY_BYTES_MAX).await?;
    let id = seal.seqnum_id;
    let up_to = command::carry_out(&app, order, JOURNAL_SEALED, id, move |app, order| {
        journal::seal(&app.store, seal, order)
    });
    up_to.await.map(|up_to| Json(JournalSealed { up_to }))
}
