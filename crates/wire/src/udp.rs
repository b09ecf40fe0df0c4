//! UDP (RFC 768).

use crate::payload::Payload;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian::U16};

/// Length of [`Header`] in bytes.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum in the header, in bytes.
pub const CHECKSUM_OFFSET: u16 = 6;

/// Destination ports to which IPv6 datagrams may go without a checksum: tunnel protocols, whose inner packets have
/// checksums (RFC 8200 §8.1, RFC 6936). LISP, GRE, VXLAN, VXLAN-GPE, CAPWAP, GENEVE, MPLS, and the port that Linux uses
/// for VXLAN by default.
const ZERO_CHECKSUM_PORTS: [u16; 8] = [4341, 4754, 4789, 4790, 5247, 6081, 6635, 8472];

/// The header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Source port.
    pub source_port: U16,
    /// Destination port.
    pub destination_port: U16,
    /// Length of header and payload in bytes.
    pub len: U16,
    /// Checksum; zero means that there is none.
    pub checksum: U16,
}

impl Header {
    /// Whether the datagram has no checksum and needs none. Over IPv4, no datagram needs a checksum. Over IPv6,
    /// datagrams to some ports need none. A datagram that needs a checksum and has none is invalid.
    #[must_use]
    pub fn omits_checksum(&self, v4: bool) -> bool {
        self.checksum.get() == 0 && (v4 || ZERO_CHECKSUM_PORTS.contains(&self.destination_port.get()))
    }
}

/// A view of one datagram, or of a super-frame that contains several of equal length.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a, P = &'a [u8]> {
    /// The header.
    pub header: &'a Header,
    /// The payload.
    pub payload: P,
}

impl<'a, P: Payload> Datagram<'a, P> {
    /// A view of the datagram at the start of `bytes`, which may be longer. `head` is the start of `bytes`, with the
    /// whole header. None if the header is truncated, or the length field is longer than `bytes` or shorter than the
    /// header.
    #[must_use]
    pub fn parse_head(head: &'a [u8], bytes: P) -> Option<Self> {
        let (header, _) = Header::ref_from_prefix(head).ok()?;
        let len = usize::from(header.len.get());
        (HEADER_LEN..=bytes.len())
            .contains(&len)
            .then(|| Self { header, payload: bytes.slice(HEADER_LEN..len) })
    }
}
