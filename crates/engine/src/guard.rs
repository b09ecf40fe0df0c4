//! The guard of one guest: which flows and questions it may begin (docs/design/guard.md).
//!
//! [`Guard::admits`] is asked once for each flow. Without rules, that is one comparison.

use alloc::boxed::Box;
use core::net::SocketAddr;

use crate::{
    flow::Endpoints,
    policy::{Destination, NameVerdict, NoNames, Policy, Protocol, Question, Reason, Verdict},
};

/// The rules in force, and how often they refused something.
#[derive(Debug, Default)]
pub struct Guard {
    rules: Option<Box<Rules>>,
    refused: u64,
}

#[derive(Debug)]
struct Rules {
    policy: Policy,
    audit: bool,
}

/// A flow that the guest wants to begin.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its ends, as the guest sees them. The ports of pings do not matter.
    pub ends: Endpoints,
    /// Its destination on the host's side, after translation (behaviour §5.2).
    pub destination: SocketAddr,
    /// It asks one of the host's resolvers for names.
    pub asks_resolver: bool,
}

impl Guard {
    /// A guard with these rules. With `audit` it refuses nothing, but logs what it would refuse.
    #[must_use]
    pub fn new(policy: Policy, audit: bool) -> Self {
        Self { rules: Some(Box::new(Rules { policy, audit })), refused: 0 }
    }

    /// The rules in force, if there are any.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.rules.as_ref().map(|rules| &rules.policy)
    }

    /// How many flows were refused since the start; with `audit`, how many would have been.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Whether the guest may begin a flow. `is_own` says whether the host itself has an address; it is called only if rules
    /// depend on it. A refusal is counted and logged.
    pub fn admits(&mut self, flow: &Opening, is_own: impl FnOnce(SocketAddr) -> bool) -> bool {
        let Some(rules) = &self.rules else { return true };
        let Some(reason) = rules.refuse(flow, is_own) else { return true };
        self.refused += 1;
        let refused = if rules.audit { "would be refused" } else { "refused" };
        let (Endpoints { guest, remote }, text) = (flow.ends, rules.policy.text(reason));
        match flow.protocol {
            Protocol::Icmp => log::info!("{refused}: ping {} -> {} ({text})", guest.ip(), remote.ip()),
            protocol => log::info!("{refused}: {protocol} {guest} -> {remote} ({text})"),
        }
        rules.audit
    }
}

impl Guard {
    /// Whether a datagram from a sender that the guest has not written to may reach it, at a port that is not published: the
    /// guest could answer, so it must be allowed to write to that sender. `is_own` is as for [`Guard::admits`].
    pub fn admits_stranger(
        &mut self,
        ends: Endpoints,
        peer: SocketAddr,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> bool {
        let Some(rules) = self.rules.as_ref().filter(|rules| !rules.audit) else { return true };
        let flow = Opening { protocol: Protocol::Udp, ends, destination: peer, asks_resolver: false };
        let refused = rules.refuse(&flow, is_own).is_some();
        self.refused += u64::from(refused);
        !refused
    }
}

impl Rules {
    /// Why a flow is refused, if it is.
    fn refuse(&self, flow: &Opening, is_own: impl FnOnce(SocketAddr) -> bool) -> Option<Reason> {
        let leads_to_host =
            flow.destination.ip().is_loopback() || self.policy.has_groups() && is_own(flow.destination);
        let question = Question { protocol: flow.protocol, destination: flow.ends.remote, leads_to_host };
        let Verdict::Deny(reason) = self.policy.verdict(&question, &NoNames) else { return None };
        // Most resolvers have private addresses, or are the host itself. A rule about such a group is not meant for them: a
        // guest that may reach the Internet needs its names.
        let exempt = flow.asks_resolver
            && !self.is_about_the_address(reason)
            && matches!(self.policy.name_verdict(""), NameVerdict::Allow(_));
        (!exempt).then_some(reason)
    }

    fn is_about_the_address(&self, reason: Reason) -> bool {
        match reason {
            Reason::Rule(index) => {
                let rule = self.policy.rules().get(index);
                rule.is_some_and(|rule| matches!(rule.destination, Destination::Prefix(_)))
            }
            Reason::Default | Reason::NameService => false,
        }
    }
}

#[cfg(test)]
mod tests;
