//! Tests of UDP through the tap device (behaviour §7), with the mapping of RFC 4787: one host socket for each guest
//! endpoint.

use crate::harness::*;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use sys::address::RawAddress;
use sys::cmsg::{Control, ReceiveInfo, SendInfo};
use sys::mmsg;
use sys::sockopt::{self, IpVersion, Metadata};

/// Sends `data` from one socket to an address, and receives it on another socket. Returns its source.
pub(crate) fn deliver(
    from: &UdpSocket,
    to: impl Into<SocketAddr>,
    at: &UdpSocket,
    data: &[u8],
) -> SocketAddr {
    from.send_to(data, to.into()).unwrap();
    let (got, source) = recv_from(at);
    assert!(got == data, "{} bytes sent, other {} bytes received", data.len(), got.len());
    source
}

#[test]
fn the_guest_can_exchange_datagrams_with_the_peer() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for (ns, to) in
        [(&net.peer, PEER), (&net.far, FAR)].into_iter().flat_map(|(ns, tos)| tos.map(|to| (ns, to)))
    {
        let server = ns.udp((to, 7000));
        let client = net.guest.udp((any(to), 0));
        for round in 0..3 {
            let source = deliver(&client, (to, 7000), &server, &payload(round, 100));
            // behaviour §5.2: the source is the host's own address and the guest's source port.
            assert_eq!(source, (HOST[usize::from(to.is_ipv6())], port(&client)).into());
            assert_eq!(deliver(&server, source, &client, &payload(round + 9, 1000)), (to, 7000).into());
        }
    }
}

#[test]
fn the_peer_can_exchange_datagrams_with_the_guest() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7000"]);
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let server = net.guest.udp((any(host), 7000));
        // Two clients ask at once. Each must get its own answer.
        let clients = [net.peer.udp((peer, 0)), net.peer.udp((peer, 0))];
        for round in 0..3 {
            for client in &clients {
                let source = deliver(client, (host, 7000), &server, &payload(round, 100));
                assert_eq!(source, (peer, port(client)).into(), "behaviour §5.3.4");
                let answer = deliver(&server, source, client, &payload(round + 9, 1000));
                assert_eq!(answer, (host, 7000).into());
            }
        }
    }
}

/// As in TFTP, the exchange continues with the other port.
#[test]
fn an_answer_from_another_port_arrives() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for peer in PEER {
        let well_known = net.peer.udp((peer, 69));
        let session = net.peer.udp((peer, 0));
        let client = net.guest.udp((any(peer), 0));
        let source = deliver(&client, (peer, 69), &well_known, b"read request");
        let answer = deliver(&session, source, &client, b"first block");
        assert_eq!(answer, (peer, port(&session)).into());
        assert_eq!(deliver(&client, answer, &session, b"acknowledgement"), source);
        deliver(&session, source, &client, b"second block");
    }
}

/// RFC 4787: the mapping is endpoint-independent, and so is the filtering.
#[test]
fn an_answer_from_another_address_arrives() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for v in 0..2 {
        let known = net.peer.udp((PEER[v], 7000));
        let other = net.peer.udp((PEER_ALIAS[v], 7001));
        let stranger = net.far.udp((FAR[v], 7002));
        let client = net.guest.udp((any(PEER[v]), 0));
        let mapped = deliver(&client, (PEER[v], 7000), &known, b"hello");
        assert_eq!(deliver(&other, mapped, &client, b"from elsewhere"), (PEER_ALIAS[v], 7001).into());
        assert_eq!(deliver(&stranger, mapped, &client, b"from afar"), (FAR[v], 7002).into());
        assert_eq!(deliver(&client, (FAR[v], 7002), &stranger, b"same mapping"), mapped);
        assert_eq!(deliver(&client, (PEER_ALIAS[v], 7001), &other, b"same mapping"), mapped);
    }
}

/// Checks datagrams in both directions, from empty ones to the maximum length within the guest's MTU.
fn assert_sizes(mtu: u32) {
    let Some(net) = Net::with_mtu(mtu) else { return };
    net.pasta(&["--mtu", &mtu.to_string()]);
    for peer in PEER {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        let largest = mtu as usize - if peer.is_ipv4() { 28 } else { 48 };
        for len in [0, 1, 17, 1000, largest - 1, largest] {
            let source = deliver(&client, (peer, 7000), &server, &payload(len as u64, len));
            deliver(&server, source, &client, &payload(!len as u64, len));
        }
    }
}

#[test]
fn datagrams_up_to_the_mtu_arrive_mtu_65520() {
    assert_sizes(65520);
}

