//! Whole frames. Parsing takes one pass. Writing puts headers before a payload.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, IntoBytes, big_endian::U16};

use crate::{
    arp,
    checksum::Sum,
    ethernet::{self, Mac, ethertype},
    fragment::Fragment,
    icmp, ipv4, ipv6,
    offload::{Offload, PartialChecksum, SegmentKind, Segmentation},
    payload::Payload,
    protocol, tcp, udp,
};

/// Largest frame, in bytes, with its Ethernet header.
pub const MAX_LEN: usize = ethernet::HEADER_LEN + 65535;

/// Number of bytes at the start of a frame that contain all headers of every usable frame. The longest Ethernet, IPv6
/// and TCP headers take 114 bytes; the rest is room for IPv6 extension headers.
pub const HEAD_LEN: usize = 256;

/// A parsed frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a, P = &'a [u8]> {
    /// Source hardware address.
    pub source_mac: Mac,
    /// Destination hardware address.
    pub destination_mac: Mac,
    /// What the frame carries.
    pub body: Body<'a, P>,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a, P = &'a [u8]> {
    /// An ARP packet.
    Arp(&'a arp::Packet),
    /// An IP packet of either version.
    Ip(Packet<'a, P>),
}

/// An IP packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a, P = &'a [u8]> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address; of the same version as `source`.
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label; zero for IPv4.
    pub flow_label: u32,
    /// Routers must not fragment the packet: the DF flag for IPv4, always true for IPv6. False for a packet that was
    /// reassembled from fragments.
    pub dont_fragment: bool,
    /// The upper layer.
    pub transport: Transport<'a, P>,
}

/// The upper layer of an IP packet.
#[derive(Clone, Copy, Debug)]
pub enum Transport<'a, P = &'a [u8]> {
    /// TCP.
    Tcp(tcp::Segment<'a, P>),
    /// UDP.
    Udp(udp::Datagram<'a, P>),
    /// ICMP of the packet's IP version.
    Icmp(icmp::Message<'a, P>),
    /// Any other protocol: its number and its payload.
    Other(u8, P),
    /// A fragment. The transport header is parsed after reassembly ([`crate::assembly`]).
    Fragment(Fragment<P>),
}

/// Why a frame cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// A header extends past the end of the frame, or length fields contradict each other.
    Malformed,
    /// An EtherType other than those of [`ethertype`], in host byte order.
    UnknownEthertype(u16),
}

/// The head of a frame in one buffer: its first [`HEAD_LEN`] bytes, or all of a shorter frame.
#[must_use]
pub fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(HEAD_LEN)]
}

/// Parses a frame in one contiguous buffer. Bytes after the end of the IP packet are padding and are ignored.
/// Checksums are not verified here: see [`crate::verify`].
///
/// # Errors
/// [`Unusable`] says why; drop the frame.
pub fn parse(bytes: &[u8]) -> Result<Frame<'_>, Unusable> {
    parse_head(bytes, bytes)
}

/// Parses a frame from its first bytes alone. `head` is a copy or view of the first [`HEAD_LEN`] bytes of `frame`, or
/// of all its bytes. The payload is the part of `frame` after the headers, and is not read.
///
/// # Errors
/// As [`parse`]; headers that extend past `head` are malformed.
pub fn parse_head<'a, P: Payload>(head: &'a [u8], frame: P) -> Result<Frame<'a, P>, Unusable> {
    let (header, head) = ethernet::Header::ref_from_prefix(head).map_err(|_| Unusable::Malformed)?;
    let packet = frame.slice(ethernet::HEADER_LEN..frame.len());
    let body = match header.ethertype.get() {
        ethertype::IPV4 => Body::Ip(parse_ipv4(head, packet)?),
        ethertype::IPV6 => Body::Ip(parse_ipv6(head, packet)?),
        ethertype::ARP => Body::Arp(arp::Packet::ref_from_prefix(head).map_err(|_| Unusable::Malformed)?.0),
        other => return Err(Unusable::UnknownEthertype(other)),
    };
    Ok(Frame { source_mac: header.source, destination_mac: header.destination, body })
}

