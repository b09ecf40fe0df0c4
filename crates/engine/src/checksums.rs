//! What the checksums of a packet of the guest mean for it, by what its link says of them.

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
    /// Its checksums are right, or the link vouches for them.
    Right,
    /// A checksum is wrong.
    Wrong,
    /// The link says what contradicts the packet.
    Contradiction,
    /// Its payload holds a checksum that was left open: that of a packet in a tunnel.
    OpenInside,
}

/// Judges the packet of a frame that begins with `head`.
pub(crate) fn judge<P: Payload>(head: &[u8], packet: &Packet<'_, P>, offload: &Offload) -> Verdict {
    if let Some(segmentation) = offload.segmentation
        && !fits(segmentation.kind, packet)
    {
        return Verdict::Contradiction;
    }
    let Some(open) = offload.checksum else {
        let right = offload.verified || verify::network(head) && verify::transport(packet);
        return if right { Verdict::Right } else { Verdict::Wrong };
    };
    match verify::place(head) {
        // The sum is over the whole datagram.
        _ if matches!(packet.transport, Transport::Fragment(_)) => Verdict::Contradiction,
        Some(own) if own == open => Verdict::Right,
        // No super-frame of a tunnel was ever offered to a guest.
        Some(own) if is_in_payload(open, own, packet) && offload.segmentation.is_none() => {
            Verdict::OpenInside
        }
        Some(_) => Verdict::Contradiction,
        // Of a protocol that is not carried.
        None => Verdict::Right,
    }
}

/// Whether packets like this can be cut in this way.
fn fits<P>(kind: SegmentKind, packet: &Packet<'_, P>) -> bool {
    match (kind, &packet.transport) {
        (SegmentKind::Tcp4, Transport::Tcp(_)) => packet.source.is_ipv4(),
        (SegmentKind::Tcp6, Transport::Tcp(_)) => packet.source.is_ipv6(),
        (SegmentKind::Udp, Transport::Udp(_)) => true,
        _ => false,
    }
}

/// Whether all that an open checksum is about is payload of the packet, whose `own` checksum is elsewhere.
fn is_in_payload<P>(open: PartialChecksum, own: PartialChecksum, packet: &Packet<'_, P>) -> bool {
    let header_len = match &packet.transport {
        Transport::Tcp(segment) => tcp::HEADER_LEN + segment.options.len(),
        _ => udp::HEADER_LEN,
    };
    usize::from(open.start) >= usize::from(own.start) + header_len
}

/// Copies a frame to `copy` and completes the checksum in it that was left open. False if it has no place in the frame.
pub(crate) fn complete(frame: impl Payload, offload: &Offload, copy: &mut Vec<u8>) -> bool {
    copy.resize(frame.len(), 0);
    frame.copy_to(copy);
    complete_checksum(copy, offload)
}

#[cfg(test)]
mod tests;
