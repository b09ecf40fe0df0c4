//! The whole receive path, with a guest that sends any frames, and a host whose sockets return any result that a kernel
//! may return.
//!
//! The input is a sequence of operations: frames, events of sockets, accepted connections, passing time. Each operation
//! is a record of [`RECORD`] bytes, so that a mutation of one operation does not change the others. The invariants must
//! hold after each operation. After the last operation, time passes until all state must have been removed.

#[cfg(test)]
mod attacks;
mod guest;
mod link;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use engine::{
    addr::{Guest as Learned, Settings},
    dns,
    flow::{FlowId, Kind},
    host::{QueuedError, Readiness, Received, Report},
    pressure::Pressure,
    reassembly::{MAX_BYTES, MAX_DATAGRAMS},
    share::{Bound, Share},
    stack::{Limits, Round, Seeds, Stack},
    timer::Instant,
    udp,
};
use testkit::{
    datagram::Opened,
    guest::cut,
    host::VirtualHost,
    link::{Virtual, VirtualLink},
    settings::START,
    stream::{CONNECTION_REFUSED, CONNECTION_RESET, State},
};
use wire::{offload::Offload, tcp::Flags};

pub(crate) use self::guest::dhcp_message;
use self::{
    guest::{Guest, SOURCES_V4, segment_of},
    link::GuestSide,
};
use crate::input::Input;

/// Number of bytes of an operation. An operation ignores the bytes that it does not need.
pub const RECORD: usize = 24;
/// Limits that are low enough for an input to reach them.
const LIMITS: Limits = Limits {
    connections: 131_071,
    queue_memory: 256 << 20,
    udp: udp::Limits {
        flows: share(16),
        inbound: share(8),
        endpoints: share(8),
        bypass: share(8),
        checks: udp::CheckLimits::DEFAULT,
        idle: Duration::from_secs(30),
        idle_stream: Duration::from_secs(120),
    },
    dns: dns::Limits {
        files: share(6),
        bytes: 600,
        idle: Duration::from_secs(30),
        idle_stream: Duration::from_secs(120),
    },
    pings: share(8),
    fragments: engine::reassembly::Limits::DEFAULT,
};
/// Maximum memory that one connection can have queued: its window, and the slots at both ends.
const MOST_QUEUED: usize = (1 << 20) + 2 * (16 << 10);
/// A time in seconds, longer than any deadline. The latest deadline ends idle connections after two to four hours
/// (behaviour §6.9).
const LONG_ENOUGH: u64 = 5 * 3600;

const fn share(most: usize) -> Share {
    Share { most, bound: Bound::Files }
}

/// Input: a sequence of operations, as described for the module.
pub fn target(data: &[u8]) {
    let mut records = data.chunks(RECORD);
    let mut run = Run::new(&mut Input::new(records.next().unwrap_or_default()));
    for record in records {
        run.operation(&mut Input::new(record));
        run.check();
    }
    run.wind_down();
}

/// Runs a guest that sends only one frame.
pub(crate) fn one_frame(frame: &[u8]) {
    for offload in [Offload::default(), Offload::VERIFIED] {
        let mut run = Run::new(&mut Input::new(&[]));
        run.frame(frame, &offload);
        run.check();
        run.wind_down();
    }
}

/// Settings with both families, all mappings and all services, except those that `switches` disables.
pub(crate) fn settings(switches: u8) -> Settings {
    let on = |bit: u8| switches & bit == 0;
    let mut settings = testkit::settings::settings();
    settings.mtu = [65_520, 1500, 0, 68][usize::from(switches >> 6)];
    settings.services.multicast = true;
    if let Some(v4) = &mut settings.v4 {
        v4.our_address = v4.our_address.filter(|_| on(1));
        v4.dns_servers.push(Ipv6Addr::LOCALHOST.into());
        v4.dns_servers.truncate(if on(2) { 2 } else { 0 });
        v4.pinned = !on(4);
        v4.dns = vec![Ipv4Addr::new(198, 51, 100, 53); 3];
    }
    if let Some(v6) = &mut settings.v6 {
        v6.assigned = v6.assigned.filter(|_| on(8));
        v6.dns_servers.push(Ipv4Addr::LOCALHOST.into());
        v6.pinned = !on(4);
        v6.dns = vec![Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53); 3];
    }
    if !on(4) && !on(8) {
        // A virtual network, with the gateways as the engine's addresses.
        settings.virtual_hosts =
            vec![Ipv4Addr::new(198, 51, 100, 1).into(), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into()];
    }
    settings.v4 = settings.v4.filter(|_| on(16));
    settings.v6 = settings.v6.filter(|_| on(32));
    settings
}

