//! IP fragments (RFC 791 §3.2, RFC 8200 §4.5): parsed, written, and the packet that they make.

use core::net::IpAddr;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32},
};

use crate::{
    checksum::Sum,
    ethernet,
    frame::{self, Outgoing, Packet, Unusable},
    ipv4, ipv6,
    payload::Payload,
    protocol,
};

/// Length of [`Header`] in bytes.
pub const HEADER_LEN: usize = 8;
/// The payload of each fragment except the last is a multiple of this many bytes.
pub const UNIT: usize = 8;
/// Longest IP packet that can be put together, in bytes; of IPv6 without its fixed header.
pub const MAX_LEN: usize = 65_535;

const MORE: u16 = 1;
const OFFSET_MASK: u16 = 0xfff8;

/// IPv6's fragment header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Type of the first header in the fragmentable part.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in units of eight bytes (high 13 bits), two reserved bits, and whether more fragments follow.
    pub offset: U16,
    /// Identification.
    pub id: U32,
}

impl Header {
    /// The header of a fragment.
    #[must_use]
    pub fn new(piece: &Piece) -> Self {
        Self {
            next_header: piece.protocol,
            reserved: 0,
            offset: U16::new(piece.offset & OFFSET_MASK | u16::from(piece.more)),
            id: U32::new(piece.id),
        }
    }
}

/// One fragment of an IP packet.
#[derive(Clone, Copy, Debug)]
pub struct Fragment<P> {
    /// Identification; 16 bits of it for IPv4.
    pub id: u32,
    /// IPv4: the protocol. IPv6: type of the first header in the fragmentable part, which only the fragment with offset
    /// zero decides.
    pub protocol: u8,
    /// Where the payload belongs in the fragmentable part, in bytes: a multiple of [`UNIT`].
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// Bytes that the packet has in front of the fragmentable part and that count for its length: the whole header for
    /// IPv4, extension headers for IPv6.
    pub unfragmentable: u16,
    /// What it carries of the fragmentable part.
    pub payload: P,
}

impl<P: Payload> Fragment<P> {
    /// An IPv4 fragment with this header and payload.
    pub(crate) fn v4(header: &ipv4::Header, payload: P) -> Self {
        Self {
            id: header.id.get().into(),
            protocol: header.protocol,
            offset: header.fragment_offset(),
            more: header.more_fragments(),
            unfragmentable: header.header_len() as u16,
            payload,
        }
    }

    /// An IPv6 fragment. `head` begins with the fragment header and `bytes` as well; `unfragmentable` bytes of extension
    /// headers are in front of it. None if the header is truncated.
    pub(crate) fn v6(head: &[u8], bytes: P, unfragmentable: usize) -> Option<Self> {
        let (header, _) = Header::ref_from_prefix(head).ok()?;
        Some(Self {
            id: header.id.get(),
            protocol: header.next_header,
            offset: header.offset.get() & OFFSET_MASK,
            more: header.offset.get() & MORE != 0,
            unfragmentable: u16::try_from(unfragmentable).ok()?,
            payload: bytes.slice(HEADER_LEN..bytes.len()),
        })
    }

    /// Where the payload ends in the fragmentable part, in bytes.
    #[must_use]
    pub fn end(&self) -> usize {
        usize::from(self.offset) + self.payload.len()
    }

    /// Whether the packet would be longer than any can be.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        usize::from(self.unfragmentable) + self.end() > MAX_LEN
    }
}

/// The header of a packet whose fragments are all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Source address.
    pub source: IpAddr,
    /// Destination address; of the same version as `source`.
    pub destination: IpAddr,
    /// Time to live or hop limit of the fragment with offset zero.
    pub hop_limit: u8,
    /// DSCP of the same fragment, and ECN.
    pub traffic_class: u8,
    /// Flow label of the same fragment; zero for IPv4.
    pub flow_label: u32,
    /// Protocol or next header of the same fragment.
    pub protocol: u8,
}

