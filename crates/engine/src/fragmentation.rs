//! Datagrams above the guest's MTU, sent to it in fragments (behaviour §4.7).
//!
//! The path to which "don't fragment" applied ends at the host's socket. On the link, the engine is the source of the
//! packet and may fragment it (docs/design/fragments.md).

use wire::{
    checksum::Sum,
    ethernet,
    fragment::Piece,
    frame::Outgoing,
    icmp,
    offload::Offload,
    protocol,
    udp::{self, Header},
};
use zerocopy::{IntoBytes, big_endian::U16};

use crate::{
    addr::Settings,
    link::{Full, Link},
};

/// Length of the transport headers, in bytes.
const TRANSPORT_LEN: usize = 8;
const _: () = assert!(udp::HEADER_LEN == TRANSPORT_LEN && icmp::HEADER_LEN == TRANSPORT_LEN);

/// A datagram that has to be fragmented, with its checksum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    protocol: u8,
    header: [u8; TRANSPORT_LEN],
    payload: &'a [u8],
}

impl Settings {
    /// Whether a UDP datagram or echo message with this much payload exceeds the guest's MTU.
    pub(crate) fn must_fragment(&self, frame: &Outgoing, payload_len: usize) -> bool {
        let len = frame.headroom(TRANSPORT_LEN) - ethernet::HEADER_LEN + payload_len;
        len > usize::from(self.link_mtu(frame.source.is_ipv4()))
    }
}

impl<'a> Datagram<'a> {
    /// A UDP datagram. None if it is too long for UDP.
    pub(crate) fn udp(
        frame: &Outgoing,
        (source_port, destination_port): (u16, u16),
        payload: &'a [u8],
    ) -> Option<Self> {
        let len = udp::HEADER_LEN + payload.len();
        let mut header = Header {
            source_port: U16::new(source_port),
            destination_port: U16::new(destination_port),
            len: U16::new(u16::try_from(len).ok()?),
            checksum: U16::ZERO,
        };
        let sum = Sum::new().pseudo_header(frame.source, frame.destination, protocol::UDP, len);
        header.checksum = U16::new(sum.bytes(header.as_bytes()).bytes(payload).finish_udp());
        let mut bytes = [0; TRANSPORT_LEN];
        bytes.copy_from_slice(header.as_bytes());
        Some(Self { protocol: protocol::UDP, header: bytes, payload })
    }

    /// The ICMP message in `bytes`, which has its checksum. None if it is truncated.
    pub(crate) fn icmp(v4: bool, bytes: &'a [u8]) -> Option<Self> {
        let (&header, payload) = bytes.split_first_chunk()?;
        Some(Self { protocol: if v4 { protocol::ICMP } else { protocol::ICMPV6 }, header, payload })
    }

    /// Sends it in fragments of at most `mtu` bytes. `id` must not be that of a recent one between the same addresses.
    ///
    /// # Errors
    /// The link is full; fragments may have been sent.
    pub(crate) fn send(&self, frame: &Outgoing, mtu: u16, id: u32, link: &mut impl Link) -> Result<(), Full> {
        let room = frame.fragment_room(mtu);
        let total = TRANSPORT_LEN + self.payload.len();
        for offset in (0..total).step_by(room) {
            let len = room.min(total - offset);
            let piece = Piece {
                protocol: self.protocol,
                id,
                offset: u16::try_from(offset).unwrap_or(u16::MAX),
                more: offset + len < total,
            };
            self.send_piece(frame, &piece, len, link)?;
        }
        Ok(())
    }

    fn send_piece(
        &self,
        frame: &Outgoing,
        piece: &Piece,
        len: usize,
        link: &mut impl Link,
    ) -> Result<(), Full> {
        let at = frame.fragment_headroom();
        let mut reserved = link.reserve_head((at + len).max(ethernet::MIN_FRAME_LEN)).ok_or(Full)?;
        let slot = reserved.head();
        // Lengths that do not fit a packet were refused above.
        let Some(frame_len) = frame.fragment(slot, piece, len) else { return Ok(()) };
        let place = slot.get_mut(at..at + len).unwrap_or_default();
        let start = usize::from(piece.offset);
        let (first, rest) = place.split_at_mut(TRANSPORT_LEN.saturating_sub(start).min(len));
        first.copy_from_slice(&self.header[..first.len()]);
        let start = start.saturating_sub(TRANSPORT_LEN);
        let payload = self.payload.get(start..start + rest.len()).unwrap_or_default();
        rest.get_mut(..payload.len()).unwrap_or_default().copy_from_slice(payload);
        reserved.commit(frame_len, &Offload::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over all sums: a computed zero is sent as all ones, since zero means that there is no checksum (RFC 768).
    #[test]
    fn all_checksums_of_udp_are_right() {
        for (source, destination) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            let frame = Outgoing {
                source_mac: ethernet::Mac::BROADCAST,
                destination_mac: ethernet::Mac::BROADCAST,
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                hop_limit: 64,
                traffic_class: 0,
                flow_label: 0,
            };
            for word in 0..=u16::MAX {
                let payload = word.to_be_bytes();
                let Datagram { header, .. } = Datagram::udp(&frame, (7, 9), &payload).unwrap();
                let len = TRANSPORT_LEN + payload.len();
                let sum = Sum::new().pseudo_header(frame.source, frame.destination, protocol::UDP, len);
                assert_eq!(sum.bytes(&header).bytes(&payload).finish(), 0, "word {word:#06x}");
                assert_ne!(header[6..], [0, 0], "word {word:#06x}");
            }
        }
    }
}
