//! Tests of listeners of forwarding rules (behaviour §7.5).

use super::*;
use crate::forward::{Bypass, Listen, PortRange, Protocol as RuleProtocol, Rule};

pub(super) fn listener(address: Option<&str>, port: u16, target: Option<&str>, target_port: u16) -> Listener {
    let rule = Rule {
        protocol: RuleProtocol::Udp,
        listen: Listen { addr: address.map(|address| address.parse().unwrap()), interface: None },
        ports: PortRange::single(port),
        target_addr: target.map(|address| address.parse().unwrap()),
        target_first: target_port,
        best_effort: false,
        scan: false,
    };
    Listener::new(crate::forward::spec::Direction::Inbound, 3, &rule, port).unwrap()
}

impl Test {
    pub(super) fn listen(&mut self, listener: Listener) -> Opened {
        let socket = Datagrams::default();
        let (open, life) = socket.open();
        let (port, address) = (listener.port, listener.address.unwrap_or(IpAddr::from([0; 16])));
        self.udp.listen(&mut self.world.host, listener, open).unwrap();
        let id = *self.world.host.watched.last().unwrap();
        Opened { id, address, number: port, socket, life }
    }

    /// A client writes to an address of the host.
    #[track_caller]
    fn client_writes(&mut self, socket: &Opened, from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
        self.arrive_at(socket, from, to, payload);
        self.ready(socket, READABLE);
        self.world.frame().0
    }

    pub(super) fn arrive_at(&self, socket: &Opened, from: &str, to: &str, payload: &[u8]) {
        let to: IpAddr = to.parse().unwrap();
        let local = Some(to).filter(|to| !to.is_multicast());
        let arriving = Received { destination: Some(to), local, ..received(from) };
        socket.socket.arrive_as(arriving, payload);
    }
}

/// the listener sends the answer. So the source of the answer is the listener's port, and the address to
/// which the client wrote.
#[test]
fn answers_come_from_what_the_client_wrote_to_r93_r97() {
    let mut test = Test::new();
    let socket = test.listen(listener(None, 15000, None, 53));
    for (client, local, guest) in [
        ("203.0.113.9:999", "192.0.2.1", "198.51.100.55:53"),
        ("203.0.113.9:999", "192.0.2.2", "198.51.100.55:53"),
        ("[2001:db8:7::9]:999", "2001:db8:8::1", "[2001:db8:1::55]:53"),
    ] {
        let frame = test.client_writes(&socket, client, local, b"question");
        assert_shown(&frame, client, guest, b"question");
        test.guest_sends(guest, client, b"answer");
        let sent = socket.socket.sent();
        assert_eq!(sent[0].destination, client.parse().unwrap());
        assert_eq!(sent[0].source, Some(local.parse().unwrap()));
    }
    assert_eq!(test.world.host.opened.len(), 0, "no socket besides the listener");
    test.wait(300);
    assert_eq!(test.udp.flows(), 0);
    test.client_writes(&socket, "203.0.113.9:999", "192.0.2.1", b"the listener has stayed");
}

/// datagrams before the first answer are delivered, in order.
#[test]
fn first_datagrams_stay_in_order_r92() {
    let mut test = Test::new();
    let socket = test.listen(listener(None, 80, None, 80));
    for number in 0..20 {
        test.arrive_at(&socket, "203.0.113.9:999", "192.0.2.1", &[number; 3]);
    }
    while !socket.socket.mailbox().arriving.is_empty() {
        test.ready(&socket, READABLE);
    }
    let frames = test.world.frames();
    let got: Vec<u8> = frames.iter().flat_map(|(frame, _)| datagram(frame).2.to_vec()).collect();
    assert_eq!(got, (0..20).flat_map(|number| [number; 3]).collect::<Vec<u8>>());
    assert_eq!(test.udp.flows(), 1);
}

