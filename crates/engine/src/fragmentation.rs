//! Datagrams to the guest. Datagrams that exceed the guest's MTU are sent in fragments (behaviour §4.7).
//!
//! The path to which "don't fragment" applied ends at the host's socket. On the link, the engine is the source of the
//! packet and may fragment the packet (docs/design/fragments.md).

use wire::{
    checksum::Sum,
    ethernet, fragment,
    frame::{MAX_LEN, Outgoing},
    icmp,
    offload::Offload,
    protocol,
    udp::{self, Header},
};
use zerocopy::{IntoBytes, big_endian::U16};

use crate::{
    addr::Settings,
    context::{Context, World},
    drops::Drops,
    link::{Full, Link},
    memory::Room as _,
};

/// Length of the transport headers, in bytes.
const TRANSPORT_LEN: usize = 8;
const _: () = assert!(udp::HEADER_LEN == TRANSPORT_LEN && icmp::HEADER_LEN == TRANSPORT_LEN);

impl Settings {
    /// Whether a UDP datagram or echo message with this much payload exceeds the guest's MTU.
    pub(crate) fn must_fragment(&self, frame: &Outgoing, payload_len: usize) -> bool {
        let len = frame.headroom(TRANSPORT_LEN) - ethernet::HEADER_LEN + payload_len;
        len > usize::from(self.link_mtu(frame.source.is_ipv4()))
    }
}

/// Sends datagrams to the guest.
#[derive(Debug, Default)]
pub(crate) struct Fragmenter {
    /// Identification of the last datagram that was sent in fragments. Each datagram gets the next number, so recent
    /// datagrams between the same addresses have different identifications.
    id: u32,
}

impl Fragmenter {
    /// Sends a UDP datagram, or, if there is a segment size (in bytes), a train of datagrams. Datagrams that are not
    /// sent are counted in `drops`.
    pub(crate) fn udp<W: World>(
        &mut self,
        (frame, ports): (&Outgoing, (u16, u16)),
        payload: &[u8],
        segment_size: Option<u16>,
        drops: &mut Drops,
        cx: &mut Context<'_, W>,
    ) {
        let longest = segment_size.map_or(payload.len(), usize::from).min(payload.len());
        if !cx.settings.must_fragment(frame, longest) {
            return drops.note_sent(send_whole(cx.link, frame, ports, payload, segment_size));
        }
        for datagram in payload.chunks(longest.max(1)) {
            let datagram = Datagram::udp(frame, ports, datagram);
            drops.note_sent(datagram.map(|datagram| self.send(frame, &datagram, cx)));
        }
    }

    /// Sends the ICMP message in `bytes`, in fragments. The message must contain its checksum. Nothing is sent if the
    /// message is truncated.
    ///
    /// # Errors
    /// The link is full. Some fragments may have been sent.
    pub(crate) fn icmp<W: World>(
        &mut self,
        frame: &Outgoing,
        bytes: &[u8],
        cx: &mut Context<'_, W>,
    ) -> Result<(), Full> {
        let Some((&header, payload)) = bytes.split_first_chunk() else { return Ok(()) };
        let protocol = protocol::icmp(frame.source.is_ipv4());
        self.send(frame, &Datagram { protocol, header, payload }, cx)
    }

    fn send<W: World>(
        &mut self,
        frame: &Outgoing,
        datagram: &Datagram<'_>,
        cx: &mut Context<'_, W>,
    ) -> Result<(), Full> {
        self.id = self.id.wrapping_add(1);
        let room = frame.fragment_room(cx.settings.link_mtu(frame.source.is_ipv4()));
        let total = TRANSPORT_LEN + datagram.payload.len();
        for offset in (0..total).step_by(room) {
            let len = room.min(total - offset);
            let fields = fragment::Fields {
                protocol: datagram.protocol,
                id: self.id,
                offset: u16::try_from(offset).unwrap_or(u16::MAX),
                more: offset + len < total,
            };
            datagram.send_fragment(frame, &fields, len, cx.link)?;
        }
        Ok(())
    }
}

/// Sends a UDP datagram or train in one frame. Returns none if it is too long for one frame.
fn send_whole(
    link: &mut impl Link,
    frame: &Outgoing,
    ports: (u16, u16),
    payload: &[u8],
    segment_size: Option<u16>,
) -> Option<Result<(), Full>> {
    let at = frame.headroom(udp::HEADER_LEN);
    if at + payload.len() > MAX_LEN {
        return None;
    }
    let Some(mut reserved) = link.reserve(at, MAX_LEN - at) else { return Some(Err(Full)) };
    let written = {
        let mut slot = reserved.slot();
        slot.room.put(0, payload);
        slot.pad(payload.len());
        frame.udp(slot.head, ports, payload.len(), segment_size)?
    };
    Some(reserved.commit(written.len, &written.offload))
}

/// A datagram that has to be fragmented, with its checksum.
#[derive(Clone, Copy, Debug)]
struct Datagram<'a> {
    protocol: u8,
    header: [u8; TRANSPORT_LEN],
    payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// A UDP datagram. None if the payload is too long for UDP.
    fn udp(frame: &Outgoing, (source_port, destination_port): (u16, u16), payload: &'a [u8]) -> Option<Self> {
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

    fn send_fragment(
        &self,
        frame: &Outgoing,
        fields: &fragment::Fields,
        len: usize,
        link: &mut impl Link,
    ) -> Result<(), Full> {
        let at = frame.fragment_headroom();
        let mut reserved = link.reserve_head((at + len).max(ethernet::MIN_FRAME_LEN)).ok_or(Full)?;
        let slot = reserved.head();
        // The caller has refused lengths that do not fit in a packet.
        let Some(frame_len) = frame.fragment(slot, fields, len) else { return Ok(()) };
        let place = slot.get_mut(at..at + len).unwrap_or_default();
        let start = usize::from(fields.offset);
        let (first, rest) = place.split_at_mut(TRANSPORT_LEN.saturating_sub(start).min(place.len()));
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

    /// The test covers all sums. A computed checksum of zero is sent as all ones, since zero means that there is no
    /// checksum (RFC 768).
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
