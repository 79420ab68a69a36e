//! The enclave CA and the serving certificate over the administration socket.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, Request, State},
};
use sallyport_core::{
    admin::{CertificateStatus, ErrorCode},
    digest::Sha256,
    limits::CERTIFICATES_BYTES_MAX,
};
use serde::Deserialize;

use super::{
    command::{self, Answer},
    error::{AdminError, of_certificates},
};
use crate::{
    app::App,
    service::certificates::{self, Of},
    tls::{self, Certificates},
};

/// What a request is for.
#[derive(Deserialize)]
pub(super) struct Asked {
    of: Of,
}

/// How certificate and CA are.
pub(super) async fn status(State(app): State<Arc<App>>) -> Answer<CertificateStatus> {
    let status = command::run(&app, |app| Ok::<_, AdminError>(of(app)?.status()?));
    status.await.map(Json)
}

/// A request to another CA.
pub(super) async fn request(
    State(app): State<Arc<App>>,
    Query(Asked { of: what }): Query<Asked>,
    request: Request,
) -> Result<String, AdminError> {
    let (head, _) = request.into_parts();
    let order = command::order(&app, &head)?;
    let action = "certificate.request";
    let asked = command::carry_out(&app, order, action, what.as_str(), move |app, order| {
        Ok::<_, AdminError>(certificates::request(&app.store, of(app)?, what, order)?)
    });
    asked.await
}

/// Installs what a higher CA gave for ours.
pub(super) async fn install(
    State(app): State<Arc<App>>,
    request: Request,
) -> Answer<CertificateStatus> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let chain = command::body(body, CERTIFICATES_BYTES_MAX).await?;
    let action = "certificate.install";
    let hash = Sha256::of(&chain);
    let installed = command::carry_out(&app, order, action, hash, move |app, order| {
        certificates::install(&app.store, of(app)?, &chain, order)?;
        Ok::<_, AdminError>(of(app)?.status()?)
    });
    installed.await.map(Json)
}

fn of(app: &App) -> Result<&Arc<Certificates>, AdminError> {
    let none = "no listener speaks TLS: there is no certificate";
    app.certificates.as_ref().ok_or_else(|| AdminError::of_text(ErrorCode::NotFound, none))
}

impl From<tls::Error> for AdminError {
    fn from(error: tls::Error) -> Self {
        let code = of_certificates(&error);
        Self::new(code, error)
    }
}

impl From<certificates::Error> for AdminError {
    fn from(error: certificates::Error) -> Self {
        match error {
            certificates::Error::Approval(error) => Self::new(ErrorCode::NeedsApproval, error),
            certificates::Error::Store(error) => error.into(),
            certificates::Error::Tls(error) => error.into(),
        }
    }
}
