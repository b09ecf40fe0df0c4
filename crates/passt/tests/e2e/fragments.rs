//! Tests of datagrams above the guest's MTU (behaviour §4.7).

use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpControl};

use crate::harness::*;
use crate::udp::deliver;
use crate::vhost_user;

/// Checks datagrams from the guest: at its MTU, just above its MTU, and up to the maximum length.
fn assert_datagrams_from_guest_arrive(net: &Net, mtu: usize) {
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        let (fits, largest) = if peer.is_ipv4() { (mtu - 28, 65_507) } else { (mtu - 48, 65_487) };
        for len in [fits, fits + 1, fits + 9, 3000, 9000, largest] {
            let source = deliver(&client, (peer, 7000), &server, &payload(len as u64, len));
            assert_eq!(source, (host, port(&client)).into());
        }
    }
}

/// Checks datagrams to the guest: at its MTU, just above its MTU, and up to the maximum length.
fn assert_datagrams_to_guest_arrive(net: &Net, mtu: usize) {
    for peer in PEER {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        let source = deliver(&client, (peer, 7000), &server, b"question");
        let (fits, largest) = if peer.is_ipv4() { (mtu - 28, 65_507) } else { (mtu - 48, 65_487) };
        for len in [fits, fits + 1, fits + 9, 3000, 9000, largest] {
            let from = deliver(&server, source, &client, &payload(len as u64, len));
            assert_eq!(from, (peer, 7000).into());
        }
    }
}

#[test]
fn fragments_are_reassembled_mtu_1500() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1500"]);
    assert_datagrams_from_guest_arrive(&net, 1500);
    assert_datagrams_to_guest_arrive(&net, 1500);
}

#[test]
fn fragments_are_reassembled_mtu_1280() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1280"]);
    assert_datagrams_from_guest_arrive(&net, 1280);
}

/// A network with a smaller MTU between the peer and `far`.
fn narrow(options: &str) -> Option<Net> {
    let net = Net::with(Options { mtu: 1500, ..Options::default() })?;
    net.far.sh("ip link set eth0 mtu 1300");
    net.peer.sh("ip link set eth1 mtu 1300");
    net.pasta(&options.split_whitespace().collect::<Vec<_>>());
    Some(net)
}

/// The MTU of the path to `to`. Like tracepath(8), the function sends datagrams that must not be fragmented.
fn path_mtu(net: &Net, to: std::net::IpAddr) -> String {
    // The first datagrams fill the guest's link.
    let script = format!(
        "import socket, time
v6 = ':' in '{to}'
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
level, discover, mtu = (41, 23, 24) if v6 else (0, 10, 14)
s.setsockopt(level, discover, 2) # IP_PMTUDISC_DO
s.connect(('{to}', 7000))
for attempt in range(600):
    if s.getsockopt(level, mtu) <= 1500: break
    try: s.send(bytes(s.getsockopt(level, mtu) - (48 if v6 else 28)))
    except OSError: pass
    time.sleep(0.1)
for attempt in range(600):
    before = s.getsockopt(level, mtu)
    if before <= 1300: break
    try: s.send(bytes(before - (48 if v6 else 28)))
    except OSError: pass
    time.sleep(0.1)
print(s.getsockopt(level, mtu))"
    );
    net.guest.run(&["python3", "-c", &script]).ok().trim().to_owned()
}

/// First the guest learns the MTU of the host's interface, then the MTU of the link beyond the router.
#[test]
fn the_guest_learns_the_path_mtu() {
    need!("python3");
    let Some(net) = narrow("") else { return };
    for far in FAR {
        assert_eq!(path_mtu(&net, far), "1300");
    }
}

/// The guest's kernel sets "don't fragment" on datagrams that fit the guest's link. Nevertheless, the first datagram
/// above the MTU of the host's interface arrives, and the guest's connected socket gets no error. Beyond that
/// interface, only IPv4 routers fragment.
#[test]
fn datagrams_above_the_path_mtu_arrive_r117() {
    let Some(net) = narrow("--mtu 65520") else { return };
    for (server_space, to) in [(&net.peer, PEER[0]), (&net.peer, PEER[1]), (&net.far, FAR[0])] {
        let server = server_space.udp((to, 7000));
        let client = net.guest.udp((any(to), 0));
        client.connect((to, 7000)).unwrap();
        for len in [1501, 4000, 60_000] {
            let data = payload(len as u64, len);
            client.send(&data).unwrap();
            let mut buffer = vec![0; 65_536];
            let (received, from) = server.recv_from(&mut buffer).unwrap();
            assert!(buffer[..received] == data);
            server.send_to(b"answer", from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 6);
        }
    }
}

