//! Explains a verdict without an effect.

use core::net::SocketAddr;

use super::{Admission, Guard, Opening};
use crate::{events::Basis, flow::Protocol, policy::Reason, resolvers::DNS, timer::Instant};

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
    /// [`Guard::admits`].
    #[must_use]
    pub fn explain(
        &self,
        flow: &Opening,
        now: Instant,
        mut is_own: impl FnMut(SocketAddr) -> bool,
    ) -> (Outlook, Basis) {
        let basis = self.basis(flow, now, &mut is_own);
        if flow.protocol != Protocol::Icmp && flow.ends.remote.port() == DNS && self.judges_questions() {
            let rule = self.policy().map(|policy| policy.text(Reason::NameService).into());
            return (Outlook::Questions, Basis { rule, ..basis });
        }
        let outlook = match self.judge(flow, None, now, is_own) {
            Ok(Admission::Named(_)) => Outlook::Checked,
            Ok(_) => Outlook::Allowed,
            Err(_) => Outlook::Refused,
        };
        (outlook, basis)
    }
}
