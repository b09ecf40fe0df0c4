//! Lists flows, and ends one on request (docs/design/api.md).

use super::{Role, Socket, Udp};
use crate::{
    context::{Context, World},
    events::How,
    flow::{FlowId, Kind},
    listing::{Lister, Page},
};

impl<W: World> Udp<W> {
    /// Number of open sockets: of guest endpoints and groups, and of clients that bypass the link. Listeners are not
    /// counted.
    #[must_use]
    pub fn files(&self) -> [usize; 2] {
        [self.endpoints.len() + self.shared_ports.len() + self.members(), self.proxies.len()]
    }

    /// Lists the flows of a page. Returns the next slot, if there are more slots.
    pub(crate) fn list(&mut self, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        self.flows.list(page, lister)
    }

    /// Lists the clients that bypass the link, whose sockets are in the slots of a page. Returns the next slot, if there
    /// are more slots.
    pub(crate) fn list_bypass(&mut self, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        let timeouts = self.limits.timeouts();
        let (sockets, next) = self.sockets.page_mut(page.from, page.slots);
        for (id, Socket { role, activity, .. }) in sockets {
            let Role::Proxy(proxy) = role else { continue };
            lister.add((id, &proxy.account), activity.state(), activity.last(timeouts), |listed| {
                listed.totals = Some(proxy.account.counted());
            });
        }
        next
    }

    /// Ends a flow, or a client that bypasses the link, if it still has this number. Returns whether it has.
    pub(crate) fn end_requested(&mut self, id: FlowId, number: u64, cx: &mut Context<'_, W>) -> bool {
        if id.kind() == Kind::UdpFlow {
            let exists = self.flows.get(id).is_some_and(|flow| flow.account.is_of(number));
            if exists {
                self.end_flow(id, How::Requested, cx.guard, cx.timers);
            }
            return exists;
        }
        let role = self.sockets.get(id).map(|socket| &socket.role);
        let exists = matches!(role, Some(Role::Proxy(proxy)) if proxy.account.is_of(number));
        if exists {
            self.end_proxy(id, How::Requested, cx.timers);
        }
        exists
    }
}
