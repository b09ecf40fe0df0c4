//! UDP (RFC 768).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian::U16};

/// Length of [`Header`] in bytes.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum in the header, in bytes.
pub const CHECKSUM_OFFSET: u16 = 6;

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

/// A view of one datagram, or of a train of equally sized ones when the frame is a segmentation
/// super-frame.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The header.
    pub header: &'a Header,
    /// What follows it.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// A view of `bytes`, which may be longer than the datagram (Ethernet padding).
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = Header::ref_from_prefix(bytes).ok()?;
        let len = usize::from(header.len.get()).checked_sub(HEADER_LEN)?;
        Some(Self { header, payload: rest.get(..len)? })
    }
}
