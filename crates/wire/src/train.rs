//! Trains: adjacent segments of one TCP connection, joined into one, like generic receive offload (GRO) in a kernel.
//!
//! Trains serve links without offloads, where no frame is longer than the guest's MTU. With a train, one `send` call
//! takes the payload of many segments.
//!
//! A segment is joined only if it is the next one in sequence, its checksums are right, and its headers are equal to
//! those of the train except for the fields that a train updates. Any other segment ends the train and is processed
//! alone. So the engine gets the same bytes in the same order, in fewer pieces.

use core::ops::Range;

use zerocopy::FromBytes;

use crate::{
    checksum::Sum,
    ethernet::{self, Header as Ethernet},
    ipv4, ipv6,
    offload::{Offload, PartialChecksum},
    payload::Payload,
    protocol,
    tcp::{self, Flags, Seq},
};

/// Longest IP packet of a train, in bytes: the limit of a 16-bit length field.
const MAX_PACKET_LEN: usize = 65535;
/// Offset of the checksum in the TCP header, in bytes.
const CHECKSUM_OFFSET: u16 = 16;

/// A segment to which later segments can be joined.
#[derive(Clone, Copy, Debug)]
pub struct Train {
    network: Network,
    /// Length of the Ethernet, IP and TCP headers, in bytes.
    header_len: usize,
    /// The sequence number that a segment must have to be joined.
    next: Seq,
    /// Length of the train with all headers, in bytes.
    len: usize,
    /// At least one segment was joined, so length fields are out of date.
    joined: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    V4,
    V6,
}

/// A segment that can be part of a train.
struct Parts {
    network: Network,
    /// Offset of the TCP header in the frame.
    transport: usize,
    /// Length of the Ethernet, IP and TCP headers, in bytes.
    header_len: usize,
    seq: Seq,
}

impl Train {
    /// A train with `frame` as its first segment. None if the frame is not a plain data segment, is a super-frame, or
    /// has a wrong checksum. `head` is a copy or view of the first bytes of the frame, which include all headers. Only
    /// this copy of the headers is read.
    #[must_use]
    pub fn begin<P: Payload>(head: &[u8], frame: P, offload: &Offload) -> Option<Self> {
        let parts = parse(head, frame.len()).filter(|parts| parts.is_right(head, frame, offload))?;
        let Parts { network, header_len, seq, .. } = parts;
        let next = seq + (frame.len() - header_len) as u32;
        Some(Self { network, header_len, next, len: frame.len(), joined: false })
    }

    /// Joins a segment to the train. The arguments are as for [`Train::begin`]; `first` are the headers of the train,
    /// which are updated. Returns the range of the payload in `frame`, which the caller must add to the end of the
    /// train. None, and nothing changes, if the segment is not the next one, a checksum is wrong, or the train would be
    /// too long.
    #[must_use]
    pub fn join<P: Payload>(
        &mut self,
        first: &mut [u8],
        head: &[u8],
        frame: P,
        offload: &Offload,
    ) -> Option<Range<usize>> {
        let parts = parse(head, frame.len()).filter(|parts| self.precedes(parts, first, head))?;
        let payload = parts.header_len..frame.len();
        if self.len + payload.len() > ethernet::HEADER_LEN + MAX_PACKET_LEN
            || !parts.is_right(head, frame, offload)
        {
            return None;
        }
        let (headers, later) = tcp_headers(first, head, parts.transport)?;
        // The last segment has the newest acknowledgment and window. A PSH of any segment applies to the train.
        headers.acknowledgment = later.acknowledgment;
        headers.window = later.window;
        headers.flags |= later.flags;
        self.next += payload.len() as u32;
        self.len += payload.len();
        self.joined = true;
        Some(payload)
    }

