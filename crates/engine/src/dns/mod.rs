//! Forwarding of DNS: the guest's queries are sent to the host's resolvers (docs/design/dns.md).
//!
//! Every query over UDP passes through [`Dns::on_datagram`], and every answer to the guest through `Dns::answer`. With
//! rules by name, the guard judges queries and answers: see `judge`.

pub mod answers;
mod ask;
pub mod ech;
mod exchange;
mod judge;
mod listing;
mod over_tcp;
mod query;
pub mod refusal;
mod review;

#[cfg(test)]
mod tests;

use alloc::{vec, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use wire::{
    dns::{MAX_HEAD_LEN, Question},
    frame::{MAX_LEN, Outgoing, Packet},
    offload::{Offload, SegmentKind},
    payload::Payload,
    udp,
};

use crate::{
    context::{Context, World},
    drops::Drops,
    events::How,
    flow::{Endpoints, FlowId, Flows, HashKey, Kind, Protocol},
    forward::spec::Direction,
    fragmentation::Fragmenter,
    host::{Readiness, SocketError, UNKNOWN_HOP_LIMIT, UdpSocket},
    idle::{Chain, Links},
    memory::PayloadOf,
    quota::{Part, allocation},
    rate_limit::Load,
    resolvers::{DNS, Health},
    share::{Notice, Share},
    timer::Timers,
};
use exchange::{Asked, Exchange, Io, Key, Verdict};
use over_tcp::Progress;

/// Maximum length in bytes of a query that is stored for other servers, and of an answer that is stored while other
/// servers may have a better one.
const MAX_KEPT: usize = 4096;

/// Maximum number of datagrams received from a socket in one turn.
const MAX_BATCH: u8 = 16;

/// Limits on memory, sockets and time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Limit of sockets: an exchange has one socket for each server that was sent a query.
    pub files: Share,
    /// Maximum amount of memory for stored queries and answers, in bytes.
    pub bytes: usize,
    /// Time without a datagram after which a session ends.
    pub idle: Duration,
    /// The same time, for a session with more than one datagram in each direction.
    pub idle_stream: Duration,
}

/// All queries that wait for an answer, and all sessions.
pub struct Dns<W: World> {
    exchanges: Flows<Exchange<W>>,
    /// The slots of `exchanges`, the oldest exchange first.
    by_age: Chain,
    links: Links,
    files: usize,
    bytes: usize,
    health: Health,
    limits: Limits,
    /// Answers for the guest's TCP connections, with their memory.
    answers: Vec<(FlowId, Vec<u8>, Part)>,
    /// Secret for the IDs of rebuilt queries.
    secret: HashKey,
    queries: u64,
    /// Buffer for datagrams from servers.
    buffer: Vec<u8>,
    fragmenter: Fragmenter,
    notice: Notice,
    /// Exchanges that were ended to make room for new ones.
    ended: u64,
    counters: Drops,
}

impl<W: World> Dns<W> {
    /// An empty table of queries. `hash_key` and `secret` must be random.
    #[must_use]
    pub fn new(limits: Limits, hash_key: [u8; 16], secret: [u8; 16]) -> Self {
        Self {
            exchanges: Flows::new(Kind::Dns, usize::MAX, hash_key),
            by_age: Chain::default(),
            links: Links::default(),
            files: 0,
            bytes: 0,
            health: Health::default(),
            limits,
            answers: Vec::new(),
            secret: HashKey(secret),
            queries: 0,
            buffer: Vec::new(),
            fragmenter: Fragmenter::default(),
            notice: Notice::default(),
            ended: 0,
            counters: Drops::default(),
        }
    }

    /// Memory of an exchange, in bytes, without stored queries and answers: its slot, its deadline, its place in a list, its
    /// servers, and the head of its query.
    pub(crate) const BYTES: usize = Flows::<Exchange<W>>::BYTES
        + Timers::<FlowId>::BYTES
        + Links::BYTES
        + allocation(4 * size_of::<Asked<W>>())
        + allocation(MAX_HEAD_LEN);

