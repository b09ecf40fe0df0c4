//! Which address becomes which: one test per row of behaviour §5.2 (guest to outside) and §5.3.4 (outside to guest).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

/// A guest's connection to `to` must reach a server listening on `real` in `server`, and so must a datagram,
/// whose answer must come from `to`. Returns the guest's address as the server saw it.
fn reaches(net: &Net, to: SocketAddr, server: &Ns, real: SocketAddr) -> IpAddr {
    let listener = server.listen(real);
    let mut client = net.guest.connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
    let (mut stream, tcp_from) = accept(&listener);
    client.write_all(b"t").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();

    let socket = server.udp(real);
    let client = net.guest.udp((any(to.ip()), 0));
    client.send_to(b"question", to).unwrap();
    let (question, udp_from) = recv_from(&socket);
    assert_eq!(question, b"question");
    socket.send_to(b"answer", udp_from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), to));
    assert_eq!(tcp_from.ip(), udp_from.ip());
    tcp_from.ip()
}

/// §5.2, row 1: `--dns-forward`, ports 53 and 853 only. Others go where they say.
#[test]
fn out_dns_forward() {
    let Some(net) = Net::new() else { return };
    let forward = PEER_ALIAS.map(|ip| ip.to_string());
    net.pasta(&["--dns-forward", &forward[0], "--dns-forward", &forward[1]]);
    for v in 0..2 {
        for port in [53, 853] {
            reaches(&net, (PEER_ALIAS[v], port).into(), &net.peer, (PEER[v], port).into());
        }
        reaches(&net, (PEER_ALIAS[v], 5353).into(), &net.peer, (PEER_ALIAS[v], 5353).into());
    }
}

/// §5.2, row 1, with `--dns-host`, here on the host's loopback.
#[test]
fn out_dns_host() {
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
        reaches(&net, (MAPPED[v], 53).into(), &net.host, (real[v], 53).into());
    }
}

/// §5.2, row 2: the gateway stands for the host's loopback by default.
#[test]
fn out_host_loopback_by_gateway() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for v in 0..2 {
        let from = reaches(&net, (GATEWAY[v], 7000).into(), &net.host, (LOOPBACK[v], 7000).into());
        assert!(from.is_loopback(), "{from}");
    }
}

/// §5.2, row 2: another address in its place; the gateway is then the gateway.
#[test]
fn out_map_host_loopback() {
    let Some(net) = Net::new() else { return };
    let mapped = MAPPED.map(|ip| ip.to_string());
    net.pasta(&["--map-host-loopback", &mapped[0], "--map-host-loopback", &mapped[1]]);
    for v in 0..2 {
        reaches(&net, (MAPPED[v], 7000).into(), &net.host, (LOOPBACK[v], 7000).into());
        reaches(&net, (GATEWAY[v], 7000).into(), &net.peer, (GATEWAY[v], 7000).into());
    }
}

/// §5.2, row 2, disabled in either way.
fn out_gateway_unmapped(options: &[&str]) {
    let Some(net) = Net::new() else { return };
    net.pasta(options);
    for gateway in GATEWAY {
        reaches(&net, (gateway, 7000).into(), &net.peer, (gateway, 7000).into());
    }
}

#[test]
fn out_no_map_gw() {
    out_gateway_unmapped(&["--no-map-gw"]);
}

#[test]
fn out_map_host_loopback_none() {
    out_gateway_unmapped(&["--map-host-loopback", "none"]);
}

/// §5.2, row 3: the host's own address, which is also the guest's, by another name.
#[test]
fn out_map_guest_addr() {
    let Some(net) = Net::new() else { return };
    let mapped = MAPPED.map(|ip| ip.to_string());
    net.pasta(&["--map-guest-addr", &mapped[0], "--map-guest-addr", &mapped[1]]);
    for v in 0..2 {
        reaches(&net, (MAPPED[v], 7000).into(), &net.host, (HOST[v], 7000).into());
    }
}

/// §5.2, row 4: anything else is itself, on the link and behind it.
#[test]
fn out_unchanged() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for v in 0..2 {
        assert_eq!(reaches(&net, (PEER[v], 7000).into(), &net.peer, (PEER[v], 7000).into()), HOST[v]);
        assert_eq!(reaches(&net, (FAR[v], 7000).into(), &net.far, (FAR[v], 7000).into()), HOST[v]);
    }
}

/// Aliases of the host that the guest doesn't copy.
const ALIASES: &str = "ip addr add 192.0.2.22/32 dev eth0; ip addr add 2001:db8:9::16/128 dev eth0 nodad\n";
const PINNED: [&str; 4] = ["-a", "198.51.100.2/24", "-a", "2001:db8:1::2/64"];

