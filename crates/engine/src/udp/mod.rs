//! UDP (behaviour §7). Each guest endpoint has one unconnected socket of the host. So remotes to which the guest has
//! not written can reach the endpoint, too, like a socket of the host (endpoint-independent mapping and filtering, RFC
//! 4787 §4.1, §5).
//!
//! A *flow* is the exchange of one guest endpoint with one remote. A flow stores the address translation and the
//! timeouts, and errors belong to a flow. The socket of an endpoint stays open while it has flows. Listeners of
//! forwarding rules stay open, and the guest's answers to a datagram are sent by the listener that received the
//! datagram.

mod begun;
mod bypass;
mod check;
mod checking;
mod datagram;
mod group;
mod inbound;
mod listener;
mod listing;
mod member;
mod review;
mod room;
mod table;
mod train;

#[cfg(test)]
mod tests;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::net::{IpAddr, SocketAddr};

use wire::{
    frame::Packet,
    ipv4, ipv6,
    offload::{Offload, SegmentKind},
    payload::Payload,
    udp,
};

pub use check::CheckLimits;
pub use table::Limits;

use crate::{
    addr::Settings,
    context::{Context, UdpOf, World},
    drops::Drops,
    flow::{Endpoints, FlowId, Flows, Keyed, Kind, Protocol},
    forward::{Listener, Policy, spec::Direction},
    fragmentation::Fragmenter,
    guard::Admission,
    host::{self, Errno, Host, OutboundDatagram, QueuedError, Received, Report, SendResult, UdpSocket},
    icmp::{self, Quote},
    idle::{Activity, Chain, Idle, Links},
    memory::PayloadOf,
    nat::is_group,
    rate_limit::Load,
    timer::Timers,
};
use bypass::{Client, Proxy};
use check::Checks;
use datagram::GuestDatagram;
use member::Groups;
use room::Notices;
use table::{Flow, FlowTable, Origin, PeerKey};
use train::{Extent, Train};

/// Maximum number of datagrams or trains, and maximum number of errors, that are read from a socket in one turn.
const MAX_BATCH: u8 = 32;
/// Maximum number of sockets of one guest endpoint. It is greater than the number of guest-side addresses that
/// translate to one host-side address (Q8).
const ORDINALS: u8 = 4;
/// Maximum length of a packet with which senders probe the path's MTU, in bytes: the MTU of Ethernet (RFC 8899 §5.1.2).
const LONGEST_PROBE: usize = 1500;

/// The number of a round of the event loop. A sender that is active in two consecutive rounds has a stream. In an
/// exchange of requests and answers, a sender waits for the other side before its next datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RoundNumber(u64);

impl RoundNumber {
    const NEVER: Self = Self(0);
    const FIRST: Self = Self(2);

    const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Whether `last` is this round or the previous round.
    const fn follows(self, last: Self) -> bool {
        self.0 - last.0 <= 1
    }
}

/// All UDP sockets and flows.
pub struct Udp<W: World> {
    sockets: Flows<Socket<UdpOf<W>>>,
    /// The sockets of guest endpoints.
    endpoints: Idle,
    /// The sockets in the other namespace, one for each client that bypasses the link.
    proxies: Idle,
    policy: Policy,
    /// The listeners that are not closed. Each entry has the guest's port to which the listener forwards, and the
    /// listener's ID as one word.
    published: BTreeSet<(u16, u64)>,
    flows: FlowTable,
    checks: Checks,
    /// The flow of the guest's latest datagram.
    latest: Option<FlowId>,
    /// Sockets that share a port with other programs of the host, for flows to a group.
    shared_ports: BTreeMap<FlowId, UdpOf<W>>,
    /// Groups of which the guest is a member.
    joined: Groups,
    round: RoundNumber,
    train: Train,
    /// Buffer in which datagrams for the guest are joined.
    arrivals: Vec<u8>,
    fragmenter: Fragmenter,
    limits: Limits,
    counters: Drops,
    /// Number of sockets and flows that were ended to make room for new ones.
    ended: u64,
    notices: Notices,
}

#[derive(Debug)]
struct Socket<S> {
    io: S,
    role: Role,
    /// The flows of the socket.
    flows: Chain,
    /// For a listener, the number of its clients that have a socket in the other namespace.
    proxies: usize,
    /// For a guest endpoint or a socket in the other namespace, its traffic.
    activity: Activity,
    /// Whether the last datagram was IPv4. A dual-stack socket does not report the family of the next datagram, but the
    /// length of the headers depends on the family. So the last family is the guess for the next datagram.
    v4: bool,
    last_receive: RoundNumber,
    last_taken: u8,
    /// Whether the last datagram was short enough to be joined with others.
    last_short: bool,
}

