//! From a handler to a use case: on a thread that may block, in a pool that bounds how many run at a time.

use std::sync::Arc;

use super::error::ApiError;
use crate::app::App;

impl App {
    /// Runs a use case on a thread that may block. At most
    /// [`BLOCKING_CALLS_MAX`](sallyport_core::limits::BLOCKING_CALLS_MAX) run at a time; the others wait in order.
    ///
    /// # Errors
    /// The use case's own, or 503 if the box stops.
    pub async fn run<T, E, F>(self: &Arc<Self>, call: F) -> Result<T, ApiError>
    where
        F: FnOnce(&Self) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        self.run_in(&self.calls, call).await?.map_err(Into::into)
    }

    /// As [`App::run`], in a pool of its own for password hashes: each takes a core for a good
    /// while, and a wave of log-ins must not stop everything else.
    ///
    /// # Errors
    /// As [`App::run`].
    pub async fn run_password_check<T, E, F>(self: &Arc<Self>, call: F) -> Result<T, ApiError>
    where
        F: FnOnce(&Self) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        self.run_in(&self.password_checks, call).await?.map_err(Into::into)
    }

    /// As [`App::run`], in a pool of its own for thumbnails: each takes a core and much memory.
    ///
    /// # Errors
    /// As [`App::run`].
    pub async fn run_thumbnail<T, E, F>(self: &Arc<Self>, call: F) -> Result<T, ApiError>
    where
        F: FnOnce(&Self) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        self.run_in(&self.thumbnails, call).await?.map_err(Into::into)
    }
}
