//! The one module of this process: loaded once and never unloaded, because modules have threads, and destructors that meet
//! what is already gone.

use std::path::Path;

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error as Cryptoki, RvError},
};

use super::codes::during;
use crate::Error;

/// A module that is loaded.
pub(crate) struct Module(Pkcs11);

impl Module {
    /// Loads a module.
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let failed = |why: Cryptoki| Error::Module { path: path.to_owned(), why: why.to_string() };
        Pkcs11::new(path).map(Self).map_err(failed)
    }

    /// Initialises it, unless that was done.
    pub(crate) fn initialize(&self) -> Result<(), Error> {
        match self.0.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Cryptoki::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
            Err(error) => Err(during("use from several threads")(error)),
        }
    }

    /// Ends all sessions; some modules do not see a token again otherwise.
    pub(crate) fn finalize(&self) {
        // Not initialised at all is just as well.
        drop(self.0.clone().finalize());
    }

    /// Whether it is [`is_tpm2`].
    pub(crate) fn is_tpm2(&self) -> bool {
        is_tpm2(&self.0)
    }

    pub(super) fn pkcs11(&self) -> &Pkcs11 {
        &self.0
    }
}

/// Whether a module is tpm2-pkcs11, which has ways of its own (1.9, measured):
///
/// - A TPM has room for about three keys at a time. Each that was used stays there until the module is finalised, and those for which there is no room
///   fail with `CKR_GENERAL_ERROR`.
/// - It makes RSA keys for everything, and fails where it is told otherwise.
pub(super) fn is_tpm2(module: &Pkcs11) -> bool {
    module.get_library_info().is_ok_and(|info| info.manufacturer_id().starts_with("tpm2-software"))
}
