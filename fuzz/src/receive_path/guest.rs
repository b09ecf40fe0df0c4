//! A hostile guest. Its frames are similar enough to real frames to reach deep states, and some are then corrupted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use engine::flow::Endpoints;
use testkit::{
    guest::{dhcp_header, headers, segment},
    settings::GUEST_MAC,
    streams::UPWARD,
};
use wire::{
    arp,
    ethernet::{self, Mac},
    frame::{MAX_LEN, Outgoing},
    icmp,
    offload::Offload,
    tcp::{self, Flags, SackBlocks, Seq},
};

use super::link::GuestSide;
use crate::input::Input;

/// The guest's own addresses, and some invalid sources.
pub(super) const SOURCES_V4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(198, 51, 100, 2),
    Ipv4Addr::new(198, 51, 100, 2),
    Ipv4Addr::new(198, 51, 100, 9),
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(224, 0, 0, 1),
];
const DESTINATIONS_V4: [Ipv4Addr; 9] = [
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(192, 0, 2, 2),
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(198, 51, 100, 53),
    Ipv4Addr::new(198, 51, 100, 77),
    Ipv4Addr::BROADCAST,
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::new(224, 0, 0, 251),
];
const SOURCES_V6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x55),
    Ipv6Addr::UNSPECIFIED,
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
];
const DESTINATIONS_V6: [Ipv6Addr; 9] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::LOCALHOST,
    Ipv6Addr::UNSPECIFIED,
    Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1),
];
const PORTS: [u16; 10] = [40_000, 40_001, 53, 80, 67, 68, 547, 546, 0, 65_535];
const LENGTHS: [usize; 10] = [0, 1, 5, 100, 536, 1000, 1460, 9000, 32_000, 65_000];
const WINDOWS: [u16; 6] = [65_535, 65_535, 1000, 64, 1, 0];

/// A connection of the guest, which may not follow the protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Talk {
    pub(super) ends: Endpoints,
    iss: u32,
    next: u32,
}

/// The guest.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) talks: Vec<Talk>,
}

impl Guest {
    /// A guest with the endpoints of a few connections. No connection is open.
    pub(super) fn new() -> Self {
        let talk = |guest: IpAddr, remote: IpAddr, port: u16| {
            let ends = Endpoints { guest: (guest, port).into(), remote: (remote, 80).into() };
            // The initial sequence number of one connection is close to the wrap-around.
            let iss = if port == 40_001 { 0xffff_fff0 } else { 0x1000_0000 };
            Talk { ends, iss, next: iss }
        };
        let (v4, v6) = (SOURCES_V4[0].into(), SOURCES_V6[0].into());
        let talks = vec![
            talk(v4, DESTINATIONS_V4[0].into(), 40_000),
            talk(v4, DESTINATIONS_V4[1].into(), 40_001),
            talk(v4, DESTINATIONS_V4[2].into(), 40_002),
            talk(v6, DESTINATIONS_V6[0].into(), 40_000),
            talk(v6, DESTINATIONS_V6[2].into(), 40_001),
        ];
        Self { talks }
    }

    /// A frame that `input` selects, with the offload metadata of its virtio-net header.
    pub(super) fn frame(&mut self, input: &mut Input<'_>, link: &GuestSide) -> (Vec<u8>, Offload) {
        let kind = input.byte() % 16;
        let mut frame = match kind {
            0..9 => self.segment(input, link),
            9..11 => datagram(input),
            11 => dhcp(input),
            12 => dhcpv6(input),
            13 => message(input),
            14 => arp(input),
            _ => input.take(usize::from(input.clone().byte()) * 2).to_vec(),
        };
        if input.one_in(8) {
            bend(&mut frame, input);
        }
        fix_payload(&mut frame);
        let offload = if input.one_in(4) { Offload::from_virtio(&input.array()) } else { None };
        // Most corrupted frames have wrong checksums, so frames count as verified.
        (frame, offload.unwrap_or(Offload::VERIFIED))
    }

