//! TCP between the guest and sockets of the host (behaviour §6).
//!
//! A connection has two halves that share a socket. [`receive`] carries the guest's segments to the socket, and
//! [`send`] carries the socket's bytes to the guest. [`conn`] joins the halves, and [`handshake`] begins a connection.
//! This module finds the connection for a segment, an event or a deadline, and ends connections.

mod check;
mod checking;
mod conn;
mod dial;
mod emit;
mod handshake;
mod listing;
mod marks;
mod questions;
mod queue;
mod rare;
mod receive;
mod recovery;
mod redial;
mod resets;
mod review;
mod rto;
mod send;
mod service;
mod socket;
mod totals;
mod turns;

use alloc::{boxed::Box, collections::VecDeque, vec::Vec};
use core::{
    fmt,
    hash::{Hash, Hasher},
    net::SocketAddr,
};

use siphasher::sip::SipHasher13;
use wire::{
    domain::MAX_DOTTED_LEN,
    frame::Packet,
    payload::Payload,
    protocol,
    tcp::{Flags, Segment, Seq},
};

use self::{
    check::Check,
    conn::{Connection, End, Phase, Turn},
    dial::Dial,
    queue::ChunkPool,
    rare::{Parts, Rare},
    recovery::Recovery,
    redial::Redial,
    resets::Reset,
    socket::Socket,
    turns::Waiting,
};
use crate::{
    addr::Settings,
    allocation,
    context::{Context, TcpOf, World},
    events::{Abort, How, Start},
    first_bytes::HostName,
    flow::{Endpoints, Ends, FlowId, Flows, Kind, Protocol},
    forward::spec::Direction,
    guard::Admission,
    host::{Errno, Host as _, Readiness, Report, TcpSocket},
    icmp::{Quote, send_router_error},
    link::Full,
    memory::PayloadOf,
    pressure::Pressure,
    quota::allocation as allocated,
    resolvers::{DNS, Health},
    timer::{Instant, Timers},
};

/// The bits of a traffic class that are copied to the other side (RFC 2474). ECN bits are not copied, since the
/// segments on the two sides differ.
const DSCP: u8 = 0xfc;

/// Counts of connections since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were begun by either side.
    pub opened: u64,
    /// SYNs that were refused: the address was not allowed, there was no socket, or the table was full.
    pub refused: u64,
    /// Connections that ended with a reset of either side.
    pub reset: u64,
}

/// All connections of one guest.
pub struct Tcp<W: World> {
    flows: Flows<Connection<W>>,
    pool: ChunkPool,
    /// Connections to handle at the end of the round.
    touched: VecDeque<FlowId>,
    /// Connections with more to send: their turn has ended, or the link is full.
    runnable: VecDeque<FlowId>,
    /// Connections that wait for tokens.
    waiting: Waiting,
    /// Connections over which the guest asks questions that the guard judges, in the order in which they were opened.
    services: VecDeque<FlowId>,
    /// Which resolvers have failed recently.
    health: Health,
    /// Resets that the guest could not get yet.
    kept_resets: VecDeque<Reset>,
    /// Secret for initial sequence numbers.
    secret: [u8; 16],
    /// Counts of connections since the start.
    pub counters: Counters,
}

impl<W: World> Tcp<W> {
    /// An empty table for at most `limit` connections. All their receive queues together may use `queue_memory` bytes.
    /// `hash_key` and `secret` must be random.
    #[must_use]
    pub fn new(limit: usize, queue_memory: usize, hash_key: [u8; 16], secret: [u8; 16]) -> Self {
        Self {
            flows: Flows::new(Kind::Tcp, limit, hash_key),
            pool: ChunkPool::new(queue_memory),
            touched: VecDeque::new(),
            runnable: VecDeque::new(),
            waiting: Waiting::default(),
            services: VecDeque::new(),
            health: Health::default(),
            kept_resets: VecDeque::new(),
            secret,
            counters: Counters::default(),
        }
    }

