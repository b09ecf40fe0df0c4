use alloc::{format, vec, vec::Vec};
use core::net::IpAddr;

use wire::{frame::Transport, offload::Segmentation};
use zerocopy::big_endian::U16;

mod judged;

use super::*;
use crate::{
    host::{Errno, QueuedError, Report},
    rate_limit::RateLimit,
    share::Bound,
    testkit::{
        datagram::{Opened, received},
        fixture::Fixture,
        guest::{datagram, ip},
        host::{ERROR, READABLE},
        link::{Kept, Virtual},
    },
};

const LIMITS: Limits = Limits {
    files: Share { most: 10, bound: Bound::Fixed },
    bytes: 10_000,
    idle: Duration::from_secs(30),
    idle_stream: Duration::from_secs(120),
};
const GUEST: &str = "198.51.100.55:4000";
const GUEST6: &str = "[2001:db8:1::55]:4000";
const DNS4: &str = "198.51.100.53:53";
const DNS6: &str = "[2001:db8::53]:53";
/// Servers of both families.
const SERVERS: [&str; 3] = ["2001:db8:9::1", "192.0.2.2", "192.0.2.3"];
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;

struct Test {
    world: Fixture,
    dns: Dns<Virtual<Kept>>,
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8]);
    message.extend(name.as_bytes());
    message.extend([0, 0, 1, 0, 1]);
    message
}

fn answer(query: &[u8], code: u8) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80;
    message[3] = 0x80 | code;
    message
}

impl Test {
    fn new() -> Self {
        Self::with(&SERVERS)
    }

    fn with(servers: &[&str]) -> Self {
        let mut world = Fixture::default();
        let servers: Vec<IpAddr> = servers.iter().map(|server| server.parse().unwrap()).collect();
        world.settings.v4.as_mut().unwrap().dns_servers = servers.clone();
        world.settings.v6.as_mut().unwrap().dns_servers = servers;
        Self { world, dns: Dns::new(LIMITS, [7; 16], [8; 16]) }
    }

    fn guest_sends(&mut self, from: &str, to: &str, payload: &[u8]) {
        self.guest_sends_as(from, to, payload, &Offload::default());
    }

    fn guest_sends_as(&mut self, from: &str, to: &str, payload: &[u8], offload: &Offload) {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let header = wire::udp::Header {
            source_port: U16::new(from.port()),
            destination_port: U16::new(to.port()),
            len: U16::new((wire::udp::HEADER_LEN + payload.len()) as u16),
            checksum: U16::ZERO,
        };
        let datagram = wire::udp::Datagram { header: &header, payload };
        let packet = Packet {
            source: from.ip(),
            destination: to.ip(),
            hop_limit: 1,
            traffic_class: 0x28,
            flow_label: 0,
            dont_fragment: false,
            transport: Transport::Udp(datagram),
        };
        self.dns.on_datagram(&packet, &datagram, offload, &mut self.world.context());
    }

    fn ready(&mut self, socket: &Opened, readiness: Readiness) {
        self.dns.on_ready(socket.id, readiness, &mut self.world.context());
    }

    /// A server sends a datagram.
    fn server_sends(&mut self, socket: &Opened, from: &str, payload: &[u8]) {
        socket.socket.arrive(from, payload);
        self.ready(socket, READABLE);
    }

    /// The server of a socket answers `query` with the code `code`.
    fn server_says(&mut self, socket: &Opened, query: &[u8], code: u8) {
        self.server_sends(socket, &format!("{}", SocketAddr::new(socket.address, 53)), &answer(query, code));
    }

    /// An ICMP error arrives for the query that was sent to the server of a socket.
    fn server_fails(&mut self, socket: &Opened, kind: u8, code: u8) {
        let error = QueuedError {
            destination: SocketAddr::new(socket.address, 53),
            local: None,
            report: Some(Report { kind, code, info: 0 }),
            offender: None,
            refused: false,
            quoted: 0,
        };
        socket.socket.error(error, b"");
        self.ready(socket, ERROR);
    }