    /// A segment of one of the connections.
    fn segment(&mut self, input: &mut Input<'_>, link: &GuestSide) -> Vec<u8> {
        let choice = usize::from(input.byte()) % self.talks.len();
        let talk = &mut self.talks[choice];
        let heard = link.heard(&talk.ends);
        let mut options = tcp::Options::default();
        let mut window = 65_535;
        let (mut seq, mut ack, mut len) = (talk.next, heard.next, 0);
        let flags = match input.byte() % 16 {
            0..2 => {
                if input.one_in(4) {
                    talk.iss = talk.iss.wrapping_add(input.u32());
                }
                seq = talk.iss;
                talk.next = seq.wrapping_add(1);
                options.mss = [None, Some(1460), Some(65_480), Some(0)][usize::from(input.byte() & 3)];
                options.window_scale = [None, Some(7), Some(14), Some(0)][usize::from(input.byte() & 3)];
                options.sack_permitted = !input.one_in(4);
                let answers = heard.iss.is_some() && input.one_in(3);
                if answers { Flags::SYN | Flags::ACK } else { Flags::SYN }
            }
            2..5 => {
                window = input.pick(&WINDOWS);
                Flags::ACK
            }
            5..8 => {
                len = input.pick(&LENGTHS);
                talk.next = talk.next.wrapping_add(len as u32);
                Flags::ACK | Flags::PSH
            }
            8..10 => {
                // Out of order: a later or earlier part of the stream.
                len = input.pick(&LENGTHS);
                let shift = u32::from(input.u16()) * input.pick(&[1, 1, 16, 64]);
                seq = if input.one_in(3) { seq.wrapping_sub(shift) } else { seq.wrapping_add(shift) };
                window = input.pick(&WINDOWS);
                Flags::ACK
            }
            10 => {
                len = input.pick(&LENGTHS[..4]);
                talk.next = talk.next.wrapping_add(len as u32 + 1);
                Flags::ACK | Flags::FIN
            }
            11 => {
                seq = seq.wrapping_add(u32::from(input.pick(&[0u16, 0, 1, 5000, 65_535])));
                Flags::RST | Flags::ACK
            }
            12..14 => {
                // Duplicate acknowledgments that report gaps (SACK).
                ack = ack.wrapping_sub(u32::from(input.u16()));
                options.sack = blocks(ack, input);
                window = input.pick(&WINDOWS);
                Flags::ACK
            }
            _ => {
                let shift = |input: &mut Input<'_>| input.u32() >> (input.byte() % 32);
                seq = seq.wrapping_add(shift(input));
                ack = ack.wrapping_add(shift(input));
                window = input.u16();
                len = input.pick(&LENGTHS[..6]);
                Flags::from_bits_retain(input.byte())
            }
        };
        let ports = (talk.ends.guest.port(), talk.ends.remote.port());
        let mut bytes = [0; tcp::MAX_OPTIONS_LEN];
        let options_len = options.emit(&mut bytes);
        let header = tcp::Header::new(ports, Seq(seq), Seq(ack), flags, window, options_len);
        let headers = between(talk.ends.guest.ip(), talk.ends.remote.ip(), input);
        testkit::guest::tcp(&headers, header, &bytes[..options_len], len, |_| ()).0
    }
}

/// A segment without options. Its payload is that of the stream.
#[cfg(test)]
pub(super) fn segment_with(ends: &Endpoints, seq: u32, ack: u32, flags: Flags, len: usize) -> Vec<u8> {
    let ports = (ends.guest.port(), ends.remote.port());
    let header = tcp::Header::new(ports, Seq(seq), Seq(ack), flags, u16::MAX, 0);
    let headers = headers(ends.guest.ip(), ends.remote.ip());
    let mut frame = testkit::guest::tcp(&headers, header, &[], len, |_| ()).0;
    fix_payload(&mut frame);
    frame
}

fn blocks(ack: u32, input: &mut Input<'_>) -> SackBlocks {
    let mut blocks = SackBlocks::default();
    for _ in 0..input.byte() % 5 {
        let start = ack.wrapping_add(u32::from(input.u16()) * input.pick(&[1, 1, 16, 300]));
        let end = start.wrapping_add(u32::from(input.u16()));
        blocks.push(Seq(start), Seq(end));
    }
    blocks
}

/// Headers of a packet between two addresses, with a hop limit that `input` selects.
fn between(source: IpAddr, destination: IpAddr, input: &mut Input<'_>) -> Outgoing {
    Outgoing { hop_limit: input.pick(&[64, 64, 255, 255, 1, 0]), ..headers(source, destination) }
}

fn addresses(input: &mut Input<'_>) -> (IpAddr, IpAddr) {
    if input.byte() & 1 == 0 {
        (input.pick(&SOURCES_V4).into(), input.pick(&DESTINATIONS_V4).into())
    } else {
        (input.pick(&SOURCES_V6).into(), input.pick(&DESTINATIONS_V6).into())
    }
}

fn datagram(input: &mut Input<'_>) -> Vec<u8> {
    let (source, destination) = addresses(input);
    let ports = (input.pick(&PORTS).wrapping_add(u16::from(input.byte() & 3)), input.pick(&PORTS));
    let len = input.pick(&LENGTHS);
    testkit::guest::udp(&between(source, destination, input), ports, &vec![0; len]).0
}

