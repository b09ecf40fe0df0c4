mod bypass;
mod errors;
mod fragments;
mod group;
mod limit;
mod listeners;
mod names;
mod room;
mod trains;

use alloc::{format, vec, vec::Vec};
use core::time::Duration;

use wire::offload::Segmentation;
use zerocopy::big_endian::U16;

use super::{inbound::headroom, *};
use crate::host::{Readiness, SocketError};
use crate::share::{Bound, Share};
use crate::testkit::{
    datagram::{Datagrams, Opened, received},
    fixture::Fixture,
    guest::{datagram, ip},
    host::{ERROR, READABLE},
    link::{Kept, Virtual},
};

const LIMITS: Limits = Limits {
    flows: share(60),
    inbound: share(40),
    endpoints: share(10),
    bypass: share(10),
    checks: CheckLimits::DEFAULT,
    idle: Duration::from_secs(30),
    idle_stream: Duration::from_secs(120),
};
const fn share(most: usize) -> Share {
    Share { most, bound: Bound::Files }
}

/// The guest's addresses in these tests.
const GUEST: &str = "198.51.100.55:4000";
const GUEST6: &str = "[2001:db8:1::55]:4000";

struct Test {
    world: Fixture,
    udp: Udp<Virtual<Kept>>,
}

impl Test {
    fn new() -> Self {
        Self { world: Fixture::default(), udp: Udp::new(LIMITS, [7; 16]) }
    }

    /// The guest sends a datagram. It is the only datagram in its round.
    fn guest_sends(&mut self, from: &str, to: &str, payload: &[u8]) {
        self.guest_sends_as(from, to, payload, 64, 0, &Offload::default());
    }

    fn guest_sends_as(
        &mut self,
        from: &str,
        to: &str,
        payload: &[u8],
        ttl: u8,
        class: u8,
        offload: &Offload,
    ) {
        self.guest_queues(from, to, payload, ttl, class, offload);
        self.end_round();
    }

    /// The guest sends a datagram. Other datagrams may follow in the same round.
    fn guest_queues(&mut self, from: &str, to: &str, payload: &[u8], ttl: u8, class: u8, offload: &Offload) {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let header = udp::Header {
            source_port: U16::new(from.port()),
            destination_port: U16::new(to.port()),
            len: U16::new((udp::HEADER_LEN + payload.len()) as u16),
            checksum: U16::ZERO,
        };
        let datagram = udp::Datagram { header: &header, payload };
        let packet = Packet {
            source: from.ip(),
            destination: to.ip(),
            hop_limit: ttl,
            traffic_class: class,
            flow_label: 0,
            dont_fragment: false,
            transport: wire::frame::Transport::Udp(datagram),
        };
        self.udp.on_datagram(&packet, &datagram, offload, &mut self.world.context());
    }

    fn end_round(&mut self) {
        self.udp.end_round(&mut self.world.context());
    }

    fn ready(&mut self, socket: &Opened, readiness: Readiness) {
        self.udp.on_ready(socket.id, readiness, &mut self.world.context());
        self.end_round();
    }

    /// A datagram arrives at the socket. Checks that the guest gets exactly one frame.
    #[track_caller]
    fn answer(&mut self, socket: &Opened, from: &str, payload: &[u8]) -> Vec<u8> {
        socket.socket.arrive(from, payload);
        self.ready(socket, READABLE);
        self.world.frame().0
    }

    fn opened(&self, index: usize) -> Opened {
        self.world.host.opened[index].clone()
    }

    /// Advances the time, and handles deadlines.
    fn wait(&mut self, seconds: u64) {
        self.world.now = self.world.now + Duration::from_secs(seconds);
        while let Some(id) = self.world.timers.pop_due(self.world.now) {
            self.udp.on_deadline(id, &mut self.world.context());
        }
    }
}

#[track_caller]
fn assert_shown(frame: &[u8], from: &str, to: &str, payload: &[u8]) {
    assert_eq!(datagram(frame), (from.parse().unwrap(), to.parse().unwrap(), payload));
}

/// RFC 4787 §4.1 and §5: a guest endpoint has one socket for all remotes, and datagrams of any sender to this socket
/// reach the guest.
#[test]
fn mapping_and_filtering_are_endpoint_independent() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.1:69", b"read request");
    test.guest_sends(GUEST, "203.0.113.2:69", b"another");
    assert_eq!(test.world.host.opened.len(), 1);
    let socket = test.opened(0);
    assert_eq!((socket.address, socket.number), ("198.51.100.55".parse().unwrap(), 4000));
    let sent = socket.socket.sent();
    assert_eq!(sent[0].destination, "203.0.113.1:69".parse().unwrap());
    assert_eq!(sent[1].destination, "203.0.113.2:69".parse().unwrap());
    assert_eq!((sent[0].payload.as_slice(), sent[0].source), (&b"read request"[..], None));

    // As in TFTP, the answer comes from another port, and the guest continues with this port.
    let frame = test.answer(&socket, "203.0.113.1:50000", b"data");
    assert_shown(&frame, "203.0.113.1:50000", GUEST, b"data");
    test.guest_sends(GUEST, "203.0.113.1:50000", b"ack");
    assert_eq!(socket.socket.sent()[0].destination, "203.0.113.1:50000".parse().unwrap());
    // The guest has not written to this remote.
    let frame = test.answer(&socket, "192.0.2.99:7", b"hello");
    assert_shown(&frame, "192.0.2.99:7", GUEST, b"hello");
    assert_eq!(test.world.host.opened.len(), 1);
    assert_eq!(test.udp.flows(), 4);
    // Another port of the guest is another endpoint.
    test.guest_sends("198.51.100.55:4001", "203.0.113.1:69", b"x");
    assert_eq!(test.world.host.opened.len(), 2);
}

