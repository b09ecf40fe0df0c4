//! Tests of TCP through the tap device (behaviour §6): connections, refusals, closes, resets, many connections.

use crate::harness::*;
use rustix::net::sockopt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use sys::sockopt::{keep_syn, traffic_class_of_syn};

/// Sends a question and an answer.
fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    let mut buf = [0; 8];
    client.write_all(b"question").unwrap();
    server.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"question");
    server.write_all(b"answer..").unwrap();
    client.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"answer..");
}

#[test]
fn the_guest_can_connect_to_the_peer() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for (ns, to) in
        [(&net.peer, PEER), (&net.far, FAR)].into_iter().flat_map(|(ns, tos)| tos.map(|to| (ns, to)))
    {
        let listener = ns.listen((to, 7000));
        let mut client = net.guest.connect((to, 7000)).unwrap();
        let (mut server, from) = accept(&listener);
        assert_eq!(from.ip(), HOST[usize::from(to.is_ipv6())], "the host's own address is seen outside");
        exchange(&mut client, &mut server);
        client.shutdown(Shutdown::Write).unwrap();
        expect_end(&server);
        drop(server);
        expect_end(&client);
    }
}

#[test]
fn the_peer_can_connect_to_the_guest() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000"]);
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let listener = net.guest.listen((any(host), 7000));
        let mut client = net.peer.connect_from((peer, 0), (host, 7000)).unwrap();
        let (mut server, from) = accept(&listener);
        // behaviour §5.3.4: the server sees the client's own address and port.
        assert_eq!(from, client.local_addr().unwrap());
        exchange(&mut client, &mut server);
        server.shutdown(Shutdown::Write).unwrap();
        expect_end(&client);
        drop(client);
        expect_end(&server);
    }
}

/// behaviour §6.1.4: the guest gets the result of the host's connection. R-59: the guest would ignore a RST without an
/// ACK.
#[test]
fn a_refused_connection_is_refused_for_the_guest_r59() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for to in PEER.into_iter().chain(FAR) {
        assert_eq!(net.guest.connect((to, 9)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}

/// behaviour §6.1.4: there is no route, or no neighbour. If the guest timed out instead, it would get another error.
#[test]
fn an_unreachable_destination_is_an_error_for_the_guest() {
    let host_setup =
        "ip route add unreachable 203.0.113.66; ip -6 route add unreachable 2001:db8:2::66 metric 1\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    net.pasta(&["-g", "198.51.100.1", "-g", "2001:db8:1::1"]);
    let no_route: [std::net::IpAddr; 2] =
        ["203.0.113.66".parse().unwrap(), "2001:db8:2::66".parse().unwrap()];
    for to in NOBODY.into_iter().chain(no_route) {
        let error = net.guest.connect((to, 7000)).unwrap_err();
        let expected =
            [ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        assert!(expected.contains(&error.kind()), "{to}: {error}");
    }
}

/// While the peer doesn't answer, the guest's connection is neither accepted nor refused. A late answer still
/// establishes the connection.
#[test]
fn an_unanswered_connection_stays_open_until_the_guest_times_out() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for (peer, host) in PEER.into_iter().zip(HOST) {
        let _listener = net.peer.listen((peer, 7000));
        net.peer.sh(&format!("ip route add blackhole {host}"));
        let impatient = net.guest.start_connect((peer, 7000));
        sockopt::set_tcp_user_timeout(&impatient, 2000).unwrap();
        let patient = net.guest.start_connect((peer, 7000));
        wait_until("the impatient client's time-out", || {
            impatient.peer_addr().is_err() && {
                match impatient.take_error().unwrap() {
                    None => false,
                    Some(e) if e.kind() == ErrorKind::TimedOut => true,
                    Some(e) => panic!("{peer}: {e}"),
                }
            }
        });
        assert!(patient.peer_addr().is_err(), "connected to a peer that never answered");
        assert!(patient.take_error().unwrap().is_none());
        net.peer.sh(&format!("ip route del blackhole {host}"));
        wait_until("the late connection", || {
            if let Some(e) = patient.take_error().unwrap() {
                panic!("{peer}: {e}");
            }
            patient.peer_addr().is_ok()
        });
    }
}

/// checks that after one side has closed, all data of the other side still arrives.
fn assert_half_close(active: &mut TcpStream, passive: &mut TcpStream) {
    const LEN: u64 = 3_000_000;
    active.write_all(b"that was all of mine").unwrap();
    active.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    passive.read_to_string(&mut said).unwrap();
    assert_eq!(said, "that was all of mine");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            send(&*passive, 70, LEN);
            passive.shutdown(Shutdown::Write).unwrap();
        });
        receive_all(active, 70, LEN);
    });
}

