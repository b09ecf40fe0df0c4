//! Tests of flows that end when the rules are replaced, with the whole stack (docs/guard.md).

use alloc::string::String;

use wire::dns::{Question, Type};

use super::{
    guard::{assert_prohibited, guarded, ping},
    *,
};
use crate::{
    forward::{Listen, Listener, PortRange, Rule, spec::Direction},
    guard::{Ended, Guard, Mode},
    host::Readiness,
    policy::{Policy, spec},
    testkit::datagram::Datagrams,
};

const OTHER: &str = "203.0.113.2:7";
const READABLE: Readiness =
    Readiness { readable: true, writable: false, read_closed: false, error: false, urgent: false };

impl Test {
    /// A stack without rules: the guest may reach everything.
    fn free() -> Self {
        let mut test = Self::new();
        *test.stack.guard_mut() = Guard::without_rules(Mode::default(), [1; 16]);
        test
    }

    fn replace(&mut self, rules: &str) -> Ended {
        let file = spec::parse_file(rules).unwrap();
        self.round().replace_policy(Policy::new(file.rules, file.default).unwrap())
    }

    fn listen(&mut self, direction: Direction) -> Opened {
        let rule = Rule {
            protocol: crate::forward::Protocol::Udp,
            listen: Listen::ANY,
            ports: PortRange::single(4000),
            target_addr: None,
            target_first: 4000,
            best_effort: false,
            scan: false,
        };
        let listener = Listener::new(direction, 0, &rule, 4000).unwrap();
        let socket = Datagrams::default();
        let (open, life) = socket.open();
        let id = self.stack.udp_mut().listen(&mut self.host, listener, open).unwrap();
        Opened { id, address: "::".parse().unwrap(), number: 4000, socket, life }
    }

    fn send(&mut self, to: &str) -> Vec<u8> {
        let frame = datagram(GUEST, to, b"datagram").1;
        self.receive(&frame, &Offload::default());
        frame
    }

    /// A datagram arrives at a socket. Returns whether the guest gets it.
    fn is_delivered(&mut self, at: &Opened, from: &str) -> bool {
        at.socket.arrive(from, b"datagram");
        self.round().ready(at.id, READABLE);
        !self.wait(Duration::ZERO).is_empty()
    }
}

#[test]
fn a_udp_flow_ends_if_new_rules_deny_it_and_the_next_datagram_is_refused() {
    let mut test = Test::free();
    test.send(PEER);
    test.send(OTHER);
    let socket = test.socket().clone();
    assert_eq!(test.replace("deny 203.0.113.2"), Ended { udp: 1, ..Ended::default() });
    assert_eq!((test.stack.udp().flows(), socket.closed()), (1, false));
    assert!(test.is_delivered(&socket, PEER));
    assert!(!test.is_delivered(&socket, OTHER));
    socket.socket.sent();
    test.send(PEER);
    assert_eq!(socket.socket.sent().len(), 1);
    let refused = test.send(OTHER);
    assert_prohibited(&mut test, &refused);
    // An endpoint without flows closes its socket.
    assert_eq!(test.replace("deny udp/203.0.113.0/24"), Ended { udp: 1, ..Ended::default() });
    assert!(socket.closed());
    assert_eq!(test.replace("deny all"), Ended::default());
}

/// Otherwise the guest could still answer a sender to which it must no longer write.
#[test]
fn a_flow_that_a_stranger_began_ends_as_well() {
    let mut test = Test::free();
    test.send(PEER);
    let socket = test.socket().clone();
    assert!(test.is_delivered(&socket, OTHER));
    assert_eq!(test.replace("deny 203.0.113.2"), Ended { udp: 1, ..Ended::default() });
    assert!(!test.is_delivered(&socket, OTHER));
    let refused = test.send(OTHER);
    assert_prohibited(&mut test, &refused);
}

/// The rules are about flows that the guest begins, so published ports stay reachable.
#[test]
fn a_flow_from_outside_to_a_published_port_stays() {
    let mut test = Test::free();
    let socket = test.listen(Direction::Inbound);
    assert!(test.is_delivered(&socket, PEER));
    // A flow that the guest begins is judged, even if the guest uses the published port.
    test.send(OTHER);
    socket.socket.sent();
    assert_eq!(test.replace("deny all"), Ended { udp: 1, ..Ended::default() });
    assert!(test.is_delivered(&socket, PEER));
    test.send(PEER);
    assert_eq!(socket.socket.sent().len(), 1);
    let refused = test.send(OTHER);
    assert_prohibited(&mut test, &refused);
}

