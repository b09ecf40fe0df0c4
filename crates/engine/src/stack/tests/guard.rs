//! Tests of refusals by the guard, with the whole stack (docs/guard.md).

use proptest::prelude::*;
use wire::{
    icmp,
    tcp::{self, Flags, Seq},
};

use super::*;
use crate::{
    guard::{Guard, Mode},
    host::Readiness,
    policy::{Policy, spec},
    testkit::{
        hello::long_client_hello,
        quic::{Initial, V1, crypto},
    },
};

pub(super) fn guard(rules: &str) -> Guard {
    let file = spec::parse_file(rules).unwrap();
    Guard::new(Policy::new(file.rules, file.default).unwrap(), Mode::default(), [1; 16])
}

pub(super) fn guarded(rules: &str) -> Test {
    let mut test = Test::new();
    *test.stack.guard_mut() = guard(rules);
    test
}

pub(super) fn syn(from: &str, to: &str) -> Vec<u8> {
    segment(from, to, Flags::SYN)
}

fn segment(from: &str, to: &str, flags: Flags) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let header = tcp::Header::new((from.port(), to.port()), Seq(7), Seq(0), flags, 1000, 0);
    let headers = outgoing(from, to);
    let (mut frame, offload) = testkit::guest::tcp(&headers, header, &[], 0, |_| ());
    complete_checksum(&mut frame, &offload);
    frame.truncate(headers.headroom(tcp::HEADER_LEN));
    frame
}

pub(super) fn ping(from: &str, to: &str) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let request = if from.is_ipv4() { icmp::v4::ECHO_REQUEST } else { icmp::v6::ECHO_REQUEST };
    testkit::guest::icmp(&outgoing(from, to), Header::new(request, 0, 17 << 16 | 1), b"echo")
}

/// Checks that the guest gets one frame: an ICMP error "prohibited" that quotes `frame`.
#[track_caller]
pub(super) fn assert_prohibited(test: &mut Test, frame: &[u8]) {
    let answers = test.wait(Duration::ZERO);
    assert_eq!(answers.len(), 1);
    let Transport::Icmp(Message { header, payload: quote }) = ip(&answers[0]).transport else { panic!() };
    let expected = if ip(frame).source.is_ipv4() { (3, 13) } else { (1, 1) };
    assert_eq!((header.kind, header.code), expected);
    let quoted = [&frame[..14], quote].concat();
    assert_eq!((ip(&quoted).source, ip(&quoted).destination), (ip(frame).source, ip(frame).destination));
}

#[test]
fn refused_flows_open_no_socket_and_are_answered_at_once() {
    for (guest, peer) in BOTH {
        let mut test = guarded("deny all");
        test.receive(&syn(guest, peer), &Offload::default());
        let answers = test.wait(Duration::ZERO);
        assert_eq!(answers.len(), 1);
        let (_, segment) = testkit::guest::segment(&answers[0]).unwrap();
        assert_eq!((segment.flags(), segment.ack()), (Flags::RST | Flags::ACK, Seq(8)));

        for frame in [datagram(guest, peer, b"refused").1, ping(guest, peer)] {
            test.receive(&frame, &Offload::default());
            assert_prohibited(&mut test, &frame);
        }
        assert_eq!(test.stack.guard().refused(), 3);
        assert_eq!(test.host.opened.len(), 0);
        assert_eq!((test.stack.udp().counters().refused, test.stack.ping().counters().refused), (1, 1));
        assert_eq!(test.stack.tcp().counters.refused, 1);
    }
}

/// If there are rules, packets that are never forwarded count as refused.
#[test]
fn packets_that_are_never_carried_are_refusals() {
    for (rules, expected) in [("allow all", 6), ("", 0)] {
        let mut test = if rules.is_empty() { Test::new() } else { guarded(rules) };
        for frame in [
            syn(GUEST, "224.0.0.1:80"),
            syn(GUEST6, "[::ffff:203.0.113.1]:80"),
            datagram(GUEST6, "[::ffff:203.0.113.1]:80", b"mapped").1,
            ping(GUEST, "127.0.0.1:1"),
            packet_of(132, GUEST, PEER),
            datagram("127.0.0.1:80", PEER, b"not the guest's").1,
        ] {
            test.receive(&frame, &Offload::default());
        }
        assert_eq!((test.stack.guard().refused(), test.host.opened.len()), (expected, 0), "{rules}");
    }
}

