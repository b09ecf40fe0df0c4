//! Control messages of datagram sockets: writing and parsing.
//!
//! The layout is that of cmsg(3): a `cmsghdr` in native byte order, then data, padded to the size of a machine word.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const WORD: usize = size_of::<usize>();
const HEADER_LEN: usize = size_of::<libc::cmsghdr>();

/// Capacity in bytes: enough for all messages of a [`SendInfo`], or of a [`ReceiveInfo`].
const CAPACITY: usize = 320;

/// A buffer of control messages.
#[derive(Clone, Debug)]
#[repr(C, align(8))]
pub struct Control {
    bytes: [u8; CAPACITY],
    len: usize,
}

impl Default for Control {
    fn default() -> Self {
        Self { bytes: [0; CAPACITY], len: 0 }
    }
}

/// Properties of one sent datagram that differ from those of the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendInfo {
    /// Source address, of the destination's family.
    pub source: Option<IpAddr>,
    /// Index of the outgoing interface. Zero: the route decides.
    pub interface: u32,
    /// Time to live or hop limit, 1 to 255.
    pub hop_limit: Option<u8>,
    /// DSCP and ECN.
    pub traffic_class: Option<u8>,
    /// The kernel splits the payload into datagrams of this many bytes (UDP_SEGMENT, Linux 4.18).
    pub segment_size: Option<u16>,
}

/// What the kernel reported about a received datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveInfo {
    /// Destination address of the packet.
    pub destination: Option<IpAddr>,
    /// Local address from which a reply can be sent. None for IPv6: the kernel reports only `destination`.
    pub local: Option<IpAddr>,
    /// Time to live or hop limit.
    pub hop_limit: Option<u8>,
    /// DSCP and ECN.
    pub traffic_class: Option<u8>,
    /// The payload is a sequence of datagrams of this many bytes. The last datagram may be shorter (UDP_GRO, Linux
    /// 5.0).
    pub segment_size: Option<u16>,
    /// The error, for an entry of the error queue.
    pub error: Option<ExtendedError>,
}

/// One entry of a socket's error queue: `sock_extended_err` of ip(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedError {
    /// The errno.
    pub errno: u32,
    /// The source of the error.
    pub origin: Origin,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// MTU in bytes for "fragmentation needed" and "packet too big".
    pub info: u32,
    /// The node that reported the error: the source address of the ICMP message.
    pub offender: Option<IpAddr>,
}

/// The source of an error (`ee_origin`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An ICMP message.
    Icmp,
    /// An ICMPv6 message.
    Icmp6,
    /// The local kernel.
    Local,
    /// Another source.
    Other,
}

impl Control {
    /// The control messages for `info`. `v4`: the destination is an IPv4 address. The socket may have either family.
    pub fn to_send(info: &SendInfo, v4: bool) -> Self {
        let mut control = Self::default();
        if v4 {
            if info.source.is_some() || info.interface != 0 {
                let source = match info.source {
                    Some(IpAddr::V4(address)) => address,
                    _ => Ipv4Addr::UNSPECIFIED,
                };
                let mut data = [0; 12];
                data[..4].copy_from_slice(&info.interface.to_ne_bytes());
                data[4..8].copy_from_slice(&source.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
            }
            control.push_int(libc::IPPROTO_IP, libc::IP_TTL, info.hop_limit);
            control.push_int(libc::IPPROTO_IP, libc::IP_TOS, info.traffic_class);
        } else {
            if info.source.is_some() || info.interface != 0 {
                let source = match info.source {
                    Some(IpAddr::V6(address)) => address,
                    _ => Ipv6Addr::UNSPECIFIED,
                };
                let mut data = [0; 20];
                data[..16].copy_from_slice(&source.octets());
                data[16..].copy_from_slice(&info.interface.to_ne_bytes());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
            }
            control.push_int(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, info.hop_limit);
            control.push_int(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, info.traffic_class);
        }
        if let Some(size) = info.segment_size {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
        control
    }

    /// Parses the messages in the buffer. Unknown messages are ignored. A malformed message ends parsing.
    pub fn received(&self) -> ReceiveInfo {
        let mut info = ReceiveInfo::default();
        let mut rest = &self.bytes[..self.len.min(CAPACITY)];
        while let Some((level, kind, data, tail)) = split_first(rest) {
            info.note(level, kind, data);
            rest = tail;
        }
        info
    }

    /// Whether there are no messages.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The messages.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.min(CAPACITY)]
    }

    /// The whole buffer, for the kernel to write to.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Sets how many bytes of the buffer the kernel has written.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len.min(CAPACITY);
    }

    fn push_int(&mut self, level: i32, kind: i32, value: Option<u8>) {
        if let Some(value) = value {
            self.push(level, kind, &i32::from(value).to_ne_bytes());
        }
    }

