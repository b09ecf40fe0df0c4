//! Tests of groups that the guest joins, with the whole stack (behaviour §5.6).

use alloc::string::ToString;
use core::net::IpAddr;

use wire::{
    checksum::Sum,
    frame::{self, Body},
    offload::Offload,
    protocol,
};

use super::*;
use crate::{
    events::Refused,
    host::{Readiness, Received},
    testkit::{
        datagram::{Sent, received},
        journal::Journal,
    },
};

const GROUP: &str = "239.1.2.3";
const GROUP6: &str = "ff05::1234";
const PEER_AT: &str = "198.51.100.3:40000";
const PEER_AT6: &str = "[2001:db8:1::3]:40000";
/// The ports of the sockets of a joined group.
const PORTS: [u16; 4] = [5353, 1900, 5355, 3702];

fn following() -> Test {
    let mut test = Test::new();
    test.stack.settings_mut().services.multicast = true;
    test
}

/// A report of IGMPv3 or MLDv2 with one record.
fn report(group: &str, kind: u8) -> Vec<u8> {
    let group: IpAddr = group.parse().unwrap();
    let mut message = vec![if group.is_ipv4() { 0x22 } else { 143 }, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0];
    let (from, to) = match group {
        IpAddr::V4(group) => {
            message.extend(group.octets());
            ("198.51.100.55:1", "224.0.0.22:1")
        }
        IpAddr::V6(group) => {
            message.extend(group.octets());
            ("[fe80::55]:1", "[ff02::16]:1")
        }
    };
    let headers = Outgoing { hop_limit: 1, ..outgoing(from.parse().unwrap(), to.parse().unwrap()) };
    let mut frame = vec![0; MAX_LEN];
    let at = headers.headroom(0);
    frame[at + 8..at + message.len()].copy_from_slice(&message[8..]);
    // IGMP and ICMPv6 headers have eight bytes. Only the protocol number differs.
    let _ = headers.icmp(&mut frame, Header::new(message[0], 0, 1), message.len() - 8).unwrap();
    if group.is_ipv4() {
        let header = &mut frame[ethernet::HEADER_LEN..at];
        header[9] = protocol::IGMP;
        header[10..12].fill(0);
        let sum = Sum::new().bytes(header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    frame.truncate(at + message.len());
    frame
}

const JOIN: u8 = 4;
const LEAVE: u8 = 3;

/// A membership report is visible in the host's network, so the guest could use groups to send data.
#[test]
fn groups_that_the_rules_deny_are_not_joined() {
    for (rules, denied) in [("deny multicast", 2), ("allow 203.0.113.1", 2), ("allow udp/multicast:7000", 0)]
    {
        let mut test = following();
        let mut journal = Journal::default();
        *test.stack.guard_mut() = super::guard::guard(rules);
        test.stack.guard_mut().report_to(journal.events.clone());
        test.says(GROUP, JOIN);
        test.says(GROUP6, JOIN);
        // Every host is a member of such groups, so the host joins none.
        test.says("ff02::1:ff00:1", JOIN);
        let joined = usize::from(denied == 0);
        assert_eq!([GROUP, GROUP6].map(|group| test.members(group).len().min(1)), [joined; 2], "{rules}");
        assert_eq!(test.stack.guard().refused(), denied, "{rules}");
        journal.read();
        let member = |from: &str, group: &str| Refused::Membership {
            member: from.parse().unwrap(),
            group: group.parse().unwrap(),
        };
        let expected = [member("198.51.100.55", GROUP), member("fe80::55", GROUP6)];
        let reported: Vec<_> = journal.refusals.into_iter().map(|refusal| refusal.what).collect();
        assert_eq!(reported, expected[..denied as usize], "{rules}");
    }
}

impl Test {
    fn says(&mut self, group: &str, kind: u8) {
        self.receive(&report(group, kind), &Offload::default());
    }

    /// The open sockets of a group.
    fn members(&self, group: &str) -> Vec<Opened> {
        let of_group = |opened: &&Opened| opened.address.to_string() == group && !opened.closed();
        self.host.opened.iter().filter(of_group).cloned().collect()
    }

    /// A datagram arrives at a socket. Returns the frames that the guest gets.
    fn arrives(&mut self, at: &Opened, from: &str, payload: &[u8]) -> Vec<Vec<u8>> {
        self.link.frames.clear();
        let received = Received { hop_limit: Some(255), traffic_class: 0xb8, ..received(from) };
        at.socket.arrive_as(received, payload);
        let readable = Readiness { readable: true, ..Readiness::default() };
        self.round().ready(at.id, readable);
        core::mem::take(&mut self.link.frames).into_iter().map(|(frame, _)| frame).collect()
    }
}

#[test]
fn datagrams_to_a_group_reach_its_members() {
    for (group, peer, guest) in [(GROUP, PEER_AT, GUEST), (GROUP6, PEER_AT6, GUEST6)] {
        let mut test = following();
        test.says(group, JOIN);
        let members = test.members(group);
        let ports: Vec<_> = members.iter().map(|member| member.number).collect();
        assert_eq!(ports, PORTS);
        for member in &members {
            let frames = test.arrives(member, peer, b"to all");
            assert_eq!(frames.len(), 1);
            let packet = ip(&frames[0]);
            let from: SocketAddr = peer.parse().unwrap();
            assert_eq!((packet.source, packet.destination), (from.ip(), group.parse().unwrap()));
            assert_eq!((packet.hop_limit, packet.traffic_class), (255, 0xb8));
            let Transport::Udp(udp) = packet.transport else { panic!() };
            assert_eq!(
                (udp.header.source_port.get(), udp.header.destination_port.get()),
                (40000, member.number)
            );
            assert_eq!(udp.payload, b"to all");
        }
        // The answer is sent from the group's port.
        let own = guest.replace("4000", "5353");
        test.receive(&datagram(&own, peer, b"answer").1, &Offload::default());
        let sent: Vec<Sent> = members[0].socket.sent();
        assert_eq!((sent.len(), sent[0].payload.as_slice()), (1, &b"answer"[..]));

        drop(members);
        test.says(group, LEAVE);
        assert_eq!(test.members(group).len(), 4);
        test.wait(Duration::from_secs(2));
        assert_eq!(test.members(group).len(), 0);
        // The flows of these sockets have ended: the next datagram uses another socket.
        let before = test.host.opened.len();
        test.receive(&datagram(&own, peer, b"more").1, &Offload::default());
        assert_eq!(test.host.opened.len(), before + 1);
        assert_eq!(test.host.opened[before].socket.sent().len(), 1);
    }
}

#[test]
fn without_the_option_reports_are_ignored() {
    let mut test = Test::new();
    test.says(GROUP, JOIN);
    test.says(GROUP6, JOIN);
    assert_eq!(test.host.opened.len(), 0);
    assert_eq!(test.stack.counters().unsupported, 1);
    test.round().link_up();
    assert!(test.link.frames.iter().all(|(frame, _)| !is_query(frame)));
}

fn is_query(frame: &[u8]) -> bool {
    match frame::parse(frame).unwrap().body {
        Body::Ip(packet) => match packet.transport {
            Transport::Other(protocol::IGMP, message) => message[0] == 0x11,
            Transport::Icmp(message) => message.header.kind == 130,
            _ => false,
        },
        Body::Arp(_) => false,
    }
}

#[test]
fn queries_are_sent() {
    let mut test = following();
    test.round().link_up();
    let queries = |test: &mut Test| {
        core::mem::take(&mut test.link.frames).iter().filter(|(frame, _)| is_query(frame)).count()
    };
    assert_eq!(queries(&mut test), 2);
    test.says(GROUP, JOIN);
    test.now = test.now + Duration::from_secs(125);
    assert_eq!(test.round().finish(), Pressure::None);
    assert_eq!(queries(&mut test), 1);
    test.says(GROUP, LEAVE);
    assert_eq!(queries(&mut test), 1);
}

/// The guest uses another port with the group, before or after it joins the group.
#[test]
fn ports_that_the_guest_uses_with_a_group_have_sockets() {
    for joined_first in [true, false] {
        let mut test = following();
        if joined_first {
            test.says(GROUP, JOIN);
        }
        test.receive(&datagram("198.51.100.55:7000", "239.1.2.3:7001", b"x").1, &Offload::default());
        test.receive(&datagram("198.51.100.55:50000", "239.1.2.3:7001", b"x").1, &Offload::default());
        if !joined_first {
            test.says(GROUP, JOIN);
        }
        let ports: Vec<_> = test.members(GROUP).iter().map(|member| member.number).collect();
        assert_eq!(ports, [5353, 1900, 5355, 3702, 7001, 7000]);
    }
}

#[test]
fn the_guests_own_datagrams_are_not_returned_to_it() {
    let mut test = following();
    test.says(GROUP, JOIN);
    let member = test.members(GROUP)[0].clone();
    test.receive(&datagram(GUEST, "239.1.2.3:5353", b"question").1, &Offload::default());
    let host = "198.51.100.55:33333";
    assert_eq!(test.arrives(&member, host, b"question").len(), 0);
    // A copy is recognised only once. A second copy and datagrams with other contents are delivered.
    assert_eq!(test.arrives(&member, host, b"question").len(), 1);
    test.receive(&datagram(GUEST, "239.1.2.3:5353", b"question").1, &Offload::default());
    assert_eq!(test.arrives(&member, host, b"questioN").len(), 1);
    test.now = test.now + Duration::from_secs(1);
    assert_eq!(test.arrives(&member, host, b"question").len(), 1);
}

/// The guest has already exchanged datagrams with the sender, over another socket.
#[test]
fn datagrams_of_a_known_sender_are_delivered() {
    let mut test = following();
    let peer = "198.51.100.3:5353";
    test.receive(&datagram("198.51.100.55:5353", peer, b"unicast").1, &Offload::default());
    test.says(GROUP, JOIN);
    let member = test.members(GROUP)[0].clone();
    let frames = test.arrives(&member, peer, b"to all");
    assert_eq!(frames.len(), 1);
    assert_eq!(ip(&frames[0]).destination, GROUP.parse::<IpAddr>().unwrap());
}

#[test]
fn the_number_of_sockets_is_bounded() {
    let mut test = following();
    for number in 0..50 {
        test.says(&alloc::format!("239.0.0.{number}"), JOIN);
    }
    assert_eq!(test.host.opened.len(), 128);
    assert_eq!(test.stack.udp().counters().no_room, 50 * 4 - 128);
    test.says("239.0.0.0", LEAVE);
    test.wait(Duration::from_secs(2));
    test.says("239.0.0.200", JOIN);
    assert_eq!(test.members("239.0.0.200").len(), 4);
}
