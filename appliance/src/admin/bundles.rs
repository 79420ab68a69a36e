//! Bundles over the administration socket.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Json,
    body::Body,
    extract::{Query, Request, State},
    response::Response,
};
use http::header;
use http_body_util::BodyExt as _;
use ruma::OwnedServerName;
use sallyport_core::{
    admin::{BundleImported, ErrorCode, PeerBundles},
    digest::{Hasher, Sha256},
    limits::{BUNDLE_BYTES_MAX, MEDIA_PIECE_MS_MAX},
};
use serde::Deserialize;
use tokio::{
    fs::{self, File, OpenOptions},
    io::AsyncWriteExt as _,
    sync::Mutex,
    time::timeout,
};

use super::{
    command::{self, Answer},
    error::AdminError,
};
use crate::{
    app::{App, random},
    http::{error::ApiError, file::FileBody},
    service::{bundle, peers},
};

/// How the exchange with each peer stands.
pub(super) async fn status(State(app): State<Arc<App>>) -> Answer<Vec<PeerBundles>> {
    let peers = command::run(&app, |app| peers::list(&app.store)).await?;
    let status = peers.into_iter().map(|(peer, _)| PeerBundles {
        exported: peer.sent_seq,
        acknowledged: peer.acked.seq,
        imported: peer.received.map_or(0, |received| received.seq),
        imported_at: peer.received.map(|received| received.time),
        peer: peer.server,
    });
    Ok(Json(status.collect()))
}

/// For whom a bundle is.
#[derive(Deserialize)]
pub(super) struct To {
    peer: OwnedServerName,
}

/// Makes a bundle and sends it as the answer. What is lost on the way is in the next bundle again.
pub(super) async fn export(
    State(app): State<Arc<App>>,
    Query(To { peer }): Query<To>,
    request: Request,
) -> Result<Response, AdminError> {
    let (head, _) = request.into_parts();
    let order = command::order(&app, &head)?;
    let to = peer.clone();
    let exported = command::carry_out(&app, order, "bundle.export", peer, move |app, order| {
        let path = bundle::export::export(app, &to, order)?.path;
        let opened = std::fs::File::open(&path);
        // The open file is all that is needed; nothing is left if the other side goes away.
        std::fs::remove_file(&path).map_err(disk)?;
        opened.map_err(disk)
    });
    let file = File::from_std(exported.await?);
    let size = file.metadata().await.map_err(disk)?.len();
    let body = Body::new(FileBody::new(file, size));
    Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, size)
        .body(body)
        .map_err(|error| AdminError::new(ErrorCode::Internal, error))
}

/// Takes a bundle into quarantine and imports it. It goes on if the caller goes away.
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Extension(OneAtATime(gate)): Extension<OneAtATime>,
    request: Request,
) -> Answer<BundleImported> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let folder = app.config.data_dir.join("quarantine");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).await.map_err(disk)?;
    let name = u64::from_be_bytes(random().map_err(ApiError::from)?);
    let quarantined = Quarantined(folder.join(format!("{name:016x}")));
    let sha256 = receive(body, &quarantined.0).await?;
    let Ok(only) = gate.try_lock_owned() else {
        let text = "another bundle is being imported: wait until it is finished";
        return Err(AdminError::of_text(ErrorCode::Unavailable, text));
    };
    let imported = command::carry_out(&app, order, "bundle.import", sha256, move |app, order| {
        let _only = only;
        bundle::import::import(app, &quarantined.0, sha256, order)
    });
    imported.await.map(Json)
}

/// Held while a bundle is imported: two imports could finish in the wrong order.
#[derive(Clone, Default)]
pub(super) struct OneAtATime(Arc<Mutex<()>>);

/// A file that ends with its import, also if the other side goes away.
struct Quarantined(PathBuf);

impl Drop for Quarantined {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                log::error!(error:% = error; "a bundle stays in quarantine");
            }
            _ => {}
        }
    }
}

/// Writes a body to a new file, at most as much as a bundle may have; answers its hash.
async fn receive(mut body: Body, path: &Path) -> Result<Sha256, AdminError> {
    let refused = |text: String| AdminError::of_text(ErrorCode::BadRequest, text);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await
        .map_err(disk)?;
    let mut size: u64 = 0;
    let mut hasher = Hasher::default();
    loop {
        let piece = timeout(Duration::from_millis(MEDIA_PIECE_MS_MAX), body.frame()).await;
        let Some(frame) = piece.map_err(|_| refused("the bundle came too slowly".to_owned()))?
        else {
            break;
        };
        let frame =
            frame.map_err(|_| refused("the bundle ended early: send it again".to_owned()))?;
        let Some(bytes) = frame.data_ref() else { continue };
        size = size.saturating_add(bytes.len() as u64);
        if size > BUNDLE_BYTES_MAX {
            return Err(refused(format!("a bundle has at most {BUNDLE_BYTES_MAX} bytes")));
        }
        hasher.update(bytes);
        file.write_all(bytes).await.map_err(disk)?;
    }
    file.flush().await.map_err(disk)?;
    Ok(hasher.finish())
}

fn disk(error: std::io::Error) -> AdminError {
    let text = format!("the box's disk does not do it ({error}): is it full?");
    AdminError::of_text(ErrorCode::Internal, text)
}
