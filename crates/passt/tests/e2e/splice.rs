//! Tests of TCP connections between loopback addresses, which bypass the link (behaviour §5.3.3, §5.3.6, §5.5, §6.11).

use crate::harness::*;
use rustix::net::sockopt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

/// A loopback address other than 127.0.0.1.
const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

fn assert_refused(error: std::io::Result<impl std::fmt::Debug>) {
    let kind = error.unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset), "{kind:?}");
}

/// Checks that a connection is refused or reset (behaviour §6.11).
fn assert_leads_nowhere(ns: &Ns, to: impl Into<SocketAddr>) {
    match ns.connect(to) {
        Ok(mut client) => assert_refused(client.read(&mut [0])),
        error => assert_refused(error),
    }
}

/// Opens a connection through a forwarded port, from a client in `from` to `to`. The server is in `into`, at `at`.
/// Returns both ends.
fn connect_through(from: &Ns, to: (IpAddr, u16), into: &Ns, at: (IpAddr, u16)) -> (TcpStream, TcpStream) {
    let listener = into.listen(at);
    let client = from.connect(to).unwrap_or_else(|e| panic!("{to:?}: {e}"));
    (client, accept(&listener).0)
}

/// The peer's address and the local address, as a server sees them.
fn ends(server: &TcpStream) -> (IpAddr, IpAddr) {
    (canonical(server.peer_addr().unwrap()).ip(), canonical(server.local_addr().unwrap()).ip())
}

/// behaviour §5.3.6: both ends have the guest's address, for any loopback address of the host.
#[test]
fn a_bypassed_inbound_connection_comes_from_the_guests_address() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7001:7000"]);
    // The kernel chooses the source address. It prefers no address that is tentative, as each is for a moment.
    wait_until("the guest's addresses", || {
        let addresses = net.guest.sh("ip -6 -o addr show scope global");
        addresses.contains("inet6") && !addresses.contains("tentative")
    });
    for v in 0..2 {
        let (mut client, mut server) =
            connect_through(&net.host, (LOOPBACK[v], 7001), &net.guest, (any(HOST[v]), 7000));
        assert_eq!(ends(&server), (HOST[v], HOST[v]));
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
    }
    let (_client, server) = connect_through(&net.host, (RESOLVER, 7001), &net.guest, (any(HOST[0]), 7000));
    assert_eq!(ends(&server), (HOST[0], HOST[0]));
}

/// behaviour §5.3.6: connections that do not come from loopback use the link.
#[test]
fn other_connections_use_the_link() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000"]);
    for v in 0..2 {
        let at = (any(HOST[v]), 7000);
        let (_client, server) = connect_through(&net.far, (HOST[v], 7000), &net.guest, at);
        assert_eq!(ends(&server), (FAR[v], HOST[v]));
    }
    let (_client, server) = connect_through(&net.host, (HOST[0], 7000), &net.guest, (any(HOST[0]), 7000));
    assert_eq!(ends(&server).0, GATEWAY[0]);
}

/// behaviour §5.3.6, third column: with `--no-splice`, connections from loopback use the link.
#[test]
fn no_splice_disables_the_bypass() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "--no-splice"]);
    let (_client, server) = connect_through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000));
    assert_eq!(ends(&server), (GATEWAY[0], HOST[0]));
}

/// a service on the namespace's loopback is not exposed. behaviour §5.3.2: with `--host-lo-to-ns-lo`, it is
/// exposed at the address to which the client connects.
#[test]
fn services_on_the_guests_loopback_are_not_exposed_r88() {
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["-t", "7000"]);
    let _servers = LOOPBACK.map(|address| net.guest.listen((address, 7000)));
    for address in LOOPBACK {
        assert_leads_nowhere(&net.host, (address, 7000));
    }
    daemon.terminate();
    drop(_servers);

    net.attach(&["-t", "7000", "--host-lo-to-ns-lo"]);
    for address in LOOPBACK {
        let (_client, server) = connect_through(&net.host, (address, 7000), &net.guest, (address, 7000));
        assert_eq!(ends(&server), (address, address));
    }
    let (_client, server) = connect_through(&net.host, (RESOLVER, 7000), &net.guest, (RESOLVER, 7000));
    assert_eq!(ends(&server), (LOOPBACK[0], RESOLVER));
}

/// behaviour §2.2: only loopback connections are forwarded. Their destination is the same loopback address.
#[test]
fn splice_only_has_no_link() {
    let Some(net) = Net::new() else { return };
    net.attach(&["--splice-only", "-t", "7000", "-u", "none", "-T", "7001"]);
    assert_eq!(net.guest.sh("ip -o link | grep -cv ' lo:' || :").trim(), "0", "no tap");
    for address in LOOPBACK {
        let (_client, server) = connect_through(&net.host, (address, 7000), &net.guest, (address, 7000));
        assert_eq!(ends(&server), (address, address));
        connect_through(&net.guest, (address, 7001), &net.host, (address, 7001));
    }
    let _server = net.guest.listen((any(HOST[0]), 7000));
    assert_leads_nowhere(&net.peer, (HOST[0], 7000));
}