fn parse_ipv4<'a, P: Payload>(head: &'a [u8], bytes: P) -> Result<Packet<'a, P>, Unusable> {
    let (header, _) = ipv4::Header::ref_from_prefix(head).map_err(|_| Unusable::Malformed)?;
    let (header_len, total_len) = (header.header_len(), usize::from(header.total_len.get()));
    // The packet has at least its header, and does not extend past the frame. A frame with padding is longer than the
    // packet.
    if header.version_ihl >> 4 != 4 || header_len < ipv4::HEADER_LEN {
        return Err(Unusable::Malformed);
    }
    if !(header_len..=bytes.len()).contains(&total_len) {
        return Err(Unusable::Malformed);
    }
    let head = head.get(header_len..total_len.min(head.len())).ok_or(Unusable::Malformed)?;
    let upper = bytes.slice(header_len..total_len);
    let transport = if header.is_fragment() {
        Transport::Fragment(Fragment::v4(header, upper))
    } else {
        parse_transport(true, header.protocol, head, upper)?
    };
    Ok(Packet {
        source: Ipv4Addr::from(header.source).into(),
        destination: Ipv4Addr::from(header.destination).into(),
        hop_limit: header.ttl,
        traffic_class: header.traffic_class,
        flow_label: 0,
        dont_fragment: header.dont_fragment(),
        transport,
    })
}

fn parse_ipv6<'a, P: Payload>(head: &'a [u8], bytes: P) -> Result<Packet<'a, P>, Unusable> {
    let (header, head) = ipv6::Header::ref_from_prefix(head).map_err(|_| Unusable::Malformed)?;
    if header.version_class_flow.get() >> 28 != 6 {
        return Err(Unusable::Malformed);
    }
    let total_len = ipv6::HEADER_LEN + usize::from(header.payload_len.get());
    if total_len > bytes.len() {
        return Err(Unusable::Malformed);
    }
    let bytes = bytes.slice(ipv6::HEADER_LEN..total_len);
    let head = &head[..head.len().min(bytes.len())];
    let (protocol, upper) = ipv6::upper_layer(header.next_header, head).ok_or(Unusable::Malformed)?;
    // `upper` is a suffix of `head`, so this is the length of the extension headers before it.
    let unfragmentable = head.len() - upper.len();
    let bytes = bytes.slice(unfragmentable..bytes.len());
    let transport = if protocol == ipv6::FRAGMENT {
        Transport::Fragment(Fragment::v6(upper, bytes, unfragmentable).ok_or(Unusable::Malformed)?)
    } else {
        parse_transport(false, protocol, upper, bytes)?
    };
    Ok(Packet {
        source: Ipv6Addr::from(header.source).into(),
        destination: Ipv6Addr::from(header.destination).into(),
        hop_limit: header.hop_limit,
        traffic_class: header.traffic_class(),
        flow_label: header.flow_label(),
        dont_fragment: true,
        transport,
    })
}

pub(crate) fn parse_transport<'a, P: Payload>(
    v4: bool,
    protocol: u8,
    head: &'a [u8],
    bytes: P,
) -> Result<Transport<'a, P>, Unusable> {
    match protocol {
        protocol::TCP => tcp::Segment::parse_head(head, bytes).map(Transport::Tcp),
        protocol::UDP => udp::Datagram::parse_head(head, bytes).map(Transport::Udp),
        _ if protocol == protocol::icmp(v4) => icmp::Message::parse_head(head, bytes).map(Transport::Icmp),
        _ => Some(Transport::Other(protocol, bytes)),
    }
    .ok_or(Unusable::Malformed)
}