impl Whole {
    /// The packet. `bytes` is its fragmentable part; `payload` is the same as what the packet is to carry.
    ///
    /// # Errors
    /// Headers are malformed, or the checksum of TCP, UDP or ICMP is wrong: it was computed over the whole packet, so that
    /// nobody could verify it before.
    pub fn packet<'a, P: Payload>(&self, bytes: &'a [u8], payload: P) -> Result<Packet<'a, P>, Unusable> {
        let (protocol, upper) = match self.source {
            IpAddr::V4(_) => (self.protocol, bytes),
            IpAddr::V6(_) => ipv6::upper_layer(self.protocol, bytes).ok_or(Unusable::Malformed)?,
        };
        // Fragments in fragments: no host sends such a packet.
        let nested = self.source.is_ipv6() && protocol == ipv6::FRAGMENT;
        if nested || !self.has_valid_checksum(protocol, upper) {
            return Err(Unusable::Malformed);
        }
        let payload = payload.slice(bytes.len() - upper.len()..bytes.len());
        Ok(Packet {
            source: self.source,
            destination: self.destination,
            hop_limit: self.hop_limit,
            traffic_class: self.traffic_class,
            flow_label: self.flow_label,
            dont_fragment: false,
            transport: frame::parse_transport(self.source.is_ipv4(), protocol, frame::head(upper), payload)?,
        })
    }

    fn has_valid_checksum(&self, protocol: u8, upper: &[u8]) -> bool {
        let v4 = self.source.is_ipv4();
        let sum = Sum::new().pseudo_header(self.source, self.destination, protocol, upper.len());
        match protocol {
            protocol::ICMP if v4 => Sum::new().bytes(upper).finish() == 0,
            protocol::UDP => match upper {
                // No checksum (RFC 768), which IPv6 forbids (RFC 8200 §8.1).
                [_, _, _, _, _, _, 0, 0, ..] => v4,
                // Bytes after the datagram's own length belong to nothing.
                [_, _, _, _, high, low, ..] => {
                    let len = usize::from(u16::from_be_bytes([*high, *low]));
                    let sum = Sum::new().pseudo_header(self.source, self.destination, protocol, len);
                    upper.get(..len).is_some_and(|datagram| sum.bytes(datagram).finish() == 0)
                }
                _ => false,
            },
            protocol::TCP => sum.bytes(upper).finish() == 0,
            protocol::ICMPV6 if !v4 => sum.bytes(upper).finish() == 0,
            _ => true,
        }
    }
}

/// Which fragment of which packet.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Protocol of the whole packet.
    pub protocol: u8,
    /// Identification; the low 16 bits of it for IPv4.
    pub id: u32,
    /// Where the payload belongs, in bytes: a multiple of [`UNIT`].
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

impl Outgoing {
    /// Bytes of the headers that [`Outgoing::fragment`] writes.
    #[must_use]
    pub const fn fragment_headroom(&self) -> usize {
        self.headroom(if self.source.is_ipv4() { 0 } else { HEADER_LEN })
    }

    /// Most payload of a fragment that is not the last, in bytes, on a link with this MTU: at least [`UNIT`].
    #[must_use]
    pub fn fragment_room(&self, mtu: u16) -> usize {
        let room = usize::from(mtu).saturating_sub(self.fragment_headroom() - ethernet::HEADER_LEN);
        (room / UNIT * UNIT).max(UNIT)
    }

    /// Writes the headers of a fragment with `payload_len` bytes of payload; returns the length of the frame, with
    /// padding, which is zeroed as far as `buffer` goes. None if the headers don't fit `buffer`, or the payload a packet.
    pub fn fragment(&self, buffer: &mut [u8], piece: &Piece, payload_len: usize) -> Option<usize> {
        let at = if self.source.is_ipv4() {
            let at = self.network(buffer, piece.protocol, payload_len)?;
            let header = buffer.get_mut(ethernet::HEADER_LEN..at)?;
            let header = ipv4::Header::mut_from_bytes(header).ok()?;
            header.set_fragment(piece.id as u16, piece.offset, piece.more);
            at
        } else {
            let at = self.network(buffer, ipv6::FRAGMENT, HEADER_LEN + payload_len)?;
            buffer.get_mut(at..at + HEADER_LEN)?.copy_from_slice(Header::new(piece).as_bytes());
            at + HEADER_LEN
        };
        Some(frame::pad(buffer, at + payload_len))
    }
}
