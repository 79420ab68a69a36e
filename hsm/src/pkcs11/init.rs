//! Setting a token up, once in its life: the part of the key ceremony that PKCS#11 does.

use std::path::Path;

use cryptoki::{session::UserType, slot::Slot, types::AuthPin};

use super::{codes::during, module::Module};
use crate::{Error, Pin};

/// Bytes of a token label (PKCS#11, `CK_TOKEN_INFO`).
const LABEL_BYTES_MAX: usize = 32;

/// Gives the first blank token of a module a label, a security officer's PIN and a user PIN, and returns its serial number.
/// Tokens that are set up already are left alone.
///
/// It loads the module into this process: for a ceremony, not for a box that runs.
pub fn init_token(
    module: &Path,
    label: &str,
    officer_pin: &Pin,
    user_pin: &Pin,
) -> Result<String, Error> {
    if label.is_empty() || label.len() > LABEL_BYTES_MAX {
        return Err(Error::Unsupported("labels of other than 1 to 32 bytes".to_owned()));
    }
    let module = Module::load(module)?;
    module.initialize()?;
    let module = module.pkcs11();
    let slots = || module.get_slots_with_token().map_err(during("slot lists"));
    // A token that does not answer is not the one.
    let info = |slot: Slot| module.get_token_info(slot).ok();
    let mut blank = None;
    for slot in slots()? {
        let Some(info) = info(slot) else { continue };
        if info.token_initialized() && info.label() == label {
            return Err(Error::TokenAmbiguous { label: label.to_owned() });
        }
        if !info.token_initialized() {
            blank = blank.or(Some(slot));
        }
    }
    let blank = blank.ok_or_else(|| Error::TokenMissing {
        label: label.to_owned(),
        found: "no blank token".to_owned(),
    })?;
    let officer_pin = AuthPin::from(officer_pin.expose());
    module.init_token(blank, &officer_pin, label).map_err(during("setting up tokens"))?;

    // SoftHSM moves a token to another slot when it gets its serial number.
    for slot in slots()? {
        let Some(info) = info(slot) else { continue };
        if info.token_initialized() && info.label() == label {
            let session = module.open_rw_session(slot).map_err(during("sessions"))?;
            session.login(UserType::So, Some(&officer_pin)).map_err(during("login with a PIN"))?;
            session
                .init_pin(&AuthPin::from(user_pin.expose()))
                .map_err(during("setting a user PIN"))?;
            session.logout().map_err(during("logout"))?;
            return Ok(info.serial_number().to_owned());
        }
    }
    Err(Error::TokenMissing { label: label.to_owned(), found: "none".to_owned() })
}
