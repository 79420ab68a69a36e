//! [`ApiError`]: the only mapping from what went wrong to the specification's error codes.
//!
//! A handler returns an `ApiError`; the endpoint adapter turns it into an answer and logs
//! answers of class 5xx once, with the whole chain of sources.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use ruma::api::{
    OutgoingResponse, OutgoingResponseExt as _,
    client::uiaa::UiaaInfo,
    error::{
        DeserializationError, Error as MatrixError, ErrorBody, ErrorKind, FromHttpRequestError,
        LimitExceededErrorData, RetryAfter, StandardErrorBody, UnknownTokenErrorData,
    },
};

use crate::{app::Interrupted, telemetry};

/// The source of an error, for the log only.
type Source = Box<dyn StdError + Send + Sync>;

/// An answer that is not a success
/// ([standard error response](https://spec.matrix.org/v1.19/client-server-api/#standard-error-response)).
pub struct ApiError(Box<Inner>);

struct Inner {
    status: StatusCode,
    answer: Answer,
    source: Option<Source>,
}

enum Answer {
    Standard { kind: ErrorKind, message: Cow<'static, str> },
    InvalidSignature(Cow<'static, str>),
    Interactive(UiaaInfo),
    Locked,
}

impl ApiError {
    /// An error with a code of the specification and one sentence for people.
    pub fn new(status: StatusCode, kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        let answer = Answer::Standard { kind, message: message.into() };
        Self(Box::new(Inner { status, answer, source: None }))
    }

    /// 400 `M_NOT_JSON`: the body is no JSON at all.
    pub fn not_json() -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::NotJson, "The body is not valid JSON.")
    }

    /// 400 `M_BAD_JSON`: the body is JSON of another shape than the endpoint asks for.
    pub fn bad_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::BadJson, message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidParam, message)
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::MissingParam, message)
    }

    /// 400 `M_INVALID_SIGNATURE`.
    pub fn invalid_signature(message: impl Into<Cow<'static, str>>) -> Self {
        let answer = Answer::InvalidSignature(message.into());
        Self(Box::new(Inner { status: StatusCode::BAD_REQUEST, answer, source: None }))
    }

    /// 401 `M_MISSING_TOKEN`.
    pub fn missing_token() -> Self {
        let message = "Send the access token in the Authorization header.";
        Self::new(StatusCode::UNAUTHORIZED, ErrorKind::MissingToken, message)
    }

    /// 401 `M_UNKNOWN_TOKEN`. With `soft_logout` the client keeps its keys and logs in again.
    pub fn unknown_token(soft_logout: bool) -> Self {
        let mut data = UnknownTokenErrorData::new();
        data.soft_logout = soft_logout;
        let message = "The access token is not known.";
        Self::new(StatusCode::UNAUTHORIZED, ErrorKind::UnknownToken(data), message)
    }

    /// 401 `M_USER_LOCKED`: the client keeps its keys, and waits
    /// ([account locking](https://spec.matrix.org/v1.19/client-server-api/#account-locking)).
    pub fn user_locked() -> Self {
        let status = StatusCode::UNAUTHORIZED;
        Self(Box::new(Inner { status, answer: Answer::Locked, source: None }))
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorKind::Forbidden, message)
    }

    /// 404 `M_NOT_FOUND`: the endpoint exists, what was asked for does not.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, message)
    }

    /// `M_UNRECOGNIZED` with 404 for an unknown path, 405 for a wrong method.
    pub fn unrecognized(status: StatusCode) -> Self {
        Self::new(status, ErrorKind::Unrecognized, "This server has no such endpoint.")
    }

    /// 413 `M_TOO_LARGE`.
    pub fn too_large(bytes_max: u64) -> Self {
        let message = format!("The body may have at most {bytes_max} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::TooLarge, message)
    }

    /// 429 `M_LIMIT_EXCEEDED`.
    pub fn limit_exceeded(retry_after: Duration) -> Self {
        let mut data = LimitExceededErrorData::new();
        data.retry_after = Some(RetryAfter::Delay(retry_after));
        let message = "Too many requests; wait before trying again.";
        Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::LimitExceeded(data), message)
    }

    /// 500 `M_UNKNOWN`: the box failed. The client learns no more; the log gets the chain.
    pub fn internal(source: impl Into<Source>) -> Self {
        let message = "The server failed to answer; its log says why.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Unknown, message)
            .with_source(source)
    }

    /// 503 `M_UNKNOWN`: the box shuts down or has no capacity; the request may be sent again.
    pub fn unavailable(source: impl Into<Source>) -> Self {
        let message = "The server cannot answer right now; try again.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unknown, message).with_source(source)
    }

    /// 401 with the flows of
    /// [user-interactive authentication](https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api).
    pub fn interactive(info: UiaaInfo) -> Self {
        let answer = Answer::Interactive(info);
        Self(Box::new(Inner { status: StatusCode::UNAUTHORIZED, answer, source: None }))
    }

    /// Adds what caused the error. Only the log shows it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The error and its sources on one line, outermost first.
    pub fn chain(&self) -> String {
        telemetry::chain(self)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.answer {
            Answer::Standard { kind, message } => write!(f, "{}: {message}", kind.errcode()),
            Answer::InvalidSignature(message) => write!(f, "M_INVALID_SIGNATURE: {message}"),
            Answer::Interactive(_) => f.write_str("user-interactive authentication is required"),
            Answer::Locked => f.write_str("M_USER_LOCKED"),
        }
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiError({}, {self})", self.0.status)
    }
}

