use alloc::{format, vec, vec::Vec};

use wire::{frame::Transport, ipv4, ipv6};

use super::*;
use crate::host::{QueuedError, Received};
use crate::rate_limit::RateLimit;
use crate::share::Bound;
use crate::testkit::{
    datagram::{Opened, Sent, received},
    fixture::Fixture,
    guest::ip,
    host::{ERROR, READABLE},
    link::{Kept, Virtual},
};

const LIMIT: usize = 20;
const GUEST: &str = "198.51.100.55";
const GUEST6: &str = "2001:db8:1::55";

struct Test {
    world: Fixture,
    ping: Ping<Virtual<Kept>>,
}

impl Test {
    fn new() -> Self {
        Self {
            world: Fixture::default(),
            ping: Ping::new(Share { most: LIMIT, bound: Bound::Files }, [7; 16]),
        }
    }

    fn guest_sends(&mut self, from: &str, to: &str, header: Header, payload: &[u8], ttl: u8) {
        let message = Message { header: &header, payload };
        let packet = Packet {
            source: from.parse().unwrap(),
            destination: to.parse().unwrap(),
            hop_limit: ttl,
            traffic_class: 0,
            flow_label: 0,
            dont_fragment: false,
            transport: Transport::Icmp(message),
        };
        self.ping.on_message(&packet, &message, &mut self.world.context());
    }

    /// Sends an echo request of the guest. The address's family selects the type of the message.
    fn guest_pings(&mut self, from: &str, to: &str, id: u16, sequence: u16) {
        let kind = if from.contains(':') { v6::ECHO_REQUEST } else { v4::ECHO_REQUEST };
        self.guest_sends(from, to, Header::new(kind, 0, echo(id, sequence)), b"payload", 64);
    }

    fn opened(&self, index: usize) -> Opened {
        self.world.host.opened[index].clone()
    }

    fn ready(&mut self, socket: &Opened, readiness: Readiness) {
        self.ping.on_ready(socket.id, readiness, &mut self.world.context());
    }

    fn wait(&mut self, seconds: u64) {
        self.world.now = self.world.now + Duration::from_secs(seconds);
        while let Some(id) = self.world.timers.pop_due(self.world.now) {
            self.ping.on_deadline(id, &mut self.world.context());
        }
    }
}

/// A message as a ping socket returns it, with the identifier that the socket has on the host.
fn message(kind: u8, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    [Header::new(kind, 0, echo(id, sequence)).as_bytes(), payload].concat()
}

#[track_caller]
fn sequence(sent: &Sent) -> u16 {
    Message::parse(&sent.payload).unwrap().header.echo_sequence()
}

/// The contents of an echo message in a frame: source, type, identifier, sequence number, payload.
#[track_caller]
fn echoed(frame: &[u8]) -> (IpAddr, u8, u16, u16, Vec<u8>) {
    let packet = ip(frame);
    let Transport::Icmp(message) = packet.transport else { panic!("no ICMP") };
    let Message { header, payload } = message;
    (packet.source, header.kind, header.echo_id(), header.echo_sequence(), payload.to_vec())
}

/// behaviour §4.5, R-46: every reply, including the first, reaches the guest with the guest's own identifier. The
/// source is the address to which the guest sent the request.
#[test]
fn replies_are_carried_r46() {
    for (guest, remote, peer, reply) in [
        (GUEST, "203.0.113.1", "203.0.113.1:0", v4::ECHO_REPLY),
        (GUEST, "198.51.100.1", "127.0.0.1:0", v4::ECHO_REPLY),
        (GUEST, "198.51.100.53", "198.51.100.53:0", v4::ECHO_REPLY),
        (GUEST6, "2001:db8:2::1", "[2001:db8:2::1]:0", v6::ECHO_REPLY),
        (GUEST6, "fe80::1", "[::1]:0", v6::ECHO_REPLY),
    ] {
        let mut test = Test::new();
        for number in [1, 2, 2, 65535] {
            test.guest_pings(guest, remote, 77, number);
            let socket = test.opened(0);
            assert_eq!((socket.address, socket.number), (peer.parse::<SocketAddr>().unwrap().ip(), 77));
            let sent = socket.socket.sent();
            assert_eq!((sent[0].destination, sequence(&sent[0])), (peer.parse().unwrap(), number));
            assert!(sent[0].payload.ends_with(b"payload"));
            socket.socket.arrive(peer, &message(reply, 4711, number, b"payload"));
            test.ready(&socket, READABLE);
            let (frame, _) = test.world.frame();
            let remote = remote.parse().unwrap();
            assert_eq!(echoed(&frame), (remote, reply, 77, number, b"payload".to_vec()));
        }
        assert_eq!((test.world.host.opened.len(), test.ping.flows()), (1, 1));
    }
}

