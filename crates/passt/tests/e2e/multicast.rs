//! Tests of multicast groups that the guest joins (`--multicast`), and of broadcasts.

use crate::harness::*;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

const MDNS: u16 = 5353;
const GROUPS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(239, 1, 2, 3)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x12, 0x3456)),
    IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x12, 0x3456)),
];

fn join(socket: &UdpSocket, ns: &Ns, group: IpAddr) {
    match group {
        IpAddr::V4(group) => socket.join_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(group) => socket.join_multicast_v6(&group, ns.ifindex("eth0")),
    }
    .unwrap();
}

fn leave(socket: &UdpSocket, ns: &Ns, group: IpAddr) {
    match group {
        IpAddr::V4(group) => socket.leave_multicast_v4(&group, &Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(group) => socket.leave_multicast_v6(&group, ns.ifindex("eth0")),
    }
    .unwrap();
}

fn at(ns: &Ns, group: IpAddr, port: u16) -> SocketAddr {
    match group {
        IpAddr::V4(_) => (group, port).into(),
        IpAddr::V6(group) => SocketAddrV6::new(group, port, 0, ns.ifindex("eth0")).into(),
    }
}

/// The next datagram, if one arrives within 200 ms.
fn receive_soon(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let timeout = socket.read_timeout().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 2048];
    let result = socket.recv_from(&mut buffer);
    socket.set_read_timeout(timeout).unwrap();
    match result {
        Ok((len, from)) => Some((buffer[..len].to_vec(), from)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn net() -> Option<Net> {
    let net = Net::new()?;
    for ns in [&net.host, &net.peer] {
        ns.sh("ip route replace 224.0.0.0/4 dev eth0");
    }
    Some(net)
}

/// The peer sends to the group until the guest receives a datagram. This is after the guest's membership report.
fn wait_until_heard(guest: &UdpSocket, sender: &UdpSocket, to: SocketAddr) -> SocketAddr {
    let mut heard = None;
    wait_until("the guest hears the group", || {
        sender.send_to(b"to the group", to).unwrap();
        heard = receive_soon(guest);
        heard.is_some()
    });
    let (payload, from) = heard.unwrap();
    assert_eq!(payload, b"to the group");
    from
}

#[test]
fn the_guest_hears_groups_until_it_leaves() {
    let Some(net) = net() else { return };
    net.pasta(&["--multicast"]);
    for group in GROUPS {
        let own = if group.is_ipv4() { PEER[0] } else { PEER[1] };
        let guest = net.guest.udp((any(group), MDNS));
        let sender = net.peer.udp((own, 0));
        let to = at(&net.peer, group, MDNS);
        join(&guest, &net.guest, group);
        wait_until("the host joins", || host_is_member(&net, group));
        let from = wait_until_heard(&guest, &sender, to);
        assert_eq!((from.ip(), from.port()), (own, port(&sender)));
        // The answer arrives.
        guest.send_to(b"answer", from).unwrap();
        assert_eq!(recv_from(&sender).0, b"answer");
        while receive_soon(&guest).is_some() {}
        leave(&guest, &net.guest, group);
        wait_until("the host has left the group", || !host_is_member(&net, group));
    }
}

/// Whether the host's interface is a member of a group.
fn host_is_member(net: &Net, group: IpAddr) -> bool {
    let groups = net.host.sh("ip maddr show dev eth0");
    groups.split_whitespace().any(|word| word == group.to_string())
}

#[test]
fn groups_are_not_heard_without_the_option() {
    let Some(net) = net() else { return };
    net.pasta(&[]);
    for group in GROUPS {
        let guest = net.guest.udp((any(group), MDNS));
        let sender = net.peer.udp((any(group), 0));
        join(&guest, &net.guest, group);
        for _ in 0..5 {
            sender.send_to(b"to the group", at(&net.peer, group, MDNS)).unwrap();
            assert_eq!(receive_soon(&guest), None);
        }
        assert!(!host_is_member(&net, group));
    }
}

/// A daemon on the host that is a member of the group and shares the port loses no datagrams. The guest does not
/// receive its own datagrams.
#[test]
fn a_daemon_of_the_host_keeps_its_groups() {
    let Some(net) = net() else { return };
    net.pasta(&["--multicast"]);
    for (v, group) in GROUPS[..2].iter().copied().enumerate() {
        let daemon = net.host.udp_shared((any(group), MDNS));
        join(&daemon, &net.host, group);
        let guest = net.guest.udp((any(group), MDNS));
        guest.set_multicast_loop_v4(false).unwrap();
        if v == 1 {
            guest.set_multicast_loop_v6(false).unwrap();
        }
        join(&guest, &net.guest, group);
        let sender = net.peer.udp((PEER[v], 0));
        let to = at(&net.peer, group, MDNS);
        wait_until_heard(&guest, &sender, to);
        assert_eq!(recv_from(&daemon).0, b"to the group");
        while receive_soon(&guest).is_some() || receive_soon(&daemon).is_some() {}

        guest.send_to(b"from the guest", at(&net.guest, group, MDNS)).unwrap();
        assert_eq!(recv_from(&daemon).0, b"from the guest");
        sender.send_to(b"next", to).unwrap();
        assert_eq!(recv_from(&guest).0, b"next");
        // The same payload from another sender arrives.
        sender.send_to(b"from the guest", to).unwrap();
        assert_eq!(recv_from(&guest).0, b"from the guest");
        assert_eq!(recv_from(&daemon).0, b"next");
        assert_eq!(recv_from(&daemon).0, b"from the guest");

        sender.send_to(b"to the daemon", (HOST[v], MDNS)).unwrap();
        assert_eq!(recv_from(&daemon).0, b"to the daemon");
        assert_eq!(receive_soon(&guest), None);
    }
}

/// The port need not be that of mDNS.
#[test]
fn groups_are_heard_at_the_port_that_the_guest_sends_to() {
    let Some(net) = net() else { return };
    net.pasta(&["--multicast"]);
    for (v, group) in GROUPS[..2].iter().copied().enumerate() {
        let guest = net.guest.udp((any(group), 7654));
        guest.send_to(b"hello", at(&net.guest, group, 7654)).unwrap();
        join(&guest, &net.guest, group);
        let sender = net.peer.udp((PEER[v], 0));
        let from = wait_until_heard(&guest, &sender, at(&net.peer, group, 7654));
        assert_eq!(from.ip(), PEER[v]);
    }
}

/// Another socket with the same address and port sends the guest's datagrams to the group. This socket must not receive
/// the datagrams to the group.
#[test]
fn datagrams_to_a_group_reach_the_guest_after_it_has_sent() {
    let Some(net) = net() else { return };
    net.pasta(&["--multicast"]);
    for (v, group) in GROUPS[..2].iter().copied().enumerate() {
        let guest = net.guest.udp((any(group), MDNS));
        join(&guest, &net.guest, group);
        let to = at(&net.peer, group, MDNS);
        wait_until_heard(&guest, &net.peer.udp((PEER[v], 0)), to);
        guest.send_to(b"question", at(&net.guest, group, MDNS)).unwrap();
        while receive_soon(&guest).is_some() {}
        // The kernel selects one of several sockets with the same port by a hash of the addresses and ports.
        for n in 0..16_u8 {
            net.peer.udp((PEER[v], 0)).send_to(&[n], to).unwrap();
            assert_eq!(recv_from(&guest).0, [n]);
        }
    }
}

/// The guest does not receive its own broadcasts.
#[test]
fn broadcasts_are_heard_at_ports_that_the_guest_sends_from() {
    let Some(net) = net() else { return };
    net.pasta(&["-u", "none"]);
    for (to, port) in [(Ipv4Addr::BROADCAST, 47808), (Ipv4Addr::new(198, 51, 100, 255), 5353)] {
        let guest = net.guest.udp((any(HOST[0]), port));
        let sender = net.peer.udp((PEER[0], 0));
        for socket in [&guest, &sender] {
            socket.set_broadcast(true).unwrap();
        }
        let at = SocketAddr::new(to.into(), port);
        for _ in 0..3 {
            guest.send_to(b"who is there?", at).unwrap();
            assert_eq!(recv_from(&guest).0, b"who is there?", "the copy of the guest's own kernel");
            assert_eq!(receive_soon(&guest), None);
        }
        let from = wait_until_heard(&guest, &sender, at);
        assert_eq!((from.ip(), from.port()), (PEER[0], self::port(&sender)));
        guest.send_to(b"I am", from).unwrap();
        assert_eq!(recv_from(&sender).0, b"I am");
        // The same payload from another sender arrives.
        sender.send_to(b"who is there?", at).unwrap();
        assert_eq!(recv_from(&guest).0, b"who is there?");
    }
}

/// A forwarded port receives multicast and broadcast datagrams. Each arrives once, even if the group has its own
/// socket.
#[test]
fn a_forwarded_port_gets_each_datagram_once() {
    let Some(net) = net() else { return };
    net.pasta(&["--multicast", "-u", "47808"]);
    for to in [GROUPS[0], Ipv4Addr::BROADCAST.into()] {
        let guest = net.guest.udp((any(HOST[0]), 47808));
        guest.set_broadcast(true).unwrap();
        guest.set_multicast_loop_v4(false).unwrap();
        if to.is_multicast() {
            join(&guest, &net.guest, to);
        }
        let at = SocketAddr::new(to, 47808);
        guest.send_to(b"hello", at).unwrap();
        while receive_soon(&guest).is_some() {}
        let sender = net.peer.udp((PEER[0], 0));
        sender.set_broadcast(true).unwrap();
        wait_until_heard(&guest, &sender, at);
        while receive_soon(&guest).is_some() {}
        for n in 0..5_u8 {
            sender.send_to(&[n], at).unwrap();
            assert_eq!(recv_from(&guest).0, [n]);
        }
        assert_eq!(receive_soon(&guest), None);
    }
}
