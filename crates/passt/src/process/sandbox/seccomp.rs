//! The system calls that each thread may still make. Any other system call ends the process at once, by SIGSYS.
//!
//! A filter applies to the thread that installs it, and allows the calls of the thread's [`Role`]. Filters are
//! installed after all threads have started, and before data from the guest are read.
//!
//! To allow another call, add a row to [`TABLE`]: the call's number, the roles that need the call, its arguments, and
//! the reason. The thread that handles packets has the role [`Role::Pasta`] or [`Role::Passt`]. [`SHARD`] is the set of
//! both roles. In the end-to-end tests, a call without a row ends the program by SIGSYS.
//!
//! A call that is allowed with any arguments has no overhead: the kernel caches the decision for the call's number. If
//! the arguments of a call are checked, the check takes about 50 ns. So arguments are checked only for calls that are
//! rare or slow anyway.

use std::collections::BTreeMap;

use anyhow::Context;
use libc::{AF_INET, AF_INET6, AF_NETLINK, FIONBIO, FIONREAD, PROT_EXEC, TIOCOUTQ};
use rustix::fs::OFlags;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use sys::sockopt::SO_NETNS_COOKIE;
use sys::stream::SIOCATMARK;

/// The task of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Serves a namespace, and handles its command.
    Pasta = 1,
    /// Serves a virtual machine.
    Passt = 2,
    /// Opens sockets in the guest's namespace.
    Opener = 4,
    /// Reads resolv.conf when it changes.
    Reader = 8,
    /// Serves the clients of the API socket.
    Api = 16,
}

// Sets of roles.
const PASTA: u8 = Role::Pasta as u8;
const SHARD: u8 = PASTA | Role::Passt as u8;
const OPENER: u8 = Role::Opener as u8;
const READER: u8 = Role::Reader as u8;
const API: u8 = Role::Api as u8;
const ALL: u8 = SHARD | OPENER | READER | API;

/// A system call that is allowed.
struct Call {
    number: libc::c_long,
    /// The roles that may make the call.
    roles: u8,
    /// The arguments that the call may have.
    only: Only,
}

/// The arguments that a call may have.
#[derive(Clone, Copy)]
enum Only {
    /// Any arguments.
    Any,
    /// The argument with this index must be one of these values.
    OneOf(u8, &'static [libc::c_int]),
    /// The argument with this index must have no other bits than these.
    Within(u8, libc::c_int),
    /// The argument with this index must have none of these bits.
    Without(u8, libc::c_int),
    /// The first argument must be the ID of this process.
    OurProcess,
    /// The first argument must be the ID of the calling thread.
    OurThread,
}

use Only::{Any, OneOf, OurProcess, OurThread, Within, Without};

/// Flags with which [`Role::Reader`] may open a path. They do not allow writing.
const TO_READ: libc::c_int = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::LARGEFILE)
    .bits()
    .cast_signed();

const fn call(number: libc::c_long, roles: u8, only: Only) -> Call {
    Call { number, roles, only }
}

