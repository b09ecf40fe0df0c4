//! Datagrams from the host's sockets to the guest, or to the other namespace.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use wire::{
    ethernet,
    frame::{MAX_LEN, Outgoing},
    ipv4, ipv6,
    payload::Payload,
    udp,
};

use super::{
    MAX_BATCH, Received, Role, RoundNumber, Socket, SocketKey, Udp, UdpSocket,
    bypass::ToSocket,
    table::{Flow, Origin, PeerKey},
    train::{Extent, MAX_DATAGRAM_LEN},
};
use crate::{
    addr::{Guest, Settings},
    context::{Context, Unlinked, World},
    events::Start,
    flow::{Endpoints, FlowId, Protocol},
    forward::{Onward, spec::Direction},
    guard::Admission,
    host::{Host as _, Readiness, SocketError, UNKNOWN_HOP_LIMIT},
    link::Link as _,
    memory::Memory,
    rate_limit::Load,
};

/// The route of a received datagram.
enum Route {
    /// The datagram goes to the guest through the link.
    Link(ToGuest),
    /// The datagram bypasses the link. It goes to a socket in the other namespace, or to a client.
    Bypass(ToSocket),
}

/// The addresses of a datagram that goes through the link.
struct ToGuest {
    /// The flow. None for a datagram to a group whose sender the guest already sees in another flow.
    flow: Option<FlowId>,
    frame: Outgoing,
    ports: (u16, u16),
}

/// A train for the guest to which datagrams are added.
///
/// For the guest's kernel, a frame with many datagrams (UDP segmentation offload) costs little more than a frame with
/// one. Only datagrams of one sender with equal header fields are joined, so that a receiver can't distinguish them
/// from single datagrams.
struct InboundTrain {
    /// The socket that received the train.
    socket: FlowId,
    route: Route,
    /// The first datagram.
    first: Received,
    extent: Extent,
}

