//! From what went wrong to an answer that an administrator can act on.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use sallyport_core::admin::{ErrorBody, ErrorCode};

use crate::{
    http::error::ApiError,
    service::{
        activation, audit, backup, bundle, clock, journal, own_keys, peers, roster, rotation, token,
    },
    telemetry, tls,
};

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct AdminError(ErrorBody);

impl AdminError {
    /// An error with all its sources: administrators may know them.
    pub(super) fn new(code: ErrorCode, error: impl std::error::Error + 'static) -> Self {
        Self::of_text(code, telemetry::chain(&error))
    }

    pub(super) fn of_text(code: ErrorCode, error: impl Into<String>) -> Self {
        Self(ErrorBody { code, error: error.into() })
    }

    /// What it says.
    pub(super) fn text(&self) -> &str {
        &self.0.error
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        if self.0.code == ErrorCode::Internal {
            log::error!(target: "admin", error = self.0.error; "a command failed");
        }
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<ApiError> for AdminError {
    fn from(error: ApiError) -> Self {
        let unavailable = error.status() == StatusCode::SERVICE_UNAVAILABLE;
        let code = if unavailable { ErrorCode::Unavailable } else { ErrorCode::Internal };
        Self::of_text(code, error.chain())
    }
}

impl From<sallyport_store::Error> for AdminError {
    fn from(error: sallyport_store::Error) -> Self {
        Self::new(of_store(&error), error)
    }
}

impl From<token::Error> for AdminError {
    fn from(error: token::Error) -> Self {
        let code = match &error {
            token::Error::Store(error) => of_store(error),
            token::Error::Approval(_) => ErrorCode::NeedsApproval,
            token::Error::Token(_) => ErrorCode::Unavailable,
        };
        Self::new(code, error)
    }
}

impl From<audit::Error> for AdminError {
    fn from(error: audit::Error) -> Self {
        let code = match &error {
            audit::Error::Store(error) => of_store(error),
            audit::Error::Keys(error) => of_keys(error),
            audit::Error::Approval(_) => ErrorCode::NeedsApproval,
            audit::Error::Token(_) => ErrorCode::Unavailable,
        };
        Self::new(code, error)
    }
}

impl From<journal::Error> for AdminError {
    fn from(error: journal::Error) -> Self {
        let code = match &error {
            journal::Error::Store(error) => of_store(error),
            journal::Error::Approval(_) => ErrorCode::NeedsApproval,
            journal::Error::Impossible(_) | journal::Error::NotNext { .. } => ErrorCode::Refused,
        };
        Self::new(code, error)
    }
}

impl From<rotation::Error> for AdminError {
    fn from(error: rotation::Error) -> Self {
        use rotation::Error;
        let code = match &error {
            Error::Store(error) => of_store(error),
            Error::Keys(error) => of_keys(error),
            Error::Certificate(error) => of_certificates(error),
            Error::Approval(_) => ErrorCode::NeedsApproval,
            Error::Unknown(_) => ErrorCode::NotFound,
            Error::Token(_) | Error::NotDrained(_) | Error::NotVouched(_) | Error::Overtaken => {
                ErrorCode::Unavailable
            }
            _ => ErrorCode::Refused,
        };
        Self::new(code, error)
    }
}

impl From<roster::Error> for AdminError {
    fn from(error: roster::Error) -> Self {
        use roster::Error;
        let code = match &error {
            Error::Refused(_)
            | Error::NotAdmitted(_)
            | Error::UnknownLocks(_)
            | Error::Overtaken
            | Error::TooLong(_) => ErrorCode::Refused,
            Error::MassLock { .. } | Error::Approval(_) => ErrorCode::NeedsApproval,
            Error::NoRandomness(_) => ErrorCode::Internal,
            Error::Store(error) => of_store(error),
        };
        Self::new(code, error)
    }
}

impl From<activation::Error> for AdminError {
    fn from(error: activation::Error) -> Self {
        use activation::Error;
        let code = match &error {
            Error::NotACode(_) | Error::Unknown | Error::Password(_) | Error::TooMany => {
                ErrorCode::Refused
            }
            Error::Approval(_) => ErrorCode::NeedsApproval,
            Error::NoAccount(_) => ErrorCode::NotFound,
            Error::NoRandomness(_) => ErrorCode::Internal,
            Error::Store(error) => of_store(error),
        };
        Self::new(code, error)
    }
}

impl From<peers::Error> for AdminError {
    fn from(error: peers::Error) -> Self {
        let code = match &error {
            peers::Error::Store(error) => of_store(error),
            peers::Error::Approval(_) => ErrorCode::NeedsApproval,
            _ => ErrorCode::Refused,
        };
        Self::new(code, error)
    }
}

impl From<clock::Error> for AdminError {
    fn from(error: clock::Error) -> Self {
        let code = match &error {
            clock::Error::Store(error) => of_store(error),
            clock::Error::Approval(_) => ErrorCode::NeedsApproval,
            clock::Error::Behind { .. } => ErrorCode::Refused,
        };
        Self::new(code, error)
    }
}

impl From<backup::Error> for AdminError {
    fn from(error: backup::Error) -> Self {
        use backup::Error;
        let code = match &error {
            Error::Store(error) => of_store(error),
            Error::Keys(error) => of_keys(error),
            Error::Approval(_) => ErrorCode::NeedsApproval,
            Error::Token(_) | Error::NoRoom { .. } => ErrorCode::Unavailable,
            Error::NotRemembered(_) | Error::Unknown(_) => ErrorCode::NotFound,
            Error::NoRecoveryKeys | Error::NoToken | Error::Peers(_) | Error::TooManyMedia => {
                ErrorCode::Refused
            }
            _ => ErrorCode::Internal,
        };
        Self::new(code, error)
    }
}

impl From<bundle::Error> for AdminError {
    fn from(error: bundle::Error) -> Self {
        use bundle::Error;
        let code = match &error {
            Error::Store(error) => of_store(error),
            Error::Approval(_) => ErrorCode::NeedsApproval,
            Error::Token(_) | Error::Unsigned(_) => ErrorCode::Unavailable,
            Error::File(_) | Error::Write(_) | Error::NoRandomness(_) => ErrorCode::Internal,
            Error::NotAPeer(_) => ErrorCode::NotFound,
            _ => ErrorCode::Refused,
        };
        Self::new(code, error)
    }
}

fn of_keys(error: &own_keys::Error) -> ErrorCode {
    match error {
        own_keys::Error::Store(error) => of_store(error),
        own_keys::Error::Token(_) | own_keys::Error::None(_) => ErrorCode::Unavailable,
        own_keys::Error::Damaged(_) => ErrorCode::Internal,
    }
}

/// What an error about certificates is to whoever gave the command.
pub(super) fn of_certificates(error: &tls::Error) -> ErrorCode {
    match error {
        error if error.waits_for_token() => ErrorCode::Unavailable,
        tls::Error::NotOurs(_)
        | tls::Error::Chain { .. }
        | tls::Error::PassingKey
        | tls::Error::GivenAsFiles => ErrorCode::Refused,
        _ => ErrorCode::Internal,
    }
}

fn of_store(error: &sallyport_store::Error) -> ErrorCode {
    match error {
        sallyport_store::Error::DiskFull | sallyport_store::Error::Closed => ErrorCode::Unavailable,
        _ => ErrorCode::Internal,
    }
}
