//! Tests of datagrams above the guest's MTU (behaviour §4.7).

use alloc::{vec, vec::Vec};

use wire::{assembly::OriginalHeader, fragment::Fragment, frame::Transport};

use super::*;

const PEER: &str = "203.0.113.1:8";
const PEER6: &str = "[2001:db8:2::1]:8";

/// Reassembles fragments like the guest, and checks the datagram's checksum. Returns source, destination and payload.
#[track_caller]
fn together(frames: &[(Vec<u8>, Offload)], mtu: usize) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut ids = Vec::new();
    let mut first = None;
    for (index, (frame, offload)) in frames.iter().enumerate() {
        assert_eq!(*offload, Offload::default());
        assert!(frame.len() <= 14 + mtu, "a frame of {} bytes", frame.len());
        let packet = ip(frame);
        let Transport::Fragment(fragment) = packet.transport else { panic!("{packet:?}") };
        let Fragment { id, offset, more, payload, .. } = fragment;
        assert!(!packet.dont_fragment || packet.source.is_ipv6());
        let last = index + 1 == frames.len();
        assert_eq!((usize::from(offset), more), (bytes.len(), !last));
        // Each fragment except the last is as long as the MTU permits.
        assert!(last || frame.len() + 8 > 14 + mtu);
        bytes.extend_from_slice(payload);
        ids.push(id);
        first.get_or_insert(OriginalHeader::new(&packet, &fragment));
    }
    assert!(ids.iter().all(|id| *id == ids[0]));
    let packet = first.unwrap().packet(&bytes, &bytes[..]).unwrap();
    let Transport::Udp(datagram) = packet.transport else { panic!("{packet:?}") };
    let header = datagram.header;
    assert_eq!((packet.hop_limit, packet.traffic_class), (64, 0));
    (
        SocketAddr::new(packet.source, header.source_port.get()),
        SocketAddr::new(packet.destination, header.destination_port.get()),
        datagram.payload.to_vec(),
    )
}

/// A datagram that fits in the MTU is sent in one frame. A longer datagram is sent in fragments. Each fragment is as
/// long as the MTU permits.
#[test]
fn a_datagram_above_the_mtu_comes_in_fragments() {
    for (mtu, advertised) in [(1500, 1500), (1500, 0), (1280, 1280), (65_520, 65_520)] {
        for (guest, peer, headers, longest) in [(GUEST, PEER, 28, 65_507), (GUEST6, PEER6, 48, 65_487)] {
            let mut test = Test::new();
            test.world.settings.mtu = advertised;
            test.guest_sends(guest, peer, b"");
            let socket = test.opened(0);
            let fits = mtu - headers;
            for len in [fits - 1, fits, fits + 1, fits + 8, longest].into_iter().filter(|&len| len <= longest)
            {
                let payload: Vec<u8> = (0..len).map(|at| (at / 5) as u8).collect();
                socket.socket.arrive(peer, &payload);
                test.ready(&socket, READABLE);
                let frames = test.world.frames();
                if len <= fits {
                    assert_eq!(frames.len(), 1, "{len} bytes, MTU {mtu}");
                    assert_shown(&frames[0].0, peer, guest, &payload);
                } else {
                    assert!(frames.len() > 1, "{len} bytes, MTU {mtu}");
                    let (from, to, got) = together(&frames, mtu);
                    assert_eq!((from, to), (peer.parse().unwrap(), guest.parse().unwrap()));
                    assert!(got == payload);
                }
            }
            assert_eq!(test.udp.counters().total(), 0);
        }
    }
}

/// If the guest's MTU is below the minimum of IPv6, its IPv6 fragments still have this minimum (RFC 8200 §5).
#[test]
fn the_least_mtu_of_each_family() {
    for (guest, peer, least) in [(GUEST, PEER, 68), (GUEST6, PEER6, 1280)] {
        let mut test = Test::new();
        test.world.settings.mtu = 20;
        test.guest_sends(guest, peer, b"");
        let socket = test.opened(0);
        socket.socket.arrive(peer, &[7; 3000]);
        test.ready(&socket, READABLE);
        assert_eq!(together(&test.world.frames(), least).2, [7; 3000]);
    }
}

/// A train whose datagrams exceed the MTU is split. The last datagram may fit.
#[test]
fn a_train_above_the_mtu_is_split() {
    let mut test = Test::new();
    test.world.settings.mtu = 1500;
    test.guest_sends(GUEST, PEER, b"");
    let socket = test.opened(0);
    let payload: Vec<u8> = (0..2 * 2000 + 100).map(|at| (at / 16) as u8).collect();
    socket.socket.arrive_as(Received { segment_size: Some(2000), ..received(PEER) }, &payload);
    test.ready(&socket, READABLE);
    let frames = test.world.frames();
    assert_eq!(frames.len(), 5);
    assert_eq!(together(&frames[..2], 1500).2, payload[..2000]);
    assert_eq!(together(&frames[2..4], 1500).2, payload[2000..4000]);
    let identification = |frame: &[u8]| match ip(frame).transport {
        Transport::Fragment(fragment) => fragment.id,
        other => panic!("{other:?}"),
    };
    assert_ne!(identification(&frames[0].0), identification(&frames[2].0));
    // A train of shorter datagrams is sent in one frame.
    socket.socket.arrive_as(Received { segment_size: Some(1400), ..received(PEER) }, &payload);
    test.ready(&socket, READABLE);
    assert_eq!(test.world.frame().1.segmentation.unwrap().size, 1400);
}

/// Large datagrams are not joined.
#[test]
fn large_datagrams_in_a_stream() {
    let mut test = Test::new();
    test.world.settings.mtu = 1500;
    test.guest_sends(GUEST, PEER, b"");
    let socket = test.opened(0);
    for _ in 0..8 {
        socket.socket.arrive(PEER, &[7; 4000]);
    }
    for _ in 0..8 {
        test.ready(&socket, READABLE);
    }
    let frames = test.world.frames();
    assert_eq!(frames.len(), 24);
    for datagram in frames.chunks(3) {
        assert_eq!(together(datagram, 1500).2, [7; 4000]);
    }
}

/// If the link is full, the datagram is dropped and counted once.
#[test]
fn a_full_link_drops_the_rest() {
    let mut test = Test::new();
    test.world.settings.mtu = 1500;
    test.guest_sends(GUEST, PEER, b"");
    let socket = test.opened(0);
    test.world.link.most = Some(2);
    socket.socket.arrive(PEER, &vec![7; 6000]);
    test.ready(&socket, READABLE);
    assert_eq!((test.world.frames().len(), test.udp.counters().link_full), (2, 1));
}
