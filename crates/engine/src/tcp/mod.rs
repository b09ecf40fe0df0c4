//! TCP between the guest and sockets of the host (behaviour §6).
//!
//! A connection is two halves that share a socket: [`receive`] takes segments of the guest to the socket,
//! [`send`] takes the socket's bytes to the guest. [`conn`] joins them, [`handshake`] begins them; this
//! module finds the connection for a segment, an event or a deadline, and ends it.

mod conn;
mod dial;
mod emit;
mod handshake;
mod queue;
mod receive;
mod recovery;
mod rto;
mod send;

use alloc::{boxed::Box, collections::VecDeque, vec::Vec};
use core::{
    fmt,
    hash::{Hash, Hasher},
    net::SocketAddr,
};

use siphasher::sip::SipHasher13;
use wire::{
    frame::Packet,
    payload::Payload,
    protocol,
    tcp::{Flags, Options, Segment, Seq},
};

use self::{
    conn::{Connection, End, Phase, Rest},
    dial::Dial,
    emit::Fields,
    queue::SlotPool,
};
use crate::{
    addr::Settings,
    context::Context,
    flow::{Endpoints, FlowId, Flows, Kind},
    host::{Errno, Host, Readiness, Report, TcpSocket},
    icmp::error::{Quote, router, tell},
    link::Link,
    memory::PayloadOf,
    nat::Protocol,
    resolvers::Health,
    timer::Instant,
};

/// What of a traffic class is passed on: not the ECN bits, as the segments of either side are not the other's (RFC 2474).
const DSCP: u8 = 0xfc;

/// Counts of what happened to connections since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections begun, from either side.
    pub opened: u64,
    /// SYNs refused: bad addresses, no socket, table full.
    pub refused: u64,
    /// Connections that ended in a reset of either side.
    pub reset: u64,
}

/// All connections of one guest.
#[derive(Debug)]
pub struct Tcp<S> {
    flows: Flows<Connection<S>>,
    pool: SlotPool,
    /// To be finished at the end of the batch.
    touched: Vec<FlowId>,
    /// With more to send than their turn allowed, or than the link took.
    runnable: VecDeque<FlowId>,
    /// Which resolvers have failed lately.
    health: Health,
    /// For initial sequence numbers.
    secret: [u8; 16],
    /// What happened so far.
    pub counters: Counters,
}

impl<S: TcpSocket> Tcp<S> {
    /// An empty table for at most `limit` connections, whose receive queues may take `queue_memory` bytes together;
    /// `hash_key` and `secret` are random.
    #[must_use]
    pub fn new(limit: usize, queue_memory: usize, hash_key: [u8; 16], secret: [u8; 16]) -> Self {
        Self {
            flows: Flows::new(Kind::Tcp, limit, hash_key),
            pool: SlotPool::new(queue_memory),
            touched: Vec::new(),
            runnable: VecDeque::new(),
            health: Health::default(),
            secret,
            counters: Counters::default(),
        }
    }

    /// How many connections there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Bytes of memory that receive queues hold at present, all connections together.
    #[must_use]
    pub fn queue_memory(&self) -> usize {
        self.pool.lent_bytes()
    }

