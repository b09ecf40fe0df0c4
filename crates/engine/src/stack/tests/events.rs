//! Reports about flows, through the whole stack (docs/design/flow-log.md).

use alloc::format;

use proptest::prelude::*;
use wire::{
    icmp,
    tcp::{self, Flags, Seq},
};

use super::*;
use crate::{
    events::{Events, How, Refused},
    flow::Protocol,
    forward::spec::Direction,
    guard::{Guard, Mode},
    host::{Amount, Errno, Readiness, SocketError, Totals},
    policy::{Policy, spec},
    testkit::{
        host::READABLE,
        journal::Journal,
        stream::{CONNECTION_REFUSED, CONNECTION_RESET},
    },
};

pub(super) fn observed(rules: &str) -> (Test, Journal) {
    observed_as(rules, Mode::default())
}

fn observed_as(rules: &str, mode: Mode) -> (Test, Journal) {
    let (mut test, journal) = (Test::new(), Journal::default());
    if !rules.is_empty() {
        let file = spec::parse_file(rules).unwrap();
        let policy = Policy::new(file.rules, file.default).unwrap();
        *test.stack.guard_mut() = Guard::new(policy, mode, [1; 16]);
    }
    test.stack.guard_mut().report_to(journal.events.clone());
    (test, journal)
}

pub(super) fn segment(from: &str, to: &str, seq: u32, flags: Flags) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let header = tcp::Header::new((from.port(), to.port()), Seq(seq), Seq(0), flags, 1000, 0);
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

/// Gives the engine all readiness of stream sockets.
pub(super) fn settle(test: &mut Test) {
    while let Some((id, readiness)) = test.host.next_ready() {
        test.round().ready(id, readiness);
    }
    test.wait(Duration::ZERO);
}

const fn amount(bytes: u64, packets: u64) -> Amount {
    Amount { bytes, packets: Some(packets) }
}

#[test]
fn a_connection_that_fails_begins_and_ends() {
    for (guest, peer) in BOTH {
        let (mut test, mut journal) = observed("");
        test.receive(&segment(guest, peer, 7, Flags::SYN), &Offload::default());
        journal.read();
        let flow = journal.open().next().unwrap().clone();
        assert_eq!((flow.number, flow.begun, flow.start.direction), (1, START, Direction::Outbound));
        assert_eq!(flow.start.ends.guest, guest.parse().unwrap());
        assert_eq!((flow.start.ends.remote, flow.start.peer), (peer.parse().unwrap(), peer.parse().ok()));
        assert_eq!((flow.basis.rule, flow.basis.names.len()), (None, 0));
        test.host.peers[0].fail(CONNECTION_REFUSED);
        settle(&mut test);
        journal.read();
        assert_eq!(journal.how(), [How::Failed(CONNECTION_REFUSED)]);

        // The attempt to connect can also fail at once.
        test.host.connect_error = Some(CONNECTION_REFUSED);
        test.receive(&segment(guest, peer, 7, Flags::SYN), &Offload::default());
        journal.read();
        assert_eq!((journal.ends[1].flow.number, journal.ends[1].how), (2, How::Failed(CONNECTION_REFUSED)));
        assert!(journal.ends.iter().all(|end| !end.opened));
    }
}

/// Datagrams and pings without a socket, too.
#[test]
fn datagrams_that_get_no_socket_begin_and_end() {
    let (mut test, mut journal) = observed("");
    for (number, frame) in [datagram(GUEST, PEER, b"x").1, ping(GUEST, PEER)].iter().enumerate() {
        test.host.refusals.push_back(Errno::EACCES);
        test.receive(frame, &Offload::default());
        journal.read();
        let end = &journal.ends[number];
        assert_eq!((end.how, end.opened), (How::Failed(Errno::EACCES), false), "{end:?}");
    }
}

