//! With which errors a call is made to fail: those that its manual page or the kernel names for this use.
//!
//! Left out are errors that only a wrong program gets (EBADF, EFAULT, ENOTSOCK and the like).

use libc::{
    E2BIG, EACCES, EADDRINUSE, EADDRNOTAVAIL, EAGAIN, EBADFD, EBUSY, ECONNABORTED, ECONNREFUSED, ECONNRESET,
    EDQUOT, EHOSTUNREACH, EINTR, EINVAL, EIO, ELOOP, EMFILE, EMSGSIZE, ENETDOWN, ENETUNREACH, ENFILE,
    ENOBUFS, ENOENT, ENOMEM, ENOPROTOOPT, ENOSPC, ENOSYS, ENOTCONN, EOPNOTSUPP, EPERM, EPIPE, EPROTO, EROFS,
    ESRCH, ETIMEDOUT,
};

use crate::fault::{Fault, Site};

/// The kinds of descriptors that epoll is made to report to the main thread although they are not ready: of any program, of
/// pasta, which has a tap and a command, and of passt, which has a guest's socket.
const SPURIOUS: [&str; 8] =
    ["tcp", "udp", "ping", "tcp-listener", "signalfd", "eventfd", "netlink", "unix-listener"];
const SPURIOUS_PASTA: [&str; 3] = ["tap", "unix", "pidfd"];
const SPURIOUS_PASST: [&str; 2] = ["guest", "guest-listener"];
/// The same for the thread of the API socket.
const SPURIOUS_API: [&str; 3] = ["eventfd", "unix", "unix-listener"];

/// All faults for the calls at a place.
pub(crate) fn faults(site: &Site) -> Vec<Fault> {
    let mut faults: Vec<Fault> = errnos(&site.call, &site.object).iter().map(|e| Fault::Errno(*e)).collect();
    let kind = site.object.split(' ').next().unwrap_or_default();
    let stream = ["tcp", "unix", "guest", "log", "resolv.conf"].contains(&kind);
    match &*site.call {
        // The kernel transfers fewer bytes only if there are no more, or no more room: then epoll reports an edge later.
        "recvfrom" | "sendmsg" if kind == "tcp" => {}
        // A message of a front-end is read when all of it has arrived.
        "recvfrom" | "recvmsg"
            if site.object == "guest PEEK" || site.call == "recvmsg" && kind == "guest" => {}
        "read" | "write" | "recvfrom" | "sendto" | "recvmsg" | "sendmsg" if stream => {
            faults.push(Fault::Short);
        }
        "sendmmsg" | "splice" => faults.push(Fault::Short),
        "epoll_pwait" | "epoll_pwait2" => {
            let (own, shared): (&[&str], &[&str]) = match &*site.thread {
                "api" => (&SPURIOUS_API, &[]),
                "passt" => (&SPURIOUS_PASST, &SPURIOUS),
                _ => (&SPURIOUS_PASTA, &SPURIOUS),
            };
            faults.extend(own.iter().chain(shared).map(|kind| Fault::Spurious((*kind).to_owned())));
            faults.push(Fault::Late);
        }
        _ => {}
    }
    faults
}

