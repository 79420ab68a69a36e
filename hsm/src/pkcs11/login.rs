//! Finding the token, logging in, and opening sessions.

use cryptoki::{
    context::Pkcs11,
    error::{Error as Cryptoki, RvError},
    session::{Session, UserType},
    slot::{Limit, Slot, TokenInfo},
    types::AuthPin,
};

use super::{codes::during, connection::Connection, module::Module};
use crate::{Error, Pin};

/// Which token it must be.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// Its label.
    pub(crate) label: &'a str,
    /// The serial number that the configuration names.
    pub(crate) configured: Option<&'a str>,
    /// The serial number of the token that was opened first.
    pub(crate) opened: Option<&'a str>,
}

/// The session that holds the login. Login is per process and ends with the last session, so this one does no work that it
/// could be lost in.
pub(crate) struct Login {
    module: Pkcs11,
    slot: Slot,
    serial: String,
    anchor: Session,
    /// Sessions that the token has room for beside the anchor.
    room: u64,
}

/// Sessions of one login. They end with it.
pub(crate) struct Connections {
    /// There is always one.
    pub(crate) first: Connection,
    /// As many more as were wanted and the token had room for.
    pub(crate) others: Vec<Connection>,
    /// What holds the login; without it, the first session does.
    pub(crate) anchor: Option<Anchor>,
}

/// Keeps the login as long as it lives.
pub(crate) struct Anchor {
    _session: Session,
}

impl Login {
    /// Finds the token in an initialised module and logs in with a PIN, or without one at the token's own PIN pad. An automatic
    /// attempt does not spend the last try at the PIN.
    pub(crate) fn open(
        module: &Module,
        wanted: Wanted<'_>,
        pin: Option<&Pin>,
        by_hand: bool,
    ) -> Result<Self, Error> {
        let Found { slot, serial } = find_token(module, wanted)?;
        let module = module.pkcs11();
        let info = module.get_token_info(slot).map_err(during("token information"))?;
        if info.user_pin_locked() {
            return Err(Error::PinLocked);
        }
        if info.user_pin_final_try() && !by_hand {
            return Err(Error::PinLastTry);
        }
        if pin.is_none() && !info.protected_authentication_path() {
            return Err(Error::NoPinPad);
        }
        let anchor = module.open_rw_session(slot).map_err(during("sessions"))?;
        let pin = pin.map(|pin| AuthPin::from(pin.expose()));
        match anchor.login(UserType::User, pin.as_ref()) {
            // Login is per process: another session of ours did it.
            Ok(()) | Err(Cryptoki::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => return Err(during("login with a PIN")(error)),
        }
        Ok(Self { module: module.clone(), slot, serial, anchor, room: room(&info) })
    }

    /// The serial number of the token.
    pub(crate) fn serial(&self) -> &str {
        &self.serial
    }

    /// Opens sessions to work in: as many as wanted, or as the token has room for. Where it has room for none, the session that
    /// holds the login works too.
    pub(crate) fn connections(self, wanted: u8) -> Result<Connections, Error> {
        let mut sessions = Vec::new();
        while sessions.len() < u64::from(wanted).min(self.room) as usize {
            match self.module.open_rw_session(self.slot) {
                Ok(session) => sessions.push(session),
                // The limit is for all programs together.
                Err(Cryptoki::Pkcs11(RvError::SessionCount, _)) => break,
                Err(error) => return Err(during("sessions")(error)),
            }
        }
        if sessions.len() < usize::from(wanted) {
            log::info!(wanted, opened = sessions.len().max(1); "the token has room for fewer sessions");
        }
        let connection = |session| Connection::new(self.module.clone(), self.slot, session);
        let mut sessions = sessions.into_iter();
        Ok(match sessions.next() {
            Some(first) => Connections {
                first: connection(first),
                others: sessions.map(connection).collect(),
                anchor: Some(Anchor { _session: self.anchor }),
            },
            None => {
                let first = connection(self.anchor);
                Connections { first, others: Vec::new(), anchor: None }
            }
        })
    }
}

/// Sessions that can be opened beside the first.
fn room(info: &TokenInfo) -> u64 {
    let limit = |limit| match limit {
        Limit::Max(sessions) => sessions,
        Limit::Unavailable | Limit::Infinite => u64::MAX,
    };
    limit(info.max_session_count()).min(limit(info.max_rw_session_count())).saturating_sub(1)
}

/// The one token that was looked for.
pub(crate) struct Found {
    slot: Slot,
    serial: String,
}

/// Slots change when a token is plugged in again; label and serial number do not.
pub(crate) fn find_token(module: &Module, wanted: Wanted<'_>) -> Result<Found, Error> {
    let Wanted { label, configured, opened } = wanted;
    let module = module.pkcs11();
    let slots = module.get_slots_with_token().map_err(during("slot lists"))?;
    let with_token = slots.len();
    // A slot whose token cannot be asked is as good as empty.
    let tokens =
        slots.into_iter().filter_map(|slot| Some((slot, module.get_token_info(slot).ok()?)));
    let mut found = Vec::new();
    let mut others = Vec::new();
    for (slot, info) in tokens.filter(|(_, info)| info.token_initialized()) {
        if info.label() == label {
            found.push(Found { slot, serial: info.serial_number().to_owned() });
        } else {
            others.push(info.label().to_owned());
        }
    }
    let expected = configured.or(opened);
    if let Some(expected) = expected
        && let Some(position) = found.iter().position(|token| token.serial == expected)
    {
        return Ok(found.swap_remove(position));
    }
    let label = label.to_owned();
    match (found.pop(), found.is_empty(), expected) {
        (Some(token), true, None) => Ok(token),
        (Some(token), true, Some(expected)) => {
            let (serial, expected) = (token.serial, expected.to_owned());
            Err(if configured.is_some() {
                Error::TokenSerial { label, serial, configured: expected }
            } else {
                Error::TokenExchanged { label, serial, expected }
            })
        }
        (Some(_), false, _) => Err(Error::TokenAmbiguous { label }),
        (None, _, _) => {
            if others.is_empty() {
                others.push("none".to_owned());
            }
            // A reader without a card tells a person more than no reader.
            let slots = module.get_all_slots().map_err(during("slot lists"))?.len();
            let empty = slots.saturating_sub(with_token);
            if empty > 0 {
                others.push(format!("empty readers: {empty}"));
            }
            Err(Error::TokenMissing { label, found: others.join(", ") })
        }
    }
}
