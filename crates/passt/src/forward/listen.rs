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

/// Connections that may wait to be accepted. The kernel limits this to `net.core.somaxconn`.
pub(crate) const BACKLOG: i32 = 4096;

/// A bound socket of one port of a rule; a TCP one listens.
#[derive(Debug)]
pub(crate) struct Listener {
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

/// Ports of a rule can't be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A port of a rule that is not best effort.
    #[error(
        "Listen failed for {} {protocol} port {}/{port}: {reason}\nCouldn't listen on requested ports",
        .direction.table_name(), At(.listen)
    )]
    Port {
        /// Which way the rule leads.
        direction: Direction,
        /// Transport protocol.
        protocol: Protocol,
        /// Where.
        listen: Listen,
        /// The port.
        port: u16,
        /// What failed.
        reason: Reason,
    },
    /// Sockets can't be opened in the guest's namespace.
    #[error("can't open sockets in the namespace: {0}")]
    Namespace(#[from] std::io::Error),
    /// All ports of a best-effort rule.
    #[error(
        "All listens failed for {} {protocol} {}/{ports}: {reason}\nCouldn't listen on requested ports",
        .direction.table_name(), At(.listen)
    )]
    Rule {
        /// Which way the rule leads.
        direction: Direction,
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
pub(crate) enum Reason {
    /// The rule's interface can't be bound to.
    #[error("SO_BINDTODEVICE failed: {0}")]
    Interface(Errno),
    /// Another step failed.
    #[error("{0}")]
    Socket(#[from] Errno),
}

/// The listening address of a rule, as before `/` in a port specifier.
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
    /// Direction of the rules.
    pub direction: Direction,
    /// Let rules name addresses that the host does not have yet.
    pub freebind: bool,
    /// Best-effort rules open no more sockets if this many are open, those of other rules included (Q13).
    pub spare: usize,
}

impl Opening {
    /// How sockets of the other direction are opened.
    #[must_use]
    pub(crate) fn outbound(self) -> Self {
        Self { direction: Direction::Outbound, ..self }
    }

    /// Opens the sockets of all rules, except rules that follow a scan (behaviour §8.4) and sockets that are `open`
    /// already (rule index and port). Also returns a line for each incomplete best-effort rule.
    ///
    /// # Errors
    /// A port can't be bound. For a best-effort rule this is an error only if none of its ports can be bound. A lack of
    /// descriptors is no error for it (Q13).
    pub(crate) fn rules(
        self,
        table: &Table,
        open: impl Fn(usize, u16) -> bool,
    ) -> Result<(Vec<Listener>, Vec<String>), Error> {
        self.rules_by(table, open, |index, rule, port| self.socket(index, rule, port, false))
    }

    /// Like [`Opening::rules`], with `make` to open a socket of the rule of that index.
    ///
    /// # Errors
    /// The same.
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

    /// Opens what can be opened of a rule's `ports`, and returns a line about what could not.
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

    /// Opens a port of a rule. With `beside`, a UDP socket may share the port of another socket that allows it.
    pub(crate) fn socket(
        self,
        index: usize,
        rule: &Rule,
        port: u16,
        beside: bool,
    ) -> Result<Listener, Reason> {
        let (socket, address) = match create(rule.protocol, rule.listen.addr, self.freebind) {
            // a host without IPv6 has no dual-stack sockets, and needs none.
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

/// A socket for `address`; `None`: dual-stack. IPV6_V6ONLY is always set explicitly, as its default depends on the host
///
fn create(protocol: Protocol, address: Option<IpAddr>, freebind: bool) -> Result<OwnedFd, Errno> {
    if protocol == Protocol::Udp {
        // Without SO_REUSEADDR: two UDP sockets with it would share a port, without an error.
        return udp::prepare_listener(address, freebind);
    }
    let v4_only = matches!(address, Some(IpAddr::V4(_)));
    let family = if v4_only { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Accepted connections inherit these.
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true)?; // urgent data are part of the stream
    // Best effort: without it, the traffic class of the peer's packets is not forwarded.
    let _refused = sys::sockopt::keep_syn(&socket);
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
