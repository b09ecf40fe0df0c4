//! Tests of datagrams that bypass the link (behaviour §7.6).

use wire::frame::{self, Transport};

use super::listeners::listener;
use super::*;
use crate::{
    forward::{Bypass, spec::Direction},
    guard::{Guard, Mode},
    policy::spec,
};

const CLIENT: &str = "127.0.0.1:999";

/// A test with a listener and its client on loopback. The client's datagram "question" was sent through the socket that
/// was opened first.
fn asked(policy: Policy, direction: Direction, hit: &str) -> (Test, Opened, Opened) {
    let mut test = Test::new();
    test.udp.set_policy(policy);
    let socket = test.listen(Listener { direction, ..listener(None, 80, None, 8080) });
    test.arrive_at(&socket, CLIENT, hit, b"question");
    test.ready(&socket, READABLE);
    assert!(test.world.frames().is_empty());
    let stand = test.opened(0);
    (test, socket, stand)
}

/// behaviour §5.3.3, §7.6: a socket with the client's port writes to the guest's address. The source of answers is the
/// address to which the client wrote.
#[test]
fn datagrams_and_answers_bypass_the_link() {
    let (mut test, socket, stand) = asked(Policy::default(), Direction::Inbound, "127.0.0.5");
    assert_eq!(stand.number, 999);
    let sent = stand.socket.sent();
    assert_eq!(sent[0].destination, "198.51.100.55:8080".parse().unwrap());
    assert_eq!(sent[0].payload, b"question");
    stand.socket.arrive("198.51.100.55:8080", b"answer");
    test.ready(&stand, READABLE);
    let sent = socket.socket.sent();
    assert_eq!(sent[0].destination, CLIENT.parse().unwrap());
    assert_eq!(sent[0].source, Some("127.0.0.5".parse().unwrap()));
    assert_eq!(sent[0].payload, b"answer");
    // Datagrams from other senders than the target are dropped.
    stand.socket.arrive("198.51.100.55:8081", b"not asked");
    test.ready(&stand, READABLE);
    assert_eq!(socket.socket.sent(), []);
    assert_eq!(test.udp.counters().undeliverable, 1);
}

/// behaviour §5.3.2, `--host-lo-to-ns-lo`, and behaviour §5.5, R-106: the destination in the other namespace is the
/// same loopback address.
#[test]
fn loopback_addresses_are_kept_with_the_option_r106() {
    let keeps = Policy { keeps_loopback: true, ..Policy::default() };
    for (policy, direction) in [(keeps, Direction::Inbound), (Policy::default(), Direction::Outbound)] {
        let (_, _, stand) = asked(policy, direction, "127.0.0.53");
        assert_eq!(stand.socket.sent()[0].destination, "127.0.0.53:8080".parse().unwrap());
    }
}

/// behaviour §5.3.3: datagrams go through the link if they are not local, if the rule has a target, or with
/// `--no-splice`. With `--splice-only`, such datagrams are refused. behaviour §5.5: datagrams from the namespace to
/// addresses other than loopback are refused.
#[test]
fn others_do_not_bypass() {
    let policy = |bypass| Policy { bypass, ..Policy::default() };
    for (bypass, direction, target, from, frames) in [
        (Bypass::Local, Direction::Inbound, None, "203.0.113.9:999", 1),
        (Bypass::Local, Direction::Inbound, Some("198.51.100.7"), CLIENT, 1),
        (Bypass::Never, Direction::Inbound, None, CLIENT, 1),
        (Bypass::Only, Direction::Inbound, None, "203.0.113.9:999", 0),
        (Bypass::Only, Direction::Inbound, Some("198.51.100.7"), CLIENT, 0),
        (Bypass::Local, Direction::Outbound, None, "198.51.100.55:999", 0),
    ] {
        let mut test = Test::new();
        test.udp.set_policy(policy(bypass));
        let socket = test.listen(Listener { direction, ..listener(None, 80, target, 8080) });
        test.arrive_at(&socket, from, "127.0.0.1", b"question");
        test.ready(&socket, READABLE);
        assert_eq!(test.world.frames().len(), frames, "{bypass:?} {direction:?} {target:?} {from}");
        assert_eq!(test.world.host.opened.len(), 0);
    }
}

