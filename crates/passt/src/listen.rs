//! Listening sockets of forwarding rules (SPEC §8.1, §8.2).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use engine::forward::{Listen, Protocol, Rule, Table};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
    process::{Resource, getrlimit},
};
use sys::sockopt::bind_to_device;

use crate::io::udp;

/// Connections that may wait to be accepted; the kernel takes `net.core.somaxconn` if that is less.
const BACKLOG: i32 = 4096;

/// A bound socket of one port of a rule; a TCP one listens.
#[derive(Debug)]
pub struct Listener {
    /// Index of the rule in its table.
    pub rule: usize,
    /// The port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The address that it is bound to: the rule's, or `0.0.0.0` in place of both families on a host without IPv6.
    pub address: Option<IpAddr>,
    /// The socket, non-blocking.
    pub socket: OwnedFd,
}

/// The ports that were asked for can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port of a rule that has to be complete.
    #[error(
        "Listen failed for HOST {protocol} port {}/{port}: {reason}\nCouldn't listen on requested ports",
        At(.listen)
    )]
    Port {
        /// Transport protocol.
        protocol: Protocol,
        /// Where.
        listen: Listen,
        /// The port.
        port: u16,
        /// What failed.
        reason: Reason,
    },
    /// All ports of a rule that may be incomplete.
    #[error(
        "All listens failed for HOST {protocol} {}/{ports}: {reason}\nCouldn't listen on requested ports",
        At(.listen)
    )]
    Rule {
        /// Transport protocol.
        protocol: Protocol,
        /// Where.
        listen: Listen,
        /// The ports.
        ports: engine::forward::PortRange,
        /// What failed for the first of them.
        reason: Reason,
    },
}

/// Why a port can't be listened on.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum Reason {
    /// The rule's interface can't be bound to.
    #[error("SO_BINDTODEVICE failed: {0}")]
    Interface(Errno),
    /// Another step failed.
    #[error("{0}")]
    Socket(#[from] Errno),
}

/// Where a rule listens, as it stands before `/` in a port specifier.
struct At<'a>(&'a Listen);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.addr {
            None => f.write_str("*")?,
            Some(address) => address.fmt(f)?,
        }
        match &self.0.interface {
            None => Ok(()),
            Some(name) => write!(f, "%{name}"),
        }
    }
}

/// Opens the sockets of all rules but those that follow a scan (SPEC §8.4).
///
/// # Errors
/// A port can't be bound, unless its rule is best effort: then only if none of the rule's can. Best-effort rules
/// leave a quarter of the file descriptors to connections (Q13), and to do without is no error.
pub fn open(table: &Table, freebind: bool) -> Result<Vec<Listener>, Error> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    open_within(table, freebind, limit / 4 * 3)
}

/// Best-effort rules open no descriptor from number `descriptors` on.
fn open_within(table: &Table, freebind: bool, descriptors: u64) -> Result<Vec<Listener>, Error> {
    let mut listeners = Vec::new();
    for (index, rule) in table.rules().iter().enumerate().filter(|(_, rule)| !rule.scan) {
        if rule.best_effort {
            open_some(index, rule, freebind, descriptors, &mut listeners)?;
        } else {
            for port in rule.ports.iter() {
                let listener = open_one(index, rule, port, freebind).map_err(|reason| Error::Port {
                    protocol: rule.protocol,
                    listen: rule.listen.clone(),
                    port,
                    reason,
                })?;
                listeners.push(listener);
            }
        }
    }
    Ok(listeners)
}

/// Opens what can be opened of a rule, and tells in one line what could not.
fn open_some(
    index: usize,
    rule: &Rule,
    freebind: bool,
    descriptors: u64,
    listeners: &mut Vec<Listener>,
) -> Result<(), Error> {
    let before = listeners.len();
    let mut first_failure = None;
    let mut out_of_descriptors = false;
    for port in rule.ports.iter() {
        match open_one(index, rule, port, freebind) {
            Ok(listener) if u64::try_from(listener.socket.as_raw_fd()).is_ok_and(|fd| fd >= descriptors) => {
                out_of_descriptors = true;
            }
            Ok(listener) => listeners.push(listener),
            Err(Reason::Socket(Errno::MFILE | Errno::NFILE)) => out_of_descriptors = true,
            Err(reason) => {
                first_failure.get_or_insert((port, reason));
            }
        }
        if out_of_descriptors {
            first_failure = Some((port, Reason::Socket(Errno::MFILE)));
            break;
        }
    }
    let (Rule { protocol, listen, ports, .. }, opened) = (rule, listeners.len() - before);
    match first_failure {
        None => Ok(()),
        Some((_, reason)) if opened == 0 && !out_of_descriptors => {
            Err(Error::Rule { protocol: *protocol, listen: listen.clone(), ports: *ports, reason })
        }
        Some((port, reason)) => {
            let missing = ports.len() - opened;
            log::warn!(
                "Listen failed for {missing} of {} HOST {protocol} ports {}/{ports} (port {port}: {reason})",
                ports.len(),
                At(listen)
            );
            Ok(())
        }
    }
}

fn open_one(index: usize, rule: &Rule, port: u16, freebind: bool) -> Result<Listener, Reason> {
    let (socket, address) = match create(rule.protocol, rule.listen.addr, freebind) {
        // a host without IPv6 has no dual-stack sockets, and needs none.
        Err(Errno::AFNOSUPPORT) if rule.listen.addr.is_none() => {
            let v4_only = Some(Ipv4Addr::UNSPECIFIED.into());
            (create(rule.protocol, v4_only, freebind)?, v4_only)
        }
        created => (created?, rule.listen.addr),
    };
    if let Some(interface) = &rule.listen.interface {
        bind_to_device(&socket, interface)
            .map_err(|error| Reason::Interface(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    }
    let bound = address.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
    bind(&socket, &SocketAddr::new(bound, port))?;
    if rule.protocol == Protocol::Tcp {
        listen(&socket, BACKLOG)?;
    }
    Ok(Listener { rule: index, port, protocol: rule.protocol, address, socket })
}

/// A socket for `address`, with both families if there is none. Which families it has is said explicitly: the default
/// depends on the host.
fn create(protocol: Protocol, address: Option<IpAddr>, freebind: bool) -> Result<OwnedFd, Errno> {
    if protocol == Protocol::Udp {
        // Without SO_REUSEADDR: two UDP sockets that both have it share a port in silence.
        return udp::prepare_listener(address, freebind);
    }
    let v4_only = matches!(address, Some(IpAddr::V4(_)));
    let family = if v4_only { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if !v4_only {
        sockopt::set_ipv6_v6only(&socket, address.is_some())?;
    }
    if freebind {
        sockopt::set_ip_freebind(&socket, true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests;
