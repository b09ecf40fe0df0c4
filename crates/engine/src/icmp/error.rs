//! Errors of the host's sockets, reported to the guest as ICMP messages (behaviour §4.6, §7.4).

use core::net::IpAddr;

use wire::{
    ethernet::{self, Mac},
    fragment,
    frame::{Outgoing, Written},
    icmp::{Header, v4, v6},
    ipv4, ipv6, protocol, udp,
};
use zerocopy::{IntoBytes, big_endian::U16};

use crate::{
    addr::{Guest, Settings},
    context::{Context, World},
    flow::Endpoints,
    host::{Errno, Report},
    link::{HOP_LIMIT, Link},
    nat::is_group,
};

/// Maximum length of a quoted transport payload, in bytes: with this payload, an ICMPv6 message has 1280 bytes (RFC
/// 4443 §2.4).
pub const MAX_QUOTE: usize = 1280 - 2 * ipv6::HEADER_LEN - 2 * TRANSPORT_LEN;
/// Maximum length of a quoted packet after its IP header (transport header and payload), in bytes.
pub(crate) const MAX_UPPER: usize = TRANSPORT_LEN + MAX_QUOTE;
/// Maximum length of a quoted transport payload if the quote has a fragment header, in bytes.
const MAX_QUOTE_FRAGMENT: usize = MAX_QUOTE - fragment::HEADER_LEN;
/// Maximum length of a quoted transport payload for ICMPv4, in bytes: the message then has 576 bytes (RFC 1812
/// §4.3.2.3).
const MAX_QUOTE_V4: usize = 576 - 2 * ipv4::HEADER_LEN - 2 * TRANSPORT_LEN;
/// Length of an ICMP header, and of the part of a UDP or echo header that is quoted, in bytes.
const TRANSPORT_LEN: usize = 8;
/// Minimum MTU of an IPv6 link, in bytes (RFC 8200 §5).
const LEAST_MTU_V6: u32 = 1280;

/// The packet that caused an error, in the form in which the guest sent it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quote<'a> {
    /// The source address.
    pub(crate) guest: IpAddr,
    /// The destination address.
    pub(crate) remote: IpAddr,
    /// The protocol number.
    pub(crate) protocol: u8,
    /// The UDP or echo header. For another protocol, the same number of bytes after the IP header.
    pub(crate) header: [u8; TRANSPORT_LEN],
    /// The known part of the payload.
    pub(crate) payload: &'a [u8],
    /// The fragment's fields if the packet is a fragment. Then `header` and `payload` are the fragment's payload.
    pub(crate) fragment: Option<fragment::Fields>,
}

impl<'a> Quote<'a> {
    /// The quote of a packet from `guest` to `remote`. `upper` is the known part of the packet after its IP header.
    pub(crate) fn of_packet(
        (guest, remote): (IpAddr, IpAddr),
        protocol: u8,
        upper: &'a [u8],
        fragment: Option<fragment::Fields>,
    ) -> Self {
        let (first, payload) = upper.split_at(upper.len().min(TRANSPORT_LEN));
        let mut header = [0; TRANSPORT_LEN];
        header[..first.len()].copy_from_slice(first);
        Self { guest, remote, protocol, header, payload, fragment }
    }

    /// The quote of a guest's datagram with `len` bytes of payload. `payload` has the first of these bytes. The
    /// checksum is zero.
    pub(crate) fn of_datagram(endpoints: Endpoints, len: usize, payload: &'a [u8]) -> Self {
        let header = udp::Header {
            source_port: U16::new(endpoints.guest.port()),
            destination_port: U16::new(endpoints.remote.port()),
            len: U16::new(u16::try_from(udp::HEADER_LEN + len).unwrap_or(u16::MAX)),
            checksum: U16::ZERO,
        };
        let mut bytes = [0; udp::HEADER_LEN];
        bytes.copy_from_slice(header.as_bytes());
        Self {
            guest: endpoints.guest.ip(),
            remote: endpoints.remote.ip(),
            protocol: protocol::UDP,
            header: bytes,
            payload,
            fragment: None,
        }
    }
}

impl Report {
    /// The report of a router that refuses a packet by policy (RFC 1812 §5.2.7.1, RFC 4443 §3.1).
    pub(crate) const fn prohibited(v4: bool) -> Self {
        let (kind, code) = if v4 { (v4::UNREACHABLE, 13) } else { (v6::UNREACHABLE, 1) };
        Self { kind, code, info: 0 }
    }

    /// The report of a router that has no route to a destination (RFC 1812 §5.2.7.1, RFC 4443 §3.1).
    pub(crate) const fn unreachable(v4: bool) -> Self {
        let kind = if v4 { v4::UNREACHABLE } else { v6::UNREACHABLE };
        Self { kind, code: 0, info: 0 }
    }

