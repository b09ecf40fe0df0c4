//! `-t` and `-u`: what listens where, and where it leads (behaviour §2.4, §8).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::IpAddr;

/// A connection and a datagram from the peer to a port of the host arrive at a port of the guest, and the
/// answers come back.
fn leads(net: &Net, host: IpAddr, outside: u16, inside: u16) {
    let source = PEER[usize::from(host.is_ipv6())];
    let listener = net.guest.listen((any(host), inside));
    let mut client = net.peer.connect((host, outside)).unwrap_or_else(|e| panic!("[{host}]:{outside}: {e}"));
    let (mut server, _) = accept(&listener);
    server.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();

    let server = net.guest.udp((any(host), inside));
    let client = net.peer.udp((source, 0));
    client.send_to(b"question", (host, outside)).unwrap();
    let (_, from) = recv_from(&server);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (host, outside).into()));
}

/// Nothing listens there, neither for TCP nor for UDP: both are refused by the host's kernel.
fn closed(net: &Net, host: IpAddr, port: u16) {
    assert!(net.peer.connect((host, port)).is_err(), "[{host}]:{port} is open");
    let client = net.peer.udp((any(host), 0));
    client.connect((host, port)).unwrap();
    client.send(b"question").unwrap();
    assert!(client.recv(&mut [0; 16]).is_err(), "[{host}]:{port} is open");
}

/// A `pasta` with the same rule for TCP and UDP.
fn start<'a>(net: &'a Net, rules: &[&str], more: &[&str]) -> Daemon<'a> {
    let mut args = more.to_vec();
    for rule in rules {
        args.extend(["-t", rule, "-u", rule]);
    }
    net.pasta(&args)
}

const ALIASES: &str = "ip addr add 192.0.2.22/32 dev eth0; ip addr add 2001:db8:9::16/128 dev eth0 nodad\n";
const PINNED: [&str; 4] = ["-a", "198.51.100.2/24", "-a", "2001:db8:1::2/64"];

fn with_aliases() -> Option<Net> {
    Net::with(Options { host_setup: ALIASES, ..Options::default() })
}

/// §2.4.2 and R-108: without an address both families listen, even where sockets are IPv6-only by default.
#[test]
fn single_port_dual_stack_r108() {
    let host_setup = "echo 1 >/proc/sys/net/ipv6/bindv6only\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    start(&net, &["7000"], &[]);
    for host in HOST {
        leads(&net, host, 7000, 7000);
        closed(&net, host, 7001);
    }
}

#[test]
fn range() {
    let Some(net) = Net::new() else { return };
    start(&net, &["7000-7002,7010"], &[]);
    for port in [7000, 7001, 7002, 7010] {
        leads(&net, HOST[0], port, port);
    }
    leads(&net, HOST[1], 7001, 7001);
    closed(&net, HOST[0], 6999);
    closed(&net, HOST[0], 7003);
}

#[test]
fn range_with_exclusion() {
    let Some(net) = Net::new() else { return };
    start(&net, &["7000-7009,~7003-7005"], &[]);
    for port in [7000, 7002, 7006, 7009] {
        leads(&net, HOST[0], port, port);
    }
    for port in [7003, 7004, 7005] {
        closed(&net, HOST[0], port);
    }
}

#[test]
fn target_port() {
    let Some(net) = Net::new() else { return };
    start(&net, &["8080:80", "8100-8102:9100-9102"], &[]);
    for host in HOST {
        leads(&net, host, 8080, 80);
        leads(&net, host, 8101, 9101);
    }
    closed(&net, HOST[0], 80);
    closed(&net, HOST[0], 9101);
}

/// §2.4, `range ":" addr "/" range`: another address inside.
#[test]
fn target_address() {
    let Some(net) = Net::new() else { return };
    start(&net, &["0.0.0.0/8080:192.0.2.80/80", "[::]/8080:2001:db8:80::80/80"], &[]);
    net.guest.sh("ip addr add 192.0.2.80/32 dev lo; ip addr add 2001:db8:80::80/128 dev lo nodad");
    let inside: [IpAddr; 2] = ["192.0.2.80".parse().unwrap(), "2001:db8:80::80".parse().unwrap()];
    for v in 0..2 {
        let listener = net.guest.listen((inside[v], 80));
        let _client = net.peer.connect((HOST[v], 8080)).unwrap();
        assert_eq!(accept(&listener).0.local_addr().unwrap(), (inside[v], 80).into());
        let server = net.guest.udp((inside[v], 80));
        let client = net.peer.udp((PEER[v], 0));
        client.send_to(b"question", (HOST[v], 8080)).unwrap();
        let (_, from) = recv_from(&server);
        server.send_to(b"answer", from).unwrap();
        assert_eq!(recv_from(&client), (b"answer".to_vec(), (HOST[v], 8080).into()));
    }
}