/// With little memory for reports, some flows are not reported, and counted. The flows work. There is memory again when the
/// reports of flows that have ended were dropped.
#[test]
fn flows_without_memory_for_reports() {
    let (mut test, mut journal) = observed("");
    journal.events = Events::within(8000);
    test.stack.guard_mut().report_to(journal.events.clone());
    let send = |test: &mut Test| {
        (4000..4010).for_each(|port| {
            let guest = format!("198.51.100.55:{port}");
            test.receive(&datagram(&guest, PEER, b"x").1, &Offload::default());
        });
        test.wait(Duration::ZERO);
        assert_eq!(test.stack.udp().flows(), 10);
    };
    send(&mut test);
    journal.read();
    let reported = journal.open().count();
    assert!((2..9).contains(&reported), "{reported}");
    let unreported = |journal: &Journal| journal.events.unreported().flows;
    assert_eq!(unreported(&journal), 10 - reported as u64);

    test.wait(Duration::from_secs(301));
    journal.read();
    assert_eq!((journal.open().count(), journal.ends.len()), (0, reported));
    // Something still refers to the flows.
    send(&mut test);
    journal.read();
    assert_eq!((journal.open().count(), unreported(&journal)), (0, 20 - reported as u64));
    test.wait(Duration::from_secs(301));
    journal.read();
    journal.ends.clear();
    send(&mut test);
    journal.read();
    assert_eq!((journal.open().count(), unreported(&journal)), (reported, 30 - 2 * reported as u64));
}

/// Refusals have memory of their own, for one round.
#[test]
fn refusals_without_memory_are_counted() {
    let (mut test, mut journal) = observed("deny all");
    journal.events = Events::within(200_000);
    test.stack.guard_mut().report_to(journal.events.clone());
    for round in 1..3 {
        let mut frames = test.round();
        let frame = datagram(GUEST, PEER, b"x").1;
        (0..20).for_each(|_| frames.frame(wire::frame::head(&frame), &frame, &Offload::default()));
        drop(frames);
        journal.read();
        let reported = journal.refusals.len();
        assert!((round * 2..round * 15).contains(&reported), "{reported}");
        assert_eq!(journal.events.unreported().others, round as u64 * 20 - reported as u64);
    }
}

/// The same failure is reported again only after an answer. The end has a failure without an answer after it.
#[test]
fn a_failure_is_reported_once_until_an_answer() {
    let (mut test, mut journal) = observed("");
    let failing = |test: &mut Test| {
        let socket = test.socket().socket.clone();
        // The second attempt fails with the error of this datagram.
        socket.mailbox().refusals.extend([SocketError::Failed(Errno::EACCES); 2]);
        test.receive(&datagram(GUEST, PEER, b"x").1, &Offload::default());
        test.wait(Duration::ZERO);
    };
    test.receive(&datagram(GUEST, PEER, b"x").1, &Offload::default());
    test.wait(Duration::ZERO);
    failing(&mut test);
    failing(&mut test);
    journal.read();
    assert_eq!(journal.failures.iter().map(|failure| failure.errno).collect::<Vec<_>>(), [Errno::EACCES]);
    let (id, socket) = (test.socket().id, test.socket().socket.clone());
    socket.arrive(PEER, b"answer");
    test.round().ready(id, READABLE);
    failing(&mut test);
    test.wait(Duration::from_secs(301));
    journal.read();
    assert_eq!((journal.failures.len(), journal.ends[0].failure), (2, Some(Errno::EACCES)));
    assert_eq!((journal.ends[0].how, journal.ends[0].opened), (How::Idle, true));
}

#[test]
fn an_end_has_what_was_carried() {
    let (mut test, mut journal) = observed("allow tcp/203.0.113.0/24:7");
    test.receive(&segment(GUEST, PEER, 7, Flags::SYN), &Offload::default());
    let peer = test.host.peers[0].clone();
    peer.connect();
    peer.arrive(1000);
    settle(&mut test);
    test.receive(&segment(GUEST, PEER, 8, Flags::RST), &Offload::default());
    journal.read();
    let end = &journal.ends[0];
    // The guest has not acknowledged any byte.
    assert_eq!((end.how, end.totals), (How::GuestReset, Some(Totals::bytes(0, 0))));
    assert_eq!(end.flow.basis.rule.as_deref(), Some("allow tcp/203.0.113.0/24:7"));
}

#[test]
fn datagrams_are_counted_in_both_directions() {
    let (mut test, mut journal) = observed("");
    for payload in [&b"one"[..], b"", b"three"] {
        test.receive(&datagram(GUEST, PEER, payload).1, &Offload::default());
    }
    let (id, socket) = (test.socket().id, test.socket().socket.clone());
    socket.arrive(PEER, b"answer");
    test.round().ready(id, READABLE);
    socket.arrive("203.0.113.2:9", b"not asked for");
    test.round().ready(id, READABLE);
    test.wait(Duration::ZERO);
    test.wait(Duration::from_secs(301));
    journal.read();
    assert_eq!(journal.how(), [How::Idle, How::Idle]);
    let [answered, unasked] = &journal.ends[..] else { panic!() };
    assert_eq!(answered.totals, Some(Totals { sent: amount(8, 3), received: amount(6, 1) }));
    assert_eq!(unasked.totals, Some(Totals { sent: amount(0, 0), received: amount(13, 1) }));
    assert_eq!(unasked.flow.start.direction, Direction::Inbound);
}

