//! Tests of flows that only a rule by name allows: the client's first datagrams decide (docs/guard.md).

mod hostile;

use proptest::prelude::*;

use super::{errors::icmp_error, listeners::listener, *};
use crate::{
    first_bytes::Found,
    guard::{Guard, Mode},
    policy::{Policy as Rules, spec},
    testkit::{
        hello::{client_hello, long_client_hello, server_name},
        quic::{Initial, V1, V2, crypto},
        settings::START,
    },
};

const ALLOWED: &str = "files.example.org";
/// Another name with the same address. The guest has asked for it, too.
const OTHER: &str = "other.example.com";
const SERVER: &str = "203.0.113.9:443";
const RULES: &str = "allow *.example.org\nallow 203.0.113.1";
/// A packet with a short header.
const SHORT: [u8; 30] = [0x45; 30];

fn guard(rules: &str, mode: Mode) -> Guard {
    let file = spec::parse_file(rules).unwrap();
    let mut guard = Guard::new(Rules::new(file.rules, file.default).unwrap(), mode, [1; 16]);
    for name in [ALLOWED, OTHER] {
        let names = guard.names_mut().unwrap();
        assert!(names.learn("203.0.113.9".parse().unwrap(), name, 300, START));
    }
    guard
}

fn hello(name: &str) -> Vec<u8> {
    client_hello(&[(0, &server_name(name.as_bytes()))])
}

/// A datagram with one Initial packet. It is as long as datagrams of real clients.
fn initial(id: &[u8], number: u32, frames: &[u8]) -> Vec<u8> {
    let mut frames = frames.to_vec();
    frames.resize(frames.len().max(1150), 0);
    Initial { number, ..Initial::first(V1, id) }.seal(&frames)
}

/// The first datagram of a client that asks for `name`.
fn first(id: &[u8], name: &str) -> Vec<u8> {
    initial(id, 0, &crypto(0, &hello(name)))
}

/// The first two datagrams of a client with a long ClientHello.
fn two(id: &[u8], name: &str) -> [Vec<u8>; 2] {
    let message = long_client_hello(name, 1800);
    [initial(id, 0, &crypto(0, &message[..1000])), initial(id, 1, &crypto(1000, &message[1000..]))]
}

fn train(size: u16) -> Offload {
    let segmentation = Some(Segmentation { kind: SegmentKind::Udp, size, ecn: false });
    Offload { segmentation, ..Offload::default() }
}

impl Test {
    fn named(rules: &str) -> Self {
        Self::in_mode(rules, Mode::default())
    }

    fn in_mode(rules: &str, mode: Mode) -> Self {
        let mut test = Self::new();
        test.world.guard = guard(rules, mode);
        test
    }

    fn sends(&mut self, datagram: &[u8]) {
        self.guest_sends(GUEST, SERVER, datagram);
    }

    /// The datagrams that the host's sockets have sent since the last call. Trains are split into datagrams.
    fn left(&self) -> Vec<Vec<u8>> {
        let sent = self.world.host.opened.iter().flat_map(|opened| opened.socket.sent());
        let datagrams = sent.flat_map(|sent| {
            let size = sent.segment_size.map_or(sent.payload.len(), usize::from);
            sent.payload.chunks(size.max(1)).map(<[u8]>::to_vec).collect::<Vec<_>>()
        });
        datagrams.collect()
    }

    /// Checks that nothing was sent, and that there is neither a socket nor a flow.
    #[track_caller]
    fn assert_nothing(&self) {
        assert_eq!((self.world.host.opened.len(), self.udp.flows(), self.left().len()), (0, 0, 0));
    }

    /// Checks that a flow waits, that nothing was sent, and that the guest got no frame.
    #[track_caller]
    fn assert_waiting(&mut self) {
        assert!(self.udp.checks.waiting().0 > 0);
        assert_eq!((self.left().len(), self.world.frames().len()), (0, 0));
    }

    /// Checks that the guest got one ICMP error "prohibited" that quotes `datagram`.
    #[track_caller]
    fn assert_prohibited(&mut self, datagram: &[u8]) {
        let ((_, kind, code, _), quote) = icmp_error(&self.world.frame().0);
        assert_eq!((kind, code), (3, 13));
        let (headers, payload) = quote.split_at(28);
        let ports = [4000_u16, 443].map(u16::to_be_bytes).concat();
        let len = (8 + datagram.len() as u16).to_be_bytes();
        assert_eq!(headers[12..], [&[198, 51, 100, 55, 203, 0, 113, 9], &ports[..], &len, &[0, 0]].concat());
        assert_eq!(payload, &datagram[..datagram.len().min(payload.len())]);
    }