    fn wait(&mut self, millis: u64) {
        self.world.now = self.world.now + Duration::from_millis(millis);
        while let Some(id) = self.world.timers.pop_due(self.world.now) {
            self.dns.on_deadline(id, &mut self.world.context());
        }
    }

    /// The servers that were asked since the start.
    fn asked(&self) -> Vec<alloc::string::String> {
        self.world.host.opened.iter().map(|opened| format!("{}", opened.address)).collect()
    }

    fn opened(&self, index: usize) -> Opened {
        self.world.host.opened[index].clone()
    }

    /// No exchange, deadline or memory is left.
    #[track_caller]
    fn assert_over(&self) {
        assert_eq!((self.dns.len(), self.dns.files, self.dns.bytes), (0, 0, 0));
        assert_eq!((self.dns.by_age.first(), self.world.timers.len()), (None, 0));
    }
}

#[track_caller]
fn assert_shown(frame: &[u8], from: &str, to: &str, payload: &[u8]) {
    assert_eq!(datagram(frame), (from.parse().unwrap(), to.parse().unwrap(), payload));
}

/// Type, code and source of an ICMP message.
fn icmp_of(frame: &[u8]) -> (u8, u8, IpAddr) {
    let packet = ip(frame);
    let Transport::Icmp(message) = packet.transport else { panic!("no ICMP: {packet:?}") };
    (message.header.kind, message.header.code, packet.source)
}

#[test]
fn queries_cross_families() {
    for (server, at) in [("2001:db8:9::1", "[2001:db8:9::1]:53"), ("192.0.2.2", "192.0.2.2:53")] {
        for (guest, remote) in [(GUEST, DNS4), (GUEST6, DNS6)] {
            let mut test = Test::with(&[server]);
            let question = query(7, "peer");
            test.guest_sends(guest, remote, &question);
            let socket = test.opened(0);
            assert_eq!(socket.number, 0, "any port");
            let sent = socket.socket.sent();
            assert_eq!((sent[0].destination, &sent[0].payload), (at.parse().unwrap(), &question));
            assert_eq!((sent[0].hop_limit, sent[0].traffic_class), (64, 0x28), "the host sends the query");
            test.server_says(&socket, &question, 0);
            assert_shown(&test.world.frame().0, remote, guest, &answer(&question, 0));
            test.assert_over();
        }
    }
}

/// Each server has 1.5 s before the next server is asked. After the last server was asked, there is time for late
/// answers.
#[test]
fn the_next_server_is_asked_after_silence() {
    let mut test = Test::new();
    let question = query(7, "peer");
    test.guest_sends(GUEST, DNS4, &question);
    test.wait(1490);
    assert_eq!(test.asked().len(), 1);
    test.wait(20);
    assert_eq!(test.asked(), SERVERS[..2]);
    test.wait(1510);
    assert_eq!(test.asked(), SERVERS);
    for index in 0..3 {
        assert_eq!(test.opened(index).socket.sent()[0].payload, question);
    }
    // The second server answers late.
    test.wait(9900);
    test.server_says(&test.opened(1), &question, 0);
    assert_shown(&test.world.frame().0, DNS4, GUEST, &answer(&question, 0));
    test.assert_over();
    // The first server was silent, so the second server now comes first.
    test.guest_sends(GUEST, DNS4, &question);
    assert_eq!(test.asked()[3..], SERVERS[1..2]);
    test.server_says(&test.opened(3), &question, 0);
    test.wait(30_000);
    test.guest_sends(GUEST, DNS4, &question);
    assert_eq!(test.asked()[4..], SERVERS[..1], "after the penalty it is asked first again");
}

#[test]
fn without_any_answer_the_guest_gets_none() {
    let mut test = Test::new();
    test.guest_sends(GUEST, DNS4, &query(7, "peer"));
    for _ in 0..20 {
        test.wait(1000);
    }
    assert_eq!((test.asked().len(), test.world.frames().len()), (3, 0));
    test.assert_over();
}