    /// Memory of a connection, in bytes, without the bytes in its queue: its slot, its deadline, its places in four lists, a
    /// reset in a list that is copied when it grows, and the parts that it does not always have.
    pub(crate) const BYTES: usize = Flows::<Connection<W>>::BYTES
        + Timers::<FlowId>::BYTES
        + 4 * size_of::<FlowId>()
        + 2 * size_of::<Reset>()
        + Recovery::BYTES
        + allocated(size_of::<Parts>())
        + allocated(size_of::<Dial>())
        + allocated(size_of::<Check>())
        + allocated(size_of::<HostName>())
        + allocated(MAX_DOTTED_LEN);
    /// Memory of a chunk of a queue, in bytes, with its share of the lists of chunks and of ranges.
    pub(crate) const CHUNK_BYTES: (usize, usize) = (queue::CHUNK_BYTES, queue::CHUNK_LEN);

    /// Reserves memory for the tables at their limits. Returns false if there is none.
    pub(crate) fn reserve(&mut self, is_limited: bool) -> bool {
        let limit = self.flows.limit();
        let Waiting { to_host, to_guest } = &mut self.waiting;
        let turns = if is_limited { limit } else { 0 };
        self.flows.reserve(limit)
            && allocation::reserve_exact([&mut self.touched, &mut self.runnable], limit + 1)
            && allocation::reserve_exact([to_host, to_guest], turns)
    }

    /// Number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there are no connections.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Memory of the receive queues of all connections at present, in bytes.
    #[must_use]
    pub fn queue_memory(&self) -> usize {
        self.pool.lent_bytes()
    }

    /// Handles a segment of the guest. Answers to it may be sent only at the end of the round.
    pub fn on_segment(
        &mut self,
        packet: &Packet<'_, PayloadOf<'_, W::Memory>>,
        segment: &Segment<'_, PayloadOf<'_, W::Memory>>,
        cx: &mut Context<'_, W>,
    ) {
        let ends = Ends {
            guest: packet.source,
            remote: packet.destination,
            guest_port: segment.header.source_port.get(),
            remote_port: segment.header.destination_port.get(),
        };
        let (flags, class) = (segment.flags(), packet.traffic_class & DSCP);
        let opens = flags & (Flags::SYN | Flags::ACK | Flags::RST) == Flags::SYN;
        let found = self.flows.find(&ends).filter(|&id| {
            // The connection has ended, and will be removed at the end of the round. Its ports are free for a new
            // connection.
            !opens || self.flows.get(id).is_some_and(|connection| !connection.is_finished())
        });
        if opens && found.is_none() {
            if let Some(ended) = self.flows.find(&ends) {
                self.send_due(ended, 0, cx);
            }
            self.open(ends.endpoints(), class, segment, cx);
        } else if let Some(id) = found {
            let Some(connection) = self.flows.get_mut(id) else { return };
            connection.set_class(class);
            let step = connection.on_segment(segment, &mut self.pool, cx);
            self.after_step(id, step, cx);
        } else if !flags.contains(Flags::RST) && host_destination(&ends.endpoints(), cx.settings).is_some() {
            Reset::answering(ends, 0, segment).send(cx).ok();
        }
    }