    /// Checks that the flow between guest and server forwards datagrams in both directions.
    #[track_caller]
    fn assert_open(&mut self) {
        self.left();
        self.sends(&SHORT);
        assert_eq!(self.left(), [SHORT]);
        let socket = self.world.host.opened.last().unwrap().clone();
        assert_shown(&self.answer(&socket, SERVER, b"answer"), SERVER, GUEST, b"answer");
    }

    fn refused(&self) -> (u64, u64) {
        (self.world.guard.refused(), self.udp.counters().refused)
    }

    /// Ends all flows. Checks that no state of their checks is left.
    fn end(&mut self) {
        for _ in 0..3 {
            self.wait(130);
        }
        assert_eq!((self.udp.flows(), self.world.timers.len()), (0, 0));
        self.udp.checks.assert_empty();
        assert_eq!(self.world.guard.names_mut().map_or(0, |names| names.held()), 0);
    }
}

#[test]
fn an_allowed_name_opens_the_flow() {
    for names in [ALLOWED, "Files.Example.ORG."] {
        let mut test = Test::named(RULES);
        let datagram = first(b"connection", names);
        test.guest_sends_as(GUEST, SERVER, &datagram, 9, 0xb9, &Offload::default());
        let sent = test.opened(0).socket.sent();
        assert_eq!((sent.len(), sent[0].hop_limit, sent[0].traffic_class), (1, 9, 0xb9));
        assert_eq!((&sent[0].payload, sent[0].destination), (&datagram, SERVER.parse().unwrap()));
        test.assert_open();
        assert_eq!(test.refused(), (0, 0));
        test.end();
    }
}

#[test]
fn datagrams_wait_for_a_name_that_needs_two_and_leave_in_order() {
    let [a, b] = two(b"connection", ALLOWED);
    for datagrams in [[&a, &b], [&b, &a]] {
        let mut test = Test::named(RULES);
        test.guest_sends_as(GUEST, SERVER, datagrams[0], 5, 0, &Offload::default());
        test.assert_nothing();
        test.guest_sends_as(GUEST, SERVER, datagrams[1], 7, 0, &Offload::default());
        let sent = test.opened(0).socket.sent();
        let sent: Vec<_> = sent.iter().map(|sent| (sent.hop_limit, &sent.payload)).collect();
        assert_eq!(sent, [(5, datagrams[0]), (7, datagrams[1])]);
        test.assert_open();
        test.end();
    }
}

#[test]
fn other_names_are_refused_and_open_no_socket() {
    for name in [OTHER, "203.0.113.9", "unknown.example.org"] {
        let mut test = Test::named(RULES);
        let [a, b] = two(b"connection", name);
        test.sends(&a);
        test.assert_nothing();
        test.sends(&b);
        test.assert_nothing();
        test.assert_prohibited(&a);
        // The client tries again.
        test.sends(&a);
        test.sends(&b);
        test.assert_prohibited(&a);
        assert_eq!(test.refused(), (2, 2));
        test.end();
    }
}

#[test]
fn who_sends_only_half_a_name_is_refused_after_ten_seconds() {
    let [a, b] = two(b"connection", ALLOWED);
    let mut test = Test::named(RULES);
    test.sends(&a);
    test.wait(9);
    assert_eq!(test.world.frames().len(), 0);
    test.wait(2);
    test.assert_prohibited(&a);
    assert_eq!(test.refused(), (1, 1));
    // The second half alone does not contain the name.
    test.sends(&b);
    test.assert_nothing();
    test.sends(&a);
    assert_eq!(test.left(), [b, a]);
    test.assert_open();
    test.end();
}

/// The client sends early data and repeats its packets before its name is complete.
#[test]
fn all_datagrams_are_held_back_until_the_verdict() {
    let [a, b] = two(b"connection", ALLOWED);
    let early = [&[0xd0, 0, 0, 0, 1, 10][..], b"connection", &[0, 30], &[7; 30]].concat();
    let mut test = Test::named(RULES);
    for datagram in [&early, &a, &early, &a, &SHORT.to_vec()] {
        test.sends(datagram);
        test.assert_nothing();
    }
    test.sends(&b);
    assert_eq!(test.left(), [early.clone(), a.clone(), early, a, SHORT.to_vec(), b]);
}

