//! One rule: the flows that it allows or denies.

use alloc::{boxed::Box, vec::Vec};
use core::fmt;

use ipnet::IpNet;

use super::{group::Group, name::Name};
use crate::{flow::Protocol, ports::PortRange};

/// The effect of a rule on the flows that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The flow may begin.
    Allow,
    /// The flow is refused.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// The destinations that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The addresses of a prefix. A single address is a prefix of the full length. The host bits are zero. The prefix
    /// is never IPv4-mapped.
    Prefix(IpNet),
    /// A name, without the names below it.
    Name(Name),
    /// The names below a name, without the name itself.
    Below(Name),
    /// A group of addresses.
    Group(Group),
}

/// The ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ports(Option<Box<[PortRange]>>);

impl Ports {
    /// No ports are given. The rule also matches protocols without ports.
    pub const ANY: Self = Self(None);

    /// Ports in any of `ranges`. The rule matches no protocol without ports.
    #[must_use]
    pub fn given(ranges: Vec<PortRange>) -> Self {
        Self(Some(ranges.into()))
    }

    /// Whether ports are given.
    #[must_use]
    pub const fn are_given(&self) -> bool {
        self.0.is_some()
    }

    /// Whether the rule matches `port`.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(port)))
    }

    /// Whether ports are given, and all of them are among `others`.
    pub(super) fn are_within(&self, others: &[u16]) -> bool {
        self.0.as_ref().is_some_and(|ranges| {
            ranges
                .iter()
                .all(|range| range.len() <= others.len() && range.iter().all(|p| others.contains(&p)))
        })
    }
}

/// A rule. The first rule that matches a flow decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The effect on the flows that the rule matches.
    pub action: Action,
    /// The protocol. None: all protocols, or, if ports are given, all protocols that have ports.
    pub protocol: Option<Protocol>,
    /// The destination.
    pub destination: Destination,
    /// The destination's ports.
    pub ports: Ports,
    /// The text of the rule for logs, as the user wrote it: `allow index.example.org:443`.
    pub text: Box<str>,
}

impl Rule {
    /// Whether the rule is about this protocol and port, with any destination.
    #[must_use]
    pub fn is_about(&self, protocol: Protocol, port: u16) -> bool {
        let ports =
            if protocol == Protocol::Icmp { !self.ports.are_given() } else { self.ports.contains(port) };
        ports && self.protocol.is_none_or(|own| own == protocol)
    }

    /// Whether the rule is about every protocol and port.
    #[must_use]
    pub const fn is_about_all(&self) -> bool {
        self.protocol.is_none() && !self.ports.are_given()
    }

    /// Whether the rule's destination is a name, or the names below a name.
    #[must_use]
    pub const fn is_by_name(&self) -> bool {
        matches!(self.destination, Destination::Name(_) | Destination::Below(_))
    }

    /// Whether the rule is about this name. Case and a trailing dot do not matter.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        match &self.destination {
            Destination::Name(own) => own.is(name),
            Destination::Below(own) => own.is_above(name),
            Destination::Prefix(_) | Destination::Group(_) => false,
        }
    }

    /// Whether the rule's destination includes an address of the group `group`. `leads_to_host` is
    /// [`Question::leads_to_host`].
    ///
    /// An address that leads to the host is in two groups: `host`, and the group of the address itself. A rule that
    /// denies one of these groups matches. A rule that allows matches only if its group is `host`. So `allow private`
    /// does not allow the host's services by accident if the gateway's address is private.
    ///
    /// [`Question::leads_to_host`]: super::Question::leads_to_host
    pub(super) fn covers_group(&self, group: Group, leads_to_host: bool) -> bool {
        match self.destination {
            Destination::Group(Group::All) => true,
            Destination::Group(Group::Host) => leads_to_host || group == Group::Host,
            Destination::Group(Group::Public) => group == Group::Public && !leads_to_host,
            Destination::Group(own) => own == group && (!leads_to_host || self.action == Action::Deny),
            _ => false,
        }
    }

    /// Whether the rule's destination is all addresses of at least one family, or all public addresses.
    pub(super) fn is_about_the_internet(&self) -> bool {
        match &self.destination {
            Destination::Prefix(prefix) => prefix.prefix_len() == 0,
            Destination::Group(group) => matches!(group, Group::All | Group::Public),
            Destination::Name(_) | Destination::Below(_) => false,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