    /// Handles a SYN of the guest that opens a connection (behaviour §6.1).
    fn open(&mut self, ends: Endpoints, class: u8, syn: &Segment<'_, impl Payload>, cx: &mut Context<'_, W>) {
        let Some(destination) = host_destination(&ends, cx.settings) else {
            self.counters.refused += 1; // no answer (behaviour §6.1.1, R-61)
            cx.note_invalid(Protocol::Tcp, &ends);
            if cx.settings.is_virtual(ends.remote.ip()) {
                report_failure(&ends, syn.seq(), Errno::ENETUNREACH, cx);
            }
            return;
        };
        let Some(id) = self.next_id(cx) else {
            self.counters.refused += 1; // no answer (behaviour §6.1.1, R-61)
            cx.begin(Protocol::Tcp, &ends, destination).close_unopened(Errno::ENFILE);
            return;
        };
        if ends.remote.port() == DNS && cx.guard.judges_questions() {
            return self.open_service(ends, class, syn, cx);
        }
        let admission = cx.admits(Protocol::Tcp, &ends, destination);
        if admission == Admission::Refuse {
            self.counters.refused += 1;
            Reset::answering(ends.into(), 0, syn).send(cx).ok();
            return;
        }
        let mut account = cx.begin(Protocol::Tcp, &ends, destination);
        let by_name = admission != Admission::Admit;
        let resolvers = cx.settings.resolvers(ends.remote, &self.health, cx.now);
        let Some(mut rare) = Rare::reserve(account.is_open() || by_name || resolvers.is_some()) else {
            self.counters.refused += 1;
            account.close_unopened(Errno::ENOMEM);
            return;
        };
        rare.set_account(account);
        if let Some(parts) = rare.reserved() {
            parts.dial = resolvers.map(|servers| Box::new(Dial::new(servers, class)));
        }
        let connecting = match rare.dial_mut() {
            Some(dial) => dial.connect(id, &mut self.health, cx),
            None => {
                let source = cx.outbound_source(ends.guest.ip(), destination);
                cx.host.tcp_connect(id, source, destination, class)
            }
        };
        let socket = match connecting {
            Ok(socket) => socket,
            Err(errno) => {
                self.counters.refused += 1;
                rare.account_mut().into_iter().for_each(|account| account.close_unopened(errno));
                if report_failure(&ends, syn.seq(), errno, cx) == Failure::NeedsReset {
                    Reset::answering(ends.into(), 0, syn).send(cx).ok();
                }
                return;
            }
        };
        let iss = self.initial_sequence(&ends, cx.now);
        if log::log_enabled!(log::Level::Debug) {
            let Endpoints { guest, remote } = ends;
            let destination = rare.dial().and_then(Dial::server).unwrap_or(destination);
            log::debug!("{id}: {guest} -> {remote}{}", HostSide(socket.local(), "->", Some(destination)));
        }
        let mut connection = Connection::from_guest(ends, Socket::Host(socket), iss, syn, class, cx);
        connection.rare = rare;
        if let Admission::Named(claim) = admission {
            connection.await_name(claim).ok(); // memory is reserved
        }
        let id = self.insert(connection);
        if by_name
            && let Some(connection) = id.and_then(|id| self.flows.get_mut(id))
            && let Some(parts) = connection.rare.reserved()
        {
            parts.hold = cx.guard.hold(ends.remote.ip(), cx.now);
        }
    }

    /// Handles a connection that was accepted on the host (behaviour §6.2). `ends` are its ends as the guest will see
    /// them.
    ///
    /// # Errors
    /// Returns the socket, which the caller must reset, if the limit is reached or the ends are in use.
    pub fn accept(
        &mut self,
        ends: Endpoints,
        mut socket: TcpOf<W>,
        cx: &mut Context<'_, W>,
    ) -> Result<(), TcpOf<W>> {
        let free = self.flows.find(&ends.into()).is_none();
        let id = self.next_id(cx).filter(|_| free);
        let watched = id.filter(|&id| cx.host.tcp_watch(id, &socket).is_ok());
        let start = Start::of(Protocol::Tcp, Direction::Inbound, ends);
        let mut account = cx.guard.begin_unjudged(start, cx.now);
        let Some((id, mut rare)) = watched.zip(Rare::reserve(account.is_open())) else {
            self.counters.refused += 1;
            account.close_unopened(Errno::ENFILE);
            socket.reset_on_close();
            return Err(socket);
        };
        if log::log_enabled!(log::Level::Debug) {
            let Endpoints { guest, remote } = ends;
            log::debug!("{id}: {guest} <- {remote}{}", HostSide(socket.local(), "<-", None));
        }
        let iss = self.initial_sequence(&ends, cx.now);
        let mut connection = Connection::from_host(ends, socket, iss, cx);
        rare.set_account(account);
        connection.rare = rare;
        self.insert(connection);
        Ok(())
    }

    /// The id that the next connection will get. Reserves all memory that it needs, except for queued bytes. None if
    /// the table is full, or if there is no memory.
    fn next_id(&mut self, cx: &mut Context<'_, W>) -> Option<FlowId> {
        let id = self.flows.next_timed_id(cx.timers)?;
        let slots = self.flows.slots();
        let Waiting { to_host, to_guest } = &mut self.waiting;
        let has_memory =
            |direction, list| !cx.rate_limit.is_limited(direction) || allocation::reserve([list], slots);
        let has_memory = allocation::reserve([&mut self.touched, &mut self.runnable], slots)
            && has_memory(Direction::Outbound, to_host)
            && has_memory(Direction::Inbound, to_guest);
        has_memory.then_some(id)
    }

    fn insert(&mut self, connection: Connection<W>) -> Option<FlowId> {
        match self.flows.insert(connection) {
            Ok(id) => {
                self.counters.opened += 1;
                self.touch(id);
                Some(id)
            }
            Err(mut connection) => {
                connection.report_end(How::Displaced);
                None
            }
        }
    }