/// After an ICMP error, or if the host refuses to send, the next server is asked at once.
#[test]
fn the_next_server_is_asked_at_once_after_an_error() {
    let mut test = Test::new();
    let question = query(7, "peer");
    test.guest_sends(GUEST, DNS4, &question);
    test.server_fails(&test.opened(0), 1, 4);
    assert_eq!(test.asked(), SERVERS[..2]);
    assert_eq!(test.world.frames().len(), 0);
    test.server_says(&test.opened(1), &question, 0);
    assert_shown(&test.world.frame().0, DNS4, GUEST, &answer(&question, 0));
    test.assert_over();
    // The next question goes first to the server that has answered.
    test.guest_sends(GUEST, DNS4, &question);
    assert_eq!(test.asked()[2..], SERVERS[1..2]);
    // The kernel handles "packet too big".
    test.server_fails(&test.opened(2), 3, 4);
    assert_eq!(test.asked().len(), 3);
}

/// RFC 7915: if no server can be reached, the guest gets the error, translated to the guest's family.
#[test]
fn the_last_error_reaches_the_guest() {
    let port_unreachable = |v4| if v4 { (3, 3) } else { (1, 4) };
    for (server, server_v4) in [("192.0.2.2", true), ("2001:db8:9::1", false)] {
        for (guest, remote, v4) in [(GUEST, DNS4, true), (GUEST6, DNS6, false)] {
            let mut test = Test::with(&[server]);
            test.guest_sends(guest, remote, &query(7, "peer"));
            let (kind, code) = port_unreachable(server_v4);
            test.server_fails(&test.opened(0), kind, code);
            let (kind, code) = port_unreachable(v4);
            let remote: SocketAddr = remote.parse().unwrap();
            assert_eq!(icmp_of(&test.world.frame().0), (kind, code, remote.ip()));
            test.assert_over();
        }
    }
    let mut test = Test::with(&["192.0.2.2"]);
    test.guest_sends(GUEST6, DNS6, &query(7, "peer"));
    test.server_fails(&test.opened(0), 3, 1);
    assert_eq!(icmp_of(&test.world.frame().0), (1, 0, "fe80::1".parse().unwrap()), "from a router");
}

/// Servers for which a socket can't be opened, or sending fails, are skipped.
#[test]
fn servers_that_cannot_be_asked_are_skipped() {
    let mut test = Test::new();
    test.world.host.refusals = vec![Errno(97), Errno(101)].into();
    let question = query(7, "peer");
    test.guest_sends(GUEST, DNS4, &question);
    assert_eq!(test.asked(), SERVERS[2..]);
    test.server_says(&test.opened(0), &question, 0);
    assert_eq!(test.world.frames().len(), 1);
    test.world.host.refusals = vec![Errno(101); 3].into();
    test.guest_sends(GUEST, DNS4, &question);
    assert_eq!(icmp_of(&test.world.frame().0), (3, 0, "198.51.100.1".parse().unwrap()));
    test.assert_over();
    test.world.host.no_sockets = true;
    test.guest_sends(GUEST, DNS4, &question);
    assert_eq!(test.world.frames().len(), 0, "no socket at all: the stub resolver retries");
    test.assert_over();
}