/// behaviour §5.2: the source of the answer is the address to which the guest wrote, even if the destination was
/// translated.
#[test]
fn answers_come_from_the_original_destination() {
    let rows = [
        ("198.51.100.1:53", "127.0.0.1:53"),
        ("198.51.100.77:8", "198.51.100.2:8"),
        ("203.0.113.1:8", "203.0.113.1:8"),
        ("[fe80::1]:8", "[::1]:8"),
        ("[2001:db8:1::77]:8", "[2001:db8:1::2]:8"),
        ("[2001:db8:2::1]:8", "[2001:db8:2::1]:8"),
    ];
    for (original, translated) in rows {
        let mut test = Test::new();
        let guest = if original.starts_with('[') { GUEST6 } else { GUEST };
        test.guest_sends(guest, original, b"question");
        let socket = test.opened(0);
        assert_eq!(socket.socket.sent()[0].destination, translated.parse().unwrap(), "{original}");
        let frame = test.answer(&socket, translated, b"answer");
        assert_shown(&frame, original, guest, b"answer");
    }
}

/// A link-local destination gets the host's scope, and the flow of an answer is found (behaviour §5.2).
#[test]
fn link_local_destinations_have_a_scope() {
    let mut test = Test::new();
    test.guest_sends("[fe80::55]:4000", "[fe80::9]:8", b"x");
    let socket = test.opened(0);
    let destination = socket.socket.sent()[0].destination;
    assert!(matches!(destination, SocketAddr::V6(v6) if v6.scope_id() == 7));
    socket.socket.arrive_as(Received { from: destination, ..received("[fe80::9]:8") }, b"y");
    test.ready(&socket, READABLE);
    assert_shown(&test.world.frame().0, "[fe80::9]:8", "[fe80::55]:4000", b"y");
    assert_eq!(test.udp.flows(), 1);
}

/// Q8: if two destinations translate to the same remote, each has its own socket, so that answers can be distinguished.
#[test]
fn q_8_colliding_destinations_have_different_sockets() {
    let mut test = Test::new();
    for destination in ["198.51.100.77:8", "198.51.100.2:8"] {
        test.guest_sends(GUEST, destination, b"x");
    }
    assert_eq!(test.world.host.opened.len(), 2);
    for (index, destination) in ["198.51.100.77:8", "198.51.100.2:8"].into_iter().enumerate() {
        let socket = test.opened(index);
        assert_eq!(socket.number, 4000);
        let frame = test.answer(&socket, "198.51.100.2:8", b"y");
        assert_shown(&frame, destination, GUEST, b"y");
    }
    // Other destinations use the first socket.
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    assert_eq!(test.world.host.opened.len(), 2);
}

/// Q10, R-91, behaviour §5.6: broadcast and multicast datagrams are sent, and answers reach the guest.
#[test]
fn broadcast_and_multicast_are_sent_r91() {
    let mut test = Test::new();
    for destination in ["239.255.255.250:1900", "255.255.255.255:67", "198.51.100.255:9"] {
        test.guest_sends(GUEST, destination, b"search");
    }
    let socket = test.opened(0);
    let sent: Vec<_> = socket.socket.sent().iter().map(|sent| sent.destination.ip()).collect();
    assert_eq!(
        sent,
        ["239.255.255.250", "255.255.255.255", "198.51.100.255"].map(|a| a.parse::<IpAddr>().unwrap())
    );
    let frame = test.answer(&socket, "198.51.100.8:1900", b"here");
    assert_shown(&frame, "198.51.100.8:1900", GUEST, b"here");
}

/// behaviour §5.2c and d: datagrams with invalid addresses are dropped.
#[test]
fn invalid_addresses_are_refused_r100_r77() {
    let mut test = Test::new();
    let bad = [
        ("224.0.0.1:4000", "203.0.113.1:8"),
        ("255.255.255.255:4000", "203.0.113.1:8"),
        ("127.0.0.1:4000", "203.0.113.1:8"),
        ("0.0.0.0:68", "203.0.113.1:8"),
        ("198.51.100.55:0", "203.0.113.1:8"),
        (GUEST, "203.0.113.1:0"),
        (GUEST, "127.0.0.1:8"),
        (GUEST, "0.0.0.0:8"),
        ("[ff02::1]:4000", "[2001:db8::1]:8"),
        ("[::]:4000", "[2001:db8::1]:8"),
        (GUEST6, "[::1]:8"),
        (GUEST6, "[::ffff:127.0.0.1]:8"),
    ];
    for (from, to) in bad {
        test.guest_sends(from, to, b"x");
    }
    assert_eq!(test.world.host.opened.len(), 0);
    assert_eq!(test.udp.counters().invalid, bad.len() as u64);
}

