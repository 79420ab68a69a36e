//! The administration socket: who may open it may administer the box.
//!
//! The protocol is described in [`sallyport_core::admin`]; a handler reads who gives the command ([`command::order`]),
//! calls one use case, and translates its answer.

mod audit;
mod backups;
mod bundles;
mod cards;
mod certificates;
mod codes;
mod command;
mod error;
mod journal;
mod keys;
mod rosters;
mod status;

use std::sync::Arc;

use axum::{
    Extension, Router,
    routing::{get, post},
};
use sallyport_core::admin::path;

use crate::app::App;

/// All commands.
pub fn router() -> Router<Arc<App>> {
    Router::new()
        .route(path::STATUS, get(status::status))
        .route(path::TOKEN, get(status::token_state))
        .route(path::TOKEN_UNLOCK, post(status::unlock))
        .route(path::CLOCK_ACCEPT, post(status::accept_clock))
        .route(path::ROSTER, post(rosters::import))
        .route(path::ROSTER_DRY_RUN, post(rosters::dry_run))
        .route(path::ACTIVATION_CODES, post(codes::renew))
        .route(path::AUDIT, get(audit::page))
        .route(path::AUDIT_CHECKPOINT, post(audit::checkpoint))
        .route(path::JOURNAL, get(journal::sealed).post(journal::seal))
        .route(path::CARD_REQUEST, get(cards::request))
        .route(path::CARD, get(cards::own).put(cards::install))
        .route(path::CERTIFICATE, get(certificates::status).put(certificates::install))
        .route(path::CERTIFICATE_REQUEST, post(certificates::request))
        .route(path::KEYS, get(keys::list).post(keys::order))
        .route(path::PEERS, get(cards::peers).post(cards::pair))
        .route(path::BUNDLES, get(bundles::status))
        .route(path::BUNDLES_EXPORT, post(bundles::export))
        .route(path::BUNDLES_IMPORT, post(bundles::import))
        .route(path::BACKUP, post(backups::create))
        .route(path::BACKUP_VERIFIED, post(backups::verified))
        .layer(Extension(rosters::OneAtATime::default()))
        .layer(Extension(bundles::OneAtATime::default()))
        .layer(Extension(backups::OneAtATime::default()))
}
