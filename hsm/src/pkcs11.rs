//! PKCS#11, as the helper uses it: one module, one login, and a thread for each session.
//!
//! Facts that shape it, measured or from the standard (PKCS#11 3.0): login is per process and token, not per session; handles
//! die with the login and their numbers are used again for other keys; a call cannot be aborted; a removed token comes back
//! in another slot. Hence keys are found by label and `CKA_ID`, the token by label and serial number, each signature is
//! verified before it is given out, and the process that hangs in a module is killed.

mod codes;
mod connection;
mod init;
mod login;
mod module;
mod probe;
mod wrapping;

pub(crate) use connection::Connection;
pub use init::init_token;
pub(crate) use init::{Blank, look_for_blank};
pub(crate) use login::{Anchor, Connections, Login, Wanted, find_token};
pub(crate) use module::Module;
pub(crate) use probe::caps;
