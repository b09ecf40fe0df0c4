//! Ping: echo requests of the guest, which ping sockets of the host send (behaviour §4.5), and error messages to the
//! guest.

pub(crate) mod error;

#[cfg(test)]
mod tests;

use alloc::{collections::VecDeque, vec::Vec};
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use wire::{
    ethernet,
    frame::{MAX_LEN, Outgoing, Packet},
    icmp::{HEADER_LEN, Header, Message, v4, v6},
    ipv4, ipv6,
    payload::Payload,
    protocol,
};
use zerocopy::IntoBytes;

pub use error::MAX_QUOTE;
pub(crate) use error::{MAX_UPPER, Quote, Unframed, router, send_error, send_router_error, shown_offender};

use crate::{
    context::{Context, PingOf, World},
    drops::Drops,
    events::{Account, How},
    flow::{Endpoints, FlowId, Flows, Keyed, Kind, Protocol},
    forward::spec::Direction,
    fragmentation::Fragmenter,
    host::{
        self, EchoRequest, Errno, Host, PingSocket, Readiness, Received, Report, SendResult, SocketError,
        UNKNOWN_HOP_LIMIT,
    },
    idle::{Activity, Idle, Links, Timeouts},
    link::Link,
    listing::{Lister, Page},
    memory::PayloadOf,
    nat::is_group,
    quota::allocation,
    rate_limit::Load,
    share::{Notice, Share},
    timer::Timers,
};

/// Time without a request or reply after which a ping flow ends (behaviour §4.5).
const IDLE: Duration = Duration::from_secs(60);
const TIMEOUTS: Timeouts = Timeouts { idle: IDLE, stream: IDLE };
/// Maximum number of accounts of one flow. Each destination has its own account.
const MOST_ACCOUNTS: usize = 64;
/// Maximum number of errors taken from a socket in one turn.
const MAX_BATCH: usize = 32;

/// All ping flows.
pub struct Ping<W: World> {
    flows: Flows<Flow<PingOf<W>>>,
    /// Buffer for a reply that is sent to the guest in fragments.
    large: Vec<u8>,
    fragmenter: Fragmenter,
    idle: Idle,
    share: Share,
    counters: Drops,
    /// Number of flows that were ended to make room for new flows.
    ended: u64,
    notice: Notice,
}

/// Requests of one identifier from one guest address, to all destinations whose replies can be distinguished.
#[derive(Debug)]
struct Flow<S> {
    key: Key,
    socket: S,
    activity: Activity,
    /// The destination of the latest request, as the guest sees it.
    latest: IpAddr,
    /// The accounts of the destinations, for reports. Empty if nothing is reported.
    accounts: VecDeque<Account>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    id: u16,
    target: Target,
}

/// The destinations of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Target {
    /// All destinations that have the same address on both sides and are reached from the address `source`. The guest
    /// sees the real source address of each reply.
    Any { source: Option<IpAddr> },
    /// One translated destination: `remote` for the guest, `peer` on the host's side. It has its own socket, which
    /// identifies its replies.
    One { remote: IpAddr, peer: IpAddr, source: Option<IpAddr> },
}

impl<S> Keyed for Flow<S> {
    type Key = Key;
    fn key(&self) -> Key {
        self.key
    }
}

impl<W: World> Ping<W> {
    /// An empty table of flows. `hash_key` must be random.
    #[must_use]
    pub fn new(share: Share, hash_key: [u8; 16]) -> Self {
        Self {
            flows: Flows::new(Kind::Ping, usize::MAX, hash_key),
            large: Vec::new(),
            fragmenter: Fragmenter::default(),
            idle: Idle::new(Some(TIMEOUTS)),
            share,
            counters: Drops::default(),
            ended: 0,
            notice: Notice::default(),
        }
    }

    /// Memory of a flow, in bytes: its slot, its deadline, its place in a list, and the list of its accounts.
    pub(crate) const BYTES: usize = Flows::<Flow<PingOf<W>>>::BYTES
        + Timers::<FlowId>::BYTES
        + Links::BYTES
        + allocation(MOST_ACCOUNTS * size_of::<Account>());

    /// Reserves memory for the tables at their limits. Returns false if there is none.
    pub(crate) fn reserve(&mut self) -> bool {
        let flows = self.share.most + 1;
        self.flows.reserve(flows) && self.idle.reserve_all(flows)
    }