    /// The same report in the other family, for a datagram that crossed families (RFC 7915 §4.2, §5.2). None if the
    /// other family has no such message, or if the guest can't use the message.
    pub(crate) const fn translated(self, from_v4: bool, to_v4: bool) -> Option<Self> {
        if from_v4 == to_v4 {
            return Some(self);
        }
        let (kind, code) = match (from_v4, self.kind, self.code) {
            (true, v4::UNREACHABLE, 0 | 1 | 5 | 6 | 7 | 8 | 11 | 12) => (v6::UNREACHABLE, 0),
            (true, v4::UNREACHABLE, 9 | 10 | 13 | 15) => (v6::UNREACHABLE, 1),
            (true, v4::UNREACHABLE, 3) => (v6::UNREACHABLE, 4),
            (false, v6::UNREACHABLE, 0 | 2 | 3) => (v4::UNREACHABLE, 1),
            (false, v6::UNREACHABLE, 1) => (v4::UNREACHABLE, 10),
            (false, v6::UNREACHABLE, 4) => (v4::UNREACHABLE, 3),
            _ => return None,
        };
        Some(Self { kind, code, info: 0 })
    }

    /// Whether a datagram was too long for the path. If the socket belongs to the host itself, the host's kernel
    /// handles this error.
    pub(crate) const fn is_too_big(self, v4: bool) -> bool {
        matches!(
            (v4, self.kind, self.code),
            (true, v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) | (false, v6::PACKET_TOO_BIG, _)
        )
    }

    /// The report that a router would send for an error of the host's `send`. None if the guest can't use such a
    /// report.
    pub(crate) const fn of_refusal(errno: Errno, v4: bool) -> Option<Self> {
        let (kind, code) = match (errno, v4) {
            // The datagram was too long for a path whose MTU is not known. An MTU of zero means "not known" (RFC 1191
            // §5).
            (Errno::EMSGSIZE, true) => (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED),
            (Errno::EMSGSIZE, false) => (v6::PACKET_TOO_BIG, 0),
            (Errno::ENETUNREACH, v4) => return Some(Self::unreachable(v4)),
            (Errno::EHOSTUNREACH, true) => (v4::UNREACHABLE, 1),
            (Errno::EPERM | Errno::EACCES, true) => (v4::UNREACHABLE, 13),
            (Errno::EHOSTUNREACH, false) => (v6::UNREACHABLE, 3),
            (Errno::EPERM | Errno::EACCES, false) => (v6::UNREACHABLE, 1),
            _ => return None,
        };
        Some(Self { kind, code, info: 0 })
    }

    /// The error of a flow whose datagram has caused this report. None if the report does not mean that the peer can't
    /// be reached.
    pub(crate) const fn errno(self, v4: bool) -> Option<Errno> {
        Some(match (v4, self.kind, self.code) {
            (true, v4::UNREACHABLE, 0 | 6 | 11) | (false, v6::UNREACHABLE, 0) => Errno::ENETUNREACH,
            (true, v4::UNREACHABLE, 1 | 5 | 7 | 8 | 12) | (false, v6::UNREACHABLE, 2 | 3) => {
                Errno::EHOSTUNREACH
            }
            (true, v4::UNREACHABLE, 2 | 3) | (false, v6::UNREACHABLE, 4) => Errno::ECONNREFUSED,
            (true, v4::UNREACHABLE, 9 | 10 | 13) | (false, v6::UNREACHABLE, 1 | 5 | 6) => Errno::EACCES,
            _ => return None,
        })
    }

    /// The last four bytes of the message's header.
    const fn rest(self, v4: bool) -> u32 {
        match (v4, self.kind, self.code) {
            (true, v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) => self.info & 0xffff,
            // No IPv6 path has a smaller MTU (RFC 8201 §4). Zero means that the MTU is not known.
            (false, v6::PACKET_TOO_BIG, _) if self.info < LEAST_MTU_V6 => LEAST_MTU_V6,
            (false, v6::PACKET_TOO_BIG | v6::PARAMETER_PROBLEM, _) => self.info,
            _ => 0,
        }
    }
}

/// The source of an error message to the guest: the offender as the guest sees it (behaviour §5.3.4), or the address to
/// which the guest sent the packet. `peer` is this address on the host's side.
pub(crate) fn shown_offender(
    settings: &Settings,
    guest: &Guest,
    offender: Option<IpAddr>,
    peer: IpAddr,
    remote: IpAddr,
) -> IpAddr {
    offender
        .filter(|&offender| offender != peer)
        .and_then(|offender| settings.source_to_guest(guest, offender))
        .filter(|shown| shown.is_ipv4() == remote.is_ipv4())
        .unwrap_or(remote)
}

