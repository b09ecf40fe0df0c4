//! ICMP (RFC 792) and ICMPv6 (RFC 4443): the common header, echo and error messages.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32},
};

use crate::payload::Payload;

/// Length of [`Header`] in bytes.
pub const HEADER_LEN: usize = 8;
/// Code of "time exceeded" in both versions: fragment reassembly time exceeded.
pub const REASSEMBLY_TIME_EXCEEDED: u8 = 1;
/// Offset of the checksum in the header, in bytes.
pub const CHECKSUM_OFFSET: u16 = 2;

/// ICMPv4 message types.
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Code of "destination unreachable": fragmentation needed and DF set (RFC 1191).
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
}

/// ICMPv6 message types.
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation (RFC 4861).
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement (RFC 4861).
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation (RFC 4861).
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement (RFC 4861).
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect (RFC 4861).
    pub const REDIRECT: u8 = 137;
}

/// The first eight bytes of every message. The meaning of the last four depends on the type.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Message type.
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// Checksum.
    pub checksum: U16,
    /// Echo: identifier (high half) and sequence number; "packet too big": MTU in bytes; ICMPv6
    /// parameter problem: offset of the problem in the packet, in bytes; else zero.
    pub rest: U32,
}

impl Header {
    /// Identifier of an echo message.
    #[must_use]
    pub fn echo_id(&self) -> u16 {
        (self.rest.get() >> 16) as u16
    }

    /// Sequence number of an echo message.
    #[must_use]
    pub fn echo_sequence(&self) -> u16 {
        self.rest.get() as u16
    }

    /// A header with a checksum of zero. `rest` is in host byte order.
    #[must_use]
    pub fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self { kind, code, checksum: U16::ZERO, rest: U32::new(rest) }
    }
}

/// A view of one message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a, P = &'a [u8]> {
    /// The common header.
    pub header: &'a Header,
    /// The bytes after the common header.
    pub payload: P,
}

impl<'a> Message<'a> {
    /// A view of `bytes`, which are exactly the message. None if the header is truncated.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Self::parse_head(bytes, bytes)
    }
}

impl<'a, P: Payload> Message<'a, P> {
    /// A view of `bytes`, which are exactly the message and begin with `head`. None if the header is truncated.
    #[must_use]
    pub fn parse_head(head: &'a [u8], bytes: P) -> Option<Self> {
        let (header, _) = Header::ref_from_prefix(head).ok()?;
        Some(Self { header, payload: bytes.slice(HEADER_LEN..bytes.len()) })
    }
}
