//! Setting a token up, once in its life: the part of the key ceremony that PKCS#11 does.

use std::path::Path;

use cryptoki::{session::UserType, slot::Slot, types::AuthPin};
use sallyport_core::limits::TOKEN_LABEL_BYTES_MAX;

use super::{codes::during, module::Module};
use crate::{Error, Pin};

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
    if label.is_empty() || label.len() > TOKEN_LABEL_BYTES_MAX {
        return Err(Error::Unsupported("labels of other than 1 to 32 bytes".to_owned()));
    }
    let module = Module::load(module)?;
    module.initialize()?;
    let blank = match find_blank(&module, label)? {
        Blank::Slot(slot) => slot,
        Blank::There => return Err(Error::TokenAmbiguous { label: label.to_owned() }),
        Blank::Nothing => {
            let found = "no blank token".to_owned();
            return Err(Error::TokenMissing { label: label.to_owned(), found });
        }
    };
    let module = module.pkcs11();
    let officer_pin = AuthPin::from(officer_pin.expose());
    module.init_token(blank, &officer_pin, label).map_err(during("setting up tokens"))?;

    // SoftHSM moves a token to another slot when it gets its serial number.
    for slot in module.get_slots_with_token().map_err(during("slot lists"))? {
        let Ok(info) = module.get_token_info(slot) else { continue };
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

/// Whether there is a blank token.
pub(crate) enum Blank {
    /// The one that is wanted is set up already.
    There,
    /// It is not there, and in this slot is a blank one.
    Slot(Slot),
    /// Neither is there.
    Nothing,
}

/// Looks for the token of a label, or a blank one in its place. It loads the module into this process.
pub(crate) fn look_for_blank(module: &Path, label: &str) -> Result<Blank, Error> {
    let module = Module::load(module)?;
    module.initialize()?;
    find_blank(&module, label)
}

fn find_blank(module: &Module, label: &str) -> Result<Blank, Error> {
    let module = module.pkcs11();
    let mut found = Blank::Nothing;
    for slot in module.get_slots_with_token().map_err(during("slot lists"))? {
        // A token that does not answer is not the one.
        let Ok(info) = module.get_token_info(slot) else { continue };
        match (info.token_initialized(), &found) {
            (true, _) if info.label() == label => return Ok(Blank::There),
            (false, Blank::Nothing) => found = Blank::Slot(slot),
            _ => {}
        }
    }
    Ok(found)
}