/// The headers below the transport layer of a frame to be written.
///
/// The caller first places the payload at offset [`Outgoing::headroom`]. Then one of the methods writes the headers
/// before the payload. It returns the length of the frame (padded to [`ethernet::MIN_FRAME_LEN`]) and the work that is
/// left to the link. [`Outgoing::tcp`] and [`Outgoing::udp`] do not read the payload, so it may be in another buffer.
/// They add no padding past the end of `buffer`: the caller must add it there.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing {
    /// Ethernet source.
    pub source_mac: Mac,
    /// Ethernet destination.
    pub destination_mac: Mac,
    /// IP source.
    pub source: IpAddr,
    /// IP destination; of the same version as `source`.
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label; not used with IPv4.
    pub flow_label: u32,
}

/// The result of writing a frame.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Written {
    /// Length of the frame in bytes, padding included.
    pub len: usize,
    /// The work that is left to the link: complete a checksum, cut segments.
    pub offload: Offload,
}

impl Outgoing {
    /// Length of the Ethernet and IP headers, in bytes.
    #[must_use]
    pub const fn network_len(&self) -> usize {
        ethernet::HEADER_LEN + if self.source.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
    }

    /// Offset of the payload in the frame, in bytes, after a transport header of `transport_len` bytes.
    #[must_use]
    pub const fn headroom(&self, transport_len: usize) -> usize {
        self.network_len() + transport_len
    }