#[test]
fn half_a_name_after_the_verdict_is_dropped_after_ten_seconds() {
    let mut test = Test::named(RULES);
    test.sends(&first(b"connection", ALLOWED));
    test.left();
    let [a, b] = two(b"another id", ALLOWED);
    test.sends(&a);
    test.wait(11);
    test.assert_prohibited(&a);
    assert_eq!((test.udp.flows(), test.left().len(), test.refused()), (1, 0, (1, 1)));
    // The first half has been read before, so the second half completes the name.
    test.sends(&b);
    assert_eq!(test.left(), [b]);
    test.sends(&a);
    assert_eq!(test.left(), [a]);
    test.end();
}

/// After a Retry packet, the client's packets have other keys, and contain the whole ClientHello again.
#[test]
fn a_retry_begins_a_connection_with_other_keys() {
    let mut test = Test::named(RULES);
    let [a, b] = two(b"connection", ALLOWED);
    test.sends(&a);
    test.sends(&b);
    assert_eq!(test.left().len(), 2);
    let retried = Initial { token: &[9; 80], number: 2, ..Initial::first(V1, b"by server") };
    let message = long_client_hello(ALLOWED, 1800);
    let c = retried.seal(&crypto(0, &message[..1000]));
    let d = Initial { number: 3, ..retried }.seal(&crypto(1000, &message[1000..]));
    test.sends(&c);
    assert_eq!(test.left().len(), 0);
    test.sends(&d);
    assert_eq!(test.left(), [c, d]);
    // A connection with another name is refused.
    let other = Initial { token: &[9; 80], number: 4, ..Initial::first(V2, b"server II") };
    let other = other.seal(&crypto(0, &hello(OTHER)));
    test.sends(&other);
    test.assert_prohibited(&other);
    assert_eq!((test.left().len(), test.refused()), (0, (1, 1)));
}

#[test]
fn a_rule_with_another_port_allows_other_protocols() {
    let rules = "allow files.example.org:8443";
    let server = "203.0.113.9:8443";
    let mut test = Test::named(rules);
    test.guest_sends(GUEST, server, b"\x80 anything");
    test.guest_sends(GUEST, server, b"more");
    assert_eq!(test.left(), [b"\x80 anything".to_vec(), b"more".to_vec()]);
    test.end();
    // A connection with another name is still refused.
    let mut test = Test::named(rules);
    test.guest_sends(GUEST, server, &first(b"connection", OTHER));
    test.assert_nothing();
    assert_eq!(test.refused(), (1, 1));
    // An incomplete message may have no name at all, so the datagram is forwarded after the time-out.
    let [a, b] = two(b"connection", OTHER);
    test.guest_sends(GUEST, server, &a);
    test.assert_nothing();
    test.wait(11);
    assert_eq!(test.left().concat(), a);
    test.guest_sends(GUEST, server, &b);
    assert_eq!((test.left(), test.refused()), (vec![b], (1, 1)));
    test.end();
}

/// In TFTP, the answer comes from another port of the server. In SIP, it can come from another address of the same
/// name.
#[test]
fn a_sender_that_the_guest_may_write_to_without_a_name_reaches_it() {
    let mut test = Test::named("allow files.example.org:1000-9000\nallow 203.0.113.1");
    test.guest_sends(GUEST, "203.0.113.1:8", b"question");
    let socket = test.opened(0);
    let frame = test.answer(&socket, "203.0.113.9:5000", b"server first");
    assert_shown(&frame, "203.0.113.9:5000", GUEST, b"server first");
    socket.socket.arrive("203.0.113.9:443", b"another port");
    socket.socket.arrive("203.0.113.10:5000", b"another address");
    for _ in 0..2 {
        test.ready(&socket, READABLE);
    }
    assert_eq!((test.world.frames().len(), test.refused()), (0, (2, 2)));
    // The answer of the guest is checked.
    test.left();
    test.guest_sends(GUEST, "203.0.113.9:5000", &first(b"connection", OTHER));
    assert_eq!((test.left().len(), test.refused()), (0, (3, 3)));
    test.world.frames();
    test.guest_sends(GUEST, "203.0.113.9:5000", b"answer");
    assert_eq!(test.left(), [b"answer"]);
    test.end();
}

