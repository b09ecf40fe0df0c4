//! Reports of the guard: the beginning of flows, and refusals.

use alloc::{boxed::Box, string::ToString as _};
use core::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{Claim, Guard, Opening};
use crate::{
    events::{Account, Basis, Events, MOST_NAMES, Refusal, Refused, Start},
    flow::{Endpoints, Protocol},
    forward::spec::Direction,
    policy::{Name, Question, Reason, Verdict},
    timer::Instant,
};

impl Guard {
    /// Starts to report to `events`: the beginning and end of later flows, and refusals.
    pub fn report_to(&mut self, events: Events) {
        self.events = events;
    }

    /// Whether anything is reported.
    #[must_use]
    pub const fn reports(&self) -> bool {
        self.events.are_wanted()
    }

    /// Reports the beginning of an admitted flow of the guest. `is_own` has the meaning that it has in
    /// [`Guard::admits`]. The account must be closed when the flow ends.
    #[must_use]
    pub fn begin(&self, flow: &Opening, now: Instant, is_own: impl FnOnce(SocketAddr) -> bool) -> Account {
        if !self.events.are_wanted() {
            return Account::NONE;
        }
        let start = Start {
            protocol: flow.protocol,
            direction: Direction::Outbound,
            ends: flow.ends,
            peer: Some(flow.destination),
            bypasses: false,
        };
        self.events.begin(start, self.basis(flow, None, now, is_own), now)
    }

    /// Reports the beginning of a flow that bypasses the link. The account must be closed when the flow ends.
    #[must_use]
    pub fn begin_bypass(
        &self,
        protocol: Protocol,
        direction: Direction,
        ends: Endpoints,
        now: Instant,
    ) -> Account {
        if !self.events.are_wanted() {
            return Account::NONE;
        }
        let flow = Opening { protocol, ends, destination: ends.remote, asks_resolver: false };
        let basis = match direction {
            Direction::Outbound => self.basis(&flow, None, now, |_| true),
            Direction::Inbound => Basis::default(),
        };
        self.events.begin(Start { protocol, direction, ends, peer: None, bypasses: true }, basis, now)
    }

    /// Reports the beginning of a flow to which the rules do not apply. The account must be closed when the flow ends.
    #[must_use]
    pub fn begin_unjudged(&self, start: Start, now: Instant) -> Account {
        if self.events.are_wanted() { self.events.begin(start, Basis::default(), now) } else { Account::NONE }
    }

    /// The reason why a flow was admitted. `told` has the meaning that it has in [`Guard::judge`].
    pub(super) fn basis(
        &self,
        flow: &Opening,
        told: Option<&Name>,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> Basis {
        let Some(rules) = &self.rules else { return Basis::default() };
        let question = rules.question(flow, is_own);
        let reason = match rules.policy.verdict(&question, &self.given(flow, told, now)) {
            Verdict::Allow(reason) => Some(reason),
            Verdict::AllowNamed { rule, .. } => Some(Reason::Rule(rule)),
            Verdict::Deny(reason) if rules.exempts(flow, reason) => None,
            // This happens only in an audit.
            Verdict::Deny(reason) => Some(reason),
        };
        let rule = reason.map(|reason| rules.policy.text(reason).into());
        Basis { rule, ..self.names_of(flow.ends.remote.ip(), now) }
    }

    /// The names of an address, without a rule.
    fn names_of(&self, address: IpAddr, now: Instant) -> Basis {
        let names = self.names.iter().flat_map(|names| names.lookup(address, now));
        Basis { rule: None, names: names.take(MOST_NAMES).map(Into::into).collect() }
    }

    /// Reports that a client's first bytes are refused. `claimed` is the server's name in these bytes, or the reason
    /// why there is none.
    pub(super) fn report_claim(
        &self,
        claim: &Claim,
        rule: &str,
        claimed: impl FnOnce() -> Result<Box<str>, Box<str>>,
    ) {
        let Question { protocol, destination, .. } = claim.question;
        let ends = Endpoints { guest: claim.guest, remote: destination };
        self.report_refusal(rule, Some((destination.ip(), claim.since)), || Refused::FirstBytes {
            protocol,
            ends,
            claimed: claimed(),
        });
    }

    /// Reports a refusal. `rule` is the text of the rule, or another reason. `named` is the address whose names are
    /// reported, and the time at which these names must be valid.
    pub(super) fn report_refusal(
        &self,
        rule: &str,
        named: Option<(IpAddr, Instant)>,
        what: impl FnOnce() -> Refused,
    ) {
        self.events.refuse(|| {
            let named = named.map(|(address, at)| self.names_of(address, at)).unwrap_or_default();
            Refusal { what: what(), basis: Basis { rule: Some(rule.into()), ..named }, audit: self.audits() }
        });
    }

    /// Reports the drop of what no rules could allow, also in an audit.
    pub(super) fn report_drop(&self, why: &dyn fmt::Display, what: impl FnOnce() -> Refused) {
        self.events.refuse(|| {
            let basis = Basis { rule: Some(why.to_string().into()), ..Basis::default() };
            Refusal { what: what(), basis, audit: false }
        });
    }
}
