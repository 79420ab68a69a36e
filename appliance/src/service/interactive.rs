//! User-interactive authentication: proving again who one is before something that cannot be undone.
//!
//! [Client-Server API](https://spec.matrix.org/v1.16/client-server-api/#user-interactive-authentication-api). All our
//! flows have one stage, so a session only remembers what it was opened for.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sallyport_core::{
    limits::{INTERACTIVE_SESSION_MS, INTERACTIVE_SESSIONS_MAX},
    time::Millis,
};

use super::expiring::Expiring;

/// Purposes of open sessions of user-interactive authentication, by their ids.
///
/// Clients whose session went because there were too many open another one: they are asked again, no more.
pub struct Interactive(Expiring<String, String>);

impl Default for Interactive {
    fn default() -> Self {
        Self(Expiring::new(Duration::from_millis(INTERACTIVE_SESSION_MS), INTERACTIVE_SESSIONS_MAX))
    }
}

impl Interactive {
    /// Opens a session for a purpose (what is to be done, and by whom) and answers its id.
    pub fn open(&self, purpose: String, now: Millis, random: [u8; 18]) -> String {
        let id = URL_SAFE_NO_PAD.encode(random);
        self.0.insert(id.clone(), purpose, now);
        id
    }

    /// What an open session was opened for.
    pub fn purpose(&self, id: &str, now: Millis) -> Option<String> {
        self.0.get(id, now)
    }

    /// The purpose is fulfilled.
    pub fn close(&self, id: &str) {
        self.0.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_serves_its_purpose_for_a_while() {
        let interactive = Interactive::default();
        let now = Millis(1_000);
        let id = interactive.open("delete A".to_owned(), now, [1; 18]);
        assert_eq!(interactive.purpose(&id, now).as_deref(), Some("delete A"));
        let later = now.plus(Duration::from_millis(INTERACTIVE_SESSION_MS));
        assert_eq!(interactive.purpose(&id, later), None);
        interactive.close(&id);
        assert_eq!(interactive.purpose(&id, now), None);
    }

    #[test]
    fn memory_is_bounded() {
        let interactive = Interactive::default();
        let open = |number: usize| {
            let mut random = [0; 18];
            random[..8].copy_from_slice(&number.to_be_bytes());
            interactive.open(String::new(), Millis(0), random)
        };
        let opened: Vec<_> = (0..2 * INTERACTIVE_SESSIONS_MAX).map(open).collect();
        let there = opened.iter().filter(|id| interactive.purpose(id, Millis(0)).is_some());
        assert!((1..=INTERACTIVE_SESSIONS_MAX).contains(&there.count()));
    }
}
