//! System calls of x86-64: names, and which argument is a descriptor.

/// The calls that the program may make in its running phase, and some of its start, with the index of the argument that
/// is a descriptor.
const CALLS: &[(libc::c_long, &str, Option<usize>)] = &[
    (libc::SYS_accept4, "accept4", Some(0)),
    (libc::SYS_bind, "bind", Some(0)),
    (libc::SYS_brk, "brk", None),
    (libc::SYS_capget, "capget", None),
    (libc::SYS_capset, "capset", None),
    (libc::SYS_clock_gettime, "clock_gettime", None),
    (libc::SYS_clock_nanosleep, "clock_nanosleep", None),
    (libc::SYS_close, "close", Some(0)),
    (libc::SYS_connect, "connect", Some(0)),
    (libc::SYS_dup2, "dup2", Some(0)),
    (libc::SYS_epoll_ctl, "epoll_ctl", Some(2)),
    (libc::SYS_epoll_pwait, "epoll_pwait", Some(0)),
    (libc::SYS_epoll_pwait2, "epoll_pwait2", Some(0)),
    (libc::SYS_eventfd2, "eventfd2", None),
    (libc::SYS_fallocate, "fallocate", Some(0)),
    (libc::SYS_fchdir, "fchdir", Some(0)),
    (libc::SYS_fcntl, "fcntl", Some(0)),
    (libc::SYS_fstat, "fstat", Some(0)),
    (libc::SYS_ftruncate, "ftruncate", Some(0)),
    (libc::SYS_futex, "futex", None),
    (libc::SYS_getpid, "getpid", None),
    (libc::SYS_getrandom, "getrandom", None),
    (libc::SYS_getsockname, "getsockname", Some(0)),
    (libc::SYS_getsockopt, "getsockopt", Some(0)),
    (libc::SYS_gettid, "gettid", None),
    (libc::SYS_inotify_add_watch, "inotify_add_watch", Some(0)),
    (libc::SYS_ioctl, "ioctl", Some(0)),
    (libc::SYS_listen, "listen", Some(0)),
    (libc::SYS_lseek, "lseek", Some(0)),
    (libc::SYS_madvise, "madvise", None),
    (libc::SYS_mmap, "mmap", None),
    (libc::SYS_mprotect, "mprotect", None),
    (libc::SYS_mremap, "mremap", None),
    (libc::SYS_munmap, "munmap", None),
    (libc::SYS_newfstatat, "newfstatat", None),
    (libc::SYS_openat, "openat", None),
    (libc::SYS_pidfd_send_signal, "pidfd_send_signal", Some(0)),
    (libc::SYS_pipe2, "pipe2", None),
    (libc::SYS_poll, "poll", None),
    (libc::SYS_ppoll, "ppoll", None),
    (libc::SYS_pread64, "pread64", Some(0)),
    (libc::SYS_pwrite64, "pwrite64", Some(0)),
    (libc::SYS_read, "read", Some(0)),
    (libc::SYS_readlinkat, "readlinkat", None),
    (libc::SYS_recvfrom, "recvfrom", Some(0)),
    (libc::SYS_recvmsg, "recvmsg", Some(0)),
    (libc::SYS_sched_yield, "sched_yield", None),
    (libc::SYS_sendmmsg, "sendmmsg", Some(0)),
    (libc::SYS_sendmsg, "sendmsg", Some(0)),
    (libc::SYS_sendto, "sendto", Some(0)),
    (libc::SYS_setsockopt, "setsockopt", Some(0)),
    (libc::SYS_shutdown, "shutdown", Some(0)),
    (libc::SYS_socket, "socket", None),
    (libc::SYS_splice, "splice", Some(0)),
    (libc::SYS_statx, "statx", None),
    (libc::SYS_wait4, "wait4", None),
    (libc::SYS_waitid, "waitid", None),
    (libc::SYS_write, "write", Some(0)),
];

/// The name of a call, and which of its arguments is a descriptor. `None`: calls that are not made to fail, such as the
/// end of a thread.
pub(crate) fn of(number: u64) -> Option<(&'static str, Option<usize>)> {
    CALLS.iter().find(|(known, ..)| known.cast_unsigned() == number).map(|(_, name, at)| (*name, *at))
}

/// The name of an option of a socket.
pub(crate) fn socket_option(level: u64, name: u64) -> String {
    let known = [
        (libc::SOL_SOCKET, libc::SO_ERROR, "SO_ERROR"),
        (libc::SOL_SOCKET, libc::SO_LINGER, "SO_LINGER"),
        (libc::SOL_SOCKET, libc::SO_OOBINLINE, "SO_OOBINLINE"),
        (libc::SOL_SOCKET, libc::SO_PEEK_OFF, "SO_PEEK_OFF"),
        (libc::SOL_SOCKET, libc::SO_RCVBUF, "SO_RCVBUF"),
        (libc::SOL_SOCKET, libc::SO_SNDBUF, "SO_SNDBUF"),
        (libc::SOL_SOCKET, libc::SO_REUSEADDR, "SO_REUSEADDR"),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, "SO_KEEPALIVE"),
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, "SO_ATTACH_FILTER"),
        (libc::SOL_TCP, libc::TCP_INFO, "TCP_INFO"),
        (libc::SOL_TCP, libc::TCP_NODELAY, "TCP_NODELAY"),
        (libc::SOL_TCP, libc::TCP_MAXSEG, "TCP_MAXSEG"),
        (libc::SOL_TCP, libc::TCP_QUICKACK, "TCP_QUICKACK"),
        (libc::SOL_UDP, libc::UDP_SEGMENT, "UDP_SEGMENT"),
        (libc::SOL_UDP, libc::UDP_GRO, "UDP_GRO"),
        (libc::SOL_IP, libc::IP_RECVERR, "IP_RECVERR"),
        (libc::SOL_IP, libc::IP_PKTINFO, "IP_PKTINFO"),
        (libc::SOL_IP, libc::IP_MTU_DISCOVER, "IP_MTU_DISCOVER"),
        (libc::SOL_IP, libc::IP_TTL, "IP_TTL"),
        (libc::SOL_IP, libc::IP_TOS, "IP_TOS"),
        (libc::SOL_IPV6, libc::IPV6_V6ONLY, "IPV6_V6ONLY"),
    ];
    let is = |(l, n, _): &&(i32, i32, &str)| (*l as u64, *n as u64) == (level, name);
    known.iter().find(is).map_or_else(|| format!("option {level}/{name}"), |(.., name)| (*name).to_owned())
}
