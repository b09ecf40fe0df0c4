//! Segmentation and checksums in software, for links that lack one or both.
//!
//! A super-frame is one frame whose payload is longer than a segment: [`Segmentation`](crate::offload::Segmentation)
//! has the length of the segments. A kernel with the matching offload cuts the frame into segments. For other links,
//! [`Segments`] does the same.

use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use zerocopy::{
    FromBytes,
    big_endian::{U16, U32},
};

use crate::{
    checksum::Sum,
    ethernet, ipv4, ipv6,
    offload::{Offload, SegmentKind},
    protocol, tcp, udp,
};

/// Completes the partial checksum of a frame that is not a super-frame.
///
/// The checksum field already holds the sum of the pseudo-header, not complemented. The sum over the transport header
/// and payload includes that field, so it is the sum of RFC 9293 §3.1 and RFC 768. Only its complement has to be
/// stored.
///
/// Returns false, with the frame unchanged, if the offsets of `offload` are outside the IP packet.
pub fn complete_checksum(frame: &mut [u8], offload: &Offload) -> bool {
    let Some(partial) = offload.checksum else { return true };
    let (start, at) = (usize::from(partial.start), usize::from(partial.start) + usize::from(partial.offset));
    // Padding after the IP packet must not be summed. It need not be zero.
    let end = packet_end(frame).unwrap_or(frame.len());
    if start > end || at + 2 > end {
        return false;
    }
    let sum = Sum::new().bytes(&frame[start..end]);
    // The offset identifies the protocol: UDP has its checksum at this offset, TCP does not. In UDP, zero means "no
    // checksum", so a computed zero is sent as 0xffff. In TCP, zero is a valid checksum.
    let checksum = if partial.offset == udp::CHECKSUM_OFFSET { sum.finish_udp() } else { sum.finish() };
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// The offset in `frame` at which the IP packet ends, by its length field. None if there is no IP header.
fn packet_end(frame: &[u8]) -> Option<usize> {
    let rest = frame.get(ethernet::HEADER_LEN..)?;
    let len = match rest.first()? >> 4 {
        4 => usize::from(ipv4::Header::ref_from_prefix(rest).ok()?.0.total_len.get()),
        6 => ipv6::HEADER_LEN + usize::from(ipv6::Header::ref_from_prefix(rest).ok()?.0.payload_len.get()),
        _ => return None,
    };
    Some((ethernet::HEADER_LEN + len).min(frame.len()))
}

/// Cuts a super-frame into segments, one at a time.
///
/// Each segment is a separate frame: an adjusted copy of the headers, and the next `size` bytes of payload. IP lengths
/// and checksums are computed for each segment. These other fields are adjusted:
///
/// - TCP: the sequence number advances by the payload before the segment. FIN and PSH apply to the end of the data, so
///   only the last segment keeps them. CWR reports one reduction of the window, so only the first segment keeps it (RFC
///   3168 §6.1.2).
/// - UDP: the length field.
#[derive(Debug)]
pub struct Segments<'a> {
    /// Ethernet, IP and transport headers of the super-frame.
    headers: &'a [u8],
    payload: &'a [u8],
    kind: SegmentKind,
    /// Payload of each segment except the last, in bytes; not zero.
    size: usize,
    /// Offset in `payload` of the next segment.
    next: usize,
    /// Whether checksums stay partial: then the checksum field contains the sum of the pseudo-header.
    partial: bool,
}

