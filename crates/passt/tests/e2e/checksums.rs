//! Tests of the checksums of frames from the guest. They are verified if the link does not guarantee them, and
//! completed if the guest's kernel left them partial, even inside a tunnel (behaviour §4, §7.2).

use crate::harness::*;
use crate::limits::count;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Instant;
use wire::ethernet::Mac;
use wire::frame::{Body, Outgoing, Packet, Transport, parse};
use wire::offload::{Offload, PartialChecksum, SegmentKind, Segmentation};
use wire::segment::complete_checksum;
use wire::tcp::{self, Flags, Seq};
use wire::{udp, verify};

const GUEST_PORT: u16 = 4000;
const PORT: u16 = 7000;
const VXLAN_PORT: u16 = 4789;
/// Length of VXLAN's own header.
const VXLAN: usize = 8;

/// A packet of the guest to the peer.
fn outgoing(v: usize) -> Outgoing {
    Outgoing {
        source_mac: Mac(GUEST_MAC),
        destination_mac: Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]),
        source: HOST[v],
        destination: PEER[v],
        hop_limit: 64,
        traffic_class: 0,
        flow_label: 0,
    }
}

/// A datagram with a partial checksum.
fn datagram(outgoing: &Outgoing, port: u16, payload: &[u8]) -> (Vec<u8>, Offload) {
    let start = outgoing.headroom(udp::HEADER_LEN);
    let mut frame = vec![0; start + payload.len()];
    frame[start..].copy_from_slice(payload);
    let written = outgoing.udp(&mut frame, (GUEST_PORT, port), payload.len(), None).unwrap();
    (frame, written.offload)
}

/// A segment with a complete checksum.
fn segment(flags: Flags, seq: Seq, ack: Seq, payload: &[u8]) -> Vec<u8> {
    let outgoing = outgoing(0);
    let start = outgoing.headroom(tcp::HEADER_LEN);
    let mut frame = vec![0; start + payload.len()];
    frame[start..].copy_from_slice(payload);
    let header = tcp::Header::new((GUEST_PORT, PORT), seq, ack, flags, 65_535, 0);
    let written = outgoing.tcp(&mut frame, header, &[], payload.len(), None).unwrap();
    complete((frame, written.offload))
}

fn complete((mut frame, offload): (Vec<u8>, Offload)) -> Vec<u8> {
    assert!(complete_checksum(&mut frame, &offload));
    frame
}

fn packet(frame: &[u8]) -> Option<Packet<'_>> {
    match parse(frame).ok()?.body {
        Body::Ip(packet) => Some(packet),
        Body::Arp(_) => None,
    }
}

/// A `passt` in the foreground that prints its counters.
fn counting(net: &Net, args: &[&str]) -> Running {
    let (path, pid) = (net.path("guest.socket"), net.path("passt.pid"));
    let own = [&passt_path()[..], "-f", "--stats", "1", "--pid", &pid, "--socket", &path];
    let passt = net.host.start(&[&own[..], args].concat());
    wait_until("the PID file", || std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));
    passt
}

fn expect_count(passt: &mut Running, name: &str, wanted: u64) {
    let mut counted = 0;
    wait_until("the counts", || {
        counted = count(passt, name);
        counted >= wanted
    });
    assert_eq!(counted, wanted, "{name}");
}

/// A client of the stream socket, frame by frame.
struct Client {
    socket: UnixStream,
    stream: Vec<u8>,
}

impl Client {
    fn new(net: &Net) -> Self {
        let socket = UnixStream::connect(net.path("guest.socket")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, stream: Vec::new() }
    }

    /// Sends all frames with one write.
    fn send(&mut self, frames: &[&[u8]]) {
        let prefixed =
            frames.iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat());
        self.socket.write_all(&prefixed.collect::<Vec<_>>()).unwrap();
    }

    /// Waits for a SYN,ACK. Returns its sequence number.
    fn expect_answer(&mut self) -> Seq {
        loop {
            while let Some(frame) = next_frame(&self.stream).map(<[u8]>::to_vec) {
                self.stream.drain(..4 + frame.len());
                if let Some(Transport::Tcp(segment)) = packet(&frame).map(|packet| packet.transport)
                    && segment.flags().contains(Flags::SYN | Flags::ACK)
                {
                    return segment.seq();
                }
            }
            let mut chunk = [0; 4096];
            let len = self.socket.read(&mut chunk).unwrap();
            assert!(len > 0, "closed");
            self.stream.extend_from_slice(&chunk[..len]);
        }
    }
}

fn expect(stream: &mut TcpStream, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(wanted));
}