    /// Handles the readiness of a connection's socket.
    pub fn on_ready(&mut self, id: FlowId, readiness: Readiness, cx: &mut Context<'_, W>) {
        if self.redial_if_failed(id, readiness, cx) == Redial::Done {
            return;
        }
        let Some(connection) = self.flows.get_mut(id) else { return };
        let step = connection.on_ready(readiness, &mut self.pool, cx);
        self.after_step(id, step, cx);
    }

    /// Handles a connection's deadline, if it has been reached.
    pub fn on_deadline(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(connection) = self.flows.get_mut(id) else { return };
        let step = connection.on_deadline(id, &mut self.pool, cx);
        self.after_step(id, step, cx);
        self.redial_if_silent(id, cx);
    }

    /// Ends a round: sends the acknowledgments and data that the segments and events of the round have made due.
    pub(crate) fn end_round(&mut self, cx: &mut Context<'_, W>) {
        if cx.rate_limit.is_limited(Direction::Outbound) {
            self.take_turns_to_host(cx);
        }
        for _ in 0..self.touched.len() {
            let Some(id) = self.touched.pop_front() else { break };
            if let Some(connection) = self.flows.get_mut(id) {
                connection.touched = false;
                self.send_due(id, 0, cx);
            }
        }
        allocation::rewind_if_empty(&mut self.touched);
    }

    /// Gives a turn to send to each connection that has more to send.
    pub(crate) fn take_turns(&mut self, cx: &mut Context<'_, W>) -> Pressure {
        if self.send_kept(cx) == Err(Full) {
            return Pressure::LinkFull;
        }
        for _ in 0..self.runnable.len() {
            let Some(id) = self.runnable.pop_front() else { break };
            if let Some(connection) = self.flows.get_mut(id) {
                connection.runnable = false;
                if self.send_due(id, 0, cx) == Turn::LinkFull {
                    return Pressure::LinkFull;
                }
            }
        }
        allocation::rewind_if_empty(&mut self.runnable);
        if self.runnable.is_empty() { Pressure::None } else { Pressure::MoreToSend }
    }

    /// Handles the result of a step of a connection: puts the connection on the list for the end of the round, or ends
    /// it now.
    fn after_step(&mut self, id: FlowId, step: Result<(), End>, cx: &mut Context<'_, W>) {
        match step {
            Ok(()) => self.touch(id),
            Err(end) => self.end(id, end, cx),
        }
    }

    /// Puts a connection on the list of connections to handle at the end of the round.
    fn touch(&mut self, id: FlowId) {
        if let Some(connection) = self.flows.get_mut(id).filter(|connection| !connection.touched) {
            connection.touched = true;
            allocation::push(&mut self.touched, id, |&id| self.flows.get(id).is_some());
        }
    }

    /// Sends the segments of a connection that are due, sets its deadline, and removes the connection if it has ended.
    fn send_due(&mut self, id: FlowId, granted: u32, cx: &mut Context<'_, W>) -> Turn {
        let Some(connection) = self.flows.get_mut(id) else { return Turn::Idle };
        match connection.send_due(id, granted, cx) {
            Ok(Turn::Finished) => {
                if let Some(mut connection) = self.remove(id, cx) {
                    let refused = connection.phase == Phase::Refused;
                    connection.report_end(if refused { How::Refused } else { How::Closed });
                }
                log::debug!("{id}: ended");
                Turn::Finished
            }
            Ok(turn) => {
                let waits = matches!(turn, Turn::MoreToSend | Turn::LinkFull);
                if waits && !connection.runnable {
                    connection.runnable = true;
                    allocation::push(&mut self.runnable, id, |&id| self.flows.get(id).is_some());
                }
                if turn == Turn::NeedsTokens {
                    self.await_turn_to_guest(id);
                }
                turn
            }
            Err(end) => {
                self.end(id, end, cx);
                Turn::Finished
            }
        }
    }

    fn remove(&mut self, id: FlowId, cx: &mut Context<'_, W>) -> Option<Connection<W>> {
        let mut connection = self.flows.remove(id)?;
        connection.receive.release(&mut self.pool);
        connection.deadline.withdraw(cx.timers, id);
        if let Some(hold) = connection.rare.take_hold() {
            cx.guard.release(hold);
        }
        Some(connection)
    }

