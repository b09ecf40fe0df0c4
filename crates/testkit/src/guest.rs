//! Builds the frames of a guest, and parses the frames of the engine.

use std::{net::IpAddr, net::SocketAddr, vec, vec::Vec};

use wire::{
    ethernet::{self, MIN_FRAME_LEN},
    fragment,
    frame::{self, Body, Frame, MAX_LEN, Outgoing, Packet, Transport, Written},
    icmp,
    offload::{Offload, PartialChecksum},
    protocol,
    segment::complete_checksum,
    tcp::{self, Segment},
    udp,
};

use super::settings::{GUEST_MAC, OUR_MAC};

/// Headers of a packet from the guest, with hop limit 64.
pub const fn headers(source: IpAddr, destination: IpAddr) -> Outgoing {
    Outgoing {
        source_mac: GUEST_MAC,
        destination_mac: OUR_MAC,
        source,
        destination,
        hop_limit: 64,
        traffic_class: 0,
        flow_label: 0,
    }
}

/// The headers of [`headers`], for addresses as text.
#[track_caller]
pub fn headers_of(source: &str, destination: &str) -> Outgoing {
    headers(source.parse().unwrap(), destination.parse().unwrap())
}

/// A frame with a UDP datagram, and its offload metadata. Empty if the datagram is too long.
pub fn udp(headers: &Outgoing, ports: (u16, u16), payload: &[u8]) -> (Vec<u8>, Offload) {
    let fill = |room: &mut [u8]| room.copy_from_slice(payload);
    build(headers, udp::HEADER_LEN, payload.len(), fill, |frame| {
        headers.udp(frame, ports, payload.len(), None)
    })
}

/// A frame with an ICMP or ICMPv6 message. Empty if the message is too long.
pub fn icmp(headers: &Outgoing, header: icmp::Header, body: &[u8]) -> Vec<u8> {
    let fill = |room: &mut [u8]| room.copy_from_slice(body);
    build(headers, icmp::HEADER_LEN, body.len(), fill, |frame| headers.icmp(frame, header, body.len())).0
}

/// A frame with a TCP segment, and its offload metadata. `fill` writes the payload of `len` bytes. Empty if the segment
/// is too long.
pub fn tcp(
    headers: &Outgoing,
    header: tcp::Header,
    options: &[u8],
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> (Vec<u8>, Offload) {
    build(headers, tcp::HEADER_LEN + options.len(), len, fill, |frame| {
        headers.tcp(frame, header, options, len, None)
    })
}

fn build(
    headers: &Outgoing,
    header_len: usize,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
    write: impl FnOnce(&mut [u8]) -> Option<Written>,
) -> (Vec<u8>, Offload) {
    let start = headers.headroom(header_len);
    if start + len > MAX_LEN {
        return (Vec::new(), Offload::default());
    }
    let mut frame = vec![0; (start + len).max(MIN_FRAME_LEN)];
    fill(&mut frame[start..start + len]);
    let Some(written) = write(&mut frame) else { return (Vec::new(), Offload::default()) };
    frame.truncate(written.len);
    (frame, written.offload)
}

/// Fragments of an IP packet with the payload `upper`. Each fragment has at most `room` bytes of the payload. `room` is
/// a multiple of eight.
pub fn fragments(headers: &Outgoing, protocol: u8, upper: &[u8], room: usize) -> Vec<Vec<u8>> {
    let fragments = upper.chunks(room).zip((0_usize..).step_by(room)).map(|(chunk, offset)| {
        let mut frame = vec![0; headers.fragment_headroom()];
        frame.extend_from_slice(chunk);
        frame.resize(frame.len().max(MIN_FRAME_LEN), 0);
        let more = offset + room < upper.len();
        let fields = fragment::Fields { protocol, id: 0xabcd, offset: offset as u16, more };
        let len = headers.fragment(&mut frame, &fields, chunk.len()).unwrap_or(0);
        frame.truncate(len);
        frame
    });
    fragments.collect()
}

/// Splits the IP packet of a frame into fragments of at most `room` bytes. Completes a TCP or UDP checksum first. Empty
/// if the packet can't be fragmented.
pub fn cut(frame: &[u8], room: usize) -> Vec<Vec<u8>> {
    let mut whole = frame.to_vec();
    let Ok(Body::Ip(packet)) = frame::parse(frame).map(|frame| frame.body) else { return Vec::new() };
    let (source, destination) = (packet.source, packet.destination);
    let (protocol, checksum) = match packet.transport {
        Transport::Tcp(_) => (protocol::TCP, Some(tcp::CHECKSUM_OFFSET)),
        Transport::Udp(_) => (protocol::UDP, Some(udp::CHECKSUM_OFFSET)),
        Transport::Icmp(_) if source.is_ipv4() => (protocol::ICMP, None),
        Transport::Icmp(_) => (protocol::ICMPV6, None),
        Transport::Other(..) | Transport::Fragment(_) => return Vec::new(),
    };
    let headers = Outgoing {
        hop_limit: packet.hop_limit,
        traffic_class: packet.traffic_class,
        ..headers(source, destination)
    };
    let start = headers.headroom(0);
    if let Some(offset) = checksum {
        let checksum = Some(PartialChecksum { start: start as u16, offset });
        complete_checksum(&mut whole, &Offload { checksum, ..Offload::default() });
    }
    let end = if source.is_ipv4() {
        ethernet::HEADER_LEN + usize::from(u16::from_be_bytes([whole[16], whole[17]]))
    } else {
        start + usize::from(u16::from_be_bytes([whole[18], whole[19]]))
    };
    fragments(&headers, protocol, whole.get(start..end).unwrap_or_default(), room)
}

/// The part of a DHCP message of the guest before the options.
pub fn dhcp_header() -> [u8; 240] {
    let mut header = [0; 240];
    header[..4].copy_from_slice(&[1, 1, 6, 0]);
    header[4..8].copy_from_slice(b"xid!");
    header[28..34].copy_from_slice(&GUEST_MAC.0);
    header[236..].copy_from_slice(&[99, 130, 83, 99]);
    header
}

/// The IP packet in a frame.
#[track_caller]
pub fn ip(frame: &[u8]) -> Packet<'_> {
    let Frame { body: Body::Ip(packet), .. } = frame::parse(frame).unwrap() else { panic!("no IP") };
    packet
}

/// Source, destination and payload of the UDP datagram in a frame.
#[track_caller]
pub fn datagram(frame: &[u8]) -> (SocketAddr, SocketAddr, &[u8]) {
    let packet = ip(frame);
    let Transport::Udp(datagram) = packet.transport else { panic!("no UDP") };
    let source = SocketAddr::new(packet.source, datagram.header.source_port.get());
    let destination = SocketAddr::new(packet.destination, datagram.header.destination_port.get());
    (source, destination, datagram.payload)
}

/// The TCP segment in a frame, if there is one.
pub fn segment(bytes: &[u8]) -> Option<(Packet<'_>, Segment<'_>)> {
    match frame::parse(bytes).ok()?.body {
        Body::Ip(packet) => match packet.transport {
            Transport::Tcp(segment) => Some((packet, segment)),
            _ => None,
        },
        Body::Arp(_) => None,
    }
}