/// Each guest address and identifier has one socket for all destinations. Every identifier works. Each
/// translated destination has its own socket, since replies could not be distinguished otherwise.
#[test]
fn one_socket_for_each_identifier_r47() {
    let mut test = Test::new();
    let same =
        [(GUEST, "203.0.113.1", 0xffff), (GUEST, "203.0.113.1", 0), ("198.51.100.56", "203.0.113.2", 0)];
    for (guest, remote, id) in same {
        for number in 0..3 {
            test.guest_pings(guest, remote, id, number);
        }
    }
    for host in 1..=100 {
        test.guest_pings(GUEST, &alloc::format!("203.0.113.{host}"), 0, 9);
    }
    // The destinations are multicast and broadcast addresses.
    test.guest_pings(GUEST, "224.0.0.1", 0, 9);
    test.guest_pings(GUEST, "255.255.255.255", 0, 9);
    let ids = |test: &Test| test.world.host.opened.iter().map(|opened| opened.number).collect::<Vec<_>>();
    assert_eq!((ids(&test), test.ping.flows()), (vec![0xffff, 0, 0], 3));
    let socket = test.opened(1);
    assert_eq!(socket.socket.sent().len(), 3 + 100 + 2);
    for host in [1, 77, 100] {
        let from = alloc::format!("203.0.113.{host}:0");
        socket.socket.arrive(&from, &message(v4::ECHO_REPLY, 4711, 9, b""));
        test.ready(&socket, READABLE);
        let from: SocketAddr = from.parse().unwrap();
        assert_eq!(echoed(&test.world.frame().0).0, from.ip());
    }
    // The destinations are the host's own address, the address that is mapped to it, and its loopback address.
    for (remote, peer) in
        [("198.51.100.2", "198.51.100.2"), ("198.51.100.77", "198.51.100.2"), ("198.51.100.1", "127.0.0.1")]
    {
        test.guest_pings(GUEST, remote, 0, 9);
        let socket = test.world.host.opened.last().unwrap().clone();
        assert_eq!(socket.address, peer.parse::<IpAddr>().unwrap());
        socket.socket.arrive(&alloc::format!("{peer}:0"), &message(v4::ECHO_REPLY, 4711, 9, b""));
        test.ready(&socket, READABLE);
        assert_eq!(echoed(&test.world.frame().0).0, remote.parse::<IpAddr>().unwrap());
    }
    assert_eq!(ids(&test).len(), 6);
}

/// An error is reported for the destination that caused it, even if several destinations share a socket.
#[test]
fn errors_are_reported_for_the_right_destination() {
    let mut test = Test::new();
    for host in 1..=3 {
        test.guest_pings(GUEST, &alloc::format!("203.0.113.{host}"), 77, host);
    }
    let socket = test.opened(0);
    let error = QueuedError {
        destination: "203.0.113.2:0".parse().unwrap(),
        local: None,
        report: Some(Report { kind: v4::UNREACHABLE, code: 1, info: 0 }),
        offender: "192.0.2.254".parse().ok(),
        refused: false,
        quoted: 0,
    };
    socket.socket.error(error, &message(v4::ECHO_REQUEST, 4711, 2, b"payl"));
    test.ready(&socket, ERROR);
    let (frame, _) = test.world.frame();
    let packet = ip(&frame);
    assert_eq!(packet.source, "192.0.2.254".parse::<IpAddr>().unwrap());
    let Transport::Icmp(reported) = packet.transport else { panic!("no ICMP") };
    assert!(reported.payload[..ipv4::HEADER_LEN].ends_with(&[203, 0, 113, 2]));
}

