//! Tests of the tap device: down and up, capture, deletion, missing offloads, MTU, and no system calls while it is
//! idle.

use crate::harness::*;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

/// the guest sets its interface down and up again.
#[test]
fn traffic_continues_after_the_interface_was_down_r53() {
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&["-t", "7001"]);
    let listener = net.peer.listen((PEER[0], 7000));
    let mut client = net.guest.connect((PEER[0], 7000)).unwrap();
    let (mut server, _) = accept(&listener);
    net.guest.sh("ip link set eth0 down");
    // Traffic to a link that is down is lost or delayed. The program does not end.
    server.write_all(b"meanwhile").unwrap();
    let _early = net.peer.connect((HOST[0], 7001)).unwrap();
    assert!(pasta.runs());
    net.guest.sh("ip link set eth0 up; ip route add default via 198.51.100.1");
    let mut got = [0; 9];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"meanwhile");
    for _ in 0..3 {
        let _client = net.guest.connect((PEER[0], 7000)).unwrap();
        accept(&listener);
    }
}

/// behaviour §9.5, R-10: after SIGTERM, the capture has all frames, and none is truncated.
#[test]
fn a_capture_has_both_directions_r10() {
    let Some(net) = Net::new() else { return };
    let file = net.path("capture.pcap");
    let pasta = net.pasta(&["--pcap", &file]);
    let guest_mac = net.guest_mac();
    for peer in PEER {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        client.send_to(b"a question to be found in the capture", (peer, 7000)).unwrap();
        let (_, from) = recv_from(&server);
        server.send_to(b"an answer to be found in the capture", from).unwrap();
        recv_from(&client);
    }
    let (guest, mut outside) = {
        let listener = net.peer.listen((PEER[0], 7000));
        let guest = net.guest.connect((PEER[0], 7000)).unwrap();
        (guest, accept(&listener).0)
    };
    outside.write_all(&payload(95, 200_000)).unwrap();
    receive(&guest, 95, 200_000);
    pasta.terminate();

    assert_eq!(net.host.sh(&format!("stat -c %a {file}")).trim(), "600");
    let mut reader = pcap_file::pcap::PcapReader::new(File::open(&file).unwrap()).unwrap();
    assert_eq!(reader.header().datalink, pcap_file::DataLink::ETHERNET);
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.unwrap();
        assert_eq!(packet.data.len(), packet.orig_len as usize);
        frames.push(packet.data.into_owned());
    }
    let from_us = |frame: &[u8]| frame[6..12] != guest_mac;
    for (ethertype, name) in [([0x08, 0x00], "IPv4"), ([0x86, 0xdd], "IPv6")] {
        let has = |text: &[u8], ours: bool| {
            frames.iter().any(|frame| {
                frame[12..14] == ethertype
                    && from_us(frame) == ours
                    && frame.windows(text.len()).any(|window| window == text)
            })
        };
        assert!(has(b"a question to be found in the capture", false), "{name}, from the guest");
        assert!(has(b"an answer to be found in the capture", true), "{name}, to the guest");
    }
    let downloaded: usize =
        frames.iter().filter(|frame| from_us(frame) && frame[23] == 6).map(Vec::len).sum();
    assert!(downloaded >= 200_000, "{downloaded} bytes of TCP to the guest");
}

/// There is no flow, and the guest sends nothing.
#[test]
fn an_idle_program_makes_no_system_call() {
    need!("strace");
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&["-t", "7001", "-u", "7001", "-T", "7001", "-U", "7001"]);
    // A flow that has ended leaves no timer.
    let listener = net.peer.listen((PEER[0], 7000));
    let client = net.guest.connect((PEER[0], 7000)).unwrap();
    let (server, _) = accept(&listener);
    drop(client);
    expect_end(server);
    expect_idle(&net, &pasta);
}

/// Exchanges bytes in both directions.
fn echo(one: &TcpStream, other: &TcpStream) {
    for (mut from, mut to) in [(one, other), (other, one)] {
        from.write_all(b"some bytes").unwrap();
        let mut got = [0; 10];
        to.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"some bytes");
    }
}