    /// Joins the segment at `next` in `buffer` to the train at `train`: moves the payload to the end of the train, and
    /// extends the range `train`. No checksum may be left to the receiver. Returns false and changes nothing if the
    /// segment can't be joined (see [`Train::join`]).
    pub fn join_in(&mut self, buffer: &mut [u8], train: &mut Range<usize>, next: Range<usize>) -> bool {
        let Some((front, frame)) = buffer.split_at_mut_checked(next.start) else { return false };
        let (Some(first), Some(frame)) = (front.get_mut(train.clone()), frame.get(..next.len())) else {
            return false;
        };
        let Some(payload) = self.join(first, frame, frame, &Offload::default()) else { return false };
        let end = train.end + payload.len();
        buffer.copy_within(next.start + payload.start..next.end, train.end);
        train.end = end;
        true
    }

    /// Whether `head` begins the next segment after the train: in sequence, and with equal headers, except for lengths,
    /// checksums, the IPv4 ID, TTL or hop limit, and the acknowledgment, flags and window of TCP.
    fn precedes(&self, parts: &Parts, first: &[u8], head: &[u8]) -> bool {
        /// Ranges of bytes that must be equal, from the start of the frame: Ethernet header and IP version; traffic
        /// class and flow label; protocol; addresses and ports.
        const V4: [Range<usize>; 3] = [0..16, 23..24, 26..38];
        const V6: [Range<usize>; 3] = [0..18, 20..21, 22..58];
        let same = |range: Range<usize>| first.get(range.clone()) == head.get(range);
        let fixed = match self.network {
            Network::V4 => V4,
            Network::V6 => V6,
        };
        parts.network == self.network
            && parts.seq == self.next
            && parts.header_len == self.header_len
            && fixed.into_iter().all(same)
            && same(parts.transport + tcp::HEADER_LEN..self.header_len)
    }

    /// Writes the length of the train to the IP header in `first`, the headers of the train. The TCP checksum stays
    /// that of the first segment, so it is wrong for the train. All segments were verified: the caller must mark the
    /// frame as verified.
    pub fn finish(&self, first: &mut [u8]) {
        if !self.joined {
            return;
        }
        let Some(packet) = first.get_mut(ethernet::HEADER_LEN..) else { return };
        let len = self.len - ethernet::HEADER_LEN;
        match self.network {
            Network::V4 => {
                if let Ok((header, _)) = ipv4::Header::mut_from_prefix(packet) {
                    header.total_len.set(len as u16);
                    header.update_checksum();
                }
            }
            Network::V6 => {
                if let Ok((header, _)) = ipv6::Header::mut_from_prefix(packet) {
                    header.payload_len.set((len - ipv6::HEADER_LEN) as u16);
                }
            }
        }
    }
}

impl Parts {
    /// Whether the frame is a single segment with right checksums: they were verified, or they are right now. A TCP
    /// checksum that is left to the receiver needs no verification.
    fn is_right<P: Payload>(&self, head: &[u8], frame: P, offload: &Offload) -> bool {
        let own = PartialChecksum { start: self.transport as u16, offset: CHECKSUM_OFFSET };
        offload.segmentation.is_none()
            && match offload.checksum {
                Some(partial) => partial == own,
                None => offload.verified || self.has_right_checksums(head, frame),
            }
    }

    /// Whether the checksums of the IPv4 header and of TCP are right.
    fn has_right_checksums<P: Payload>(&self, head: &[u8], frame: P) -> bool {
        // IP options are excluded, so the addresses are directly before the TCP header. The addresses are the greater
        // part of the pseudo-header, so one pass sums the addresses and the TCP header.
        let addresses = match self.network {
            Network::V4 => self.transport - 2 * size_of::<[u8; 4]>(),
            Network::V6 => self.transport - 2 * size_of::<[u8; 16]>(),
        };
        let (Some(header), Some(summed)) =
            (head.get(ethernet::HEADER_LEN..self.transport), head.get(addresses..self.header_len))
        else {
            return false;
        };
        // At most 65535: an IP packet is not longer.
        let len = frame.len() - self.transport;
        let sum = Sum::new().word(protocol::TCP.into()).word(len as u16).bytes(summed);
        let sum = sum.plus(frame.slice(self.header_len..frame.len()).sum());
        sum.finish() == 0 && (self.network == Network::V6 || Sum::new().bytes(header).finish() == 0)
    }
}

