//! Tests of `--allow`, `--deny` and `--policy`, which determine the destinations that the guest may reach
//! (docs/guard.md).

use std::io::ErrorKind;
use std::net::IpAddr;

use crate::harness::*;
use crate::udp::deliver;

/// Whether a client of the guest reaches a TCP port and a UDP port at `to`. The servers are in `server`, at the address
/// `real`.
fn reaches(net: &Net, server: &Ns, to: IpAddr, real: IpAddr, port: u16) -> [bool; 2] {
    let listener = server.listen((real, port));
    let tcp = match net.guest.connect((to, port)) {
        Ok(_client) => {
            accept(&listener);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            false
        }
    };
    let server = server.udp((real, port));
    let client = net.guest.udp((any(to), 0));
    client.connect((to, port)).unwrap();
    client.send(b"question").unwrap();
    let udp = match udp_outcome(&client, &server) {
        Ok(()) => true,
        // The error for "administratively prohibited" is EHOSTUNREACH for IPv4, and EACCES for IPv6.
        Err(error) => {
            assert!(
                matches!(error, ErrorKind::HostUnreachable | ErrorKind::PermissionDenied),
                "{to}: {error}"
            );
            false
        }
    };
    [tcp, udp]
}

/// Waits until the datagram of `client` arrives at `server`, or `client` gets an error. Returns the error.
fn udp_outcome(client: &std::net::UdpSocket, server: &std::net::UdpSocket) -> Result<(), ErrorKind> {
    server.set_nonblocking(true).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut outcome = None;
    wait_until("a datagram or an error", || {
        let mut buffer = [0; 100];
        if server.recv(&mut buffer).is_ok() {
            outcome = Some(Ok(()));
        } else if let Some(error) = client.take_error().unwrap() {
            outcome = Some(Err(error.kind()));
        }
        outcome.is_some()
    });
    outcome.unwrap()
}

#[test]
fn the_first_rule_that_matches_decides() {
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&[
        "--deny",
        "tcp/198.51.100.3:7001",
        "--allow",
        "198.51.100.0/24",
        "--allow",
        "2001:db8:1::3",
        "--allow",
        "203.0.113.2:7002-7003",
    ]);
    for (ns, address, port, expected) in [
        (&net.peer, PEER[0], 7000, [true, true]),
        (&net.peer, PEER[0], 7001, [false, true]),
        (&net.peer, PEER[1], 7000, [true, true]),
        (&net.far, FAR[0], 7001, [false, false]),
        (&net.far, FAR[0], 7003, [true, true]),
        (&net.far, FAR[1], 7003, [false, false]),
    ] {
        assert_eq!(reaches(&net, ns, address, address, port), expected, "{address} {port}");
    }
    assert!(daemon.runs());
}

#[test]
fn the_host_is_a_group_of_its_own() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--deny", "host", "--map-guest-addr", "198.51.100.99"]);
    for (gateway, loopback) in GATEWAY.into_iter().zip(LOOPBACK) {
        assert_eq!(reaches(&net, &net.host, gateway, loopback, 7000), [false, false]);
    }
    assert_eq!(reaches(&net, &net.host, MAPPED[0], HOST[0], 7000), [false, false]);
    for peer in PEER {
        assert_eq!(reaches(&net, &net.peer, peer, peer, 7000), [true, true]);
    }
}

#[test]
fn an_address_that_the_host_gets_later_is_the_hosts() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--deny", "host"]);
    net.host.sh("ip address add 192.0.2.77/32 dev lo");
    let late: IpAddr = "192.0.2.77".parse().unwrap();
    assert_eq!(reaches(&net, &net.host, late, late, 7000), [false, false]);
}

/// The kernel keeps a limited number of changes for a process that does not read them.
#[test]
fn an_address_is_the_hosts_although_the_report_of_it_was_lost() {
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["--deny", "host"]);
    daemon.signal("STOP");
    net.host.sh("for net in $(seq 0 15); do for host in $(seq 1 250); do \
                 echo address add 10.9.$net.$host/32 dev lo; done; done | ip -batch -
                 ip address add 192.0.2.77/32 dev lo");
    daemon.signal("CONT");
    let late: IpAddr = "192.0.2.77".parse().unwrap();
    assert_eq!(reaches(&net, &net.host, late, late, 7000), [false, false]);
    assert!(daemon.runs());
}