impl<W: World> Udp<W> {
    /// Handles the readiness of a socket.
    pub fn on_ready(&mut self, id: FlowId, readiness: Readiness, cx: &mut Context<'_, W>) {
        if readiness.error {
            self.report_errors(id, cx);
        }
        if !readiness.readable {
            return;
        }
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let batch = socket.batch(self.round);
        let (taken, result) = if batch > 1 && socket.last_short {
            self.receive_joined(id, batch, cx)
        } else {
            self.receive_each(id, batch, cx)
        };
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.last_taken = taken;
        }
        if let Err(SocketError::Failed(_)) = result {
            self.report_errors(id, cx);
        }
    }

    /// Receives up to `batch` datagrams from a socket. Returns the number of received datagrams.
    fn receive_each(
        &mut self,
        id: FlowId,
        batch: u8,
        cx: &mut Context<'_, W>,
    ) -> (u8, Result<(), SocketError>) {
        for taken in 0..batch {
            if let Err(error) = self.receive(id, cx) {
                return (taken, Err(error));
            }
        }
        (batch, Ok(()))
    }

    /// Receives one datagram or train from a socket, directly into a slot of the link. If the link is full, the
    /// datagram is dropped.
    fn receive(&mut self, id: FlowId, cx: &mut Context<'_, W>) -> Result<(), SocketError> {
        let Some(socket) = self.sockets.get_mut(id) else { return Err(SocketError::WouldBlock) };
        let (link, mut rest) = cx.split();
        // The family of the next datagram is a guess. A wrong guess for a dual-stack socket costs a copy, see below.
        let guessed = headroom(socket.v4);
        let Some(mut reserved) = link.reserve(guessed, MAX_LEN - guessed) else {
            if self.may_bypass(id) {
                // Datagrams that bypass the link do not need a slot.
                return self.receive_joined(id, 1, cx).1;
            }
            self.counters.link_full += 1;
            let Some(socket) = self.sockets.get_mut(id) else { return Err(SocketError::WouldBlock) };
            return socket.io.receive((&mut [][..]).into()).map(drop);
        };
        let mut copy = None;
        let written = {
            let mut slot = reserved.slot();
            let mut received = socket.io.receive(W::Memory::part(&mut slot.room, MAX_LEN - guessed))?;
            socket.last_short = is_short(&received);
            if self.is_echo(rest.now, id, W::Memory::filled(&slot.room, received.len)) {
                return Ok(());
            }
            let Some(route) = self.route(&mut rest, id, &received) else { return Ok(()) };
            let Some(load) = self.within_limit(&mut rest, id, &route, received.load()) else { return Ok(()) };
            (received.len, received.segment_size) = (load.len, load.segment_size);
            let payload = W::Memory::filled(&slot.room, received.len);
            match route {
                Route::Bypass(to_socket) => {
                    self.send_to_socket(to_socket, &received, payload, received.segment_size);
                    return Ok(());
                }
                Route::Link(ToGuest { ref frame, .. })
                    if headroom(received.from.is_ipv4()) != guessed
                        || rest.settings.must_fragment(frame, received.extent().size) =>
                {
                    let mut buffer = self.take_buffer();
                    payload.copy_to(&mut buffer);
                    copy = Some((InboundTrain::new(id, route, received), buffer));
                    None
                }
                Route::Link(ToGuest { frame, ports, .. }) => {
                    slot.pad(received.len);
                    frame.udp(slot.head, ports, received.len, received.segment_size)
                }
            }
        };
        if let Some((datagram, buffer)) = copy {
            self.pass_on(&datagram, &buffer, cx);
            self.arrivals = buffer;
        } else {
            self.counters.note_sent(written.map(|written| reserved.commit(written.len, &written.offload)));
        }
        Ok(())
    }

    /// The buffer for datagrams that have to be copied. The caller must put it back.
    fn take_buffer(&mut self) -> Vec<u8> {
        let mut buffer = core::mem::take(&mut self.arrivals);
        buffer.resize(2 * MAX_LEN, 0);
        buffer
    }

    /// Receives up to `batch` datagrams from a socket, and joins consecutive datagrams of one sender.
    fn receive_joined(
        &mut self,
        id: FlowId,
        batch: u8,
        cx: &mut Context<'_, W>,
    ) -> (u8, Result<(), SocketError>) {
        let mut buffer = self.take_buffer();
        let mut train: Option<InboundTrain> = None;
        let mut taken = 0;
        let mut result = Ok(());
        while taken < batch {
            let start = train.as_ref().map_or(0, |train| train.extent.len);
            let (Some(socket), Some(room)) =
                (self.sockets.get_mut(id), buffer.get_mut(start..start + MAX_LEN))
            else {
                break;
            };
            let received = match socket.io.receive(room.into()) {
                Ok(received) => received,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            taken += 1;
            socket.last_short = is_short(&received);
            if let Some(arrived) = buffer.get(start..start + received.len)
                && self.is_echo(cx.now, id, arrived)
            {
                continue;
            }
            if let Some(train) = train.as_mut().filter(|train| train.takes(&received)) {
                train.extent.add(&received.extent());
                match train.route {
                    Route::Link(ToGuest { flow: Some(flow), .. }) => {
                        self.flows.touch(flow, Origin::Host, cx.now, cx.timers);
                        if cx.guard.reports() {
                            self.flows.count(flow, Origin::Host, &received.extent());
                        }
                    }
                    Route::Bypass(to_socket) if cx.guard.reports() => {
                        self.count_bypassed(id, &to_socket, &received);
                    }
                    Route::Link(_) | Route::Bypass(_) => {}
                }
                continue;
            }
            if let Some(train) = train.take() {
                self.deliver(train, &buffer, cx);
                buffer.copy_within(start..start + received.len, 0);
            }
            let (_, mut rest) = cx.split();
            train = self.route(&mut rest, id, &received).map(|route| InboundTrain::new(id, route, received));
        }
        if let Some(train) = train {
            self.deliver(train, &buffer, cx);
        }
        self.arrivals = buffer;
        (taken, result)
    }

    /// Sends the part of a train that the rate limit allows. The payload is at the start of `buffer`.
    fn deliver(&mut self, mut train: InboundTrain, buffer: &[u8], cx: &mut Context<'_, W>) {
        let (len, segment_size) = (train.extent.len, train.extent.segment_size());
        let load = Load { len, segment_size, ..train.first.load() };
        let Some(load) = self.within_limit(&mut cx.split().1, train.socket, &train.route, load) else {
            return;
        };
        train.extent.len = load.len;
        self.pass_on(&train, buffer, cx);
    }

    /// The part of a received load that the rate limit allows. None if no datagram is allowed. Dropped datagrams are
    /// counted.
    fn within_limit(
        &mut self,
        cx: &mut Unlinked<'_, W>,
        socket: FlowId,
        route: &Route,
        load: Load,
    ) -> Option<Load> {
        let direction = match route {
            _ if cx.rate_limit.is_absent() => None,
            Route::Link(_) => Some(Direction::Inbound),
            Route::Bypass(_) => self.bypass_direction(socket),
        };
        match direction {
            Some(direction) => cx.rate_limit.pass(direction, load, cx.now, &mut self.counters),
            None => Some(load),
        }
    }

    /// Sends a train, whose payload is at the start of `buffer`.
    fn pass_on(&mut self, train: &InboundTrain, buffer: &[u8], cx: &mut Context<'_, W>) {
        let size = train.extent.segment_size();
        let payload = buffer.get(..train.extent.len).unwrap_or_default();
        match &train.route {
            Route::Link(ToGuest { frame, ports, .. }) => {
                self.fragmenter.udp((frame, *ports), payload, size, &mut self.counters, cx);
            }
            Route::Bypass(to_socket) => {
                self.send_to_socket(*to_socket, &train.first, payload.into(), size);
            }
        }
    }

    /// The route of a received datagram. If the datagram is dropped, counts it and returns none.
    fn route(&mut self, cx: &mut Unlinked<'_, W>, id: FlowId, received: &Received) -> Option<Route> {
        let (peer, written_to) = (received.from, received.destination);
        let ends = match &self.sockets.get(id)?.role {
            Role::Proxy(_) if !received.truncated => {
                return self.answer(cx, id, received).map(Route::Bypass);
            }
            Role::Proxy(_) => None,
            role @ (Role::Endpoint { .. } | Role::Member(_)) => {
                let guest = role.guest_of(cx.settings, cx.guest, peer, written_to);
                let shown = cx.settings.source_to_guest(cx.guest, peer.ip());
                guest
                    .zip(shown)
                    .map(|(guest, shown)| Endpoints { guest, remote: SocketAddr::new(shown, peer.port()) })
            }
            Role::Listener(listener) | Role::Retired(listener) => {
                let group_socket = |written_to| {
                    self.sockets.find(&SocketKey::Member(SocketAddr::new(written_to, listener.port)))
                };
                if written_to.and_then(group_socket).is_some() {
                    return None; // The group's own socket has received a copy.
                }
                match self.policy.onward(listener, cx.settings, cx.guest, peer, written_to) {
                    Onward::Link(ends) => Some(ends),
                    Onward::Bypass(target) if !received.truncated => {
                        return self.forward(cx, id, target, received).map(Route::Bypass);
                    }
                    Onward::Bypass(_) | Onward::Refuse => None,
                }
            }
        };
        self.address_to_guest(cx, id, received, ends).map(Route::Link)
    }

    /// The addresses of a datagram between `ends` that goes through the link. If it can't be sent to the guest, counts
    /// it and returns none.
    fn address_to_guest(
        &mut self,
        cx: &mut Unlinked<'_, W>,
        id: FlowId,
        received: &Received,
        ends: Option<Endpoints>,
    ) -> Option<ToGuest> {
        let socket = self.sockets.get_mut(id)?;
        socket.v4 = received.from.is_ipv4();
        let too_long = received.truncated || headroom(socket.v4) + received.len > MAX_LEN;
        let usable = |ends: &Endpoints| {
            !too_long && ends.remote.port() != 0 && ends.remote.is_ipv4() == ends.guest.is_ipv4()
        };
        let Some(Endpoints { guest, remote: shown }) = ends.filter(usable) else {
            self.counters.undeliverable += 1;
            return None;
        };
        let joined = match socket.role {
            Role::Member(at) => Some(at.ip()),
            _ => None,
        };
        let socket = id;
        let flow = self.flow_from(cx, socket, guest, shown, received);
        if flow.is_none() && joined.is_none() {
            return None;
        }
        if let Some(id) = flow {
            self.flows.touch(id, Origin::Host, cx.now, cx.timers);
            if cx.guard.reports() {
                self.flows.count(id, Origin::Host, &received.extent());
            }
            self.note(socket, false, cx.now, cx.timers);
        }
        let group = joined.or(received.destination.filter(|address| address.is_multicast()));
        let destination = group.unwrap_or(guest.ip());
        let remote = flow.and_then(|id| self.flows.get(id)).map_or(shown, |flow| flow.endpoints.remote);
        let frame = Outgoing {
            hop_limit: received.hop_limit.unwrap_or(UNKNOWN_HOP_LIMIT),
            traffic_class: received.traffic_class,
            ..cx.settings.headers(cx.guest, remote.ip(), destination)
        };
        Some(ToGuest { flow, frame, ports: (remote.port(), guest.port()) })
    }

    /// The flow of a received datagram: an existing flow, or a new flow.
    fn flow_from(
        &mut self,
        cx: &mut Unlinked<'_, W>,
        socket: FlowId,
        guest: SocketAddr,
        shown: SocketAddr,
        received: &Received,
    ) -> Option<FlowId> {
        let peer = received.from;
        let role = &self.sockets.get(socket)?.role;
        let joined = matches!(role, Role::Member(_));
        let listening = !matches!(role, Role::Endpoint { .. });
        let retired = matches!(role, Role::Retired(_));
        let id = match self.flows.find_peer(&PeerKey { socket, peer, guest }) {
            Some(id) => id,
            None => {
                let endpoints = Endpoints { guest, remote: shown };
                let published = listening && !joined;
                let Unlinked { guard, host, now, .. } = cx;
                let admission = match published {
                    true => Admission::Admit,
                    false => guard.admits_stranger(endpoints, peer, *now, |peer| host.is_own(peer)),
                };
                if admission == Admission::Refuse {
                    self.counters.refused += 1;
                    return None;
                }
                // If the guest already sees another peer with this address (Q24), the flow of that peer stays.
                let taken = self.flows.find(&endpoints).is_some();
                let new = Flow::new(endpoints, peer, socket, Origin::Host);
                let id = if taken || retired { None } else { self.insert(new, cx.timers) };
                if let Some(id) = id {
                    let start = Start::of(Protocol::Udp, Direction::Inbound, endpoints);
                    let start = Start { peer: Some(peer), ..start };
                    self.flows.set_account(id, guard.begin_unjudged(start, cx.now));
                }
                if id.is_none() && !joined {
                    self.counters.no_room += 1;
                }
                self.end_surplus(Origin::Host, cx.now, cx.guard, cx.timers);
                self.attach(id?, admission, cx.guard, cx.now);
                id?
            }
        };
        if listening
            && received.local.is_some()
            && let Some(flow) = self.flows.get_mut(id)
        {
            flow.local = received.local;
        }
        Some(id)
    }
}