fn errnos(call: &str, object: &str) -> &'static [i32] {
    let kind = object.split(' ').next().unwrap_or_default();
    match (call, kind) {
        ("read", "tap") => &[EAGAIN, EINTR, EIO, EBADFD, ENOMEM],
        ("write", "tap") => &[EAGAIN, EINTR, EIO, EBADFD, ENOMEM, ENOBUFS, EINVAL],
        ("read", _) => &[EAGAIN, EINTR, EIO, ENOMEM],
        ("write" | "pwrite64", "log" | "file") => &[EINTR, EIO, ENOSPC, EDQUOT],
        // An eventfd reports EAGAIN only if it is readable, so no wake-up is missing.
        ("write", "eventfd") => &[EINTR],
        // The command's process waits at the other end, and the pipe is empty.
        ("write", "pipe") => &[EINTR],
        ("write", _) => &[EAGAIN, EINTR, EPIPE],
        ("recvfrom" | "recvmsg", "tcp") => {
            &[EAGAIN, EINTR, ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ENOMEM, ENOBUFS]
        }
        ("sendto" | "sendmsg", "tcp") => {
            &[EAGAIN, EINTR, EPIPE, ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ENOBUFS, ENOMEM]
        }
        ("recvfrom" | "recvmsg", "udp" | "ping") => {
            &[EAGAIN, EINTR, ECONNREFUSED, EHOSTUNREACH, ENETDOWN, ENOMEM, ENOBUFS]
        }
        ("sendto" | "sendmsg" | "sendmmsg", "udp" | "ping") => &[
            EAGAIN,
            EINTR,
            ENOBUFS,
            ENOMEM,
            EPERM,
            EACCES,
            ENETUNREACH,
            EHOSTUNREACH,
            ECONNREFUSED,
            EMSGSIZE,
            ENETDOWN,
            EADDRNOTAVAIL,
            EINVAL,
            EIO,
        ],
        ("recvfrom" | "recvmsg" | "sendto" | "sendmsg", "netlink") => &[EAGAIN, EINTR, ENOBUFS, ENOMEM],
        ("recvfrom" | "recvmsg", "unix" | "guest") => &[EAGAIN, EINTR, ECONNRESET, ENOMEM],
        ("sendto" | "sendmsg", _) => &[EAGAIN, EINTR, EPIPE, ECONNRESET, ENOBUFS, ENOMEM],
        ("epoll_pwait" | "epoll_pwait2" | "clock_nanosleep", _) => &[EINTR],
        ("epoll_ctl", "ADD") => &[ENOMEM, ENOSPC],
        ("epoll_ctl", "MOD") => &[ENOMEM],
        ("accept4", _) => &[EAGAIN, EINTR, ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM, EPROTO],
        ("socket", _) => &[EMFILE, ENFILE, ENOBUFS, ENOMEM, EACCES, EPERM],
        ("bind", _) => &[EADDRINUSE, EACCES, EADDRNOTAVAIL, EPERM, ENOMEM],
        ("listen", _) => &[EADDRINUSE, ENOMEM],
        ("connect", "tcp") => &[
            EINTR,
            ECONNREFUSED,
            ENETUNREACH,
            EHOSTUNREACH,
            ETIMEDOUT,
            EADDRNOTAVAIL,
            EAGAIN,
            EACCES,
            EPERM,
            ENOBUFS,
            ENOMEM,
        ],
        ("connect", _) => &[ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL, EACCES, EPERM, ENOBUFS],
        ("splice", _) => &[EAGAIN, EINTR, ENOMEM, EPIPE, ECONNRESET],
        ("pipe2" | "eventfd2", _) => &[EMFILE, ENFILE, ENOMEM],
        ("fcntl", _) => &[EPERM, EBUSY, ENOMEM],
        ("setsockopt", _) => &[ENOMEM, ENOBUFS, ENOPROTOOPT, EPERM, EINVAL],
        ("getsockopt", _) => &[ENOBUFS, ENOMEM, ENOPROTOOPT],
        ("getsockname", _) => &[ENOBUFS],
        ("shutdown", _) => &[ENOTCONN],
        ("ioctl", _) => &[EINVAL, ENOMEM],
        ("poll" | "ppoll", _) => &[EINTR, ENOMEM],
        ("getrandom", "nonblock") => &[EINTR, EAGAIN],
        ("getrandom", _) => &[EINTR],
        ("futex", "wait") => &[EINTR, EAGAIN],
        ("close", _) => &[EINTR, EIO],
        ("lseek" | "statx" | "fstat" | "newfstatat" | "pread64", _) => &[EIO, ENOMEM],
        ("fallocate" | "ftruncate", _) => &[EINTR, ENOSPC, EOPNOTSUPP, EIO],
        ("clone" | "clone3" | "fork" | "vfork", _) => &[EAGAIN, ENOMEM, ENOSPC, EPERM],
        ("unshare" | "setns", _) => &[EPERM, EINVAL, ENOMEM, ENOSPC],
        ("mount" | "umount2" | "pivot_root" | "move_mount" | "fsopen", _) => {
            &[EPERM, EACCES, EBUSY, EINVAL, ENOMEM]
        }
        ("open_tree" | "memfd_create" | "close_range", _) => &[ENOSYS, EMFILE, ENOMEM],
        ("landlock_create_ruleset" | "landlock_add_rule" | "landlock_restrict_self", _) => {
            &[ENOSYS, EOPNOTSUPP, EPERM, ENOMEM]
        }
        ("chdir" | "chroot" | "unlink" | "unlinkat" | "mkdirat", _) => &[EACCES, EPERM, ENOENT, EIO],
        ("setresuid" | "setresgid" | "setgroups", _) => &[EPERM, EAGAIN, EINVAL, ENOMEM],
        ("sethostname" | "setsid", _) => &[EPERM],
        ("fchmod" | "chmod" | "fchmodat", _) => &[EPERM, EIO, EROFS],
        ("prlimit64", "get") => &[],
        ("prctl" | "prlimit64", _) => &[EPERM, EINVAL],
        ("seccomp", _) => &[EINVAL, EACCES, ENOMEM],
        ("sigaltstack" | "rseq" | "set_robust_list", _) => &[ENOMEM, ENOSYS],
        ("inotify_init1" | "signalfd4" | "epoll_create1" | "pidfd_open" | "socketpair" | "dup3", _) => {
            &[EMFILE, ENFILE, ENOMEM]
        }
        ("execve", _) => &[ENOENT, EACCES, E2BIG, ENOMEM, EIO],
        ("access", _) => &[EACCES, EIO],
        ("openat", _) => &[EINTR, EMFILE, ENFILE, ENOENT, EACCES, ENOMEM, EIO, ELOOP],
        ("readlinkat", _) => &[EINVAL, ENOENT, EACCES, EIO, ENOMEM],
        ("inotify_add_watch", _) => &[ENOSPC, ENOMEM, ENOENT, EACCES],
        ("fchdir", _) => &[EACCES, EIO],
        ("dup2", _) => &[EINTR, EBUSY, EMFILE],
        ("wait4" | "waitid", _) => &[EINTR],
        ("pidfd_send_signal", _) => &[EPERM, ESRCH],
        ("capset" | "capget", _) => &[EPERM],
        ("mmap" | "mremap" | "brk" | "munmap" | "mprotect", _) => &[ENOMEM],
        ("madvise", _) => &[ENOMEM, EAGAIN],
        _ => &[],
    }
}
