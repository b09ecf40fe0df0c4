//! UDP (RFC 768).

use crate::payload::Payload;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian::U16};

/// Length of [`Header`] in bytes.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum in the header, in bytes.
pub const CHECKSUM_OFFSET: u16 = 6;

/// Ports to which IPv6 datagrams may go without a checksum: of protocols that carry packets with checksums of their own
/// (RFC 8200 §8.1, RFC 6936). LISP, GRE, VXLAN and its generic extension, CAPWAP, GENEVE, MPLS, and what Linux calls
/// VXLAN by default.
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
    /// Checksum, or zero for none (IPv4 only).
    pub checksum: U16,
}

impl Header {
    /// Whether the datagram says that it has no checksum, and may do so.
    #[must_use]
    pub fn omits_checksum(&self, v4: bool) -> bool {
        self.checksum.get() == 0 && (v4 || ZERO_CHECKSUM_PORTS.contains(&self.destination_port.get()))
    }
}

/// A view of one datagram, or of a train of equally sized ones when the frame is a segmentation
/// super-frame.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a, P = &'a [u8]> {
    /// The header.
    pub header: &'a Header,
    /// What follows it.
    pub payload: P,
}

impl<'a, P: Payload> Datagram<'a, P> {
    /// A view of `bytes`, which may be longer than the datagram (Ethernet padding), and begin with `head`.
    #[must_use]
    pub fn parse_head(head: &'a [u8], bytes: P) -> Option<Self> {
        let (header, _) = Header::ref_from_prefix(head).ok()?;
        let len = usize::from(header.len.get());
        (HEADER_LEN..=bytes.len())
            .contains(&len)
            .then(|| Self { header, payload: bytes.slice(HEADER_LEN..len) })
    }
}
