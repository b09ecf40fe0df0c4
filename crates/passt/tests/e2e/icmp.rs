//! Tests of echo, and of the ICMP errors that traceroute needs (behaviour §4.5, §7.4).

use crate::harness::*;

/// Runs ping until all `-c` replies have arrived. (With `-W`, ping would wait only for twice the round-trip time.)
fn ping(net: &Net, arguments: &str) -> String {
    net.guest.sh(&format!("ping -n -w 60 {arguments}"))
}

/// this includes the first request with an identifier.
#[test]
fn every_echo_request_is_answered_r46() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for to in PEER.into_iter().chain(FAR) {
        for arguments in ["-c 1", "-c 5 -i 0.01", "-c 2 -i 0.01 -s 1400", "-c 1 -s 0"] {
            let report = ping(&net, &format!("{arguments} {to}"));
            assert!(report.contains(&format!("from {to}: icmp_seq=1 ")), "{report}");
        }
    }
}

/// behaviour §5.2, row 2: the gateway's address maps to the host. The host answers, although the gateway does not.
#[test]
fn the_host_answers_pings_to_the_gateway() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    net.peer.sh(
        "echo 1 >/proc/sys/net/ipv4/icmp_echo_ignore_all; echo 1 >/proc/sys/net/ipv6/icmp/echo_ignore_all",
    );
    net.pasta(&[]);
    for to in GATEWAY {
        let report = ping(&net, &format!("-c 2 -i 0.01 {to}"));
        assert!(report.contains(&format!("from {to}: icmp_seq=1 ")), "{report}");
    }
}

/// Several programs in the guest ping the same address.
#[test]
fn concurrent_pings_get_their_own_replies() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for to in PEER {
        let to = to.to_string();
        let pings: Vec<_> = (0..5)
            .map(|_| net.guest.start(&["ping", "-n", "-c", "3", "-i", "0.01", "-w", "60", &to]))
            .collect();
        for ping in pings {
            let report = ping.wait().ok();
            assert!(report.contains(" 3 received") && !report.contains("DUP"), "{report}");
        }
    }
}

/// the guest sees each router with its own address. The TTL is kept (behaviour §7.3), and errors are rebuilt
/// (§7.4).
#[test]
fn traceroute_shows_hops_r94() {
    need!("traceroute");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--no-map-gw"]);
    for v in 0..2 {
        let report = net.guest.sh(&format!("traceroute -n -q 1 -w 20 -m 5 -N 1 {}", FAR[v]));
        let hops: Vec<&str> =
            report.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(hops.len(), 2, "{report}");
        // The router can use any of its addresses.
        let router = [GATEWAY[v], PEER[v], PEER_ALIAS[v]].map(|ip| ip.to_string());
        assert!(router.iter().any(|ip| ip == hops[0]), "{report}");
        assert_eq!(hops[1], FAR[v].to_string(), "{report}");
    }
}

/// RFC 1122 §3.2.2.1, RFC 4443 §3.4: a protocol that is not forwarded, here UDP-Lite, causes an ICMP error.
#[test]
fn protocols_that_are_not_carried_are_refused() {
    need!("python3");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for peer in PEER {
        let script = format!(
            "import socket
family = socket.AF_INET6 if ':' in '{peer}' else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM, 136)
s.settimeout(60)
s.connect(('{peer}', 7000))
s.send(b'x')
try: s.recv(1)
except OSError as error: print(error.errno)"
        );
        let errno = net.guest.run(&["python3", "-c", &script]).ok();
        // The error is ENOPROTOOPT (92) for IPv4, and EPROTO (71) for IPv6.
        assert_eq!(errno.trim(), if peer.is_ipv4() { "92" } else { "71" });
    }
}
