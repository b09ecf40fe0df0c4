//! Datagrams between loopback addresses of the host and of the guest's namespace, which bypass the link (behaviour
//! §7.6).
//!
//! Each client of a listener gets a proxy: a socket in the other namespace that is connected to the target. The proxy
//! has the client's port number if this port is free. Answers go back through the listener. Their source is the address
//! to which the client wrote.

use core::net::{IpAddr, SocketAddr};

use super::{Role, Socket, SocketKey, Udp, UdpSocket};
use crate::{
    context::{UdpOf, Unlinked, World},
    events::Account,
    flow::{Endpoints, FlowId, Protocol},
    forward::{Policy, spec::Direction},
    host::{self, Errno, ErrorQueue as _, Host as _, OutboundDatagram, Received, Report, SendResult},
    icmp::{Quote, Unframed},
    memory::PayloadOf,
};

/// Hop limit of datagrams that bypass the link, if the host does not report the received hop limit: the default of
/// Linux.
const DEFAULT_HOP_LIMIT: u8 = 64;

/// A socket in the other namespace that sends the datagrams of one client.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) client: Client,
    pub(super) target: SocketAddr,
    /// Reports the end of the flow.
    pub(super) account: Account,
}

/// A sender of datagrams to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) listener: FlowId,
    pub(super) peer: SocketAddr,
    /// The host's address to which the client wrote, and from which answers come.
    local: Option<IpAddr>,
}

/// The destination of a datagram that bypasses the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ToSocket {
    socket: FlowId,
    destination: SocketAddr,
    source: Option<IpAddr>,
}

impl<W: World> Udp<W> {
    /// Sets the policy for datagrams of new senders.
    pub const fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The direction of the datagrams that a socket receives, if they may bypass the link.
    #[must_use]
    pub fn bypass_direction(&self, id: FlowId) -> Option<Direction> {
        match &self.sockets.get(id)?.role {
            Role::Listener(listener) | Role::Retired(listener) => Some(listener.direction),
            Role::Proxy(proxy) => match &self.sockets.get(proxy.client.listener)?.role {
                Role::Listener(listener) | Role::Retired(listener) => Some(listener.direction.reverse()),
                _ => None,
            },
            Role::Endpoint { .. } | Role::Member(_) => None,
        }
    }

    /// Whether datagrams that a socket receives may bypass the link.
    pub(super) fn may_bypass(&self, id: FlowId) -> bool {
        self.sockets.get(id).is_some_and(|socket| match &socket.role {
            Role::Proxy(_) => true,
            Role::Listener(listener) | Role::Retired(listener) => self.policy.may_bypass(listener),
            Role::Endpoint { .. } | Role::Member(_) => false,
        })
    }

    /// The destination of a datagram that a listener received for `target`. If there is no room, counts the datagram
    /// and returns none.
    pub(super) fn forward(
        &mut self,
        cx: &mut Unlinked<'_, W>,
        listener: FlowId,
        target: SocketAddr,
        received: &Received,
    ) -> Option<ToSocket> {
        let client = Client { listener, peer: received.from, local: received.local };
        let known = self.sockets.find(&SocketKey::Proxy(client));
        if known.is_none() && !self.admits_bypass(cx, listener, received.from, target) {
            self.counters.refused += 1;
            self.report_refusal(cx, listener, received);
            return None;
        }
        let id = known.or_else(|| self.open_proxy(cx, client, target));
        let proxy = id.and_then(|id| match &self.sockets.get(id)?.role {
            Role::Proxy(proxy) => Some((id, proxy.target)),
            _ => None,
        });
        let Some((socket, destination)) = proxy else {
            self.counters.no_room += 1;
            return None;
        };
        self.note(socket, true, cx.now, cx.timers);
        let to_socket = ToSocket { socket, destination, source: None };
        if cx.guard.reports() {
            self.count_bypassed(listener, &to_socket, received);
        }
        Some(to_socket)
    }

    /// The destination of an answer that a proxy received. If the answer is not from the target, counts it and returns
    /// none.
    pub(super) fn answer(
        &mut self,
        cx: &mut Unlinked<'_, W>,
        id: FlowId,
        received: &Received,
    ) -> Option<ToSocket> {
        let Role::Proxy(proxy) = &self.sockets.get(id)?.role else { return None };
        let (from, target, client) = (received.from, proxy.target, proxy.client);
        if (from.ip(), from.port()) != (target.ip(), target.port()) {
            self.counters.undeliverable += 1;
            return None;
        }
        self.note(id, false, cx.now, cx.timers);
        let Client { listener, peer, local } = client;
        let to_socket = ToSocket { socket: listener, destination: peer, source: local };
        if cx.guard.reports() {
            self.count_bypassed(id, &to_socket, received);
        }
        Some(to_socket)
    }

