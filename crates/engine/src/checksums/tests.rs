use alloc::{vec, vec::Vec};
use core::net::Ipv6Addr;

use wire::{
    ethernet::Mac,
    frame::{self, Outgoing, Transport},
    icmp,
    offload::Segmentation,
    tcp::{Flags, Seq},
};

use super::*;
use crate::{
    pressure::Pressure,
    stack::{FrameDrops, Seeds, Stack},
    testkit::{
        self,
        fixture::Fixture,
        guest::{headers_of, ip},
        link::{Kept, Virtual},
        settings::{guest, limits},
    },
};

/// Offset in the UDP payload at which VXLAN puts the Ethernet frame that it carries.
const INNER_AT: usize = 8;

struct Test {
    stack: Stack<Virtual<Kept>>,
    world: Fixture,
}

impl Test {
    fn new() -> Self {
        let world = Fixture::default();
        let seeds = Seeds { hash_key: [7; 16], isn_secret: [9; 16], query_secret: [8; 16], advertisement: 5 };
        let stack = Stack::new(world.settings.clone(), guest(&world.settings), limits(), seeds, world.now);
        Self { stack, world }
    }

    fn send(&mut self, frame: &[u8], offload: &Offload) {
        let Fixture { now, host, link, .. } = &mut self.world;
        let mut round = self.stack.round(*now, host, link);
        round.frame(frame::head(frame), frame, offload);
        assert_eq!(round.finish(), Pressure::None);
    }

    /// The payloads that sockets have sent since the last call.
    fn sent(&self) -> Vec<Vec<u8>> {
        self.world.host.opened.iter().flat_map(|open| open.socket.sent()).map(|sent| sent.payload).collect()
    }

    /// Checks that the frames had no effect except these counts.
    #[track_caller]
    fn assert_ignored(&self, counters: FrameDrops) {
        assert_eq!(*self.stack.counters(), counters);
        let sockets = self.world.host.peers.len();
        assert_eq!((self.sent(), self.world.link.frames.len(), sockets), (vec![], 0, 0));
        let before = guest(&self.world.settings);
        assert_eq!(format_guest(self.stack.guest()), format_guest(&before), "the guest's state has changed");
    }
}

fn format_guest(guest: &crate::addr::Guest) -> alloc::string::String {
    alloc::format!("{guest:?}")
}

/// A packet of the guest, from a hardware address that it has not used before.
fn outgoing(v6: bool) -> Outgoing {
    let (source, destination) =
        if v6 { ("2001:db8:1::56", "2001:db8:5::9") } else { ("198.51.100.56", "192.0.2.9") };
    Outgoing { source_mac: Mac([2, 0, 0, 0, 0, 0x56]), ..headers_of(source, destination) }
}

/// A datagram to the port `port`, with a partial checksum.
fn datagram(outgoing: &Outgoing, port: u16, payload: &[u8]) -> (Vec<u8>, Offload) {
    let (mut frame, offload) = testkit::guest::udp(outgoing, (4000, port), payload);
    frame.truncate(outgoing.headroom(udp::HEADER_LEN) + payload.len());
    (frame, offload)
}

fn syn(outgoing: &Outgoing) -> (Vec<u8>, Offload) {
    let header = tcp::Header::new((4000, 80), Seq(1), Seq(0), Flags::SYN, 100, 0);
    let (mut frame, offload) = testkit::guest::tcp(outgoing, header, &[], 0, |_| ());
    frame.truncate(outgoing.headroom(tcp::HEADER_LEN));
    (frame, offload)
}

fn echo(outgoing: &Outgoing) -> Vec<u8> {
    let kind = if outgoing.source.is_ipv4() { icmp::v4::ECHO_REQUEST } else { icmp::v6::ECHO_REQUEST };
    testkit::guest::icmp(outgoing, icmp::Header::new(kind, 0, 7), &[0x11; 20])
}

/// A neighbour solicitation of the guest, which the engine answers itself.
fn solicitation() -> Vec<u8> {
    let ours: Ipv6Addr = "fe80::1".parse().unwrap();
    let source = "fe80::55".parse().unwrap();
    let outgoing = Outgoing { source, destination: ours.into(), hop_limit: 255, ..outgoing(true) };
    let header = icmp::Header::new(icmp::v6::NEIGHBOUR_SOLICITATION, 0, 0);
    testkit::guest::icmp(&outgoing, header, &ours.octets())
}

