//! Offload metadata of a frame: the segmentation and the checksums that the sender leaves to the receiver.
//!
//! On links with a virtio-net header (virtio 1.2 §5.1.6), this metadata is the parsed header.

/// Length of the virtio-net header with `num_buffers`, in bytes.
pub const VIRTIO_NET_HEADER_LEN: usize = 12;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The kind of segments that a super-frame is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams over IPv4 or IPv6.
    Udp,
}

/// How to cut a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Kind of the segments.
    pub kind: SegmentKind,
    /// Payload of each segment except the last, in bytes; not zero.
    pub size: u16,
    /// The TCP header has CWR set, which applies to the first segment only (VIRTIO_NET_HDR_GSO_ECN).
    pub ecn: bool,
}

/// A partial checksum: its field holds the sum of the pseudo-header, not complemented (VIRTIO_NET_HDR_F_NEEDS_CSUM).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Offset of the first byte to sum, from the start of the Ethernet frame, in bytes.
    pub start: u16,
    /// Offset of the checksum field, from `start`, in bytes.
    pub offset: u16,
}

/// The work that is left to the receiver of a frame. The default: the receiver only has to verify checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Segmentation, if the frame is a super-frame.
    pub segmentation: Option<Segmentation>,
    /// The transport checksum, if it is partial.
    pub checksum: Option<PartialChecksum>,
    /// Checksums were verified, or need no verification (VIRTIO_NET_HDR_F_DATA_VALID).
    pub verified: bool,
    /// Length of all headers, in bytes; zero without segmentation. It is only a hint: never rely on the value in a
    /// guest's frame.
    pub header_len: u16,
}

impl Offload {
    /// No work is left to the receiver: no checksum has to be verified.
    pub const VERIFIED: Self = Self { segmentation: None, checksum: None, verified: true, header_len: 0 };

    /// The virtio-net header (little-endian, `num_buffers` 1).
    #[must_use]
    pub fn to_virtio(self) -> [u8; VIRTIO_NET_HEADER_LEN] {
        let mut bytes = [0; VIRTIO_NET_HEADER_LEN];
        if let Some(checksum) = self.checksum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&checksum.start.to_le_bytes());
            bytes[8..10].copy_from_slice(&checksum.offset.to_le_bytes());
        }
        if self.verified {
            bytes[0] |= DATA_VALID;
        }
        if let Some(segmentation) = self.segmentation {
            bytes[1] = match segmentation.kind {
                SegmentKind::Tcp4 => GSO_TCPV4,
                SegmentKind::Tcp6 => GSO_TCPV6,
                SegmentKind::Udp => GSO_UDP_L4,
            } | if segmentation.ecn { GSO_ECN } else { 0 };
            bytes[2..4].copy_from_slice(&self.header_len.to_le_bytes());
            bytes[4..6].copy_from_slice(&segmentation.size.to_le_bytes());
        }
        bytes[10] = 1;
        bytes
    }

    /// Parses a virtio-net header (little-endian). None if the kind of segmentation was not negotiated, or the segment
    /// size is zero. Offsets are not checked against a frame: [`crate::segment`] does that.
    #[must_use]
    pub fn from_virtio(bytes: &[u8; VIRTIO_NET_HEADER_LEN]) -> Option<Self> {
        let word = |i: usize| u16::from_le_bytes([bytes[i], bytes[i + 1]]);
        let kind = match bytes[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(SegmentKind::Tcp4),
            GSO_TCPV6 => Some(SegmentKind::Tcp6),
            GSO_UDP_L4 => Some(SegmentKind::Udp),
            _ => return None,
        };
        let segmentation = match (kind, word(4)) {
            (None, _) => None,
            (Some(_), 0) => return None,
            (Some(kind), size) => Some(Segmentation { kind, size, ecn: bytes[1] & GSO_ECN != 0 }),
        };
        let checksum =
            (bytes[0] & NEEDS_CSUM != 0).then(|| PartialChecksum { start: word(6), offset: word(8) });
        let verified = bytes[0] & DATA_VALID != 0;
        Some(Self { segmentation, checksum, verified, header_len: word(2) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_header_survives_a_round_trip() {
        let offload = Offload {
            segmentation: Some(Segmentation { kind: SegmentKind::Tcp6, size: 1440, ecn: true }),
            checksum: Some(PartialChecksum { start: 54, offset: 16 }),
            verified: false,
            header_len: 74,
        };
        let plain = Offload::default();
        for offload in [offload, plain, Offload { verified: true, ..plain }] {
            assert_eq!(Offload::from_virtio(&offload.to_virtio()), Some(offload));
        }
    }

    #[test]
    fn unknown_or_empty_segmentation_is_refused() {
        let mut bytes = Offload::default().to_virtio();
        bytes[1] = 3; // UFO, which is never offered
        assert_eq!(Offload::from_virtio(&bytes), None);
        bytes[1] = GSO_TCPV4; // with size 0
        assert_eq!(Offload::from_virtio(&bytes), None);
    }
}