#[test]
fn datagrams_up_to_the_mtu_arrive_mtu_1500() {
    assert_sizes(1500);
}

/// The host reassembles datagrams of the peer. Datagrams of the guest are refused until the guest's kernel has learned
/// the MTU (behaviour §7.3).
#[test]
fn datagrams_above_the_outside_mtu_arrive() {
    let Some(net) = Net::with_mtu(1500) else { return };
    net.pasta(&[]);
    for peer in PEER {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        let source = deliver(&client, (peer, 7000), &server, b"question");
        for len in [1473, 9000, 60000] {
            deliver(&server, source, &client, &payload(2, len));
        }
        server.set_nonblocking(true).unwrap();
        wait_until("a large datagram", || {
            client.send_to(&payload(3, 60_000), (peer, 7000)).unwrap();
            server.recv_from(&mut [0; 65_535]).is_ok_and(|(len, _)| len == 60_000)
        });
        server.set_nonblocking(false).unwrap();
        // Datagrams of earlier attempts are skipped.
        client.send_to(b"last", (peer, 7000)).unwrap();
        while recv_from(&server).0 != b"last" {}
        for len in [1473, 9000, 60000] {
            deliver(&client, (peer, 7000), &server, &payload(1, len));
        }
    }
}

/// This applies to both directions, as long as the buffers have room.
#[test]
fn bursts_arrive_completely_and_in_order() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7001"]);
    for (peer, host) in PEER.into_iter().zip(HOST) {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        client.connect((peer, 7000)).unwrap();
        // The neighbours' addresses are resolved first, since kernels may reorder datagrams that wait for address
        // resolution.
        deliver(&server, deliver(&client, (peer, 7000), &server, b"there"), &client, b"and back");
        for burst in 0..50u16 {
            let number = |i: u16| (burst * 64 + i).to_be_bytes();
            (0..64).for_each(|i| assert_eq!(client.send(&number(i)).unwrap(), 2));
            let mut source = None;
            for i in 0..64 {
                let (data, from) = recv_from(&server);
                assert_eq!(data, number(i), "burst {burst}, out");
                source = Some(from);
            }
            (0..64).for_each(|i| assert_eq!(server.send_to(&number(i), source.unwrap()).unwrap(), 2));
            (0..64).for_each(|i| assert_eq!(recv_from(&client).0, number(i), "burst {burst}, back"));
        }
        drop(client);
        // the same applies to the first datagrams of a flow that the peer begins.
        for burst in 0..20u16 {
            let server = net.guest.udp((any(host), 7001));
            let client = net.peer.udp((peer, 0));
            let number = |i: u16| (burst * 64 + i).to_be_bytes();
            (0..64).for_each(|i| assert_eq!(client.send_to(&number(i), (host, 7001)).unwrap(), 2));
            (0..64).for_each(|i| {
                assert_eq!(recv_from(&server), (number(i).to_vec(), client.local_addr().unwrap()))
            });
        }
    }
}

/// behaviour §7.4, R-94: the guest's socket gets the error.
#[test]
fn a_port_unreachable_error_reaches_the_guest_r94() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    for to in PEER.into_iter().chain(FAR) {
        let client = net.guest.udp((any(to), 0));
        client.connect((to, 9)).unwrap();
        client.send(b"nobody there").unwrap();
        let error = client.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
        // The mapping still works for other destinations.
        let server = net.peer.udp((PEER[usize::from(to.is_ipv6())], 7000));
        client.connect(server.local_addr().unwrap()).unwrap();
        client.send(b"somebody there").unwrap();
        assert_eq!(recv_from(&server).0, b"somebody there");
    }
}

/// behaviour §7.4: an error of the guest does not end the flow.
#[test]
fn a_service_that_starts_late_is_reachable() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7000"]);
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let client = net.peer.udp((peer, 0));
        client.send_to(b"too early", (host, 7000)).unwrap();
        let server = net.guest.udp((any(host), 7000));
        client.send_to(b"in time", (host, 7000)).unwrap();
        // The first datagram may have been delayed.
        while recv_from(&server).0 != b"in time" {}
    }
}

/// Sends a datagram without blocking. `info` applies only to this datagram.
fn send_with(from: &UdpSocket, to: SocketAddr, data: &[u8], info: &SendInfo) {
    let control = Control::to_send(info, to.is_ipv4());
    mmsg::send(from, &RawAddress::new(to, false), &[data.into()], &control).unwrap();
}

