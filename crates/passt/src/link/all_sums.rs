//! Frames with each of the 65,536 checksums, and the expected results. Tests of links that complete checksums use them.

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::checksum::Sum;
use wire::ethernet::{HEADER_LEN, Mac};
use wire::frame::{Body, Outgoing, Transport, parse};
use wire::offload::Offload;
use wire::tcp::{Flags, Seq};
use wire::{protocol, tcp, udp};

const PORTS: (u16, u16) = (7, 9);

/// Sends TCP and UDP over both versions of IP through `through`, as frames and super-frames, with every value in two
/// bytes of the payload. `through` must return the frames that the guest receives.
pub(super) fn check(mut through: impl FnMut(&[u8], &Offload) -> Vec<Vec<u8>>) {
    for (word, v6) in (0..=u16::MAX).flat_map(|word| [(word, false), (word, true)]) {
        let outgoing = Outgoing {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source: if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::new(192, 0, 2, 1).into() },
            destination: if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::new(192, 0, 2, 2).into() },
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
        };
        let payload = [word.to_be_bytes(), word.to_be_bytes()].concat();
        for (kind, size) in
            [(protocol::TCP, None), (protocol::UDP, None), (protocol::TCP, Some(2)), (protocol::UDP, Some(2))]
        {
            let headers = if kind == protocol::TCP { tcp::HEADER_LEN } else { udp::HEADER_LEN };
            let mut frame = vec![0; outgoing.headroom(headers)];
            frame.extend_from_slice(&payload);
            let written = if kind == protocol::TCP {
                let header = tcp::Header::new(PORTS, Seq(1), Seq(2), Flags::ACK, 100, 0);
                outgoing.tcp(&mut frame, header, &[], payload.len(), size)
            } else {
                outgoing.udp(&mut frame, PORTS, payload.len(), size)
            };
            let frames = through(&frame, &written.unwrap().offload);
            assert_eq!(frames.len(), if size.is_some() { 2 } else { 1 });
            frames.iter().for_each(|frame| check_one(frame));
        }
    }
}

fn check_one(frame: &[u8]) {
    let Ok(Body::Ip(packet)) = parse(frame).map(|frame| frame.body) else { panic!("no IP: {frame:x?}") };
    let (protocol, carried, never, len) = match packet.transport {
        Transport::Tcp(segment) => {
            (protocol::TCP, segment.header.checksum.get(), 0xffff, tcp::HEADER_LEN + segment.payload.len())
        }
        Transport::Udp(datagram) => {
            (protocol::UDP, datagram.header.checksum.get(), 0, usize::from(datagram.header.len.get()))
        }
        other => panic!("{other:?}"),
    };
    let start = HEADER_LEN + if packet.source.is_ipv4() { 20 } else { 40 };
    let sum = Sum::new().pseudo_header(packet.source, packet.destination, protocol, len);
    assert_eq!(sum.bytes(&frame[start..start + len]).finish(), 0, "{frame:x?}");
    assert_ne!(carried, never, "{frame:x?}");
}