struct Run {
    stack: Stack<Virtual<GuestSide>>,
    host: VirtualHost,
    link: VirtualLink<GuestSide>,
    guest: Guest,
    now: Instant,
    /// Work that the last round left.
    pressure: Pressure,
}

impl Run {
    fn new(input: &mut Input<'_>) -> Self {
        let settings = settings(input.byte());
        let learned = Learned::new(&settings, None);
        let seeds = Seeds { hash_key: [7; 16], isn_secret: [9; 16], query_secret: [8; 16], advertisement: 5 };
        let mut host = VirtualHost::random(u64::from(input.u16()));
        host.own = SOURCES_V4.map(IpAddr::V4).to_vec();
        Self {
            stack: Stack::new(settings, learned, LIMITS, seeds, START),
            host,
            link: VirtualLink::default(),
            guest: Guest::new(),
            now: START,
            pressure: Pressure::None,
        }
    }

    fn operation(&mut self, input: &mut Input<'_>) {
        match input.byte() % 32 {
            0..14 => {
                let (frame, offload) = self.guest.frame(input, &self.link);
                self.frame(&frame, &offload);
            }
            14..20 => self.stream_event(input),
            20..22 => self.mailbox_event(input, true),
            22 => self.mailbox_event(input, false),
            23 => self.accept(input),
            24..26 => {
                self.round();
                self.now = self.now
                    + Duration::from_millis(input.pick(&[1, 4, 50, 250, 1000, 4000, 31_000, 130_000]));
                self.round();
            }
            26 => match input.byte() % 8 {
                0 => self.link.full = true,
                1 => self.link.refuses = true,
                2 => self.host.no_sockets = true,
                _ => (self.link.full, self.link.refuses, self.host.no_sockets) = (false, false, false),
            },
            27 => self.begin().link_up(),
            28 => self.fragments(input),
            _ => self.round(),
        }
    }

    fn frame(&mut self, frame: &[u8], offload: &Offload) {
        let segment = segment_of(frame);
        self.host.segment = segment.map(|(ends, seq, _)| (ends, seq));
        if let Some((ends, seq, flags)) = segment
            && flags.contains(Flags::SYN | Flags::ACK)
        {
            for peer in &self.host.peers {
                let mut stream = peer.state();
                // The guest may answer again, until the connection is established.
                if stream.ends == Some(ends) && stream.sent == 0 {
                    stream.starts.push(seq.wrapping_add(1));
                }
            }
        }
        self.begin().frame(wire::frame::head(frame), frame, offload);
    }

    /// A frame in fragments, most of them once, in order or reversed.
    fn fragments(&mut self, input: &mut Input<'_>) {
        let room = 8 * usize::from(input.byte()).max(1);
        let (reverse, twice) = (input.one_in(2), usize::from(input.byte()));
        let (frame, _) = self.guest.frame(input, &self.link);
        let mut fragments = cut(&frame, room);
        if reverse {
            fragments.reverse();
        }
        if let Some(again) = fragments.get(twice).cloned() {
            fragments.push(again);
        }
        self.host.segment = segment_of(&frame).map(|(ends, seq, _)| (ends, seq));
        for fragment in fragments {
            self.begin().frame(wire::frame::head(&fragment), &fragment, &Offload::default());
        }
    }

    fn readiness(&mut self, id: FlowId, readiness: Readiness) {
        self.begin().ready(id, readiness);
    }