/// Neither datagrams to a published port nor their answers are judged.
#[test]
fn a_flow_from_outside_ends_the_wait() {
    let [a, b] = two(b"connection", OTHER);
    let mut test = Test::named(RULES);
    let socket = test.listen(listener(None, 4000, None, 4000));
    test.sends(&a);
    test.arrive_at(&socket, SERVER, "192.0.2.1", b"question");
    test.ready(&socket, READABLE);
    assert_eq!(test.world.frames().len(), 1);
    test.sends(b"answer");
    assert_eq!(socket.socket.sent().len(), 1);
    // After the time-out, the first datagram is refused. The flow continues.
    test.wait(11);
    test.assert_prohibited(&a);
    test.sends(&b);
    assert_eq!((socket.socket.sent().len(), test.udp.flows()), (1, 1));
    test.end();
}

#[test]
fn an_audit_counts_and_forwards() {
    let mode = Mode { audit: true, ..Mode::default() };
    let mut test = Test::in_mode(RULES, mode);
    let [a, b] = two(b"connection", OTHER);
    test.sends(&a);
    test.assert_nothing();
    test.sends(&b);
    assert_eq!((test.left(), test.refused()), (vec![a, b], (1, 0)));
    test.sends(&first(b"another id", ALLOWED));
    test.sends(&first(b"a third id", "unknown.example"));
    assert_eq!((test.left().len(), test.refused()), (2, (2, 0)));
    test.guest_sends(GUEST, "203.0.113.9:444", b"no QUIC");
    test.assert_open();
    assert_eq!(test.refused(), (3, 0));
    test.end();
}

#[test]
fn the_answer_alone_can_be_enough() {
    let mut test = Test::in_mode(RULES, Mode { by_answer_alone: true, ..Mode::default() });
    test.sends(&first(b"connection", OTHER));
    assert_eq!(test.left().len(), 1);
    assert_eq!(test.world.guard.names_mut().unwrap().held(), 1);
    test.assert_open();
    test.end();
}

/// While a client has a connection to an address, it may begin another one after the answer's time to live.
#[test]
fn a_flow_keeps_the_names_of_its_address() {
    let mut test = Test::named(RULES);
    test.sends(&first(b"connection", ALLOWED));
    for _ in 0..10 {
        test.assert_open();
        test.wait(50);
    }
    test.guest_sends("198.51.100.55:4001", SERVER, &first(b"another id", ALLOWED));
    assert_eq!((test.left().len(), test.refused()), (1, (0, 0)));
    test.end();
    test.sends(&first(b"a third id", ALLOWED));
    assert_eq!(test.refused(), (1, 1));
}

#[test]
fn a_client_may_poll_a_server_by_one_socket_for_ever() {
    let mut test = Test::named(RULES);
    for number in 0..30_u8 {
        test.sends(&first(&[number; 8], ALLOWED));
        assert_eq!(test.left().len(), 1, "{number}");
        test.assert_open();
        test.wait(40);
    }
    assert_eq!(test.refused(), (0, 0));
    test.end();
}

/// A flow that waits, and a flow that exists, are judged again when the rules are replaced.
#[test]
fn new_rules_judge_by_the_names_that_were_sent() {
    let rules = |text: &str| {
        let file = spec::parse_file(text).unwrap();
        Rules::new(file.rules, file.default).unwrap()
    };
    let [a, b] = two(b"another id", OTHER);
    let other = "allow *.example.com\nallow 203.0.113.1";
    // The columns: the new rules, whether the flow to the allowed name continues, whether the other flow still waits,
    // and whether its name is allowed.
    for (text, stays, waits, passes) in [
        (RULES, true, true, false),
        (other, false, true, true),
        ("allow 203.0.113.0/24", true, false, true),
        ("allow 203.0.113.1", false, false, false),
        ("allow files.example.org:443\nallow other.example.com", true, true, true),
    ] {
        let mut test = Test::named(RULES);
        test.sends(&first(b"connection", ALLOWED));
        test.guest_sends("198.51.100.55:4001", SERVER, &a);
        assert_eq!(test.left().len(), 1);
        test.world.guard.replace(rules(text));
        test.udp.review(&mut test.world.context());
        assert_eq!(test.udp.flows(), usize::from(stays) + usize::from(!waits && passes), "{text}");
        test.guest_sends("198.51.100.55:4001", SERVER, &b);
        assert_eq!(test.left().len(), if passes { 2 } else { 0 }, "{text}");
        test.world.frames();
        // Other connections of the flow are judged by the new rules.
        test.sends(&first(b"a third id", OTHER));
        let allows_other = test.left().len() == 1;
        assert_eq!(allows_other, passes, "{text}");
        test.end();
    }
}