    /// Counts of the echo messages that were dropped.
    #[must_use]
    pub const fn counters(&self) -> &Drops {
        &self.counters
    }

    /// The number of flows that were ended to make room for new flows.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.ended
    }

    /// The number of flows.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Handles an ICMP message of the guest. Messages other than echo requests are ignored.
    pub fn on_message(
        &mut self,
        packet: &Packet<'_, PayloadOf<'_, W::Memory>>,
        message: &Message<'_, PayloadOf<'_, W::Memory>>,
        cx: &mut Context<'_, W>,
    ) {
        let request = if packet.source.is_ipv4() { v4::ECHO_REQUEST } else { v6::ECHO_REQUEST };
        if message.header.kind != request || message.header.code != 0 {
            return;
        }
        let remote = packet.destination;
        let peer = cx.settings.to_host(Protocol::Icmp, SocketAddr::new(remote, 0)).ok();
        let ends = Endpoints {
            guest: SocketAddr::new(packet.source, message.header.echo_id()),
            remote: SocketAddr::new(remote, 0),
        };
        let Some(peer) = peer.filter(|_| cx.settings.valid_guest_source(packet.source)) else {
            self.counters.invalid += 1;
            return cx.note_invalid(Protocol::Icmp, &ends);
        };
        // A flow serves many destinations, so the guard checks each request.
        if !cx.admits_unread(Protocol::Icmp, &ends, peer) {
            self.counters.refused += 1;
            let key =
                Key { guest: packet.source, id: ends.guest.port(), target: Target::Any { source: None } };
            let mut bytes = [0; MAX_UPPER];
            let len = message.payload.copy_to(&mut bytes);
            let quote = quote(key, remote, *message.header, &bytes[..len]);
            return send_router_error(Report::prohibited(remote.is_ipv4()), &quote, cx);
        }
        let load = load(message.payload.len(), remote);
        let Some(_) = cx.rate_limit.pass(Direction::Outbound, load, cx.now, &mut self.counters) else {
            return;
        };
        let target = target(packet.source, remote, peer, cx);
        let key = Key { guest: packet.source, id: message.header.echo_id(), target };
        let known = self.flows.find(&key).ok_or(Errno::ENFILE);
        let id = match known.or_else(|_| self.open(key, remote, peer.ip(), cx)) {
            Ok(id) => id,
            Err(errno) => {
                self.counters.no_room += 1;
                return cx.begin(Protocol::Icmp, &ends, peer).close_unopened(errno);
            }
        };
        let request = EchoRequest {
            destination: peer,
            header: message.header,
            payload: message.payload,
            hop_limit: packet.hop_limit.max(1),
            traffic_class: packet.traffic_class,
            dont_fragment: packet.dont_fragment && !is_group(packet.destination),
        };
        self.note(id, true, cx);
        if cx.guard.reports() {
            let account = self.account(id, &ends, peer, cx);
            account.into_iter().for_each(|account| account.count(true, message.payload.len(), 1));
        }
        let Some(Flow { socket, latest, accounts, .. }) = self.flows.get_mut(id) else { return };
        *latest = remote;
        let sent =
            host::send(socket, |socket| socket.send(&request), |socket| drain(key, socket, accounts, cx));
        if sent != SendResult::Sent {
            self.counters.not_sent += 1;
        }
        let SendResult::Refused(errno, too_long) = sent else { return };
        if too_long.is_none() {
            note_failure(accounts, remote, errno);
        }
        if let Some(report) = too_long.or(Report::of_refusal(errno, key.guest.is_ipv4())) {
            let mut bytes = [0; MAX_UPPER];
            let len = message.payload.copy_to(&mut bytes);
            send_router_error(report, &quote(key, remote, *message.header, &bytes[..len]), cx);
        }
    }

    /// Ends the flows whose latest request the current rules deny. Later requests are judged one by one, so this only
    /// concerns replies that have not arrived yet.
    pub(crate) fn review(&mut self, cx: &mut Context<'_, W>) {
        let flows: Vec<(FlowId, Endpoints)> = self
            .flows
            .iter()
            .map(|(id, flow)| {
                let guest = SocketAddr::new(flow.key.guest, flow.key.id);
                (id, Endpoints { guest, remote: SocketAddr::new(flow.latest, 0) })
            })
            .collect();
        for (id, ends) in flows {
            let peer = cx.settings.to_host(Protocol::Icmp, ends.remote).unwrap_or(ends.remote);
            if !cx.still_admits_unread(Protocol::Icmp, &ends, peer) {
                log::debug!("{id}: forbidden by new rules");
                self.end(id, How::Forbidden, cx.timers);
            }
        }
    }

    /// Must be called when a socket is ready.
    pub fn on_ready(&mut self, id: FlowId, readiness: Readiness, cx: &mut Context<'_, W>) {
        if readiness.error {
            self.report_errors(id, cx);
        }
        if readiness.readable && self.receive(id, cx).is_err() {
            self.report_errors(id, cx);
        }
    }

    /// Must be called when the deadline of a flow may have been reached.
    pub fn on_deadline(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if flow.activity.has_expired(id, cx.now, cx.timers) {
            self.end(id, How::Idle, cx.timers);
        }
    }

    /// Reports the end of all flows, because the program ends.
    pub(crate) fn report_exit(&mut self) {
        let accounts = self.flows.values_mut().flat_map(|flow| &mut flow.accounts);
        accounts.for_each(|account| account.close(How::Exit));
    }

    /// Lists the destinations of the flows of a page. Returns the next slot, if there are more slots.
    pub(crate) fn list(&mut self, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        let (flows, next) = self.flows.page_mut(page.from, page.slots);
        for (id, Flow { accounts, activity, .. }) in flows {
            let (state, active) = (activity.state(), activity.last(TIMEOUTS));
            for account in accounts {
                lister.add((id, account), state, active, |listed| listed.totals = Some(account.counted()));
            }
        }
        next
    }

    /// Ends the part of a flow that has this number: the requests to one destination. If it was the only one, the
    /// flow ends. Returns whether the part exists.
    pub(crate) fn end_requested(&mut self, id: FlowId, number: u64, timers: &mut Timers<FlowId>) -> bool {
        let Some(Flow { accounts, .. }) = self.flows.get_mut(id) else { return false };
        let at = accounts.iter().position(|account| account.is_of(number));
        let Some(mut account) = at.and_then(|at| accounts.remove(at)) else { return false };
        account.close(How::Requested);
        if accounts.is_empty() {
            self.end(id, How::Requested, timers);
        }
        true
    }

    /// Opens a flow for requests to `peer`, and for other requests of the same key. If the limit of flows is reached,
    /// another flow ends.
    ///
    /// # Errors
    /// The error of the host.
    fn open(
        &mut self,
        key: Key,
        remote: IpAddr,
        peer: IpAddr,
        cx: &mut Context<'_, W>,
    ) -> Result<FlowId, Errno> {
        if self.share.is_full(self.flows.len()) {
            if self.notice.is_due(cx.now) {
                let Share { most, bound } = self.share;
                log::warn!(
                    "ping: the guest uses {most} identifiers at once: sockets of those that were idle for longest are closed{bound}"
                );
            }
            self.end_idle(cx.timers);
        }
        let socket = match self.try_open(cx.host, key, peer, cx.timers) {
            Err(errno) if errno.is_exhaustion() && self.end_idle(cx.timers) => {
                self.try_open(cx.host, key, peer, cx.timers)
            }
            opened => opened,
        };
        let flow = Flow {
            key,
            socket: socket?,
            activity: Activity::NONE,
            latest: remote,
            accounts: VecDeque::new(),
        };
        let id = self.flows.insert(flow).map_err(|_| Errno::ENFILE)?;
        log::debug!("{id}: {} id {} -> {peer}", key.guest, key.id);
        self.idle.join(id);
        Ok(id)
    }

    fn try_open(
        &mut self,
        host: &mut W::Host,
        key: Key,
        peer: IpAddr,
        timers: &mut Timers<FlowId>,
    ) -> Result<PingOf<W>, Errno> {
        let id = self.flows.next_timed_id(timers).filter(|id| self.idle.reserve(id.index()));
        let id = id.ok_or(Errno::ENOMEM)?;
        let source = match key.target {
            Target::Any { source } | Target::One { source, .. } => source,
        };
        host.ping_open(id, source, peer, key.id)
    }

    /// Notes a request (if `request` is true) or a reply.
    fn note(&mut self, id: FlowId, request: bool, cx: &mut Context<'_, W>) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        self.idle.note(id, &mut flow.activity, request, cx.now, cx.timers);
    }

    /// The account of a destination of a flow. If the destination is new, reports the beginning of a flow to it.
    fn account(
        &mut self,
        id: FlowId,
        ends: &Endpoints,
        peer: SocketAddr,
        cx: &mut Context<'_, W>,
    ) -> Option<&mut Account> {
        let accounts = &mut self.flows.get_mut(id)?.accounts;
        if let Some(index) = accounts.iter().position(|account| account.ends() == Some(ends)) {
            return accounts.get_mut(index);
        }
        if accounts.len() >= MOST_ACCOUNTS
            && let Some(mut oldest) = accounts.pop_front()
        {
            oldest.close(How::Displaced);
        }
        accounts.push_back(cx.begin(Protocol::Icmp, ends, peer));
        accounts.back_mut()
    }

    /// Counts a reply from a destination of a flow.
    fn count_reply(&mut self, id: FlowId, source: IpAddr, bytes: usize) {
        let Some(Flow { accounts, .. }) = self.flows.get_mut(id) else { return };
        if let Some(account) = account_of(accounts, source) {
            account.count(false, bytes, 1);
        }
    }

    /// Ends the flow that was idle for the longest time. Flows whose requests were answered end before others. Returns
    /// false if there is no flow.
    fn end_idle(&mut self, timers: &mut Timers<FlowId>) -> bool {
        let Some(id) = self.idle.next().and_then(|index| self.flows.id_at(index)) else { return false };
        log::debug!("{id}: closed to make room for another one");
        self.end(id, How::Displaced, timers);
        self.ended += 1;
        true
    }

    fn end(&mut self, id: FlowId, how: How, timers: &mut Timers<FlowId>) {
        let Some(mut flow) = self.flows.remove(id) else { return };
        flow.accounts.iter_mut().for_each(|account| account.close(how));
        self.idle.leave(id, &mut flow.activity, timers);
    }

    /// Receives one message from a socket and sends it to the guest. If the link is full, the message is dropped.
    fn receive(&mut self, id: FlowId, cx: &mut Context<'_, W>) -> Result<(), Errno> {
        let Some(flow) = self.flows.get_mut(id) else { return Ok(()) };
        let v4 = flow.key.guest.is_ipv4();
        let at = ethernet::HEADER_LEN + if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        let Some(mut reserved) = cx.link.reserve_head(MAX_LEN) else {
            if received(flow.socket.receive(&mut []))?.is_some() {
                self.counters.link_full += 1;
            }
            return Ok(());
        };
        let slot = reserved.head();
        let Some(received) = received(flow.socket.receive(slot.get_mut(at..).unwrap_or_default()))? else {
            return Ok(());
        };
        let (key, from) = (flow.key, received.from.ip());
        let source = match key.target {
            Target::One { remote, peer, .. } if from == peer => Some(remote),
            // Several hosts may reply to a request to a group.
            _ => cx.settings.source_to_guest(cx.guest, from),
        };
        let reply = if v4 { v4::ECHO_REPLY } else { v6::ECHO_REPLY };
        let message = slot.get(at..at + received.len).and_then(Message::parse);
        let message = message.map(|message| *message.header);
        let message = message.filter(|header| header.kind == reply && !received.truncated);
        let (Some(source), Some(message)) = (source, message) else {
            self.counters.undeliverable += 1;
            return Ok(());
        };
        let load = load(received.len - HEADER_LEN, source);
        let Some(_) = cx.rate_limit.pass(Direction::Inbound, load, cx.now, &mut self.counters) else {
            return Ok(());
        };
        let frame = Outgoing {
            hop_limit: received.hop_limit.unwrap_or(UNKNOWN_HOP_LIMIT),
            traffic_class: received.traffic_class,
            ..cx.settings.headers(cx.guest, source, key.guest)
        };
        let header = Header::new(reply, 0, echo(key.id, message.echo_sequence()));
        let Some(written) = frame.icmp(slot, header, received.len - HEADER_LEN) else {
            self.counters.undeliverable += 1;
            return Ok(());
        };
        let sent = if cx.settings.must_fragment(&frame, received.len - HEADER_LEN) {
            self.large.clear();
            self.large.extend_from_slice(slot.get(at..at + received.len).unwrap_or_default());
            self.fragmenter.icmp(&frame, &self.large, cx)
        } else {
            reserved.commit(written.len, &written.offload)
        };
        self.counters.note_sent(Some(sent));
        self.note(id, false, cx);
        if cx.guard.reports() {
            self.count_reply(id, source, received.len - HEADER_LEN);
        }
        Ok(())
    }

    /// Reports to the guest the errors that its requests caused.
    fn report_errors(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        if let Some(Flow { key, socket, accounts, .. }) = self.flows.get_mut(id) {
            drain(*key, socket, accounts, cx);
        }
    }
}

