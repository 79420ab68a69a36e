//! What the helper gives up before it loads a module.

#![expect(unsafe_code, reason = "signals and `_exit` have unsafe functions")]

use std::{io, path::Path, thread, time::Duration};

use nix::{
    libc,
    sys::{
        prctl,
        signal::{SigHandler, Signal, signal},
    },
};

use super::arguments::ServedToken;
use crate::sandbox::{self, Calls, Enforced, Files};

/// Gives up everything that a module has no use for. Fails rather than leaves a part of it undone, but for what the kernel does
/// not know yet. To be called while there is one thread.
pub(super) fn harden(token: &ServedToken) -> io::Result<()> {
    sandbox::close_inherited()?;
    // The box says when it is over by closing the socket; a service manager that stops everything at once must not cut a
    // signature short, nor the helper outlive a box that was killed.
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: to ignore a signal installs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The memory holds the PIN.
    sandbox::settle()?;
    // Devices may be written to, as far as the user may: that is how a module reaches its token.
    let files =
        Files { reading_too: false, folders: &token.writable, devices: Some(Path::new("/dev")) };
    match sandbox::confine_files(&files)? {
        Enforced::Fully => {}
        Enforced::Partly => {
            log::info!(
                "this kernel knows a part of landlock: the module may write to some files that it need not"
            );
        }
        Enforced::NotAtAll => {
            log::warn!("this kernel has no landlock: the module may write wherever its user may");
        }
    }
    sandbox::confine_calls(Calls::Most { network: token.network })
}

/// Ends this process at once after a time, whatever its module does then. To be called when the process is about to end anyway.
pub(super) fn end_after(time: Duration) {
    let watch = move || {
        thread::sleep(time);
        // Not `exit`, which would run what the module left to be done at the end.
        // SAFETY: it has no conditions.
        unsafe { libc::_exit(1) }
    };
    // Without a thread nothing can be done: whoever supervises the process may end it.
    drop(thread::Builder::new().name("end".to_owned()).spawn(watch));
}