/// Connections through the interface end, and new ones are refused. Connections that bypass the link continue. The log
/// reports the deletion once. The program does not end, and does not spin.
#[test]
fn a_deleted_tap_ends_its_connections_only() {
    let Some(net) = Net::new() else { return };
    let log = net.path("pasta.log");
    let ports = ["-t", "7001,7002", "-T", "7003", "-u", "7001", "-U", "none"];
    // The option --host-lo-to-ns-lo is needed, because the guest's own address is deleted with the interface.
    let pasta = net.pasta(&[&ports[..], &["--host-lo-to-ns-lo", "--log-file", &log]].concat());
    let ([host, _], [peer, _], [loopback, _]) = (HOST, PEER, LOOPBACK);
    let outside = net.peer.listen((peer, 7000));
    let _out = net.guest.connect((peer, 7000)).unwrap();
    let out = accept(&outside).0;
    let inside = net.guest.listen((any(host), 7001));
    let inbound = net.peer.connect((host, 7001)).unwrap();
    let _guest = accept(&inside).0;
    // These connections bypass the link, in both directions.
    let (inner, outer) = (net.guest.listen((any(host), 7002)), net.host.listen((loopback, 7003)));
    let bypasses = || {
        let inbound = net.host.connect((loopback, 7002)).unwrap();
        let outbound = net.guest.connect((loopback, 7003)).unwrap();
        [(inbound, accept(&inner).0), (outbound, accept(&outer).0)]
    };
    let old = bypasses();
    old.iter().for_each(|(one, other)| echo(one, other));

    net.guest.sh("ip link del eth0");
    for mut end in [out, inbound] {
        let end = end.read(&mut [0]);
        assert!(matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{end:?}");
    }
    for _ in 0..3 {
        let mut refused = net.peer.connect((host, 7001)).unwrap();
        let end = refused.read(&mut [0]);
        assert!(matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{end:?}");
    }
    net.peer.udp((peer, 0)).send_to(b"for nobody", (host, 7001)).unwrap();
    old.iter().for_each(|(one, other)| echo(one, other));
    let new = bypasses();
    new.iter().for_each(|(one, other)| echo(one, other));
    if has_tool("strace") {
        drop((old, new));
        expect_idle(&net, &pasta);
    }
    assert!(pasta.runs());
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("does not exist any more").count(), 1, "{log}");
    pasta.terminate();
}

/// Transfers data over TCP and UDP, in both directions and over both families, and checks every byte.
fn traffic(net: &Net) {
    const LEN: u64 = 8 << 20;
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let listener = net.peer.listen((peer, 7000));
        let out = net.guest.connect((peer, 7000)).unwrap();
        let out = (out, accept(&listener).0);
        let listener = net.guest.listen((any(host), 7001));
        let inbound = net.peer.connect((host, 7001)).unwrap();
        for (client, server) in [out, (inbound, accept(&listener).0)] {
            std::thread::scope(|scope| {
                scope.spawn(|| send(&client, 1, LEN));
                scope.spawn(|| receive(&server, 1, LEN));
                scope.spawn(|| send(&server, 2, LEN));
                receive(&client, 2, LEN);
            });
        }
        let server = net.peer.udp((peer, 7002));
        let client = net.guest.udp((any(peer), 0));
        for len in [0, 1, 1000, 1472, 9000, 40_000] {
            let datagram = payload(3, len);
            client.send_to(&datagram, (peer, 7002)).unwrap();
            let (got, from) = recv_from(&server);
            assert!(got == datagram, "{len} bytes out");
            server.send_to(&datagram, from).unwrap();
            assert!(recv_from(&client).0 == datagram, "{len} bytes in");
        }
    }
    net.guest.sh(&format!("ping -n -w 60 -c 1 {} && ping -n -w 60 -c 1 {}", PEER[0], PEER[1]));
}

/// Without offloads, the program segments frames and computes checksums itself.
#[test]
fn traffic_works_without_tap_offloads() {
    let Some(net) = Net::new() else { return };
    if !net.can_lack_features() {
        return;
    }
    let log = net.path("pasta.log");
    net.pasta_lacking("tap-offloads", &["-t", "7001", "--mtu", "9000", "--debug", "--log-file", &log]);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("tap device eth0: Offloads(0x0)"), "{log}");
    traffic(&net);
}

/// Linux before 6.9 has no SO_PEEK_OFF for TCP. There, the program peeks from the start of the queue, and skips the
/// bytes that it has sent.
#[test]
fn traffic_works_without_a_peek_offset() {
    let Some(net) = Net::new() else { return };
    if !net.can_lack_features() {
        return;
    }
    let log = net.path("pasta.log");
    net.pasta_lacking("tcp-peek-offset", &["-t", "7001", "--debug", "--log-file", &log]);
    traffic(&net);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("TCP sockets have no SO_PEEK_OFF"), "{log}");
}

/// behaviour §2.2: `--mtu` sets the MTU. With 0, the kernel's default remains.
#[test]
fn mtu_sets_the_mtu_of_the_interface() {
    for (option, seen) in [("65520", "65520"), ("1500", "1500"), ("9000", "9000"), ("0", "1500")] {
        let Some(net) = Net::new() else { return };
        net.pasta(&["--mtu", option]);
        let link = net.guest.sh("ip -o link show eth0");
        assert!(link.contains(&format!(" mtu {seen} ")), "--mtu {option}: {link}");
        let listener = net.peer.listen((PEER[1], 7000));
        let client = net.guest.connect((PEER[1], 7000)).unwrap();
        let (server, _) = accept(&listener);
        send(&client, 1, 100_000);
        receive(&server, 1, 100_000);
    }
}
