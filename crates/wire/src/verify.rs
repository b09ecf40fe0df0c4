//! Verification of checksums.
//!
//! A link may report that a frame's checksums were verified, or need no verification ([`crate::offload::Offload`]). For
//! every other frame, the caller must verify [`network`] and [`transport`] before the frame has any effect. For a
//! fragment, the caller verifies [`network`] when the fragment arrives, and [`transport`] after reassembly.

use zerocopy::{FromBytes, IntoBytes};

use crate::{
    checksum::Sum,
    ethernet::{self, ethertype},
    frame::{Packet, Transport},
    icmp, ipv4, ipv6,
    offload::PartialChecksum,
    payload::Payload,
    protocol, tcp, udp,
};

/// Whether the checksum of the IPv4 header in a frame is right (RFC 791 §3.1). `head` is as in
/// [`crate::frame::parse_head`]. True for frames without an IPv4 header, false for a truncated header.
#[must_use]
pub fn network(head: &[u8]) -> bool {
    let Ok((ethernet, packet)) = ethernet::Header::ref_from_prefix(head) else { return false };
    if ethernet.ethertype.get() != ethertype::IPV4 {
        return true;
    }
    let Ok((header, _)) = ipv4::Header::ref_from_prefix(packet) else { return false };
    packet.get(..header.header_len()).is_some_and(|header| Sum::new().bytes(header).finish() == 0)
}

/// Whether the checksum of the packet's TCP segment, UDP datagram or ICMP message is right. True also for a datagram
/// without a checksum that needs none ([`udp::Header::omits_checksum`]), for other protocols, and for fragments.
#[must_use]
pub fn transport<P: Payload>(packet: &Packet<'_, P>) -> bool {
    let v4 = packet.source.is_ipv4();
    let pseudo_header =
        |protocol, len| Sum::new().pseudo_header(packet.source, packet.destination, protocol, len);
    let sum = match &packet.transport {
        Transport::Tcp(segment) => {
            let len = tcp::HEADER_LEN + segment.options.len() + segment.payload.len();
            let header = pseudo_header(protocol::TCP, len).bytes(segment.header.as_bytes());
            header.bytes(segment.options).plus(segment.payload.sum())
        }
        Transport::Udp(datagram) if datagram.header.omits_checksum(v4) => return true,
        // Zero means "no checksum". This datagram needs a checksum, so zero is wrong even if it is the complement of
        // the sum.
        Transport::Udp(datagram) if datagram.header.checksum.get() == 0 => return false,
        Transport::Udp(datagram) => {
            let header = pseudo_header(protocol::UDP, udp::HEADER_LEN + datagram.payload.len());
            header.bytes(datagram.header.as_bytes()).plus(datagram.payload.sum())
        }
        Transport::Icmp(message) => {
            let len = icmp::HEADER_LEN + message.payload.len();
            let header = if v4 { Sum::new() } else { pseudo_header(protocol::ICMPV6, len) };
            header.bytes(message.header.as_bytes()).plus(message.payload.sum())
        }
        Transport::Other(..) | Transport::Fragment(_) => return true,
    };
    sum.finish() == 0
}

/// The location of the transport checksum of the frame's outer packet, in the form that offload metadata uses. A
/// guest's kernel may also leave the checksum of a tunnel's inner packet partial. That checksum has a different
/// location. None if the frame carries no TCP, UDP or ICMP.
#[must_use]
pub fn checksum_location(head: &[u8]) -> Option<PartialChecksum> {
    let (ethernet, packet) = ethernet::Header::ref_from_prefix(head).ok()?;
    let (protocol, start) = match ethernet.ethertype.get() {
        ethertype::IPV4 => {
            let header = ipv4::Header::ref_from_prefix(packet).ok()?.0;
            (header.protocol, ethernet::HEADER_LEN + header.header_len())
        }
        ethertype::IPV6 => {
            let (header, rest) = ipv6::Header::ref_from_prefix(packet).ok()?;
            let (protocol, upper) = ipv6::upper_layer(header.next_header, rest)?;
            (protocol, head.len() - upper.len())
        }
        _ => return None,
    };
    let offset = match protocol {
        protocol::TCP => tcp::CHECKSUM_OFFSET,
        protocol::UDP => udp::CHECKSUM_OFFSET,
        protocol::ICMP | protocol::ICMPV6 => icmp::CHECKSUM_OFFSET,
        _ => return None,
    };
    Some(PartialChecksum { start: u16::try_from(start).ok()?, offset })
}