/// After SERVFAIL or REFUSED another server is asked. If no server has a better answer, the guest gets the first
/// answer.
#[test]
fn the_first_refusal_is_kept_until_a_better_answer_comes() {
    let question = query(7, "peer");
    for code in [SERVFAIL, 4, REFUSED] {
        let mut test = Test::new();
        test.guest_sends(GUEST, DNS4, &question);
        test.server_says(&test.opened(0), &question, code);
        assert_eq!((test.asked().len(), test.world.frames().len()), (2, 0));
        test.server_says(&test.opened(1), &question, NXDOMAIN);
        assert_shown(&test.world.frame().0, DNS4, GUEST, &answer(&question, NXDOMAIN));
        test.assert_over();
    }
    // The first server refuses, the second is silent, and the third has no service. After the last time-out, the guest
    // gets the refusal.
    let mut test = Test::new();
    test.guest_sends(GUEST, DNS4, &question);
    test.server_says(&test.opened(0), &question, REFUSED);
    test.wait(1510);
    test.server_fails(&test.opened(2), 3, 3);
    assert_eq!(test.world.frames().len(), 0);
    test.wait(1510);
    assert_shown(&test.world.frame().0, DNS4, GUEST, &answer(&question, REFUSED));
    test.assert_over();
    // All servers refuse.
    test.guest_sends(GUEST, DNS4, &question);
    for index in 3..6 {
        assert_eq!(test.world.frames().len(), 0);
        test.server_says(&test.opened(index), &question, if index == 3 { REFUSED } else { SERVFAIL });
    }
    assert_eq!(test.world.frames().len(), 1);
    test.assert_over();
}

/// Datagrams from other servers, and with other questions, are ignored.
#[test]
fn other_datagrams_are_no_answers() {
    let mut test = Test::new();
    let question = query(7, "peer");
    test.guest_sends(GUEST, DNS4, &question);
    let socket = test.opened(0);
    let (server, good) = ("[2001:db8:9::1]:53", answer(&question, 0));
    for (from, payload) in [
        ("[2001:db8:9::2]:53", good.clone()),
        ("[2001:db8:9::1]:54", good.clone()),
        ("192.0.2.2:53", good.clone()),
        (server, answer(&query(8, "peer"), 0)),
        (server, answer(&query(7, "pear"), 0)),
        (server, question.clone()),
        (server, b"".to_vec()),
        (server, b"\0\x07\x80".to_vec()),
    ] {
        test.server_sends(&socket, from, &payload);
    }
    assert_eq!((test.world.frames().len(), test.dns.counters().undeliverable), (0, 8));
    assert_eq!(test.asked().len(), 1);
    // The socket still works.
    test.server_sends(&socket, server, &good);
    assert_shown(&test.world.frame().0, DNS4, GUEST, &good);
}

/// A repeated query goes to the next server. After the last server, it goes to the first. Another query starts a new
/// exchange.
#[test]
fn repeated_queries() {
    let mut test = Test::with(&SERVERS[1..]);
    let question = query(7, "peer");
    for expected in [&[1, 0][..], &[1, 1], &[2, 1]] {
        test.guest_sends(GUEST, DNS4, &question);
        let count = |index: usize| {
            test.world.host.opened.get(index).map_or(0, |opened| opened.socket.mailbox().sent.len())
        };
        assert_eq!([count(0), count(1)], expected);
    }
    assert_eq!(test.dns.len(), 1);
    test.guest_sends(GUEST, DNS4, &query(7, "other"));
    assert_eq!((test.dns.len(), test.asked().len()), (1, 3));
    assert!(test.opened(0).closed());
    // Queries from one port are distinguished by their identifiers.
    test.guest_sends(GUEST, DNS4, &query(8, "other"));
    test.server_says(&test.opened(3), &query(8, "other"), 0);
    assert_shown(&test.world.frame().0, DNS4, GUEST, &answer(&query(8, "other"), 0));
    assert_eq!(test.dns.len(), 1);
}

/// A message that is too long to be stored, or is not a query, is sent only once.
#[test]
fn messages_that_are_not_stored_are_sent_once() {
    let mut long = query(7, "peer");
    long.resize(4097, 0);
    let mut update = query(7, "peer");
    update[2] |= 5 << 3;
    for question in [long, update] {
        let mut test = Test::new();
        test.guest_sends(GUEST, DNS4, &question);
        assert_eq!(test.opened(0).socket.sent()[0].payload, question);
        test.wait(5000);
        assert_eq!(test.asked().len(), 1);
        test.server_says(&test.opened(0), &question, SERVFAIL);
        assert_shown(&test.world.frame().0, DNS4, GUEST, &answer(&question, SERVFAIL));
        test.assert_over();
    }
}