/// The stream socket carries no checksum offload, so passt verifies each frame before it joins segments.
#[test]
fn wrong_checksums_are_dropped_and_counted() {
    let Some(net) = Net::new() else { return };
    let start = Instant::now();
    let mut passt = counting(&net, &[]);
    let mut client = Client::new(&net);
    let mut dropped = 0;
    for (v, peer) in PEER.into_iter().enumerate() {
        let server = net.peer.udp((peer, PORT));
        let good = complete(datagram(&outgoing(v), PORT, b"question"));
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        client.send(&[&bad, &good]);
        assert_eq!(recv_from(&server).0, b"question");
        dropped += 1;
    }
    // A datagram without a checksum is valid over IPv4 and in tunnels (RFC 6935).
    for (v, port, right) in [(0, PORT, true), (1, VXLAN_PORT, true), (1, PORT, false)] {
        let mut none = datagram(&outgoing(v), port, b"none").0;
        let at = outgoing(v).network_len() + usize::from(udp::CHECKSUM_OFFSET);
        none[at..at + 2].fill(0);
        let good = complete(datagram(&outgoing(v), port, b"one"));
        let server = net.peer.udp((PEER[v], port));
        client.send(&[&none, &good]);
        assert_eq!(recv_from(&server).0, if right { &b"none"[..] } else { b"one" });
        dropped += u64::from(!right);
    }

    let listener = net.peer.listen((PEER[0], PORT));
    let iss = Seq(1000);
    let syn = segment(Flags::SYN, iss, Seq(0), b"");
    let mut bad = syn.clone();
    bad[39] ^= 1; // the sequence number
    client.send(&[&bad, &syn]);
    let ack = client.expect_answer() + 1;
    let (mut server, _) = accept(&listener);
    // Consecutive segments arrive in one read. The third segment is corrupt.
    let words = ["one ", "two ", "three ", "four "];
    let mut seq = iss + 1;
    let segments: Vec<Vec<u8>> = words
        .into_iter()
        .map(|word| {
            let frame = segment(Flags::ACK | Flags::PSH, seq, ack, word.as_bytes());
            seq += word.len() as u32;
            frame
        })
        .collect();
    let mut bad = segments[2].clone();
    *bad.last_mut().unwrap() = b'!';
    client.send(&[&segments[0], &segments[1], &bad, &segments[3]]);
    expect(&mut server, b"one two ");
    client.send(&[&segments[2]]);
    expect(&mut server, b"three four ");
    // Only the IPv4 header of this segment is corrupt.
    let next = segment(Flags::ACK, seq, ack, b"end");
    let mut bad = next.clone();
    bad[22] ^= 1; // TTL
    client.send(&[&bad, &next]);
    expect(&mut server, b"end");
    expect_count(&mut passt, "corrupt", dropped + 3);
    assert_once_a_minute(passt.stderr().matches("wrong checksums").count(), start);
}

/// The guest's kernel leaves checksums inside a tunnel partial, and the tap device does not complete them. The
/// datagrams that the host sends have complete checksums.
#[test]
fn checksums_inside_a_tunnel_are_completed() {
    let Some(net) = Net::new() else { return };
    let _pasta = net.pasta(&[]);
    for v in 0..2 {
        let (remote, local) = (PEER[v], HOST[v]);
        let device = format!("type vxlan id 7 dstport {VXLAN_PORT} remote {remote} local {local}");
        let added = net.guest.run(&["sh", "-c", &format!("ip link add vx{v} {device}")]);
        if !added.status.success() {
            return skipped(&format!("no VXLAN here: {}", added.stderr.trim()));
        }
        net.guest.sh(&format!(
            "ip link set vx{v} mtu 1400 up
            ip addr add 10.7.{v}.2/24 dev vx{v}
            ip addr add 2001:db8:7:{v}::2/64 dev vx{v} nodad
            ip neigh add 10.7.{v}.1 lladdr 02:00:00:00:00:07 dev vx{v}
            ip neigh add 2001:db8:7:{v}::1 lladdr 02:00:00:00:00:07 dev vx{v}"
        ));
        let outside = net.peer.udp((remote, VXLAN_PORT));
        for inside in [format!("10.7.{v}.1"), format!("2001:db8:7:{v}::1")] {
            let to: SocketAddr = (inside.parse::<IpAddr>().unwrap(), PORT).into();
            let socket = net.guest.udp((any(to.ip()), 0));
            for _ in 0..20 {
                socket.send_to(&[0x55; 333], to).unwrap();
            }
            let _connecting = net.guest.start_connect(to);
            let (mut datagrams, mut segments) = (0, 0);
            while datagrams < 20 || segments < 1 {
                let (payload, _) = recv_from(&outside);
                let Some(packet) = packet(&payload[VXLAN..]) else { continue };
                match packet.transport {
                    Transport::Udp(datagram) if datagram.header.destination_port.get() == PORT => {
                        datagrams += 1
                    }
                    Transport::Tcp(_) => segments += 1,
                    _ => continue,
                }
                assert!(verify::transport(&packet), "to {inside} by {remote}");
            }
        }
    }
}

