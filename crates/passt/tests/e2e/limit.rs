//! Tests of rate limits (`--limit`, docs/guard.md). A slow machine may transfer fewer bytes than the limit allows. So
//! each test only checks that there are not more bytes than the limit allows, and that all bytes of TCP arrive.

use crate::harness::*;
use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

/// The limit in each direction: 2 MB per second.
const LIMIT: &str = "out=16M,in=16M";
const RATE: u64 = 2_000_000;
/// Number of bytes that may pass at once: the bytes of 50 ms.
const BURST: u64 = RATE / 20;
/// Number of bytes of a transfer. At the limit, it takes half a second.
const LEN: u64 = RATE / 2;

/// Checks that the limit allows this number of bytes in the time since `start`.
#[track_caller]
fn assert_within(bytes: u64, start: Instant) {
    let allowed = (RATE as f64 * start.elapsed().as_secs_f64()) as u64 + BURST;
    assert!(bytes <= allowed, "{bytes} bytes in {:?}", start.elapsed());
}

/// Transfers [`LEN`] bytes. Checks that all of them arrive, and that the rate is within the limit.
fn transfer(from: &TcpStream, to: &TcpStream, start: Instant) {
    thread::scope(|scope| {
        scope.spawn(|| {
            send(from, 1, LEN);
            from.shutdown(Shutdown::Write).unwrap();
        });
        receive_all(to, 1, LEN);
        assert_within(LEN, start);
    });
}

/// Transfers in both directions, over connections that the guest opens and over a connection that the peer opens.
fn transfers_through_the_link(net: &Net) {
    for peer in PEER {
        let start = Instant::now();
        let listener = net.peer.listen((peer, 7000));
        let guest = net.guest.connect((peer, 7000)).unwrap();
        let outside = accept(&listener).0;
        transfer(&guest, &outside, start);
        let start = Instant::now();
        transfer(&outside, &guest, start);
    }
    let start = Instant::now();
    let listener = net.guest.listen((any(HOST[0]), 7001));
    let outside = net.peer.connect((HOST[0], 7001)).unwrap();
    let guest = accept(&listener).0;
    transfer(&outside, &guest, start);
    let start = Instant::now();
    transfer(&guest, &outside, start);
}

#[test]
fn pasta_limits_tcp() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--limit", LIMIT, "-t", "7001"]);
    transfers_through_the_link(&net);
}

#[test]
fn passt_limits_tcp() {
    let Some(net) = Net::with_mtu(1500) else { return };
    let path = net.path("guest.socket");
    let _passt = net.passt(&["--socket", &path, "--mtu", "1500", "-t", "7001", "--limit", LIMIT]);
    let _machine = net.machine(1500).plug(UnixStream::connect(&path).unwrap());
    transfers_through_the_link(&net);
}

#[test]
fn connections_share_the_limit() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--limit", LIMIT]);
    let start = Instant::now();
    let listener = net.peer.listen((PEER[0], 7000));
    let ends = [(); 4].map(|()| {
        let guest = net.guest.connect((PEER[0], 7000)).unwrap();
        (guest, accept(&listener).0)
    });
    thread::scope(|scope| {
        for (guest, outside) in &ends {
            scope.spawn(move || send(guest, 1, LEN / 2));
            scope.spawn(move || receive(outside, 1, LEN / 2));
        }
    });
    assert_within(4 * LEN / 2, start);
}

/// Connections that bypass the link are limited, too. The direction of the bytes decides which limit applies.
#[test]
fn connections_that_bypass_the_link_are_limited() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--limit", "in=16M", "-t", "7001", "-T", "7002"]);
    let inbound = net.guest.listen((any(HOST[0]), 7001));
    let outbound = net.host.listen((LOOPBACK[0], 7002));
    let start = Instant::now();
    let client = net.host.connect((LOOPBACK[0], 7001)).unwrap();
    let server = accept(&inbound).0;
    transfer(&client, &server, start);
    let client = net.guest.connect((LOOPBACK[0], 7002)).unwrap();
    let server = accept(&outbound).0;
    let start = Instant::now();
    transfer(&server, &client, start);
}

/// Datagrams above the rate are dropped, and the others are forwarded, in both directions.
#[test]
fn udp_is_limited() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--limit", LIMIT]);
    let start = Instant::now();
    let server = net.peer.udp((PEER[0], 7000));
    let client = net.guest.udp((any(PEER[0]), 0));
    client.connect((PEER[0], 7000)).unwrap();
    client.send(b"question").unwrap();
    let (_, from) = recv_from(&server);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client).0, b"answer");
    server.connect(from).unwrap();
    for (sender, receiver) in [(&client, &server), (&server, &client)] {
        receiver.set_nonblocking(true).unwrap();
        let (mut sent, mut received) = (0, 0);
        while sent < 4 * BURST {
            sender.send(&[7; 1000]).unwrap();
            sent += 1000;
            received += arrived(receiver);
        }
        wait_until("datagrams", || {
            received += arrived(receiver);
            received > 0
        });
        assert_within(received, start);
    }
}

/// Receives all datagrams in a socket. Returns the number of their bytes.
fn arrived(socket: &std::net::UdpSocket) -> u64 {
    let mut bytes = 0;
    loop {
        match socket.recv(&mut [0; 2000]) {
            Ok(len) => bytes += len as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}