impl StdError for ApiError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source: &(dyn StdError + 'static) = self.0.source.as_deref()?;
        Some(source)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Inner { status, answer, .. } = *self.0;
        match answer {
            Answer::Standard { kind, message } => {
                let body = StandardErrorBody::new(kind, message.into_owned());
                response(MatrixError::new(status, ErrorBody::Standard(body)))
            }
            Answer::Interactive(info) => {
                // Ruma leaves out an empty list of completed stages, which some clients insist on.
                let mut body = serde_json::to_value(&info).unwrap_or_default();
                if let Some(body) = body.as_object_mut() {
                    body.entry("completed").or_insert_with(|| serde_json::json!([]));
                }
                response(MatrixError::new(status, ErrorBody::Json(body)))
            }
            Answer::InvalidSignature(message) => {
                // Ruma's error kinds do not have this one.
                let body =
                    serde_json::json!({ "errcode": "M_INVALID_SIGNATURE", "error": message });
                response(MatrixError::new(status, ErrorBody::Json(body)))
            }
            Answer::Locked => {
                // Ruma's error kind does not carry `soft_logout`.
                let body = serde_json::json!({
                    "errcode": "M_USER_LOCKED",
                    "error": "The account is locked; ask your administrator.",
                    "soft_logout": true,
                });
                response(MatrixError::new(status, ErrorBody::Json(body)))
            }
        }
    }
}

/// Serialises one of ruma's answers.
fn response(answer: impl OutgoingResponse) -> Response {
    match answer.try_into_http_response::<Vec<u8>>() {
        Ok(response) => response.map(Body::from),
        Err(error) => {
            log::error!(error:% = error; "an answer cannot be serialised");
            let body = r#"{"errcode":"M_UNKNOWN","error":"The server failed to answer."}"#;
            let json = HeaderValue::from_static("application/json");
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, json)], body)
                .into_response()
        }
    }
}

impl From<FromHttpRequestError> for ApiError {
    fn from(error: FromHttpRequestError) -> Self {
        match error {
            FromHttpRequestError::Deserialization(DeserializationError::Json(error)) => {
                if error.is_data() { Self::bad_json(error.to_string()) } else { Self::not_json() }
            }
            FromHttpRequestError::MethodMismatch { .. } => {
                Self::unrecognized(StatusCode::METHOD_NOT_ALLOWED)
            }
            FromHttpRequestError::Deserialization(DeserializationError::Query(error))
                if error.to_string().contains("missing field") =>
            {
                Self::missing_param(error.to_string())
            }
            error => Self::invalid_param(error.to_string()),
        }
    }
}

impl From<Interrupted> for ApiError {
    fn from(error: Interrupted) -> Self {
        match error {
            Interrupted::Stopping(_) => Self::unavailable(error),
            Interrupted::Lost(_) | Interrupted::NoRandomness(_) => Self::internal(error),
        }
    }
}

impl From<sallyport_store::Error> for ApiError {
    fn from(error: sallyport_store::Error) -> Self {
        match error {
            // Both pass: somebody frees space, or the box comes back.
            sallyport_store::Error::DiskFull | sallyport_store::Error::Closed => {
                Self::unavailable(error)
            }
            error => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the disk is full")]
    struct DiskFull;

    #[test]
    fn chain_names_every_source_once() {
        let error = ApiError::internal(DiskFull);
        assert_eq!(
            error.chain(),
            "M_UNKNOWN: The server failed to answer; its log says why.: the disk is full"
        );
    }

    #[test]
    fn rate_limit_sets_the_header() {
        let response = ApiError::limit_exceeded(Duration::from_secs(3)).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "3");
    }
}