    /// A segment of the guest. What it causes to be sent may wait for [`Tcp::end_batch`].
    pub fn on_segment<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        packet: &Packet<'_, PayloadOf<'_, S::Memory>>,
        segment: &Segment<'_, PayloadOf<'_, S::Memory>>,
        ctx: &mut Context<'_, H, L>,
    ) {
        let ends = Endpoints {
            guest: SocketAddr::new(packet.source, segment.header.source_port.get()),
            remote: SocketAddr::new(packet.destination, segment.header.destination_port.get()),
        };
        let (flags, class) = (segment.flags(), packet.traffic_class & DSCP);
        let opens = flags & (Flags::SYN | Flags::ACK | Flags::RST) == Flags::SYN;
        let found = self.flows.find(&ends).filter(|&id| {
            // Over already, but for the end of this batch: the ports are free for a new connection.
            !opens || self.flows.get(id).is_some_and(|connection| !connection.is_finished())
        });
        if opens && found.is_none() {
            if let Some(over) = self.flows.find(&ends) {
                self.finish(over, ctx);
            }
            self.open(ends, class, segment, ctx);
        } else if let Some(id) = found {
            self.step(id, ctx, |connection, pool, ctx| {
                connection.set_class(class);
                connection.on_segment(segment, pool, ctx)
            });
        } else if !flags.contains(Flags::RST) && possible(&ends, ctx.settings).is_some() {
            reset_unknown(&ends, segment, ctx);
        }
    }

    /// The guest wants to connect (behaviour §6.1).
    fn open<H: Host<Tcp = S>, L: Link>(
        &mut self,
        ends: Endpoints,
        class: u8,
        syn: &Segment<'_, impl Payload>,
        ctx: &mut Context<'_, H, L>,
    ) {
        let (Some(destination), Some(id)) = (possible(&ends, ctx.settings), self.flows.next_id()) else {
            self.counters.refused += 1; // no answer (behaviour §6.1.1, R-61)
            return;
        };
        let resolvers = ctx.settings.resolvers(ends.remote, &self.health, ctx.now);
        let mut dial = resolvers.map(|servers| Dial::new(servers, class));
        let connecting = match &mut dial {
            Some(dial) => dial.connect(id, &mut self.health, ctx),
            None => {
                let source = ctx.outbound_source(ends.guest.ip(), destination);
                ctx.host.tcp_connect(id, source, destination, class)
            }
        };
        let socket = match connecting {
            Ok(socket) => socket,
            Err(errno) => {
                self.counters.refused += 1;
                if !tell_failure(&ends, syn.seq(), errno, ctx) {
                    reset_unknown(&ends, syn, ctx);
                }
                return;
            }
        };
        let iss = self.initial_sequence(&ends, ctx.now);
        if log::log_enabled!(log::Level::Debug) {
            let Endpoints { guest, remote } = ends;
            let destination = dial.as_ref().and_then(Dial::server).unwrap_or(destination);
            log::debug!("{id}: {guest} -> {remote}{}", Side(socket.local(), "->", Some(destination)));
        }
        let mut connection = Connection::from_guest(ends, socket, iss, syn, class, ctx);
        connection.dial = dial.map(Box::new);
        self.insert(connection, ctx);
    }

    /// A connection was accepted on the host: `remote` and `guest` are its ends as the guest is to see
    /// them (behaviour §6.2). The socket comes back as an error if there is no room or the ends are in use.
    ///
    /// # Errors
    /// The socket, to be reset.
    pub fn accept<H: Host<Tcp = S>, L: Link>(
        &mut self,
        ends: Endpoints,
        mut socket: S,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), S> {
        let free = self.flows.find(&ends).is_none();
        let watched = self.flows.next_id().filter(|&id| free && ctx.host.tcp_watch(id, &socket).is_ok());
        let Some(id) = watched else {
            self.counters.refused += 1;
            socket.reset_on_close();
            return Err(socket);
        };
        if log::log_enabled!(log::Level::Debug) {
            let Endpoints { guest, remote } = ends;
            log::debug!("{id}: {guest} <- {remote}{}", Side(socket.local(), "<-", None));
        }
        let iss = self.initial_sequence(&ends, ctx.now);
        let connection = Connection::from_host(ends, socket, iss, ctx);
        self.insert(connection, ctx);
        Ok(())
    }

    fn insert<H: Host<Tcp = S>, L: Link>(&mut self, connection: Connection<S>, ctx: &mut Context<'_, H, L>) {
        if let Ok(id) = self.flows.insert(connection) {
            self.counters.opened += 1;
            self.step(id, ctx, |_, _, _| Ok(()));
        }
    }

    /// A connection's socket reported readiness.
    pub fn on_readiness<H: Host<Tcp = S>, L: Link>(
        &mut self,
        id: FlowId,
        readiness: Readiness,
        ctx: &mut Context<'_, H, L>,
    ) {
        if !self.redial_if_failed(id, readiness, ctx) {
            self.step(id, ctx, |connection, pool, ctx| connection.on_readiness(readiness, pool, ctx));
        }
    }

    /// A connection's deadline came up.
    pub fn on_deadline<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        id: FlowId,
        ctx: &mut Context<'_, H, L>,
    ) {
        self.step(id, ctx, |connection, _, ctx| connection.on_deadline(id, ctx));
        self.redial_if_silent(id, ctx);
    }

    /// Sends what the segments and events since the last call have made due: acknowledgments, and data that
    /// the guest's window lets through.
    pub fn end_batch<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(&mut self, ctx: &mut Context<'_, H, L>) {
        let mut touched = core::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            if let Some(connection) = self.flows.get_mut(id) {
                connection.touched = false;
                self.finish(id, ctx);
            }
        }
        self.touched = touched; // keep its memory
    }

    /// Whether connections wait for their turn to send.
    #[must_use]
    pub fn has_runnable(&self) -> bool {
        !self.runnable.is_empty()
    }

    /// Gives every connection that waits for it a turn. False if the link is full.
    pub fn run<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        ctx: &mut Context<'_, H, L>,
    ) -> bool {
        for _ in 0..self.runnable.len() {
            let Some(id) = self.runnable.pop_front() else { break };
            if let Some(connection) = self.flows.get_mut(id) {
                connection.runnable = false;
                if self.finish(id, ctx) == Rest::LinkFull {
                    return false;
                }
            }
        }
        true
    }

    /// One step of one connection; it is finished at the end of the batch.
    fn step<H: Host<Tcp = S>, L: Link>(
        &mut self,
        id: FlowId,
        ctx: &mut Context<'_, H, L>,
        step: impl FnOnce(&mut Connection<S>, &mut SlotPool, &mut Context<'_, H, L>) -> Result<(), End>,
    ) {
        let Some(connection) = self.flows.get_mut(id) else { return };
        match step(connection, &mut self.pool, ctx) {
            Ok(()) if connection.touched => {}
            Ok(()) => {
                connection.touched = true;
                self.touched.push(id);
            }
            Err(end) => self.end(id, end, ctx),
        }
    }

    fn finish<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        id: FlowId,
        ctx: &mut Context<'_, H, L>,
    ) -> Rest {
        let Some(connection) = self.flows.get_mut(id) else { return Rest::Nothing };
        match connection.finish(ctx) {
            Ok(rest) => {
                connection.arm(id, ctx);
                if rest != Rest::Nothing && !connection.runnable {
                    connection.runnable = true;
                    self.runnable.push_back(id);
                }
                rest
            }
            Err(end) => {
                self.end(id, end, ctx);
                Rest::Nothing
            }
        }
    }

    /// Ends a connection on both sides (behaviour §6.7, §6.8).
    fn end<H: Host<Tcp = S>, L: Link>(&mut self, id: FlowId, end: End, ctx: &mut Context<'_, H, L>) {
        let Some(mut connection) = self.flows.remove(id) else { return };
        connection.receive.release(&mut self.pool);
        connection.deadline.withdraw(ctx.timers, id);
        log::debug!("{id}: {end}");
        match end {
            End::Finished => return,
            End::SocketFailed(errno)
                if connection.phase == Phase::Connecting
                    && tell_failure(&connection.ends, connection.receive.next - 1, errno, ctx) => {}
            End::GuestReset => connection.socket.reset_on_close(),
            End::Abort | End::SocketFailed(_) => {
                connection.socket.reset_on_close();
                connection.send_reset(ctx);
            }
        }
        self.counters.reset += 1;
    }

    /// Ends all connections on both sides: nothing can reach the guest any more.
    pub fn abort_all<H: Host<Tcp = S>, L: Link>(&mut self, ctx: &mut Context<'_, H, L>) {
        let ids: Vec<FlowId> = self.flows.iter().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.end(id, End::Abort, ctx));
    }

    /// An initial sequence number (RFC 6528): a secret function of the ends plus a clock of 4 us.
    fn initial_sequence(&self, ends: &Endpoints, now: Instant) -> Seq {
        let mut hasher = SipHasher13::new_with_key(&self.secret);
        ends.hash(&mut hasher);
        Seq((hasher.finish() as u32).wrapping_add((now.as_micros() / 4) as u32))
    }
}

