//! Replacement of the rules about what the guest may reach (docs/design/guard.md).

use super::Round;
use crate::{context::World, guard::Ended, policy::Policy};

impl<W: World> Round<'_, W> {
    /// Puts other rules in force, and ends the flows of the guest that they deny. Flows that others began stay. Flows
    /// that bypass the link are not part of the stack: the caller then judges them by
    /// [`Guard::still_admits_bypass`](crate::guard::Guard::still_admits_bypass). The result counts those as well if it
    /// is read afterwards ([`Guard::ended`](crate::guard::Guard::ended)).
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
