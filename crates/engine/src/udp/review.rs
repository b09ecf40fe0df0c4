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
    guard::Admission,
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
            let admission = cx.still_admits(Protocol::Udp, &endpoints, peer, None);
            if !self.may_continue(id, admission, cx) {
                log::debug!("{id}: forbidden by new rules");
                self.end_flow(id, How::Forbidden, cx.guard, cx.timers);
            }
        }
        self.review_waiting(cx);
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

    fn may_continue(&mut self, id: FlowId, admission: Admission, cx: &mut Context<'_, W>) -> bool {
        let check = self.flows.get(id).and_then(|flow| flow.check);
        let claim = match admission {
            Admission::Refuse => return false,
            Admission::Admit | Admission::AdmitByName => {
                match check {
                    Some(check) => self.pass_unread(check, cx),
                    None => self.attach(id, admission, cx.guard, cx.now),
                }
                return true;
            }
            Admission::Named(claim) => claim,
        };
        match check.and_then(|check| self.checks.reader(check)) {
            Some(reader) if !reader.admitted.is_empty() => {
                reader.claim = claim.begun_with(&reader.claim);
                reader.admitted.iter().all(|name| cx.guard.still_admits_name(&reader.claim, name))
            }
            Some(reader) => {
                reader.claim = claim.begun_with(&reader.claim);
                cx.guard.still_admits_nameless(&claim)
            }
            None => {
                let admits = cx.guard.still_admits_nameless(&claim);
                if admits && check.is_none() {
                    self.attach(id, Admission::AdmitByName, cx.guard, cx.now);
                }
                admits
            }
        }
    }

    /// Judges flows again that do not exist yet, since their first datagrams are held back.
    fn review_waiting(&mut self, cx: &mut Context<'_, W>) {
        let waiting: Vec<(FlowId, Endpoints)> = self
            .checks
            .iter()
            .filter(|(_, check)| check.flow.is_none())
            .map(|(id, check)| (id, check.endpoints))
            .collect();
        for (id, endpoints) in waiting {
            let peer = cx.settings.to_host(Protocol::Udp, endpoints.remote).unwrap_or(endpoints.remote);
            match cx.still_admits(Protocol::Udp, &endpoints, peer, None) {
                Admission::Admit | Admission::AdmitByName => self.pass_unread(id, cx),
                Admission::Refuse => self.refuse(id, cx),
                Admission::Named(claim) => {
                    if let Some(reader) = self.checks.reader(id) {
                        reader.claim = claim.begun_with(&reader.claim);
                    }
                }
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
