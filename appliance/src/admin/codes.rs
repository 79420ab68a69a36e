//! New activation codes over the administration socket.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use sallyport_core::{
    admin::{CodesRequest, IssuedCode},
    limits::ADMIN_BODY_BYTES_MAX,
};

use super::command::{self, Answer};
use crate::{app::App, app::random, service::activation};

/// Gives accounts new codes.
pub(super) async fn renew(
    State(app): State<Arc<App>>,
    request: Request,
) -> Answer<Vec<IssuedCode>> {
    let (head, body) = request.into_parts();
    let order = command::order(&app, &head)?;
    let wish: CodesRequest = command::json(body, ADMIN_BODY_BYTES_MAX).await?;
    let codes = command::carry_out(&app, order, "activation.renew", "", move |app, order| {
        let new_code = || Ok(app.pepper.new_code(&random()?));
        activation::renew(&app.store, &app.config.server_name, &wish, order, &new_code)
    });
    codes.await.map(Json)
}