/// behaviour §5.5, R-89, R-106: the connection leads to the same loopback address of the host.
#[test]
fn a_bypassed_outbound_connection_keeps_its_loopback_address_r89_r106() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-T", "7001:7000"]);
    for address in [LOOPBACK[0], LOOPBACK[1], RESOLVER] {
        let (mut client, mut server) =
            connect_through(&net.guest, (address, 7001), &net.host, (address, 7000));
        let source = LOOPBACK[usize::from(address.is_ipv6())];
        assert_eq!(ends(&server), (source, address));
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
    }
    // Connections to the guest's own address are not forwarded.
    let _server = net.host.listen((any(HOST[0]), 7000));
    assert_leads_nowhere(&net.guest, (HOST[0], 7001));
}

/// behaviour §2.4: a busy port in a range is an error.
#[test]
fn busy_and_low_ports_of_the_namespace() {
    let Some(net) = Net::new() else { return };
    let busy = net.guest.listen((any(HOST[0]), 7001));
    let end = net.run_pasta(&["-T", "7000-7002", "--netns", "/run/netns/guest"]);
    assert_eq!(end.code(), 1, "{end:?}");
    assert!(end.stderr.contains("7001"), "{end:?}");
    drop(busy);
    // pasta has the privilege for ports below 1024 in the namespace.
    net.pasta(&["-T", "53,7000-7002:8000-8002"]);
    connect_through(&net.guest, (LOOPBACK[0], 7002), &net.host, (LOOPBACK[0], 8002));
    connect_through(&net.guest, (RESOLVER, 53), &net.host, (RESOLVER, 53));
}

/// behaviour §6.11: no process listens on the target port.
#[test]
fn connections_without_a_listener_are_refused() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-T", "7001"]);
    for address in LOOPBACK {
        assert_leads_nowhere(&net.host, (address, 7000));
        assert_leads_nowhere(&net.guest, (address, 7001));
    }
}

/// data is transferred in both directions at once, and every byte is checked, up to the end of the stream.
#[test]
fn a_full_duplex_transfer_is_complete_r84() {
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
        let (client, server) = connect_through(from, to, into, at);
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

/// signals interrupt pasta's waits repeatedly. It has no signal handlers, but a stop interrupts a wait, too
/// (signal(7)).
#[test]
fn interrupted_waits_lose_nothing_r86() {
    const LEN: u64 = 64 << 20;
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["-t", "7000"]);
    let (client, server) = connect_through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000));
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

/// Opens an inbound connection to port 7000 and an outbound connection to port 7001. Returns their clients and servers.
fn both_ways(net: &Net) -> [(TcpStream, TcpStream); 2] {
    [
        connect_through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000)),
        connect_through(&net.guest, (LOOPBACK[0], 7001), &net.host, (LOOPBACK[0], 7001)),
    ]
}

/// a full close causes no reset.
#[test]
fn each_half_closes_by_itself_r85() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-T", "7001"]);
    for (client, server) in both_ways(&net) {
        for (one, other) in [(&client, &server), (&server, &client)] {
            send(one, 5, 100_000);
            one.shutdown(Shutdown::Write).unwrap();
            receive_all(other, 5, 100_000);
        }
    }
    // Here, the buffers still have data.
    for _ in 0..100 {
        let (client, server) =
            connect_through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000));
        send(&server, 6, 100_000);
        drop(server);
        receive_all(&client, 6, 100_000);
    }
}

/// the reset arrives after the data that was received before it.
#[test]
fn a_reset_is_passed_on_r85() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-T", "7001"]);
    for (client, server) in both_ways(&net) {
        send(&server, 7, 1000);
        receive(&client, 7, 500);
        sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
        drop(server);
        // The client gets the data that pasta had received, then the reset, and no regular end of the stream.
        let mut rest = Vec::new();
        let error = (&client).read_to_end(&mut rest).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

/// no data is lost either.
#[test]
fn a_blocked_receiver_uses_no_processor_time_r83() {
    const LEN: u64 = 64 << 20;
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["-t", "7000"]);
    let (client, server) = connect_through(&net.host, (LOOPBACK[0], 7000), &net.guest, (any(HOST[0]), 7000));
    thread::scope(|scope| {
        scope.spawn(|| {
            send(&client, 8, LEN);
            client.shutdown(Shutdown::Write).unwrap();
        });
        // The loop waits until pasta's processor time does not change any more.
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

/// behaviour §6.11: an idle connection has its two sockets, and no pipes.
#[test]
fn a_connection_needs_two_descriptors() {
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