/// Answers up to the maximum length arrive, even above the guest's MTU.
#[test]
fn long_answers() {
    let mut test = Test::new();
    let question = query(7, "peer");
    for (len, mtu, frames) in [(40_000, 65520, 1), (4000, 1500, 3)] {
        test.world.settings.mtu = mtu;
        test.guest_sends(GUEST, DNS4, &question);
        let mut payload = answer(&question, 0);
        payload.resize(len, 7);
        let socket = test.world.host.opened.last().unwrap().clone();
        test.server_sends(&socket, "[2001:db8:9::1]:53", &payload);
        assert_eq!(test.world.frames().len(), frames, "{len}");
    }
    test.assert_over();
}

/// A train of queries is split.
#[test]
fn trains_are_split() {
    let mut test = Test::new();
    let train = [query(7, "peer"), query(8, "peer"), query(9, "peer")].concat();
    let size = (train.len() / 3) as u16;
    let segmentation = Some(Segmentation { kind: SegmentKind::Udp, size, ecn: false });
    test.guest_sends_as(GUEST, DNS4, &train, &Offload { segmentation, ..Offload::default() });
    assert_eq!(test.dns.len(), 3);
    assert_eq!(test.opened(2).socket.sent()[0].payload, query(9, "peer"));
}

/// DTLS, QUIC and other messages make sessions with one server, across families.
#[test]
fn sessions() {
    for (to, port, payload) in [("198.51.100.53:853", 853, query(7, "peer")), (DNS4, 53, b"hello".to_vec())] {
        let mut test = Test::new();
        let server = format!("[2001:db8:9::1]:{port}");
        for _ in 0..2 {
            test.guest_sends(GUEST, to, &payload);
            test.guest_sends(GUEST, to, b"");
            let socket = test.opened(0);
            assert_eq!(socket.socket.sent().len(), 2);
            test.server_sends(&socket, &server, b"one");
            test.server_sends(&socket, &server, b"two");
            let frames = test.world.frames();
            assert_eq!(frames.len(), 2);
            assert_shown(&frames[1].0, to, GUEST, b"two");
            test.wait(100_000);
        }
        assert_eq!((test.asked().len(), test.dns.len()), (1, 1));
        test.wait(121_000);
        test.assert_over();
        // The first server has no service, the second is silent, and the third answers: the session stays with the
        // third.
        test.guest_sends(GUEST, to, &payload);
        let error = |server: &str, kind, code| QueuedError {
            destination: server.parse().unwrap(),
            local: None,
            report: Some(Report { kind, code, info: 0 }),
            offender: None,
            refused: false,
            quoted: 0,
        };
        test.opened(1).socket.error(error(&server, 1, 4), b"");
        test.ready(&test.opened(1), ERROR);
        assert_eq!(test.asked()[1..], SERVERS[..2]);
        test.wait(1510);
        assert_eq!(test.asked()[1..], SERVERS);
        assert_eq!(test.opened(3).socket.sent()[0].payload, payload);
        let server = format!("192.0.2.3:{port}");
        test.server_sends(&test.opened(3), &server, b"here");
        assert_shown(&test.world.frame().0, to, GUEST, b"here");
        assert_eq!((test.dns.files, test.dns.bytes), (1, 0));
        test.guest_sends(GUEST, to, b"more");
        assert_eq!(test.opened(3).socket.sent()[0].payload, b"more");
        // If that server fails, the guest gets the error.
        test.opened(3).socket.error(error(&server, 3, 3), b"");
        test.ready(&test.opened(3), ERROR);
        assert_eq!(icmp_of(&test.world.frame().0), (3, 3, "198.51.100.53".parse().unwrap()));
        assert_eq!(test.asked().len(), 4);
        test.assert_over();
    }
}