/// The allowed calls, by role, with the reason. The table has no call that starts a process or a thread, changes a
/// user, a namespace or a mount, reads another process, or makes memory executable. Only [`Role::Reader`] can open a
/// path.
#[rustfmt::skip]
const TABLE: &[Call] = &[
    // Memory for the allocator. The memory can't be made executable.
    call(libc::SYS_brk,            ALL,            Any),                      // grows and shrinks the heap
    call(libc::SYS_mmap,           ALL,            Without(2, PROT_EXEC)),    // large pieces, and heaps of threads
    call(libc::SYS_mprotect,       ALL,            Without(2, PROT_EXEC)),    // growth of heaps of threads
    call(libc::SYS_mremap,         ALL,            Any),                      // large pieces that grow
    call(libc::SYS_munmap,         ALL,            Any),                      // large pieces; stacks of threads that end
    call(libc::SYS_madvise,        ALL,            Any),                      // returns unused memory

    // Threads: locks, channels, their end.
    call(libc::SYS_futex,          ALL,            Any),                      // waits for a lock or a message
    call(libc::SYS_sched_yield,    ALL,            Any),                      // a lock that is held for a short time
    call(libc::SYS_rt_sigprocmask, ALL,            Any),                      // the end of a thread; abort(3)
    call(libc::SYS_sigaltstack,    ALL,            Any),                      // the end of a thread
    call(libc::SYS_exit,           OPENER | READER | API, Any),               // the end of a thread
    call(libc::SYS_exit_group,     ALL,            Any),                      // the end of the process

    // Time and random numbers.
    call(libc::SYS_clock_gettime,  ALL,            Any),                      // if the vDSO can't read the clock
    call(libc::SYS_restart_syscall, ALL,           Any),                      // a wait continues after SIGSTOP, SIGCONT
    call(libc::SYS_getrandom,      ALL,            Any),                      // keys of hash maps

    // Descriptors.
    call(libc::SYS_close,          ALL,            Any),                      // descriptors that are no longer needed
    call(libc::SYS_fcntl,          ALL,            Any),                      // pipe lengths; copies of descriptors

    // The event loop.
    call(libc::SYS_epoll_pwait,    SHARD | API,    Any),                      // waits
    call(libc::SYS_epoll_pwait2,   SHARD | API,    Any),                      // waits, with a long timeout
    call(libc::SYS_epoll_ctl,      SHARD | API,    Any),                      // sets the events to wait for

    // The link and the sockets of flows.
    call(libc::SYS_read,           SHARD | READER | API, Any),                // frames, signals, timers; inotify, resolv.conf; wake-ups
    call(libc::SYS_write,          ALL,            Any),                      // frames, captures; log lines, wake-ups
    call(libc::SYS_recvfrom,       SHARD | OPENER | API, Any),                // payload; answers of sock_diag; requests
    call(libc::SYS_recvmsg,        SHARD | API,    Any),                      // datagrams, with their destination; requests, with a descriptor
    call(libc::SYS_sendto,         ALL,            Any),                      // payload; sock_diag; syslog; answers, events
    call(libc::SYS_sendmsg,        SHARD,          Any),                      // payload of several frames
    call(libc::SYS_sendmmsg,       SHARD,          Any),                      // datagrams, many at a time
    call(libc::SYS_splice,         PASTA,          Any),                      // local connections
    call(libc::SYS_pipe2,          PASTA,          Any),                      // pipes for local connections
    call(libc::SYS_accept4,        SHARD | API,    Any),                      // forwarded ports, the control socket; API clients
    call(libc::SYS_eventfd2,       SHARD,          Any),                      // a reserve descriptor, for refusals
    call(libc::SYS_connect,        SHARD | OPENER, Any),                      // outgoing flows
    call(libc::SYS_shutdown,       SHARD,          Any),                      // half-close
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_poll,           SHARD,          Any),                      // whether a peer has closed
    call(libc::SYS_ppoll,          SHARD,          Any),                      // whether a peer has closed
    call(libc::SYS_ioctl,          SHARD,          OneOf(1, &[FIONREAD as i32, TIOCOUTQ as i32, SIOCATMARK as i32])), // unread, unsent, urgent bytes
    call(libc::SYS_ioctl,          OPENER,         OneOf(1, &[FIONBIO as i32])), // sock_diag, without waiting

    // New sockets. Other address families have had many vulnerabilities.
    call(libc::SYS_socket,         SHARD,          OneOf(0, &[AF_INET, AF_INET6])),
    call(libc::SYS_socket,         OPENER,         OneOf(0, &[AF_INET, AF_INET6, AF_NETLINK])), // sock_diag, too
    call(libc::SYS_bind,           SHARD | OPENER, Any),                      // forwarded ports, ports of flows
    call(libc::SYS_listen,         SHARD | OPENER, Any),                      // forwarded ports
    call(libc::SYS_setsockopt,     SHARD | OPENER, Any),
    call(libc::SYS_getsockopt,     SHARD | OPENER, Any),
    call(libc::SYS_getsockopt,     API,            OneOf(2, &[SO_NETNS_COOKIE])), // where a client of the registry is
    call(libc::SYS_getsockname,    SHARD | OPENER, Any),                      // the port of a flow

    // Open files: the log (of all threads), captures, the command's status, /proc/net.
    call(libc::SYS_lseek,          ALL,            Any),                      // reads a file again from the start
    call(libc::SYS_statx,          PASTA,          Any),                      // file sizes
    call(libc::SYS_fstat,          SHARD | API,    Any),                      // sizes of files and shared memory; what a client hands over
    call(libc::SYS_newfstatat,     PASTA,          Any),                      // whether a namespace's file still exists
    call(libc::SYS_pread64,        ALL,            Any),                      // moves the rest of a full log file
    call(libc::SYS_pwrite64,       ALL,            Any),                      // moves the rest of a full log file
    #[cfg(target_env = "musl")]
    call(libc::SYS_pwritev2,       ALL,            Any),                      // pwrite(3) tries it first (musl 1.2.6)
    call(libc::SYS_fallocate,      ALL,            Any),                      // room in the log file
    call(libc::SYS_ftruncate,      ALL,            Any),                      // room in the log file

    // The registry. The folder is the only one within reach.
    call(libc::SYS_unlinkat,       API,            Any),                      // removes the socket's file at the end

    // resolv.conf. The file is opened relative to directories that are kept open.
    call(libc::SYS_openat,         READER,         Within(2, TO_READ)),
    call(libc::SYS_readlinkat,     READER,         Any),
    call(libc::SYS_clock_nanosleep, READER,        Any),                      // waits before it watches
    call(libc::SYS_inotify_add_watch, READER,      Any),
    call(libc::SYS_fchdir,         READER,         Any),                      // the directory that is watched next

    // The last steps of the start, and the handling of the command.
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_dup2,           SHARD,          Any),                      // replaces the standard streams
    #[cfg(not(target_arch = "x86_64"))]
    call(libc::SYS_dup3,           SHARD,          Any),                      // replaces the standard streams
    call(libc::SYS_getpid,         ALL,            Any),                      // for the PID file and log lines
    call(libc::SYS_wait4,          SHARD,          Any),                      // children that have ended
    call(libc::SYS_waitid,         PASTA,          Any),                      // the command, if the start fails
    call(libc::SYS_pidfd_send_signal, PASTA,       Any),                      // signals for the command
    call(libc::SYS_capget,         PASTA,          Any),                      // to signal a root command as nobody
    call(libc::SYS_capset,         PASTA,          Any),                      // to signal a root command as nobody

    // abort(3), after a panic was logged.
    call(libc::SYS_rt_sigaction,   ALL,            Any),
    call(libc::SYS_gettid,         ALL,            Any),
    call(libc::SYS_tgkill,         ALL,            OurProcess),
    call(libc::SYS_tkill,          ALL,            OurThread),
    call(libc::SYS_rt_sigreturn,   ALL,            Any),
];