/// One ping socket serves all destinations, so each request is judged.
#[test]
fn a_ping_that_is_allowed_does_not_open_the_way_for_others() {
    let mut test = guarded("allow 203.0.113.1");
    test.receive(&ping(GUEST, PEER), &Offload::default());
    assert_eq!(test.socket().socket.sent().len(), 1);
    let refused = ping(GUEST, "203.0.113.2:7");
    test.receive(&refused, &Offload::default());
    assert_prohibited(&mut test, &refused);
    assert_eq!(test.socket().socket.sent().len(), 0);
}

/// A datagram from an address to which the guest must not write would open a flow with which the guest could answer.
#[test]
fn a_sender_that_the_guest_may_not_write_to_does_not_reach_it() {
    let mut test = guarded("allow 203.0.113.1\nallow 203.0.113.3");
    test.receive(&datagram(GUEST, PEER, b"question").1, &Offload::default());
    let (id, socket) = (test.socket().id, test.socket().socket.clone());
    for (from, arrives) in [("203.0.113.1:9", true), ("203.0.113.2:9", false), ("203.0.113.3:9", true)] {
        socket.arrive(from, b"answer");
        test.round().ready(id, Readiness { readable: true, ..Readiness::default() });
        assert_eq!(test.wait(Duration::ZERO).len(), usize::from(arrives), "{from}");
    }
    assert_eq!(test.stack.udp().counters().refused, 1);
    // The guest can't answer.
    let refused = datagram(GUEST, "203.0.113.2:9", b"answer").1;
    test.receive(&refused, &Offload::default());
    assert_prohibited(&mut test, &refused);
}

/// A test whose guest was given one address for two names.
fn named(rules: &str) -> Test {
    let mut test = guarded(rules);
    for name in [ALLOWED, OTHER_NAME] {
        let names = test.stack.guard_mut().names_mut().unwrap();
        assert!(names.learn("203.0.113.1".parse().unwrap(), name, 300, START));
    }
    test
}

const ALLOWED: &str = "files.example.org";
const OTHER_NAME: &str = "other.example.com";

/// The first datagrams of a QUIC client. The ClientHello of `len` bytes is split into two datagrams.
fn first_flight(name: &str, len: usize, id: &[u8]) -> [Vec<u8>; 2] {
    let message = long_client_hello(name, len);
    let (start, end) = message.split_at(len / 2);
    let header = Initial::first(V1, id);
    [header.seal(&crypto(0, start)), Initial { number: 1, ..header }.seal(&crypto(len / 2, end))]
}

#[test]
fn a_name_decides_about_quic_where_no_other_protocol_is_allowed() {
    let mut test = named("allow *.example.org:443,444");
    let refused = datagram(GUEST, "203.0.113.1:443", b"first").1;
    test.receive(&refused, &Offload::default());
    assert_prohibited(&mut test, &refused);
    assert_eq!((test.host.opened.len(), test.stack.guard().refused()), (0, 1));
    test.receive(&datagram(GUEST, "203.0.113.1:444", b"first").1, &Offload::default());
    assert_eq!(test.socket().socket.sent().len(), 1);
}

/// A fragmented datagram is read after its reassembly.
#[test]
fn a_hello_in_fragments_is_read() {
    for (name, allowed) in [(ALLOWED, true), (OTHER_NAME, false)] {
        let mut test = named("allow *.example.org:443");
        let datagrams = first_flight(name, 6000, b"connection");
        let mut frames: Vec<_> =
            datagrams.iter().flat_map(|datagram| fragments(GUEST, "203.0.113.1:443", datagram)).collect();
        let last = frames.pop().unwrap();
        test.receive_all(&frames);
        assert_eq!(test.host.opened.len(), 0);
        test.receive(&last, &Offload::default());
        assert_eq!(test.host.opened.len(), usize::from(allowed));
        if allowed {
            let sent: Vec<_> = test.socket().socket.sent().into_iter().map(|sent| sent.payload).collect();
            assert_eq!(sent, datagrams);
        }
    }
}

