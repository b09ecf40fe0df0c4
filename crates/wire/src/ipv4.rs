//! IPv4 (RFC 791).

use core::net::Ipv4Addr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian::U16};

use crate::checksum::Sum;

/// Length of [`Header`] without options, in bytes.
pub const HEADER_LEN: usize = 20;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// The fixed part of the header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Version (4, high nibble) and header length in 32-bit words.
    pub version_ihl: u8,
    /// DSCP (6 bits) and ECN (2 bits).
    pub traffic_class: u8,
    /// Length of header and payload in bytes.
    pub total_len: U16,
    /// Identification.
    pub id: U16,
    /// Flags (3 bits) and fragment offset.
    pub fragment: U16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Header {
    /// A header without options, with DF set and a complete checksum. `payload_len` is in bytes; it must be at
    /// most 65515, so that the total length fits in 16 bits.
    #[must_use]
    pub fn new(
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        ttl: u8,
        traffic_class: u8,
        payload_len: usize,
    ) -> Self {
        debug_assert!(payload_len + HEADER_LEN <= usize::from(u16::MAX));
        let mut header = Self {
            version_ihl: 0x45,
            traffic_class,
            total_len: U16::new((HEADER_LEN + payload_len) as u16),
            id: U16::ZERO,
            fragment: U16::new(DONT_FRAGMENT),
            ttl,
            protocol,
            checksum: U16::ZERO,
            source: source.octets(),
            destination: destination.octets(),
        };
        header.update_checksum();
        header
    }

    /// Recomputes the checksum of a header without options.
    pub fn update_checksum(&mut self) {
        self.checksum = U16::ZERO;
        self.checksum = U16::new(Sum::new().bytes(self.as_bytes()).finish());
    }

    /// Length of the header with its options, in bytes; less than [`HEADER_LEN`] if malformed.
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0xf) * 4
    }

    /// Whether this is a fragment: MF set, or an offset other than zero.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.fragment.get() & (MORE_FRAGMENTS | OFFSET_MASK) != 0
    }

    /// The DF flag: routers must not fragment the packet.
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.fragment.get() & DONT_FRAGMENT != 0
    }

    /// The MF flag: more fragments follow.
    #[must_use]
    pub fn more_fragments(&self) -> bool {
        self.fragment.get() & MORE_FRAGMENTS != 0
    }

    /// Offset of the payload in the original packet, in bytes.
    #[must_use]
    pub fn fragment_offset(&self) -> u16 {
        (self.fragment.get() & OFFSET_MASK) * 8
    }

    /// Makes this the header of a fragment, with DF cleared: `offset` is in bytes, a multiple of eight. Recomputes the
    /// checksum, for a header without options.
    pub fn set_fragment(&mut self, id: u16, offset: u16, more: bool) {
        self.id = U16::new(id);
        self.fragment = U16::new((offset / 8) | if more { MORE_FRAGMENTS } else { 0 });
        self.update_checksum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_df_flag_r57() {
        let (source, destination) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let header = Header::new(source, destination, 17, 64, 0, 100);
        assert!(header.dont_fragment());
        assert_eq!(header.fragment.get(), 0x4000);
    }
}
