//! Backups over the administration socket.

use std::{
    io::{self, BufWriter, Write},
    sync::Arc,
};

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Query, Request, State},
    response::Response,
};
use futures_util::stream::poll_fn;
use http::header;
use sallyport_core::{
    admin::{BACKUP_BYTES, BackupMade, BackupVerified, ErrorCode},
    backup::BackupId,
    limits::ADMIN_BODY_BYTES_MAX,
};
use serde::Deserialize;
use tokio::{
    sync::{Mutex, mpsc},
    task::spawn_blocking,
};

use super::{
    command::{self, Answer},
    error::AdminError,
};
use crate::{
    app::App,
    service::backup::{self, create::Prepared},
    telemetry,
};

/// Pieces of a backup that wait for a slow stick.
const PIECES: usize = 4;
/// Bytes of a piece.
const PIECE_BYTES: usize = 256 * 1024;

/// Which backup the new one follows.
#[derive(Deserialize)]
pub(super) struct Since {
    since: Option<BackupId>,
}

/// Held while a backup is made: two would write over each other's copy of the database.
#[derive(Clone, Default)]
pub(super) struct OneAtATime(Arc<Mutex<()>>);

/// Makes a backup and streams it as the answer, at the pace at which it is taken.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(OneAtATime(gate)): Extension<OneAtATime>,
    Query(Since { since }): Query<Since>,
    request: Request,
) -> Result<Response, AdminError> {
    let (head, _) = request.into_parts();
    let order = command::order(&app, &head)?;
    let Ok(only) = gate.try_lock_owned() else {
        let text = "another backup is being made: wait until it is finished";
        return Err(AdminError::of_text(ErrorCode::Unavailable, text));
    };
    let again = order.clone();
    let prepared = command::carry_out(&app, order, "backup.create", "", move |app, order| {
        Prepared::begin(app, since, order)
    });
    let prepared = prepared.await?;
    let (sender, mut receiver) = mpsc::channel(PIECES);
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(BACKUP_BYTES, prepared.bytes())
        .body(Body::from_stream(poll_fn(move |context| receiver.poll_recv(context))))
        .map_err(|error| AdminError::new(ErrorCode::Internal, error))?;
    // Not one of the box's calls: a stick may take hours.
    spawn_blocking(move || {
        let _only = only;
        let output = BufWriter::with_capacity(PIECE_BYTES, Pieces(sender.clone()));
        if let Err(error) = prepared.stream(&app, output) {
            let error = telemetry::chain(&error);
            log::error!(target: "admin", error; "a backup was broken off");
            command::note_failure(&app, again.failure("backup.create", "", &error));
            // The connection must break rather than end early in peace. Whoever is gone need not know.
            let _gone = sender.blocking_send(Err(io::Error::other("broken off")));
        }
    });
    Ok(response)
}

/// Takes note of a backup that was read back and verified.
pub(super) async fn verified(State(app): State<Arc<App>>, request: Request) -> Answer<BackupMade> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let BackupVerified { id } = command::json(body, ADMIN_BODY_BYTES_MAX).await?;
    let noted = command::carry_out(&app, order, "backup.verified", id, move |app, order| {
        backup::note_verified(app, id, order)
    });
    noted.await.map(Json)
}

/// Hands pieces to the connection, and waits while it is slow.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        let sent = self.0.blocking_send(Ok(piece));
        sent.map_err(|_| {
            io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes the backup any more")
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