    /// Appends a message. A message that does not fit is left out, but all messages of a [`SendInfo`] fit.
    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let len = HEADER_LEN + data.len();
        let end = self.len + len.next_multiple_of(WORD);
        let Some(place) = self.bytes.get_mut(self.len..end) else { return };
        place[..WORD].copy_from_slice(&len.to_ne_bytes());
        place[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
        place[WORD + 4..WORD + 8].copy_from_slice(&kind.to_ne_bytes());
        place[HEADER_LEN..len].copy_from_slice(data);
        self.len = end;
    }
}

/// Level, type and data of the first message, and the bytes after it.
fn split_first(bytes: &[u8]) -> Option<(i32, i32, &[u8], &[u8])> {
    let len = usize::from_ne_bytes(bytes.first_chunk().copied()?);
    let level = i32::from_ne_bytes(bytes.get(WORD..)?.first_chunk().copied()?);
    let kind = i32::from_ne_bytes(bytes.get(WORD + 4..)?.first_chunk().copied()?);
    let data = bytes.get(HEADER_LEN..len)?;
    let rest = bytes.get(len.next_multiple_of(WORD)..).unwrap_or_default();
    Some((level, kind, data, rest))
}

impl ReceiveInfo {
    fn note(&mut self, level: i32, kind: i32, data: &[u8]) {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                self.local = v4_at(data, 4).map(IpAddr::V4);
                self.destination = v4_at(data, 8).map(IpAddr::V4);
            }
            // For an IPv4 packet, a dual-stack socket gets both messages. The IPv4 message has more information.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if self.destination.is_none() => {
                self.destination = v6_at(data, 0).map(|address| address.to_canonical());
            }
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                self.hop_limit = int(data).and_then(|value| u8::try_from(value).ok());
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => self.traffic_class = data.first().copied(),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                self.traffic_class = int(data).and_then(|value| u8::try_from(value).ok());
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                self.segment_size = int(data).and_then(|value| u16::try_from(value).ok());
            }
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                self.error = ExtendedError::parse(data);
            }
            _ => {}
        }
    }
}

impl ExtendedError {
    /// `struct sock_extended_err`, then the offender's address.
    fn parse(data: &[u8]) -> Option<Self> {
        let &[a, b, c, d, origin, kind, code, _] = data.first_chunk()?;
        let origin = match origin {
            libc::SO_EE_ORIGIN_ICMP => Origin::Icmp,
            libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmp6,
            libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
            _ => Origin::Other,
        };
        let info = u32::from_ne_bytes(data.get(8..)?.first_chunk().copied()?);
        let offender = data.get(16..).and_then(crate::address::parse_address);
        let offender = offender.map(|address| address.ip()).filter(|address| !address.is_unspecified());
        Some(Self { errno: u32::from_ne_bytes([a, b, c, d]), origin, kind, code, info, offender })
    }
}

fn int(data: &[u8]) -> Option<i32> {
    data.first_chunk().copied().map(i32::from_ne_bytes)
}

fn v4_at(data: &[u8], at: usize) -> Option<Ipv4Addr> {
    data.get(at..)?.first_chunk::<4>().copied().map(Ipv4Addr::from)
}

fn v6_at(data: &[u8], at: usize) -> Option<Ipv6Addr> {
    data.get(at..)?.first_chunk::<16>().copied().map(Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let info = SendInfo {
            source: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
            interface: 3,
            hop_limit: Some(9),
            traffic_class: Some(0xb8),
            segment_size: None,
        };
        let received = Control::to_send(&info, true).received();
        assert_eq!(
            (received.local, received.hop_limit, received.traffic_class),
            (info.source, Some(9), Some(0xb8))
        );
        let source = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let received = Control::to_send(&SendInfo { source: Some(source), ..info }, false).received();
        assert_eq!(
            (received.destination, received.hop_limit, received.traffic_class),
            (Some(source), Some(9), Some(0xb8))
        );
        assert!(Control::to_send(&SendInfo::default(), true).is_empty());
    }

    #[test]
    fn all_messages_fit() {
        let info = SendInfo {
            source: Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            interface: 1,
            hop_limit: Some(1),
            traffic_class: Some(1),
            segment_size: Some(1200),
        };
        let control = Control::to_send(&info, false);
        assert_eq!(control.len, 40 + 24 + 24 + 24);
    }

    #[test]
    fn malformed_messages_end_parsing() {
        let mut control = Control::to_send(&SendInfo { hop_limit: Some(9), ..SendInfo::default() }, true);
        for cut in 0..control.len {
            let mut short = control.clone();
            short.set_len(cut);
            // The data has four bytes. The padding after the data may be missing.
            assert_eq!(short.received().hop_limit.is_some(), cut >= HEADER_LEN + 4, "{cut}");
        }
        control.bytes[..WORD].fill(0xff);
        assert_eq!(control.received(), ReceiveInfo::default());
        control.bytes[..WORD].fill(0);
        assert_eq!(control.received(), ReceiveInfo::default());
    }
}
