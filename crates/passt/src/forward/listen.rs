//! Listening sockets of forwarding rules (behaviour §8.1, §8.2).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use engine::forward::{Listen, Protocol, Rule, Table, spec::Direction};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
};
use sys::sockopt::bind_to_device;

use crate::io::udp;

/// Maximum number of connections that wait to be accepted. The kernel limits this number to `net.core.somaxconn`.
pub(crate) const BACKLOG: i32 = 4096;

/// A bound socket of one port of a rule. A TCP socket also listens.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Index of the rule in its table.
    pub rule: usize,
    /// The port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The address to which the socket is bound. It is the rule's address. For a rule of both families on a host
    /// without IPv6, it is `0.0.0.0`.
    pub address: Option<IpAddr>,
    /// The bound socket. It is non-blocking.
    pub socket: OwnedFd,
}

/// Why ports of a rule can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A port can't be opened, and its rule is not best effort.
    #[error(
        "Listen failed for {} {protocol} port {}/{port}: {reason}\nCouldn't listen on requested ports",
        .direction.table_name(), At(.listen)
    )]
    Port {
        /// The direction of the rule.
        direction: Direction,
        /// Transport protocol.
        protocol: Protocol,
        /// The listening address of the rule.
        listen: Listen,
        /// The port.
        port: u16,
        /// The step that failed.
        reason: Reason,
    },
    /// Sockets can't be opened in the guest's namespace.
    #[error("can't open sockets in the namespace: {0}")]
    Namespace(std::io::Error),
    /// None of the ports of a best-effort rule can be opened.
    #[error(
        "All listens failed for {} {protocol} {}/{ports}: {reason}\nCouldn't listen on requested ports",
        .direction.table_name(), At(.listen)
    )]
    Rule {
        /// The direction of the rule.
        direction: Direction,
        /// Transport protocol.
        protocol: Protocol,
        /// The listening address of the rule.
        listen: Listen,
        /// All ports of the rule.
        ports: engine::forward::PortRange,
        /// The step that failed for the first port.
        reason: Reason,
    },
}

// The message contains the error, so the error is not a source, too: a chain would show it twice.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Namespace(error)
    }
}

/// Why a port can't be listened on.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(crate) enum Reason {
    /// The socket can't be bound to the rule's interface.
    #[error("SO_BINDTODEVICE failed: {0}")]
    Interface(Errno),
    /// Another step failed.
    #[error("{0}{hint}", hint = privileged_port_hint(*.0))]
    Socket(#[from] Errno),
}

/// What the user can do if the kernel denies a port.
const fn privileged_port_hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS => {
            "; ports below the sysctl net.ipv4.ip_unprivileged_port_start (default: 1024) are for privileged users"
        }
        _ => "",
    }
}

/// The listening address of a rule, in the form that precedes `/` in a port specifier.
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

/// How listening sockets are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// The direction of the rules.
    pub direction: Direction,
    /// Whether addresses are allowed that the host does not have yet.
    pub freebind: bool,
    /// A best-effort rule opens no more sockets when this number of sockets has been opened. Sockets of other rules
    /// count, too (Q13).
    pub spare: usize,
}

impl Opening {
    /// The settings for sockets of the other direction.
    #[must_use]
    pub(crate) fn outbound(self) -> Self {
        Self { direction: Direction::Outbound, ..self }
    }

    /// Opens the sockets of all rules, except two kinds: sockets of rules that follow a scan (behaviour §8.4), and
    /// sockets that are `open` already (rule index and port). Also returns a line for each incomplete best-effort rule.
    /// # Errors
    /// A port can't be bound. For a best-effort rule, this is an error only if none of its ports can be bound. A lack
    /// of descriptors is not an error for a best-effort rule (Q13).
    pub(crate) fn rules(
        self,
        table: &Table,
        open: impl Fn(usize, u16) -> bool,
    ) -> Result<(Vec<Listener>, Vec<String>), Error> {
        self.rules_by(table, open, |index, rule, port| self.socket(index, rule, port, false))
    }

    /// Like [`Opening::rules`], but `make` opens a socket of the rule with the given index.
    ///
    /// # Errors
    /// The errors of [`Opening::rules`].
    pub(crate) fn rules_by(
        self,
        table: &Table,
        open: impl Fn(usize, u16) -> bool,
        mut make: impl FnMut(usize, &Rule, u16) -> Result<Listener, Reason>,
    ) -> Result<(Vec<Listener>, Vec<String>), Error> {
        let (mut listeners, mut notes) = (Vec::new(), Vec::new());
        for (index, rule) in table.rules().iter().enumerate().filter(|(_, rule)| !rule.scan) {
            let ports: Vec<u16> = rule.ports.iter().filter(|port| !open(index, *port)).collect();
            if rule.best_effort {
                notes.extend(self.some(rule, &ports, |port| make(index, rule, port), &mut listeners)?);
                continue;
            }
            for port in ports {
                let listener = make(index, rule, port).map_err(|reason| Error::Port {
                    direction: self.direction,
                    protocol: rule.protocol,
                    listen: rule.listen.clone(),
                    port,
                    reason,
                })?;
                listeners.push(listener);
            }
        }
        Ok((listeners, notes))
    }