fn summed((mut frame, offload): (Vec<u8>, Offload)) -> Vec<u8> {
    assert!(complete_checksum(&mut frame, &offload));
    frame
}

/// One packet of each protocol and IP version, with right checksums.
fn good() -> Vec<Vec<u8>> {
    let mut all = vec![solicitation()];
    for v6 in [false, true] {
        let outgoing = outgoing(v6);
        all.extend([summed(syn(&outgoing)), summed(datagram(&outgoing, 9, b"odd")), echo(&outgoing)]);
    }
    all
}

#[test]
fn packets_with_right_checksums_are_carried() {
    for (number, frame) in good().iter().enumerate() {
        let mut test = Test::new();
        test.send(frame, &Offload::default());
        assert_eq!(test.stack.counters().total(), 0, "frame {number}");
        let Fixture { host, link, .. } = &test.world;
        assert_ne!(test.sent().len() + link.frames.len() + host.peers.len(), 0, "frame {number}");
    }
}

/// A wrong checksum is detected before the packet has an effect: no flow is opened, no answer is sent, and no address
/// is learned.
#[test]
fn a_wrong_checksum_is_dropped_and_counted() {
    for frame in good() {
        // The changed bytes are in the payload or at the end of the header, in a port or the type, and in the IPv4
        // header's TTL.
        let v4 = frame[14] >> 4 == 4;
        let transport = if v4 { 34 } else { 54 };
        let places = [frame.len() - 1, transport + 1, transport + 3, 22];
        for &at in &places[..if v4 { 4 } else { 3 }] {
            let mut bad = frame.clone();
            bad[at] ^= 4;
            let mut test = Test::new();
            test.send(&bad, &Offload::default());
            test.assert_ignored(FrameDrops { checksums: 1, ..FrameDrops::default() });
            // If a link has verified the checksum, the engine does not verify it again.
            test.send(&bad, &Offload::VERIFIED);
            assert_eq!(test.stack.counters().checksums, 1);
        }
    }
}

/// A checksum of zero means that the datagram has no checksum. Over IPv6, only tunnels may omit the checksum.
#[test]
fn udp_may_have_no_checksum() {
    for (v6, port, carried) in [(false, 9, true), (true, 9, false), (true, 4789, true)] {
        let mut frame = datagram(&outgoing(v6), port, b"payload").0;
        let at = outgoing(v6).network_len() + 6;
        frame[at..at + 2].fill(0);
        let mut test = Test::new();
        test.send(&frame, &Offload::default());
        if carried {
            assert_eq!(test.sent(), [b"payload"]);
        } else {
            test.assert_ignored(FrameDrops { checksums: 1, ..FrameDrops::default() });
        }
    }
}

/// A VXLAN datagram that contains a segment or datagram with a partial checksum, to which the offload refers.
fn tunnel(outer_v6: bool, inner: &(Vec<u8>, Offload)) -> (Vec<u8>, Offload) {
    let payload = [&[0; INNER_AT], &inner.0[..]].concat();
    let outer = outgoing(outer_v6);
    let mut frame = datagram(&outer, 4789, &payload).0;
    // The outer datagram has no checksum.
    let at = outer.network_len() + 6;
    frame[at..at + 2].fill(0);
    let mut checksum = inner.1.checksum.unwrap();
    checksum.start += (outer.headroom(udp::HEADER_LEN) + INNER_AT) as u16;
    (frame, Offload { checksum: Some(checksum), ..Offload::default() })
}

#[test]
fn a_partial_checksum_in_a_tunnel_is_completed() {
    for (outer_v6, inner_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        for inner in [syn(&outgoing(inner_v6)), datagram(&outgoing(inner_v6), 9, b"odd")] {
            let (frame, offload) = tunnel(outer_v6, &inner);
            let mut test = Test::new();
            // A frame may be longer than the packet. The padding is not part of the checksum.
            for padding in [0, 7] {
                let padded = [&frame[..], &vec![0xee; padding]].concat();
                test.send(&padded, &offload);
                let sent = test.sent();
                assert_eq!(sent.len(), 1, "outer IPv6: {outer_v6}, inner IPv6: {inner_v6}");
                assert_eq!(sent[0][INNER_AT..], summed(inner.clone()));
                assert!(verify::transport(&ip(&sent[0][INNER_AT..])));
            }
            assert_eq!(test.stack.counters().total(), 0);
        }
    }
}