#[test]
fn each_pinged_destination_is_a_flow() {
    let (mut test, mut journal) = observed("");
    for host in [1, 1, 2, 3] {
        test.receive(&ping(GUEST, &format!("203.0.113.{host}:0")), &Offload::default());
    }
    let (id, socket) = (test.socket().id, test.socket().socket.clone());
    socket.arrive("203.0.113.2:0", &[&[0, 0, 0, 0, 0, 17, 0, 1][..], b"echo"].concat());
    test.round().ready(id, READABLE);
    test.wait(Duration::from_secs(61));
    journal.read();
    let ends: Vec<_> = journal.ends.iter().map(|end| (end.flow.start.ends.remote.ip(), end.totals)).collect();
    let totals = |sent, received| {
        Some(Totals { sent: amount(4 * sent, sent), received: amount(4 * received, received) })
    };
    let host = |host| SocketAddr::from(([203, 0, 113, host], 0)).ip();
    assert_eq!(ends, [(host(1), totals(2, 0)), (host(2), totals(1, 1)), (host(3), totals(1, 0))]);
    assert_eq!(journal.ends[0].flow.start.ends.guest.port(), 17);
}

#[test]
fn more_destinations_than_are_kept_end_earlier() {
    let (mut test, mut journal) = observed("");
    for host in 1..=65 {
        test.receive(&ping(GUEST, &format!("203.0.113.{host}:0")), &Offload::default());
    }
    journal.read();
    assert_eq!((journal.how(), journal.count(Protocol::Icmp)), (Vec::from([How::Displaced]), 64));
}

#[test]
fn refusals_have_the_rule() {
    let (mut test, mut journal) = observed("deny 203.0.113.0/24\nallow all");
    test.receive(&segment(GUEST, PEER, 7, Flags::SYN), &Offload::default());
    test.receive(&datagram(GUEST, PEER, b"refused").1, &Offload::default());
    test.receive(&ping(GUEST, PEER), &Offload::default());
    journal.read();
    let expected = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];
    assert_eq!(journal.refusals.len(), expected.len());
    for (refusal, expected) in journal.refusals.iter().zip(expected) {
        let Refused::Flow { protocol, ends } = refusal.what else { panic!("{refusal:?}") };
        assert_eq!((protocol, ends.remote.ip()), (expected, PEER.parse::<SocketAddr>().unwrap().ip()));
        assert_eq!((refusal.basis.rule.as_deref(), refusal.audit), (Some("deny 203.0.113.0/24"), false));
    }
    assert_eq!(journal.open().count() + journal.ends.len(), 0);
}

/// What no rule could allow is reported as well, also in an audit. It is not an effect of the audit's rules.
#[test]
fn packets_of_no_flow_are_reported_when_they_are_refused() {
    for audit in [false, true] {
        for (guest, peer) in BOTH {
            let (mut test, mut journal) = observed_as("allow all", Mode { audit, ..Mode::default() });
            let whole = fragments(guest, peer, &[1; 5000]);
            let mut overlapping = whole[0].clone();
            *overlapping.last_mut().unwrap() += 1;
            test.receive(&packet_of(132, guest, peer), &Offload::default());
            test.receive_all(&of_protocol(132, guest, peer));
            test.receive_all(&[whole[0].clone(), overlapping]);
            test.wait(Duration::from_secs(61));
            journal.read();
            let [source, destination] = [guest, peer].map(|end| end.parse::<SocketAddr>().unwrap().ip());
            let protocol = Refused::Protocol { number: 132, source, destination };
            let dropped = Refused::Fragments { source, destination };
            let expected = [
                (&protocol, "not supported"),
                (&protocol, "not supported"),
                (&dropped, "they contradict each other"),
                (&dropped, "some are missing"),
            ];
            assert_eq!(journal.refusals.len(), expected.len(), "{:?}", journal.refusals);
            for (refusal, (what, why)) in journal.refusals.iter().zip(expected) {
                assert_eq!((&refusal.what, refusal.basis.rule.as_deref()), (what, Some(why)));
                assert!(!refusal.audit, "{refusal:?}");
            }
            assert_eq!(test.stack.guard().refused(), 4);
        }
    }
    let (mut test, mut journal) = observed("");
    test.receive(&packet_of(132, GUEST, PEER), &Offload::default());
    journal.read();
    assert_eq!(journal.refusals, [], "without rules, there is no guard that refuses");
}

