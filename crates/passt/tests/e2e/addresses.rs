//! Tests of guests with several addresses, and of networks behind guests (behaviour §5.4).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The host's second addresses, which the guest copies.
const SECOND: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 20)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 20)),
];
const TWO_ADDRESSES: &str = "
ip addr add 198.51.100.20/24 dev eth0; ip addr add 2001:db8:1::14/64 dev eth0 nodad
";

/// Addresses of a machine in a network to which the guest routes.
const BEHIND: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2)), IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2))];

fn two_addresses() -> Option<Net> {
    Net::with(Options { host_setup: TWO_ADDRESSES, ..Options::default() })
}

/// Checks that a client on the peer that uses the address `to` reaches the TCP and UDP services of the guest that are
/// bound to `service` only.
fn assert_reaches_service(net: &Net, to: IpAddr, service: IpAddr) {
    let listener = net.guest.listen((service, 7000));
    let mut client = net.peer.connect((to, 7000)).unwrap();
    let (mut stream, _) = accept(&listener);
    stream.write_all(b"t").unwrap();
    client.read_exact(&mut [0]).unwrap();

    let server = net.guest.udp((service, 7000));
    let client = net.peer.udp((any(to), 0));
    client.send_to(b"question", (to, 7000)).unwrap();
    let (_, from) = recv_from(&server);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (to, 7000).into()));
}

/// The source address of a client in `from` that is bound to `source`, as a TCP server and a UDP server on the peer see
/// it.
fn address_seen_by_peer(net: &Net, from: &Ns, source: SocketAddr, peer: IpAddr) -> IpAddr {
    let listener = net.peer.listen((peer, 7000));
    let mut client = from.connect_from(source, (peer, 7000)).unwrap();
    let (mut stream, tcp) = accept(&listener);
    stream.write_all(b"t").unwrap();
    client.read_exact(&mut [0]).unwrap();

    let server = net.peer.udp((peer, 7000));
    let client = from.udp(source);
    client.send_to(b"question", (peer, 7000)).unwrap();
    let (_, udp) = recv_from(&server);
    server.send_to(b"answer", udp).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (peer, 7000).into()));
    assert_eq!(tcp.ip(), udp.ip());
    tcp.ip()
}

#[test]
fn a_service_is_reached_at_its_address() {
    let Some(net) = two_addresses() else { return };
    net.pasta(&["-t", "7000", "-u", "7000"]);
    for v in 0..2 {
        for last_used in [SECOND[v], HOST[v]] {
            address_seen_by_peer(&net, &net.guest, (last_used, 0).into(), PEER[v]);
            for address in [HOST[v], SECOND[v]] {
                assert_reaches_service(&net, address, address);
            }
        }
    }
}

#[test]
fn a_client_keeps_its_source_address() {
    let Some(net) = two_addresses() else { return };
    // One UDP rule is for the client's own port. With this rule, the listener's socket may send the client's datagrams.
    net.pasta(&["-t", "none", "-u", "7001"]);
    for v in 0..2 {
        for address in [HOST[v], SECOND[v]] {
            for port in [0, 7001] {
                let from = (address, port).into();
                assert_eq!(address_seen_by_peer(&net, &net.guest, from, PEER[v]), address, "port {port}");
            }
        }
        // An unbound client has the source address that the host would choose.
        let unbound = (any(HOST[v]), 0).into();
        let [guest, host] =
            [&net.guest, &net.host].map(|from| address_seen_by_peer(&net, from, unbound, PEER[v]));
        assert_eq!(guest, host);
    }
}

/// The peer has a route back to only one of the two addresses.
#[test]
fn a_ping_keeps_its_source_address() {
    need!("ping");
    let Some(net) = two_addresses() else { return };
    net.pasta(&[]);
    for v in 0..2 {
        for (address, other) in [(HOST[v], SECOND[v]), (SECOND[v], HOST[v])] {
            net.peer.sh(&format!("ip route add blackhole {other}"));
            net.guest.sh(&format!("ping -n -w 60 -c 1 -I {address} {}", PEER[v]));
            net.peer.sh(&format!("ip route del blackhole {other}"));
        }
    }
}

/// behaviour §3.6: copied routes keep their preferred source address.
#[test]
fn the_guest_copies_preferred_sources() {
    const PREFERS: &str = "
ip addr add 198.51.100.20/24 dev eth0; ip addr add 2001:db8:1::14/64 dev eth0 nodad
ip route add 203.0.113.0/24 via 198.51.100.1 src 198.51.100.20
ip route add 2001:db8:2::/64 via 2001:db8:1::1 src 2001:db8:1::14
";
    let Some(net) = Net::with(Options { host_setup: PREFERS, ..Options::default() }) else { return };
    net.pasta(&[]);
    for v in 0..2 {
        let listener = net.far.listen((FAR[v], 7000));
        let client = net.guest.connect((FAR[v], 7000)).unwrap();
        assert_eq!(client.local_addr().unwrap().ip(), SECOND[v]);
        assert_eq!(accept(&listener).1.ip(), SECOND[v]);
    }
}