/// behaviour §5.3.2, §5.3.4: the targets of rules, and the address that the guest sees for the host itself.
#[test]
fn addresses_of_inbound_flows() {
    let mut test = Test::new();
    let socket = test.listen(listener(Some("0.0.0.0"), 80, Some("198.51.100.88"), 8080));
    for (client, shown) in [
        ("127.0.0.1:5", "198.51.100.1:5"),
        ("127.0.0.3:6", "198.51.100.1:6"),
        ("198.51.100.2:7", "198.51.100.77:7"),
        ("203.0.113.1:8", "203.0.113.1:8"),
    ] {
        let frame = test.client_writes(&socket, client, "127.0.0.1", b"x");
        assert_shown(&frame, shown, "198.51.100.88:8080", b"x");
        test.guest_sends("198.51.100.88:8080", shown, b"y");
        assert_eq!(socket.socket.sent()[0].destination, client.parse().unwrap());
    }
}

/// Q24: if the guest sees two clients with the same address, the first client keeps its flow, and the second client
/// does not get the answers to the first.
#[test]
fn q_24_a_shown_address_belongs_to_one_client() {
    let mut test = Test::new();
    test.udp.set_policy(Policy { bypass: Bypass::Never, ..Policy::default() });
    let socket = test.listen(listener(None, 80, None, 80));
    test.client_writes(&socket, "127.0.0.1:5", "127.0.0.1", b"first");
    test.arrive_at(&socket, "127.0.0.3:5", "127.0.0.1", b"second");
    test.ready(&socket, READABLE);
    assert_eq!(test.world.frames().len(), 0);
    test.guest_sends("198.51.100.55:80", "198.51.100.1:5", b"answer");
    assert_eq!(socket.socket.sent()[0].destination, "127.0.0.1:5".parse().unwrap());
}

const SERVER: &str = "198.51.100.55:5353";
const SERVER6: &str = "[2001:db8:1::55]:5353";
const REMOTE: &str = "203.0.113.1:8";

/// If the guest begins a flow from the target port of a rule, its datagrams are sent from the rule's port, and answers
/// reach the guest. The two ports may differ.
#[test]
fn the_guests_own_flows_are_sent_from_the_published_port() {
    for port in [5353, 3400] {
        let mut test = Test::new();
        let published = test.listen(listener(None, port, None, 5353));
        test.guest_sends(SERVER, REMOTE, b"x");
        test.guest_sends(SERVER6, "[2001:db8:2::1]:8", b"x");
        assert_eq!((published.socket.sent().len(), test.world.host.opened.len()), (2, 0));
        let frame = test.client_writes(&published, REMOTE, "192.0.2.1", b"y");
        assert_shown(&frame, REMOTE, SERVER, b"y");
        // The listener does not forward to another address or port of the guest.
        test.guest_sends("198.51.100.56:5353", REMOTE, b"x");
        test.guest_sends("198.51.100.55:5354", REMOTE, b"x");
        assert_eq!(test.world.host.opened.len(), 2);
    }
}

/// After a flow has expired, the guest's next datagram is still sent from the published port.
#[test]
fn the_published_port_outlives_the_flow() {
    let mut test = Test::new();
    let published = test.listen(listener(None, 3400, None, 51820));
    test.client_writes(&published, REMOTE, "192.0.2.1", b"question");
    test.wait(300);
    assert_eq!(test.udp.flows(), 0);
    test.guest_sends("198.51.100.55:51820", REMOTE, b"keepalive");
    assert_eq!((published.socket.sent().len(), test.world.host.opened.len()), (1, 0));
}

/// Datagrams to a group have the guest's own port as source port. A listener with this port sends them. If there is
/// none, the endpoint's socket sends them.
#[test]
fn datagrams_to_groups_have_the_guests_own_port() {
    for (port, by_listener) in [(5353, 1), (3400, 0)] {
        let mut test = Test::new();
        let published = test.listen(listener(None, port, None, 5353));
        test.guest_sends(SERVER, "224.0.0.251:5353", b"x");
        let opened: Vec<u16> = test.world.host.opened.iter().map(|opened| opened.number).collect();
        assert_eq!((published.socket.sent().len(), opened.len()), (by_listener, 1 - by_listener));
        assert!(opened.iter().all(|&opened| opened == 5353));
    }
}