/// A rule for an address listens on no other; the same port of two addresses may lead to two ports.
#[test]
fn address() {
    let Some(net) = with_aliases() else { return };
    let rules = ["192.0.2.22/7000", "2001:db8:9::16/7000", "198.51.100.2/7001:7002", "192.0.2.22/7001"];
    start(&net, &rules, &PINNED);
    for v in 0..2 {
        leads(&net, HOST_ALIAS[v], 7000, 7000);
        closed(&net, HOST[v], 7000);
    }
    leads(&net, HOST[0], 7001, 7002);
    leads(&net, HOST_ALIAS[0], 7001, 7001);
}

#[test]
fn family() {
    let Some(net) = Net::new() else { return };
    start(&net, &["0.0.0.0/7000", "[::]/7001"], &[]);
    leads(&net, HOST[0], 7000, 7000);
    leads(&net, HOST[1], 7001, 7001);
    closed(&net, HOST[1], 7000);
    closed(&net, HOST[0], 7001);
}

#[test]
fn interface() {
    let Some(net) = Net::new() else { return };
    start(&net, &["%eth0/7000", "%lo/7001", "*%eth0/7002:7003"], &[]);
    for host in HOST {
        leads(&net, host, 7000, 7000);
        closed(&net, host, 7001);
        leads(&net, host, 7002, 7003);
    }
    assert!(net.host.connect((LOOPBACK[0], 7000)).is_err());
    let listener = net.guest.listen((any(HOST[0]), 7001));
    let _client = net.host.connect((LOOPBACK[0], 7001)).unwrap();
    accept(&listener);
}

/// §2.4.2: `all` is everything but the ephemeral range, as far as it can be had.
#[test]
fn all() {
    let host_setup = "echo '2000 65000' >/proc/sys/net/ipv4/ip_local_port_range\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    let _busy = (net.host.listen((HOST[0], 1500)), net.host.udp((HOST[0], 1500)));
    start(&net, &["all,~1600"], &[]);
    for port in [1, 1999, 65001, 65535] {
        leads(&net, HOST[0], port, port);
    }
    closed(&net, HOST[0], 1600);
    closed(&net, HOST[0], 2000);
    assert!(net.peer.connect((HOST[0], 1500)).is_ok(), "the host's own service");
}

/// a port that was asked for and is taken is an error at start, for either protocol, and leaves nothing
/// behind.
#[test]
fn busy_port_is_fatal_r102_r1() {
    let Some(net) = Net::new() else { return };
    let _tcp = net.host.listen((any(HOST[0]), 7000));
    let _udp = net.host.udp((any(HOST[1]), 7001));
    for rule in [["-t", "7000"], ["-t", "6990-7010"], ["-u", "7001"], ["-t", "198.51.100.2/7000"]] {
        let options = ["--config-net", rule[0], rule[1], "--netns", "/run/netns/guest"];
        let end = net.run_pasta(&options);
        assert_eq!(end.code(), 1, "{rule:?}: {end:?}");
        let port = if rule[0] == "-t" { "7000" } else { "7001" };
        assert!(end.stderr.contains(port), "the message names the port: {end:?}");
        // Nothing is left behind: the guest is as it was, so another attempt finds it empty.
        let left = net.guest.sh("ip -o link show | grep -cv ' lo:' || :");
        assert_eq!(left.trim(), "0", "{rule:?}");
    }
    net.pasta(&["-t", "7002"]);
}

/// §2.4, errors: what can't be listened on is told with its name.
#[test]
fn unusable_rules() {
    let Some(net) = Net::new() else { return };
    for (rule, names) in [("192.0.2.99/7000", "192.0.2.99"), ("%nope0/7000", "nope0")] {
        let end = net.run_pasta(&["--config-net", "-t", rule, "--netns", "/run/netns/guest"]);
        assert_eq!(end.code(), 1, "{end:?}");
        assert!(end.stderr.contains(names), "{end:?}");
    }
}

/// a guest whose only address is link-local is reached by what is forwarded to it, past the link and through it.
#[test]
fn a_link_local_guest_is_reached_r37() {
    let Some(net) = Net::new() else { return };
    start(&net, &["7000"], &["-6", "-a", "fe80::55"]);
    leads(&net, HOST[1], 7000, 7000);

    let listener = net.guest.listen((any(HOST[1]), 7000));
    let mut client = net.host.connect((LOOPBACK[1], 7000)).unwrap();
    accept(&listener).0.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();

    let server = net.guest.udp((any(HOST[1]), 7000));
    let client = net.host.udp((LOOPBACK[1], 0));
    client.send_to(b"question", (LOOPBACK[1], 7000)).unwrap();
    let (question, from) = recv_from(&server);
    assert_eq!(question, b"question");
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (LOOPBACK[1], 7000).into()));
}
