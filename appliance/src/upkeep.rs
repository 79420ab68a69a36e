//! What needs the token and nobody waits for: that it wraps the key of the vault.

use std::{sync::Arc, time::Duration};

use sallyport_hsm::{Health, Token};

use crate::{app::App, telemetry, vault};

/// How often an absent token is looked for, and a present one for what has changed in it.
const LOOK: Duration = Duration::from_secs(2);

/// Looks after what depends on the token, until the box stops.
pub async fn run(app: Arc<App>) {
    let Some(token) = app.token.clone() else { return };
    while !app.shutdown.is_requested() {
        if token.health() == Health::Ready && wrap_vault(&app, &token).await {
            return;
        }
        tokio::select! {
            () = app.shutdown.requested() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Whether there is nothing left to do until the next start.
async fn wrap_vault(app: &Arc<App>, token: &Arc<dyn Token>) -> bool {
    let (vault, token) = (Arc::clone(&app.vault), Arc::clone(token));
    let wrapped = tokio::task::spawn_blocking(move || vault.wrap_with(&*token)).await;
    match wrapped {
        Ok(Ok(now)) => {
            if now {
                log::info!("the token can open the vault, should its box key be lost");
            }
            true
        }
        Ok(Err(error @ vault::Error::CannotWrap)) => {
            log::warn!(error:% = error; "the token cannot open the vault, should its box key be lost");
            true
        }
        Ok(Err(error)) => {
            log::debug!(error = telemetry::chain(&error); "the token does not wrap the vault's key yet");
            false
        }
        Err(error) => {
            log::error!(error:% = error; "the vault's key could not be wrapped");
            false
        }
    }
}