/// A packet of another protocol in fragments.
fn of_protocol(protocol: u8, from: &str, to: &str) -> Vec<Vec<u8>> {
    let headers = outgoing(from.parse().unwrap(), to.parse().unwrap());
    testkit::guest::fragments(&headers, protocol, &[1; 2000], 1448)
}

/// A query to the host's resolver, by the address that is mapped to it.
#[test]
fn a_query_is_a_flow_with_the_name() {
    let (mut test, mut journal) = observed("");
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04Name\x04test\0\0\x01\0\x01";
    let resolver = "198.51.100.53:53";
    test.receive(&datagram(GUEST, resolver, query).1, &Offload::default());
    let (id, socket) = (test.socket().id, test.socket().socket.clone());
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    socket.arrive("127.0.0.53:53", &answer);
    test.round().ready(id, READABLE);
    test.wait(Duration::ZERO);
    journal.read();
    let end = &journal.ends[0];
    assert_eq!((end.how, end.name.as_deref()), (How::Closed, Some("name.test")));
    let len = query.len() as u64;
    assert_eq!(end.totals, Some(Totals { sent: amount(len, 1), received: amount(len, 1) }));
    assert_eq!(end.flow.start.ends.remote, resolver.parse().unwrap());
}

#[test]
fn the_end_of_the_program_ends_all_flows() {
    let (mut test, mut journal) = observed("");
    test.receive(&segment(GUEST, PEER, 7, Flags::SYN), &Offload::default());
    test.receive(&datagram(GUEST, PEER, b"one").1, &Offload::default());
    test.receive(&ping(GUEST, PEER), &Offload::default());
    test.receive(&datagram(GUEST, "198.51.100.53:53", b"no query").1, &Offload::default());
    test.stack.report_exit();
    test.stack.report_exit();
    journal.read();
    assert_eq!(journal.how(), [How::Exit; 4]);
    assert_eq!(journal.open().count(), 0);
}

#[test]
fn without_a_reader_nothing_is_kept() {
    let mut test = Test::new();
    assert!(!test.stack.guard().reports());
    test.receive(&segment(GUEST, PEER, 7, Flags::SYN), &Offload::default());
    test.receive(&datagram(GUEST, PEER, b"one").1, &Offload::default());
    let events = crate::events::Events::default();
    assert!(!events.are_wanted() && events.take().is_empty());
}

/// An event of a random session. Numbers choose among few ports, hosts and sockets.
#[derive(Clone, Copy, Debug)]
enum Step {
    Syn(u8, u8),
    Reset(u8, u8),
    Fin(u8, u8),
    Datagram(u8, u8),
    Query(u8, bool),
    Ping(u8),
    Accept(u8),
    Connect(u8),
    Fail(u8),
    End(u8),
    Arrive(u8, u8),
    NoSockets(bool),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let (port, host) = (0..6_u8, 0..8_u8);
    prop_oneof![
        (port.clone(), host.clone()).prop_map(|(port, host)| Step::Syn(port, host)),
        (port.clone(), host.clone()).prop_map(|(port, host)| Step::Reset(port, host)),
        (port.clone(), host.clone()).prop_map(|(port, host)| Step::Fin(port, host)),
        (port.clone(), host.clone()).prop_map(|(port, host)| Step::Datagram(port, host)),
        (port, any::<bool>()).prop_map(|(port, tidy)| Step::Query(port, tidy)),
        host.clone().prop_map(Step::Ping),
        host.clone().prop_map(Step::Accept),
        any::<u8>().prop_map(Step::Connect),
        any::<u8>().prop_map(Step::Fail),
        any::<u8>().prop_map(Step::End),
        (any::<u8>(), host).prop_map(|(socket, host)| Step::Arrive(socket, host)),
        prop::bool::weighted(0.2).prop_map(Step::NoSockets),
        (0..2000_u16).prop_map(Step::Pass),
    ]
}

