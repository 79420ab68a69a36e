//! Pairing cards and peers over the administration socket.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use sallyport_core::{
    admin::{ErrorCode, FINGERPRINT, Peer},
    card::Card,
    digest::Sha256,
    limits::CARD_BYTES_MAX,
};

use super::{
    command::{self, Answer},
    error::AdminError,
};
use crate::{app::App, service::peers};

/// The box's public keys, for the enclave root to sign.
pub(super) async fn request(State(app): State<Arc<App>>) -> Result<Vec<u8>, AdminError> {
    let now = (app.clock)();
    let request = command::run(&app, move |app| peers::card_request(app, now)).await?;
    request.encode().map_err(|error| AdminError::new(ErrorCode::Internal, error))
}

/// The box's own card.
pub(super) async fn own(State(app): State<Arc<App>>) -> Result<Vec<u8>, AdminError> {
    let card = command::run(&app, |app| app.store.read(|read| read.own_card())).await?;
    let missing = "the box has no card yet: fetch a request, have the enclave root sign it, and install the card";
    card.ok_or_else(|| AdminError::of_text(ErrorCode::NotFound, missing))
}

/// Installs the box's own card.
pub(super) async fn install(State(app): State<Arc<App>>, request: Request) -> Answer<Peer> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let card = command::body(body, CARD_BYTES_MAX).await?.to_vec();
    let hash = Sha256::of(&card);
    let card = command::carry_out(&app, order, "card.install", hash, move |app, order| {
        peers::install_own_card(app, card, order)
    });
    Ok(Json(shown(&card.await?)))
}

/// Pairs with the enclave of a card.
pub(super) async fn pair(State(app): State<Arc<App>>, request: Request) -> Answer<Peer> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let fingerprint = command::header(&head.headers, FINGERPRINT).to_owned();
    let card = command::body(body, CARD_BYTES_MAX).await?.to_vec();
    let hash = Sha256::of(&card);
    let card = command::carry_out(&app, order, "peer.add", hash, move |app, order| {
        peers::pair(app, card, &fingerprint, order)
    });
    Ok(Json(shown(&card.await?)))
}

/// All peers.
pub(super) async fn peers(State(app): State<Arc<App>>) -> Answer<Vec<Peer>> {
    let peers = command::run(&app, |app| peers::list(&app.store)).await?;
    Ok(Json(peers.iter().map(|(_, card)| shown(card)).collect()))
}

fn shown(card: &Card) -> Peer {
    let content = card.content();
    Peer {
        server_name: content.server_name.clone(),
        enclave: content.enclave.clone(),
        fingerprint: card.fingerprint().words(),
        serial: content.serial,
        not_after: content.not_after,
        custody: content.custody,
    }
}
