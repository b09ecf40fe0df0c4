//! Tests of UDP between loopback addresses of the host and of the namespace, which bypasses the link (behaviour §7.6).

use crate::harness::*;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Sends a question and its answer. Returns the source of the question.
fn ask(client: &UdpSocket, to: impl Into<SocketAddr>, server: &UdpSocket) -> SocketAddr {
    let to = to.into();
    for round in 0..3 {
        let (question, answer) = (payload(round, 100), payload(round + 9, 1000));
        client.send_to(&question, to).unwrap();
        let (got, from) = recv_from(server);
        assert!(got == question);
        server.send_to(&answer, from).unwrap();
        let (got, source) = recv_from(client);
        assert!(got == answer);
        assert_eq!(source, to, "the answer comes from where the question went");
        if round == 2 {
            return from;
        }
    }
    unreachable!()
}

/// behaviour §5.3.6, §7.6: the guest sees its own address as source address, and the client's port.
#[test]
fn inbound_goes_to_the_guests_address() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7000:7001"]);
    for v in 0..2 {
        let server = net.guest.udp((any(HOST[v]), 7001));
        let client = net.host.udp((LOOPBACK[v], 0));
        assert_eq!(ask(&client, (LOOPBACK[v], 7000), &server), (HOST[v], port(&client)).into());
        // Two clients that are active at the same time have two ports.
        let other = net.host.udp((LOOPBACK[v], 0));
        assert_eq!(ask(&other, (LOOPBACK[v], 7000), &server), (HOST[v], port(&other)).into());
    }
    let server = net.guest.udp((any(HOST[0]), 7001));
    let client = net.host.udp((any(HOST[0]), 0));
    let other_loopback: IpAddr = "127.0.0.5".parse().unwrap();
    ask(&client, (other_loopback, 7000), &server);
}

/// behaviour §5.3.2: the destination is the same loopback address.
#[test]
fn inbound_goes_to_loopback_with_host_lo_to_ns_lo() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7000", "--host-lo-to-ns-lo"]);
    for address in ["127.0.0.1", "127.0.0.53", "::1"] {
        let address: IpAddr = address.parse().unwrap();
        let server = net.guest.udp((address, 7000));
        let client = net.host.udp((LOOPBACK[usize::from(address.is_ipv6())], 0));
        let from = ask(&client, (address, 7000), &server);
        assert_eq!(from, client.local_addr().unwrap());
    }
}

/// behaviour §5.5, R-106: the source port is the client's port, if this port is free on the host.
#[test]
fn outbound_goes_to_the_same_loopback_address_r106() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-U", "7000:7001"]);
    for address in ["127.0.0.1", "127.0.0.53", "::1"] {
        let address: IpAddr = address.parse().unwrap();
        let loopback = LOOPBACK[usize::from(address.is_ipv6())];
        let server = net.host.udp((address, 7001));
        let client = net.guest.udp((loopback, 0));
        assert_eq!(ask(&client, (address, 7000), &server), client.local_addr().unwrap());
        let client = net.guest.udp((loopback, 0));
        let _taken = net.host.udp((any(loopback), port(&client)));
        let from = ask(&client, (address, 7000), &server);
        assert_eq!(from.ip(), loopback);
        assert_ne!(from.port(), port(&client));
    }
}

/// With `--splice-only`, there is no link.
#[test]
fn splice_only_needs_no_link() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--splice-only", "--host-lo-to-ns-lo", "-u", "7000", "-U", "7001"]);
    for loopback in LOOPBACK {
        for (from, to, number) in [(&net.host, &net.guest, 7000), (&net.guest, &net.host, 7001)] {
            let server = to.udp((loopback, number));
            let client = from.udp((loopback, 0));
            assert_eq!(ask(&client, (loopback, number), &server), client.local_addr().unwrap());
        }
    }
}

/// behaviour §7.6: the datagram is not lost.
#[test]
fn inbound_from_a_busy_port_uses_another_one() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7000"]);
    for v in 0..2 {
        let server = net.guest.udp((any(HOST[v]), 7000));
        let client = net.host.udp((LOOPBACK[v], 0));
        let _taken = net.guest.udp((any(HOST[v]), port(&client)));
        let from = ask(&client, (LOOPBACK[v], 7000), &server);
        assert_eq!(from.ip(), HOST[v]);
        assert_ne!(from.port(), port(&client));
    }
}

/// behaviour §5.3.3: datagrams that do not come from loopback use the link. With `--no-splice`, all datagrams use the
/// link.
#[test]
fn other_datagrams_use_the_link() {
    for no_splice in [true, false] {
        let Some(net) = Net::new() else { return };
        net.pasta(if no_splice { &["-u", "7000", "--no-splice"] } else { &["-u", "7000"] });
        for v in 0..2 {
            let server = net.guest.udp((any(HOST[v]), 7000));
            let (from, client, to, seen) = if no_splice {
                (&net.host, LOOPBACK[v], LOOPBACK[v], GATEWAY[v])
            } else {
                (&net.peer, PEER[v], HOST[v], PEER[v])
            };
            let client = from.udp((client, 0));
            assert_eq!(ask(&client, (to, 7000), &server), (seen, port(&client)).into());
        }
    }
}

/// behaviour §7.4: an error of the guest does not end the flow.
#[test]
fn datagrams_before_the_server_starts_do_no_harm() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7000"]);
    for v in 0..2 {
        let client = net.host.udp((LOOPBACK[v], 0));
        for _ in 0..3 {
            client.send_to(b"anybody?", (LOOPBACK[v], 7000)).unwrap();
        }
        wait_until("the socket for the client", || {
            !net.guest.sh(&format!("ss -Hnu 'sport = :{}'", port(&client))).trim().is_empty()
        });
        let server = net.guest.udp((any(HOST[v]), 7000));
        client.send_to(b"now", (LOOPBACK[v], 7000)).unwrap();
        while recv_from(&server).0 != b"now" {}
    }
}

/// This applies as long as the sockets' buffers have room.
#[test]
fn bursts_arrive_completely_and_in_order() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7000"]);
    for v in 0..2 {
        let server = net.guest.udp((any(HOST[v]), 7000));
        let client = net.host.udp((LOOPBACK[v], 0));
        for burst in 0..50u16 {
            let number = |i: u16| (burst * 64 + i).to_be_bytes();
            (0..64).for_each(|i| assert_eq!(client.send_to(&number(i), (LOOPBACK[v], 7000)).unwrap(), 2));
            let mut source = None;
            for i in 0..64 {
                let (data, from) = recv_from(&server);
                assert_eq!(data, number(i), "burst {burst}");
                source = Some(from);
            }
            let source = source.unwrap();
            (0..64).for_each(|i| assert_eq!(server.send_to(&number(i), source).unwrap(), 2));
            (0..64).for_each(|i| assert_eq!(recv_from(&client).0, number(i), "burst {burst}, back"));
        }
        for len in [0, 1, 1472, 9000, 65487] {
            let data = payload(len as u64, len);
            client.send_to(&data, (LOOPBACK[v], 7000)).unwrap();
            let (got, source) = recv_from(&server);
            assert!(got == data, "{len} bytes");
            server.send_to(&data, source).unwrap();
            assert!(recv_from(&client).0 == data, "{len} bytes back");
        }
    }
}