    fn stream_event(&mut self, input: &mut Input<'_>) {
        let choice = usize::from(input.byte());
        if self.host.peers.is_empty() {
            return;
        }
        let peer = self.host.peers[choice % self.host.peers.len()].clone();
        let mut stream = peer.state();
        let mut readiness = Readiness::default();
        let all = Readiness { readable: true, writable: true, read_closed: true, error: true, urgent: false };
        match input.byte() % 16 {
            0 if !stream.connected => {
                stream.error = Some(CONNECTION_REFUSED);
                stream.failed = true;
                readiness = all;
            }
            _ if !stream.connected => {
                stream.connected = true;
                readiness.writable = true;
            }
            0..7 if !stream.ended => {
                stream.received += u64::from(input.u16()) * input.pick(&[1, 1, 4]);
                place_urgent_byte(&mut stream);
                readiness.readable = true;
                readiness.urgent = stream.urgent.is_some();
            }
            7..9 => {
                stream.ended = true;
                readiness = Readiness { readable: true, read_closed: true, ..readiness };
            }
            9 => {
                stream.error = Some(CONNECTION_RESET);
                (stream.failed, stream.ended) = (true, true);
                readiness = all;
            }
            10..15 => readiness.writable = true,
            _ => readiness = Readiness { readable: input.byte() & 1 == 0, writable: true, ..readiness },
        }
        let id = stream.flow;
        drop(stream);
        if let Some(id) = id {
            self.readiness(id, readiness);
        }
    }

    fn mailbox_event(&mut self, input: &mut Input<'_>, udp: bool) {
        let choice = usize::from(input.byte());
        let sockets = if udp { self.udp_sockets() } else { self.ping_sockets() };
        if sockets.is_empty() {
            return;
        }
        let Opened { id, socket, .. } = &sockets[choice % sockets.len()];
        let mut mailbox = socket.mailbox();
        let mut readiness = Readiness::default();
        match input.byte() % 4 {
            0..2 => {
                let len = input.pick(&[0, 1, 8, 100, 1472, 9000, 65_507, 65_535]);
                let mut payload = input.take(12).to_vec();
                payload.resize(len, 0);
                let segment_size = Some(input.u16()).filter(|&size| size > 0 && usize::from(size) < len);
                let received = Received {
                    len: 0,
                    truncated: false,
                    segment_size,
                    from: peer(input),
                    destination: input.one_in(4).then(|| peer(input).ip()),
                    local: None,
                    hop_limit: Some(input.byte()),
                    traffic_class: input.byte(),
                };
                mailbox.arriving.push_back((received, payload));
                readiness.readable = true;
            }
            2 => {
                let report = Report { kind: input.byte() % 16, code: input.byte() % 16, info: input.u32() };
                let error = QueuedError {
                    destination: peer(input),
                    local: None,
                    report: (!input.one_in(4)).then_some(report),
                    refused: false,
                    offender: (!input.one_in(4)).then(|| peer(input).ip()),
                    quoted: 0,
                };
                let mut quote = input.take(24).to_vec();
                quote.resize(input.pick(&[0, 4, 24, 548, 4000]), 0);
                mailbox.errors.push_back((error, quote));
                readiness.error = true;
            }
            _ => {
                mailbox.pending = Some(CONNECTION_REFUSED);
                readiness = Readiness { error: true, readable: input.byte() & 1 == 0, ..readiness };
            }
        }
        drop(mailbox);
        self.readiness(*id, readiness);
    }

    /// Open datagram sockets, except those that receive from a multicast group.
    fn udp_sockets(&self) -> Vec<Opened> {
        let is_udp = |open: &&Opened| open.id.kind() != Kind::Ping && !open.address.is_multicast();
        self.host.opened.iter().filter(is_udp).cloned().collect()
    }

    /// Open ping sockets.
    fn ping_sockets(&self) -> Vec<Opened> {
        self.host.opened.iter().filter(|open| open.id.kind() == Kind::Ping).cloned().collect()
    }

    fn accept(&mut self, input: &mut Input<'_>) {
        let talk = usize::from(input.byte()) % self.guest.talks.len();
        let ends = self.guest.talks[talk].ends;
        let socket = self.host.accepted();
        if let Some(peer) = self.host.peers.last() {
            // The guest's SYN,ACK determines where its stream begins.
            (peer.state().ends, peer.state().starts) = (Some(ends), vec![]);
        }
        drop(self.begin().accept(ends, socket));
    }