/// A listener is not used if datagrams to the remote, or their answers, would not arrive.
#[test]
fn listeners_that_do_not_serve_the_guests_own_flows() {
    for other in [
        listener(Some("127.0.0.1"), 55, None, 5353),
        listener(Some("0.0.0.0"), 56, Some("198.51.100.88"), 5353),
        Listener { on_interface: true, ..listener(None, 57, None, 5353) },
        Listener { direction: crate::forward::spec::Direction::Outbound, ..listener(None, 57, None, 5353) },
        listener(Some("::"), 58, None, 5353),
        listener(Some("2001:db8:8::1"), 59, None, 5353),
        listener(None, 60, Some("2001:db8:1::55"), 5353),
    ] {
        let mut test = Test::new();
        let socket = test.listen(other);
        test.guest_sends(SERVER, REMOTE, b"x");
        assert_eq!((socket.socket.sent().len(), test.world.host.opened.len()), (0, 1), "{}", socket.number);
    }
    // Only a listener on loopback reaches the host's loopback.
    let mut test = Test::new();
    let looped = test.listen(listener(Some("127.0.0.1"), 55, None, 5353));
    let outer = test.listen(listener(Some("192.0.2.1"), 55, None, 5353));
    test.guest_sends(SERVER, "198.51.100.1:8", b"x");
    test.guest_sends(SERVER, REMOTE, b"x");
    assert_eq!((looped.socket.sent().len(), outer.socket.sent().len()), (1, 1));
}

/// Several rules may forward to one port of the guest. Listeners that are bound to the guest's source address come
/// first, then unbound listeners, then others. Among these, listeners with the guest's port come first, then the order
/// of the rules counts.
#[test]
fn the_most_specific_rule_is_used() {
    let numbered = |rule, listener| Listener { rule, ..listener };
    let best_first = [
        numbered(9, listener(Some("198.51.100.55"), 70, None, 5353)),
        numbered(8, listener(Some("0.0.0.0"), 5353, Some("198.51.100.55"), 5353)),
        numbered(1, listener(None, 72, None, 5353)),
        numbered(2, listener(None, 71, None, 5353)),
        numbered(0, listener(Some("192.0.2.1"), 74, None, 5353)),
    ];
    let mut test = Test::new();
    let mut sockets: Vec<_> = best_first.iter().rev().map(|one| test.listen(one.clone())).collect();
    for (n, best) in best_first.iter().enumerate() {
        test.guest_sends(SERVER, &format!("203.0.113.1:{}", 8 + n), b"x");
        let socket = sockets.pop().unwrap();
        assert_eq!((socket.number, socket.socket.sent().len()), (best.port, 1));
        test.udp.unlisten(socket.id);
    }
    assert_eq!(test.world.host.opened.len(), 0);
}

/// Q8: destinations that translate to the same remote have different sockets. This also applies to a published port.
#[test]
fn q_8_colliding_destinations_at_a_published_port() {
    let mut test = Test::new();
    let published = test.listen(listener(None, 3400, None, 5353));
    for destination in ["198.51.100.77:8", "198.51.100.2:8"] {
        test.guest_sends(SERVER, destination, b"x");
    }
    assert_eq!((published.socket.sent().len(), test.opened(0).socket.sent().len()), (1, 1));
}