/// Parses the head of a plain data segment of `frame_len` bytes: no IP options or extension headers, no fragment, no
/// padding, at least one byte of payload, and no flags except ACK and PSH. Other segments change the connection's state
/// at a position in the stream, and joining would change that position.
fn parse(head: &[u8], frame_len: usize) -> Option<Parts> {
    let (ethernet, packet) = Ethernet::ref_from_prefix(head).ok()?;
    let (network, next_header, transport, len) = match ethernet.ethertype.get() {
        ethernet::ethertype::IPV4 => {
            let header = ipv4::Header::ref_from_prefix(packet).ok()?.0;
            if header.version_ihl != 0x45 || header.is_fragment() {
                return None;
            }
            (Network::V4, header.protocol, ipv4::HEADER_LEN, usize::from(header.total_len.get()))
        }
        ethernet::ethertype::IPV6 => {
            let header = ipv6::Header::ref_from_prefix(packet).ok()?.0;
            let len = ipv6::HEADER_LEN + usize::from(header.payload_len.get());
            (Network::V6, header.next_header, ipv6::HEADER_LEN, len)
        }
        _ => return None,
    };
    let transport = ethernet::HEADER_LEN + transport;
    let header = tcp::Header::ref_from_prefix(head.get(transport..)?).ok()?.0;
    let header_len = transport + header.header_len();
    let plain = Flags::from_bits_retain(header.flags).difference(Flags::PSH) == Flags::ACK;
    let whole = next_header == protocol::TCP && ethernet::HEADER_LEN + len == frame_len;
    let has_headers = header.header_len() >= tcp::HEADER_LEN && head.len() >= header_len;
    (plain && whole && has_headers && frame_len > header_len).then(|| Parts {
        network,
        transport,
        header_len,
        seq: Seq(header.sequence.get()),
    })
}

