//! Verification of the checksums of packets from the guest, with the offload metadata of the link.

use alloc::vec::Vec;

use wire::{
    frame::{Packet, Transport},
    offload::{Offload, PartialChecksum, SegmentKind},
    payload::Payload,
    segment::complete_checksum,
    tcp, udp, verify,
};

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The checksums are right, or the link has verified them.
    Right,
    /// A checksum is wrong.
    Wrong,
    /// The offload metadata contradicts the packet.
    Contradiction,
    /// The payload has a partial checksum: the checksum of a packet in a tunnel.
    PartialInPayload,
}

/// Checks the packet of a frame that begins with `head`.
pub(crate) fn check<P: Payload>(head: &[u8], packet: &Packet<'_, P>, offload: &Offload) -> Verdict {
    if let Some(segmentation) = offload.segmentation
        && !fits(segmentation.kind, packet)
    {
        return Verdict::Contradiction;
    }
    let Some(partial) = offload.checksum else {
        let right = offload.verified || verify::network(head) && verify::transport(packet);
        return if right { Verdict::Right } else { Verdict::Wrong };
    };
    match verify::checksum_location(head) {
        // The checksum would cover the whole datagram, but the packet is a fragment.
        _ if matches!(packet.transport, Transport::Fragment(_)) => Verdict::Contradiction,
        Some(own) if own == partial => Verdict::Right,
        // No negotiable feature includes segmentation of tunnel packets.
        Some(own) if is_in_payload(partial, own, packet) && offload.segmentation.is_none() => {
            Verdict::PartialInPayload
        }
        Some(_) => Verdict::Contradiction,
        // The packet's protocol is not forwarded, so its checksum does not matter.
        None => Verdict::Right,
    }
}

/// Whether a packet of this protocol can be segmented in this way.
fn fits<P>(kind: SegmentKind, packet: &Packet<'_, P>) -> bool {
    match (kind, &packet.transport) {
        (SegmentKind::Tcp4, Transport::Tcp(_)) => packet.source.is_ipv4(),
        (SegmentKind::Tcp6, Transport::Tcp(_)) => packet.source.is_ipv6(),
        (SegmentKind::Udp, Transport::Udp(_)) => true,
        _ => false,
    }
}

/// Whether a partial checksum covers only payload of the packet. `own` is the location of the packet's own checksum.
fn is_in_payload<P>(partial: PartialChecksum, own: PartialChecksum, packet: &Packet<'_, P>) -> bool {
    let header_len = match &packet.transport {
        Transport::Tcp(segment) => tcp::HEADER_LEN + segment.options.len(),
        _ => udp::HEADER_LEN,
    };
    usize::from(partial.start) >= usize::from(own.start) + header_len
}

/// Copies a frame to `copy` and completes its partial checksum. Returns false if the location of the checksum is
/// outside the frame.
pub(crate) fn complete(frame: impl Payload, offload: &Offload, copy: &mut Vec<u8>) -> bool {
    copy.resize(frame.len(), 0);
    frame.copy_to(copy);
    complete_checksum(copy, offload)
}

#[cfg(test)]
mod tests;