/// behaviour §5.6: the guest sees the group as destination. The guest answers from its own address, and the host sends
/// the answer from the host's address.
#[test]
fn inbound_multicast() {
    let mut test = Test::new();
    let socket = test.listen(listener(None, 5353, None, 5354));
    let arriving = Received {
        destination: Some("224.0.0.251".parse().unwrap()),
        local: Some("192.0.2.1".parse().unwrap()),
        ..received("203.0.113.1:5353")
    };
    socket.socket.arrive_as(arriving, b"who");
    test.ready(&socket, READABLE);
    let (frame, _) = test.world.frame();
    assert_shown(&frame, "203.0.113.1:5353", "224.0.0.251:5354", b"who");
    assert_eq!(frame[..6], [1, 0, 0x5e, 0, 0, 251]);
    test.guest_sends("198.51.100.55:5354", "203.0.113.1:5353", b"me");
    let sent = socket.socket.sent();
    assert_eq!(sent[0].source, Some("192.0.2.1".parse().unwrap()));
}

/// A dual-stack socket does not report the family of a datagram in advance. Still, no datagram is damaged, and
/// datagrams of the maximum length fit.
#[test]
fn families_take_turns_on_a_dual_stack_socket() {
    let mut test = Test::new();
    test.world.settings.mtu = u16::MAX;
    let socket = test.listen(listener(None, 80, None, 80));
    let payload: Vec<u8> = (0..65487_u32).map(|i| i as u8).collect();
    for _ in 0..3 {
        let frame = test.client_writes(&socket, "203.0.113.1:8", "192.0.2.1", &payload);
        assert_shown(&frame, "203.0.113.1:8", "198.51.100.55:80", &payload);
        let frame = test.client_writes(&socket, "[2001:db8:2::1]:8", "2001:db8:8::1", &payload);
        assert_shown(&frame, "[2001:db8:2::1]:8", "[2001:db8:1::55]:80", &payload);
    }
    // This length fits only with IPv4 headers.
    test.client_writes(&socket, "203.0.113.1:8", "192.0.2.1", b"next guess is IPv4");
    test.arrive_at(&socket, "[2001:db8:2::1]:8", "2001:db8:8::1", &[7; 65500]);
    test.ready(&socket, READABLE);
    assert_eq!((test.world.frames().len(), test.udp.counters().undeliverable), (0, 1));
}

/// datagrams that can't be shown to the guest are read and dropped.
#[test]
fn undeliverable_datagrams_are_discarded_r96() {
    let mut test = Test::new();
    test.world.settings.v6 = None;
    let socket = test.listen(listener(None, 80, None, 80));
    test.arrive_at(&socket, "[2001:db8:2::1]:8", "2001:db8:8::1", b"x");
    test.arrive_at(&socket, "203.0.113.1:0", "192.0.2.1", b"x");
    for _ in 0..2 {
        test.ready(&socket, READABLE);
    }
    assert!(socket.socket.mailbox().arriving.is_empty());
    assert_eq!((test.world.frames().len(), test.udp.counters().undeliverable), (0, 2));
}

/// Errors of datagrams that a listener sent are reported to the guest. The quote has the guest's own port.
#[test]
fn errors_of_listeners() {
    let mut test = Test::new();
    let socket = test.listen(listener(None, 15000, None, 53));
    test.client_writes(&socket, "203.0.113.9:999", "192.0.2.1", b"question");
    socket.socket.error(
        QueuedError {
            destination: "203.0.113.9:999".parse().unwrap(),
            local: Some("192.0.2.1".parse().unwrap()),
            report: Some(Report { kind: 3, code: 3, info: 0 }),
            refused: false,
            offender: Some("203.0.113.9".parse().unwrap()),
            quoted: 0,
        },
        b"answer",
    );
    test.ready(&socket, ERROR);
    let (frame, _) = test.world.frame();
    let wire::frame::Transport::Icmp(message) = ip(&frame).transport else { panic!("no ICMP") };
    assert_eq!(message.payload[20..24], [0, 53, 3, 231]);
}