/// Connections that bypass the link lead to the host, too.
#[test]
fn ports_that_bypass_the_link_are_the_hosts() {
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&[
        "--deny",
        "tcp/host:7000",
        "--deny",
        "udp/host:7000",
        "-T",
        "7000,7001",
        "-U",
        "7000,7001",
    ]);
    for loopback in LOOPBACK {
        let listeners = [7000, 7001].map(|port| net.host.listen((loopback, port)));
        let mut refused = net.guest.connect((loopback, 7000)).unwrap();
        let error = std::io::Read::read(&mut refused, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let mut admitted = net.guest.connect((loopback, 7001)).unwrap();
        send(&mut accept(&listeners[1]).0, 1, 1000);
        receive(&mut admitted, 1, 1000);

        let servers = [7000, 7001].map(|port| net.host.udp((loopback, port)));
        let client = net.guest.udp((loopback, 0));
        client.send_to(b"refused", (loopback, 7000)).unwrap();
        let connected = net.guest.udp((loopback, 0));
        connected.connect((loopback, 7000)).unwrap();
        connected.send(b"refused").unwrap();
        let prohibited =
            if loopback.is_ipv4() { ErrorKind::HostUnreachable } else { ErrorKind::PermissionDenied };
        assert_eq!(udp_outcome(&connected, &servers[0]), Err(prohibited));
        deliver(&client, (loopback, 7001), &servers[1], b"admitted");
        servers[0].set_nonblocking(true).unwrap();
        assert_eq!(servers[0].recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    assert!(daemon.runs());
}

#[test]
fn a_refused_ping_is_reported() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--deny", "icmp/203.0.113.0/24"]);
    net.guest.sh("ping -n -c 1 -w 60 198.51.100.3");
    let refused = net.guest.run(&["ping", "-n", "-c", "1", "-w", "60", "203.0.113.2"]);
    assert!(refused.stdout.contains("filtered"), "{}", refused.stdout);
}

/// The resolver is in a private network that is denied, for example next to a registry of packages. The guest may still
/// ask the resolver.
#[test]
fn names_of_a_resolver_in_a_denied_group() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--deny", "private", "--dns-forward", "10.0.0.53", "--dns-host", "198.51.100.3"]);
    let server = net.peer.udp((PEER[0], 53));
    let client = net.guest.udp((any(PEER[0]), 0));
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04name\x04test\0\0\x01\0\x01";
    client.send_to(question, "10.0.0.53:53").unwrap();
    assert_eq!(recv_from(&server).0, question);
    let other = net.guest.connect(("10.0.0.54".parse::<IpAddr>().unwrap(), 53));
    assert_eq!(other.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_policy_file_comes_after_the_command_line() {
    let Some(net) = Net::new() else { return };
    let path = net.path("policy");
    std::fs::write(
        &path,
        "# for a test\ndeny 198.51.100.3 # all of it\n\nallow 198.51.100.0/24\ndefault deny\n",
    )
    .unwrap();
    net.pasta(&["--policy", &path, "--allow", "tcp/198.51.100.3"]);
    assert_eq!(reaches(&net, &net.peer, PEER[0], PEER[0], 7000), [true, false]);
    assert_eq!(reaches(&net, &net.peer, PEER_ALIAS[0], PEER_ALIAS[0], 7000), [true, true]);
    assert_eq!(reaches(&net, &net.far, FAR[1], FAR[1], 7000), [false, false]);
}

#[test]
fn a_policy_file_that_is_wrong_ends_the_start() {
    let Some(net) = Net::new() else { return };
    let path = net.path("policy");
    for (text, expected) in [
        ("allow 192.0.2.0/24\npermit all\n", "line 2"),
        ("allow icmp/192.0.2.1:80\n", "ICMP has no ports"),
        ("allow example..org\n", "not an address, a prefix, a domain name"),
    ] {
        std::fs::write(&path, text).unwrap();
        let refused = net.run_pasta(&["--policy", &path]);
        assert_eq!(refused.code(), 1);
        assert!(refused.stderr.contains(&path), "{}", refused.stderr);
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    }
    let refused = net.run_pasta(&["--policy", "/nonexistent/policy"]);
    assert_eq!(refused.code(), 1);
    assert!(refused.stderr.contains("/nonexistent/policy"), "{}", refused.stderr);
}

#[test]
fn an_audit_refuses_nothing_and_tells() {
    let Some(net) = Net::new() else { return };
    let log = net.path("log");
    net.pasta(&["--deny", "198.51.100.0/24", "--policy-audit", "--log-file", &log]);
    assert_eq!(reaches(&net, &net.peer, PEER[0], PEER[0], 7000), [true, true]);
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(told.contains("would be refused: tcp") && told.contains("deny 198.51.100.0/24"), "{told}");
}

/// A pasta with a command logs only warnings and errors. Its caller sees refusals, too.
#[test]
fn the_caller_of_a_command_sees_what_is_refused() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let command = ["ping", "-n", "-c", "1", "-w", "60", "203.0.113.2"];
    let finished = net.spawn(&["--deny", "203.0.113.0/24"], &command);
    assert!(finished.stdout.contains("filtered"), "{}", finished.stdout);
    assert!(
        finished.stderr.contains("refused: ping 198.51.100.2 -> 203.0.113.2 (deny 203.0.113.0/24)"),
        "{}",
        finished.stderr
    );
}
