//! What the helper gives up before it loads a module.

#![expect(unsafe_code, reason = "signals and `_exit` have unsafe functions")]

use std::{collections::BTreeMap, env, fs, io, thread, time::Duration};

use nix::{
    libc,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigHandler, Signal, signal},
    },
    unistd,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// System calls that no module needs: other programs, other processes, the kernel itself, and ways around this list.
/// Everything else is allowed, because what a module needs for its device nobody can know.
const DENIED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
];

/// Gives up everything that a module has no use for. Fails rather than leaves a part of it undone.
pub(super) fn harden() -> io::Result<()> {
    close_inherited()?;
    // The box says when it is over by closing the socket; a service manager that stops everything at once must not cut a
    // signature short, nor the helper outlive a box that was killed.
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: to ignore a signal installs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The memory holds the PIN: no dumps of it, and no debugger of the same user.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    let architecture = TargetArch::try_from(env::consts::ARCH).map_err(io::Error::other)?;
    let rules: BTreeMap<_, _> = DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture)
        .map_err(io::Error::other)?;
    let program = BpfProgram::try_from(filter).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
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

/// Closes every file but the socket (standard input), standard output and the log (standard error).
fn close_inherited() -> io::Result<()> {
    let open = fs::read_dir("/proc/self/fd")?
        .map(|entry| Ok(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())))
        .collect::<io::Result<Vec<_>>>()?;
    for descriptor in open.into_iter().flatten().filter(|descriptor| *descriptor > 2) {
        // The listing's own is closed already.
        let _ = unistd::close(descriptor);
    }
    Ok(())
}