#[derive(Debug)]
enum Role {
    /// A guest endpoint. It has more than one socket if remotes with different addresses for the guest have the same
    /// address on the host (Q8).
    Endpoint {
        guest: SocketAddr,
        ordinal: u8,
    },
    Listener(Listener),
    /// A listener that was closed while it had flows. It serves these flows until they end, and no new flows.
    Retired(Listener),
    /// A group and port of the host's network.
    Member(SocketAddr),
    /// The proxy of one client of a listener, in the target namespace of the listener.
    Proxy(Proxy),
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum SocketKey {
    Endpoint(SocketAddr, u8),
    /// The port of a listener. It never changes, but the rule may change. Listeners are not looked up by this key.
    Listener(u16),
    Member(SocketAddr),
    Proxy(Client),
}

impl<S> Keyed for Socket<S> {
    type Key = SocketKey;
    fn key(&self) -> SocketKey {
        match &self.role {
            Role::Endpoint { guest, ordinal } => SocketKey::Endpoint(*guest, *ordinal),
            Role::Listener(listener) | Role::Retired(listener) => SocketKey::Listener(listener.port),
            Role::Member(at) => SocketKey::Member(*at),
            Role::Proxy(proxy) => SocketKey::Proxy(proxy.client),
        }
    }
}

impl<S> Socket<S> {
    fn new(io: S, role: Role, v4: bool) -> Self {
        Self {
            io,
            role,
            flows: Chain::default(),
            proxies: 0,
            activity: Activity::NONE,
            v4,
            last_receive: RoundNumber::NEVER,
            last_taken: 0,
            last_short: false,
        }
    }

    /// Whether no flow and no client uses the socket.
    fn is_unused(&self) -> bool {
        self.flows.first().is_none() && self.proxies == 0
    }
}

impl<W: World> Udp<W> {
    /// An empty table of sockets and flows. `hash_key` must be random.
    #[must_use]
    pub fn new(limits: Limits, hash_key: [u8; 16]) -> Self {
        Self {
            sockets: Flows::new(Kind::Udp, usize::MAX, hash_key),
            endpoints: Idle::new(None),
            proxies: Idle::new(Some(limits.timeouts())),
            policy: Policy::default(),
            published: BTreeSet::new(),
            flows: FlowTable::new(limits, hash_key),
            checks: Checks::new(limits.checks, hash_key),
            latest: None,
            shared_ports: BTreeMap::new(),
            joined: Groups::default(),
            round: RoundNumber::FIRST,
            train: Train::new(),
            arrivals: Vec::with_capacity(2 * wire::frame::MAX_LEN),
            fragmenter: Fragmenter::default(),
            limits,
            counters: Drops::default(),
            ended: 0,
            notices: Notices::default(),
        }
    }

    /// Memory of a flow, in bytes.
    pub(crate) const FLOW_BYTES: usize = FlowTable::BYTES + Checks::BYTES;
    /// Memory of a socket, in bytes.
    pub(crate) const SOCKET_BYTES: usize =
        Flows::<Socket<UdpOf<W>>>::BYTES + Timers::<FlowId>::BYTES + 2 * Links::BYTES;

    /// Number of deadlines at the limits.
    pub(crate) const fn owners(&self) -> usize {
        2 * self.most_flows() + self.most_sockets()
    }

    const fn most_flows(&self) -> usize {
        self.limits.flows.most + self.limits.inbound.most + 2
    }

    const fn most_sockets(&self) -> usize {
        self.limits.endpoints.most + self.limits.bypass.most + member::MAX_SOCKETS
    }

    /// Reserves memory for the tables at their limits. Returns false if there is none.
    pub(crate) fn reserve(&mut self) -> bool {
        let (flows, sockets) = (self.most_flows(), self.most_sockets());
        self.flows.reserve(flows)
            && self.checks.reserve(flows)
            && self.sockets.reserve(sockets)
            && self.endpoints.reserve_all(sockets)
            && self.proxies.reserve_all(sockets)
    }

    /// Counts of the datagrams that were dropped.
    #[must_use]
    pub const fn counters(&self) -> &Drops {
        &self.counters
    }

    /// Number of sockets and flows that were ended to make room for new ones.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.ended
    }