/// At the limit, the oldest exchange ends to make room for a new one. Memory and sockets are bounded.
#[test]
fn the_oldest_exchange_ends_at_the_limit() {
    let mut test = Test::with(&SERVERS[..1]);
    for id in 0..50 {
        test.guest_sends(GUEST, DNS4, &query(id, "peer"));
    }
    assert_eq!((test.dns.len(), test.dns.files, test.asked().len()), (10, 10, 50));
    let open = test.world.host.opened.iter().filter(|opened| !opened.closed());
    assert_eq!(open.count(), 10);
    test.server_says(&test.opened(49), &query(49, "peer"), 0);
    assert_eq!(test.world.frames().len(), 1);
    test.wait(11_000);
    test.assert_over();
    // Sockets for further servers count, too.
    let mut test = Test::new();
    for id in 0..6 {
        test.guest_sends(GUEST, DNS4, &query(id, "peer"));
    }
    test.wait(1510);
    test.wait(1510);
    assert!(test.dns.files <= 10);
    // A query that does not fit in the memory for queries is sent only once.
    let mut test = Test::new();
    for id in 0..5 {
        let mut question = query(id, "peer");
        question.resize(4000, 0);
        test.guest_sends(GUEST, DNS4, &question);
    }
    let repeatable = test.dns.exchanges.iter().filter(|(_, exchange)| exchange.repeatable).count();
    assert_eq!((repeatable, test.dns.len()), (2, 5));
    assert!(test.dns.bytes < 10_000);
}

/// datagrams from invalid sources are refused.
#[test]
fn invalid_sources_are_refused_r100_r77() {
    let mut test = Test::new();
    for from in ["224.0.0.1:4000", "127.0.0.1:4000", "198.51.100.55:0"] {
        test.guest_sends(from, DNS4, &query(7, "peer"));
    }
    assert_eq!((test.asked().len(), test.dns.counters().invalid), (0, 3));
}

/// If the link is full, the answer is dropped and counted, and the exchange ends.
#[test]
fn a_full_link_drops() {
    let mut test = Test::new();
    let question = query(7, "peer");
    test.guest_sends(GUEST, DNS4, &question);
    test.world.link.full = true;
    test.server_says(&test.opened(0), &question, 0);
    assert_eq!(test.dns.counters().link_full, 1);
    test.assert_over();
}

/// The answer can be any datagram of a train from the server.
#[test]
fn answers_in_a_train() {
    let mut test = Test::new();
    let question = query(7, "peer");
    test.guest_sends(GUEST, DNS4, &question);
    let size = question.len();
    let payload = [answer(&query(8, "peer"), 0), answer(&question, 0)].concat();
    let arriving =
        crate::host::Received { segment_size: Some(size as u16), ..received("[2001:db8:9::1]:53") };
    test.opened(0).socket.arrive_as(arriving, &payload);
    test.ready(&test.opened(0), READABLE);
    assert_shown(&test.world.frame().0, DNS4, GUEST, &answer(&question, 0));
}

/// Like UDP datagrams, queries and answers count by the length of their packet (docs/design/rate-limit.md).
#[test]
fn questions_and_answers_above_the_rate_are_dropped_and_counted() {
    let mut test = Test::with(&["192.0.2.1"]);
    let rate = Some("8k".parse().unwrap());
    test.world.rate_limit = RateLimit::new(rate, None, test.world.now);
    let question = query(7, "example");
    let fit = 4096 / (28 + question.len());
    for _ in 0..100 {
        test.guest_sends(GUEST, DNS4, &question);
    }
    let socket = test.world.host.opened[0].clone();
    assert!(socket.socket.sent().len() <= fit);
    assert_eq!(test.dns.counters().over_limit, 100 - fit as u64);

    test.world.rate_limit = RateLimit::new(None, rate, test.world.now);
    let before = test.dns.counters().over_limit;
    let mut answers = 0;
    for id in 100..200 {
        test.guest_sends(GUEST, DNS4, &query(id, "example"));
        let socket = test.world.host.opened.last().unwrap().clone();
        test.server_says(&socket, &query(id, "example"), 0);
        answers += test.world.frames().len();
    }
    assert_eq!(answers, fit);
    assert_eq!(test.dns.counters().over_limit - before, 100 - fit as u64);
}
