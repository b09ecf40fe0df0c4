//! IP fragments (RFC 791 §3.2, RFC 8200 §4.5).

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32},
};

use crate::{ipv4, payload::Payload};

/// Length of [`Header`] in bytes.
pub const HEADER_LEN: usize = 8;
/// The payload of each fragment except the last is a multiple of this many bytes.
pub const UNIT: usize = 8;
/// Longest IP packet that can be reassembled, in bytes: the maximum of the length field. For IPv6, this field does not
/// count the fixed header.
pub const MAX_LEN: usize = 65_535;

const MORE: u16 = 1;
const OFFSET_MASK: u16 = 0xfff8;

/// The fragment header of IPv6 (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Type of the first header in the fragmentable part.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in units of eight bytes (high 13 bits), two reserved bits, the M flag.
    pub offset: U16,
    /// Identification.
    pub id: U32,
}

impl Header {
    /// The header of a fragment.
    #[must_use]
    pub fn new(fields: &Fields) -> Self {
        Self {
            next_header: fields.protocol,
            reserved: 0,
            offset: U16::new(fields.offset & OFFSET_MASK | u16::from(fields.more)),
            id: U32::new(fields.id),
        }
    }
}

/// One fragment of an IP packet.
#[derive(Clone, Copy, Debug)]
pub struct Fragment<P> {
    /// Identification. For IPv4, it has 16 bits.
    pub id: u32,
    /// IPv4: the protocol. IPv6: type of the first header in the fragmentable part. Only the value in the fragment with
    /// offset zero counts.
    pub protocol: u8,
    /// Offset of the payload in the fragmentable part, in bytes: a multiple of [`UNIT`].
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
    /// Number of bytes before the fragmentable part that the length field counts: the whole header for IPv4, the
    /// extension headers for IPv6.
    pub unfragmentable: u16,
    /// The payload: these bytes of the packet's fragmentable part.
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

    /// An IPv6 fragment. Both `head` and `bytes` begin with the fragment header. `unfragmentable` is the length of the
    /// extension headers before the fragment header, in bytes. None if the header is truncated.
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

    /// Offset of the end of the payload in the fragmentable part, in bytes.
    #[must_use]
    pub fn end(&self) -> usize {
        usize::from(self.offset) + self.payload.len()
    }

    /// Whether the reassembled packet would be longer than [`MAX_LEN`]. Such a fragment must be discarded (RFC 8200
    /// §4.5).
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        usize::from(self.unfragmentable) + self.end() > MAX_LEN
    }
}

/// The fields of a fragment to be written.
#[derive(Clone, Copy, Debug)]
pub struct Fields {
    /// Protocol of the whole packet.
    pub protocol: u8,
    /// Identification. IPv4 uses the low 16 bits.
    pub id: u32,
    /// Offset of the payload in the packet, in bytes: a multiple of [`UNIT`].
    pub offset: u16,
    /// Whether more fragments follow.
    pub more: bool,
}