    /// Number of flows.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Adds the socket of a forwarding rule's port. Returns its id, for [`Udp::unlisten`].
    ///
    /// # Errors
    /// The socket can't be watched, and is closed.
    pub fn listen(
        &mut self,
        host: &mut W::Host,
        listener: Listener,
        socket: UdpOf<W>,
    ) -> Result<FlowId, Errno> {
        let id = self.sockets.next_id().ok_or(Errno::ENFILE)?;
        host.udp_watch(id, &socket)?;
        let v4 = !matches!(listener.address, Some(IpAddr::V6(_)));
        self.published.insert((listener.target_port, id.to_bits()));
        self.sockets.insert(Socket::new(socket, Role::Listener(listener), v4)).map_err(|_| Errno::ENFILE)
    }

    /// Closes a listener. While flows use its socket, the socket stays open for them, and [`Udp::relisten`] can make it
    /// a listener again.
    pub fn unlisten(&mut self, id: FlowId) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if let Role::Listener(listener) = &socket.role {
            self.published.remove(&(listener.target_port, id.to_bits()));
            socket.role = Role::Retired(listener.clone());
            if socket.is_unused() {
                self.sockets.remove(id);
            }
        }
    }

    /// Makes a listener, which may be closed, serve another rule with the same port and address. Returns false if the
    /// listener does not exist.
    pub fn relisten(&mut self, id: FlowId, listener: Listener) -> bool {
        let Some(socket) = self.sockets.get_mut(id) else { return false };
        let (Role::Listener(old) | Role::Retired(old)) = &socket.role else { return false };
        let listener = Listener { address: old.address, ..listener };
        self.published.remove(&(old.target_port, id.to_bits()));
        self.published.insert((listener.target_port, id.to_bits()));
        socket.role = Role::Listener(listener);
        true
    }

    /// Whether a listener exists. It may be closed, but still occupies its port.
    #[must_use]
    pub fn is_listener(&self, id: FlowId) -> bool {
        self.sockets.get(id).is_some_and(|socket| matches!(socket.role, Role::Listener(_) | Role::Retired(_)))
    }

    /// The socket with this id, if it exists.
    #[must_use]
    pub fn socket(&self, id: FlowId) -> Option<&UdpOf<W>> {
        Some(&self.sockets.get(id)?.io)
    }

    /// The sockets of the guest's own endpoints and groups. Each occupies a port of the host.
    pub fn endpoint_sockets(&self) -> impl Iterator<Item = &UdpOf<W>> {
        let endpoints = self
            .sockets
            .iter()
            .filter(|(_, socket)| matches!(socket.role, Role::Endpoint { .. } | Role::Member(_)));
        endpoints.map(|(_, socket)| &socket.io)
    }

    /// Handles a datagram of the guest. With segmentation in `offload`, it is a train of datagrams. It may be sent only
    /// at the end of the round.
    pub fn on_datagram(
        &mut self,
        packet: &Packet<'_, PayloadOf<'_, W::Memory>>,
        datagram: &udp::Datagram<'_, PayloadOf<'_, W::Memory>>,
        offload: &Offload,
        cx: &mut Context<'_, W>,
    ) {
        let endpoints = Endpoints {
            guest: SocketAddr::new(packet.source, datagram.header.source_port.get()),
            remote: SocketAddr::new(packet.destination, datagram.header.destination_port.get()),
        };
        // The next datagram often belongs to the same flow, which is found without a hash.
        let is_this = |id: &FlowId| self.flows.get(*id).is_some_and(|flow| flow.endpoints == endpoints);
        let latest = self.latest.filter(is_this);
        let known = latest.or_else(|| self.flows.find(&endpoints));
        let segment_size = segment_size(offload, datagram.payload.len());
        let datagram = GuestDatagram {
            hop_limit: packet.hop_limit.max(1),
            traffic_class: packet.traffic_class,
            dont_fragment: must_not_fragment(packet, datagram.payload.len(), segment_size, cx.settings),
            payload: datagram.payload,
            segment_size,
        };
        let Some(id) = known else { return self.begin_flow(endpoints, &datagram, cx) };
        self.latest = Some(id);
        match self.flows.get(id).and_then(|flow| flow.check) {
            None => self.send_to_peer(id, &datagram, cx),
            Some(check) => self.check(check, &datagram, cx),
        }
    }

    /// Sends a datagram or train of a flow. It may be sent only at the end of the round.
    fn send_to_peer(
        &mut self,
        id: FlowId,
        datagram: &GuestDatagram<PayloadOf<'_, W::Memory>>,
        cx: &mut Context<'_, W>,
    ) {
        let Some(flow) = self.flows.get(id) else { return };
        let &GuestDatagram { hop_limit, traffic_class, dont_fragment, payload, segment_size } = datagram;
        let load = Load { len: payload.len(), segment_size, v4: flow.endpoints.guest.is_ipv4() };
        let counters = &mut self.counters;
        let Some(load) = cx.rate_limit.pass(Direction::Outbound, load, cx.now, counters) else { return };
        let outbound = OutboundDatagram {
            destination: flow.peer,
            source: flow.local,
            hop_limit,
            traffic_class,
            dont_fragment,
            payload: payload.slice(0..load.len),
            segment_size: load.segment_size,
        };
        let (socket, endpoints) = (flow.socket, flow.endpoints);
        let streaming = self.round.follows(flow.last_sent);
        let is_reported = flow.account.is_open();
        if !flow.is_noted(self.round) {
            self.flows.touch(id, Origin::Guest, cx.now, cx.timers);
            self.flows.note_sent(id, self.round);
            self.note(socket, true, cx.now, cx.timers);
        }
        if is_reported {
            let extent = Extent::new(load.len, load.segment_size);
            self.flows.count(id, Origin::Guest, &extent);
        }
        let to = outbound.destination.ip();
        if self.is_member(to) || cx.settings.is_broadcast(to) {
            self.note_sent_to_group(cx.now, &outbound);
        }
        if self.send_shared(id, &outbound) || self.train.join(id, &outbound) {
            return;
        }
        let begin = streaming && Train::suits(&outbound);
        if begin || self.train.is_of(id) {
            self.send_joined(cx);
        }
        if begin {
            self.train.begin(id, &outbound);
        } else {
            self.send(socket, endpoints, &outbound, cx);
        }
    }

    /// Ends a round: sends the datagrams that were joined.
    pub(crate) fn end_round(&mut self, cx: &mut Context<'_, W>) {
        self.round = self.round.next();
        self.send_joined(cx);
    }

    fn send_joined(&mut self, cx: &mut Context<'_, W>) {
        let Some((head, payload)) = self.train.take() else { return };
        if let Some(flow) = self.flows.get(head.flow) {
            let (socket, endpoints) = (flow.socket, flow.endpoints);
            let outbound = OutboundDatagram {
                destination: flow.peer,
                source: flow.local,
                hop_limit: head.hop_limit,
                traffic_class: head.traffic_class,
                dont_fragment: head.dont_fragment,
                payload: payload.get(..head.extent.len).unwrap_or_default().into(),
                segment_size: head.extent.segment_size(),
            };
            self.send(socket, endpoints, &outbound, cx);
        }
        self.train.recycle(payload);
    }

    /// Handles a datagram or train that does not belong to a flow.
    fn begin_flow(
        &mut self,
        endpoints: Endpoints,
        datagram: &GuestDatagram<PayloadOf<'_, W::Memory>>,
        cx: &mut Context<'_, W>,
    ) {
        if let Some(check) = self.checks.find(&endpoints) {
            return self.check(check, datagram, cx);
        }
        let guest = endpoints.guest;
        let peer = cx.settings.to_host(Protocol::Udp, endpoints.remote).ok();
        let valid = cx.settings.valid_guest_source(guest.ip()) && guest.port() != 0;
        let Some(peer) = peer.filter(|_| valid) else {
            self.counters.invalid += 1;
            cx.note_invalid(Protocol::Udp, &endpoints);
            if valid && cx.settings.is_virtual(endpoints.remote.ip()) {
                let report = Report::unreachable(guest.is_ipv4());
                report_unsent(report, endpoints, datagram.payload, datagram.segment_size, cx);
            }
            return;
        };
        let admission = cx.admits(Protocol::Udp, &endpoints, peer);
        match admission {
            Admission::Admit | Admission::AdmitByName => {
                let Some(id) = self.open_flow(endpoints, peer, cx) else { return };
                self.attach(id, admission, cx.guard, cx.now);
                self.latest = Some(id);
                self.send_to_peer(id, datagram, cx);
            }
            Admission::Named(claim) => self.begin_checked(endpoints, claim, datagram, cx),
            Admission::Refuse => {
                self.counters.refused += 1;
                let report = Report::prohibited(guest.is_ipv4());
                report_unsent(report, endpoints, datagram.payload, datagram.segment_size, cx);
            }
        }
    }

    /// Opens a flow that the guest begins. `peer` is the remote on the host's side.
    fn open_flow(
        &mut self,
        endpoints: Endpoints,
        peer: SocketAddr,
        cx: &mut Context<'_, W>,
    ) -> Option<FlowId> {
        let guest = endpoints.guest;
        let local = cx.outbound_source(guest.ip(), peer);
        let flow = self.socket_for(guest, peer, local, cx).and_then(|socket| {
            let flow = Flow::new(endpoints, peer, socket, Origin::Guest).leaving_from(local);
            self.insert(flow, cx.timers).ok_or(Errno::ENOMEM)
        });
        self.end_surplus(Origin::Guest, cx.now, cx.guard, cx.timers);
        match flow {
            Ok(id) => {
                self.flows.set_account(id, cx.begin(Protocol::Udp, &endpoints, peer));
                if cx.settings.services.multicast && peer.ip().is_multicast() {
                    self.note_use(cx.host, endpoints);
                }
                self.share_port(id, cx);
            }
            Err(errno) => {
                self.counters.no_room += 1;
                cx.begin(Protocol::Udp, &endpoints, peer).close_unopened(errno);
            }
        }
        flow.ok()
    }

    /// Adds a flow. If there is no memory, closes its socket, unless other flows use it.
    fn insert(&mut self, flow: Flow, timers: &mut Timers<FlowId>) -> Option<FlowId> {
        let socket_id = flow.socket;
        let socket = self.sockets.get_mut(socket_id)?;
        let (Endpoints { guest, remote }, peer) = (flow.endpoints, flow.peer);
        let Some(id) = self.flows.insert(flow, &mut socket.flows, timers) else {
            self.close_unused(socket_id, timers);
            return None;
        };
        log::debug!("{id}: {guest} <-> {remote} (host {peer})");
        Some(id)
    }

    /// A socket for datagrams of `guest` to `peer`, from the host's address `local` if it is given. The socket has no
    /// other flow with the same peer. Otherwise answers of the peer could not be distinguished (Q8).
    ///
    /// # Errors
    /// There is no such socket, and the host can't open one.
    fn socket_for(
        &mut self,
        guest: SocketAddr,
        peer: SocketAddr,
        local: Option<IpAddr>,
        cx: &mut Context<'_, W>,
    ) -> Result<FlowId, Errno> {
        if let Some(listener) = self.published_for(guest, peer, local, cx) {
            return Ok(listener);
        }
        for ordinal in 0..ORDINALS {
            let Some(socket) = self.sockets.find(&SocketKey::Endpoint(guest, ordinal)) else {
                return self.open_socket(guest, ordinal, cx);
            };
            if self.flows.find_peer(&PeerKey { socket, peer, guest }).is_none() {
                return Ok(socket);
            }
        }
        Err(Errno::EADDRINUSE)
    }

    /// The listener that forwards to `guest`, if any. For remotes, the listener's port is the guest's port. So the
    /// listener also sends the datagrams of flows that the guest begins.
    fn published_for(
        &self,
        guest: SocketAddr,
        peer: SocketAddr,
        local: Option<IpAddr>,
        cx: &Context<'_, W>,
    ) -> Option<FlowId> {
        let leads_here = |listener: &Listener| {
            let bound = listener.address.filter(|address| !address.is_unspecified());
            if bound.is_some() && local.is_some_and(|local| bound != Some(local)) {
                return false;
            }
            // The address to which an answer will be sent.
            let written_to = bound.or(local);
            let usual = || cx.settings.guest_destination(cx.guest, guest.ip(), written_to);
            listener.target_address.map(|target| target.to_canonical()).or_else(usual) == Some(guest.ip())
        };
        let all = (guest.port(), 0)..=(guest.port(), u64::MAX);
        let usable = self.published.range(all).filter_map(|&(_, socket)| {
            let socket = FlowId::from_bits(socket)?;
            let Role::Listener(listener) = &self.sockets.get(socket)?.role else { return None };
            let rank = listener.rank(guest, peer).filter(|_| leads_here(listener))?;
            self.flows.find_peer(&PeerKey { socket, peer, guest }).is_none().then_some((rank, socket))
        });
        usable.min().map(|(_, socket)| socket)
    }

    fn send(
        &mut self,
        id: FlowId,
        endpoints: Endpoints,
        outbound: &OutboundDatagram<PayloadOf<'_, W::Memory>>,
        cx: &mut Context<'_, W>,
    ) {
        let Self { sockets, flows, .. } = self;
        let Some(Socket { io, role, .. }) = sockets.get_mut(id) else { return };
        let sent = host::send(io, |io| io.send(outbound), |io| drain(id, io, role, flows, cx));
        if sent != SendResult::Sent {
            self.counters.not_sent += 1;
        }
        let SendResult::Refused(errno, too_long) = sent else { return };
        if too_long.is_none() {
            flows.note_failure(&endpoints, errno);
        }
        if let Some(report) = too_long.or(Report::of_refusal(errno, endpoints.guest.is_ipv4())) {
            report_unsent(report, endpoints, outbound.payload, outbound.segment_size, cx);
        }
    }

    /// Reports to the guest the errors that its datagrams caused (behaviour §7.4, R-95).
    fn report_errors(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Self { sockets, flows, .. } = self;
        let Some(Socket { io, role, .. }) = sockets.get_mut(id) else { return };
        drain(id, io, role, flows, cx);
    }
}