/// §5.2: the source of outgoing traffic is `--outbound` if given.
#[test]
fn out_source() {
    let Some(net) = Net::with(Options { host_setup: ALIASES, ..Options::default() }) else { return };
    net.pasta(&[&PINNED[..], &["-o", "192.0.2.22", "-o", "2001:db8:9::16"]].concat());
    for v in 0..2 {
        assert_eq!(reaches(&net, (PEER[v], 7000).into(), &net.peer, (PEER[v], 7000).into()), HOST_ALIAS[v]);
    }
}

/// A client in `from` on address `source` connects to `to`, where a rule for port 7000 is, and sends a
/// datagram. Returns what the guest sees as the source, which keeps its port.
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

/// A link-local address needs its interface.
fn udp_with_scope(net: &Net, address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(mut v6) if v6.ip().is_unicast_link_local() => {
            v6.set_scope_id(net.guest.ifindex("eth0"));
            v6.into()
        }
        other => other,
    }
}

/// Through the tap, also from the host's loopback.
const RULES: [&str; 5] = ["-t", "7000", "-u", "7000", "--no-splice"];

/// §5.3.4, row 1: the host's 127.0.0.1 and ::1 are seen as what stands for them.
#[test]
fn in_from_loopback() {
    let Some(net) = Net::new() else { return };
    net.pasta(&RULES);
    for v in 0..2 {
        assert_eq!(seen_in_guest(&net, &net.host, LOOPBACK[v], LOOPBACK[v]), GATEWAY[v]);
    }
}

/// §5.3.4, row 1, with another address for it.
#[test]
fn in_from_loopback_mapped() {
    let Some(net) = Net::new() else { return };
    let mapped = MAPPED.map(|ip| ip.to_string());
    net.pasta(
        &[&RULES[..], &["--map-host-loopback", &mapped[0], "--map-host-loopback", &mapped[1]]].concat(),
    );
    for v in 0..2 {
        assert_eq!(seen_in_guest(&net, &net.host, LOOPBACK[v], LOOPBACK[v]), MAPPED[v]);
    }
}

/// Whether it is an address that stands for us in the guest: its gateway, or our link-local address, which is
/// the host's.
fn is_our_tap(net: &Net, seen: IpAddr) -> bool {
    GATEWAY.contains(&seen) || seen == IpAddr::from(net.host.link_local("eth0"))
}

/// §5.3.4, row 1 not holding, so row 3: without a mapping, loopback is seen as our own tap address.
#[test]
fn in_from_loopback_unmapped() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[&RULES[..], &["--no-map-gw"]].concat());
    for loopback in LOOPBACK {
        let seen = seen_in_guest(&net, &net.host, loopback, loopback);
        assert!(is_our_tap(&net, seen), "{seen}");
    }
}

/// §5.3.4, row 2: the host's own address, if it has a name in the guest.
#[test]
fn in_from_own_address_mapped() {
    let Some(net) = Net::new() else { return };
    let mapped = MAPPED2.map(|ip| ip.to_string());
    net.pasta(&[&RULES[..], &["--map-guest-addr", &mapped[0], "--map-guest-addr", &mapped[1]]].concat());
    for v in 0..2 {
        assert_eq!(seen_in_guest(&net, &net.host, HOST[v], HOST[v]), MAPPED2[v]);
        assert_eq!(seen_in_guest(&net, &net.host, LOOPBACK[v], LOOPBACK[v]), GATEWAY[v]);
    }
}

/// §5.3.4, row 3: other loopback addresses, and the host's own address, which the guest has too.
#[test]
fn in_from_own_address() {
    let Some(net) = Net::new() else { return };
    net.pasta(&RULES);
    let second_loopback: IpAddr = "127.0.0.3".parse().unwrap();
    assert_eq!(seen_in_guest(&net, &net.host, second_loopback, LOOPBACK[0]), GATEWAY[0]);
    for host in HOST {
        let seen = seen_in_guest(&net, &net.host, host, host);
        assert!(is_our_tap(&net, seen), "{seen}");
    }
}

/// §5.3.4, row 4: anyone else is themselves.
#[test]
fn in_unchanged() {
    let Some(net) = Net::with(Options { host_setup: ALIASES, ..Options::default() }) else { return };
    net.pasta(&[&PINNED[..], &RULES].concat());
    for v in 0..2 {
        assert_eq!(seen_in_guest(&net, &net.peer, PEER[v], HOST[v]), PEER[v]);
        assert_eq!(seen_in_guest(&net, &net.far, FAR[v], HOST[v]), FAR[v]);
        assert_eq!(seen_in_guest(&net, &net.host, HOST_ALIAS[v], HOST_ALIAS[v]), HOST_ALIAS[v]);
    }
}
