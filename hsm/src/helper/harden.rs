//! What the helper gives up before it loads a module.

#![expect(unsafe_code, reason = "signals and `_exit` have unsafe functions")]

use std::{collections::BTreeMap, env, fs, io, path::PathBuf, thread, time::Duration};

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetStatus,
};
use nix::{
    libc,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{SigHandler, Signal, signal},
    },
    unistd,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::arguments::ServedToken;

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

/// Families of sockets that lead out of this machine no more than they must: Unix sockets (daemons of vendors, `pcscd`) and those
/// to the kernel (which tell what is plugged in).
const LOCAL_FAMILIES: [libc::c_int; 2] = [libc::AF_UNIX, libc::AF_NETLINK];

/// Gives up everything that a module has no use for. Fails rather than leaves a part of it undone, but for what the kernel does
/// not know yet. To be called while there is one thread.
pub(super) fn harden(token: &ServedToken) -> io::Result<()> {
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
    confine_writing(&token.writable).map_err(io::Error::other)?;
    let mut rules: BTreeMap<_, _> = DENIED.iter().map(|number| (*number, Vec::new())).collect();
    if !token.network {
        rules.insert(libc::SYS_socket, vec![other_families().map_err(io::Error::other)?]);
    }
    let architecture = TargetArch::try_from(env::consts::ARCH).map_err(io::Error::other)?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture)
        .map_err(io::Error::other)?;
    let program = BpfProgram::try_from(filter).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

/// Matches a socket that could lead into a network: its family is none of the local ones. (Pairs of sockets lead nowhere else.)
fn other_families() -> Result<SeccompRule, seccompiler::BackendError> {
    let is_not = |family: libc::c_int| {
        let family = family.unsigned_abs().into();
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
    };
    SeccompRule::new(LOCAL_FAMILIES.map(is_not).into_iter().collect::<Result<_, _>>()?)
}

/// Forbids to write, make and remove files anywhere but beneath these folders, and to run programs anywhere. Devices may be written
/// to, as far as the user may: that is how a module reaches its token.
fn confine_writing(writable: &[PathBuf]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let writes = AccessFs::from_write(ABI::V5);
    let device = AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut rules = Ruleset::default().handle_access(writes | AccessFs::Execute)?.create()?;
    rules = rules.add_rule(PathBeneath::new(PathFd::new("/dev")?, device))?;
    for folder in writable {
        let opened = PathFd::new(folder)
            .map_err(|error| format!("{} is to be writable: {error}", folder.display()))?;
        rules = rules.add_rule(PathBeneath::new(opened, writes))?;
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => {
            log::info!(
                "this kernel knows a part of landlock: the module may write to some files that it need not"
            );
        }
        RulesetStatus::NotEnforced => {
            log::warn!("this kernel has no landlock: the module may write wherever its user may");
        }
    }
    Ok(())
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
