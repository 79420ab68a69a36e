//! The modules of this process: loaded once and never unloaded, initialised when needed, finalised only when nobody else
//! can be inside.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error as Cryptoki, RvError},
};

use super::{codes::during, lock};
use crate::Error;

/// C_Initialize and C_Finalize are for the whole process, so what guards them is too.
static PROCESS: Mutex<Process> = Mutex::new(Process { loaded: BTreeMap::new(), users: 0 });

struct Process {
    /// Modules do not survive being unloaded: they have threads, and destructors that meet what is already gone.
    loaded: BTreeMap<PathBuf, Pkcs11>,
    /// Threads that are or may be inside a module.
    users: usize,
}

/// The right to call modules. A thread that hangs in one never gives it back.
pub(super) struct User;

impl User {
    pub(super) fn enter() -> Self {
        lock(&PROCESS).users += 1;
        Self
    }

    /// Loads a module, unless that was done, and initialises it, unless that was done.
    pub(super) fn module(&self, path: &Path) -> Result<Pkcs11, Error> {
        let mut process = lock(&PROCESS);
        let module = process.load(path)?;
        initialize(&module)?;
        Ok(module)
    }

    /// The same, but if no other thread uses a module, it is finalised first: some modules do not see a token again
    /// otherwise.
    pub(super) fn module_anew(&self, path: &Path) -> Result<Pkcs11, Error> {
        let mut process = lock(&PROCESS);
        let module = process.load(path)?;
        if process.users == 1 {
            // Not initialised at all is just as well.
            drop(module.clone().finalize());
        }
        initialize(&module)?;
        Ok(module)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        lock(&PROCESS).users -= 1;
    }
}

impl Process {
    fn load(&mut self, path: &Path) -> Result<Pkcs11, Error> {
        if let Some(module) = self.loaded.get(path) {
            return Ok(module.clone());
        }
        let module =
            Pkcs11::new(path).map_err(|source| Error::Module { path: path.to_owned(), source })?;
        self.loaded.insert(path.to_owned(), module.clone());
        Ok(module)
    }
}

fn initialize(module: &Pkcs11) -> Result<(), Error> {
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Cryptoki::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        Err(error) => Err(during("use from several threads")(error)),
    }
}