impl Step {
    fn run(self, test: &mut Test) {
        let guest = |port: u8| format!("198.51.100.55:{}", 4000 + u16::from(port));
        let peer = |host: u8| format!("203.0.113.{host}:7");
        let any = |number: u8, len: usize| (len > 0).then(|| usize::from(number) % len);
        let stream =
            |test: &Test, number| any(number, test.host.peers.len()).map(|at| test.host.peers[at].clone());
        let frame = match self {
            Self::Syn(port, host) => segment(&guest(port), &peer(host), 7, Flags::SYN),
            Self::Reset(port, host) => segment(&guest(port), &peer(host), 8, Flags::RST),
            Self::Fin(port, host) => segment(&guest(port), &peer(host), 8, Flags::FIN | Flags::ACK),
            Self::Datagram(port, host) => datagram(&guest(port), &peer(host), b"datagram").1,
            Self::Query(port, tidy) => {
                let query: &[u8] =
                    if tidy { b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01n\0\0\x01\0\x01" } else { b"?" };
                datagram(&guest(port), "198.51.100.53:53", query).1
            }
            Self::Ping(host) => ping(&guest(0), &peer(host)),
            Self::Accept(host) => {
                let socket = test.host.accepted();
                let ends = crate::flow::Endpoints {
                    guest: guest(0).parse().unwrap(),
                    remote: peer(host).parse().unwrap(),
                };
                drop(test.round().accept(ends, socket));
                return;
            }
            Self::Connect(number) => return stream(test, number).iter().for_each(|peer| peer.connect()),
            Self::Fail(number) => {
                return stream(test, number).iter().for_each(|peer| peer.fail(CONNECTION_RESET));
            }
            Self::End(number) => return stream(test, number).iter().for_each(|peer| peer.end()),
            Self::Arrive(number, host) => {
                let Some(at) = any(number, test.host.opened.len()) else { return };
                let opened = test.host.opened[at].clone();
                opened.socket.arrive(&peer(host), b"\0\x01\x81\0\0\x01\0\0\0\0\0\0\x01n\0\0\x01\0\x01");
                return test.round().ready(opened.id, Readiness { readable: true, ..Readiness::default() });
            }
            Self::NoSockets(no_sockets) => return test.host.no_sockets = no_sockets,
            Self::Pass(seconds) => {
                test.wait(Duration::from_secs(seconds.into()));
                return;
            }
        };
        test.round().frame(frame::head(&frame), &frame, &Offload::default());
    }
}

proptest! {
    /// After any sequence of events, the flows that have begun and not ended are exactly the flows in the tables.
    #[test]
    fn the_open_flows_are_those_of_the_tables(
        steps in prop::collection::vec(step(), 0..200),
        rules in prop::sample::select(&["", "deny 203.0.113.0/30", "allow udp/all\nallow 203.0.113.5"][..]),
        most in 1..5_usize,
    ) {
        let (mut test, mut journal) = observed(rules);
        let mut limits = limits();
        for share in [&mut limits.udp.flows, &mut limits.udp.inbound, &mut limits.udp.endpoints, &mut limits.pings] {
            share.most = most;
        }
        limits.connections = most;
        limits.dns.files.most = most;
        let seeds = Seeds { hash_key: [7; 16], isn_secret: [7; 16], query_secret: [8; 16], advertisement: 1 };
        let guard = core::mem::take(test.stack.guard_mut());
        test.stack = Stack::new(settings(), guest(&settings()), limits, seeds, START);
        *test.stack.guard_mut() = guard;
        for step in steps {
            step.run(&mut test);
            settle(&mut test);
            journal.read();
            prop_assert_eq!(journal.count(Protocol::Tcp), test.stack.tcp().len());
            prop_assert_eq!(journal.count(Protocol::Udp), test.stack.udp().flows() + test.stack.dns().len());
            prop_assert!(journal.count(Protocol::Icmp) >= test.stack.ping().flows());
        }
        test.host.no_sockets = false;
        test.wait(Duration::from_secs(30_000));
        test.wait(Duration::from_secs(30_000));
        test.stack.report_exit();
        journal.read();
        prop_assert_eq!(journal.open().count(), 0);
        // The guard counts refused datagrams of strangers, but does not report them.
        prop_assert!(journal.refusals.len() as u64 <= test.stack.guard().refused());
    }
}
