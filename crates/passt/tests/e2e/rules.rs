//! Tests of `-t` and `-u`: the ports on which pasta listens, and the destinations to which it forwards (behaviour §2.4,
//! §8).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::IpAddr;

/// Checks that a connection and a datagram from the peer to the host's port `outside` arrive at the guest's port
/// `inside`, and that the answers arrive at the peer.
fn assert_leads(net: &Net, host: IpAddr, outside: u16, inside: u16) {
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

/// Checks that the host's kernel refuses TCP and UDP at this port.
fn assert_closed(net: &Net, host: IpAddr, port: u16) {
    assert!(net.peer.connect((host, port)).is_err(), "[{host}]:{port} is open");
    let client = net.peer.udp((any(host), 0));
    client.connect((host, port)).unwrap();
    client.send(b"question").unwrap();
    assert!(client.recv(&mut [0; 16]).is_err(), "[{host}]:{port} is open");
}

/// Starts a `pasta` with the same rules for TCP and UDP.
fn start<'a>(net: &'a Net, rules: &[&str], more: &[&str]) -> Daemon<'a> {
    let mut args = more.to_vec();
    for rule in rules {
        args.extend(["-t", rule, "-u", rule]);
    }
    net.pasta(&args)
}

fn with_aliases() -> Option<Net> {
    Net::with(Options { host_setup: ALIASES, ..Options::default() })
}

/// behaviour §2.4.2, R-108: a rule without an address listens in both families, even if the system's default for
/// sockets is IPv6-only.
#[test]
fn a_port_is_open_in_both_families_r108() {
    let host_setup = "echo 1 >/proc/sys/net/ipv6/bindv6only\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    start(&net, &["7000"], &[]);
    for host in HOST {
        assert_leads(&net, host, 7000, 7000);
        assert_closed(&net, host, 7001);
    }
}

#[test]
fn every_port_of_a_range_is_open() {
    let Some(net) = Net::new() else { return };
    start(&net, &["7000-7002,7010"], &[]);
    for port in [7000, 7001, 7002, 7010] {
        assert_leads(&net, HOST[0], port, port);
    }
    assert_leads(&net, HOST[1], 7001, 7001);
    assert_closed(&net, HOST[0], 6999);
    assert_closed(&net, HOST[0], 7003);
}

#[test]
fn excluded_ports_are_closed() {
    let Some(net) = Net::new() else { return };
    start(&net, &["7000-7009,~7003-7005"], &[]);
    for port in [7000, 7002, 7006, 7009] {
        assert_leads(&net, HOST[0], port, port);
    }
    for port in [7003, 7004, 7005] {
        assert_closed(&net, HOST[0], port);
    }
}

#[test]
fn a_rule_can_have_another_target_port() {
    let Some(net) = Net::new() else { return };
    start(&net, &["8080:80", "8100-8102:9100-9102"], &[]);
    for host in HOST {
        assert_leads(&net, host, 8080, 80);
        assert_leads(&net, host, 8101, 9101);
    }
    assert_closed(&net, HOST[0], 80);
    assert_closed(&net, HOST[0], 9101);
}

/// behaviour §2.4: the rule has the form `range ":" addr "/" range`.
#[test]
fn a_rule_can_have_a_target_address() {
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

/// The same port of two addresses can have two targets.
#[test]
fn a_rule_can_be_for_one_address() {
    let Some(net) = with_aliases() else { return };
    let rules = ["192.0.2.22/7000", "2001:db8:9::16/7000", "198.51.100.2/7001:7002", "192.0.2.22/7001"];
    start(&net, &rules, &PINNED);
    for v in 0..2 {
        assert_leads(&net, HOST_ALIAS[v], 7000, 7000);
        assert_closed(&net, HOST[v], 7000);
    }
    assert_leads(&net, HOST[0], 7001, 7002);
    assert_leads(&net, HOST_ALIAS[0], 7001, 7001);
}

#[test]
fn a_rule_can_be_for_one_family() {
    let Some(net) = Net::new() else { return };
    start(&net, &["0.0.0.0/7000", "[::]/7001"], &[]);
    assert_leads(&net, HOST[0], 7000, 7000);
    assert_leads(&net, HOST[1], 7001, 7001);
    assert_closed(&net, HOST[1], 7000);
    assert_closed(&net, HOST[0], 7001);
}

#[test]
fn a_rule_can_be_for_one_interface() {
    let Some(net) = Net::new() else { return };
    start(&net, &["%eth0/7000", "%lo/7001", "*%eth0/7002:7003"], &[]);
    for host in HOST {
        assert_leads(&net, host, 7000, 7000);
        assert_closed(&net, host, 7001);
        assert_leads(&net, host, 7002, 7003);
    }
    assert!(net.host.connect((LOOPBACK[0], 7000)).is_err());
    let listener = net.guest.listen((any(HOST[0]), 7001));
    let _client = net.host.connect((LOOPBACK[0], 7001)).unwrap();
    accept(&listener);
}

/// behaviour §2.4.2: `all` skips ports that are not available.
#[test]
fn all_opens_every_port_outside_the_ephemeral_range() {
    let host_setup = "echo '2000 65000' >/proc/sys/net/ipv4/ip_local_port_range\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    let _busy = (net.host.listen((HOST[0], 1500)), net.host.udp((HOST[0], 1500)));
    start(&net, &["all,~1600"], &[]);
    for port in [1, 1999, 65001, 65535] {
        assert_leads(&net, HOST[0], port, port);
    }
    assert_closed(&net, HOST[0], 1600);
    assert_closed(&net, HOST[0], 2000);
    assert!(net.peer.connect((HOST[0], 1500)).is_ok(), "the host's own service");
}

/// this applies to both protocols. R-1: after the failed start, nothing remains.
#[test]
fn a_busy_port_is_an_error_at_start_r102_r1() {
    let Some(net) = Net::new() else { return };
    let _tcp = net.host.listen((any(HOST[0]), 7000));
    let _udp = net.host.udp((any(HOST[1]), 7001));
    for rule in [["-t", "7000"], ["-t", "6990-7010"], ["-u", "7001"], ["-t", "198.51.100.2/7000"]] {
        let options = ["--config-net", rule[0], rule[1], "--netns", "/run/netns/guest"];
        let end = net.run_pasta(&options);
        assert_eq!(end.code(), 1, "{rule:?}: {end:?}");
        let port = if rule[0] == "-t" { "7000" } else { "7001" };
        assert!(end.stderr.contains(port), "the message names the port: {end:?}");
        // The guest has no new interface.
        let left = net.guest.sh("ip -o link show | grep -cv ' lo:' || :");
        assert_eq!(left.trim(), "0", "{rule:?}");
    }
    net.pasta(&["-t", "7002"]);
}

/// behaviour §2.4: the error names the address or interface.
#[test]
fn an_unusable_rule_is_an_error() {
    let Some(net) = Net::new() else { return };
    for (rule, names) in [("192.0.2.99/7000", "192.0.2.99"), ("%nope0/7000", "nope0")] {
        let end = net.run_pasta(&["--config-net", "-t", rule, "--netns", "/run/netns/guest"]);
        assert_eq!(end.code(), 1, "{end:?}");
        assert!(end.stderr.contains(names), "{end:?}");
    }
}

/// connections through the link, and connections that bypass it, reach the guest.
#[test]
fn a_guest_with_a_link_local_address_only_is_reached_r37() {
    let Some(net) = Net::new() else { return };
    start(&net, &["7000"], &["-6", "-a", "fe80::55"]);
    assert_leads(&net, HOST[1], 7000, 7000);

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
