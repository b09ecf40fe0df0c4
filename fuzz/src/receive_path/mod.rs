//! The whole receive path: a guest that sends anything, and a host whose sockets do anything that a kernel's may.
//!
//! The input is a sequence of operations: frames, events of sockets, accepted connections, passing time. Each is a record of
//! [`RECORD`] bytes, so that a mutation of one does not change the others. The invariants must hold after each operation.
//! After the last one, time passes until all state must be gone.

#[cfg(test)]
mod attacks;
mod guest;
mod link;
mod world;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use engine::{
    addr::{Guest as Learned, Services, Settings, V4, V6},
    dns,
    flow::FlowId,
    host::{QueuedError, Readiness, Received, Report},
    neighbours::Neighbours,
    pressure::Pressure,
    reassembly::{MAX_BYTES, MAX_DATAGRAMS},
    share::{Bound, Share},
    stack::{Limits, Round, Seeds, Stack},
    timer::Instant,
    udp,
};
use wire::{ethernet::Mac, offload::Offload, tcp::Flags};

pub(crate) use self::guest::{datagram_with, dhcp_message};
use self::{
    guest::{Guest, segment_of},
    link::GuestLink,
    world::World,
};
use crate::input::Input;

/// Bytes of an operation. It ignores those that it does not need.
pub const RECORD: usize = 24;
/// Low enough for an input to reach them.
const LIMITS: Limits = Limits {
    connections: 131_071,
    queue_memory: 256 << 20,
    udp: udp::Limits {
        flows: share(16),
        strangers: share(8),
        endpoints: share(8),
        bypass: share(8),
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
};
/// Maximum memory that one connection can have queued: its window, and the slots at both ends.
const MOST_QUEUED: usize = (1 << 20) + 2 * (16 << 10);
/// Longer than any deadline: idle connections of two to four hours (behaviour §6.9).
const LONG_ENOUGH: u64 = 5 * 3600;

const fn share(most: usize) -> Share {
    Share { most, bound: Bound::Files }
}

/// A sequence of operations, see the module.
pub fn target(data: &[u8]) {
    let mut records = data.chunks(RECORD);
    let mut run = Run::new(&mut Input::new(records.next().unwrap_or_default()));
    for record in records {
        run.operation(&mut Input::new(record));
        run.check();
    }
    run.wind_down();
}

/// A guest that sends one frame, and nothing else.
pub(crate) fn one_frame(frame: &[u8]) {
    for offload in [Offload::default(), Offload::VERIFIED] {
        let mut run = Run::new(&mut Input::new(&[]));
        run.frame(frame, &offload);
        run.check();
        run.wind_down();
    }
}

/// Both families, all mappings and all services, except those that `switches` disable.
pub(crate) fn settings(switches: u8) -> Settings {
    let on = |bit: u8| switches & bit == 0;
    let v4 = V4 {
        assigned: Ipv4Addr::new(198, 51, 100, 2),
        prefix_len: 24,
        our_address: on(1).then_some(Ipv4Addr::new(198, 51, 100, 1)),
        map_host_loopback: Some(Ipv4Addr::new(198, 51, 100, 1)),
        map_guest_address: Some(Ipv4Addr::new(198, 51, 100, 77)),
        dns_forward: Some(Ipv4Addr::new(198, 51, 100, 53)),
        dns_servers: [Ipv4Addr::new(127, 0, 0, 53).into(), Ipv6Addr::LOCALHOST.into()]
            [..if on(2) { 2 } else { 0 }]
            .to_vec(),
        pinned: !on(4),
        dns: vec![Ipv4Addr::new(198, 51, 100, 53); 3],
    };
    let v6 = V6 {
        assigned: on(8).then_some(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2)),
        our_link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
        map_host_loopback: Some(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        map_guest_address: Some(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77)),
        dns_forward: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53)),
        dns_servers: vec![
            Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x53).into(),
            Ipv4Addr::LOCALHOST.into(),
        ],
        outbound_scope: 7,
        pinned: !on(4),
        dns: vec![Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53); 3],
    };
    let services = Services {
        tcp: true,
        udp: true,
        icmp: true,
        multicast: true,
        dhcp: true,
        dhcpv6: true,
        ndp: true,
        ra: true,
        advertise_dns: true,
        advertise_search: true,
        search: vec!["example.test".into(), "corp.test".into()],
        hostname: Some("guest".into()),
        fqdn: Some("guest.example.test".into()),
        start_since_2000: 0x0102_0304,
    };
    Settings {
        our_mac: Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]),
        mtu: [65_520, 1500, 0, 68][usize::from(switches >> 6)],
        v4: on(16).then_some(v4),
        v6: on(32).then_some(v6),
        neighbours: Neighbours::default(),
        services,
    }
}

struct Run {
    stack: Stack<World>,
    world: World,
    link: GuestLink,
    guest: Guest,
    now: Instant,
    /// Work that the last round left.
    pressure: Pressure,
}