/// A VXLAN tunnel connects the kernels of the guest and the peer.
#[test]
fn tcp_works_through_a_tunnel() {
    need!("ethtool");
    let Some(net) = Net::new() else { return };
    let [host, _] = HOST;
    let [peer, _] = PEER;
    let _pasta = net.pasta(&["-u", &VXLAN_PORT.to_string()]);
    let ends = [(&net.guest, host, peer, "10.7.0.2"), (&net.peer, peer, host, "10.7.0.1")];
    for (ns, local, remote, address) in ends {
        let device = format!("type vxlan id 7 dstport {VXLAN_PORT} remote {remote} local {local}");
        let added = ns.run(&["sh", "-c", &format!("ip link add vx0 {device}")]);
        if !added.status.success() {
            return skipped(&format!("no VXLAN here: {}", added.stderr.trim()));
        }
        ns.sh(&format!("ip link set vx0 mtu 1400 up; ip addr add {address}/24 dev vx0"));
    }
    // A kernel of the same machine sends partial checksums inside the tunnel without marking them: see the guide.
    net.peer.sh("ethtool -K vx0 tx-checksum-ip-generic off");
    const LEN: u64 = 4 << 20;
    for (client, server, to) in [(&net.guest, &net.peer, "10.7.0.1"), (&net.peer, &net.guest, "10.7.0.2")] {
        let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), PORT).into();
        let listener = server.listen(to);
        let client = client.connect(to).unwrap();
        let (server, _) = accept(&listener);
        for (from, to) in [(&client, &server), (&server, &client)] {
            std::thread::scope(|scope| {
                scope.spawn(|| send(from, 3, LEN));
                receive(to, 3, LEN);
            });
        }
    }
}

/// A virtio-net header that points outside the frame, or names another kind of segment, drops the frame.
#[test]
fn an_offload_header_completes_the_checksum_that_it_points_to() {
    let Some(net) = Net::new() else { return };
    let mut passt = counting(&net, &["--vhost-user"]);
    let mut front_end = FrontEnd::new(net.path("guest.socket").as_ref(), DriverConfig::default());
    let server = net.peer.udp((PEER[0], VXLAN_PORT));
    let outer = outgoing(0);
    // The payload is longer than the part of a frame that passt copies.
    let (inner, open) = datagram(&outgoing(1), PORT, &[0x5a; 1001]);
    let (mut frame, _) = datagram(&outer, VXLAN_PORT, &[&[0; VXLAN], &inner[..]].concat());
    frame[40..42].fill(0); // no outer checksum
    let PartialChecksum { start, offset } = open.checksum.unwrap();
    let at = |start, offset| Offload {
        checksum: Some(PartialChecksum { start: start + 42 + VXLAN as u16, offset }),
        ..Offload::default()
    };
    let segmentation = |kind| Some(Segmentation { kind, size: 500, ecn: false });
    let whole = complete((inner.clone(), open));

    for (offload, carried) in [
        (at(start, offset), true),
        (at(start, 2000), false),
        (at(5000, offset), false),
        (at(u16::MAX - 50, offset), false),
        (Offload { segmentation: segmentation(SegmentKind::Udp), ..at(start, offset) }, false),
        (Offload { segmentation: segmentation(SegmentKind::Tcp6), ..at(start, offset) }, false),
    ] {
        front_end.queues[1].send(offload.to_virtio(), &frame);
        if carried {
            assert!(recv_from(&server).0[VXLAN..] == whole);
        }
    }
    // Frames without offloads are verified, even if they are in several buffers of the guest's memory.
    let good = complete(datagram(&outer, VXLAN_PORT, &[0x5a; 1001]));
    let mut bad = good.clone();
    bad[1000] ^= 1;
    front_end.queues[1].send(Offload::default().to_virtio(), &bad);
    front_end.queues[1].send(Offload::default().to_virtio(), &good);
    assert!(recv_from(&server).0 == [0x5a; 1001]);
    front_end.queues[1].send(Offload::VERIFIED.to_virtio(), &bad);
    assert!(recv_from(&server).0 == bad[42..]);
    expect_count(&mut passt, "corrupt", 1);
    expect_count(&mut passt, "useless", 5);
}