/// The source of errors that the engine reports as a router: the engine's own address, or the remote's address if the
/// engine has none.
pub(crate) fn router(settings: &Settings, remote: IpAddr) -> IpAddr {
    match remote {
        IpAddr::V4(_) => settings.v4.as_ref().and_then(|v4| v4.our_address).map(IpAddr::V4),
        IpAddr::V6(_) => settings.v6.as_ref().map(|v6| IpAddr::V6(v6.our_link_local)),
    }
    .unwrap_or(remote)
}

/// Sends the guest an error message from `source` about the packet in `quote`. No error is sent about packets to a
/// group (RFC 1122 §3.2.2, RFC 4443 §2.4).
pub(crate) fn send_error<W: World>(
    source: IpAddr,
    report: Report,
    quote: &Quote<'_>,
    cx: &mut Context<'_, W>,
) {
    if is_group(quote.remote) {
        return;
    }
    let frame = cx.settings.headers(cx.guest, source, quote.guest);
    let room = frame.headroom(TRANSPORT_LEN) + ipv6::HEADER_LEN + TRANSPORT_LEN + MAX_QUOTE;
    let Some(mut reserved) = cx.link.reserve_head(room) else { return };
    if let Some(written) = write(reserved.head(), &frame, report, quote) {
        // An error message may be lost like any other packet.
        let _full = reserved.commit(written.len, &written.offload);
    }
}

/// Sends the guest an error message that the engine reports itself, as a router.
pub(crate) fn send_router_error<W: World>(report: Report, quote: &Quote<'_>, cx: &mut Context<'_, W>) {
    send_error(router(cx.settings, quote.remote), report, quote, cx);
}

/// Length of the longest [`Unframed`] message, with the headers of its frame, in bytes.
const MAX_UNFRAMED: usize = ethernet::HEADER_LEN + 2 * (ipv6::HEADER_LEN + TRANSPORT_LEN);

/// An error message as an IP packet, for a client whose packets do not pass the link.
pub(crate) struct Unframed {
    frame: [u8; MAX_UNFRAMED],
    len: usize,
}

impl Unframed {
    /// The message of the packet's destination about the packet in `quote`, which must have no payload. None if there
    /// must be no error about the packet.
    pub(crate) fn new(report: Report, quote: &Quote<'_>) -> Option<Self> {
        if is_group(quote.remote) {
            return None;
        }
        let headers = Outgoing {
            source_mac: Mac([0; 6]),
            destination_mac: Mac([0; 6]),
            source: quote.remote,
            destination: quote.guest,
            hop_limit: HOP_LIMIT,
            traffic_class: 0,
            flow_label: 0,
        };
        let mut frame = [0; MAX_UNFRAMED];
        let len = write(&mut frame, &headers, report, quote)?.len;
        Some(Self { frame, len })
    }

    /// The IP packet.
    pub(crate) fn packet(&self) -> &[u8] {
        self.frame.get(ethernet::HEADER_LEN..self.len).unwrap_or_default()
    }
}

fn write(slot: &mut [u8], frame: &Outgoing, report: Report, quote: &Quote<'_>) -> Option<Written> {
    let v4 = quote.guest.is_ipv4();
    let longest = match (v4, quote.fragment) {
        (true, _) => MAX_QUOTE_V4,
        (false, None) => MAX_QUOTE,
        (false, Some(_)) => MAX_QUOTE_FRAGMENT,
    };
    let payload = &quote.payload[..quote.payload.len().min(longest)];
    let upper_len = TRANSPORT_LEN + payload.len();
    let mut at = frame.headroom(TRANSPORT_LEN);
    let start = at;
    let mut put = |bytes: &[u8]| -> Option<()> {
        slot.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
        at += bytes.len();
        Some(())
    };
    match (quote.guest, quote.remote, quote.fragment) {
        (IpAddr::V4(from), IpAddr::V4(to), fields) => {
            let mut header = ipv4::Header::new(from, to, quote.protocol, HOP_LIMIT, 0, upper_len);
            if let Some(fields) = fields {
                header.set_fragment(fields.id as u16, fields.offset, fields.more);
            }
            put(header.as_bytes())?;
        }
        (IpAddr::V6(from), IpAddr::V6(to), None) => {
            put(ipv6::Header::new(from, to, quote.protocol, HOP_LIMIT, 0, 0, upper_len).as_bytes())?;
        }
        (IpAddr::V6(from), IpAddr::V6(to), Some(fields)) => {
            let len = fragment::HEADER_LEN + upper_len;
            put(ipv6::Header::new(from, to, ipv6::FRAGMENT, HOP_LIMIT, 0, 0, len).as_bytes())?;
            put(fragment::Header::new(&fields).as_bytes())?;
        }
        _ => return None,
    }
    put(&quote.header)?;
    put(payload)?;
    frame.icmp(slot, Header::new(report.kind, report.code, report.rest(v4)), at - start)
}