impl Run {
    fn new(input: &mut Input<'_>) -> Self {
        let settings = settings(input.byte());
        let learned = Learned::new(&settings, None);
        let seeds = Seeds { hash_key: [7; 16], isn_secret: [9; 16], advertisement: 5 };
        let now = Instant::from_micros(1_000_000);
        Self {
            stack: Stack::new(settings, learned, LIMITS, seeds, now),
            world: World::new(u64::from(input.u16())),
            link: GuestLink::new(),
            guest: Guest::new(),
            now,
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
                2 => self.world.exhausted = true,
                _ => (self.link.full, self.link.refuses, self.world.exhausted) = (false, false, false),
            },
            27 => self.begin().link_up(),
            28 => self.fragments(input),
            _ => self.round(),
        }
    }

    fn frame(&mut self, frame: &[u8], offload: &Offload) {
        let segment = segment_of(frame);
        self.world.segment = segment.map(|(ends, seq, _)| (ends, seq));
        if let Some((ends, seq, flags)) = segment
            && flags.contains(Flags::SYN | Flags::ACK)
        {
            for stream in self.world.streams() {
                let mut stream = stream.borrow_mut();
                // The guest may answer again, until the connection is established.
                if stream.ends == ends && stream.written == 0 {
                    stream.expected.push(seq.wrapping_add(1));
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
        let mut fragments = guest::cut(&frame, room);
        if reverse {
            fragments.reverse();
        }
        if let Some(again) = fragments.get(twice).cloned() {
            fragments.push(again);
        }
        self.world.segment = segment_of(&frame).map(|(ends, seq, _)| (ends, seq));
        for fragment in fragments {
            self.begin().frame(wire::frame::head(&fragment), &fragment, &Offload::default());
        }
    }

    fn readiness(&mut self, id: FlowId, readiness: Readiness) {
        self.begin().ready(id, readiness);
    }

    fn stream_event(&mut self, input: &mut Input<'_>) {
        let choice = usize::from(input.byte());
        let streams = self.world.streams();
        if streams.is_empty() {
            return;
        }
        let shared = streams[choice % streams.len()].clone();
        let mut stream = shared.borrow_mut();
        let mut readiness = Readiness::default();
        let all = Readiness { readable: true, writable: true, read_closed: true, error: true, urgent: false };
        match input.byte() % 16 {
            0 if !stream.connected => {
                stream.error = Some(111);
                stream.failed = true;
                readiness = all;
            }
            _ if !stream.connected => {
                stream.connected = true;
                readiness.writable = true;
            }
            0..7 if !stream.ended => {
                stream.available += u32::from(input.u16()) * input.pick(&[1, 1, 4]);
                stream.place_urgent_byte();
                readiness.readable = true;
                readiness.urgent = stream.urgent.is_some();
            }
            7..9 => {
                stream.ended = true;
                readiness = Readiness { readable: true, read_closed: true, ..readiness };
            }
            9 => {
                stream.error = Some(104);
                (stream.failed, stream.ended) = (true, true);
                readiness = all;
            }
            10..15 => readiness.writable = true,
            _ => readiness = Readiness { readable: input.byte() & 1 == 0, writable: true, ..readiness },
        }
        let id = stream.id;
        drop(stream);
        drop(shared);
        self.readiness(id, readiness);
    }

    fn mailbox_event(&mut self, input: &mut Input<'_>, udp: bool) {
        let choice = usize::from(input.byte());
        let mailboxes = if udp { self.world.udp() } else { self.world.pings() };
        if mailboxes.is_empty() {
            return;
        }
        let shared = mailboxes[choice % mailboxes.len()].clone();
        let mut mailbox = shared.borrow_mut();
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
                mailbox.error = Some(111);
                readiness = Readiness { error: true, readable: input.byte() & 1 == 0, ..readiness };
            }
        }
        let id = mailbox.id;
        drop(mailbox);
        drop(shared);
        self.readiness(id, readiness);
    }

    fn accept(&mut self, input: &mut Input<'_>) {
        let talk = usize::from(input.byte()) % self.guest.talks.len();
        let ends = self.guest.talks[talk].ends;
        let socket = self.world.accepted(ends);
        drop(self.begin().accept(ends, socket));
    }

    fn begin(&mut self) -> Round<'_, World> {
        self.stack.round(self.now, &mut self.world, &mut self.link)
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
        self.world.bury();
        let (tcp, pings, timers) = (self.stack.tcp(), self.stack.ping().flows(), self.stack.timers().len());
        let (connections, memory) = (tcp.len(), tcp.queue_memory());
        assert_eq!(connections, self.world.streams().len(), "connections and their sockets");
        assert_eq!(pings, self.world.pings().len(), "pings and their sockets");
        assert!(memory <= connections * MOST_QUEUED, "{memory} bytes for {connections} connections");
        let flows = self.stack.udp().flows();
        let udp::Limits { flows: own, strangers, endpoints, .. } = LIMITS.udp;
        let (most, sockets) = (own.most + strangers.most, endpoints.most + LIMITS.dns.files.most);
        assert!(self.world.udp().len() <= sockets && flows <= most, "{flows} UDP flows");
        assert!(self.stack.ping().flows() <= LIMITS.pings.most);
        let questions = self.stack.dns().len();
        assert!(questions <= LIMITS.dns.files.most, "{questions} DNS questions");
        let fragments = self.stack.fragments();
        assert!(fragments.len() <= MAX_DATAGRAMS && fragments.bytes() <= MAX_BYTES, "{fragments:?}");
        let most = connections + pings + flows + questions;
        assert!(timers <= most, "{timers} deadlines of {most} flows");
    }

    /// Without further operations, all state ends.
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
        assert_eq!(self.stack.udp().flows() + self.world.udp().len(), 0, "UDP left");
        assert_eq!(self.stack.dns().len(), 0, "questions left");
        assert_eq!(self.stack.ping().flows(), 0, "pings left");
        assert!(self.stack.timers().is_empty(), "deadlines left");
        assert_eq!((self.stack.fragments().len(), self.stack.fragments().bytes()), (0, 0), "fragments left");
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
