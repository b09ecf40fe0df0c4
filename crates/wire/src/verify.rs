//! Verification of checksums in frames whose sender, or link, does not vouch for them.
//!
//! A frame of which no checksum was left open has [`network`] and [`transport`] verified before its content has any
//! effect. IP fragments have [`network`] verified each, and [`transport`] once the packet is whole.

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

/// Whether the checksum of the IPv4 header in a frame is right (RFC 791 §3.1): `head` is as in
/// [`crate::frame::parse_head`]. Anything else than IPv4 has none, and is right.
#[must_use]
pub fn network(head: &[u8]) -> bool {
    let Ok((ethernet, packet)) = ethernet::Header::ref_from_prefix(head) else { return false };
    if ethernet.ethertype.get() != ethertype::IPV4 {
        return true;
    }
    let Ok((header, _)) = ipv4::Header::ref_from_prefix(packet) else { return false };
    packet.get(..header.header_len()).is_some_and(|header| Sum::new().bytes(header).finish() == 0)
}

/// Whether the checksum of the packet's TCP segment, UDP datagram or ICMP message is right. A datagram that may have none
/// (see [`udp::Header::omits_checksum`]) and has none is right, and so are other protocols and fragments.
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
        // Zero is no checksum, so that it is not right even if it were the sum's complement.
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

/// Where the transport checksum of a frame's packet is, if its sender leaves it open: not that of a packet in a tunnel.
/// None if the frame carries no TCP, UDP or ICMP.
#[must_use]
pub fn place(head: &[u8]) -> Option<PartialChecksum> {
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
