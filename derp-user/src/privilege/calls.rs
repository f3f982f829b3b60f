//! Which system calls the process may still make, by seccomp.
//!
//! The list says what is allowed; anything else fails with `ENOSYS`, as on a kernel that does not have it. Libraries
//! expect that of new calls and fall back, which they do not with `EPERM`: glibc starts threads with `clone3`, whose
//! flags a filter cannot see, and with `clone` where there is none. A forbidden call ends nobody: a mistake
//! in this list costs a function, not the relay.

use std::{collections::BTreeMap, process};

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Calls that are allowed with any arguments.
const ALLOWED: &[&[c_long]] = &[FILES, SOCKETS, WAITING, MEMORY, THREADS, CLOCKS, ITSELF, OLDER];

/// Which files, Landlock says.
const FILES: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    // Long messages to the journal.
    libc::SYS_memfd_create,
];

/// No `listen`: whoever may connect is settled.
const SOCKETS: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

const WAITING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_restart_syscall,
];

/// `mmap` and `mprotect` are in [`conditional`].
const MEMORY: &[c_long] =
    &[libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_membarrier];

/// `clone` is in [`conditional`].
const THREADS: &[c_long] = &[
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

const CLOCKS: &[c_long] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
];

/// About this process and machine.
const ITSELF: &[c_long] = &[
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getcpu,
    libc::SYS_uname,
    libc::SYS_sysinfo,
];

/// What x86-64 has besides, and musl and older C libraries use.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_time,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Kinds of sockets: the Internet's, `AF_UNIX` for tailscaled, the journal and the name service, `AF_NETLINK` for
/// addresses and routes.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// What is asked of open files besides reading and writing: whether they block, how much there is, whether they are a
/// terminal, and names and numbers of interfaces.
#[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
const REQUESTS: [u64; 6] = [
    libc::FIONBIO as u64,
    libc::FIONREAD as u64,
    libc::FIOCLEX as u64,
    libc::TCGETS as u64,
    libc::SIOCGIFINDEX as u64,
    libc::SIOCGIFNAME as u64,
];

/// What is asked of `prctl`: names of threads and, by glibc, of memory.
const PROCESS_REQUESTS: [i32; 3] = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];

/// `bpf(2)` on maps that are open (`enum bpf_cmd`): look up, update, delete and iterate, one by one and in batches, and
/// ask about an object. Nothing is loaded, made, attached or pinned.
const BPF_COMMANDS: [u64; 9] = [1, 2, 3, 4, 15, 24, 25, 26, 27];

/// Allows the process only these calls, in all its threads. `has_kernel_maps` tells whether it works with maps of a
/// kernel data plane.
pub(super) fn confine(has_kernel_maps: bool) -> Result<(), String> {
    let filter = program(has_kernel_maps).map_err(|error| error.to_string())?;
    seccompiler::apply_filter_all_threads(&filter)
        .map_err(|error| format!("the kernel or a container refuses it: {error}"))
}

fn program(has_kernel_maps: bool) -> Result<BpfProgram, BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut rules: BTreeMap<_, _> =
        ALLOWED.iter().copied().flatten().map(|call| (*call, Vec::new())).collect();
    rules.extend(conditional(has_kernel_maps)?);
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?.try_into()
}

/// Calls that are allowed with some arguments only.
fn conditional(has_kernel_maps: bool) -> Result<Vec<(c_long, Vec<SeccompRule>)>, BackendError> {
    let (write, execute) = (libc::PROT_WRITE.unsigned_abs(), libc::PROT_EXEC.unsigned_abs());
    let lacks = |argument, flag: u32| when(argument, SeccompCmpOp::MaskedEq(flag.into()), 0);
    let own_process = u64::from(process::id());
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let mut rules = vec![
        // Memory is never writable and executable; libraries of the name service are mapped.
        (libc::SYS_mmap, vec![lacks(2, write)?, lacks(2, execute)?]),
        (libc::SYS_mprotect, vec![lacks(2, execute)?]),
        // Threads, no processes.
        (libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]),
        // What `abort` does.
        (libc::SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, own_process)?]),
        (libc::SYS_prlimit64, one_of(0, [0, own_process])?),
        (libc::SYS_socket, one_of(0, FAMILIES.map(number))?),
        (libc::SYS_socketpair, one_of(0, [number(libc::AF_UNIX)])?),
        (libc::SYS_ioctl, one_of(1, REQUESTS)?),
        (libc::SYS_prctl, one_of(0, PROCESS_REQUESTS.map(number))?),
    ];
    if has_kernel_maps {
        rules.push((libc::SYS_bpf, one_of(0, BPF_COMMANDS)?));
    }
    Ok(rules)
}

fn number(constant: i32) -> u64 {
    constant.unsigned_abs().into()
}

fn one_of<const N: usize>(
    argument: u8,
    values: [u64; N],
) -> Result<Vec<SeccompRule>, BackendError> {
    values.into_iter().map(|value| when(argument, SeccompCmpOp::Eq, value)).collect()
}

/// All of these arguments are 32 bits wide in the kernel, which ignores the rest.
fn when(argument: u8, is: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value)?;
    SeccompRule::new(vec![condition])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_is_named_once_and_none_that_gains_rights() {
        let unconditional: Vec<_> = ALLOWED.iter().copied().flatten().copied().collect();
        let conditional: Vec<_> =
            conditional(true).expect("rules").into_iter().map(|(call, _)| call).collect();
        let all = [unconditional, conditional].concat();
        let set: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(set.len(), all.len());
        for forbidden in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_kill,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_move_mount,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_capset,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_listen,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_mkdirat,
        ] {
            assert!(!set.contains(&forbidden), "{forbidden}");
        }
    }

    #[test]
    fn the_program_fits_the_kernel() {
        let with_maps = program(true).expect("a program").len();
        let without = program(false).expect("a program").len();
        assert!(without < with_maps && with_maps < 4096, "BPF_MAXINSNS: {with_maps}");
    }
}
