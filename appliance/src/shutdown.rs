//! Stopping in order: who waits for the stop signal, and who announces it.

use tokio::sync::watch;

/// Lets any part of the box ask or wait for the stop.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Announces the stop.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// A stop that has not been announced.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Shutdown {
    /// Whether the box is stopping.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the box is to stop.
    pub async fn requested(&self) {
        // An error means that the trigger is gone, which is a stop too.
        let _ = self.0.clone().wait_for(|stopping| *stopping).await;
    }
}

impl Trigger {
    /// Announces the stop to all who wait.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}