impl<S> Socket<S> {
    /// How many datagrams to receive now. After a single request or answer, another system call would find no datagram.
    fn batch(&mut self, round: RoundNumber) -> u8 {
        let streaming = round.follows(self.last_receive);
        self.last_receive = round;
        if streaming { self.last_taken.saturating_mul(2).clamp(1, MAX_BATCH) } else { 1 }
    }
}

impl InboundTrain {
    fn new(socket: FlowId, route: Route, first: Received) -> Self {
        Self { socket, route, extent: first.extent(), first }
    }

    /// Whether a datagram or train may be joined.
    fn takes(&self, next: &Received) -> bool {
        let Received { from, destination, local, hop_limit, traffic_class, .. } = self.first;
        let like = next.from == from
            && next.destination == destination
            && next.local == local
            && next.hop_limit == hop_limit
            && next.traffic_class == traffic_class;
        like && !next.truncated && self.extent.takes(&next.extent())
    }
}

impl Role {
    /// The guest endpoint that `peer` reaches with a datagram to `written_to` that the socket received.
    pub(super) fn guest_of(
        &self,
        settings: &Settings,
        guest: &Guest,
        peer: SocketAddr,
        written_to: Option<IpAddr>,
    ) -> Option<SocketAddr> {
        match self {
            Self::Endpoint { guest, .. } => Some(*guest),
            Self::Proxy(_) => None,
            Self::Member(at) => {
                let shown = settings.source_to_guest(guest, peer.ip())?;
                let destination = settings.guest_destination(guest, shown, None)?;
                Some(SocketAddr::new(destination, at.port()))
            }
            Self::Listener(listener) | Self::Retired(listener) => {
                listener.ends(settings, guest, peer, written_to).map(|ends| ends.guest)
            }
        }
    }
}

impl Received {
    pub(super) fn extent(&self) -> Extent {
        Extent::new(self.len, self.segment_size)
    }

    fn load(&self) -> Load {
        Load { len: self.len, segment_size: self.segment_size, v4: self.from.is_ipv4() }
    }
}

/// Whether a datagram is so short that joining it costs less than sending it alone.
fn is_short(received: &Received) -> bool {
    received.segment_size.is_none() && received.len <= MAX_DATAGRAM_LEN
}

/// Length of the headers before the payload, in bytes.
pub(super) const fn headroom(v4: bool) -> usize {
    ethernet::HEADER_LEN + if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN } + udp::HEADER_LEN
}