impl<'a> Segments<'a> {
    /// The segments of `frame`. None if `offload` requests no segmentation, or does not match the headers of the frame.
    #[must_use]
    pub fn new(frame: &'a [u8], offload: &Offload) -> Option<Self> {
        let segmentation = offload.segmentation?;
        let frame = &frame[..packet_end(frame)?];
        let transport = usize::from(offload.checksum?.start);
        let header_len = transport
            + match segmentation.kind {
                SegmentKind::Tcp4 | SegmentKind::Tcp6 => {
                    let segment = frame.get(transport..)?;
                    tcp::Segment::parse_head(segment, segment)?.header.header_len()
                }
                SegmentKind::Udp => udp::HEADER_LEN,
            };
        let (headers, payload) = frame.split_at_checked(header_len)?;
        let size = usize::from(segmentation.size);
        (size > 0).then_some(Self {
            headers,
            payload,
            kind: segmentation.kind,
            size,
            next: 0,
            partial: false,
        })
    }

    /// The same segments with partial checksums: [`Offload::checksum`] of the super-frame applies to each.
    #[must_use]
    pub const fn with_partial_checksums(mut self) -> Self {
        self.partial = true;
        self
    }

    /// Number of segments that are not written yet.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.payload.len().saturating_sub(self.next).div_ceil(self.size)
    }

    /// Writes the next segment to `buffer`; returns its length in bytes. None after the last segment, or if the buffer
    /// is too small. A buffer that is too small does not consume the segment.
    pub fn write_next(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let remaining = self.payload.len().checked_sub(self.next)?;
        if buffer.len() < self.headers.len() + remaining.min(self.size) {
            return None;
        }
        let (header, payload) = self.write_next_header(buffer)?;
        let payload = &self.payload[payload.start - self.headers.len()..payload.end - self.headers.len()];
        buffer.get_mut(header..header + payload.len())?.copy_from_slice(payload);
        Some(header + payload.len())
    }

    /// Writes the headers of the next segment to `buffer`; returns their length in bytes, and the range of the
    /// segment's payload in the super-frame, so that the caller can gather it without a copy. None after the last
    /// segment, or if the buffer is too small. A buffer that is too small does not consume the segment.
    pub fn write_next_header(&mut self, buffer: &mut [u8]) -> Option<(usize, Range<usize>)> {
        let payload = self.payload.get(self.next..).filter(|rest| !rest.is_empty())?;
        let payload = &payload[..payload.len().min(self.size)];
        let last = self.next + payload.len() == self.payload.len();
        let len = self.headers.len();
        let headers = buffer.get_mut(..len)?;
        headers.copy_from_slice(self.headers);
        let (transport_at, pseudo_header) = fix_network_header(headers, payload.len(), self.protocol())?;
        self.fix_transport_header(headers.get_mut(transport_at..)?, payload, pseudo_header, last)?;
        let start = len + self.next;
        self.next += payload.len();
        Some((len, start..start + payload.len()))
    }

    const fn protocol(&self) -> u8 {
        match self.kind {
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => protocol::TCP,
            SegmentKind::Udp => protocol::UDP,
        }
    }

    fn fix_transport_header(
        &self,
        bytes: &mut [u8],
        payload: &[u8],
        pseudo_header: Sum,
        last: bool,
    ) -> Option<()> {
        let len = bytes.len() + payload.len();
        let at = match self.kind {
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => {
                let (header, _) = tcp::Header::mut_from_prefix(bytes).ok()?;
                header.sequence = U32::new(header.sequence.get().wrapping_add(self.next as u32));
                let mut flags = tcp::Flags::from_bits_retain(header.flags);
                if !last {
                    flags.remove(tcp::Flags::FIN | tcp::Flags::PSH);
                }
                if self.next > 0 {
                    flags.remove(tcp::Flags::CWR);
                }
                header.flags = flags.bits();
                header.checksum = U16::ZERO;
                usize::from(tcp::CHECKSUM_OFFSET)
            }
            SegmentKind::Udp => {
                let (header, _) = udp::Header::mut_from_prefix(bytes).ok()?;
                header.len = U16::new(len as u16);
                header.checksum = U16::ZERO;
                usize::from(udp::CHECKSUM_OFFSET)
            }
        };
        let checksum = if self.partial {
            pseudo_header.folded()
        } else {
            // The length of the transport header is even, so the payload starts at a 16-bit word of the sum.
            let sum = pseudo_header.bytes(bytes).bytes(payload);
            match self.kind {
                SegmentKind::Tcp4 | SegmentKind::Tcp6 => sum.finish(),
                SegmentKind::Udp => sum.finish_udp(),
            }
        };
        bytes.get_mut(at..at + 2)?.copy_from_slice(&checksum.to_be_bytes());
        Some(())
    }
}

