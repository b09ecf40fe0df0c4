//! Tests of refusals by the guard, with the whole stack (docs/guard.md).

use wire::{
    icmp,
    tcp::{self, Flags, Seq},
};

use super::*;
use crate::{
    guard::{Guard, Mode},
    host::Readiness,
    policy::{Policy, spec},
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

fn syn(from: &str, to: &str) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let header = tcp::Header::new((from.port(), to.port()), Seq(7), Seq(0), Flags::SYN, 1000, 0);
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

/// What is never carried, whatever the rules say, counts as refused if there are rules.
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

/// The first bytes of UDP flows are not read. A rule by name allows such a flow only if no name is needed.
#[test]
fn a_name_alone_does_not_allow_quic() {
    let mut test = guarded("allow *.example.org:443,444");
    let names = test.stack.guard_mut().names_mut().unwrap();
    assert!(names.learn("203.0.113.1".parse().unwrap(), "a.example.org", 300, START));
    let refused = datagram(GUEST, "203.0.113.1:443", b"first").1;
    test.receive(&refused, &Offload::default());
    assert_prohibited(&mut test, &refused);
    assert_eq!((test.host.opened.len(), test.stack.guard().refused()), (0, 1));
    test.receive(&datagram(GUEST, "203.0.113.1:444", b"first").1, &Offload::default());
    assert_eq!(test.socket().socket.sent().len(), 1);
}
