//! Replacement of the rules about what the guest may reach (docs/design/guard.md).

use super::Round;
use crate::{context::World, guard::Ended, policy::Policy};

impl<W: World> Round<'_, W> {
    /// Replaces the rules, and ends the flows of the guest that the new rules deny. Flows from the host's side
    /// continue. Connections that bypass the link are not part of the stack. The caller must judge them afterwards, by
    /// [`Guard::still_admits_bypass`](crate::guard::Guard::still_admits_bypass). After that,
    /// [`Guard::ended`](crate::guard::Guard::ended) counts them, too.
    ///
    /// If the policy has rules by group, the host must know its own addresses
    /// ([`Host::is_own`](crate::host::Host::is_own)).
    pub fn replace_policy(&mut self, policy: Policy) -> Ended {
        self.stack.guard.replace(policy);
        let (flows, mut cx) = self.split();
        flows.tcp.review(&mut cx);
        flows.udp.review(&mut cx);
        flows.ping.review(&mut cx);
        flows.dns.review(&mut cx);
        self.stack.guard.ended()
    }
}
