//! Explains a verdict without an effect.

use alloc::string::String;
use core::net::{IpAddr, SocketAddr};

use super::{Admission, Guard, Opening};
use crate::{
    events::Basis,
    flow::Protocol,
    names,
    policy::{Lookup, Name, NameVerdict, Reason},
    resolvers::DNS,
    timer::Instant,
};

/// Whether a flow would be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// The flow would be allowed.
    Allowed,
    /// The client's first bytes would decide: a rule by name allows the flow.
    Checked,
    /// The flow would be refused.
    Refused,
    /// Each DNS question would be judged.
    Questions,
}

impl Guard {
    /// Whether a flow would be allowed, the rule that decides, and the names of its address. Nothing is counted or
    /// logged. In an audit, the result is what the rules say. `is_own` has the meaning that it has in
    /// [`Guard::admits`]. With `told`, the verdict is as if the guest had been given the flow's address for this name.
    #[must_use]
    pub fn explain(
        &self,
        flow: &Opening,
        told: Option<&Name>,
        now: Instant,
        mut is_own: impl FnMut(SocketAddr) -> bool,
    ) -> (Outlook, Basis) {
        let basis = self.basis(flow, told, now, &mut is_own);
        if flow.protocol != Protocol::Icmp && flow.ends.remote.port() == DNS && self.judges_questions() {
            let rule = self.policy().map(|policy| policy.text(Reason::NameService).into());
            return (Outlook::Questions, Basis { rule, ..basis });
        }
        let outlook = match self.judge(flow, None, told, now, is_own) {
            Ok(Admission::Named(_)) => Outlook::Checked,
            Ok(_) => Outlook::Allowed,
            Err(_) => Outlook::Refused,
        };
        (outlook, basis)
    }

    /// Why the guest would not be given `address` in an answer for `name`, as text. None: it would, or without rules by
    /// name its questions are not judged. Nothing is counted or logged. `leads_to_host` has the meaning that it has in
    /// [`Guard::admits_answer`].
    #[must_use]
    pub fn withholds(
        &self,
        name: &Name,
        address: IpAddr,
        leads_to_host: impl FnOnce(IpAddr) -> bool,
        now: Instant,
    ) -> Option<String> {
        let rules = self.rules.as_ref().filter(|_| self.judges_questions())?;
        match self.allows_name(rules, name.as_str(), now) {
            NameVerdict::Deny { reason, .. } => Some(rules.policy.text(reason).into()),
            NameVerdict::Allow(_) => rules.withholds(address, leads_to_host(address)),
        }
    }

    /// The names of addresses for a verdict on a flow. `told` has the meaning that it has in [`Guard::judge`].
    pub(super) fn given<'a>(&'a self, flow: &Opening, told: Option<&'a Name>, now: Instant) -> Given<'a> {
        let known = self.names.as_ref().map(|names| names.at(now));
        Given { known, told: told.map(|name| (flow.ends.remote.ip(), name)) }
    }
}

/// The names for which the guest was given addresses, and one that counts in addition.
pub(super) struct Given<'a> {
    known: Option<names::At<'a>>,
    told: Option<(IpAddr, &'a Name)>,
}

impl Lookup for Given<'_> {
    fn names(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        let told = self.told.iter().filter(move |(own, _)| *own == address).map(|(_, name)| name.as_str());
        told.chain(self.known.names(address))
    }
}