/// Reads the errors of a flow's socket, and reports to the guest the errors that its requests caused. See
/// [`host::drain`].
fn drain<W: World>(
    key: Key,
    socket: &mut PingOf<W>,
    accounts: &mut VecDeque<Account>,
    cx: &mut Context<'_, W>,
) -> Option<Report> {
    let mut bytes = [0; HEADER_LEN + MAX_UPPER];
    host::drain(socket, &mut bytes, MAX_BATCH, |error, quoted| {
        let (Some(report), Some(message)) = (error.report, Message::parse(quoted)) else { return };
        let (remote, peer) = match key.target {
            Target::Any { .. } => (error.destination.ip(), error.destination.ip()),
            Target::One { remote, peer, .. } => (remote, peer),
        };
        if let Some(errno) = report.errno(peer.is_ipv4()) {
            note_failure(accounts, remote, errno);
        }
        let source = shown_offender(cx.settings, cx.guest, error.offender, peer, remote);
        send_error(source, report, &quote(key, remote, *message.header, message.payload), cx);
    })
}

/// The account of a destination of a flow.
fn account_of(accounts: &mut VecDeque<Account>, remote: IpAddr) -> Option<&mut Account> {
    accounts.iter_mut().find(|account| account.ends().is_some_and(|ends| ends.remote.ip() == remote))
}

