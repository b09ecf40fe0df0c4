//! Local TCP connections, which bypass the tap (behaviour §5.3.3, §5.3.6, §5.5, §6.11).

use crate::harness::*;
use rustix::net::sockopt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

/// A loopback address that is not the usual one.
const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

fn refused(error: std::io::Result<impl std::fmt::Debug>) {
    let kind = error.unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{kind:?}");
}

/// Whoever connects there is refused, or reset (behaviour §6.11).
fn leads_nowhere(ns: &Ns, to: impl Into<SocketAddr>) {
    match ns.connect(to) {
        Ok(mut client) => refused(client.read(&mut [0])),
        error => refused(error),
    }
}

/// Both ends of a connection through a forwarded port: of a client in `from` to `to`, and of a server in `into` at `at`.
fn through(from: &Ns, to: (IpAddr, u16), into: &Ns, at: (IpAddr, u16)) -> (TcpStream, TcpStream) {
    let listener = into.listen(at);
    let client = from.connect(to).unwrap_or_else(|e| panic!("{to:?}: {e}"));
    (client, accept(&listener).0)
}

/// How a server sees a connection: address of the peer, and its own.
fn ends(server: &TcpStream) -> (IpAddr, IpAddr) {
    (canonical(server.peer_addr().unwrap()).ip(), canonical(server.local_addr().unwrap()).ip())
}

/// §5.3.6: the guest sees its own address at both ends, whatever loopback address was connected to.
#[test]
fn host_to_guest() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7001:7000"]);
    for v in 0..2 {
        let (mut client, mut server) =
            through(&net.host, (LOOPBACK[v], 7001), &net.guest, (any(HOST[v]), 7000));
        assert_eq!(ends(&server), (HOST[v], HOST[v]));
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
    }
    let (_client, server) = through(&net.host, (RESOLVER, 7001), &net.guest, (any(HOST[0]), 7000));
    assert_eq!(ends(&server), (HOST[0], HOST[0]));
}

/// §5.3.6: who isn't on loopback goes through the tap.
#[test]
fn others_do_not_bypass() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000"]);
    for v in 0..2 {
        let at = (any(HOST[v]), 7000);
        let (_client, server) = through(&net.far, (HOST[v], 7000), &net.guest, at);
        assert_eq!(ends(&server), (FAR[v], HOST[v]));
    }
    let (_client, server) = through(&net.host, (HOST[0], 7000), &net.guest, (any(HOST[0]), 7000));
    assert_eq!(ends(&server).0, GATEWAY[0]);
}

/// §5.3.6, third column.
#[test]
fn no_splice() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "--no-splice"]);
    let (_client, server) = through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000));
    assert_eq!(ends(&server), (GATEWAY[0], HOST[0]));
}

/// what listens on loopback only in the namespace is not exposed; §5.3.2: unless that is asked for, and then at
/// the address that was connected to.
#[test]
fn services_on_the_guests_loopback_r88() {
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["-t", "7000"]);
    let _servers = LOOPBACK.map(|address| net.guest.listen((address, 7000)));
    for address in LOOPBACK {
        leads_nowhere(&net.host, (address, 7000));
    }
    daemon.terminate();
    drop(_servers);

    net.attach(&["-t", "7000", "--host-lo-to-ns-lo"]);
    for address in LOOPBACK {
        let (_client, server) = through(&net.host, (address, 7000), &net.guest, (address, 7000));
        assert_eq!(ends(&server), (address, address));
    }
    let (_client, server) = through(&net.host, (RESOLVER, 7000), &net.guest, (RESOLVER, 7000));
    assert_eq!(ends(&server), (LOOPBACK[0], RESOLVER));
}

/// §2.2: no tap, no traffic but loopback's, at the same address.
#[test]
fn splice_only() {
    let Some(net) = Net::new() else { return };
    net.attach(&["--splice-only", "-t", "7000", "-u", "none", "-T", "7001"]);
    assert_eq!(net.guest.sh("ip -o link | grep -cv ' lo:' || :").trim(), "0", "no tap");
    for address in LOOPBACK {
        let (_client, server) = through(&net.host, (address, 7000), &net.guest, (address, 7000));
        assert_eq!(ends(&server), (address, address));
        through(&net.guest, (address, 7001), &net.host, (address, 7001));
    }
    let _server = net.guest.listen((any(HOST[0]), 7000));
    leads_nowhere(&net.peer, (HOST[0], 7000));
}

/// §5.5, R-89, R-106: any loopback address of the namespace leads to the same of the host.
#[test]
fn guest_to_host_r89_r106() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-T", "7001:7000"]);
    for address in [LOOPBACK[0], LOOPBACK[1], RESOLVER] {
        let (mut client, mut server) = through(&net.guest, (address, 7001), &net.host, (address, 7000));
        let source = LOOPBACK[usize::from(address.is_ipv6())];
        assert_eq!(ends(&server), (source, address));
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
    }
    // Not at the guest's own address.
    let _server = net.host.listen((any(HOST[0]), 7000));
    leads_nowhere(&net.guest, (HOST[0], 7001));
}