    /// Opens as many of the rule's `ports` as possible. Returns a line about the ports that can't be opened.
    fn some(
        self,
        rule: &Rule,
        ports: &[u16],
        mut make: impl FnMut(u16) -> Result<Listener, Reason>,
        listeners: &mut Vec<Listener>,
    ) -> Result<Option<String>, Error> {
        let before = listeners.len();
        let (mut failures, mut covered) = (None, None);
        for &port in ports {
            let room = if listeners.len() < self.spare { Ok(()) } else { Err(Reason::Socket(Errno::MFILE)) };
            match room.and_then(|()| make(port)) {
                Ok(listener) => listeners.push(listener),
                Err(Reason::Socket(Errno::MFILE | Errno::NFILE)) => {
                    covered = Some(port);
                    break;
                }
                Err(reason) => {
                    failures.get_or_insert((port, reason));
                }
            }
        }
        let (Rule { protocol, listen, ports: range, .. }, opened) = (rule, listeners.len() - before);
        let missing = ports.len() - opened;
        let (direction, at) = (self.direction, At(listen));
        let (table, asked) = (direction.table_name(), range.len());
        let what = format!("Listen failed for {missing} of {asked} {table} {protocol} ports {at}/{range}");
        match (covered, failures) {
            (None, None) => Ok(None),
            (None, Some((_, reason))) if missing == range.len() => Err(Error::Rule {
                direction,
                protocol: *protocol,
                listen: listen.clone(),
                ports: *range,
                reason,
            }),
            (None, Some((port, reason))) => Ok(Some(format!("{what} (port {port}: {reason})"))),
            (Some(port), _) => Ok(Some(format!(
                "{what}: ports from {port} on are not forwarded, the limit of open files (ulimit -n) is too low"
            ))),
        }
    }

    /// Opens a port of a rule. With `beside`, a UDP socket may share a port with another socket that allows sharing.
    pub(crate) fn socket(
        self,
        index: usize,
        rule: &Rule,
        port: u16,
        beside: bool,
    ) -> Result<Listener, Reason> {
        let (socket, address) = match create(rule.protocol, rule.listen.addr, self.freebind) {
            // a host without IPv6 has no dual-stack sockets, and does not need any.
            Err(Errno::AFNOSUPPORT) if rule.listen.addr.is_none() => {
                let v4_only = Some(Ipv4Addr::UNSPECIFIED.into());
                (create(rule.protocol, v4_only, self.freebind)?, v4_only)
            }
            created => (created?, rule.listen.addr),
        };
        if let Some(interface) = &rule.listen.interface {
            bind_to_device(&socket, interface).map_err(Reason::Interface)?;
        }
        let bound = SocketAddr::new(address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), port);
        match rule.protocol {
            Protocol::Tcp => {
                bind(&socket, &bound)?;
                listen(&socket, BACKLOG)?;
            }
            Protocol::Udp if beside => {
                sockopt::set_socket_reuseaddr(&socket, true)?;
                bind(&socket, &bound)?;
                sockopt::set_socket_reuseaddr(&socket, false)?;
            }
            Protocol::Udp => bind(&socket, &bound)?,
        }
        Ok(Listener { rule: index, port, protocol: rule.protocol, address, socket })
    }
}

/// Takes over a socket that another process has bound, and that listens if it is a TCP socket.
///
/// # Errors
/// The kernel refuses an option.
pub(crate) fn adopt(
    rule: usize,
    protocol: Protocol,
    port: u16,
    socket: OwnedFd,
    address: Option<IpAddr>,
) -> Result<Listener, Reason> {
    match protocol {
        Protocol::Tcp => prepare_tcp(&socket)?,
        Protocol::Udp => udp::prepare_bound(&socket, address)?,
    }
    Ok(Listener { rule, port, protocol, address, socket })
}

/// Creates a socket for `address`. `None`: the socket is dual-stack. IPV6_V6ONLY is always set explicitly: its default
/// depends on the host.
fn create(protocol: Protocol, address: Option<IpAddr>, freebind: bool) -> Result<OwnedFd, Errno> {
    if protocol == Protocol::Udp {
        // SO_REUSEADDR is not set: two UDP sockets with this option would share a port without an error.
        return udp::prepare_listener(address, freebind);
    }
    let v4_only = matches!(address, Some(IpAddr::V4(_)));
    let family = if v4_only { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    prepare_tcp(&socket)?;
    if !v4_only {
        sockopt::set_ipv6_v6only(&socket, address.is_some())?;
    }
    if freebind {
        sockopt::set_ip_freebind(&socket, true)?;
    }
    Ok(socket)
}

/// Sets the options of a listening TCP socket that accepted connections inherit.
fn prepare_tcp(socket: &OwnedFd) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_oobinline(socket, true)?; // urgent data are part of the stream
    // Best effort: if this fails, the traffic class of the peer's packets is not forwarded.
    let _refused = sys::sockopt::keep_syn(socket);
    Ok(())
}

#[cfg(test)]
mod tests;
