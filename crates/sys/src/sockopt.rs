//! Socket options and queries that rustix lacks.

use std::os::fd::{AsFd, AsRawFd};

use bitflags::bitflags;
use rustix::io;

use crate::errno::last_errno;

/// The option of [`netns_cookie`].
pub const SO_NETNS_COOKIE: i32 = 71;

/// The IP version that an option applies to. A dual-stack socket has the options of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

bitflags! {
    /// The properties of received datagrams that control messages report (ip(7), ipv6(7)).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Metadata: u8 {
        /// Destination address of the packet.
        const DESTINATION = 1;
        /// Time to live or hop limit.
        const HOP_LIMIT = 2;
        /// DSCP and ECN.
        const TRAFFIC_CLASS = 4;
        /// Errors of sent datagrams, on the error queue.
        const ERRORS = 8;
    }
}

/// Makes the kernel report `what` for datagrams of one IP version.
///
/// # Errors
/// As setsockopt(2).
pub fn request_metadata(fd: impl AsFd, version: IpVersion, what: Metadata) -> io::Result<()> {
    for metadata in what {
        let (level, name) = match (version, metadata) {
            (IpVersion::V4, Metadata::DESTINATION) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            (IpVersion::V4, Metadata::HOP_LIMIT) => (libc::IPPROTO_IP, libc::IP_RECVTTL),
            (IpVersion::V4, Metadata::TRAFFIC_CLASS) => (libc::IPPROTO_IP, libc::IP_RECVTOS),
            (IpVersion::V4, _) => (libc::IPPROTO_IP, libc::IP_RECVERR),
            (IpVersion::V6, Metadata::DESTINATION) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            (IpVersion::V6, Metadata::HOP_LIMIT) => (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
            (IpVersion::V6, Metadata::TRAFFIC_CLASS) => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
            (IpVersion::V6, _) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        };
        set_int(&fd, level, name, 1)?;
    }
    Ok(())
}

/// Makes the kernel keep the headers of the SYN of each connection of a listening TCP socket, for
/// [`traffic_class_of_syn`] (`TCP_SAVE_SYN`). This applies to connections that begin after the call.
///
/// # Errors
/// As setsockopt(2).
pub fn keep_syn(listener: impl AsFd) -> io::Result<()> {
    set_int(&listener, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 1)
}

/// The traffic class, with ECN bits, of the SYN of an accepted TCP socket. None if the kernel has not kept the SYN:
/// [`keep_syn`] was not called on the listener, a SYN cookie was used, or the SYN was read before.
///
/// # Errors
/// As getsockopt(2).
pub fn traffic_class_of_syn(fd: impl AsFd) -> io::Result<Option<u8>> {
    // The kernel copies the IP header with options or extension headers, and the TCP header. It copies nothing if they
    // do not fit.
    let mut header = [0; 256];
    let mut len = header.len() as libc::socklen_t;
    // SAFETY: the pointers describe a buffer and its length, which live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SAVED_SYN,
            header.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(last_errno());
    }
    Ok(match header[..header.len().min(len as usize)] {
        [first, second, ..] if first >> 4 == 4 => Some(second),
        [first, second, ..] if first >> 4 == 6 => Some(first << 4 | second >> 4),
        _ => None,
    })
}

/// Sets path MTU discovery for datagrams of one IP version. With `refuse`, the kernel refuses datagrams longer than the
/// path MTU (`EMSGSIZE`), and sends others with DF. Without `refuse`, long datagrams are fragmented by the host or, for
/// IPv4, by routers.
///
/// # Errors
/// As setsockopt(2).
pub fn dont_fragment(fd: impl AsFd, version: IpVersion, refuse: bool) -> io::Result<()> {
    match version {
        IpVersion::V4 => {
            let value = if refuse { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_DONT };
            set_int(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
        }
        IpVersion::V6 => {
            let value = if refuse { libc::IPV6_PMTUDISC_DO } else { libc::IPV6_PMTUDISC_DONT };
            set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
        }
    }
}

/// The process that created the other end of a UNIX socket, by its ID in the PID namespace of the caller. None if the
/// process is not in that namespace, or on any error. (rustix has the same call, but cannot represent the first case.)
pub fn peer_pid(fd: impl AsFd) -> Option<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers describe one ucred and its length, which live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    (result == 0 && peer.pid > 0).then_some(peer.pid)
}

/// A number that identifies the network namespace of a socket, and no other namespace until the machine restarts
/// (`SO_NETNS_COOKIE`, Linux 5.14). The namespace of a UNIX socket that accept(2) returned is that in which the client
/// has called socket(2), not that of the listening socket.
///
/// # Errors
/// As getsockopt(2): `ENOPROTOOPT` if the kernel does not know the option.
pub fn netns_cookie(fd: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers describe one u64 and its length, which live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(last_errno()) } else { Ok(cookie) }
}

/// Enables UDP GRO: datagrams of one peer may be received together (`UDP_GRO`, Linux 5.0).
///
/// # Errors
/// As setsockopt(2).
pub fn udp_gro(fd: impl AsFd) -> io::Result<()> {
    set_int(&fd, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Makes a socket receive only from the multicast groups that it has joined itself, and not from groups that only other
/// sockets have joined (Linux 2.6.31; IPv6: 4.20).
///
/// # Errors
/// As setsockopt(2).
pub fn only_groups_joined(fd: impl AsFd, version: IpVersion) -> io::Result<()> {
    match version {
        IpVersion::V4 => set_int(&fd, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0),
        IpVersion::V6 => set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL, 0),
    }
}

/// Binds a socket to an interface (`SO_BINDTODEVICE`). Since Linux 5.7 this needs no privilege, unless the socket is
/// already bound to an interface.
///
/// # Errors
/// As setsockopt(2): `ENODEV` if there is no such interface.
pub fn bind_to_device(fd: impl AsFd, interface: &str) -> io::Result<()> {
    set_bytes(&fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, interface.as_bytes())
}

/// The interface that a socket is bound to (`SO_BINDTODEVICE`).
///
/// # Errors
/// As getsockopt(2).
pub fn bound_device(fd: impl AsFd) -> io::Result<Option<String>> {
    let mut name = [0_u8; libc::IFNAMSIZ];
    let mut len = name.len() as libc::socklen_t;
    // SAFETY: the pointers describe a buffer and its length, which live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(last_errno());
    }
    // The name ends with a zero byte, which the length includes. Without an interface, the length is zero.
    let name = &name[..name.len().min(len as usize)];
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    Ok((end > 0).then(|| String::from_utf8_lossy(&name[..end]).into_owned()))
}

/// With this option, bind(2) with port zero does not choose a port: connect(2) chooses it. Several sockets can then
/// share a port if they are connected to different peers (`IP_BIND_ADDRESS_NO_PORT`, Linux 4.2, for both IP versions).
///
/// # Errors
/// As setsockopt(2).
pub fn bind_address_no_port(fd: impl AsFd) -> io::Result<()> {
    set_int(&fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set_int(fd: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_bytes(fd, level, name, &value.to_ne_bytes())
}

fn set_bytes(fd: &impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: setsockopt reads `value.len()` bytes of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}