/// Reports to the guest that its datagram was not sent. The report quotes the datagram, or the first datagram of a
/// train.
fn report_unsent<W: World>(
    report: Report,
    endpoints: Endpoints,
    payload: impl Payload,
    segment_size: Option<u16>,
    cx: &mut Context<'_, W>,
) {
    let len = segment_size.map_or(payload.len(), usize::from);
    let mut bytes = [0; icmp::MAX_QUOTE];
    let quoted = payload.slice(0..len).copy_to(&mut bytes);
    icmp::send_router_error(report, &Quote::of_datagram(endpoints, len, &bytes[..quoted]), cx);
}

/// Reads the errors of a socket, and reports to the guest the errors that its datagrams caused. See [`host::drain`].
fn drain<W: World>(
    id: FlowId,
    io: &mut UdpOf<W>,
    role: &mut Role,
    flows: &mut FlowTable,
    cx: &mut Context<'_, W>,
) -> Option<Report> {
    let mut quote = [0; icmp::MAX_QUOTE];
    host::drain(io, &mut quote, MAX_BATCH.into(), |error, quoted| {
        report_error(id, role, flows, error, quoted, cx)
    })
}

/// Reports to the guest the error of a datagram that `socket` has sent, if the flow of this datagram still exists.
fn report_error<W: World>(
    socket: FlowId,
    role: &mut Role,
    flows: &mut FlowTable,
    error: &QueuedError,
    quoted: &[u8],
    cx: &mut Context<'_, W>,
) {
    let Some(report) = error.report else { return };
    let peer = error.destination;
    let errno = report.errno(peer.is_ipv4());
    if let (Role::Proxy(proxy), Some(errno)) = (&mut *role, errno) {
        proxy.account.note_failure(errno);
    }
    let flow = role
        .guest_of(cx.settings, cx.guest, peer, error.local)
        .and_then(|guest| flows.find_peer(&PeerKey { socket, peer, guest }))
        .and_then(|id| flows.get(id));
    let Some(&Flow { endpoints, .. }) = flow else { return };
    errno.into_iter().for_each(|errno| flows.note_failure(&endpoints, errno));
    let source =
        icmp::shown_offender(cx.settings, cx.guest, error.offender, peer.ip(), endpoints.remote.ip());
    icmp::send_error(source, report, &Quote::of_datagram(endpoints, quoted.len(), quoted), cx);
}

/// Whether the host must not fragment a datagram of the guest, or the datagrams of a train (docs/design/fragments.md).
///
/// A sender that probes the path's MTU needs the error. Its datagram is at most [`LONGEST_PROBE`] long, or fills the
/// guest's link. On all other datagrams, the guest's kernel has set "don't fragment" only because they fit its link.
fn must_not_fragment(
    packet: &Packet<'_, impl Payload>,
    payload_len: usize,
    segment_size: Option<u16>,
    settings: &Settings,
) -> bool {
    let v4 = packet.source.is_ipv4();
    let headers = udp::HEADER_LEN + if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let len = headers + segment_size.map_or(payload_len, usize::from);
    let probe = len <= LONGEST_PROBE || len >= usize::from(settings.link_mtu(v4));
    packet.dont_fragment && probe && !is_group(packet.destination)
}

/// The size of a train's datagrams, if the frame is a train.
fn segment_size(offload: &Offload, payload_len: usize) -> Option<u16> {
    let segmentation = offload.segmentation.filter(|segmentation| segmentation.kind == SegmentKind::Udp)?;
    (segmentation.size > 0 && payload_len > usize::from(segmentation.size)).then_some(segmentation.size)
}
