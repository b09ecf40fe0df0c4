//! Tests of datagrams to groups if the guest's port is in use on the host.

use super::*;

const RESPONSE: &[u8] = b"\0\0\x84\0\0\0\0\x01\0\0\0\0response";
const QUESTION: &[u8] = b"\0\0\0\0\0\x01\0\0\0\0\0\0question";
const MDNS: [(&str, &str); 2] =
    [("198.51.100.55:5353", "224.0.0.251:5353"), ("[2001:db8:1::55]:5353", "[ff02::fb]:5353")];

/// A test with a host on which another program uses port 5353 and shares it.
fn mdns_on_the_host() -> Test {
    let mut test = Test::new();
    test.world.host.taken.push(5353);
    test
}

impl Test {
    /// The datagrams that were sent since the last call from shared ports, and from other ports.
    fn sent(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let payloads = |socket: &Datagrams| socket.sent().into_iter().map(|sent| sent.payload);
        let host = &self.world.host;
        let shared = host.shared.iter().flat_map(|(_, _, socket)| payloads(socket)).collect();
        (shared, host.opened.iter().flat_map(|opened| payloads(&opened.socket)).collect())
    }
}

/// RFC 6762 §6: receivers ignore a response from a port other than 5353.
#[test]
fn datagrams_to_a_group_have_the_guests_port() {
    for (guest, group) in MDNS {
        let mut test = mdns_on_the_host();
        for _ in 0..3 {
            test.guest_sends(guest, group, RESPONSE);
        }
        assert_eq!(test.sent(), (vec![RESPONSE.to_vec(); 3], vec![]));
        let [(to, port, _)] = &test.world.host.shared[..] else { panic!("no shared port, or two") };
        assert_eq!((to.ip(), *port), (group.parse::<SocketAddr>().unwrap().ip(), 5353));
    }
}

/// RFC 6762 §6.7: queries from another port are answered by unicast to that port, so the guest gets the answers. If the
/// queries came from the shared port, the host's daemon would get the answers.
#[test]
fn mdns_queries_are_sent_from_a_port_at_which_answers_reach_the_guest() {
    let (guest, group) = MDNS[0];
    let mut test = mdns_on_the_host();
    test.guest_sends(guest, group, QUESTION);
    assert_eq!(test.sent(), (vec![], vec![QUESTION.to_vec()]));
    let frame = test.answer(&test.opened(0), "198.51.100.8:5353", RESPONSE);
    assert_shown(&frame, "198.51.100.8:5353", guest, RESPONSE);
    // A message that is too short for a query, and a message to another port, are not mDNS queries.
    test.world.host.taken.push(1900);
    test.guest_sends(guest, group, &QUESTION[..11]);
    test.guest_sends("198.51.100.55:1900", "239.255.255.250:1900", QUESTION);
    assert_eq!(test.sent(), (vec![QUESTION[..11].to_vec(), QUESTION.to_vec()], vec![]));
}

/// Answers to queries from ports other than 5353 repeat the question, and Avahi ignores such answers. So queries of a
/// member of the group are sent from the shared port 5353, and the answers arrive at the group.
#[test]
fn queries_of_a_member_are_sent_from_the_shared_port() {
    for (guest, group) in MDNS {
        let mut test = mdns_on_the_host();
        let address = group.parse::<SocketAddr>().unwrap().ip();
        test.udp.join(address, &mut test.world.host);
        test.guest_sends(guest, group, QUESTION);
        assert_eq!(test.sent(), (vec![QUESTION.to_vec()], vec![]));
        test.udp.leave(address, &mut test.world.guard, &mut test.world.timers);
        test.guest_sends(guest, group, QUESTION);
        assert_eq!(test.sent(), (vec![], vec![QUESTION.to_vec()]));
    }
}

/// Unicast, and datagrams to groups from a port that is free on the host, use the endpoint's own socket.
#[test]
fn other_datagrams_use_the_endpoints_socket() {
    let mut test = mdns_on_the_host();
    test.guest_sends("198.51.100.55:5353", "203.0.113.1:5353", RESPONSE);
    test.guest_sends("198.51.100.55:5000", "224.0.0.251:5353", RESPONSE);
    assert_eq!((test.world.host.shared.len(), test.sent().1.len()), (0, 2));
}

/// If the port is not shared, or the socket at the shared port fails, no datagram is lost.
#[test]
fn without_a_shared_port_another_one_is_used() {
    let (guest, group) = MDNS[0];
    let mut test = mdns_on_the_host();
    test.guest_sends(guest, group, RESPONSE);
    assert_eq!(test.sent().0.len(), 1);
    let socket = test.world.host.shared[0].2.clone();
    socket.mailbox().refusals.push_back(SocketError::WouldBlock);
    test.guest_sends(guest, group, RESPONSE);
    assert_eq!((test.sent(), test.udp.counters().not_sent), ((vec![], vec![]), 1));
    socket.mailbox().refusals.push_back(SocketError::Failed(Errno(22)));
    test.guest_sends(guest, group, RESPONSE);
    test.guest_sends(guest, group, RESPONSE);
    assert_eq!(test.sent(), (vec![], vec![RESPONSE.to_vec(); 2]));
}

/// The sockets at shared ports end with their flows, and their number is bounded.
#[test]
fn shared_ports_are_bounded() {
    let mut test = mdns_on_the_host();
    for group in 1..=20 {
        test.guest_sends("198.51.100.55:5353", &format!("239.0.0.{group}:5353"), RESPONSE);
    }
    let most = LIMITS.endpoints.most / 4;
    assert_eq!(test.world.host.shared.len(), most);
    assert_eq!((test.sent().0.len(), test.udp.shared_ports.len()), (most, most));
    // These sockets count in the share of the guest's endpoints, and end with the flows of these endpoints.
    for port in 1..=10 {
        test.guest_sends(&format!("198.51.100.55:{port}"), "203.0.113.1:8", b"x");
        assert!(test.world.host.open_files() + test.udp.shared_ports.len() <= LIMITS.endpoints.most);
    }
    assert_eq!((test.world.host.open_files(), test.udp.shared_ports.len()), (10, 0));
    test.guest_sends("198.51.100.55:5353", "239.0.0.1:5353", RESPONSE);
    assert_eq!(test.udp.shared_ports.len(), 1);
    test.sent();
    test.wait(300);
    assert_eq!(test.udp.shared_ports.len(), 0);
    let (guest, group) = MDNS[0];
    test.guest_sends(guest, group, RESPONSE);
    assert_eq!(test.sent().0.len(), 1);
}