/// Datagrams of tunnels can be joined after their checksums are completed.
#[test]
fn checksums_in_a_train_of_tunnels_are_completed() {
    let mut test = Test::new();
    for last in *b"abcdefgh" {
        let (frame, offload) = tunnel(false, &datagram(&outgoing(false), 9, &[last; 100]));
        let Fixture { now, host, link, .. } = &mut test.world;
        let mut round = test.stack.round(*now, host, link);
        round.frame(frame::head(&frame), frame.as_slice(), &offload);
    }
    let Fixture { now, host, link, .. } = &mut test.world;
    assert_eq!(test.stack.round(*now, host, link).finish(), Pressure::None);
    let sent = test.sent().concat();
    let (each, rest) = sent.as_chunks::<{ INNER_AT + 42 + 100 }>();
    assert_eq!((each.len(), rest.len()), (8, 0));
    assert!(each.iter().all(|payload| verify::transport(&ip(&payload[INNER_AT..]))));
}

#[test]
fn a_partial_checksum_elsewhere_is_a_contradiction() {
    for v6 in [false, true] {
        let (frame, offload) = tunnel(v6, &syn(&outgoing(false)));
        let PartialChecksum { start, offset } = offload.checksum.unwrap();
        let transport = outgoing(v6).network_len() as u16;
        let len = frame.len() as u16;
        for (start, offset) in [
            (0, 0),
            (14, 10),             // in the network header
            (transport, 2),       // in the ports
            (transport, 16),      // the offset in a TCP header
            (transport + 2, 6),   // in the middle of the header
            (transport + 7, 300), // outside the header
            (start, len - start - 1),
            (start, len),
            (start, u16::MAX),
            (len - 1, 0),
            (len, 0),
            (len + 1, 0),
            (u16::MAX, u16::MAX),
        ] {
            let mut test = Test::new();
            let checksum = Some(PartialChecksum { start, offset });
            test.send(&frame, &Offload { checksum, ..offload });
            test.assert_ignored(FrameDrops { malformed: 1, ..FrameDrops::default() });
        }
        let mut test = Test::new();
        let checksum = Some(PartialChecksum { start, offset: offset + 2 });
        test.send(&frame, &Offload { checksum, ..offload });
        assert_eq!((test.stack.counters().total(), test.sent().len()), (0, 1));
    }
}

/// The segmentation of a super-frame must match the protocol of the outer packet.
#[test]
fn segmentation_must_match_the_packet() {
    use SegmentKind::{Tcp4, Tcp6, Udp};
    let segmentation = |kind| Some(Segmentation { kind, size: 10, ecn: false });
    for v6 in [false, true] {
        let cases = [
            (tunnel(v6, &syn(&outgoing(false))), vec![Tcp4, Tcp6, Udp]),
            (datagram(&outgoing(v6), 9, &[0; 100]), vec![Tcp4, Tcp6]),
            (syn(&outgoing(v6)), vec![if v6 { Tcp4 } else { Tcp6 }, Udp]),
            ((echo(&outgoing(v6)), Offload::VERIFIED), vec![Tcp4, Tcp6, Udp]),
        ];
        for ((frame, offload), kinds) in cases {
            for kind in kinds {
                let mut test = Test::new();
                test.send(&frame, &Offload { segmentation: segmentation(kind), ..offload });
                test.assert_ignored(FrameDrops { malformed: 1, ..FrameDrops::default() });
            }
        }
        let (frame, offload) = datagram(&outgoing(v6), 9, &[0; 100]);
        let mut test = Test::new();
        test.send(&frame, &Offload { segmentation: segmentation(Udp), ..offload });
        assert_eq!((test.stack.counters().total(), test.sent().len()), (0, 1));
    }
}

/// The location of the checksum is found from the head of the frame alone.
#[test]
fn the_checksum_is_located_by_the_head_alone() {
    for v6 in [false, true] {
        let (frame, offload) = datagram(&outgoing(v6), 9, &[0; 1000]);
        assert_eq!(verify::checksum_location(frame::head(&frame)), offload.checksum);
        let mut truncated =
            (0..outgoing(v6).network_len()).map(|len| verify::checksum_location(&frame[..len]));
        assert!(truncated.all(|place| place.is_none()));
    }
    let mut other = syn(&outgoing(false)).0;
    other[23] = 50;
    assert_eq!(verify::checksum_location(&other), None);
    assert!(matches!(ip(&other).transport, Transport::Other(50, _)));
}
