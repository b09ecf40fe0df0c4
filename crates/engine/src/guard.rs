//! The guard of one guest: which flows and questions it may begin (docs/design/guard.md).
//!
//! [`Guard::admits`] is asked once for each flow. Without rules, that is one comparison.

mod questions;

use alloc::boxed::Box;
use core::{
    fmt,
    net::{IpAddr, SocketAddr},
};

pub use questions::{Asked, Refused};

use crate::{
    first_bytes::HostName,
    flow::{Endpoints, Protocol},
    names::{self, Names},
    policy::{Destination, NameVerdict, NoNames, Policy, Question, Reason, Rule, Verdict},
    timer::Instant,
};

/// The rules in force, and how often they refused something.
#[derive(Debug, Default)]
pub struct Guard {
    rules: Option<Box<Rules>>,
    /// Which names the guest was given an address for. None: there are no rules by name.
    names: Option<Box<Names>>,
    /// The names in questions that were refused last.
    recent: questions::Recent,
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
    /// The protocol.
    pub protocol: Protocol,
    /// The ends, as the guest sees them. The ports of pings do not matter.
    pub ends: Endpoints,
    /// The destination on the host's side, after translation (behaviour §5.2).
    pub destination: SocketAddr,
    /// The flow asks one of the host's resolvers for names.
    pub asks_resolver: bool,
}

/// Whether a flow may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// The flow may begin.
    Admit,
    /// The flow is allowed by a name alone: what the client says first decides.
    Named(Claim),
    /// The flow may not begin. The refusal was counted and logged.
    Refuse,
}

/// A flow that is allowed by a name alone, whose client is to say that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The server may speak before the client has said a name.
    pub server_first: bool,
    /// First bytes without a name may pass as well.
    nameless: bool,
    question: Question,
    guest: SocketAddr,
    /// Index of the rule.
    rule: usize,
    /// When the flow began: names that were known then are known.
    since: Instant,
}

impl Guard {
    /// A guard with these rules. With `audit` it refuses nothing, but logs what it would refuse. `hash_key` must be
    /// random.
    #[must_use]
    pub fn new(policy: Policy, audit: bool, hash_key: [u8; 16]) -> Self {
        let names = policy.has_names().then(|| Box::new(Names::new(names::Limits::default(), hash_key)));
        let recent = questions::Recent::new(hash_key);
        Self { rules: Some(Box::new(Rules { policy, audit })), names, recent, refused: 0 }
    }

    /// The names for which the guest was given an address, if there are rules by name.
    #[must_use]
    pub fn names_mut(&mut self) -> Option<&mut Names> {
        self.names.as_deref_mut()
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
    pub fn admits(
        &mut self,
        flow: &Opening,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> Admission {
        let Some(rules) = &self.rules else { return Admission::Admit };
        let question = rules.question(flow, is_own);
        let verdict = rules.policy.verdict(&question, &self.names.as_ref().map(|names| names.at(now)));
        let reason = match verdict {
            Verdict::Allow(_) => return Admission::Admit,
            Verdict::AllowNamed { rule, nameless } => {
                let (server_first, guest) = (nameless || rules.audit, flow.ends.guest);
                let claim = Claim { server_first, nameless, question, guest, rule, since: now };
                return Admission::Named(claim);
            }
            Verdict::Deny(reason) if rules.exempts(flow, reason) => return Admission::Admit,
            Verdict::Deny(reason) => reason,
        };
        self.refused += 1;
        let refused = rules.refused();
        let (Endpoints { guest, remote }, text) = (flow.ends, rules.policy.text(reason));
        let known = KnownFor { names: self.names.as_deref(), address: remote.ip(), now };
        match flow.protocol {
            Protocol::Icmp => log::warn!("{refused}: ping {} -> {}{known} ({text})", guest.ip(), remote.ip()),
            protocol => log::warn!("{refused}: {protocol} {guest} -> {remote}{known} ({text})"),
        }
        if rules.audit { Admission::Admit } else { Admission::Refuse }
    }

    /// Whether a flow may go on whose client asks for the server `name`. A refusal is counted and logged.
    pub fn admits_name(&mut self, claim: &Claim, name: &HostName) -> bool {
        let Some(rules) = &self.rules else { return true };
        let names = self.names.as_ref().map(|names| names.at(claim.since));
        let verdict = rules.policy.claim_verdict(&claim.question, name.as_str(), &names);
        let Verdict::Deny(reason) = verdict else { return true };
        self.refused += 1;
        log::warn!("{}: {claim}: asked for {name} ({})", rules.refused(), rules.policy.text(reason));
        rules.audit
    }

    /// Whether a flow may go on whose client says no name, because of `why`. A refusal is counted and logged.
    pub fn admits_nameless(&mut self, claim: &Claim, why: &dyn fmt::Display) -> bool {
        let Some(rules) = &self.rules else { return true };
        if claim.nameless {
            return true;
        }
        self.refused += 1;
        log::warn!("{}: {claim}: {why} ({})", rules.refused(), rules.policy.text(Reason::Rule(claim.rule)));
        rules.audit
    }

    /// Whether the guest may begin a flow whose first bytes are not read: by a name alone only if it may have no name. The
    /// rest is as for [`Guard::admits`].
    pub fn admits_unread(
        &mut self,
        flow: &Opening,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> bool {
        match self.admits(flow, now, is_own) {
            Admission::Admit => true,
            Admission::Named(claim) => self.admits_nameless(&claim, &"its first bytes are not read"),
            Admission::Refuse => false,
        }
    }

    /// Whether the guest may begin a flow that bypasses the link and leads to the host's loopback. The rest is as for
    /// [`Guard::admits`].
    pub fn admits_bypass(&mut self, protocol: Protocol, ends: Endpoints, now: Instant) -> bool {
        let flow = Opening { protocol, ends, destination: ends.remote, asks_resolver: false };
        self.admits_unread(&flow, now, |_| true)
    }

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
        let verdict = rules.policy.verdict(&rules.question(&flow, is_own), &NoNames);
        self.refused += u64::from(verdict.is_deny());
        !verdict.is_deny()
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Question { protocol, destination, .. } = self.question;
        write!(f, "{protocol} {} -> {destination}", self.guest)
    }
}

/// For messages: the names for which the guest was given an address, if any.
struct KnownFor<'a> {
    names: Option<&'a Names>,
    address: IpAddr,
    now: Instant,
}

impl fmt::Display for KnownFor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST_SHOWN: usize = 3;
        let names = self.names.into_iter().flat_map(|names| names.lookup(self.address, self.now));
        for (index, name) in names.take(MOST_SHOWN).enumerate() {
            write!(f, "{}{name}", if index == 0 { ", an answer for " } else { " and " })?;
        }
        Ok(())
    }
}

impl Rules {
    fn question(&self, flow: &Opening, is_own: impl FnOnce(SocketAddr) -> bool) -> Question {
        let leads_to_host =
            flow.destination.ip().is_loopback() || self.policy.has_groups() && is_own(flow.destination);
        Question { protocol: flow.protocol, destination: flow.ends.remote, leads_to_host }
    }

    /// Most resolvers have private addresses, or are the host itself. A rule about such a group is not meant for them: a
    /// guest that may reach the Internet needs its names.
    fn exempts(&self, flow: &Opening, reason: Reason) -> bool {
        flow.asks_resolver
            && !self.is_about_the_address(reason)
            && matches!(self.policy.name_verdict(""), NameVerdict::Allow(_))
    }

    const fn refused(&self) -> &'static str {
        if self.audit { "would be refused" } else { "refused" }
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