    /// Writes the headers of a TCP segment with `payload_len` bytes of payload, and `options` (a multiple of four
    /// bytes). With `segment_size`, a longer payload makes a super-frame of segments with that many bytes of payload
    /// each. The checksum field holds the sum of the pseudo-header; the link completes it.
    ///
    /// None if the headers do not fit in `buffer`, the payload does not fit in an IP packet, or the IP versions of
    /// source and destination differ.
    pub fn tcp(
        &self,
        buffer: &mut [u8],
        mut header: tcp::Header,
        options: &[u8],
        payload_len: usize,
        segment_size: Option<u16>,
    ) -> Option<Written> {
        let transport_len = tcp::HEADER_LEN + options.len();
        header.checksum = U16::new(self.pseudo_header(protocol::TCP, transport_len + payload_len).folded());
        let at = self.network(buffer, protocol::TCP, transport_len + payload_len)?;
        let place = buffer.get_mut(at..at + transport_len)?;
        place[..tcp::HEADER_LEN].copy_from_slice(header.as_bytes());
        place[tcp::HEADER_LEN..].copy_from_slice(options);
        let kind = if self.source.is_ipv4() { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
        self.finish(
            buffer,
            transport_len,
            payload_len,
            tcp::CHECKSUM_OFFSET,
            segment_size.map(|size| (kind, size)),
        )
    }

    /// Writes the headers of a UDP datagram, or with `segment_size` those of a super-frame of datagrams with that many
    /// bytes of payload each. Ports are in host byte order. The link completes the checksum, as in [`Outgoing::tcp`].
    /// None in the same cases.
    pub fn udp(
        &self,
        buffer: &mut [u8],
        (source_port, destination_port): (u16, u16),
        payload_len: usize,
        segment_size: Option<u16>,
    ) -> Option<Written> {
        let len = udp::HEADER_LEN + payload_len;
        let header = udp::Header {
            source_port: U16::new(source_port),
            destination_port: U16::new(destination_port),
            len: U16::new(u16::try_from(len).ok()?),
            checksum: U16::new(self.pseudo_header(protocol::UDP, len).folded()),
        };
        let at = self.network(buffer, protocol::UDP, len)?;
        buffer.get_mut(at..at + udp::HEADER_LEN)?.copy_from_slice(header.as_bytes());
        let segmentation = segment_size.map(|size| (SegmentKind::Udp, size));
        self.finish(buffer, udp::HEADER_LEN, payload_len, udp::CHECKSUM_OFFSET, segmentation)
    }

    /// Writes the headers of an ICMP message for IPv4 addresses, or of an ICMPv6 message for IPv6 addresses. The
    /// checksum is complete, so the payload must be in `buffer`. None if the message does not fit in `buffer`, and in
    /// the cases of [`Outgoing::tcp`].
    pub fn icmp(&self, buffer: &mut [u8], mut header: icmp::Header, payload_len: usize) -> Option<Written> {
        let len = icmp::HEADER_LEN + payload_len;
        let (protocol, sum) = match self.source {
            IpAddr::V4(_) => (protocol::ICMP, Sum::new()),
            IpAddr::V6(_) => (protocol::ICMPV6, self.pseudo_header(protocol::ICMPV6, len)),
        };
        let at = self.network(buffer, protocol, len)?;
        let message = buffer.get_mut(at..at + len)?;
        header.checksum = U16::ZERO;
        message[..icmp::HEADER_LEN].copy_from_slice(header.as_bytes());
        header.checksum = U16::new(sum.bytes(message).finish());
        message[..icmp::HEADER_LEN].copy_from_slice(header.as_bytes());
        Some(Written { len: pad(buffer, at + len), offload: Offload::default() })
    }

    fn pseudo_header(&self, protocol: u8, len: usize) -> Sum {
        Sum::new().pseudo_header(self.source, self.destination, protocol, len)
    }

    /// Writes the Ethernet and IP headers for `upper_len` bytes after them; returns the offset of the transport header.
    pub(crate) fn network(&self, buffer: &mut [u8], protocol: u8, upper_len: usize) -> Option<usize> {
        let ethertype = if self.source.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        let start = ethernet::HEADER_LEN;
        let header = ethernet::Header {
            destination: self.destination_mac,
            source: self.source_mac,
            ethertype: U16::new(ethertype),
        };
        buffer.get_mut(..start)?.copy_from_slice(header.as_bytes());
        let end = self.network_len();
        let place = buffer.get_mut(start..end)?;
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                if upper_len + ipv4::HEADER_LEN > usize::from(u16::MAX) {
                    return None;
                }
                let (hop_limit, class) = (self.hop_limit, self.traffic_class);
                let header = ipv4::Header::new(source, destination, protocol, hop_limit, class, upper_len);
                place.copy_from_slice(header.as_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                if upper_len > usize::from(u16::MAX) {
                    return None;
                }
                let header = ipv6::Header::new(
                    source,
                    destination,
                    protocol,
                    self.hop_limit,
                    self.traffic_class,
                    self.flow_label,
                    upper_len,
                );
                place.copy_from_slice(header.as_bytes());
            }
            _ => return None,
        }
        Some(end)
    }

    fn finish(
        &self,
        buffer: &mut [u8],
        transport_len: usize,
        payload_len: usize,
        checksum_offset: u16,
        segmentation: Option<(SegmentKind, u16)>,
    ) -> Option<Written> {
        let header_len = self.headroom(transport_len);
        let start = self.network_len() as u16;
        let segmentation = segmentation.filter(|&(_, size)| size > 0 && payload_len > usize::from(size));
        let offload = Offload {
            segmentation: segmentation.map(|(kind, size)| Segmentation { kind, size, ecn: false }),
            checksum: Some(PartialChecksum { start, offset: checksum_offset }),
            verified: false,
            header_len: if segmentation.is_some() { header_len as u16 } else { 0 },
        };
        Some(Written { len: pad(buffer, header_len + payload_len), offload })
    }
}

/// Pads a frame of `len` bytes with zeros to [`ethernet::MIN_FRAME_LEN`], and returns the new length. Padding past the
/// end of `buffer` is not written.
pub(crate) fn pad(buffer: &mut [u8], len: usize) -> usize {
    let padded = len.max(ethernet::MIN_FRAME_LEN);
    let end = padded.min(buffer.len());
    buffer[len.min(end)..end].fill(0);
    padded
}