    /// Reserves memory for the tables at their limits. Returns false if there is none.
    pub(crate) fn reserve(&mut self) -> bool {
        let exchanges = self.limits.files.most + 1;
        self.exchanges.reserve(exchanges) && self.links.reserve_all(exchanges)
    }

    /// Counts of the datagrams that were dropped.
    #[must_use]
    pub const fn counters(&self) -> &Drops {
        &self.counters
    }

    /// How many queries and sessions were ended to make room for new ones.
    #[must_use]
    pub const fn ended(&self) -> u64 {
        self.ended
    }

    /// How many queries and sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// Whether there are no queries and sessions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Handles a datagram of the guest to the host's resolvers. With segmentation in `offload`, it is a train of
    /// datagrams.
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
        if !cx.settings.valid_guest_source(endpoints.guest.ip()) || endpoints.guest.port() == 0 {
            self.counters.invalid += 1;
            return cx.note_invalid(Protocol::Udp, &endpoints);
        }
        let train = offload.segmentation.filter(|train| train.kind == SegmentKind::Udp && train.size > 0);
        let (len, v4) = (datagram.payload.len(), packet.source.is_ipv4());
        let load = Load { len, segment_size: train.map(|train| train.size), v4 };
        let counters = &mut self.counters;
        let Some(load) = cx.rate_limit.pass(Direction::Outbound, load, cx.now, counters) else { return };
        let payload = datagram.payload.slice(0..load.len);
        let size = load.segment_size.map_or(payload.len(), usize::from).max(1);
        for start in (0..payload.len().max(1)).step_by(size) {
            self.on_message(endpoints, payload.slice(start..start + size), packet.traffic_class, cx);
        }
    }

    fn on_message(
        &mut self,
        endpoints: Endpoints,
        message: PayloadOf<'_, W::Memory>,
        traffic_class: u8,
        cx: &mut Context<'_, W>,
    ) {
        if endpoints.remote.port() == DNS && cx.guard.judges_questions() {
            let mut query = vec![0; message.len().min(MAX_KEPT)];
            message.copy_to(&mut query);
            return self.on_judged_query(endpoints, None, query, cx);
        }
        let mut head = [0; MAX_HEAD_LEN];
        let len = message.copy_to(&mut head);
        let head = &head[..len];
        let question = if endpoints.remote.port() == DNS { Question::parse(head) } else { None };
        let key = Key { endpoints, id: question.map(|question| question.id), stream: None };
        if let Some(id) = self.exchanges.find(&key) {
            let again = self.exchanges.get(id).is_some_and(|exchange| exchange.is_about(question.as_ref()));
            if again {
                return self.ask_again(id, head, message, traffic_class, cx);
            }
            self.end(cx.timers, id, How::Displaced);
        }
        self.ask_first(key, question.as_ref(), head, message, traffic_class, cx);
    }

    /// Handles the readiness of a socket of an exchange.
    pub fn on_ready(&mut self, id: FlowId, readiness: Readiness, cx: &mut Context<'_, W>) {
        let mut buffer = core::mem::take(&mut self.buffer);
        buffer.resize(MAX_LEN, 0);
        // The event does not identify the socket, so all sockets of the exchange are tried. There are only a few.
        // Sockets that are opened meanwhile are not tried.
        let sockets = self.exchanges.get(id).map_or(0, |exchange| exchange.asked.len());
        for index in 0..sockets {
            self.on_socket_ready(id, index, readiness, &mut buffer, cx);
        }
        self.buffer = buffer;
    }

    fn on_socket_ready(
        &mut self,
        id: FlowId,
        index: usize,
        readiness: Readiness,
        buffer: &mut [u8],
        cx: &mut Context<'_, W>,
    ) {
        let asked = self.exchanges.get_mut(id).and_then(|exchange| exchange.asked.get_mut(index));
        let Some(Asked { server, io, waits }) = asked else { return };
        match io {
            Io::Datagram(_) => {
                if readiness.error {
                    self.on_errors(id, index, cx);
                }
                if readiness.readable {
                    self.receive(id, index, buffer, cx);
                }
            }
            Io::Stream(_) if !*waits => {}
            Io::Stream(stream) => match stream.on_ready(readiness, buffer) {
                Progress::Pending => {}
                Progress::Answer(answer) => self.on_answer(id, index, (None, 0), &answer, cx),
                Progress::Failed(errno) => {
                    let server = *server;
                    self.note_failure(id, server, errno, cx);
                    self.on_silent(id, index, cx);
                }
            },
        }
    }

    /// Receives datagrams from a socket.
    fn receive(&mut self, id: FlowId, index: usize, buffer: &mut [u8], cx: &mut Context<'_, W>) {
        for _ in 0..MAX_BATCH {
            let asked = self.exchanges.get_mut(id).and_then(|exchange| exchange.asked.get_mut(index));
            let Some(Asked { server, io: Io::Datagram(io), .. }) = asked else { return };
            let received = match io.receive((&mut *buffer).into()) {
                Ok(received) => received,
                Err(SocketError::WouldBlock) => return,
                Err(SocketError::Failed(_)) => return self.on_errors(id, index, cx),
            };
            let expected = (server.ip(), server.port());
            if received.truncated || (received.from.ip(), received.from.port()) != expected {
                self.counters.undeliverable += 1;
                continue;
            }
            let load =
                Load { len: received.len, segment_size: received.segment_size, v4: expected.0.is_ipv4() };
            let counters = &mut self.counters;
            let Some(load) = cx.rate_limit.pass(Direction::Inbound, load, cx.now, counters) else { continue };
            let payload = buffer.get(..load.len).unwrap_or_default();
            let size = load.segment_size.map_or(payload.len(), usize::from).max(1);
            let fields = (received.hop_limit, received.traffic_class);
            if payload.is_empty() {
                self.on_answer(id, index, fields, payload, cx);
            }
            for answer in payload.chunks(size) {
                self.on_answer(id, index, fields, answer, cx);
            }
        }
    }

    /// Handles a message of a server. `hop_limit` and `traffic_class` are those of its packet.
    fn on_answer(
        &mut self,
        id: FlowId,
        index: usize,
        (hop_limit, traffic_class): (Option<u8>, u8),
        payload: &[u8],
        cx: &mut Context<'_, W>,
    ) {
        let Some(exchange) = self.exchanges.get_mut(id) else { return };
        let endpoints = exchange.key.endpoints;
        match exchange.judge(index, payload) {
            Verdict::NoAnswer => self.counters.undeliverable += 1,
            Verdict::Session => {
                self.settle(id, index);
                self.note_session(id, false, cx);
                self.count_answer(id, payload.len());
                self.send_answer(endpoints, hop_limit, traffic_class, payload, cx);
            }
            verdict @ (Verdict::Final | Verdict::AskAnother) => {
                exchange.report(index, &mut self.health, cx.now);
                if verdict == Verdict::AskAnother && self.keep(id, payload) {
                    return self.ask_next_or_wait(id, cx);
                }
                self.count_answer(id, payload.len());
                let Some(exchange) = self.end(cx.timers, id, How::Closed) else { return };
                self.answer(&exchange, (hop_limit, traffic_class), payload, cx);
            }
        }
    }

    fn count_answer(&mut self, id: FlowId, len: usize) {
        if let Some(exchange) = self.exchanges.get_mut(id) {
            exchange.account.count(false, len, 1);
        }
    }

    /// Sends an answer to the guest. Its source is the address to which the guest sent the query.
    fn send_answer(
        &mut self,
        endpoints: Endpoints,
        hop_limit: Option<u8>,
        traffic_class: u8,
        payload: &[u8],
        cx: &mut Context<'_, W>,
    ) {
        let Endpoints { guest, remote } = endpoints;
        let headers = cx.settings.headers(cx.guest, remote.ip(), guest.ip());
        let hop_limit = hop_limit.unwrap_or(UNKNOWN_HOP_LIMIT);
        let frame = Outgoing { hop_limit, traffic_class, ..headers };
        let ports = (remote.port(), guest.port());
        self.fragmenter.udp((&frame, ports), payload, None, &mut self.counters, cx);
    }
}
