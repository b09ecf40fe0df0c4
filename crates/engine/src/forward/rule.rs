//! One forwarding rule.

use core::{fmt, net::IpAddr};

use super::{IfName, PortRange};

/// Transport protocol of a forwarding rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// The address and interface on which a rule listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listen {
    /// Address to bind. `None`: the dual-stack wildcard `*` (one IPv6 socket with `IPV6_V6ONLY` off). The unspecified
    /// address of a family means all addresses of this family only (behaviour §2.4.5).
    pub addr: Option<IpAddr>,
    /// Interface to bind to (`SO_BINDTODEVICE`), if any.
    pub interface: Option<IfName>,
}

impl Listen {
    /// Every address of both families, on every interface.
    pub const ANY: Self = Self { addr: None, interface: None };

    /// Whether the listening address covers packets to `addr`.
    pub fn accepts(&self, addr: IpAddr) -> bool {
        match self.addr {
            None => true,
            Some(listen) if listen.is_unspecified() => listen.is_ipv4() == addr.is_ipv4(),
            Some(listen) => listen == addr,
        }
    }

    /// Whether a packet can match both listening addresses, with their interfaces.
    ///
    /// Two rules on different interfaces never overlap (Q20): the kernel allows both sockets.
    fn overlaps(&self, other: &Self) -> bool {
        let interfaces = match (&self.interface, &other.interface) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        let addresses = match (self.addr, other.addr) {
            (None, _) | (_, None) => true,
            (Some(a), Some(b)) => self.accepts(b) || other.accepts(a),
        };
        interfaces && addresses
    }
}

/// Writes `[ADDR]%IF`: `[::1]`, `[127.0.0.1]%lo`, `[*]`, `[*]%eth0` (behaviour §1.8).
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            None => f.write_str("[*]")?,
            Some(addr) => write!(f, "[{addr}]")?,
        }
        match &self.interface {
            None => Ok(()),
            Some(name) => write!(f, "%{name}"),
        }
    }
}

/// One forwarding rule: the range of ports to listen on, and the range of the same length that these ports map to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Where to listen.
    pub listen: Listen,
    /// Ports to listen on.
    pub ports: PortRange,
    /// Destination address. `None`: the address that behaviour §5.3.2 derives, usually the guest's.
    pub target_addr: Option<IpAddr>,
    /// Destination port of the first port in `ports`. The other ports follow in order. The last destination port is at
    /// most 65535.
    pub target_first: u16,
    /// Whether the rule ignores ports that can't be bound (behaviour §8.2).
    pub best_effort: bool,
    /// Whether the rule listens only on ports that are bound on the other side at the moment (behaviour §8.4).
    pub scan: bool,
}

impl Rule {
    /// Whether the rule covers a packet to `addr` and `port`. The interface is not compared.
    pub fn matches(&self, protocol: Protocol, addr: IpAddr, port: u16) -> bool {
        self.protocol == protocol && self.ports.contains(port) && self.listen.accepts(addr)
    }

    /// Destination port for a packet that arrived at `port`, or `None` if `port` is not in the rule's range.
    pub fn target_port(&self, port: u16) -> Option<u16> {
        if !self.ports.contains(port) {
            return None;
        }
        self.target_first.checked_add(port - self.ports.first())
    }

    /// Destination ports. Saturates at 65535 for a rule that violates the invariant of `target_first`.
    pub fn target_ports(&self) -> PortRange {
        let last = self.target_first.saturating_add(self.ports.last() - self.ports.first());
        PortRange::new(self.target_first, last).unwrap_or(PortRange::single(self.target_first))
    }

    /// Whether a packet can match both rules. Such rules can't be in one table (behaviour §2.4.9, Q20).
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.ports.overlaps(other.ports)
            && self.listen.overlaps(&other.listen)
    }
}

/// Writes `TCP [ADDR]%IF:FIRST-LAST  =>  [TADDR:]TO-TOLAST  (best effort) (auto-scan)` (behaviour §1.8). A range of
/// one port is written as this port alone.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:{}  =>  ", self.protocol, self.listen, Ports(self.ports))?;
        if let Some(addr) = self.target_addr {
            match addr {
                IpAddr::V4(addr) => write!(f, "{addr}:")?,
                IpAddr::V6(addr) => write!(f, "[{addr}]:")?,
            }
        }
        write!(f, "{} ", Ports(self.target_ports()))?;
        if self.best_effort {
            f.write_str(" (best effort)")?;
        }
        if self.scan {
            f.write_str(" (auto-scan)")?;
        }
        Ok(())
    }
}

/// The text form of a range. A range of one port is written as the port alone.
struct Ports(PortRange);

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 { self.0.first().fmt(f) } else { self.0.fmt(f) }
    }
}