/// These issues reported the problem in other programs: incus-os#1383, slirp4netns#173.
#[test]
fn a_network_behind_the_guest_does_not_redirect_inbound_traffic() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-u", "7000"]);
    net.host.sh(
        "
ip netns add behind
ip -n guest link add v0 type veth peer name eth0 netns behind
ip -n guest addr add 172.17.0.1/16 dev v0; ip -n guest addr add fd77::1/64 dev v0 nodad
ip -n guest link set v0 up; ip -n behind link set lo up; ip -n behind link set eth0 up
ip -n behind addr add 172.17.0.2/16 dev eth0; ip -n behind addr add fd77::2/64 dev eth0 nodad
ip -n behind route add default via 172.17.0.1; ip -n behind route add default via fd77::1
nsenter --net=/run/netns/guest sh -ec 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
",
    );
    let behind = net.host.inner(&["nsenter", "--net=/run/netns/behind"]);
    for v in 0..2 {
        for _ in 0..2 {
            assert_eq!(address_seen_by_peer(&net, &behind, (BEHIND[v], 0).into(), PEER[v]), HOST[v]);
            assert_reaches_service(&net, HOST[v], HOST[v]);
        }
    }
}

/// The tap is in a bridge with another station, which has its own MAC address.
#[test]
fn each_station_of_a_bridge_gets_its_own_traffic() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-u", "7000"]);
    let mac = net.guest_mac().map(|byte| format!("{byte:02x}")).join(":");
    net.host.sh(&format!(
        "
ip netns add other
ip -n guest addr flush dev eth0; ip -n guest -6 route flush dev eth0
ip -n guest link add br0 address {mac} type bridge forward_delay 0
ip -n guest link set eth0 master br0; ip -n guest link set br0 up
ip -n guest link add v0 type veth peer name eth0 netns other
ip -n guest link set v0 up master br0; ip -n other link set lo up; ip -n other link set eth0 up
ip -n guest addr add 198.51.100.2/24 dev br0; ip -n guest addr add 2001:db8:1::2/64 dev br0 nodad
ip -n other addr add 198.51.100.60/24 dev eth0; ip -n other addr add 2001:db8:1::60/64 dev eth0 nodad
for ns in guest other; do ip -n $ns route replace default via 198.51.100.1; ip -n $ns -6 route replace default via 2001:db8:1::1; done
"
    ));
    let other = net.host.inner(&["nsenter", "--net=/run/netns/other"]);
    for peer in PEER {
        let listener = net.peer.listen((peer, 7000));
        let mut pairs: Vec<_> = [&net.guest, &other, &net.guest, &other]
            .map(|station| {
                let client = station.connect((peer, 7000)).unwrap();
                (client, accept(&listener).0)
            })
            .into();
        // Replies do not go to the station that sent last.
        for _ in 0..3 {
            for (client, server) in &mut pairs {
                client.write_all(b"question").unwrap();
                server.read_exact(&mut [0; 8]).unwrap();
            }
            for (client, server) in pairs.iter_mut().rev() {
                server.write_all(b"answer").unwrap();
                client.read_exact(&mut [0; 6]).unwrap();
            }
        }
    }
    for address in HOST {
        assert_reaches_service(&net, address, address);
    }
}

/// behaviour §5.4: without `-a`, inbound traffic goes to the address that the guest uses now.
#[test]
fn inbound_traffic_follows_a_changed_address() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000"]);
    let moved: [IpAddr; 2] = ["198.51.100.55".parse().unwrap(), "2001:db8:1::55".parse().unwrap()];
    net.guest.sh("
ip addr del 198.51.100.2/24 dev eth0; ip addr del 2001:db8:1::2/64 dev eth0
ip addr add 198.51.100.55/24 dev eth0; ip addr add 2001:db8:1::55/64 dev eth0 nodad
ip route replace default via 198.51.100.1; ip -6 route replace default via 2001:db8:1::1
");
    for v in 0..2 {
        let server = net.peer.udp((PEER[v], 7001));
        let client = net.guest.udp((moved[v], 0));
        client.send_to(b"my new address", (PEER[v], 7001)).unwrap();
        recv_from(&server);
        let listener = net.guest.listen((moved[v], 7000));
        listener.set_nonblocking(true).unwrap();
        let mut clients = Vec::new();
        wait_until("a connection to the new address", || {
            clients.push(net.peer.start_connect((HOST[v], 7000)));
            listener.accept().is_ok()
        });
    }
}

/// inbound traffic continues to go to the first address, with or without `-a`.
#[test]
fn a_second_address_does_not_redirect_inbound_traffic_r49() {
    for options in [&[][..], &["-a", "198.51.100.2/24"]] {
        let Some(net) = Net::new() else { return };
        net.pasta(&[&["-t", "7000"], options].concat());
        net.guest.sh("ip addr add 198.51.100.55/24 dev eth0");
        let client = (Ipv4Addr::new(198, 51, 100, 55), 0).into();
        assert_eq!(address_seen_by_peer(&net, &net.guest, client, PEER[0]), HOST[0]);
        let listener = net.guest.listen((any(HOST[0]), 7000));
        let _client = net.peer.connect((HOST[0], 7000)).unwrap();
        assert_eq!(accept(&listener).0.local_addr().unwrap().ip(), HOST[0]);
    }
}

/// kubevirt#6373, podman#15395: if the namespace has no IPv6, pasta behaves as with `-4`. This includes rules that are
/// added later.
#[test]
fn a_family_that_the_namespace_lacks_is_disabled() {
    let Some(net) = Net::new() else { return };
    net.guest.sh("for at in all default; do echo 1 >/proc/sys/net/ipv6/conf/$at/disable_ipv6; done");
    let control = net.path("control");
    net.pasta(&["-t", "7000", "-u", "7000", "--conf-path", &control]);
    net.host.run(&[companion("pesto"), "-A", "-t", "7001", &control]).ok();
    for port in [7000, 7001] {
        for refused in [(HOST[1], port), (LOOPBACK[1], port)] {
            let error = net.host.connect(refused).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{refused:?}");
        }
        let listener = net.guest.listen((HOST[0], port));
        let _client = net.peer.connect((HOST[0], port)).unwrap();
        accept(&listener);
    }
}