/// An action of the guest, of its peers, or of the administrator who sets the rules.
#[derive(Clone, Debug)]
enum Step {
    /// A SYN, or a reset of the connection.
    Tcp {
        port: u8,
        reset: bool,
    },
    /// One of the first datagrams of a QUIC client, or a datagram of another protocol.
    Datagram {
        port: u8,
        which: u8,
        id: u8,
    },
    Ping,
    /// A datagram arrives at a socket.
    Answer {
        socket: u8,
        from_port: u16,
    },
    /// This number of seconds passes.
    Wait(u8),
    Replace(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..4u8, any::<bool>()).prop_map(|(port, reset)| Step::Tcp { port, reset }),
        6 => (0..6u8, 0..6u8, 0..6u8).prop_map(|(port, which, id)| Step::Datagram { port, which, id }),
        1 => Just(Step::Ping),
        2 => (any::<u8>(), prop_oneof![Just(443u16), Just(444), Just(445)])
            .prop_map(|(socket, from_port)| Step::Answer { socket, from_port }),
        2 => (0..60u8).prop_map(Step::Wait),
        1 => (0..5u8).prop_map(Step::Replace),
    ]
}

const POLICIES: [&str; 5] = [
    "allow *.example.org",
    "allow *.example.org:443,444\nallow other.example.com:1-65535",
    "allow other.example.com",
    "allow all",
    "deny all",
];

fn policy(number: u8) -> Policy {
    let file = spec::parse_file(POLICIES[usize::from(number)]).unwrap();
    Policy::new(file.rules, file.default).unwrap()
}

impl Test {
    fn take(&mut self, step: &Step) {
        let from = |port: u8| alloc::format!("198.51.100.55:{}", 4000 + u16::from(port));
        match *step {
            Step::Tcp { port, reset: false } => {
                self.receive(&syn(&from(port), "203.0.113.1:443"), &Offload::default());
            }
            Step::Tcp { port, reset: true } => {
                self.receive(&segment(&from(port), "203.0.113.1:443", Flags::RST), &Offload::default());
            }
            Step::Datagram { port, which, id } => {
                let name = if which & 1 == 0 { ALLOWED } else { OTHER_NAME };
                let [a, b] = first_flight(name, 400, &[id; 8]);
                let payload = match which {
                    0 | 1 => a,
                    2 | 3 => b,
                    _ => b"no QUIC".to_vec(),
                };
                let to = ["203.0.113.1:443", "203.0.113.1:444"][usize::from(id & 1)];
                self.receive(&datagram(&from(port), to, &payload).1, &Offload::default());
            }
            Step::Ping => self.receive(&ping(GUEST, PEER), &Offload::default()),
            Step::Answer { socket, from_port } => {
                let open: Vec<_> =
                    self.host.opened.iter().filter(|opened| !opened.closed()).cloned().collect();
                let Some(opened) = open.get(usize::from(socket) % open.len().max(1)) else { return };
                opened.socket.arrive(&alloc::format!("203.0.113.1:{from_port}"), b"answer");
                self.round().ready(opened.id, Readiness { readable: true, ..Readiness::default() });
                drop(self.wait(Duration::ZERO));
            }
            Step::Wait(seconds) => drop(self.wait(Duration::from_secs(seconds.into()))),
            Step::Replace(number) => drop(self.round().replace_policy(policy(number))),
        }
    }
}

proptest! {
    /// After any sequence of steps, flows that have ended hold no names.
    #[test]
    fn when_all_flows_have_ended_no_name_is_held(
        first in 0..3u8,
        files in prop::option::of(1..4usize),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut test = named(POLICIES[usize::from(first)]);
        test.host.files = files;
        for step in &steps {
            test.take(step);
        }
        test.round().link_lost();
        for _ in 0..4 {
            test.wait(Duration::from_secs(400));
        }
        let flows = (test.stack.tcp().len(), test.stack.udp().flows(), test.stack.ping().flows());
        prop_assert_eq!(flows, (0, 0, 0));
        prop_assert_eq!(test.stack.guard_mut().names_mut().map_or(0, |names| names.held()), 0);
        prop_assert_eq!(test.stack.timers().len(), 0);
    }
}