/// A DHCP message: a valid header, and arbitrary options.
pub(crate) fn dhcp_message(options: &[u8]) -> Vec<u8> {
    [&dhcp_header(), options].concat()
}

fn dhcp(input: &mut Input<'_>) -> Vec<u8> {
    let mut message = dhcp_message(&[53, 1, input.byte() % 9, 55, 4, 1, 3, 6, 26]);
    message.extend_from_slice(input.take(40));
    let destination = input.pick(&DESTINATIONS_V4).into();
    let headers = headers(input.pick(&SOURCES_V4).into(), destination);
    testkit::guest::udp(&headers, (68, 67), &message).0
}

fn dhcpv6(input: &mut Input<'_>) -> Vec<u8> {
    let mut message = vec![input.byte() % 14, 1, 2, 3];
    message.extend_from_slice(&[0, 1, 0, 4, 0, 3, 0, 1, 0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(input.take(60));
    let headers = headers(input.pick(&SOURCES_V6).into(), DESTINATIONS_V6[4].into());
    testkit::guest::udp(&headers, (546, 547), &message).0
}

/// An ICMP message: an echo message, a message of neighbour discovery, or any other bytes.
fn message(input: &mut Input<'_>) -> Vec<u8> {
    let (source, destination) = addresses(input);
    let kind = match (source, input.byte() % 4) {
        (IpAddr::V4(_), 0..3) => icmp::v4::ECHO_REQUEST,
        (IpAddr::V6(_), 0) => icmp::v6::ECHO_REQUEST,
        (IpAddr::V6(_), 1..3) => icmp::v6::ROUTER_SOLICITATION + input.byte() % 5,
        _ => input.byte(),
    };
    let code = if input.one_in(8) { input.byte() } else { 0 };
    let header = icmp::Header::new(kind, code, u32::from(input.byte()) << 16 | 7);
    let body = input.take(usize::from(input.clone().byte() % 64));
    let padding = if input.one_in(16) { input.pick(&LENGTHS) } else { 0 };
    let body = [body, &vec![0; padding]].concat();
    testkit::guest::icmp(&between(source, destination, input), header, &body)
}

fn arp(input: &mut Input<'_>) -> Vec<u8> {
    let sender = (GUEST_MAC, input.pick(&SOURCES_V4));
    let packet =
        arp::Packet::new(u16::from(input.byte() % 4), sender, (Mac::BROADCAST, input.pick(&DESTINATIONS_V4)));
    let header = ethernet::Header {
        destination: Mac::BROADCAST,
        source: GUEST_MAC,
        ethertype: ethernet::ethertype::ARP.into(),
    };
    use zerocopy::IntoBytes;
    [header.as_bytes(), packet.as_bytes()].concat()
}

/// Corrupts a frame: some bytes of its headers, or its length.
fn bend(frame: &mut Vec<u8>, input: &mut Input<'_>) {
    for _ in 0..=input.byte() % 4 {
        let at = usize::from(input.byte()) % 128;
        let value = input.byte();
        if let Some(byte) = frame.get_mut(at) {
            *byte = value;
        }
    }
    match input.byte() % 8 {
        0 => frame.truncate(usize::from(input.u16()) % 2048),
        1 => frame.resize((frame.len() + usize::from(input.byte())).min(MAX_LEN), 0xee),
        _ => {}
    }
}

/// The range of the TCP payload in a frame, and the sequence number of its first byte.
fn payload(frame: &[u8]) -> Option<(usize, usize, u32)> {
    let (_, segment) = segment(frame)?;
    let start = segment.payload.as_ptr() as usize - frame.as_ptr() as usize;
    let syn = u32::from(segment.flags().contains(Flags::SYN));
    Some((start, segment.payload.len(), segment.seq().0.wrapping_add(syn)))
}

/// Overwrites the payload of a segment with the bytes of its sequence number.
fn fix_payload(frame: &mut [u8]) {
    let Some((start, len, seq)) = payload(frame) else { return };
    UPWARD.fill(seq, &mut frame[start..start + len]);
}

/// The endpoints, sequence number and flags of a TCP segment in a frame.
pub(super) fn segment_of(frame: &[u8]) -> Option<(Endpoints, u32, Flags)> {
    let (packet, segment) = segment(frame)?;
    let ends = Endpoints {
        guest: SocketAddr::new(packet.source, segment.header.source_port.get()),
        remote: SocketAddr::new(packet.destination, segment.header.destination_port.get()),
    };
    Some((ends, segment.seq().0, segment.flags()))
}