/// behaviour §7.3, Q21: hop limit and traffic class are copied in both directions.
#[test]
fn q_21_hop_limit_and_traffic_class_are_carried() {
    let mut test = Test::new();
    for ttl in [9, 1, 255] {
        test.guest_sends_as(GUEST, "203.0.113.1:8", b"x", ttl, 0xb9, &Offload::default());
        let socket = test.opened(0);
        let sent = socket.socket.sent();
        assert_eq!((sent[0].hop_limit, sent[0].traffic_class), (ttl, 0xb9));
        let arriving = Received { hop_limit: Some(ttl), traffic_class: 3, ..received("203.0.113.1:8") };
        socket.socket.arrive_as(arriving, b"y");
        test.ready(&socket, READABLE);
        let (frame, _) = test.world.frame();
        assert_eq!((ip(&frame).hop_limit, ip(&frame).traffic_class), (ttl, 3));
    }
}

/// behaviour §7.3: empty datagrams, and datagrams of the maximum length of each family.
#[test]
fn lengths() {
    for (guest, remote, longest) in [(GUEST, "203.0.113.1:8", 65507), (GUEST6, "[2001:db8:2::1]:8", 65487)] {
        let mut test = Test::new();
        test.world.settings.mtu = u16::MAX;
        test.guest_sends(guest, remote, b"");
        let socket = test.opened(0);
        assert_eq!(socket.socket.sent()[0].payload, b"");
        for len in [0, 1, longest] {
            let payload = vec![7; len];
            let frame = test.answer(&socket, remote, &payload);
            assert_shown(&frame, remote, guest, &payload);
        }
        socket.socket.arrive(remote, &vec![7; longest + 1]);
        test.ready(&socket, READABLE);
        assert_eq!(test.world.frames().len(), 0);
        assert_eq!(test.udp.counters().undeliverable, 1);
    }
}

/// behaviour §7.2, R-99: a flow with one request and one answer ends after 30 s, and its socket ends, too. Other flows
/// end after 120 s.
#[test]
fn timeouts_r99() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.1:53", b"x");
    let socket = test.opened(0);
    test.wait(20);
    test.answer(&socket, "203.0.113.1:53", b"y");
    test.wait(29);
    assert_eq!((test.udp.flows(), socket.closed()), (1, false));
    test.wait(2);
    assert_eq!((test.udp.flows(), socket.closed()), (0, true));

    test.guest_sends(GUEST, "203.0.113.1:53", b"x");
    let socket = test.opened(1);
    test.answer(&socket, "203.0.113.1:53", b"y");
    test.guest_sends(GUEST, "203.0.113.1:53", b"x");
    test.guest_sends(GUEST, "203.0.113.9:53", b"x");
    test.wait(119);
    assert_eq!((test.udp.flows(), socket.closed()), (1, false));
    test.wait(2);
    assert_eq!((test.udp.flows(), socket.closed()), (0, true));

    // Traffic in only one direction is never a stream.
    for _ in 0..5 {
        test.guest_sends(GUEST, "203.0.113.1:514", b"x");
    }
    test.wait(31);
    assert_eq!(test.udp.flows(), 0);
    // An event of a closed socket is ignored.
    test.ready(&socket, READABLE);
    assert_eq!(test.world.frames().len(), 0);
}

/// If the link is full, datagrams are read from the socket, dropped and counted, so that the socket does not report
/// them again.
#[test]
fn a_full_link_drops() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    let socket = test.opened(0);
    test.world.link.full = true;
    socket.socket.arrive("203.0.113.1:8", b"y");
    test.ready(&socket, READABLE);
    assert_eq!(test.udp.counters().link_full, 1);
    assert!(socket.socket.mailbox().arriving.is_empty());
    test.world.link.full = false;
    test.answer(&socket, "203.0.113.1:8", b"z");
}

/// A single answer costs one call. A stream is received in batches, which grow up to a bound.
#[test]
fn receive_calls() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    let socket = test.opened(0);
    // Rounds with an event of the socket and with a frame of the guest alternate.
    for _ in 0..3 {
        test.guest_sends(GUEST, "203.0.113.1:8", b"x");
        test.answer(&socket, "203.0.113.1:8", b"y");
    }
    assert_eq!(socket.socket.mailbox().receives, 3);
    test.end_round();
    for _ in 0..1000 {
        socket.socket.arrive("203.0.113.1:8", b"y");
    }
    let mut visits = Vec::new();
    for _ in 0..8 {
        let before = socket.socket.mailbox().receives;
        test.ready(&socket, READABLE);
        visits.push(socket.socket.mailbox().receives - before);
    }
    assert_eq!(visits, [1, 2, 4, 8, 16, 32, 32, 32]);
    assert_eq!(test.world.frames().len(), 8);
}
