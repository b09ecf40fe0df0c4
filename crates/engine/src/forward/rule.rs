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

/// Where a rule listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listen {
    /// Address to bind; `None` is the dual-stack wildcard `*` (one IPv6 socket with `IPV6_V6ONLY` off). The
    /// unspecified address of a family means all addresses of that family only (behaviour §2.4.5).
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

    /// Whether one socket on each of the two could claim the same packet.
    ///
    /// Two rules on different interfaces never do (Q20): the kernel allows both sockets.
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

/// `[ADDR]%IF`: `[::1]`, `[127.0.0.1]%lo`, `[*]`, `[*]%eth0` (behaviour §1.8).
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

/// One forwarding rule: the ports listened on, and the equally long range that they map to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Where to listen.
    pub listen: Listen,
    /// Ports to listen on.
    pub ports: PortRange,
    /// Destination address; `None` means the one that behaviour §5.3.2 derives, usually the guest's.
    pub target_addr: Option<IpAddr>,
    /// Destination port that the first of `ports` maps to; the others follow in order. The last one is
    /// at most 65535.
    pub target_first: u16,
    /// A port that can't be bound is no error (behaviour §8.2).
    pub best_effort: bool,
    /// Listen only on ports that are bound on the other side, as they come and go (behaviour §8.4).
    pub scan: bool,
}

impl Rule {
    /// Whether a packet to `addr` and `port` falls under this rule, interfaces aside.
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

    /// Whether some packet matches both rules, so that they can't be in one table (behaviour §2.4.9, Q20).
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.ports.overlaps(other.ports)
            && self.listen.overlaps(&other.listen)
    }
}

/// `TCP [ADDR]%IF:FIRST-LAST  =>  [TADDR:]TO-TOLAST  (best effort) (auto-scan)` (behaviour §1.8), ranges of one
/// port as that port alone.
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

/// A range, or the one port of it.
struct Ports(PortRange);

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 { self.0.first().fmt(f) } else { self.0.fmt(f) }
    }
}
