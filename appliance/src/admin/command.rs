//! What every command has in common: who gives it, its body, its answer, and the way to the use case.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
};
use http::{HeaderMap, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use nix::unistd::{Uid, User};
use sallyport_core::{
    admin::{AUTHORITY, Authority, ErrorCode, NoAuthority},
    audit::Entry,
    limits::ADMIN_UPLOAD_MS_MAX,
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::AdminError;
use crate::{app::App, http::error::ApiError, listen::PeerUser, service::order::Order, telemetry};

/// The answer of a handler.
pub(super) type Answer<T> = Result<Json<T>, AdminError>;

/// Who gives the command of a request with this head.
pub(super) fn order(app: &App, head: &Parts) -> Result<Order, AdminError> {
    let header = head.headers.get(AUTHORITY).ok_or(NoAuthority::Header);
    let authority = header
        .and_then(|value| Authority::parse(value.as_bytes()))
        .map_err(|error| AdminError::new(ErrorCode::BadRequest, error))?;
    Ok(Order { authority, evidence: evidence(head), now: (app.clock)() })
}

/// A header's value as text; empty if it is absent.
pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Reads a body of at most `bytes_max` bytes.
pub(super) async fn body(body: Body, bytes_max: usize) -> Result<Bytes, AdminError> {
    let read = Limited::new(body, bytes_max).collect();
    match timeout(Duration::from_millis(ADMIN_UPLOAD_MS_MAX), read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the body may have at most {bytes_max} bytes");
            Err(AdminError::of_text(ErrorCode::BadRequest, text))
        }
        Ok(Err(_)) => {
            Err(AdminError::of_text(ErrorCode::BadRequest, "the body ended early: send it again"))
        }
        Err(_) => Err(AdminError::of_text(ErrorCode::BadRequest, "the body came too slowly")),
    }
}

/// Reads a JSON body of at most `bytes_max` bytes.
pub(super) async fn json<T: DeserializeOwned>(
    from: Body,
    bytes_max: usize,
) -> Result<T, AdminError> {
    let bytes = body(from, bytes_max).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        AdminError::of_text(ErrorCode::BadRequest, format!("the body is not understood: {error}"))
    })
}

/// Runs a use case on a thread that may block.
pub(super) async fn run<T, E, F>(app: &Arc<App>, call: F) -> Result<T, AdminError>
where
    T: Send + 'static,
    E: Into<AdminError> + Send + 'static,
    F: FnOnce(&App) -> Result<T, E> + Send + 'static,
{
    app.run(move |app| Ok::<_, ApiError>(call(app))).await?.map_err(Into::into)
}

/// Runs a use case that changes something, on a thread that may block. It appends its own row to the audit log; if it fails, a row
/// is appended that says so. `subject` names what it was tried on.
pub(super) async fn carry_out<T, E, F>(
    app: &Arc<App>,
    order: Order,
    action: &'static str,
    subject: impl ToString,
    call: F,
) -> Result<T, AdminError>
where
    T: Send + 'static,
    E: Into<AdminError> + Send + 'static,
    F: FnOnce(&App, &Order) -> Result<T, E> + Send + 'static,
{
    let subject = subject.to_string();
    let carried_out = run(app, move |app| {
        call(app, &order).map_err(|error| {
            let error: AdminError = error.into();
            note_failure(app, order.failure(action, &subject, error.text()));
            error
        })
    });
    carried_out.await
}

pub(super) fn note_failure(app: &App, entry: Entry) {
    let written: Result<_, sallyport_store::Error> =
        app.store.write(move |write| write.append_audit(entry));
    if let Err(error) = written {
        let error = telemetry::chain(&error);
        log::error!(target: "admin", error; "the audit log does not tell of a command that failed");
    }
}

/// What the kernel says of the caller.
fn evidence(head: &Parts) -> String {
    let Some(PeerUser { uid }) = head.extensions.get() else {
        return "unknown".to_owned();
    };
    match User::from_uid(Uid::from_raw(*uid)) {
        Ok(Some(user)) => format!("administration socket, uid {uid} ({})", user.name),
        _ => format!("administration socket, uid {uid}"),
    }
}