/// R-70, behaviour §6.8: the data of the other side still arrives.
#[test]
fn either_side_can_half_close_r70() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7001"]);
    for (peer, host) in PEER.into_iter().zip(HOST) {
        let listener = net.peer.listen((peer, 7000));
        for guest_closes_first in [true, false] {
            let mut guest = net.guest.connect((peer, 7000)).unwrap();
            let (mut outside, _) = accept(&listener);
            match guest_closes_first {
                true => assert_half_close(&mut guest, &mut outside),
                false => assert_half_close(&mut outside, &mut guest),
            }
        }
        let listener = net.guest.listen((any(host), 7001));
        for guest_closes_first in [true, false] {
            let mut outside = net.peer.connect((host, 7001)).unwrap();
            let (mut guest, _) = accept(&listener);
            match guest_closes_first {
                true => assert_half_close(&mut guest, &mut outside),
                false => assert_half_close(&mut outside, &mut guest),
            }
        }
    }
}

/// R-59, behaviour §6.7: the other side gets a reset, not a regular end.
#[test]
fn a_reset_is_passed_on_in_both_directions_r59() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7001"]);
    let reset = |stream: TcpStream| sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    let expect_reset = |mut stream: TcpStream| {
        assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    };
    for (peer, host) in PEER.into_iter().zip(HOST) {
        let outbound = net.peer.listen((peer, 7000));
        let inbound = net.guest.listen((any(host), 7001));
        let out = || {
            let mut client = net.guest.connect((peer, 7000)).unwrap();
            let mut server = accept(&outbound).0;
            exchange(&mut client, &mut server);
            (client, server)
        };
        let into = || {
            let mut client = net.peer.connect((host, 7001)).unwrap();
            let mut server = accept(&inbound).0;
            exchange(&mut client, &mut server);
            (server, client)
        };
        for pair in [&out as &dyn Fn() -> (TcpStream, TcpStream), &into] {
            let (guest, outside) = pair();
            reset(guest);
            expect_reset(outside);
            let (guest, outside) = pair();
            reset(outside);
            expect_reset(guest);
        }
    }
}

/// behaviour §6.2.3: no process listens in the guest.
#[test]
fn a_connection_that_the_guest_refuses_is_reset() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000"]);
    for host in HOST {
        // The connection is accepted before the guest's answer (behaviour §6.2.1), so the error may come early or late.
        let error = net.peer.connect((host, 7000)).and_then(|mut c| c.read(&mut [0; 1])).unwrap_err().kind();
        assert!([ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused].contains(&error), "{error}");
    }
}

/// behaviour §6.2.1, §6.5: a client sends and closes before the server has accepted.
#[test]
fn data_and_end_before_the_accept_arrive() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7001"]);
    for (peer, host) in PEER.into_iter().zip(HOST) {
        let outbound = net.peer.listen((peer, 7000));
        let inbound = net.guest.listen((any(host), 7001));
        for round in 0..20 {
            send(net.guest.connect((peer, 7000)).unwrap(), round, 5000);
            receive_all(accept(&outbound).0, round, 5000);
            send(net.peer.connect((host, 7001)).unwrap(), round, 5000);
            receive_all(accept(&inbound).0, round, 5000);
        }
    }
}

#[test]
fn a_thousand_connections_work_at_once() {
    const COUNT: usize = 1000;
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7001"]);
    let [peer, _] = PEER;
    let [_, host] = HOST;
    let outbound = net.peer.listen((peer, 7000));
    let inbound = net.guest.listen((any(host), 7001));
    // All connections are started before any is accepted. Half of them go in each direction.
    let clients: Vec<TcpStream> = (0..COUNT)
        .map(|i| match i % 2 {
            0 => net.guest.start_connect((peer, 7000)),
            _ => net.peer.start_connect((host, 7001)),
        })
        .collect();
    let mut servers = Vec::new();
    for i in 0..COUNT {
        servers.push(accept(if i % 2 == 0 { &outbound } else { &inbound }).0);
    }
    for (i, client) in clients.iter().enumerate() {
        wait_until("a connection", || client.peer_addr().is_ok());
        client.set_nonblocking(false).unwrap();
        (&mut &*client).write_all(&(i as u64).to_be_bytes()).unwrap();
    }
    // All connections are open at the same time. Each carries its own number in both directions.
    let mut seen = vec![false; COUNT];
    for server in &mut servers {
        let mut number = [0; 8];
        server.read_exact(&mut number).unwrap();
        assert!(!std::mem::replace(&mut seen[u64::from_be_bytes(number) as usize], true));
        server.write_all(&number).unwrap();
    }
    for (i, mut client) in clients.iter().enumerate() {
        let mut number = [0; 8];
        client.read_exact(&mut number).unwrap();
        assert_eq!(u64::from_be_bytes(number), i as u64);
    }
    drop(servers);
    clients.iter().for_each(expect_end);
}