/// Receives the next datagram, and checks that it is `data`. Returns its source and metadata.
fn info_of(at: &UdpSocket, data: &[u8]) -> (SocketAddr, ReceiveInfo) {
    let mut buf = [0; 2048];
    at.peek(&mut buf).unwrap_or_else(|e| panic!("no datagram: {e}"));
    let arrival = mmsg::receive(at, (&mut buf[..]).into()).unwrap();
    assert_eq!(&buf[..arrival.len], data);
    (arrival.address.unwrap(), arrival.info)
}

/// behaviour §7.3: like QUIC implementations, the sender sends many datagrams in one system call (UDP_SEGMENT). The
/// last datagram is shorter.
fn assert_segmented_sends_arrive(mtu: u32) {
    let Some(net) = Net::with_mtu(mtu) else { return };
    net.pasta(&["--mtu", &mtu.to_string()]);
    for peer in PEER {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        let info = SendInfo { segment_size: Some(1200), ..SendInfo::default() };
        let mut source = deliver(&client, (peer, 7000), &server, b"hello");
        for round in 0..20 {
            let data = payload(round, 30 * 1200 + 500);
            send_with(&client, (peer, 7000).into(), &data, &info);
            for chunk in data.chunks(1200) {
                let (got, from) = recv_from(&server);
                assert!(got == chunk, "{} bytes, not {}", got.len(), chunk.len());
                source = from;
            }
            send_with(&server, source, &data, &info);
            for chunk in data.chunks(1200) {
                let (got, from) = recv_from(&client);
                assert!(got == chunk && from == (peer, 7000).into(), "{} bytes from {from}", got.len());
            }
        }
    }
}

#[test]
fn segmented_sends_arrive_as_datagrams_mtu_65520() {
    assert_segmented_sends_arrive(65520);
}

#[test]
fn segmented_sends_arrive_as_datagrams_mtu_1500() {
    assert_segmented_sends_arrive(1500);
}

/// behaviour §7.3, Q21: in both directions, the receiver sees the sender's time to live, DSCP and ECN.
#[test]
fn hop_limit_and_traffic_class_are_preserved_q21() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "7001"]);
    let requested = Metadata::HOP_LIMIT | Metadata::TRAFFIC_CLASS;
    for (peer, host) in PEER.into_iter().zip(HOST) {
        let version = if peer.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
        let (server, service) = (net.peer.udp((peer, 7000)), net.guest.udp((any(host), 7001)));
        let (client, caller) = (net.guest.udp((any(peer), 0)), net.peer.udp((peer, 0)));
        for socket in [&server, &service, &client, &caller] {
            sockopt::request_metadata(socket, version, requested).unwrap();
        }
        let conversations =
            [(&client, (peer, 7000).into(), &server), (&caller, (host, 7001).into(), &service)];
        for (asking, to, answering) in conversations {
            for (hop_limit, traffic_class) in [(9, 0xb8), (64, 0), (33, 0x03), (200, 0x2a)] {
                let sent = SendInfo {
                    hop_limit: Some(hop_limit),
                    traffic_class: Some(traffic_class),
                    ..SendInfo::default()
                };
                let check = |got: ReceiveInfo| {
                    assert_eq!((got.hop_limit, got.traffic_class), (Some(hop_limit), Some(traffic_class)));
                };
                send_with(asking, to, b"question", &sent);
                let (from, got) = info_of(answering, b"question");
                check(got);
                send_with(answering, from, b"answer", &sent);
                check(info_of(asking, b"answer").1);
            }
        }
    }
}

/// the host has several addresses.
#[test]
fn a_reply_comes_from_the_address_asked_r93() {
    let Some(net) = Net::with(Options { host_setup: ALIASES, ..Options::default() }) else { return };
    net.pasta(&[&PINNED[..], &["-u", "7000"]].concat());
    for v in 0..2 {
        let server = net.guest.udp((any(HOST[v]), 7000));
        for host in [HOST_ALIAS[v], HOST[v], HOST_ALIAS[v]] {
            let client = net.peer.udp((PEER[v], 0));
            let source = deliver(&client, (host, 7000), &server, b"question");
            assert_eq!(deliver(&server, source, &client, b"answer"), (host, 7000).into());
        }
    }
}

/// this also applies if the target port of the rule is another port.
#[test]
fn a_reply_comes_from_the_port_asked_r97() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-u", "15000:53"]);
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let server = net.guest.udp((any(host), 53));
        let client = net.peer.udp((peer, 0));
        let source = deliver(&client, (host, 15000), &server, b"question");
        assert_eq!(source, (peer, port(&client)).into());
        assert_eq!(deliver(&server, source, &client, b"answer"), (host, 15000).into());
    }
}