/// A client in the namespace that the rules refuse gets an error about its datagram, as on the link.
#[test]
fn a_refused_client_gets_an_error() {
    for (rules, direction, client, to, kind) in [
        ("deny host", Direction::Outbound, "127.0.0.1:999", "127.0.0.53", Some((3, 13))),
        ("deny host", Direction::Outbound, "[::1]:999", "::1", Some((1, 1))),
        ("deny host", Direction::Outbound, "[::ffff:127.0.0.1]:999", "::ffff:127.0.0.1", Some((3, 13))),
        ("allow udp/host:8080", Direction::Outbound, "127.0.0.1:999", "127.0.0.53", None),
        ("deny host", Direction::Inbound, "127.0.0.1:999", "127.0.0.53", None),
    ] {
        let mut test = Test::new();
        let file = spec::parse_file(rules).unwrap();
        let policy = crate::policy::Policy::new(file.rules, None).unwrap();
        test.world.guard = Guard::new(policy, Mode::default(), [1; 16]);
        let socket = test.listen(Listener { direction, ..listener(None, 80, None, 8080) });
        test.arrive_at(&socket, client, to, b"question");
        test.ready(&socket, READABLE);
        let reports = &test.world.host.client_reports;
        assert_eq!(reports.len(), usize::from(kind.is_some()), "{rules} {client}");
        let Some(kind) = kind else { continue };
        let [from, to] = [client.parse::<SocketAddr>().unwrap().ip(), to.parse().unwrap()];
        let [from, to] = [from, to].map(|address: IpAddr| address.to_canonical());
        assert_eq!(reports[0].0, from);
        // The frame parser checks the lengths, and `verify` the checksums.
        let version = if from.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        let frame = [&[0; 12][..], &version, &reports[0].1].concat();
        let Ok(frame::Body::Ip(packet)) = frame::parse(&frame[..]).map(|frame| frame.body) else { panic!() };
        assert!(wire::verify::transport(&packet));
        assert_eq!((packet.source, packet.destination), (to, from));
        let Transport::Icmp(message) = packet.transport else { panic!() };
        assert_eq!((message.header.kind, message.header.code), kind);
        let quoted = [&[0; 12][..], &version, message.payload].concat();
        let head = &quoted[quoted.len() - 8..];
        assert_eq!(head, [999_u16, 80, 16, 0].map(u16::to_be_bytes).concat(), "the UDP header");
    }
}

/// behaviour §7.2: sockets end when they are idle. Each client has its own socket.
#[test]
fn clients_have_sockets_of_their_own_until_they_are_idle() {
    let (mut test, socket, _) = asked(Policy::default(), Direction::Inbound, "127.0.0.1");
    for port in 1..10 {
        test.arrive_at(&socket, &format!("127.0.0.1:{port}"), "127.0.0.1", b"question");
        test.ready(&socket, READABLE);
    }
    assert_eq!(test.world.host.opened.len(), 10);
    test.wait(29);
    test.arrive_at(&socket, CLIENT, "127.0.0.1", b"again");
    test.ready(&socket, READABLE);
    test.wait(2);
    let closed: Vec<bool> = (0..10).map(|index| test.opened(index).closed()).collect();
    assert_eq!(closed, [&[false][..], &[true; 9]].concat());
    // A closed listener serves the remaining client, and no new clients.
    test.udp.unlisten(socket.id);
    test.arrive_at(&socket, "127.0.0.1:5", "127.0.0.1", b"too late");
    test.ready(&socket, READABLE);
    assert_eq!((test.world.host.opened.len(), test.udp.ended()), (10, 0));
    assert!(test.udp.is_listener(socket.id));
    test.wait(30);
    assert!(!test.udp.is_listener(socket.id));
}

/// With more clients than sockets, each client gets its answer. The sockets that were idle for the longest time are
/// closed.
#[test]
fn a_client_ends_the_one_that_was_idle_for_longest() {
    let (mut test, socket, waiting) = asked(Policy::default(), Direction::Inbound, "127.0.0.1");
    for port in 2001..=3000 {
        let client = format!("127.0.0.1:{port}");
        test.arrive_at(&socket, &client, "127.0.0.1", b"question");
        test.ready(&socket, READABLE);
        let stand = test.world.host.opened.last().unwrap().clone();
        stand.socket.arrive("198.51.100.55:8080", b"answer");
        test.ready(&stand, READABLE);
        assert_eq!(socket.socket.sent().last().unwrap().destination, client.parse().unwrap());
    }
    assert_eq!((test.udp.ended(), test.udp.counters().no_room), (1001 - 10, 0));
    assert!(!waiting.closed(), "it waits for an answer");
    // This socket ends next, since no other socket is answered.
    for port in 3001..=3010 {
        test.arrive_at(&socket, &format!("127.0.0.1:{port}"), "127.0.0.1", b"question");
        test.ready(&socket, READABLE);
    }
    assert!(waiting.closed());
    assert_eq!(test.world.host.open_files(), 10);
    // Sockets also end at the limit of open files.
    test.world.host.files = Some(5);
    test.wait(31);
    for port in 1..=20 {
        test.arrive_at(&socket, &format!("127.0.0.1:{port}"), "127.0.0.1", b"question");
        test.ready(&socket, READABLE);
    }
    assert_eq!((test.world.host.open_files(), test.udp.counters().no_room), (5, 0));
    test.udp.unlisten(socket.id);
    test.wait(31);
    assert!(!test.udp.is_listener(socket.id) && test.world.host.open_files() == 0);
}

/// The datagrams of a stream are joined, and do not need room on the link.
#[test]
fn streams_are_joined() {
    let (mut test, socket, stand) = asked(Policy::default(), Direction::Inbound, "127.0.0.1");
    test.world.link.full = true;
    stand.socket.sent();
    for number in 0..64 {
        test.arrive_at(&socket, CLIENT, "127.0.0.1", &[number; 4]);
    }
    while !socket.socket.mailbox().arriving.is_empty() {
        test.ready(&socket, READABLE);
    }
    let sent = stand.socket.sent();
    assert!(sent.len() < 16, "{} calls", sent.len());
    let bytes: Vec<u8> = sent.iter().flat_map(|sent| sent.payload.clone()).collect();
    assert_eq!(bytes, (0..64).flat_map(|number| [number; 4]).collect::<Vec<u8>>());
    assert!(sent.iter().any(|sent| sent.segment_size == Some(4)));
}