/// The hop limit is passed on in both directions, so that traceroute with echo requests works.
#[test]
fn hop_limits_are_carried() {
    let mut test = Test::new();
    for ttl in [1, 2, 255] {
        let request = Header::new(v4::ECHO_REQUEST, 0, echo(7, ttl.into()));
        test.guest_sends(GUEST, "203.0.113.1", request, b"", ttl);
        let socket = test.opened(0);
        assert_eq!(socket.socket.sent()[0].hop_limit, ttl);
        let arriving = Received { hop_limit: Some(ttl), ..received("203.0.113.1:0") };
        socket.socket.arrive_as(arriving, &message(v4::ECHO_REPLY, 1, ttl.into(), b""));
        test.ready(&socket, READABLE);
        assert_eq!(ip(&test.world.frame().0).hop_limit, ttl);
    }
}

/// Errors reach the guest, and quote the guest's own request.
#[test]
fn errors_are_rebuilt() {
    for (guest, remote, peer, kind, code) in [
        (GUEST, "203.0.113.1", "203.0.113.1:0", v4::TIME_EXCEEDED, 0),
        (GUEST6, "2001:db8:2::1", "[2001:db8:2::1]:0", v6::TIME_EXCEEDED, 0),
        (GUEST, "198.51.100.77", "198.51.100.2:0", v4::UNREACHABLE, 1),
    ] {
        let mut test = Test::new();
        test.guest_pings(guest, remote, 77, 5);
        let socket = test.opened(0);
        let request = if guest == GUEST { v4::ECHO_REQUEST } else { v6::ECHO_REQUEST };
        let hop = if guest == GUEST { "192.0.2.254" } else { "2001:db8:ff::1" };
        let error = QueuedError {
            destination: peer.parse().unwrap(),
            local: None,
            report: Some(Report { kind, code, info: 0 }),
            refused: false,
            offender: hop.parse().ok(),
            quoted: 0,
        };
        socket.socket.error(error, &message(request, 4711, 5, b"payl"));
        // The quote is too short to identify the request.
        socket.socket.error(error, b"short");
        test.ready(&socket, ERROR);
        let (frame, _) = test.world.frame();
        let packet = ip(&frame);
        assert_eq!(packet.source, hop.parse::<IpAddr>().unwrap());
        let Transport::Icmp(reported) = packet.transport else { panic!("no ICMP") };
        assert_eq!((reported.header.kind, reported.header.code), (kind, code));
        let at = if guest == GUEST { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        assert_eq!(reported.payload[at..], message(request, 77, 5, b"payl"));
        let to: IpAddr = remote.parse().unwrap();
        let quoted = &reported.payload[..at];
        assert!(match to {
            IpAddr::V4(to) => quoted.ends_with(&to.octets()),
            IpAddr::V6(to) => quoted.ends_with(&to.octets()),
        });
    }
}

/// an error without an entry in the queue is cleared. If a send reports an old error, the request is sent
/// nevertheless.
#[test]
fn errors_are_cleared_r95() {
    let mut test = Test::new();
    test.guest_pings(GUEST, "203.0.113.1", 7, 1);
    let socket = test.opened(0);
    socket.socket.mailbox().pending = Some(Errno(113));
    test.ready(&socket, ERROR);
    assert_eq!(socket.socket.mailbox().pending, None);
    socket.socket.sent();
    socket.socket.mailbox().refusals.push_back(SocketError::Failed(Errno(113)));
    test.guest_pings(GUEST, "203.0.113.1", 7, 2);
    assert_eq!(socket.socket.sent().iter().map(sequence).collect::<Vec<_>>(), [2]);
    assert_eq!(test.world.frames().len(), 0);
    // The host has no route to the destination.
    socket.socket.mailbox().refusals.extend([SocketError::Failed(Errno(101)); 2]);
    test.guest_pings(GUEST, "203.0.113.1", 7, 3);
    let (frame, _) = test.world.frame();
    assert_eq!(ip(&frame).source, "198.51.100.1".parse::<IpAddr>().unwrap());
}

/// Only echo requests are carried, and only replies are returned (behaviour §4.5; R-46: not our own requests). Nothing
/// is sent to addresses that must not appear on a link.
#[test]
fn everything_else_is_ignored_r46() {
    let mut test = Test::new();
    for (kind, code) in [(v4::ECHO_REPLY, 0), (v4::UNREACHABLE, 3), (13, 0), (v4::ECHO_REQUEST, 1)] {
        test.guest_sends(GUEST, "203.0.113.1", Header::new(kind, code, 7 << 16), b"", 64);
    }
    test.guest_sends(GUEST6, "2001:db8:2::1", Header::new(v4::ECHO_REQUEST, 0, 7 << 16), b"", 64);
    assert_eq!(test.ping.counters(), &Drops::default());
    for (from, to) in
        [("224.0.0.1", "203.0.113.1"), (GUEST, "127.0.0.1"), (GUEST, "0.0.0.0"), ("::", "ff02::1")]
    {
        test.guest_pings(from, to, 7, 1);
    }
    assert_eq!(test.ping.counters().invalid, 4);
    assert_eq!(test.world.host.opened.len(), 0);

    test.guest_pings(GUEST, "203.0.113.1", 7, 1);
    let socket = test.opened(0);
    socket.socket.arrive("203.0.113.1:0", &message(v4::ECHO_REQUEST, 7, 1, b""));
    socket.socket.arrive("203.0.113.1:0", b"short");
    for _ in 0..3 {
        test.ready(&socket, READABLE);
    }
    assert_eq!((test.world.frames().len(), test.ping.counters().undeliverable), (0, 2));
}

/// The replies to a request to a group have the addresses of their senders.
#[test]
fn groups() {
    let mut test = Test::new();
    test.guest_pings(GUEST, "224.0.0.1", 7, 1);
    let socket = test.opened(0);
    socket.socket.arrive("203.0.113.9:0", &message(v4::ECHO_REPLY, 7, 1, b""));
    test.ready(&socket, READABLE);
    assert_eq!(echoed(&test.world.frame().0).0, "203.0.113.9".parse::<IpAddr>().unwrap());
}

/// A flow ends when it was idle for 60 s (behaviour §4.5).
#[test]
fn idle_flows_end() {
    let mut test = Test::new();
    test.guest_pings(GUEST, "203.0.113.1", 0, 1);
    test.guest_pings(GUEST, "203.0.113.1", 1, 1);
    let socket = test.opened(0);
    test.wait(59);
    socket.socket.arrive("203.0.113.1:0", &message(v4::ECHO_REPLY, 0, 1, &vec![7; 60_000]));
    test.ready(&socket, READABLE);
    assert_eq!(echoed(&test.world.frame().0).4.len(), 60_000);
    test.wait(2);
    assert_eq!((test.ping.flows(), socket.closed(), test.opened(1).closed()), (1, false, true));
    test.wait(59);
    assert_eq!((test.ping.flows(), socket.closed()), (0, true));
    test.ready(&socket, READABLE);
    assert_eq!(test.ping.ended(), 0);
}

/// A monitoring program uses a new identifier for each of many hosts. Each request gets its reply, the number of
/// sockets is bounded, and answered flows end before flows that wait for a reply.
#[test]
fn a_new_identifier_ends_the_one_that_was_idle_for_longest() {
    let mut test = Test::new();
    test.guest_pings(GUEST, "203.0.113.9", 7, 1);
    let waiting = test.opened(0);
    for id in 1000..3000 {
        test.guest_pings(GUEST, "203.0.113.1", id, 1);
        let socket = test.world.host.opened.last().unwrap().clone();
        assert_eq!(socket.number, id);
        socket.socket.arrive("203.0.113.1:0", &message(v4::ECHO_REPLY, 4711, 1, b""));
        test.ready(&socket, READABLE);
        assert_eq!(echoed(&test.world.frame().0).2, id);
    }
    assert_eq!(
        (test.ping.flows(), test.world.host.open_files(), test.world.timers.len()),
        (LIMIT, LIMIT, LIMIT)
    );
    assert_eq!((test.ping.ended(), test.ping.counters().total()), (2001 - LIMIT as u64, 0));
    assert!(!waiting.closed());
    (0..LIMIT as u16).for_each(|id| test.guest_pings(GUEST, "203.0.113.1", id + 5000, 1));
    assert!(waiting.closed());
    // Flows also end at the limit of open files. If no flow can end, the request is lost.
    test.world.host.files = Some(5);
    test.wait(61);
    (0..20).for_each(|id| test.guest_pings(GUEST, "203.0.113.1", id, 1));
    assert_eq!((test.world.host.open_files(), test.ping.counters().no_room), (5, 0));
    test.wait(61);
    test.world.host.no_sockets = true;
    test.guest_pings(GUEST, "203.0.113.1", 7, 1);
    assert_eq!((test.ping.flows(), test.ping.counters().no_room), (0, 1));
}

/// If the link is full, messages are read from the socket, dropped, and counted.
#[test]
fn a_full_link_drops() {
    let mut test = Test::new();
    test.guest_pings(GUEST, "203.0.113.1", 7, 1);
    let socket = test.opened(0);
    test.world.link.full = true;
    socket.socket.arrive("203.0.113.1:0", &message(v4::ECHO_REPLY, 7, 1, b""));
    test.ready(&socket, READABLE);
    assert_eq!(test.ping.counters().link_full, 1);
    assert!(socket.socket.mailbox().arriving.is_empty());
}

/// A reply above the guest's MTU is sent in fragments. The guest can reassemble a valid message from them (behaviour
/// §4.7).
#[test]
fn a_large_reply_comes_in_fragments() {
    for (guest, remote, peer, reply) in [
        (GUEST, "203.0.113.1", "203.0.113.1:0", v4::ECHO_REPLY),
        (GUEST6, "2001:db8:2::1", "[2001:db8:2::1]:0", v6::ECHO_REPLY),
    ] {
        let mut test = Test::new();
        test.world.settings.mtu = 1280;
        test.guest_pings(guest, remote, 77, 5);
        let socket = test.opened(0);
        let payload: Vec<u8> = (0..3000).map(|at| (at / 9) as u8).collect();
        socket.socket.arrive(peer, &message(reply, 4711, 5, &payload));
        test.ready(&socket, READABLE);
        let frames = test.world.frames();
        let mut bytes = Vec::new();
        let mut first = None;
        for (frame, _) in &frames {
            assert!(frame.len() <= 14 + 1280);
            let packet = ip(frame);
            let Transport::Fragment(fragment) = packet.transport else { panic!("{packet:?}") };
            assert_eq!(usize::from(fragment.offset), bytes.len());
            bytes.extend_from_slice(fragment.payload);
            first.get_or_insert(wire::assembly::OriginalHeader::new(&packet, &fragment));
        }
        let packet = first.unwrap().packet(&bytes, &bytes[..]).unwrap();
        let Transport::Icmp(Message { header, payload: got }) = packet.transport else { panic!() };
        assert_eq!((frames.len(), packet.source, header.echo_id()), (3, remote.parse().unwrap(), 77));
        assert!(got == payload);
    }
}

/// If a guest with several addresses chooses a source address, the host uses the same address (behaviour §5.2.1).
#[test]
fn the_source_that_a_guest_with_several_addresses_chose_is_kept() {
    let mut test = Test::new();
    let second: IpAddr = "198.51.100.66".parse().unwrap();
    test.world.host.own = [second, GUEST.parse().unwrap()].into();
    test.guest_pings(GUEST, "203.0.113.9", 1, 1);
    let Fixture { guest, settings, .. } = &mut test.world;
    guest.shows(settings, second, Some(wire::ethernet::Mac([2, 0, 0, 0, 0, 0x55])));
    test.guest_pings("198.51.100.66", "203.0.113.9", 2, 1);
    test.guest_pings(GUEST, "203.0.113.9", 3, 1);
    assert_eq!(
        test.world.host.sources,
        [None, Some(second), GUEST.parse().ok()],
        "a guest with one address has not chosen it"
    );
}

/// Like UDP datagrams, echo messages count by the length of their packet (docs/design/rate-limit.md).
#[test]
fn requests_and_replies_above_the_rate_are_dropped_and_counted() {
    for (guest, remote, fit) in [(GUEST, "203.0.113.1", 117), (GUEST6, "2001:db8:2::1", 74)] {
        let mut test = Test::new();
        let rate = Some("8k".parse().unwrap());
        test.world.rate_limit = RateLimit::new(rate, rate, test.world.now);
        for sequence in 0..200 {
            test.guest_pings(guest, remote, 7, sequence);
        }
        let socket = test.opened(0);
        assert_eq!(socket.socket.sent().len(), fit);
        assert_eq!(test.ping.counters().over_limit, 200 - fit as u64);
        let kind = if remote.contains(':') { v6::ECHO_REPLY } else { v4::ECHO_REPLY };
        for sequence in 0..200 {
            let from = SocketAddr::new(remote.parse().unwrap(), 0);
            socket.socket.arrive(&format!("{from}"), &message(kind, 7, sequence, b"payload"));
            test.ready(&socket, READABLE);
        }
        assert_eq!(test.world.frames().len(), fit);
        assert_eq!(test.ping.counters().total(), 2 * (200 - fit as u64));
    }
}