/// If the guest sends first from a published port, the host sends its datagrams from the rule's port. If the rule has
/// an address, it is the source address, in spite of `--outbound`.
#[test]
fn datagrams_of_a_service_leave_from_its_published_port() {
    let Some(net) = Net::with(Options { host_setup: ALIASES, ..Options::default() }) else { return };
    let rules = ["-u", "15000:53", "-u", "192.0.2.22/15001:54", "-u", "[2001:db8:9::16]/15001:54"];
    net.pasta(
        &[&PINNED[..], &["--outbound", "198.51.100.2", "--outbound", "2001:db8:1::2"], &rules].concat(),
    );
    for v in 0..2 {
        for (inside, published) in [(53, (HOST[v], 15000)), (54, (HOST_ALIAS[v], 15001))] {
            let (server, peer) = (net.guest.udp((any(HOST[v]), inside)), net.peer.udp((PEER[v], 7000)));
            let source = deliver(&server, (PEER[v], 7000), &peer, b"keepalive");
            assert_eq!(source, published.into());
            assert_eq!(deliver(&peer, source, &server, b"answer"), (PEER[v], 7000).into());
        }
    }
}

/// the host gets the rule's address after the start.
#[test]
fn a_rule_with_freebind_works_once_the_address_exists_r98() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--freebind", "-u", "192.0.2.22/7000", "-u", "[2001:db8:9::16]/7000"]);
    net.host.sh(ALIASES);
    for v in 0..2 {
        let server = net.guest.udp((any(HOST[v]), 7000));
        let client = net.peer.udp((PEER[v], 0));
        let source = deliver(&client, (HOST_ALIAS[v], 7000), &server, b"question");
        assert_eq!(deliver(&server, source, &client, b"answer"), (HOST_ALIAS[v], 7000).into());
    }
}

/// Q8: two flows of one guest port reach the same server at different addresses. The source of each answer is the
/// address to which the guest wrote.
#[test]
fn one_guest_port_can_use_two_addresses_of_a_server_q8() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--dns-forward", "198.51.100.99", "--dns-host", "198.51.100.3"]);
    let server = net.peer.udp((PEER[0], 53));
    let client = net.guest.udp((any(PEER[0]), 0));
    for _ in 0..3 {
        let direct = deliver(&client, (PEER[0], 53), &server, b"direct");
        let translated = deliver(&client, (MAPPED[0], 53), &server, b"translated");
        assert_eq!(deliver(&server, translated, &client, b"translated"), (MAPPED[0], 53).into());
        assert_eq!(deliver(&server, direct, &client, b"direct"), (PEER[0], 53).into());
    }
}

/// Q10: broadcasts are sent, and the answers arrive.
#[test]
fn broadcasts_leave_the_host_q10() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let server = net.peer.udp((any(PEER[0]), 7000));
    let client = net.guest.udp((any(PEER[0]), 0));
    client.set_broadcast(true).unwrap();
    let to: IpAddr = "198.51.100.255".parse().unwrap();
    let source = deliver(&client, (to, 7000), &server, b"anybody there?");
    let answer = deliver(&server, source, &client, b"here");
    assert_eq!(answer.port(), 7000);
}

/// R-91, behaviour §5.6: answers are unicast.
#[test]
fn multicast_leaves_the_host_and_is_answered_r91() {
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let server = net.peer.udp((any(PEER[0]), 1900));
    let (group, interface) = ("239.255.255.250".parse().unwrap(), "198.51.100.3".parse().unwrap());
    server.join_multicast_v4(&group, &interface).unwrap();
    let client = net.guest.udp((any(PEER[0]), 0));
    let source = deliver(&client, (IpAddr::from(group), 1900), &server, b"M-SEARCH");
    assert_eq!(deliver(&server, source, &client, b"here"), (GATEWAY[0], 1900).into());
}

/// Q7: if the program has no right to bind the port, it uses another port and logs a warning.
#[test]
fn a_privileged_source_port_is_replaced_if_necessary_q7() {
    need!("socat");
    let Some(net) = Net::with(Options { user: User::Ordinary, ..Options::default() }) else { return };
    let server = net.peer.udp((PEER[0], 7000));
    let client = "echo question | socat -t 60 - UDP4:198.51.100.3:7000,sourceport=500";
    let log = net.path("pasta.log");
    let mut guest = net.start_pasta(&["--config-net", "--log-file", &log, "--", "sh", "-c", client]);
    let (question, from) = recv_from(&server);
    assert_eq!(question, b"question\n");
    // The warning explains why IKE may fail.
    let warning = "from its port 500 (IKE) leaves from another port of the host";
    wait_until("the warning", || std::fs::read_to_string(&log).unwrap().contains(warning));
    server.send_to(b"answer", from).unwrap();
    guest.wait_for("answer");
}