    /// Counts a datagram or train that `from` received and `to_socket` gets. One of the two is the proxy.
    pub(super) fn count_bypassed(&mut self, from: FlowId, to_socket: &ToSocket, received: &Received) {
        for (id, request) in [(to_socket.socket, true), (from, false)] {
            if let Some(Role::Proxy(proxy)) = self.sockets.get_mut(id).map(|socket| &mut socket.role)
                && proxy.account.is_open()
            {
                let extent = received.extent();
                proxy.account.count(request, extent.len, extent.count());
            }
        }
    }

    /// Whether the guard admits a client. The guard judges only clients in the guest's namespace.
    fn admits_bypass(
        &self,
        cx: &mut Unlinked<'_, W>,
        listener: FlowId,
        client: SocketAddr,
        target: SocketAddr,
    ) -> bool {
        let Some(Role::Listener(listener)) = self.sockets.get(listener).map(|socket| &socket.role) else {
            return true;
        };
        let ends = Endpoints { guest: client, remote: target };
        listener.direction == Direction::Inbound || cx.guard.admits_bypass(Protocol::Udp, ends, cx.now)
    }

    /// Sends a refused client in the guest's namespace an error, as if the datagram's destination were behind a
    /// firewall.
    fn report_refusal(&self, cx: &mut Unlinked<'_, W>, listener: FlowId, received: &Received) {
        let Some(Role::Listener(listener)) = self.sockets.get(listener).map(|socket| &socket.role) else {
            return;
        };
        let Some(written_to) = received.local.or(listener.address) else { return };
        // A socket of both families reports IPv4-mapped addresses.
        let [from, to] = [received.from.ip(), written_to].map(|address| address.to_canonical());
        let ends = Endpoints {
            guest: SocketAddr::new(from, received.from.port()),
            remote: SocketAddr::new(to, listener.port),
        };
        let first_len = received.segment_size.map_or(received.len, usize::from);
        let quote = Quote::of_datagram(ends, first_len, &[]);
        if let Some(message) = Unframed::new(Report::prohibited(from.is_ipv4()), &quote) {
            cx.host.report_to_client(from, message.packet());
        }
    }

    fn open_proxy(&mut self, cx: &mut Unlinked<'_, W>, client: Client, target: SocketAddr) -> Option<FlowId> {
        let direction = match &self.sockets.get(client.listener)?.role {
            Role::Listener(listener) if client.peer.port() != 0 => listener.direction,
            _ => return None,
        };
        self.make_room_for_proxy(cx.now, cx.timers);
        let connect = |udp: &mut Self, host: &mut W::Host| {
            let id = udp.sockets.next_id().filter(|id| udp.proxies.reserve(id.index()));
            let id = id.ok_or(Errno::ENOMEM)?;
            host.udp_connect(id, direction, target, client.peer.port())
        };
        let io = match connect(self, cx.host) {
            Err(errno) if errno.is_exhaustion() && self.end_idle_proxy(cx.timers) => connect(self, cx.host),
            connected => connected,
        };
        let ends = match direction {
            Direction::Outbound => Endpoints { guest: client.peer, remote: target },
            Direction::Inbound => Endpoints { guest: target, remote: client.peer },
        };
        let mut account = cx.guard.begin_bypass(Protocol::Udp, direction, ends, cx.now);
        let io = match io {
            Ok(io) => io,
            Err(errno) => {
                account.close_unopened(errno);
                return None;
            }
        };
        let proxy = Proxy { client, target, account };
        let id = self.sockets.insert(Socket::new(io, Role::Proxy(proxy), target.is_ipv4())).ok()?;
        log::debug!("{id}: {} -> {target}, bypasses the link", client.peer);
        self.proxies.join(id);
        if let Some(listener) = self.sockets.get_mut(client.listener) {
            listener.proxies += 1;
        }
        Some(id)
    }

    /// Sends a datagram or train that bypasses the link. Errors are not reported to the client (behaviour §7.4).
    pub(super) fn send_to_socket(
        &mut self,
        to_socket: ToSocket,
        like: &Received,
        payload: PayloadOf<'_, W::Memory>,
        segment_size: Option<u16>,
    ) {
        let outbound = OutboundDatagram {
            destination: to_socket.destination,
            source: to_socket.source,
            hop_limit: like.hop_limit.unwrap_or(DEFAULT_HOP_LIMIT).max(1),
            traffic_class: like.traffic_class,
            dont_fragment: false,
            payload,
            segment_size,
        };
        let Some(socket) = self.sockets.get_mut(to_socket.socket) else { return };
        // Entries of the error queue are kept: those of a listener's socket may be about datagrams of the guest.
        let clear = |io: &mut UdpOf<W>| {
            let _cleared = io.take_error();
            None
        };
        if host::send(&mut socket.io, |io| io.send(&outbound), clear) != SendResult::Sent {
            self.counters.not_sent += 1;
        }
    }
}
