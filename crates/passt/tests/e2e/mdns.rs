//! Tests of multicast DNS of the guest (RFC 6762), while a daemon on the host uses the same port.

use crate::harness::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

const PORT: u16 = 5353;
const GROUP4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const RESPONSE: &[u8] = b"\0\0\x84\0\0\0\0\x01\0\0\0\0response";
const QUESTION: &[u8] = b"\0\0\0\0\0\x01\0\0\0\0\0\0question";

/// A member of the group at the address `own`, like an mDNS daemon.
fn daemon(ns: &Ns, own: IpAddr) -> UdpSocket {
    let socket = ns.udp_shared((any(own), PORT));
    match own {
        IpAddr::V4(own) => socket.join_multicast_v4(&GROUP4, &own),
        IpAddr::V6(_) => socket.join_multicast_v6(&GROUP6, ns.ifindex("eth0")),
    }
    .unwrap();
    socket
}

fn group(ns: &Ns, like: IpAddr) -> SocketAddr {
    if like.is_ipv6() {
        SocketAddrV6::new(GROUP6, PORT, 0, ns.ifindex("eth0")).into()
    } else {
        (GROUP4, PORT).into()
    }
}

/// RFC 6762 §6: queriers ignore responses from ports other than 5353. The daemon on the host still receives all
/// datagrams that are sent to the daemon.
#[test]
fn mdns_responses_of_the_guest_keep_their_source_port() {
    let Some(net) = Net::new() else { return };
    net.peer.sh("ip route add 224.0.0.0/4 dev eth0");
    net.pasta(&[]);
    for (at_host, at_peer) in HOST.into_iter().zip(PEER) {
        let (host, peer) = (daemon(&net.host, at_host), daemon(&net.peer, at_peer));
        let guest = net.guest.udp((any(at_host), PORT));
        let to = group(&net.guest, at_peer);
        for _ in 0..2 {
            guest.send_to(RESPONSE, to).unwrap();
            for hears in [&peer, &host] {
                let (payload, from) = recv_from(hears);
                assert_eq!((payload.as_slice(), from.port()), (RESPONSE, PORT), "{from}");
            }
        }
        // RFC 6762 §6.7: a query from another port gets a unicast response.
        guest.send_to(QUESTION, to).unwrap();
        let (payload, asks) = recv_from(&peer);
        assert_eq!(payload, QUESTION);
        assert_ne!(asks.port(), PORT);
        recv_from(&host);
        peer.send_to(RESPONSE, asks).unwrap();
        assert_eq!(recv_from(&guest).0, RESPONSE);
        // The daemon gets unicast datagrams, and the datagrams that others send to the group.
        let client = net.peer.udp((at_peer, 0));
        client.send_to(b"to the daemon", (at_host, PORT)).unwrap();
        assert_eq!(recv_from(&host).0, b"to the daemon");
        peer.send_to(b"to all", group(&net.peer, at_peer)).unwrap();
        assert_eq!(recv_from(&host).0, b"to all");
        // The guest got none of these datagrams, so this datagram is the next one.
        peer.send_to(b"last", asks).unwrap();
        assert_eq!(recv_from(&guest).0, b"last");
    }
}
