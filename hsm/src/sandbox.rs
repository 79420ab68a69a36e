//! What a process gives up before it touches what strangers made: a PKCS#11 module of a vendor, or a stick.
//!
//! All of it is to be called while there is one thread, and none of it can be taken back.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetStatus,
};
use nix::{
    libc,
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// What landlock of the newest kernel knows.
const LANDLOCK: ABI = ABI::V5;

/// System calls that nobody needs who loads a module: other programs, other processes, the kernel itself, and ways around this list.
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

/// The system calls of a process that copies bytes between a device that is open and files: all others are refused, sockets of any
/// kind among them.
const COPYING: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The older forms of some of them, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const COPYING_OLD: &[libc::c_long] =
    &[libc::SYS_mkdir, libc::SYS_unlink, libc::SYS_rmdir, libc::SYS_rename];
#[cfg(not(target_arch = "x86_64"))]
const COPYING_OLD: &[libc::c_long] = &[];

/// Families of sockets that lead out of this machine no more than they must: Unix sockets (daemons of vendors, `pcscd`, the box) and
/// those to the kernel (which tell what is plugged in).
const LOCAL_FAMILIES: [libc::c_int; 2] = [libc::AF_UNIX, libc::AF_NETLINK];

/// The system calls that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// All but those that lead to other programs, other processes or the kernel.
    Most {
        /// Whether sockets may lead into a network.
        network: bool,
    },
    /// Those of a process that copies between files which are open or beneath its folders.
    Copying,
}

/// The files that are left.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// Whether reading is confined as well, or only writing and running.
    pub reading_too: bool,
    /// Folders in which everything may be done but running programs.
    pub folders: &'a [PathBuf],
    /// A folder of devices, which may be written to and controlled.
    pub devices: Option<&'a Path>,
}

/// How much of a confinement this kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// All of it.
    Fully,
    /// A part of it.
    Partly,
    /// Nothing: it has no landlock.
    NotAtAll,
}

/// Closes every file but the standard ones.
///
/// # Errors
/// If open files cannot be listed.
pub fn close_inherited() -> io::Result<()> {
    let open = fs::read_dir("/proc/self/fd")?
        .map(|entry| Ok(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())))
        .collect::<io::Result<Vec<_>>>()?;
    for descriptor in open.into_iter().flatten().filter(|descriptor| *descriptor > 2) {
        // The listing's own is closed already.
        let _ = unistd::close(descriptor);
    }
    Ok(())
}

/// No dumps of the memory, no debugger of the same user, and no program that gives privileges.
///
/// # Errors
/// If the kernel refuses.
pub fn settle() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    Ok(())
}

/// Keeps only these files; those that are open stay open. [`settle`] comes first.
///
/// # Errors
/// If one of the folders is not there, or the kernel refuses.
pub fn confine_files(files: &Files<'_>) -> io::Result<Enforced> {
    restrict(files).map_err(io::Error::other)
}

fn restrict(files: &Files<'_>) -> Result<Enforced, Box<dyn std::error::Error + Send + Sync>> {
    let writes = AccessFs::from_write(LANDLOCK);
    let (handled, folder): (BitFlags<AccessFs>, BitFlags<AccessFs>) = if files.reading_too {
        let all = AccessFs::from_all(LANDLOCK);
        (all, all & !BitFlags::from(AccessFs::Execute))
    } else {
        (writes | AccessFs::Execute, writes)
    };
    let mut rules: RulesetCreated = Ruleset::default().handle_access(handled)?.create()?;
    if let Some(devices) = files.devices {
        let device = AccessFs::WriteFile | AccessFs::IoctlDev;
        rules = rules.add_rule(PathBeneath::new(PathFd::new(devices)?, device))?;
    }
    for path in files.folders {
        let opened = PathFd::new(path)
            .map_err(|error| format!("{} is to be writable: {error}", path.display()))?;
        rules = rules.add_rule(PathBeneath::new(opened, folder))?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::NotAtAll,
    })
}

/// Keeps only these system calls; the others answer that they are not permitted. [`settle`] comes first.
///
/// # Errors
/// If the kernel refuses.
pub fn confine_calls(calls: Calls) -> io::Result<()> {
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let whole = |numbers: &[libc::c_long]| -> BTreeMap<_, Vec<SeccompRule>> {
        numbers.iter().map(|number| (*number, Vec::new())).collect()
    };
    let (rules, others, those) = match calls {
        Calls::Most { network } => {
            let mut rules = whole(DENIED);
            if !network {
                let rule = other_families().map_err(io::Error::other)?;
                rules.insert(libc::SYS_socket, vec![rule]);
            }
            (rules, SeccompAction::Allow, refused)
        }
        Calls::Copying => {
            let rules = whole(&[COPYING, COPYING_OLD].concat());
            (rules, refused, SeccompAction::Allow)
        }
    };
    let architecture = TargetArch::try_from(env::consts::ARCH).map_err(io::Error::other)?;
    let filter =
        SeccompFilter::new(rules, others, those, architecture).map_err(io::Error::other)?;
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