/// §2.4: ports of the namespace that are taken, and all of a range.
#[test]
fn ports_of_the_namespace() {
    let Some(net) = Net::new() else { return };
    let busy = net.guest.listen((any(HOST[0]), 7001));
    let end = net.run_pasta(&["-T", "7000-7002", "--netns", "/run/netns/guest"]);
    assert_eq!(end.code(), 1, "{end:?}");
    assert!(end.stderr.contains("7001"), "{end:?}");
    drop(busy);
    // Privileged there, which pasta has the right to.
    net.pasta(&["-T", "53,7000-7002:8000-8002"]);
    through(&net.guest, (LOOPBACK[0], 7002), &net.host, (LOOPBACK[0], 8002));
    through(&net.guest, (RESOLVER, 53), &net.host, (RESOLVER, 53));
}

/// §6.11: nobody listens behind a forwarded port.
#[test]
fn refused_connections() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-T", "7001"]);
    for address in LOOPBACK {
        leads_nowhere(&net.host, (address, 7000));
        leads_nowhere(&net.guest, (address, 7001));
    }
}

/// both ways at once, many megabytes, checked by the octet up to the end.
#[test]
fn full_duplex_r84() {
    const LEN: u64 = 64 << 20;
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-T", "7001"]);
    let ways = [
        (&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000)),
        (&net.host, (LOOPBACK[1], 7000), &net.guest, (any(HOST[1]), 7000)),
        (&net.guest, (LOOPBACK[0], 7001), &net.host, (LOOPBACK[0], 7001)),
        (&net.guest, (LOOPBACK[1], 7001), &net.host, (LOOPBACK[1], 7001)),
    ];
    for (from, to, into, at) in ways {
        let (client, server) = through(from, to, into, at);
        thread::scope(|scope| {
            for (stream, seed) in [(&client, 1), (&server, 2)] {
                scope.spawn(move || {
                    send(stream, seed, LEN);
                    stream.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || receive_all(stream, 3 - seed, LEN));
            }
        });
    }
}

/// signals that interrupt what pasta waits in, again and again, while bytes move both ways. It has a handler for
/// none, but a stop interrupts a wait, too (signal(7)).
#[test]
fn interrupted_r86() {
    const LEN: u64 = 64 << 20;
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["-t", "7000"]);
    let (client, server) = through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000));
    thread::scope(|scope| {
        let receivers = [(&client, 1), (&server, 2)].map(|(stream, seed)| {
            scope.spawn(move || {
                send(stream, seed, LEN);
                stream.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || receive_all(stream, 3 - seed, LEN))
        });
        while !receivers.iter().all(thread::ScopedJoinHandle::is_finished) {
            daemon.signal("STOP");
            daemon.signal("CONT");
        }
    });
    assert!(daemon.runs());
}

/// A connection in by port 7000 and one out by port 7001: their clients and servers.
fn both_ways(net: &Net) -> [(TcpStream, TcpStream); 2] {
    [
        through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000)),
        through(&net.guest, (LOOPBACK[0], 7001), &net.host, (LOOPBACK[0], 7001)),
    ]
}

/// each half ends by itself, and a full close is no reset.
#[test]
fn half_close_r85() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-T", "7001"]);
    for (client, server) in both_ways(&net) {
        for (one, other) in [(&client, &server), (&server, &client)] {
            send(one, 5, 100_000);
            one.shutdown(Shutdown::Write).unwrap();
            receive_all(other, 5, 100_000);
        }
    }
    // With the last octets still on their way.
    for _ in 0..100 {
        let (client, server) = through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000));
        send(&server, 6, 100_000);
        drop(server);
        receive_all(&client, 6, 100_000);
    }
}

/// an abnormal end is told as what it is, behind what was received before.
#[test]
fn reset_r85() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-T", "7001"]);
    for (client, server) in both_ways(&net) {
        send(&server, 7, 1000);
        receive(&client, 7, 500);
        sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
        drop(server);
        // What pasta had received by then, and not the regular end.
        let mut rest = Vec::new();
        let error = (&client).read_to_end(&mut rest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

/// a receiver that does not read costs no time, and loses nothing.
#[test]
fn blocked_receiver_r83() {
    const LEN: u64 = 64 << 20;
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["-t", "7000"]);
    let (client, server) = through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000));
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&client, 8, LEN);
            client.shutdown(Shutdown::Write).unwrap();
        });
        // It comes to rest: the same processor time as some time before.
        let mut before = String::new();
        wait_until("pasta to wait", || {
            thread::sleep(Duration::from_millis(200));
            let now = net.host.sh(&format!("cut -d' ' -f14,15 /proc/{}/stat", daemon.pid));
            let same = now == before;
            before = now;
            same
        });
        receive_all(&server, 8, LEN);
    });
}

/// §6.11: a connection that waits has its two sockets, and nothing else.
#[test]
fn many_connections() {
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["-t", "7000"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    let mut pairs: Vec<_> = (0..500)
        .map(|_| {
            let client = net.host.connect((LOOPBACK[0], 7000)).unwrap();
            (client, accept(&listener).0)
        })
        .collect();
    for (seed, (client, server)) in (0..).zip(&mut pairs) {
        send(&mut *client, seed, 1000);
        receive(&mut *server, seed, 1000);
    }
    let open = daemon.descriptors();
    assert!(open < 2 * 500 + 200, "{open} descriptors");
    drop(pairs);
    wait_until("the sockets to be closed", || daemon.descriptors() < 200);
}