/// The TCP headers of the train, and of the segment that is joined.
fn tcp_headers<'a>(
    first: &'a mut [u8],
    later: &'a [u8],
    transport: usize,
) -> Option<(&'a mut tcp::Header, &'a tcp::Header)> {
    let first = tcp::Header::mut_from_prefix(first.get_mut(transport..)?).ok()?.0;
    let later = tcp::Header::ref_from_prefix(later.get(transport..)?).ok()?.0;
    Some((first, later))
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use alloc::{vec, vec::Vec};
    use core::net::IpAddr;

    use super::*;
    use crate::{
        ethernet::Mac,
        frame::{self, Body, Outgoing, Transport},
        segment::complete_checksum,
        verify,
    };

    const PAYLOAD: usize = 1000;

    /// A frame with the `number`th segment of a stream.
    fn segment(v6: bool, number: u32, flags: Flags) -> Vec<u8> {
        let address = |last: u8| -> IpAddr {
            if v6 {
                [0x20, 1, 13, 184, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last].into()
            } else {
                [192, 0, 2, last].into()
            }
        };
        let outgoing = Outgoing {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source: address(1),
            destination: address(2),
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
        };
        let start = outgoing.headroom(tcp::HEADER_LEN);
        let mut bytes = vec![0; start + PAYLOAD];
        bytes[start..].fill(number as u8);
        let seq = Seq(u32::MAX - 1500) + number * PAYLOAD as u32;
        let header = tcp::Header::new((5, 80), seq, Seq(7 + number), flags, 100 + number as u16, 0);
        let offload = outgoing.tcp(&mut bytes[..start], header, &[], PAYLOAD, None).unwrap().offload;
        assert!(complete_checksum(&mut bytes, &offload));
        bytes
    }

    fn begin(frame: &[u8]) -> Option<Train> {
        Train::begin(frame, frame, &Offload::default())
    }

    fn join(frames: &[Vec<u8>]) -> (Vec<u8>, usize) {
        let mut buffer = frames.concat();
        let mut train = 0..frames[0].len();
        let mut joined = begin(&frames[0]).unwrap();
        let mut at = train.end;
        let mut count = 1;
        for frame in &frames[1..] {
            let next = at..at + frame.len();
            at = next.end;
            if !joined.join_in(&mut buffer, &mut train, next) {
                break;
            }
            count += 1;
        }
        joined.finish(&mut buffer[train.clone()]);
        (buffer[train].to_vec(), count)
    }

    #[test]
    fn adjacent_segments_are_joined() {
        for v6 in [false, true] {
            let frames = [Flags::ACK, Flags::ACK, Flags::ACK | Flags::PSH];
            let frames: Vec<_> =
                frames.into_iter().zip(0..).map(|(flags, number)| segment(v6, number, flags)).collect();
            let (train, count) = join(&frames);
            assert_eq!(count, 3);
            let parsed = frame::parse(&train).unwrap();
            let Body::Ip(packet) = parsed.body else { unreachable!() };
            let Transport::Tcp(segment) = packet.transport else { unreachable!() };
            assert_eq!(segment.seq(), Seq(u32::MAX - 1500));
            assert_eq!((segment.ack(), segment.window()), (Seq(9), 102));
            assert_eq!(segment.flags(), Flags::ACK | Flags::PSH);
            let bytes: Vec<u8> = (0..3).flat_map(|number| [number; PAYLOAD]).collect();
            assert_eq!(segment.payload, bytes);
        }
    }

    #[test]
    fn other_segments_are_not_joined() {
        let first = || segment(false, 0, Flags::ACK);
        let mut padded = segment(false, 1, Flags::ACK);
        padded.push(0);
        // A higher port and a lower window: the checksum stays right.
        let mut other_port = segment(false, 1, Flags::ACK);
        other_port[37] += 1;
        other_port[49] -= 1;
        let others = [
            segment(false, 2, Flags::ACK),
            segment(false, 0, Flags::ACK),
            segment(false, 1, Flags::ACK | Flags::FIN),
            segment(true, 1, Flags::ACK),
            padded,
            other_port,
            segment(false, 1, Flags::ACK | Flags::URG),
        ];
        for other in others {
            let (train, count) = join(&[first(), other]);
            assert_eq!((count, train), (1, first()));
        }
        assert!(begin(&segment(false, 0, Flags::SYN)).is_none());
        assert!(begin(&first()[..40]).is_none());
    }

    /// A frame with any bit changed begins no train and joins none, unless its checksums are still right.
    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn segments_with_wrong_checksums_are_not_joined() {
        for v6 in [false, true] {
            let good = [segment(v6, 0, Flags::ACK), segment(v6, 1, Flags::ACK)];
            for at in 0..good[0].len() {
                for which in 0..2 {
                    let mut frames = good.clone();
                    frames[which][at] ^= 0x10;
                    let is_right = frame::parse(&frames[which]).is_ok_and(|frame| match frame.body {
                        Body::Ip(packet) => verify::transport(&packet),
                        Body::Arp(_) => true,
                    }) && verify::network(&frames[which]);
                    let joined = begin(&frames[0]).is_some() && join(&frames).1 == 2;
                    assert!(is_right || !joined, "IPv6: {v6}, byte {at} of frame {which}");
                    // No checksum covers the Ethernet addresses, the flow label and the hop limit. For another protocol
                    // number, there is no checksum to verify.
                    assert_eq!(
                        is_right,
                        at < 12 || v6 && (15..18).contains(&at) || v6 && (20..22).contains(&at),
                        "{at}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_train_is_not_longer_than_a_packet() {
        let frames: Vec<_> = (0..80).map(|number| segment(false, number, Flags::ACK)).collect();
        let (train, count) = join(&frames);
        assert_eq!(count, (MAX_PACKET_LEN - 40) / PAYLOAD);
        assert!(frame::parse(&train).is_ok());
    }
}