/// a small write is sent, although the previous write is not acknowledged. Here, the host gets no
/// acknowledgments, so a sender with Nagle's algorithm would wait forever.
#[test]
fn small_writes_are_not_delayed_r81() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for (peer, host) in PEER.into_iter().zip(HOST) {
        let listener = net.peer.listen((peer, 7000));
        let mut client = net.guest.connect((peer, 7000)).unwrap();
        let (mut server, _) = accept(&listener);
        exchange(&mut client, &mut server);
        client.set_nodelay(true).unwrap();
        net.peer.sh(&format!("ip route add blackhole {host}"));
        let mut buf = [0; 1];
        for byte in [b"a", b"b", b"c"] {
            client.write_all(byte).unwrap();
            server.read_exact(&mut buf).unwrap();
            assert_eq!(&buf, byte);
        }
    }
}

/// connections and datagrams fail in all possible ways.
#[test]
fn failures_leak_no_descriptors_r79() {
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&["-t", "7001", "-u", "7001"]);
    let fail = |rounds: usize| {
        for (peer, host) in PEER.into_iter().zip(HOST) {
            let closed = net.guest.udp((any(peer), 0));
            closed.connect((peer, 9)).unwrap();
            for _ in 0..rounds {
                assert!(net.guest.connect((peer, 9)).is_err());
                let _ = net.peer.connect((host, 7001)).and_then(|mut c| c.read(&mut [0; 1]));
                let _ = closed.send(b"nobody there"); // reports the error of the previous datagram
            }
        }
    };
    fail(20); // opens the descriptors that stay open
    let before = pasta.descriptors();
    fail(1000);
    // Sockets that wait for a time-out, and pools, may remain. One leaked descriptor for each failure is too many.
    wait_until("as many descriptors as before", || pasta.descriptors() <= before + 100);
}

/// The reader of one connection has stopped. Other connections continue.
#[test]
fn a_stuck_connection_does_not_block_others() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let [peer, _] = PEER;
    let listener = net.peer.listen((peer, 7000));
    let stuck = net.guest.connect((peer, 7000)).unwrap();
    let (unread, _) = accept(&listener);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stuck.set_nonblocking(true).unwrap();
            while !stop.load(Ordering::Relaxed) {
                match (&stuck).write(&[0; 65536]) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(1))
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        });
        for _ in 0..50 {
            let mut client = net.guest.connect((peer, 7000)).unwrap();
            let (mut server, _) = accept(&listener);
            exchange(&mut client, &mut server);
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(unread);
}

/// Sets the traffic class of the packets that a socket sends.
fn set_class(socket: &impl AsFd, v4: bool, class: u8) {
    match v4 {
        true => sockopt::set_ip_tos(socket, class).unwrap(),
        false => sockopt::set_ipv6_tclass(socket, class.into()).unwrap(),
    }
}

/// behaviour §6.5.6: an outbound connection has the traffic class of the SYN and of later segments. An inbound
/// connection has that of the SYN.
#[test]
fn traffic_classes_are_preserved() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7001"]);
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let v4 = host.is_ipv4();
        let listener = net.peer.listen((peer, 7000));
        keep_syn(&listener).unwrap();
        let client = net.guest.connect_by((peer, 7000), |socket| set_class(socket, v4, 0x88));
        let (mut server, _) = accept(&listener);
        assert_eq!(traffic_class_of_syn(&server).unwrap(), Some(0x88), "{peer}");
        for class in [0x48, 0xb8, 0x20] {
            set_class(&client, v4, class);
            (&client).write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
            let sockets = net.host.sh(&format!("ss -tnH --tos dport = 7000 and dst '[{peer}]'"));
            let word = if v4 { "tos" } else { "tclass" };
            assert!(sockets.contains(&format!("{word}:{class:#x}")), "{class:#x}: {sockets}");
        }

        let listener = net.guest.listen((any(host), 7001));
        keep_syn(&listener).unwrap();
        let _client = net.peer.connect_by((host, 7001), |socket| set_class(socket, v4, 0x48));
        let (server, _) = accept(&listener);
        assert_eq!(traffic_class_of_syn(&server).unwrap(), Some(0x48), "{host}");
    }
}
