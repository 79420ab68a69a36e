//! What needs the token and nobody waits for: that it wraps the key of the vault, and that the serving certificate is made and renewed.

use std::{sync::Arc, time::Duration};

use sallyport_hsm::{Health, Token};
use tokio::task::spawn_blocking;

use crate::{app::App, telemetry, tls::Certificates, vault};

/// How often an absent token is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How often the certificate is looked at when there is nothing else to do.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(6 * 60 * 60);

/// Looks after what depends on the token, until the box stops.
pub async fn run(app: Arc<App>) {
    let mut wrapped = app.token.is_none();
    let mut told = None;
    while !app.shutdown.is_requested() {
        let there = app.token.as_ref().is_none_or(|token| token.health() == Health::Ready);
        if there && let Some(token) = app.token.as_ref().filter(|_| !wrapped) {
            wrapped = wrap_vault(&app, token).await;
        }
        let fits = match &app.certificates {
            Some(certificates) => refresh(&app, certificates, &mut told).await,
            None => true,
        };
        tokio::select! {
            () = app.shutdown.requested() => {}
            () = tokio::time::sleep(if wrapped && fits { CERTIFICATE_CHECK } else { LOOK }) => {}
        }
    }
}

/// Whether what is served now fits. What is in the way is told once.
async fn refresh(
    app: &Arc<App>,
    certificates: &Arc<Certificates>,
    told: &mut Option<String>,
) -> bool {
    let (worker, refreshing) = (Arc::clone(app), Arc::clone(certificates));
    let refreshed =
        spawn_blocking(move || refreshing.refresh(&worker.store, (worker.clock)())).await;
    let (fits, problem) = match refreshed {
        Ok(Ok(true)) => (true, None),
        Ok(Ok(false)) => (false, certificates.waits()),
        Ok(Err(error)) => (false, Some(telemetry::chain(&error))),
        Err(error) => (false, Some(telemetry::chain(&error))),
    };
    match &problem {
        Some(error) if problem != *told && certificates.is_ready() => {
            log::warn!(error; "the serving certificate cannot be renewed: the one before is served on");
        }
        Some(error) if problem != *told => {
            log::error!(error; "there is no certificate yet: listeners with TLS stay closed until the token answers");
        }
        _ => {}
    }
    *told = problem;
    fits
}

/// Whether there is nothing left to do until the next start.
async fn wrap_vault(app: &Arc<App>, token: &Arc<dyn Token>) -> bool {
    let (vault, token) = (Arc::clone(&app.vault), Arc::clone(token));
    let wrapped = spawn_blocking(move || vault.wrap_with(&*token)).await;
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
