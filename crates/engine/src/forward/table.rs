//! The forwarding rules of one direction.

use alloc::{boxed::Box, vec::Vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Protocol, Rule};
use crate::nat::is_group;

/// Maximum number of rules in one table (behaviour §2.4.10).
pub const MAX_RULES: usize = 255;

/// Maximum number of sockets that the rules of one table may need. Each port of each rule needs one socket (behaviour
/// §2.4.10).
pub const MAX_SOCKETS: usize = 327_680;

/// The forwarding rules of one direction, in the order in which they were given.
///
/// No two rules [conflict](Rule::conflicts_with), and the table is within the limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rules: Vec<Rule>,
    sockets: usize,
}

/// The families and protocols that are in use. Rules for other families and protocols are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enabled {
    /// IPv4 is in use.
    pub ipv4: bool,
    /// IPv6 is in use.
    pub ipv6: bool,
    /// TCP is in use.
    pub tcp: bool,
    /// UDP is in use.
    pub udp: bool,
}

impl Enabled {
    /// All families and protocols are in use.
    pub const ALL: Self = Self { ipv4: true, ipv6: true, tcp: true, udp: true };
}

/// A rule that was not added, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}\nUnable to add rule {rule}")]
pub struct AddError {
    /// The rule.
    pub rule: Box<Rule>,
    /// The reason why the rule was not added.
    pub reason: Refusal,
}

/// The reason why a rule can't be in a table (behaviour §2.4).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The rule listens on port 0.
    #[error("Forwarding rule attempts to map from port 0")]
    FromPortZero,
    /// The target range contains port 0, or exceeds 65535.
    #[error("Forwarding rule attempts to map to port 0")]
    ToPortZero,
    /// IPv4 is not in use.
    #[error("IPv4 forward, but IPv4 not enabled")]
    NoIpv4,
    /// IPv6 is not in use.
    #[error("IPv6 forward, but IPv6 not enabled")]
    NoIpv6,
    /// The protocol is not in use.
    #[error("Can't add {0} forwarding rule, {0} not enabled")]
    NoProtocol(Protocol),
    /// Packets of both families can't go to one address.
    #[error("Dual stack forward to {} address {to} unsupported\nDid you mean {}/... instead?", family(*.to), wildcard(*.to))]
    DualStackTarget {
        /// Target address.
        to: IpAddr,
    },
    /// Packets of one family can't go to an address of the other family.
    #[error("Forward from {} ({from}) to {} ({to}) unsupported", family(*.from), family(*.to))]
    OtherFamily {
        /// Listening address.
        from: IpAddr,
        /// Target address.
        to: IpAddr,
    },
    /// The target must be a single host, but is a multicast address.
    #[error("Multicast target address {0} for forwarding rule")]
    MulticastTarget(IpAddr),
    /// A rule in the table matches some packets that the new rule matches, too.
    #[error("Forwarding configuration conflict: {new} versus {old}")]
    Conflict {
        /// The rule to be added.
        new: Box<Rule>,
        /// The rule that is in the table.
        old: Box<Rule>,
    },
    /// The table is full.
    #[error("Too many forwarding rules (max {MAX_RULES})")]
    TooManyRules,
    /// The rules would need too many listening sockets.
    #[error("Too many ports to listen on (max {MAX_SOCKETS})")]
    TooManySockets,
}

impl Table {
    /// An empty table.
    pub const fn new() -> Self {
        Self { rules: Vec::new(), sockets: 0 }
    }

    /// The rules, in order. An index into this slice stays valid, since rules are never removed.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Number of listening sockets that the rules need.
    pub fn sockets(&self) -> usize {
        self.sockets
    }

    /// Appends a rule.
    ///
    /// # Errors
    /// If the rule is invalid, needs a protocol or family that is not `enabled`, conflicts with a rule of the table, or
    /// exceeds a limit. The table is then unchanged.
    pub fn add(&mut self, rule: Rule, enabled: Enabled) -> Result<(), AddError> {
        match self.check(&rule, enabled) {
            Err(reason) => Err(AddError { rule: Box::new(rule), reason }),
            Ok(()) => {
                self.sockets += rule.ports.len();
                self.rules.push(rule);
                Ok(())
            }
        }
    }

