//! The guard of one guest: decides which flows the guest may begin and which DNS questions it may ask
//! (docs/design/guard.md).
//!
//! [`Guard::admits`] is called once for each flow. Without rules, a call costs one comparison.

mod outlook;
mod questions;
mod replacement;
mod reports;

use alloc::{boxed::Box, string::ToString as _};
use core::{
    fmt,
    net::{IpAddr, SocketAddr},
};

pub use outlook::Outlook;
pub use questions::{Asked, Refused};
pub use replacement::Ended;

use crate::{
    events::{Events, Refused as What},
    first_bytes::{Ech, HostName},
    flow::{Endpoints, Protocol},
    names::{self, Hold, Names},
    policy::{Destination, Name, NameVerdict, Policy, Question, Reason, Rule, Verdict},
    quota::Quota,
    timer::Instant,
};

/// The rules in force, and the number of refusals.
#[derive(Debug)]
pub struct Guard {
    rules: Option<Box<Rules>>,
    /// The names for which the guest was given an address. None if there have never been rules by name.
    names: Option<Box<Names>>,
    /// The names in the questions that were refused recently.
    recent: questions::Recent,
    refused: u64,
    /// The mode for rules that are set later.
    mode: Mode,
    /// The key of `names`.
    hash_key: [u8; 16],
    /// The numbers of flows that ended when the rules were replaced.
    ended: Ended,
    /// The queue for reports of flows and refusals.
    events: Events,
    limits: Limits,
    /// The memory in which first bytes of connections are parsed.
    first_bytes: Quota,
    /// The memory of answers over TCP.
    answers: Quota,
}

/// Limits on the memory of rules by name.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Limits of the names for which the guest was given an address.
    pub names: names::Limits,
    /// Maximum memory in which first bytes of TCP connections are parsed, in bytes. A connection for which there is none is
    /// refused.
    pub first_bytes: usize,
    /// Maximum memory of queries and answers over TCP that the guard judges, in bytes: from servers, and for the guest. If
    /// there is none, a server counts as failed, and a connection of the guest ends.
    pub answers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { names: names::Limits::default(), first_bytes: usize::MAX, answers: usize::MAX }
    }
}

#[derive(Debug)]
struct Rules {
    policy: Policy,
    mode: Mode,
}

/// How the rules are applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Nothing is refused. The flows and questions that would be refused are counted and logged.
    pub audit: bool,
    /// A rule by name allows a flow if the flow's address was in an answer for the name. The client's first bytes are
    /// not read.
    pub by_answer_alone: bool,
    /// How a ClientHello with an encrypted part is treated.
    pub ech: Ech,
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
    /// Whether the flow is a DNS flow to one of the host's resolvers.
    pub asks_resolver: bool,
}

/// Whether a flow may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// The flow may begin.
    Admit,
    /// The flow may begin, because of a rule by name. The caller must [hold](Guard::hold) the names of its address.
    AdmitByName,
    /// Only a rule by name allows the flow. The client's first bytes decide. The caller must [hold](Guard::hold) the
    /// names of its address as soon as the flow begins.
    Named(Claim),
    /// The flow may not begin. The refusal was counted and logged.
    Refuse,
}

/// A flow that only a rule by name allows. Its client must send an allowed name in its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whether the server may send bytes before the client has sent a name.
    pub server_first: bool,
    /// Whether first bytes without a name are forwarded, too.
    nameless: bool,
    /// How a ClientHello with an encrypted part is treated.
    pub ech: Ech,
    question: Question,
    guest: SocketAddr,
    /// Index of the rule.
    rule: usize,
    /// The time at which the flow began. The names that were known at this time count.
    since: Instant,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            rules: None,
            names: None,
            recent: questions::Recent::default(),
            refused: 0,
            mode: Mode::default(),
            hash_key: [0; 16],
            ended: Ended::default(),
            events: Events::default(),
            limits: Limits::default(),
            first_bytes: Quota::new(usize::MAX),
            answers: Quota::new(usize::MAX),
        }
    }
}

