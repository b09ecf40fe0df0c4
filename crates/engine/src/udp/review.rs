//! Judges the guest's flows again when the rules are replaced (docs/design/guard.md).

use alloc::vec::Vec;

use super::{
    Role, Udp,
    table::{Flow, Origin},
};
use crate::{
    context::{Context, World},
    events::How,
    flow::{Endpoints, FlowId, Protocol},
    forward::spec::Direction,
};

impl<W: World> Udp<W> {
    /// Ends the flows of the guest that the current rules deny.
    pub(crate) fn review(&mut self, cx: &mut Context<'_, W>) {
        let flows: Vec<(FlowId, Endpoints, _)> = self
            .flows
            .iter()
            .filter(|(_, flow)| self.is_guests(flow))
            .map(|(id, flow)| (id, flow.endpoints, flow.peer))
            .collect();
        for (id, endpoints, peer) in flows {
            if !cx.still_admits_unread(Protocol::Udp, &endpoints, peer) {
                log::debug!("{id}: forbidden by new rules");
                self.end_flow(id, How::Forbidden, cx.timers);
            }
        }
        let proxies: Vec<(FlowId, Endpoints)> = self
            .sockets
            .iter()
            .filter_map(|(id, socket)| Some((id, self.bypass_of_guest(&socket.role)?)))
            .collect();
        for (id, endpoints) in proxies {
            if !cx.guard.still_admits_bypass(Protocol::Udp, endpoints, cx.now) {
                log::debug!("{id}: forbidden by new rules");
                self.end_proxy(id, How::Forbidden, cx.timers);
            }
        }
    }

    /// Whether a flow depends on the guest's permission to write to its remote. This is true if the guest began the
    /// flow, or if the remote began it by a datagram to a port that is not published.
    fn is_guests(&self, flow: &Flow) -> bool {
        let role = self.sockets.get(flow.socket).map(|socket| &socket.role);
        flow.begun() == Origin::Guest || matches!(role, Some(Role::Endpoint { .. } | Role::Member(_)))
    }

    /// The client and the target of a socket that acts for a client in the guest's namespace. None for other sockets.
    fn bypass_of_guest(&self, role: &Role) -> Option<Endpoints> {
        let Role::Proxy(proxy) = role else { return None };
        let listener = self.sockets.get(proxy.client.listener)?;
        let (Role::Listener(listener) | Role::Retired(listener)) = &listener.role else { return None };
        let outbound = listener.direction == Direction::Outbound;
        outbound.then_some(Endpoints { guest: proxy.client.peer, remote: proxy.target })
    }
}