    /// Aborts a connection on both sides (behaviour §6.7, §6.8).
    fn end(&mut self, id: FlowId, end: End, cx: &mut Context<'_, W>) {
        let Some(mut connection) = self.remove(id, cx) else { return };
        log::debug!("{id}: {end}");
        connection.report_end(end.into());
        self.counters.reset += 1;
        if let (End::SocketFailed(errno), Phase::Connecting) = (end, connection.phase)
            && report_failure(&connection.ends.endpoints(), connection.receive.next - 1, errno, cx)
                == Failure::Reported
        {
            return;
        }
        connection.socket.reset_on_close();
        if end != End::GuestReset {
            self.send_or_keep(connection.reset(), cx);
        }
    }

    /// Reports the end of all connections, because the program ends.
    pub(crate) fn report_exit(&mut self) {
        self.flows.values_mut().for_each(|connection| connection.report_end(How::Exit));
    }

    /// Aborts all connections on both sides, because the guest can no longer be reached.
    pub(crate) fn abort_all(&mut self, cx: &mut Context<'_, W>) {
        let ids: Vec<FlowId> = self.flows.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.end(id, End::Abort(Abort::Gone), cx));
        self.forget_kept();
    }

    /// An initial sequence number (RFC 6528): a secret function of the ends, plus a clock with a period of 4 us.
    fn initial_sequence(&self, ends: &Endpoints, now: Instant) -> Seq {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        ends.hash(&mut hasher);
        Seq((hasher.finish() as u32).wrapping_add((now.as_micros() / 4) as u32))
    }
}

/// The host's side of a connection, as text for messages: the socket's own address, the direction, and the peer's
/// address.
struct HostSide(Option<SocketAddr>, &'static str, Option<SocketAddr>);

impl fmt::Display for HostSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Some(local), arrow, peer) = self else { return Ok(()) };
        match peer {
            Some(peer) => write!(f, " (host {local} {arrow} {peer})"),
            None => write!(f, " (host {local})"),
        }
    }
}

impl From<End> for How {
    fn from(end: End) -> Self {
        match end {
            End::Abort(why) => Self::Aborted(why),
            End::Refused => Self::Refused,
            End::Forbidden => Self::Forbidden,
            End::Requested => Self::Requested,
            End::GuestReset => Self::GuestReset,
            End::SocketFailed(errno) => Self::Failed(errno),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abort(_) => f.write_str("aborted"),
            Self::Refused => f.write_str("refused"),
            Self::Forbidden => f.write_str("forbidden by new rules"),
            Self::Requested => f.write_str("ended on request"),
            Self::GuestReset => f.write_str("reset by the guest"),
            Self::SocketFailed(Errno(number)) => write!(f, "the host's socket failed (error {number})"),
        }
    }
}

/// The destination, on the host's side, of a connection between these ends. None if the destination is not allowed,
/// such as a multicast address.
fn host_destination(ends: &Endpoints, settings: &Settings) -> Option<SocketAddr> {
    let valid = ends.guest.port() != 0 && settings.valid_guest_source(ends.guest.ip());
    settings.to_host(Protocol::Tcp, ends.remote).ok().filter(|_| valid)
}

/// What the guest has received about a failed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The ICMP error that a network would send, or nothing if the peer was silent.
    Reported,
    /// Nothing yet. The guest must get a reset, as for a refused connection.
    NeedsReset,
}

/// Reports to the guest why its SYN with sequence number `iss` failed. Like a network, it sends an ICMP error, or
/// nothing if the peer was silent.
fn report_failure<W: World>(ends: &Endpoints, iss: Seq, errno: Errno, cx: &mut Context<'_, W>) -> Failure {
    if errno == Errno::ETIMEDOUT {
        return Failure::Reported;
    }
    let Some(report) = Report::of_refusal(errno, ends.guest.is_ipv4()) else { return Failure::NeedsReset };
    let mut header = [0; 8];
    header[..2].copy_from_slice(&ends.guest.port().to_be_bytes());
    header[2..4].copy_from_slice(&ends.remote.port().to_be_bytes());
    header[4..].copy_from_slice(&iss.0.to_be_bytes());
    let (guest, remote) = (ends.guest.ip(), ends.remote.ip());
    let quote = Quote { guest, remote, protocol: protocol::TCP, header, payload: &[], fragment: None };
    send_router_error(report, &quote, cx);
    Failure::Reported
}
