//! Shares of open files (docs/design/budgets.md): no protocol's flood takes what others need, and what can be ended
//! without loss makes room for newcomers.

use crate::harness::*;
use crate::limits::{Over, attempt, count, descriptors, greet, limited, ways};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::thread;

/// A question and its answer. Whom the question came from.
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

/// At 1,024 files full of TCP connections of each kind, whatever else there is works: connections of the other kinds,
/// a question from a new UDP port (in and out, past the link too), ping, and a port that is published now.
#[test]
fn tcp_leaves_files_for_others() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let rules = ["-t", "7001,7002", "-T", "7003", "-u", "6001,6002", "-U", "none", "-c", &net.path("s")];
    let (mut pasta, pid) = limited(&net, 1024, &rules);
    let ways = ways(&net);
    let before = descriptors(&net, pid);
    let [host, _] = HOST;
    let servers =
        [net.peer.udp((PEER[0], 53)), net.guest.udp((any(host), 6001)), net.guest.udp((any(host), 6002))];
    let published = net.guest.listen((any(host), 7005));
    let over = AtomicBool::new(false);

    thread::scope(|scope| {
        let _over = Over(&over);
        ways.iter().for_each(|way| drop(scope.spawn(|| greet(&way.listener, &over))));
        for (number, greedy) in ways.iter().enumerate() {
            let held: Vec<_> = std::iter::from_fn(|| attempt(greedy)).collect();
            eprintln!("{}: {} connections, {} descriptors", greedy.name, held.len(), descriptors(&net, pid));
            assert!(held.len() > 250, "{}: {}", greedy.name, held.len());
            for other in ways.iter().filter(|other| other.name != greedy.name) {
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
            wait_until("descriptors", || descriptors(&net, pid) < before + 100);
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
        assert_eq!(lines.len(), 1, "at most one a minute: {lines:?}");
    }
}

/// A resolver that asks from a new port each time: no question is lost, and the sockets are bounded.
#[test]
fn a_new_port_for_each_question() {
    let Some(net) = Net::new() else { return };
    let (mut pasta, pid) = limited(&net, 256, &["-t", "none", "-T", "none", "-u", "none", "-U", "none"]);
    let before = descriptors(&net, pid);
    let server = net.peer.udp((PEER[0], 53));
    let old = net.guest.udp((any(HOST[0]), 0));
    // A stream, which lives on.
    let first = ask(&old, (PEER[0], 53), &server, 1);
    (0..20).for_each(|number| assert_eq!(ask(&old, (PEER[0], 53), &server, number), first));
    for number in 0..2000 {
        let client = net.guest.udp((any(HOST[0]), 20_000 + number as u16));
        ask(&client, (PEER[0], 53), &server, number);
    }
    assert!(descriptors(&net, pid) <= before + 35);
    server.send_to(b"still there", first).unwrap();
    assert_eq!(recv_from(&old).0, b"still there");
    wait_until("the count of those ended", || count(&mut pasta, "ended") == 2001 - 35);
    let warnings =
        pasta.stderr().lines().filter(|line| line.contains("UDP: the guest uses 35 ports")).count();
    assert_eq!(warnings, 1, "at most one a minute");
}

/// A monitor with an identifier for each of its pings: each has its reply, and a resolver and TCP live beside it.
#[test]
fn a_new_identifier_for_each_ping() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let (_pasta, pid) = limited(&net, 256, &["-t", "none", "-T", "none", "-u", "none", "-U", "none"]);
    let before = descriptors(&net, pid);
    for id in 0..60 {
        ping(&net, id, PEER[usize::from(id) % 2]);
    }
    assert!(descriptors(&net, pid) <= before + 7);
}

/// Clients of a UDP server of the guest: from outside one socket serves them all; local ones have a socket each, of which
/// there are few. None is without an answer.
#[test]
fn many_clients_of_one_server() {
    let Some(net) = Net::new() else { return };
    let (_pasta, pid) = limited(&net, 256, &["-t", "none", "-T", "none", "-u", "6001", "-U", "none"]);
    let before = descriptors(&net, pid);
    let server = net.guest.udp((any(HOST[0]), 6001));
    for number in 0..2000 {
        let client = net.peer.udp((PEER[0], 20_000 + number as u16));
        assert_eq!(ask(&client, (HOST[0], 6001), &server, number), (PEER[0], port(&client)).into());
    }
    assert_eq!(descriptors(&net, pid), before);
    for number in 0..500 {
        let client = net.host.udp((LOOPBACK[0], 20_000 + number as u16));
        assert_eq!(ask(&client, (LOOPBACK[0], 6001), &server, number).port(), port(&client));
    }
    assert!(descriptors(&net, pid) <= before + 14);
}