impl Guard {
    /// A guard with these rules. `hash_key` must be random.
    #[must_use]
    pub fn new(policy: Policy, mode: Mode, hash_key: [u8; 16]) -> Self {
        let mut guard = Self::without_rules(mode, hash_key);
        guard.replace(policy);
        guard
    }

    /// Sets the limits. Must be called before the guest has sent a frame: names that are known are forgotten.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
        self.first_bytes = Quota::new(limits.first_bytes);
        self.answers = Quota::new(limits.answers);
        self.names = self.names.take().map(|_| Box::new(Names::new(limits.names, self.hash_key)));
    }

    /// The memory in which first bytes of connections are parsed.
    pub(crate) const fn first_bytes(&self) -> &Quota {
        &self.first_bytes
    }

    /// The memory of queries and answers over TCP.
    pub(crate) const fn answers(&self) -> &Quota {
        &self.answers
    }

    /// The names for which the guest was given an address. None if there have never been rules by name.
    #[must_use]
    pub fn names(&self) -> Option<&Names> {
        self.names.as_deref()
    }

    /// The names for which the guest was given an address, mutable. None if there have never been rules by name.
    #[must_use]
    pub fn names_mut(&mut self) -> Option<&mut Names> {
        self.names.as_deref_mut()
    }

    /// The rules in force, if there are any.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.rules.as_ref().map(|rules| &rules.policy)
    }

    /// Number of refusals since the start. With [`Mode::audit`], the number of would-be refusals.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Whether the guest may begin a flow. `is_own` returns whether the host itself has an address. It is called only
    /// if rules depend on the result. A refusal is counted and logged.
    pub fn admits(
        &mut self,
        flow: &Opening,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> Admission {
        let reason = match self.judge(flow, None, None, now, is_own) {
            Ok(admission) => return admission,
            Err(reason) => reason,
        };
        self.refused += 1;
        log::warn!("{}", self.report(["refused", "would be refused"], flow, reason, now));
        let text = self.policy().map_or("", |policy| policy.text(reason));
        self.report_refusal(text, Some((flow.ends.remote.ip(), now)), || What::Flow {
            protocol: flow.protocol,
            ends: flow.ends,
        });
        if self.audits() { Admission::Admit } else { Admission::Refuse }
    }

    /// The verdict on a flow. `said` is the name that the client has sent, if its first bytes were read. `told` is a name
    /// that counts as if the guest had been given the flow's address for it. The error is the reason for a refusal.
    fn judge(
        &self,
        flow: &Opening,
        said: Option<&HostName>,
        told: Option<&Name>,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> Result<Admission, Reason> {
        let Some(rules) = &self.rules else { return Ok(Admission::Admit) };
        let question = rules.question(flow, is_own);
        let verdict = match said {
            Some(name) => rules.policy.verdict(&question, name),
            None => rules.policy.verdict(&question, &self.given(flow, told, now)),
        };
        match verdict {
            Verdict::Allow(reason) if rules.is_by_name(reason) => Ok(Admission::AdmitByName),
            Verdict::Allow(_) => Ok(Admission::Admit),
            Verdict::AllowNamed { .. } if rules.mode.by_answer_alone || said.is_some() => {
                Ok(Admission::AdmitByName)
            }
            Verdict::AllowNamed { rule, nameless } => {
                let (server_first, guest) = (nameless || rules.mode.audit, flow.ends.guest);
                let ech = rules.mode.ech;
                let claim = Claim { server_first, nameless, ech, question, guest, rule, since: now };
                Ok(Admission::Named(claim))
            }
            Verdict::Deny(reason) if rules.exempts(flow, reason) => Ok(Admission::Admit),
            Verdict::Deny(reason) => Err(reason),
        }
    }

    /// The log line about a denied flow. It begins with the first of `words`, or with the second in an audit.
    fn report<'a>(
        &'a self,
        words: [&'static str; 2],
        flow: &Opening,
        reason: Reason,
        now: Instant,
    ) -> Report<'a> {
        let known = KnownFor { names: self.names.as_deref(), address: flow.ends.remote.ip(), now };
        let reason = self.policy().map_or("", |policy| policy.text(reason));
        let [word, in_audit] = words;
        let word = if self.audits() { in_audit } else { word };
        Report { word, protocol: flow.protocol, ends: flow.ends, known, reason }
    }

    /// Whether a flow may continue after its client has sent `name` as the server's name. A refusal is counted and
    /// logged.
    pub fn admits_name(&mut self, claim: &Claim, name: &HostName) -> bool {
        let Some(rules) = &self.rules else { return true };
        let names = self.names.as_ref().map(|names| names.at(claim.since));
        let verdict = rules.policy.claim_verdict(&claim.question, name.as_str(), &names);
        let Verdict::Deny(reason) = verdict else { return true };
        self.refused += 1;
        let text = rules.policy.text(reason);
        log::warn!("{}: {claim}: asked for {name} ({text})", rules.refused());
        self.report_claim(claim, text, || Ok(name.as_str().into()));
        rules.mode.audit
    }

    /// Whether a flow may continue although its client has sent no name. `why` is the reason for the missing name. A
    /// refusal is counted and logged.
    pub fn admits_nameless(&mut self, claim: &Claim, why: &dyn fmt::Display) -> bool {
        let Some(rules) = &self.rules else { return true };
        if claim.nameless {
            return true;
        }
        self.refused += 1;
        let text = rules.policy.text(Reason::Rule(claim.rule));
        log::warn!("{}: {claim}: {why} ({text})", rules.refused());
        self.report_claim(claim, text, || Err(why.to_string().into()));
        rules.mode.audit
    }

    /// Whether the guest may begin a flow whose first bytes are not read. If only a rule by name allows the flow, it
    /// may begin only if first bytes without a name are forwarded. Apart from this, the function is like
    /// [`Guard::admits`].
    ///
    /// Such a flow does not hold names. Instead, each call prolongs the life of the names that allow the flow.
    pub fn admits_unread(
        &mut self,
        flow: &Opening,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> bool {
        match self.admits(flow, now, is_own) {
            Admission::Admit => true,
            Admission::AdmitByName => {
                self.prolong(flow.ends.remote.ip(), now);
                true
            }
            Admission::Named(claim) => self.admits_nameless(&claim, &"its first bytes are not read"),
            Admission::Refuse => false,
        }
    }

    /// Whether the guest may begin a flow that bypasses the link and leads to the host's loopback. Apart from this, the
    /// function is like [`Guard::admits`].
    pub fn admits_bypass(&mut self, protocol: Protocol, ends: Endpoints, now: Instant) -> bool {
        let flow = Opening { protocol, ends, destination: ends.remote, asks_resolver: false };
        self.admits_unread(&flow, now, |_| true)
    }

    /// Whether a datagram may reach the guest at a port that is not published, from a sender to which the guest has not
    /// written. The guest could answer, so the rules must allow the guest to write to this sender. `is_own` has the
    /// meaning that it has in [`Guard::admits`].
    ///
    /// If only a rule by name allows this, the rule must also allow the server to send first. Then the guest's answers
    /// are checked like the first datagrams of a flow that the guest begins.
    pub fn admits_stranger(
        &mut self,
        ends: Endpoints,
        peer: SocketAddr,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> Admission {
        let flow = Opening { protocol: Protocol::Udp, ends, destination: peer, asks_resolver: false };
        match self.judge(&flow, None, None, now, is_own) {
            Ok(Admission::Named(claim)) if !claim.server_first => {}
            Ok(admission) => return admission,
            Err(_) if self.audits() => return Admission::Admit,
            Err(_) => {}
        }
        self.refused += 1;
        Admission::Refuse
    }
}

impl Guard {
    /// Counts and logs a flow that can't begin under any rules, since its source or destination is invalid.
    pub fn note_invalid(&mut self, protocol: Protocol, ends: &Endpoints, why: &dyn fmt::Display) {
        if self.rules.is_some() {
            self.refused += 1;
            log::warn!("refused: {protocol} {} -> {}: {why}", ends.guest, ends.remote);
            self.report_drop(why, || What::Flow { protocol, ends: *ends });
        }
    }

    /// Counts and logs a packet of a protocol that is not forwarded under any rules.
    pub fn note_unsupported(&mut self, number: u8, source: IpAddr, destination: IpAddr) {
        if self.rules.is_some() {
            self.refused += 1;
            log::warn!("refused: IP protocol {number} {source} -> {destination}: not supported");
            self.report_drop(&"not supported", || What::Protocol { number, source, destination });
        }
    }

    /// Counts and logs a fragment, or all fragments of a packet, which is dropped under any rules.
    pub fn note_fragments(&mut self, source: IpAddr, destination: IpAddr, why: &str) {
        if self.rules.is_some() {
            self.refused += 1;
            log::warn!("refused: fragments {source} -> {destination}: {why}");
            self.report_drop(&why, || What::Fragments { source, destination });
        }
    }

    /// Whether the guest may become a member of a multicast group. If so, the host becomes a member, too, and its
    /// network sees this. `member` is the source of the guest's message. A refusal is counted and logged.
    pub fn admits_group(&mut self, member: IpAddr, group: IpAddr) -> bool {
        const WHY: &str = "no rule allows it";
        let Some(rules) = self.rules.as_ref().filter(|rules| !rules.policy.may_reach(group, false)) else {
            return true;
        };
        self.refused += 1;
        log::warn!("{}: membership of {group} ({WHY})", rules.refused());
        self.report_refusal(WHY, None, || What::Membership { member, group });
        self.audits()
    }

    /// Holds the names of `address` for a flow that begins because of a rule by name: they do not expire before the
    /// flow ends. The result must be [released](Guard::release) when the flow ends. None if `address` has no names.
    pub fn hold(&mut self, address: IpAddr, now: Instant) -> Option<Hold> {
        self.names.as_mut()?.hold(address, now)
    }

    /// Releases the hold of a flow. Must be called when the flow ends.
    pub fn release(&mut self, hold: Hold) {
        if let Some(names) = &mut self.names {
            names.release(hold);
        }
    }

    fn prolong(&mut self, address: IpAddr, now: Instant) {
        if let Some(names) = &mut self.names {
            names.prolong(address, now);
        }
    }
}

/// A denied flow, as text for the log.
struct Report<'a> {
    word: &'static str,
    protocol: Protocol,
    ends: Endpoints,
    known: KnownFor<'a>,
    reason: &'a str,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { word, protocol, ends: Endpoints { guest, remote }, known, reason } = self;
        match protocol {
            Protocol::Icmp => write!(f, "{word}: ping {} -> {}{known} ({reason})", guest.ip(), remote.ip()),
            protocol => write!(f, "{word}: {protocol} {guest} -> {remote}{known} ({reason})"),
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Question { protocol, destination, .. } = self.question;
        write!(f, "{protocol} {} -> {destination}", self.guest)
    }
}

/// The names for which the guest was given an address, as text for messages. Empty if there are none.
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

    /// Whether a flow to a resolver is allowed in spite of `reason`. Most resolvers have private addresses, or are the
    /// host itself. A rule by group, or the default, does not apply to them: a guest that may reach the Internet needs
    /// name resolution.
    fn exempts(&self, flow: &Opening, reason: Reason) -> bool {
        flow.asks_resolver
            && !self.is_about_the_address(reason)
            && matches!(self.policy.name_verdict(""), NameVerdict::Allow(_))
    }

    const fn refused(&self) -> &'static str {
        if self.mode.audit { "would be refused" } else { "refused" }
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
