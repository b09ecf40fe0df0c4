//! Replacement of the rules while flows exist. Each flow that the guest began is judged again, and ends if the new
//! rules deny the flow (docs/design/guard.md).

use alloc::boxed::Box;
use core::net::{IpAddr, SocketAddr};

use super::{Admission, Claim, Guard, Mode, Opening, Rules, questions};
use crate::{
    first_bytes::HostName,
    flow::{Endpoints, Protocol},
    names::Names,
    policy::{Lookup, Policy, Reason, Verdict},
    resolvers::DNS,
    timer::Instant,
};

/// The words in the log for a flow that ends, and for a flow that would end if this were not an audit.
const ENDED: [&str; 2] = ["ended", "would be ended"];

/// The numbers of flows that ended because the new rules deny them. In an audit, the numbers of flows that would have
/// ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// TCP connections.
    pub tcp: u64,
    /// UDP flows.
    pub udp: u64,
    /// Ping flows.
    pub icmp: u64,
}

impl Ended {
    const fn of(&mut self, protocol: Protocol) -> &mut u64 {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
            Protocol::Icmp => &mut self.icmp,
        }
    }
}

impl Guard {
    /// A guard that allows everything until it gets rules. The rules will be applied in `mode`. `hash_key` must be
    /// random.
    #[must_use]
    pub fn without_rules(mode: Mode, hash_key: [u8; 16]) -> Self {
        Self { mode, hash_key, recent: questions::Recent::new(hash_key), ..Self::default() }
    }

    /// Replaces the rules, or sets the first rules. The mode stays the same. Afterwards, existing flows must be judged
    /// again.
    ///
    /// The known names are kept, since flows hold some of them.
    pub(crate) fn replace(&mut self, policy: Policy) {
        if policy.has_names() && self.names.is_none() {
            self.names = Some(Box::new(Names::new(self.limits.names, self.hash_key)));
        }
        self.ended = Ended::default();
        self.rules = Some(Box::new(Rules { policy, mode: self.mode }));
    }

    /// The numbers of flows that ended since the rules were replaced, because the new rules deny them.
    #[must_use]
    pub const fn ended(&self) -> Ended {
        self.ended
    }

    /// Whether an existing flow may continue under the new rules. `said` is the name that its client has sent, if its
    /// first bytes were read. If the flow must end, this is counted and logged. `is_own` has the meaning that it has in
    /// [`Guard::admits`].
    pub(crate) fn still_admits(
        &mut self,
        flow: &Opening,
        said: Option<&HostName>,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> Admission {
        let asks_unjudged = flow.protocol != Protocol::Icmp && flow.ends.remote.port() == DNS;
        let judged = match self.judge(flow, said, None, now, is_own) {
            Ok(_) if asks_unjudged && self.judges_questions() => Err(Reason::NameService),
            judged => judged,
        };
        let reason = match judged {
            Ok(admission) => return admission,
            Err(reason) => reason,
        };
        *self.ended.of(flow.protocol) += 1;
        log::warn!("{}", self.report(ENDED, flow, reason, now));
        if self.audits() { Admission::Admit } else { Admission::Refuse }
    }

    /// Whether an existing flow may continue after its client has sent `name` as the server's name. If not, the end of
    /// the flow is counted and logged.
    pub(crate) fn still_admits_name(&mut self, claim: &Claim, name: &HostName) -> bool {
        let Some(rules) = &self.rules else { return true };
        let names = self.names.as_ref().map(|names| names.at(claim.since));
        let verdict = rules.policy.claim_verdict(&claim.question, name.as_str(), &names);
        let Verdict::Deny(reason) = verdict else { return true };
        let word = ENDED[usize::from(rules.mode.audit)];
        log::warn!("{word}: {claim}: asked for {name} ({})", rules.policy.text(reason));
        *self.ended.of(claim.question.protocol) += 1;
        self.audits()
    }

    /// Whether an existing flow may continue if only a rule by name allows it, and the name that its client has sent is
    /// not known. If not, the end of the flow is counted and logged.
    pub(crate) fn still_admits_nameless(&mut self, claim: &Claim) -> bool {
        let Some(rules) = &self.rules else { return true };
        if claim.nameless {
            return true;
        }
        let word = ENDED[usize::from(rules.mode.audit)];
        let rule = rules.policy.text(Reason::Rule(claim.rule));
        log::warn!("{word}: {claim}: its server name is not known ({rule})");
        *self.ended.of(claim.question.protocol) += 1;
        self.audits()
    }

    /// Whether an existing flow whose first bytes were not read may continue under the new rules. Apart from this, the
    /// function is like [`Guard::still_admits`].
    pub(crate) fn still_admits_unread(
        &mut self,
        flow: &Opening,
        now: Instant,
        is_own: impl FnOnce(SocketAddr) -> bool,
    ) -> bool {
        match self.still_admits(flow, None, now, is_own) {
            Admission::Admit | Admission::AdmitByName => true,
            Admission::Named(claim) => self.still_admits_nameless(&claim),
            Admission::Refuse => false,
        }
    }

    /// Whether a flow that bypasses the link and leads to the host's loopback may continue under the new rules. Apart
    /// from this, the function is like [`Guard::still_admits`].
    pub fn still_admits_bypass(&mut self, protocol: Protocol, ends: Endpoints, now: Instant) -> bool {
        let flow = Opening { protocol, ends, destination: ends.remote, asks_resolver: false };
        self.still_admits_unread(&flow, now, |_| true)
    }
}

impl Claim {
    /// This claim, with the time at which the flow of the claim `earlier` began.
    pub(crate) const fn begun_with(self, earlier: &Self) -> Self {
        Self { since: earlier.since, ..self }
    }
}

/// For a flow whose first bytes were read, the only name is the name that the client has sent. The guest was given the
/// flow's address for it.
impl Lookup for HostName {
    fn names(&self, _: IpAddr) -> impl Iterator<Item = &str> {
        core::iter::once(self.as_str())
    }
}

#[cfg(test)]
mod tests;
