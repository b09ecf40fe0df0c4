//! Tests of the budgets of open files (docs/design/budgets.md). A flood of one protocol leaves files for other
//! protocols, and a new flow replaces an old flow that can end without loss.

use crate::harness::*;
use crate::limits::{Over, attempt, count, greet, limited, routes};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

/// Sends a question and its answer. Returns the source of the question.
fn ask(client: &UdpSocket, to: impl Into<SocketAddr>, server: &UdpSocket, number: u64) -> SocketAddr {
    let (question, answer) = (payload(number, 40), payload(number + 1, 200));
    client.send_to(&question, to.into()).unwrap();
    let (got, from) = recv_from(server);
    assert!(got == question, "question {number}");
    server.send_to(&answer, from).unwrap();
    let (got, _) = recv_from(client);
    assert!(got == answer, "answer {number}");
    from
}

fn ping(net: &Net, id: u16, to: IpAddr) {
    let report =
        net.guest.run(&["ping", "-n", "-c", "1", "-w", "60", "-e", &id.to_string(), &to.to_string()]);
    assert!(report.stdout.contains(" 1 received"), "identifier {id}: {report:#?}");
}

/// With a limit of 1024 files, connections of one kind use their whole budget. Connections of the other kinds, UDP from
/// a new port (in both directions, also when it bypasses the link), ping, and the forwarding of another port still
/// work.
#[test]
fn tcp_leaves_descriptors_for_other_flows() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let start = Instant::now();
    let rules = ["-t", "7001,7002", "-T", "7003", "-u", "6001,6002", "-U", "none", "-c", &net.path("s")];
    let (pasta, pid) = limited(&net, 1024, &rules);
    let routes = routes(&net);
    let before = descriptors(&net.host, pid);
    let [host, _] = HOST;
    let servers =
        [net.peer.udp((PEER[0], 53)), net.guest.udp((any(host), 6001)), net.guest.udp((any(host), 6002))];
    let published = net.guest.listen((any(host), 7005));
    let over = AtomicBool::new(false);

    thread::scope(|scope| {
        let _over = Over(&over);
        routes.iter().for_each(|route| drop(scope.spawn(|| greet(&route.listener, &over))));
        for (number, greedy) in routes.iter().enumerate() {
            let held: Vec<_> = std::iter::from_fn(|| attempt(greedy)).collect();
            eprintln!(
                "{}: {} connections, {} descriptors",
                greedy.name,
                held.len(),
                descriptors(&net.host, pid)
            );
            assert!(held.len() > 250, "{}: {}", greedy.name, held.len());
            for other in routes.iter().filter(|other| other.name != greedy.name) {
                assert!(attempt(other).is_some(), "{} beside {}", other.name, greedy.name);
            }
            let number = number as u64;
            ask(&net.guest.udp((any(host), 0)), (PEER[0], 53), &servers[0], 10 * number);
            ask(&net.peer.udp((PEER[0], 0)), (host, 6001), &servers[1], 10 * number);
            ask(&net.host.udp((LOOPBACK[0], 0)), (LOOPBACK[0], 6002), &servers[2], 10 * number);
            ping(&net, 1000 + number as u16, PEER[0]);
            net.host.run(&[companion("pesto"), "-A", "-t", "7005", &net.path("s")]).ok();
            let _client = net.peer.connect((host, 7005)).unwrap();
            if greedy.name != "in" {
                accept(&published);
            }
            net.host.run(&[companion("pesto"), "-D", "-t", "7005", &net.path("s")]).ok();
            drop(held);
            wait_until("descriptors", || descriptors(&net.host, pid) < before + 100);
        }
    });
    let warnings = pasta.stderr();
    for kind in [
        "A TCP connection of",
        "A TCP connection to",
        "A local TCP connection of",
        "A local TCP connection to",
    ] {
        let lines: Vec<_> =
            warnings.lines().filter(|line| line.contains(kind) && line.contains("ulimit -n")).collect();
        assert_once_a_minute(lines.len(), start);
    }
}

/// A resolver that uses a new source port for each query loses no answer.
#[test]
fn queries_from_many_ports_use_few_sockets() {
    let Some(net) = Net::new() else { return };
    let start = Instant::now();
    let (mut pasta, pid) = limited(&net, 256, &["-t", "none", "-T", "none", "-u", "none", "-U", "none"]);
    let before = descriptors(&net.host, pid);
    let server = net.peer.udp((PEER[0], 53));
    let old = net.guest.udp((any(HOST[0]), 0));
    // This exchange is long, so it keeps its socket.
    let first = ask(&old, (PEER[0], 53), &server, 1);
    (0..20).for_each(|number| assert_eq!(ask(&old, (PEER[0], 53), &server, number), first));
    for number in 0..2000 {
        let client = net.guest.udp((any(HOST[0]), 20_000 + number as u16));
        ask(&client, (PEER[0], 53), &server, number);
    }
    assert!(descriptors(&net.host, pid) <= before + 35);
    server.send_to(b"still there", first).unwrap();
    assert_eq!(recv_from(&old).0, b"still there");
    wait_until("the count of those ended", || count(&mut pasta, "ended") == 2001 - 35);
    let warnings =
        pasta.stderr().lines().filter(|line| line.contains("UDP: the guest uses 35 ports")).count();
    assert_once_a_minute(warnings, start);
}

/// A monitoring program that uses a new identifier for each ping gets every reply.
#[test]
fn pings_with_many_identifiers_use_few_sockets() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let (_pasta, pid) = limited(&net, 256, &["-t", "none", "-T", "none", "-u", "none", "-U", "none"]);
    let before = descriptors(&net.host, pid);
    for id in 0..60 {
        ping(&net, id, PEER[usize::from(id) % 2]);
    }
    assert!(descriptors(&net.host, pid) <= before + 7);
}

/// One socket serves all remote clients of a UDP server in the guest. Local clients have one socket each, and few of
/// them exist at a time. Every client gets its answer.
#[test]
fn many_clients_of_a_server_use_few_sockets() {
    let Some(net) = Net::new() else { return };
    let (_pasta, pid) = limited(&net, 256, &["-t", "none", "-T", "none", "-u", "6001", "-U", "none"]);
    let before = descriptors(&net.host, pid);
    let server = net.guest.udp((any(HOST[0]), 6001));
    for number in 0..2000 {
        let client = net.peer.udp((PEER[0], 20_000 + number as u16));
        assert_eq!(ask(&client, (HOST[0], 6001), &server, number), (PEER[0], port(&client)).into());
    }
    assert_eq!(descriptors(&net.host, pid), before);
    for number in 0..500 {
        let client = net.host.udp((LOOPBACK[0], 20_000 + number as u16));
        assert_eq!(ask(&client, (LOOPBACK[0], 6001), &server, number).port(), port(&client));
    }
    assert!(descriptors(&net.host, pid) <= before + 14);
}
