//! User-interactive authentication: proving again who one is before something that cannot be undone.
//!
//! [Client-Server API](https://spec.matrix.org/v1.16/client-server-api/#user-interactive-authentication-api). All our
//! flows have one stage, so a session only remembers what it was opened for.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sallyport_core::{
    limits::{INTERACTIVE_SESSION_MS, INTERACTIVE_SESSIONS_MAX},
    time::Millis,
};

/// Open sessions of user-interactive authentication.
#[derive(Default)]
pub struct Interactive(Mutex<BTreeMap<String, Open>>);

struct Open {
    purpose: String,
    expires: Millis,
}

impl Interactive {
    /// Opens a session for a purpose (what is to be done, and by whom) and answers its id.
    pub fn open(&self, purpose: String, now: Millis, random: [u8; 18]) -> String {
        let mut sessions = self.lock();
        if sessions.len() >= INTERACTIVE_SESSIONS_MAX {
            sessions.retain(|_, open| now < open.expires);
        }
        if sessions.len() >= INTERACTIVE_SESSIONS_MAX {
            // Clients whose session went open another one: they are asked again, no more.
            sessions.clear();
        }
        let id = URL_SAFE_NO_PAD.encode(random);
        let expires = now.plus(Duration::from_millis(INTERACTIVE_SESSION_MS));
        sessions.insert(id.clone(), Open { purpose, expires });
        id
    }

    /// What an open session was opened for.
    pub fn purpose(&self, id: &str, now: Millis) -> Option<String> {
        let sessions = self.lock();
        sessions.get(id).filter(|open| now < open.expires).map(|open| open.purpose.clone())
    }

    /// The purpose is fulfilled.
    pub fn close(&self, id: &str) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        for number in 0..2 * INTERACTIVE_SESSIONS_MAX {
            let mut random = [0; 18];
            random[..8].copy_from_slice(&number.to_be_bytes());
            interactive.open(String::new(), Millis(0), random);
        }
        assert!(interactive.lock().len() <= INTERACTIVE_SESSIONS_MAX);
    }
}
