//! Tests of address translation: one test for each row of behaviour §5.2 (outbound) and of behaviour §5.3.4 (inbound).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

/// Checks that a connection and a datagram of the guest to `to` reach a server in `server` at `real`, and that the
/// source of the answer is `to`. Returns the guest's address as the server sees it.
pub(crate) fn assert_reaches(net: &Net, to: SocketAddr, server: &Ns, real: SocketAddr) -> IpAddr {
    let from = assert_tcp_reaches(net, to, server, real);
    let socket = server.udp(real);
    let client = net.guest.udp((any(to.ip()), 0));
    client.send_to(b"question", to).unwrap();
    let (question, udp_from) = recv_from(&socket);
    assert_eq!(question, b"question");
    socket.send_to(b"answer", udp_from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), to));
    assert_eq!(udp_from.ip(), from);
    from
}

/// The same for a connection only. Bytes arrive in both directions.
pub(crate) fn assert_tcp_reaches(net: &Net, to: SocketAddr, server: &Ns, real: SocketAddr) -> IpAddr {
    let listener = server.listen(real);
    let mut client = net.guest.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
    let (mut stream, from) = accept(&listener);
    client.write_all(b"question").unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    stream.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    from.ip()
}

/// behaviour §5.2, row 1: `--dns-forward` maps only ports 53 and 853.
#[test]
fn outbound_dns_goes_to_the_resolver() {
    let lists = ["nameserver 198.51.100.3\n", "nameserver 2001:db8:1::3\n"];
    for (v, resolv_conf) in lists.into_iter().enumerate() {
        // Each family has its own namespaces: the first server's socket may exist for some time after it was closed,
        // see `bind`.
        let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
        let forward = PEER_ALIAS.map(|ip| ip.to_string());
        net.pasta(&["--dns-forward", &forward[0], "--dns-forward", &forward[1]]);
        for port in [53, 853] {
            assert_reaches(&net, (PEER_ALIAS[v], port).into(), &net.peer, (PEER[v], port).into());
        }
        assert_reaches(&net, (PEER_ALIAS[v], 5353).into(), &net.peer, (PEER_ALIAS[v], 5353).into());
    }
}

/// behaviour §5.2, row 1: with `--dns-host`, queries go to its server. Here, this server is on the host's loopback.
#[test]
fn outbound_dns_goes_to_dns_host() {
    let Some(net) = Net::new() else { return };
    let forward = MAPPED.map(|ip| ip.to_string());
    net.pasta(&[
        "--dns-forward",
        &forward[0],
        "--dns-forward",
        &forward[1],
        "--dns-host",
        "127.0.0.53",
        "--dns-host",
        "::1",
    ]);
    let real: [IpAddr; 2] = ["127.0.0.53".parse().unwrap(), "::1".parse().unwrap()];
    for v in 0..2 {
        assert_reaches(&net, (MAPPED[v], 53).into(), &net.host, (real[v], 53).into());
    }
}

/// behaviour §5.2, row 2: this is the default mapping.
#[test]
fn outbound_to_the_gateway_reaches_the_hosts_loopback() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for v in 0..2 {
        let from = assert_reaches(&net, (GATEWAY[v], 7000).into(), &net.host, (LOOPBACK[v], 7000).into());
        assert!(from.is_loopback(), "{from}");
    }
}

/// behaviour §5.2, row 2: with this option, the gateway is not mapped.
#[test]
fn outbound_to_map_host_loopback_reaches_the_hosts_loopback() {
    let Some(net) = Net::new() else { return };
    let mapped = MAPPED.map(|ip| ip.to_string());
    net.pasta(&["--map-host-loopback", &mapped[0], "--map-host-loopback", &mapped[1]]);
    for v in 0..2 {
        assert_reaches(&net, (MAPPED[v], 7000).into(), &net.host, (LOOPBACK[v], 7000).into());
        assert_reaches(&net, (GATEWAY[v], 7000).into(), &net.peer, (GATEWAY[v], 7000).into());
    }
}

