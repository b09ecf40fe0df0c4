//! Kinds of descriptors of the program under test, found out from outside.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{self, AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// The kind of TCP sockets that were never bound or connected, in counts.
pub(crate) const UNUSED: &str = "tcp-unused";

/// Access to the descriptors of a process.
pub(crate) struct Descriptors {
    pid: i32,
    pidfd: OwnedFd,
}

impl Descriptors {
    /// Fails if the process has ended.
    pub(crate) fn of(pid: i32) -> anyhow::Result<Self> {
        let process = Pid::from_raw(pid).ok_or_else(|| anyhow::anyhow!("no process"))?;
        Ok(Self { pid, pidfd: pidfd_open(process, PidfdFlags::empty())? })
    }

    /// A copy of one descriptor. It must be dropped before the process continues, or it keeps a socket open.
    fn copy(&self, fd: i32) -> Option<OwnedFd> {
        pidfd_getfd(&self.pidfd, fd, PidfdGetfdFlags::empty()).ok()
    }

    /// The kind of one descriptor.
    pub(crate) fn kind(&self, fd: i32) -> String {
        let Ok(link) = fs::read_link(format!("/proc/{}/fd/{fd}", self.pid)) else {
            return "closed".to_owned();
        };
        let link = link.to_string_lossy();
        if link.starts_with("socket:") {
            return self.copy(fd).map_or_else(|| "socket".to_owned(), |socket| socket_kind(&socket));
        }
        if let Some(kind) = link.strip_prefix("anon_inode:") {
            return kind.trim_matches(['[', ']']).to_owned();
        }
        match &*link {
            "/dev/net/tun" => "tap".to_owned(),
            "/dev/null" => "null".to_owned(),
            link if link.starts_with("pipe:") => "pipe".to_owned(),
            link if link.starts_with("/memfd:") => "memory".to_owned(),
            link if link.ends_with("resolv.conf") => "resolv.conf".to_owned(),
            link if link.ends_with("/stderr") => "stderr".to_owned(),
            link if link.contains(".log") => "log".to_owned(),
            link if link.starts_with("/proc") => "proc".to_owned(),
            _ => "file".to_owned(),
        }
    }

    /// The ports of a socket: its own and its peer's.
    pub(crate) fn ports(&self, fd: i32) -> Vec<u16> {
        let Some(socket) = self.copy(fd) else { return Vec::new() };
        let own = net::getsockname(&socket).ok();
        let peer = net::getpeername(&socket).ok().flatten();
        let addresses = own.into_iter().chain(peer).filter_map(|address| SocketAddr::try_from(address).ok());
        addresses.map(|address| address.port()).filter(|port| *port != 0).collect()
    }

    /// The open descriptors, by kind.
    pub(crate) fn count(&self) -> std::collections::BTreeMap<String, usize> {
        let mut count = std::collections::BTreeMap::new();
        let Ok(list) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return count };
        for fd in list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            let kind = self.kind(fd);
            if kind != "closed" {
                let unused = kind == "tcp" && self.ports(fd).is_empty();
                let kind = if unused { UNUSED.to_owned() } else { kind };
                *count.entry(kind).or_insert(0) += 1;
            }
        }
        count
    }
}

fn socket_kind(socket: &impl AsFd) -> String {
    let family = sockopt::socket_domain(socket).unwrap_or(AddressFamily::UNSPEC);
    let kind = sockopt::socket_type(socket).unwrap_or(SocketType::RAW);
    let listens = sockopt::socket_acceptconn(socket).unwrap_or(false);
    let name = match (family, kind) {
        (AddressFamily::UNIX, SocketType::STREAM) if is_guests(socket) => "guest",
        (AddressFamily::UNIX, SocketType::STREAM) => "unix",
        (AddressFamily::UNIX, _) => "unix-dgram",
        (AddressFamily::NETLINK, _) => "netlink",
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => "tcp",
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => {
            match sockopt::socket_protocol(socket) {
                Ok(Some(net::ipproto::UDP)) => "udp",
                _ => "ping",
            }
        }
        _ => "socket",
    };
    if listens { format!("{name}-listener") } else { name.to_owned() }
}

/// Whether a UNIX socket is passt's for its guest: a connection has the address of its listening socket.
fn is_guests(socket: &impl AsFd) -> bool {
    let address =
        net::getsockname(socket).ok().and_then(|address| net::SocketAddrUnix::try_from(address).ok());
    address.is_some_and(|address| address.path_bytes().is_some_and(|path| path.ends_with(b"/guest")))
}