/// Adjusts the IP header in `headers` to a segment with `payload_len` bytes of payload; returns the offset of the
/// transport header, and the sum of the pseudo-header.
///
/// None if the header after the IP header is not that of `protocol`: packets with IPv6 extension headers are not
/// segmented.
fn fix_network_header(headers: &mut [u8], payload_len: usize, protocol: u8) -> Option<(usize, Sum)> {
    let frame_len = headers.len() + payload_len;
    let rest = headers.get_mut(ethernet::HEADER_LEN..)?;
    if rest.first()? >> 4 == 4 {
        let header = ipv4::Header::mut_from_prefix(rest).ok()?.0;
        if header.protocol != protocol {
            return None;
        }
        header.total_len = U16::new((frame_len - ethernet::HEADER_LEN) as u16);
        header.update_checksum();
        let at = ethernet::HEADER_LEN + header.header_len();
        let (source, destination) = (Ipv4Addr::from(header.source), Ipv4Addr::from(header.destination));
        Some((at, pseudo(source.into(), destination.into(), protocol, frame_len.checked_sub(at)?)))
    } else {
        let header = ipv6::Header::mut_from_prefix(rest).ok()?.0;
        if header.next_header != protocol {
            return None;
        }
        let at = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
        header.payload_len = U16::new((frame_len - at) as u16);
        let (source, destination) = (Ipv6Addr::from(header.source), Ipv6Addr::from(header.destination));
        Some((at, pseudo(source.into(), destination.into(), protocol, frame_len - at)))
    }
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Sum {
    Sum::new().pseudo_header(source, destination, protocol, len)
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use alloc::{vec, vec::Vec};

    use super::*;
    use crate::{
        ethernet::Mac,
        frame::Outgoing,
        tcp::{Flags, Header, Seq},
    };

    /// A partial checksum that is completed later gives the same frame as a checksum that is computed during
    /// segmentation.
    #[test]
    fn partial_checksums_can_be_completed() {
        for (source, destination) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            let outgoing = Outgoing {
                source_mac: Mac([2, 0, 0, 0, 0, 1]),
                destination_mac: Mac([2, 0, 0, 0, 0, 2]),
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                hop_limit: 64,
                traffic_class: 0,
                flow_label: 0,
            };
            let start = outgoing.headroom(tcp::HEADER_LEN);
            let mut frame: Vec<u8> = (0..start + 2501).map(|byte| byte as u8).collect();
            let header = Header::new((5, 80), Seq(u32::MAX), Seq(7), Flags::ACK, 100, 0);
            let offload = outgoing.tcp(&mut frame, header, &[], 2501, Some(1000)).unwrap().offload;
            let segments = |mut segments: Segments<'_>| {
                let mut all = Vec::new();
                let mut buffer = vec![0; 2000];
                while let Some(len) = segments.write_next(&mut buffer) {
                    all.push(buffer[..len].to_vec());
                }
                all
            };
            let summed = segments(Segments::new(&frame, &offload).unwrap());
            let mut partial = segments(Segments::new(&frame, &offload).unwrap().with_partial_checksums());
            assert_eq!((summed.len(), partial.len()), (3, 3));
            for (partial, summed) in partial.iter_mut().zip(&summed) {
                assert_ne!(partial, summed);
                assert!(complete_checksum(partial, &Offload { segmentation: None, ..offload }));
                assert_eq!(partial, summed);
            }
        }
    }
}