/// Limits the calling thread permanently to the calls of its role.
///
/// # Errors
/// The kernel has no seccomp filters. The process must not continue without them.
pub(crate) fn restrict(role: Role) -> anyhow::Result<()> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        log::warn!("System calls are not filtered: not implemented for {} yet", std::env::consts::ARCH);
        return Ok(());
    };
    let filter = program(role, arch).context("can't make the filter of system calls")?;
    apply_filter(&filter).context("can't filter system calls: does the kernel have CONFIG_SECCOMP_FILTER?")
}

fn program(role: Role, arch: TargetArch) -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in TABLE.iter().filter(|call| call.roles & role as u8 != 0) {
        #[allow(clippy::useless_conversion)] // where long has 64 bits
        rules.insert(call.number.into(), call.only.rules()?);
    }
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

impl Only {
    /// The alternative conditions. At least one condition must be true. Empty: there is no condition.
    fn rules(self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let equal = |index, mask: u64, value: u64| {
            let equal = SeccompCmpOp::MaskedEq(mask);
            let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, equal, value)?;
            SeccompRule::new(vec![condition])
        };
        let bits = |bits: libc::c_int| u64::from(bits.cast_unsigned());
        let whole = u64::from(u32::MAX);
        match self {
            Any => Ok(Vec::new()),
            OneOf(index, values) => values.iter().map(|value| equal(index, whole, bits(*value))).collect(),
            Within(index, allowed) => Ok(vec![equal(index, bits(!allowed), 0)?]),
            Without(index, forbidden) => Ok(vec![equal(index, bits(forbidden), 0)?]),
            OurProcess => Ok(vec![equal(0, whole, std::process::id().into())?]),
            OurThread => Ok(vec![equal(0, whole, bits(rustix::thread::gettid().as_raw_nonzero().get()))?]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::{env, fs, thread};

    use super::*;

    const ROLES: [Role; 5] = [Role::Pasta, Role::Passt, Role::Opener, Role::Reader, Role::Api];

    /// Executes one action on a thread with a filter. [`end`] starts this test in a separate process.
    #[test]
    #[ignore = "started by other tests"]
    fn child() {
        let (Ok(role), Ok(action)) = (env::var("SECCOMP_ROLE"), env::var("SECCOMP_ACTION")) else { return };
        let role = ROLES.into_iter().find(|known| format!("{known:?}") == role).unwrap();
        if action.starts_with("shrink") {
            if action == "shrink" {
                sys::heap::share();
            }
            // Memory of a thread with its own heap, if threads have their own.
            let shrink = move || {
                restrict(role).unwrap();
                let blocks: Vec<Vec<u8>> = (0..200).map(|n| vec![n; 90 << 10]).collect();
                drop(blocks);
                std::process::exit(0);
            };
            return thread::spawn(shrink).join().unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        restrict(role).unwrap();
        match &*action {
            "abort" => std::process::abort(),
            "exit" => std::process::exit(7),
            "allocate" => {
                let large: Vec<Vec<u8>> = (0..64).map(|n| vec![n; 1 << 20]).collect();
                let small: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
                std::process::exit(i32::from(large.len() != 64 || small.len() != 100_000));
            }
            "log" => {
                file.write_all(b"line\n").unwrap();
                file.write_all_at(b"L", 0).unwrap();
                assert_eq!(file.read_at(&mut [0; 9], 1).unwrap(), 4);
                file.set_len(2).unwrap();
                assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 2);
                std::process::exit(0);
            }
            "open" => drop(fs::write("/dev/null", "")),
            "thread" => drop(thread::spawn(|| ())),
            "socket" => drop(UnixDatagram::unbound()),
            "process" => drop(Command::new("true").status()),
            action => unreachable!("{action}"),
        }
    }

    /// The exit status of a process that executes `action` in `role`. If a signal kills the process, the signal is the
    /// error.
    fn end(role: Role, action: &str) -> Result<i32, i32> {
        let name = concat!(module_path!(), "::child").split_once("::").unwrap().1;
        let mut command = Command::new(env::current_exe().unwrap());
        // With one thread, libtest runs the test on the main thread.
        command.args(["--exact", name, "--ignored", "--test-threads=1"]);
        command.env("SECCOMP_ROLE", format!("{role:?}")).env("SECCOMP_ACTION", action);
        let status = command.output().unwrap().status;
        status.code().ok_or_else(|| status.signal().unwrap())
    }

    /// An abort, as after a panic, ends the process by SIGABRT, not by SIGSYS.
    #[test]
    fn every_role_may_abort_exit_allocate_and_log() {
        for role in ROLES {
            assert_eq!(end(role, "abort"), Err(libc::SIGABRT), "{role:?}");
            assert_eq!(end(role, "exit"), Ok(7), "{role:?}");
            assert_eq!(end(role, "allocate"), Ok(0), "{role:?}");
            assert_eq!(end(role, "shrink"), Ok(0), "{role:?}");
            assert_eq!(end(role, "log"), Ok(0), "{role:?}");
        }
    }

    /// The reason for [`sys::heap::share`].
    #[cfg(target_env = "gnu")]
    #[test]
    fn a_heap_of_a_thread_can_not_shrink() {
        assert_eq!(end(Role::Api, "shrink alone"), Err(libc::SIGSYS));
    }

    #[test]
    fn a_forbidden_call_ends_the_process() {
        for role in ROLES {
            for action in ["open", "thread", "socket", "process"] {
                assert_eq!(end(role, action), Err(libc::SIGSYS), "{role:?}: {action}");
            }
        }
    }

    /// A second row for a call would replace the first one, not add to it.
    #[test]
    fn no_call_is_listed_twice_for_a_role() {
        for role in ROLES {
            let mut numbers: Vec<_> =
                TABLE.iter().filter(|call| call.roles & role as u8 != 0).map(|call| call.number).collect();
            let len = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), len, "{role:?}");
        }
    }
}