    fn begin(&mut self) -> Round<'_, Virtual<GuestSide>> {
        self.stack.round(self.now, &mut self.host, &mut self.link)
    }

    /// The work of the event loop at the end of each round.
    fn round(&mut self) {
        let takes = !self.link.full && !self.link.refuses;
        let mut round = self.begin();
        if takes {
            round.link_has_room();
        }
        self.pressure = round.finish();
        let due = self.stack.next_deadline();
        assert!(due.is_none_or(|due| due > self.now), "at {:?}, {due:?} stays due", self.now);
    }

    /// Invariants that hold at all times.
    fn check(&mut self) {
        self.link.next_step();
        self.host.forget_closed();
        let (tcp, pings, timers) = (self.stack.tcp(), self.stack.ping().flows(), self.stack.timers().len());
        let (connections, memory) = (tcp.len(), tcp.queue_memory());
        assert_eq!(connections, self.host.peers.len(), "connections and their sockets");
        assert_eq!(pings, self.ping_sockets().len(), "pings and their sockets");
        assert!(memory <= connections * MOST_QUEUED, "{memory} bytes for {connections} connections");
        let named = self.host.peers.iter().all(|peer| peer.state().ends.is_some());
        assert!(named, "a connection without a segment");
        let flows = self.stack.udp().flows();
        let udp::Limits { flows: own, inbound, endpoints, .. } = LIMITS.udp;
        let (most, sockets) = (own.most + inbound.most, endpoints.most + LIMITS.dns.files.most);
        assert!(self.udp_sockets().len() <= sockets && flows <= most, "{flows} UDP flows");
        assert!(self.stack.ping().flows() <= LIMITS.pings.most);
        let questions = self.stack.dns().len();
        assert!(questions <= LIMITS.dns.files.most, "{questions} DNS questions");
        let fragments = self.stack.fragments();
        assert!(fragments.len() <= MAX_DATAGRAMS && fragments.bytes() <= MAX_BYTES, "{fragments:?}");
        let most = connections + pings + flows + questions;
        assert!(timers <= most, "{timers} deadlines of {most} flows");
    }

    /// Checks that all state is removed if no more operations follow.
    fn wind_down(&mut self) {
        (self.link.full, self.link.refuses) = (false, false);
        let end = self.now + Duration::from_secs(LONG_ENOUGH);
        self.round();
        while self.now < end {
            self.now = self.now + Duration::from_secs(600);
            for _ in 0..1000 {
                self.round();
                self.link.next_step();
                if self.pressure == Pressure::None {
                    break;
                }
            }
            assert_eq!(self.pressure, Pressure::None, "connections that never rest");
            self.check();
        }
        assert_eq!(self.stack.tcp().len(), 0, "connections left");
        assert_eq!(self.stack.tcp().queue_memory(), 0, "memory left");
        assert_eq!(self.stack.udp().flows() + self.udp_sockets().len(), 0, "UDP left");
        assert_eq!(self.stack.dns().len(), 0, "questions left");
        assert_eq!(self.stack.ping().flows(), 0, "pings left");
        assert!(self.stack.timers().is_empty(), "deadlines left");
        assert_eq!((self.stack.fragments().len(), self.stack.fragments().bytes()), (0, 0), "fragments left");
    }
}

/// Makes a random byte among the available bytes urgent, or none.
fn place_urgent_byte(stream: &mut State) {
    let available = stream.received - stream.discarded;
    if available > 0 && stream.roll(4) == Some(0) {
        stream.urgent = stream.roll(available as usize).map(|at| stream.discarded + at as u64);
    }
}

/// An address and port on the host's side.
fn peer(input: &mut Input<'_>) -> SocketAddr {
    let addresses: [IpAddr; 12] = [
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv4Addr::new(192, 0, 2, 2).into(),
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 0, 0, 53).into(),
        Ipv4Addr::new(198, 51, 100, 2).into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99).into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc000, 0x201).into(),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        Ipv4Addr::BROADCAST.into(),
    ];
    SocketAddr::new(input.pick(&addresses), input.pick(&[80, 53, 80, 53, 0, 40_000]))
}