/// Requests without "don't fragment" are fragmented. For requests with "don't fragment", the guest gets an error with
/// the MTU.
#[test]
fn echo_requests_above_the_path_mtu_are_fragmented_or_refused() {
    need!("ping");
    let Some(net) = narrow("") else { return };
    net.guest.sh("ping -n -w 60 -c 1 -M dont -s 3000 203.0.113.2");
    let refused =
        net.guest.run(&["ping", "-n", "-w", "2", "-c", "2", "-M", "do", "-s", "1400", "203.0.113.2"]);
    let all = refused.stdout + &refused.stderr;
    assert!(all.contains("mtu") && all.contains("1300"), "{all}");
}

/// The guest replies to a datagram that a rule forwarded to it.
#[test]
fn fragments_of_a_reply_are_reassembled() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1500", "-u", "7001"]);
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let server = net.guest.udp((any(host), 7001));
        let client = net.peer.udp((peer, 0));
        let source = deliver(&client, (host, 7001), &server, b"question");
        assert_eq!(deliver(&server, source, &client, &payload(1, 20_000)), (host, 7001).into());
    }
}

#[test]
fn fragments_by_the_stream_socket_are_reassembled() {
    let Some(net) = Net::new() else { return };
    let path = net.path("guest.socket");
    let _passt = net.passt(&["--socket", &path, "--mtu", "1500"]);
    let _machine = net.machine(1500).plug(std::os::unix::net::UnixStream::connect(path).unwrap());
    assert_datagrams_from_guest_arrive(&net, 1500);
    assert_datagrams_to_guest_arrive(&net, 1500);
}

/// Requests and replies are longer than the guest's MTU.
#[test]
fn large_echo_requests_are_answered() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1500"]);
    for to in PEER {
        net.guest.sh(&format!("ping -n -w 60 -c 2 -i 0.1 -s 3000 {to}"));
    }
}

/// A guest's kernel does not fragment TCP segments, but a router in the guest's network may.
#[test]
fn a_tcp_segment_in_fragments_is_reassembled() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1500"]);
    let listener = net.peer.listen((PEER[0], 7000));
    let raw = Raw::open(&net);
    let segment = |control, seq, ack| Segment {
        src_port: 40_000,
        dst_port: 7000,
        control,
        seq,
        ack,
        payload: Vec::new(),
    };
    let send = |segment, room| {
        let frame = raw.tcp_frame(PEER[0], &segment, 0);
        fragments_of(&frame, room).iter().for_each(|fragment| raw.send(fragment));
    };
    send(segment(TcpControl::Syn, 1, None), 8);
    let answer = raw.expect_tcp("SYN,ACK", |segment| segment.control == TcpControl::Syn);
    send(segment(TcpControl::None, 2, Some(answer.seq + 1)), 16);
    assert_eq!(accept(&listener).1.ip(), HOST[0]);
}

/// The reply to a fragmented request is fragmented, too.
#[test]
fn fragments_by_vhost_user_are_reassembled() {
    let Some(net) = Net::new() else { return };
    let (_daemon, path) = vhost_user::passt(&net, &["--mtu", "1500"]);
    let mut front_end = FrontEnd::new(&path, DriverConfig::default());
    let payload = vec![0x5a; 3000];
    for fragment in fragments_of(&vhost_user::echo_request(vhost_user::PEER4, &payload), 1480) {
        assert!(front_end.queues[1].send([0; HEADER], &fragment));
    }
    let mut reply = Vec::new();
    vhost_user::expect(&mut front_end, "the last fragment", |frame| {
        let Ok(ip) = Ipv4Packet::new_checked(&frame.bytes[14..]) else { return false };
        let of_reply = ip.next_header() == IpProtocol::Icmp && usize::from(ip.frag_offset()) == reply.len();
        if of_reply {
            assert!(ip.total_len() <= 1500 && !ip.dont_frag(), "{ip}");
            reply.extend_from_slice(ip.payload());
        }
        of_reply && !ip.more_frags()
    });
    let message = Icmpv4Packet::new_checked(&reply[..]).unwrap();
    let parsed = Icmpv4Repr::parse(&message, &Default::default()).unwrap();
    assert_eq!(parsed, Icmpv4Repr::EchoReply { ident: 7, seq_no: 1, data: &payload });
}

/// No frame to a guest is longer than its MTU.
#[test]
fn frames_to_the_guest_keep_to_its_mtu() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1280"]);
    let raw = Raw::open(&net);
    for peer in PEER {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        let source = deliver(&client, (peer, 7000), &server, b"question");
        deliver(&server, source, &client, &payload(1, 5000));
        let from = |frame: &[u8]| match IpVersion::of_packet(frame.get(14..)?).ok()? {
            IpVersion::Ipv4 => Some(Ipv4Packet::new_checked(&frame[14..]).ok()?.src_addr().into()),
            IpVersion::Ipv6 => Some(Ipv6Packet::new_checked(&frame[14..]).ok()?.src_addr().into()),
        };
        for _ in 0..4 {
            let len = raw.expect("a fragment", |frame| (from(frame) == Some(peer)).then_some(frame.len()));
            assert!(len <= 14 + 1280, "{len} bytes");
        }
    }
}
