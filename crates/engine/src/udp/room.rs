//! Room for new sockets and flows: when a limit is reached, selects a socket or flow, and ends it.
//!
//! A full table refuses neither the guest nor a client of a listener. Instead, a member of the table ends: the member
//! that was idle for the longest time. Members whose requests were answered end before other members
//! (docs/design/budgets.md).

use core::net::SocketAddr;

use super::{Role, Socket, Udp, table::Origin};
use crate::{
    context::{Context, UdpOf, World},
    events::How,
    flow::{FlowId, Kind},
    guard::Guard,
    host::{Errno, Host},
    share::Notice,
    timer::{Instant, Timers},
};

/// The times at which the log last reported that a limit is reached.
#[derive(Debug, Default)]
pub(super) struct Notices {
    endpoints: Notice,
    bypass: Notice,
    flows: Notice,
    pub(super) checks: Notice,
    inbound: Notice,
}

impl<W: World> Udp<W> {
    /// Reports the end of all flows, because the program ends.
    pub(crate) fn report_exit(&mut self) {
        self.flows.report_exit();
        for socket in self.sockets.values_mut() {
            if let Role::Proxy(proxy) = &mut socket.role {
                proxy.account.close(How::Exit);
            }
        }
    }

    /// Handles the deadline of a flow, of a check, or of a socket in the other namespace, if it has been reached.
    pub fn on_deadline(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        match id.kind() {
            Kind::UdpFlow if self.flows.has_expired(id, cx.now, cx.timers) => {
                self.end_flow(id, How::Idle, cx.guard, cx.timers);
            }
            Kind::UdpFlow => {}
            Kind::UdpCheck => self.on_check_deadline(id, cx),
            _ => {
                if let Some(socket) = self.sockets.get_mut(id)
                    && socket.activity.has_expired(id, cx.now, cx.timers)
                {
                    self.end_proxy(id, How::Idle, cx.timers);
                }
            }
        }
    }

    /// Opens a new socket for an endpoint of the guest.
    ///
    /// # Errors
    /// The error of the host.
    pub(super) fn open_socket(
        &mut self,
        guest: SocketAddr,
        ordinal: u8,
        cx: &mut Context<'_, W>,
    ) -> Result<FlowId, Errno> {
        let share = self.limits.endpoints;
        if share.is_full(self.endpoints.len() + self.shared_ports.len() + self.members()) {
            if self.notices.endpoints.is_due(cx.now) {
                log::warn!(
                    "UDP: the guest uses {} ports at once: sockets of those that were idle for longest are closed{}",
                    share.most,
                    share.bound
                );
            }
            self.end_idle_endpoint(cx.guard, cx.timers);
        }
        let io = match self.try_open(cx.host, guest) {
            Err(errno) if errno.is_exhaustion() && self.end_idle_endpoint(cx.guard, cx.timers) => {
                self.try_open(cx.host, guest)
            }
            opened => opened,
        };
        let role = Role::Endpoint { guest, ordinal };
        let socket = Socket::new(io?, role, guest.is_ipv4());
        let id = self.sockets.insert(socket).map_err(|_| Errno::ENFILE)?;
        self.endpoints.join(id);
        Ok(id)
    }

    fn try_open(&mut self, host: &mut W::Host, guest: SocketAddr) -> Result<UdpOf<W>, Errno> {
        let id = self.sockets.next_id().filter(|id| self.endpoints.reserve(id.index()));
        let id = id.ok_or(Errno::ENOMEM)?;
        host.udp_open(id, guest.ip(), guest.port())
    }

    /// Makes room for one more socket in the other namespace.
    pub(super) fn make_room_for_proxy(&mut self, now: Instant, timers: &mut Timers<FlowId>) {
        let share = self.limits.bypass;
        if !share.is_full(self.proxies.len()) {
            return;
        }
        if self.notices.bypass.is_due(now) {
            log::warn!(
                "UDP: {} local clients at once: sockets of those that were idle for longest are closed{}",
                share.most,
                share.bound
            );
        }
        self.end_idle_proxy(timers);
    }

    /// Ends flows of the origin `begun` while there are more than its limit.
    pub(super) fn end_surplus(
        &mut self,
        begun: Origin,
        now: Instant,
        guard: &mut Guard,
        timers: &mut Timers<FlowId>,
    ) {
        while let Some(id) = self.flows.surplus(begun) {
            let share = self.flows.share(begun);
            let (notice, who) = match begun {
                Origin::Guest => (&mut self.notices.flows, "the guest"),
                Origin::Host => (&mut self.notices.inbound, "remotes"),
            };
            if notice.is_due(now) {
                log::warn!(
                    "UDP: {} flows begun by {who}: those that were idle for longest are forgotten{}",
                    share.most,
                    share.bound
                );
            }
            self.end_flow(id, How::Displaced, guard, timers);
            self.ended += 1;
        }
    }