/// behaviour §5.2, row 2: checks that `options` disable the mapping of the gateway.
fn assert_gateway_is_not_mapped(options: &[&str]) {
    let Some(net) = Net::new() else { return };
    net.pasta(options);
    for gateway in GATEWAY {
        assert_reaches(&net, (gateway, 7000).into(), &net.peer, (gateway, 7000).into());
    }
}

#[test]
fn no_map_gw_leaves_the_gateway_unmapped() {
    assert_gateway_is_not_mapped(&["--no-map-gw"]);
}

#[test]
fn map_host_loopback_none_leaves_the_gateway_unmapped() {
    assert_gateway_is_not_mapped(&["--map-host-loopback", "none"]);
}

/// behaviour §5.2, row 3: the mapped address leads to the address that host and guest share.
#[test]
fn outbound_to_map_guest_addr_reaches_the_hosts_address() {
    let Some(net) = Net::new() else { return };
    let mapped = MAPPED.map(|ip| ip.to_string());
    net.pasta(&["--map-guest-addr", &mapped[0], "--map-guest-addr", &mapped[1]]);
    for v in 0..2 {
        assert_reaches(&net, (MAPPED[v], 7000).into(), &net.host, (HOST[v], 7000).into());
    }
}

/// behaviour §5.2, row 4: the destinations are on the link, and beyond a router.
#[test]
fn outbound_to_other_addresses_is_unchanged() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for v in 0..2 {
        assert_eq!(assert_reaches(&net, (PEER[v], 7000).into(), &net.peer, (PEER[v], 7000).into()), HOST[v]);
        assert_eq!(assert_reaches(&net, (FAR[v], 7000).into(), &net.far, (FAR[v], 7000).into()), HOST[v]);
    }
}

/// behaviour §5.2: `--outbound` selects the source address.
#[test]
fn outbound_selects_the_source_address() {
    let Some(net) = Net::with(Options { host_setup: ALIASES, ..Options::default() }) else { return };
    net.pasta(&[&PINNED[..], &["-o", "192.0.2.22", "-o", "2001:db8:9::16"]].concat());
    for v in 0..2 {
        assert_eq!(
            assert_reaches(&net, (PEER[v], 7000).into(), &net.peer, (PEER[v], 7000).into()),
            HOST_ALIAS[v]
        );
    }
}

/// A client in `from` at the address `source` opens a connection and sends a datagram to port 7000 of `to`, which a
/// rule forwards. Returns the source address that the guest sees. Checks that the source port is unchanged.
fn seen_in_guest(net: &Net, from: &Ns, source: IpAddr, to: IpAddr) -> IpAddr {
    let listener = net.guest.listen((any(to), 7000));
    let client = from.connect_from((source, 0), (to, 7000)).unwrap();
    let (_stream, tcp) = accept(&listener);
    assert_eq!(tcp.port(), client.local_addr().unwrap().port(), "behaviour §5.3.5");

    let server = net.guest.udp((any(to), 7000));
    let client = from.udp((source, 0));
    client.send_to(b"question", (to, 7000)).unwrap();
    let (_, udp) = recv_from(&server);
    assert_eq!(udp.port(), port(&client), "behaviour §5.3.5");
    server.send_to(b"answer", udp_with_scope(net, udp)).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (to, 7000).into()));
    assert_eq!(tcp.ip(), udp.ip());
    tcp.ip()
}

/// `address`, with the scope ID of the guest's interface if it is a link-local address.
fn udp_with_scope(net: &Net, address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(mut v6) if v6.ip().is_unicast_link_local() => {
            v6.set_scope_id(net.guest.ifindex("eth0"));
            v6.into()
        }
        other => other,
    }
}

/// Options with which connections from the host's loopback use the tap device, too.
const RULES: [&str; 5] = ["-t", "7000", "-u", "7000", "--no-splice"];