    /// The rules, restricted to the families of `enabled`. A rule for both families becomes a rule for the enabled one.
    /// A rule for a family that is not enabled is left out.
    #[must_use]
    pub fn of_families(&self, enabled: Enabled) -> Self {
        let any: Option<IpAddr> = match (enabled.ipv4, enabled.ipv6) {
            (true, false) => Some(Ipv4Addr::UNSPECIFIED.into()),
            (false, true) => Some(Ipv6Addr::UNSPECIFIED.into()),
            _ => None,
        };
        let mut table = Self::new();
        for rule in &self.rules {
            let mut rule = rule.clone();
            rule.listen.addr = rule.listen.addr.or(any);
            // Here, a rule is refused only if its family is not in use.
            let _left_out = table.add(rule, enabled);
        }
        table
    }

    /// Whether `rule` may be appended.
    fn check(&self, rule: &Rule, enabled: Enabled) -> Result<(), Refusal> {
        check_ports(rule)?;
        check_enabled(rule, enabled)?;
        check_target(rule)?;
        if let Some(old) = self.rules.iter().find(|old| rule.conflicts_with(old)) {
            let (new, old) = (Box::new(rule.clone()), Box::new(old.clone()));
            return Err(Refusal::Conflict { new, old });
        }
        if self.rules.len() >= MAX_RULES {
            return Err(Refusal::TooManyRules);
        }
        if self.sockets + rule.ports.len() > MAX_SOCKETS {
            return Err(Refusal::TooManySockets);
        }
        Ok(())
    }

    /// The first rule, with its index, that matches a packet to `addr` and `port` (behaviour §8.5). `interface` is the
    /// name of the interface on which the packet arrived, if known. A rule with an interface never matches a packet
    /// whose interface is not known.
    pub fn lookup(
        &self,
        protocol: Protocol,
        addr: IpAddr,
        port: u16,
        interface: Option<&str>,
    ) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, rule)| {
            let interface_ok = rule.listen.interface.as_deref().is_none_or(|name| interface == Some(name));
            interface_ok && rule.matches(protocol, addr, port)
        })
    }
}

fn check_ports(rule: &Rule) -> Result<(), Refusal> {
    if rule.ports.first() == 0 {
        return Err(Refusal::FromPortZero);
    }
    if rule.target_first == 0 || rule.target_port(rule.ports.last()).is_none() {
        return Err(Refusal::ToPortZero);
    }
    Ok(())
}

fn check_enabled(rule: &Rule, enabled: Enabled) -> Result<(), Refusal> {
    let protocol_enabled = match rule.protocol {
        Protocol::Tcp => enabled.tcp,
        Protocol::Udp => enabled.udp,
    };
    if !protocol_enabled {
        return Err(Refusal::NoProtocol(rule.protocol));
    }
    match rule.listen.addr {
        Some(IpAddr::V4(_)) if !enabled.ipv4 => Err(Refusal::NoIpv4),
        Some(IpAddr::V6(_)) if !enabled.ipv6 => Err(Refusal::NoIpv6),
        _ => Ok(()),
    }
}

fn check_target(rule: &Rule) -> Result<(), Refusal> {
    let Some(to) = rule.target_addr else { return Ok(()) };
    let Some(from) = rule.listen.addr else { return Err(Refusal::DualStackTarget { to }) };
    if from.is_ipv4() != to.is_ipv4() {
        return Err(Refusal::OtherFamily { from, to });
    }
    if is_group(to) {
        return Err(Refusal::MulticastTarget(to));
    }
    Ok(())
}

fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The wildcard of the family of `addr`, as written in a port specifier.
fn wildcard(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "0.0.0.0" } else { "[::]" }
}