/// Reports that a request to a destination did not arrive.
fn note_failure(accounts: &mut VecDeque<Account>, remote: IpAddr, errno: Errno) {
    account_of(accounts, remote).into_iter().for_each(|account| account.note_failure(errno));
}

/// The load of a message with `len` bytes of payload, for the rate limit.
const fn load(len: usize, remote: IpAddr) -> Load {
    Load { len, segment_size: None, v4: remote.is_ipv4() }
}

/// The received message. None if no message was received.
fn received(result: Result<Received, SocketError>) -> Result<Option<Received>, Errno> {
    match result {
        Ok(received) => Ok(Some(received)),
        Err(SocketError::WouldBlock) => Ok(None),
        Err(SocketError::Failed(errno)) => Err(errno),
    }
}

/// The target of a request from `guest` to `remote`: requests with the same target share a socket. `peer` is `remote`
/// on the host's side.
fn target<W: World>(guest: IpAddr, remote: IpAddr, peer: SocketAddr, cx: &mut Context<'_, W>) -> Target {
    let source = cx.outbound_source(guest, peer);
    let peer = peer.ip();
    let same =
        remote == peer && (is_group(remote) || cx.settings.source_to_guest(cx.guest, peer) == Some(remote));
    if same { Target::Any { source } } else { Target::One { remote, peer, source } }
}

const fn echo(id: u16, sequence: u16) -> u32 {
    (id as u32) << 16 | sequence as u32
}

/// The part of a request that an error message quotes, with the identifier that the guest knows. The checksum is zero.
fn quote(key: Key, remote: IpAddr, header: Header, payload: &[u8]) -> Quote<'_> {
    let header = Header::new(header.kind, header.code, echo(key.id, header.echo_sequence()));
    let mut bytes = [0; HEADER_LEN];
    bytes.copy_from_slice(header.as_bytes());
    Quote {
        guest: key.guest,
        remote,
        protocol: protocol::icmp(key.guest.is_ipv4()),
        header: bytes,
        payload,
        fragment: None,
    }
}