/// A client in the guest's namespace reaches the host's loopback without the link, so the rules apply. A client of the
/// host is not judged.
#[test]
fn a_client_that_bypasses_the_link_loses_its_socket() {
    for (direction, ends) in [(Direction::Outbound, true), (Direction::Inbound, false)] {
        let mut test = Test::free();
        let socket = test.listen(direction);
        let loopback = Some("127.0.0.1".parse().unwrap());
        let received = testkit::datagram::received("127.0.0.1:999");
        let received = crate::host::Received { destination: loopback, local: loopback, ..received };
        socket.socket.arrive_as(received, b"question");
        test.round().ready(socket.id, READABLE);
        let proxy = test.host.opened[0].clone();
        assert_eq!(test.replace("allow host"), Ended::default());
        assert!(!proxy.closed());
        assert_eq!(test.replace("deny host"), Ended { udp: ends.into(), ..Ended::default() });
        assert_eq!(proxy.closed(), ends);
    }
}

#[test]
fn a_ping_ends_if_new_rules_deny_its_latest_destination() {
    let mut test = Test::free();
    test.receive(&ping(GUEST, PEER), &Offload::default());
    test.receive(&ping(GUEST, OTHER), &Offload::default());
    let socket = test.socket().clone();
    assert_eq!(test.replace("deny 203.0.113.1"), Ended::default());
    assert_eq!(test.replace("deny icmp/203.0.113.2"), Ended { icmp: 1, ..Ended::default() });
    assert!(socket.closed());
    let refused = ping(GUEST, OTHER);
    test.receive(&refused, &Offload::default());
    assert_prohibited(&mut test, &refused);
    test.receive(&ping(GUEST, PEER), &Offload::default());
    assert_eq!(test.host.opened.last().unwrap().socket.sent().len(), 1);
}

#[test]
fn an_audit_ends_nothing_and_counts() {
    let mut test = Test::new();
    *test.stack.guard_mut() = Guard::without_rules(Mode { audit: true, ..Mode::default() }, [1; 16]);
    test.send(PEER);
    test.receive(&ping(GUEST, PEER), &Offload::default());
    assert_eq!(test.replace("deny all"), Ended { udp: 1, icmp: 1, ..Ended::default() });
    assert_eq!((test.stack.udp().flows(), test.stack.ping().flows()), (1, 1));
    test.send(OTHER);
    assert_eq!(test.stack.udp().flows(), 2);
}

#[test]
fn a_udp_flow_by_name_stays_as_long_as_a_rule_allows_the_name() {
    let rules = "allow files.example.org:7";
    let mut test = guarded(rules);
    let names = test.stack.guard_mut().names_mut().unwrap();
    assert!(names.learn("203.0.113.1".parse().unwrap(), "files.example.org", 60, START));
    test.send(PEER);
    assert_eq!(test.replace(rules), Ended::default());
    assert_eq!(test.replace("allow other.example.org:7"), Ended { udp: 1, ..Ended::default() });
    let refused = test.send(PEER);
    assert_prohibited(&mut test, &refused);
}

const RESOLVER: &str = "198.51.100.53:53";

fn query(name: &str) -> Vec<u8> {
    let mut message = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    message.extend(testkit::message::name(name));
    message.extend([Type::A.0.to_be_bytes(), [0, 1]].concat());
    message
}

/// The messages and sources of the datagrams that the guest gets.
fn answers(test: &mut Test) -> Vec<(String, u8)> {
    let frames = test.wait(Duration::ZERO);
    let answer = |frame: &Vec<u8>| {
        let Transport::Udp(datagram) = ip(frame).transport else { panic!() };
        let message = query("files.example.org");
        let question = Question::parse(&message).unwrap();
        (alloc::format!("{}", ip(frame).source), question.answered_by(datagram.payload).unwrap().0)
    };
    frames.iter().map(answer).collect()
}

#[test]
fn a_query_without_an_answer_is_judged_again() {
    let mut test = guarded("allow *.example.org");
    test.receive(&datagram(GUEST, RESOLVER, &query("files.example.org")).1, &Offload::default());
    assert_eq!(test.replace("allow *.example.org"), Ended::default());
    assert_eq!((test.stack.dns().len(), answers(&mut test)), (1, vec![]));
    assert_eq!(test.replace("allow other.example"), Ended::default());
    assert_eq!(test.stack.dns().len(), 0);
    assert_eq!(answers(&mut test), [(String::from("198.51.100.53"), 3)]);
    assert_eq!(test.stack.guard().refused(), 1);
}

/// A query that was forwarded without a verdict ends. It is judged when the guest repeats it.
#[test]
fn a_query_that_was_sent_unread_ends_when_queries_begin_to_be_judged() {
    for rules in ["allow files.example.org", "deny 198.51.100.53"] {
        let mut test = Test::free();
        let frame = datagram(GUEST, RESOLVER, &query("other.example")).1;
        test.receive(&frame, &Offload::default());
        // This name server is not one of the host's resolvers.
        test.send("203.0.113.9:53");
        let udp = if rules.starts_with("allow") { 2 } else { 1 };
        assert_eq!(test.replace(rules), Ended { udp, ..Ended::default() });
        assert_eq!((test.stack.dns().len(), test.stack.udp().flows() as u64), (0, 2 - udp));
        test.receive(&frame, &Offload::default());
        assert_eq!(test.wait(Duration::ZERO).len(), 1, "a refusal");
        assert_eq!(test.stack.dns().len(), 0);
    }
}
