//! IPv6 (RFC 8200).

use core::net::Ipv6Addr;

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32},
};

/// Length of [`Header`] in bytes.
pub const HEADER_LEN: usize = 40;

pub(crate) const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// Next header value of the fragment header.
pub const FRAGMENT: u8 = 44;
/// Next header value of a packet without a payload (RFC 8200 §4.7).
pub const NO_NEXT_HEADER: u8 = 59;
const DESTINATION: u8 = 60;
const AUTHENTICATION: u8 = 51;

/// The fixed header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Version (6), traffic class (8 bits), flow label (20 bits).
    pub version_class_flow: U32,
    /// Length of all bytes after this header.
    pub payload_len: U16,
    /// Type of the header that follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Header {
    /// A header. `payload_len` is in bytes, at most 65535; `flow_label` is the low 20 bits.
    #[must_use]
    pub fn new(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        next_header: u8,
        hop_limit: u8,
        traffic_class: u8,
        flow_label: u32,
        payload_len: usize,
    ) -> Self {
        debug_assert!(payload_len <= usize::from(u16::MAX));
        Self {
            version_class_flow: U32::new(6 << 28 | u32::from(traffic_class) << 20 | (flow_label & 0xf_ffff)),
            payload_len: U16::new(payload_len as u16),
            next_header,
            hop_limit,
            source: source.octets(),
            destination: destination.octets(),
        }
    }

    /// Traffic class: DSCP and ECN.
    #[must_use]
    pub fn traffic_class(&self) -> u8 {
        (self.version_class_flow.get() >> 20) as u8
    }

    /// Flow label, 20 bits.
    #[must_use]
    pub fn flow_label(&self) -> u32 {
        self.version_class_flow.get() & 0xf_ffff
    }
}

/// Skips extension headers (RFC 8200 §4). Returns the protocol of the upper layer and its bytes, which are a suffix of
/// `bytes`. `next` is the type of the first header in `bytes`.
///
/// The fragment header of an atomic fragment (RFC 6946) is skipped. The header of another fragment is not skipped: then
/// the returned protocol is [`FRAGMENT`], and the returned bytes begin with the fragment header. None if a header
/// extends past `bytes`.
#[must_use]
pub fn upper_layer(mut next: u8, mut bytes: &[u8]) -> Option<(u8, &[u8])> {
    loop {
        let len = match next {
            // Every length is at least eight bytes, so the loop ends. The length field of these headers counts units of
            // eight bytes, except the first unit.
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(*bytes.get(1)?) + 1) * 8,
            // The length field counts units of four bytes, minus two (RFC 4302 §2.2).
            AUTHENTICATION => (usize::from(*bytes.get(1)?) + 2) * 4,
            FRAGMENT => match bytes {
                [_, _, high, low, ..] if (u16::from_be_bytes([*high, *low]) & 0xfff9) == 0 => 8,
                _ => return Some((next, bytes)),
            },
            _ => return Some((next, bytes)),
        };
        next = *bytes.first()?;
        bytes = bytes.get(len..)?;
    }
}

/// The solicited-node multicast address of `address` (RFC 4291 §2.7.1).
#[must_use]
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}