/// behaviour §5.3.4, row 1: the sources are 127.0.0.1 and ::1 of the host.
#[test]
fn inbound_from_loopback_is_seen_as_the_gateway() {
    let Some(net) = Net::new() else { return };
    net.pasta(&RULES);
    for v in 0..2 {
        assert_eq!(seen_in_guest(&net, &net.host, LOOPBACK[v], LOOPBACK[v]), GATEWAY[v]);
    }
}

/// behaviour §5.3.4, row 1: the option is `--map-host-loopback`.
#[test]
fn inbound_from_loopback_is_seen_as_the_mapped_address() {
    let Some(net) = Net::new() else { return };
    let mapped = MAPPED.map(|ip| ip.to_string());
    net.pasta(
        &[&RULES[..], &["--map-host-loopback", &mapped[0], "--map-host-loopback", &mapped[1]]].concat(),
    );
    for v in 0..2 {
        assert_eq!(seen_in_guest(&net, &net.host, LOOPBACK[v], LOOPBACK[v]), MAPPED[v]);
    }
}

/// Whether `seen` is one of the program's own addresses: the gateway's address, or the host's link-local address.
fn is_our_tap(net: &Net, seen: IpAddr) -> bool {
    GATEWAY.contains(&seen) || seen == IpAddr::from(net.host.link_local("eth0"))
}

/// behaviour §5.3.4: row 3 applies, because row 1 does not.
#[test]
fn inbound_from_loopback_is_seen_as_our_address_without_a_mapping() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[&RULES[..], &["--no-map-gw"]].concat());
    for loopback in LOOPBACK {
        let seen = seen_in_guest(&net, &net.host, loopback, loopback);
        assert!(is_our_tap(&net, seen), "{seen}");
    }
}

/// behaviour §5.3.4, row 2: the option is `--map-guest-addr`.
#[test]
fn inbound_from_the_hosts_address_is_seen_as_map_guest_addr() {
    let Some(net) = Net::new() else { return };
    let mapped = MAPPED2.map(|ip| ip.to_string());
    net.pasta(&[&RULES[..], &["--map-guest-addr", &mapped[0], "--map-guest-addr", &mapped[1]]].concat());
    for v in 0..2 {
        assert_eq!(seen_in_guest(&net, &net.host, HOST[v], HOST[v]), MAPPED2[v]);
        assert_eq!(seen_in_guest(&net, &net.host, LOOPBACK[v], LOOPBACK[v]), GATEWAY[v]);
    }
}

/// behaviour §5.3.4, row 3: this also applies to other loopback addresses. The guest itself has the host's address.
#[test]
fn inbound_from_the_hosts_address_is_seen_as_our_address() {
    let Some(net) = Net::new() else { return };
    net.pasta(&RULES);
    let second_loopback: IpAddr = "127.0.0.3".parse().unwrap();
    assert_eq!(seen_in_guest(&net, &net.host, second_loopback, LOOPBACK[0]), GATEWAY[0]);
    for host in HOST {
        let seen = seen_in_guest(&net, &net.host, host, host);
        assert!(is_our_tap(&net, seen), "{seen}");
    }
}

/// behaviour §5.3.4, row 4: other source addresses are not changed.
#[test]
fn inbound_from_other_addresses_is_unchanged() {
    let Some(net) = Net::with(Options { host_setup: ALIASES, ..Options::default() }) else { return };
    net.pasta(&[&PINNED[..], &RULES].concat());
    for v in 0..2 {
        assert_eq!(seen_in_guest(&net, &net.peer, PEER[v], HOST[v]), PEER[v]);
        assert_eq!(seen_in_guest(&net, &net.far, FAR[v], HOST[v]), FAR[v]);
        assert_eq!(seen_in_guest(&net, &net.host, HOST_ALIAS[v], HOST_ALIAS[v]), HOST_ALIAS[v]);
    }
}