/// behaviour §8.4: closing a listener does not end flows. New clients are refused until the listener is opened again.
#[test]
fn a_closed_listener_serves_its_flows_to_their_end() {
    let mut test = Test::new();
    let socket = test.listen(listener(None, 5353, None, 5353));
    test.client_writes(&socket, "203.0.113.1:8", "192.0.2.1", b"first");
    test.udp.unlisten(socket.id);
    test.client_writes(&socket, "203.0.113.1:8", "192.0.2.1", b"more");
    test.guest_sends("198.51.100.55:5353", "203.0.113.1:8", b"answer");
    assert_eq!(socket.socket.sent().len(), 1);
    test.arrive_at(&socket, "203.0.113.2:8", "192.0.2.1", b"too late");
    test.ready(&socket, READABLE);
    assert_eq!((test.world.frames().len(), test.udp.flows()), (0, 1));
    // New flows of the guest no longer use the closed listener.
    test.guest_sends("198.51.100.55:5353", "203.0.113.9:8", b"x");
    assert_eq!((socket.socket.sent().len(), test.world.host.opened.len()), (0, 1));

    assert!(test.udp.relisten(socket.id, listener(None, 5353, None, 5354)));
    let frame = test.client_writes(&socket, "203.0.113.2:8", "192.0.2.1", b"now");
    assert_shown(&frame, "203.0.113.2:8", "198.51.100.55:5354", b"now");
    let before = socket.socket.sent().len();
    test.guest_sends("198.51.100.55:5354", "203.0.113.9:9", b"x");
    test.guest_sends("198.51.100.55:5353", "203.0.113.9:9", b"x");
    assert_eq!((before, socket.socket.sent().len()), (0, 1), "the new rule forwards to another port");

    test.udp.unlisten(socket.id);
    test.wait(300);
    assert_eq!(test.udp.flows(), 0);
    assert!(!test.udp.relisten(socket.id, listener(None, 5353, None, 5353)), "closed with its last flow");
}

/// A listener without flows is closed at once, and its ID is invalid.
#[test]
fn a_listener_without_flows_is_closed_at_once() {
    let mut test = Test::new();
    let socket = test.listen(listener(None, 5353, None, 5353));
    test.udp.unlisten(socket.id);
    assert!(!test.udp.relisten(socket.id, listener(None, 5353, None, 5353)));
    let other = test.listen(listener(None, 5354, None, 5354));
    test.udp.unlisten(socket.id);
    test.client_writes(&other, "203.0.113.1:8", "192.0.2.1", b"x");
}

/// behaviour §5.2.1: if the guest has several addresses of the host, its datagrams are sent from the address that the
/// guest uses. The endpoint's socket, or a listener on the guest's port, sends them. If the host does not have this
/// address, no listener is used, since answers would not reach the listener.
#[test]
fn the_source_that_a_guest_with_several_addresses_chose_is_kept() {
    let mut test = Test::new();
    let second = "198.51.100.66";
    let Fixture { guest, settings, .. } = &mut test.world;
    guest.shows(settings, second.parse().unwrap(), Some(wire::ethernet::Mac([2, 0, 0, 0, 0, 0x55])));
    let listener = test.listen(listener(None, 5000, None, 5000));
    test.guest_sends("198.51.100.66:5000", "203.0.113.9:53", b"not the host's");
    let opened = test.world.host.opened[0].clone();
    assert_eq!(opened.socket.sent()[0].source, None);

    test.world.host.own = [second.parse().unwrap()].into();
    test.guest_sends("198.51.100.66:5000", "203.0.113.10:53", b"by the listener");
    test.guest_sends("198.51.100.66:5001", "203.0.113.10:53", b"by a socket");
    assert_eq!(listener.socket.sent()[0].source, second.parse().ok());
    assert_eq!(test.world.host.opened[1].socket.sent()[0].source, second.parse().ok());
    let frame = test.client_writes(&listener, "203.0.113.10:53", second, b"answer");
    assert_shown(&frame, "203.0.113.10:53", "198.51.100.66:5000", b"answer");
}