    /// Ends the endpoint that was idle for the longest time, and its flows. Answered endpoints end before others.
    /// Returns false if there is no endpoint.
    fn end_idle_endpoint(&mut self, guard: &mut Guard, timers: &mut Timers<FlowId>) -> bool {
        let Some(id) = self.endpoints.next().and_then(|index| self.sockets.id_at(index)) else {
            return false;
        };
        self.end_flows_of(id, How::Displaced, guard, timers);
        log::debug!("{id}: closed to make room for another one");
        self.close_unused(id, timers);
        self.ended += 1;
        true
    }

    /// Ends the socket in the other namespace that was idle for the longest time. Answered sockets end before others.
    /// Returns false if there is no such socket.
    pub(super) fn end_idle_proxy(&mut self, timers: &mut Timers<FlowId>) -> bool {
        let Some(id) = self.proxies.next().and_then(|index| self.sockets.id_at(index)) else { return false };
        log::debug!("{id}: closed to make room for another one");
        self.end_proxy(id, How::Displaced, timers);
        self.ended += 1;
        true
    }

    /// Ends all flows of a socket.
    pub(super) fn end_flows_of(
        &mut self,
        id: FlowId,
        how: How,
        guard: &mut Guard,
        timers: &mut Timers<FlowId>,
    ) {
        while let Some(socket) = self.sockets.get(id)
            && let Some(flow) = self.flows.first_of(&socket.flows)
        {
            self.remove_flow(flow, how, guard, timers);
        }
    }

    pub(super) fn end_flow(&mut self, id: FlowId, how: How, guard: &mut Guard, timers: &mut Timers<FlowId>) {
        let Some(socket) = self.flows.get(id).map(|flow| flow.socket) else { return };
        self.remove_flow(id, how, guard, timers);
        self.close_unused(socket, timers);
    }

    fn remove_flow(&mut self, id: FlowId, how: How, guard: &mut Guard, timers: &mut Timers<FlowId>) {
        let Some(socket) = self.flows.get(id).map(|flow| flow.socket) else { return };
        let Some(socket) = self.sockets.get_mut(socket) else { return };
        self.shared_ports.remove(&id);
        if let Some(check) = self.flows.remove(id, how, &mut socket.flows, timers) {
            self.end_check(check, guard, timers);
        }
    }

    pub(super) fn end_proxy(&mut self, id: FlowId, how: How, timers: &mut Timers<FlowId>) {
        let Some(Socket { role: Role::Proxy(proxy), activity, .. }) = self.sockets.get_mut(id) else {
            return;
        };
        let listener = proxy.client.listener;
        proxy.account.close(how);
        self.proxies.leave(id, activity, timers);
        self.sockets.remove(id);
        if let Some(socket) = self.sockets.get_mut(listener) {
            socket.proxies -= 1;
            self.close_unused(listener, timers);
        }
    }

    /// Closes a socket that no flow and no client uses, unless it is a listener or a socket of a group.
    pub(super) fn close_unused(&mut self, id: FlowId, timers: &mut Timers<FlowId>) {
        let Some(socket) = self.sockets.get_mut(id).filter(|socket| socket.is_unused()) else { return };
        match socket.role {
            Role::Listener(_) | Role::Member(_) | Role::Proxy(_) => return,
            Role::Retired(_) => {}
            Role::Endpoint { .. } => self.endpoints.leave(id, &mut socket.activity, timers),
        }
        self.sockets.remove(id);
    }

    /// Notes a datagram from the party for which a socket was opened (`request`), or a datagram to this party. Nothing
    /// is noted for sockets that are never ended to make room.
    pub(super) fn note(&mut self, id: FlowId, request: bool, now: Instant, timers: &mut Timers<FlowId>) {
        let Some(Socket { role, activity, .. }) = self.sockets.get_mut(id) else { return };
        let idle = match role {
            Role::Endpoint { .. } => &mut self.endpoints,
            Role::Proxy(_) => &mut self.proxies,
            Role::Listener(_) | Role::Member(_) | Role::Retired(_) => return,
        };
        idle.note(id, activity, request, now, timers);
    }
}