/// The host's side of a connection, for people: our own address, the direction, and the peer's.
struct Side(Option<SocketAddr>, &'static str, Option<SocketAddr>);

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Some(local), arrow, peer) = self else { return Ok(()) };
        match peer {
            Some(peer) => write!(f, " (host {local} {arrow} {peer})"),
            None => write!(f, " (host {local})"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("over"),
            Self::Abort => f.write_str("given up"),
            Self::GuestReset => f.write_str("reset by the guest"),
            Self::SocketFailed(Errno(number)) => write!(f, "the host's socket failed (error {number})"),
        }
    }
}

/// Where on the host's side a connection between these ends would lead; none if there can't be one, as with a
/// group.
fn possible(ends: &Endpoints, settings: &Settings) -> Option<SocketAddr> {
    let valid = ends.guest.port() != 0 && settings.valid_guest_source(ends.guest.ip());
    settings.to_host(Protocol::Tcp, ends.remote).ok().filter(|_| valid)
}

/// Shows the guest why its SYN, of sequence number `iss`, came to nothing, as a network would: by an ICMP error, or
/// by silence where the peer was silent. False if a reset is the right answer, as to a refused connection.
fn tell_failure<H: Host, L: Link>(
    ends: &Endpoints,
    iss: Seq,
    errno: Errno,
    ctx: &mut Context<'_, H, L>,
) -> bool {
    const ETIMEDOUT: Errno = Errno(110);
    if errno == ETIMEDOUT {
        return true;
    }
    let Some(report) = Report::of_refusal(errno, ends.guest.is_ipv4()) else { return false };
    let mut header = [0; 8];
    header[..2].copy_from_slice(&ends.guest.port().to_be_bytes());
    header[2..4].copy_from_slice(&ends.remote.port().to_be_bytes());
    header[4..].copy_from_slice(&iss.0.to_be_bytes());
    let (guest, remote) = (ends.guest.ip(), ends.remote.ip());
    let quote = Quote { guest, remote, protocol: protocol::TCP, header, payload: &[], fragment: None };
    tell(ctx, router(ctx.settings, remote), report, &quote);
    true
}

/// Answers a segment that belongs to no connection (RFC 9293 §3.10.7.1; behaviour §6.7, R-59).
fn reset_unknown<H: Host, L: Link>(
    ends: &Endpoints,
    segment: &Segment<'_, impl Payload>,
    ctx: &mut Context<'_, H, L>,
) {
    let (seq, ack, flags) = if segment.flags().contains(Flags::ACK) {
        (segment.ack(), Seq(0), Flags::RST)
    } else {
        (Seq(0), segment.seq() + segment.sequence_len(), Flags::RST | Flags::ACK)
    };
    let fields = Fields { seq, ack, flags, window: 0, urgent: 0, class: 0, options: Options::default() };
    emit::bare(ends, fields, ctx).ok();
}
