//! Packet formats: from bytes to typed views and back. No I/O, no clock, no allocation.
//!
//! ```text
//!      bytes of a frame                                       payload, already in a buffer
//!             |                                                         |
//!             v                                                         v
//!   frame::parse, parse_head                                     frame::Outgoing
//!             |   one pass: Ethernet, IP, transport                     |   headers before the payload
//!             v                                                         v
//!   Frame -> Packet -> tcp::Segment                              bytes, Offload
//!      |        |      udp::Datagram                                    |   on a link without offloads
//!      |        |      icmp::Message -> ndp                             v
//!      |        |      Fragment -> assembly::OriginalHeader      segment::Segments, complete_checksum
//!      v        v
//!    arp    verify: checksums that the link did not verify
//! ```
//!
//! # Contract
//!
//! - **Input may be any bytes.** Parsing never panics and never reads past its input. For input that cannot be parsed,
//!   it returns [`frame::Unusable`] or none. Field values are as they were on the wire: the caller checks whether an
//!   address or a sequence number makes sense.
//! - **Parsing does not verify checksums.** A link may have verified a frame's checksums, or may know that they need no
//!   verification ([`offload::Offload`]). For other frames, the caller must call [`verify`].
//! - **Views borrow.** [`frame::parse`] copies nothing. The payload may be in memory that the guest can change at any
//!   time. So [`payload::Payload`] gives access to its bytes only by copying.
//! - **Byte order.** Fields of header structs are in network byte order in memory; their types
//!   ([`zerocopy::big_endian`]) convert on access. Arguments and results of functions are in host byte order.
//! - **Changes.** `engine` relies on the public items, their documentation, this contract, and on which input is
//!   refused. Everything else may change without a change of `engine`.
//! - **Lengths** are in bytes. A length that does not fit in its 16-bit field is refused, never truncated.
//!
//! # Example
//!
//! The example builds a TCP segment around a payload, completes its checksum as for a link without offloads, and parses
//! the frame:
//!
//! ```
//! use wire::ethernet::Mac;
//! use wire::frame::{self, Body, Outgoing, Transport};
//! use wire::tcp::{Flags, Header, Options, Seq};
//! use wire::{segment, tcp, verify};
//!
//! let outgoing = Outgoing {
//!     source_mac: Mac([2, 0, 0, 0, 0, 1]),
//!     destination_mac: Mac([2, 0, 0, 0, 0, 2]),
//!     source: "192.0.2.1".parse()?,
//!     destination: "192.0.2.2".parse()?,
//!     hop_limit: 64,
//!     traffic_class: 0,
//!     flow_label: 0,
//! };
//! let mut options = [0; tcp::MAX_OPTIONS_LEN];
//! let options_len = Options { mss: Some(1460), ..Options::default() }.emit(&mut options);
//! let options = &options[..options_len];
//!
//! // The payload first, then the headers before it.
//! let mut buffer = [0; 1514];
//! let at = outgoing.headroom(tcp::HEADER_LEN + options.len());
//! buffer[at..at + 5].copy_from_slice(b"hello");
//! let header = Header::new((49152, 80), Seq(1000), Seq(0), Flags::SYN, 65535, options.len());
//! let written = outgoing.tcp(&mut buffer, header, options, 5, None).ok_or("too long")?;
//! let bytes = &mut buffer[..written.len];
//! assert!(segment::complete_checksum(bytes, &written.offload));
//!
//! // The way back.
//! let frame = frame::parse(bytes).map_err(|why| format!("{why:?}"))?;
//! let Body::Ip(packet) = frame.body else { return Err("not IP".into()) };
//! assert!(verify::network(bytes) && verify::transport(&packet));
//! let Transport::Tcp(segment) = packet.transport else { return Err("not TCP".into()) };
//! assert_eq!((segment.seq(), segment.payload), (Seq(1000), &b"hello"[..]));
//! assert_eq!(Options::parse(segment.options).mss, Some(1460));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

pub mod arp;
pub mod assembly;
pub mod checksum;
pub mod dns;
pub mod domain;
pub mod ethernet;
pub mod fragment;
pub mod frame;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod membership;
pub mod ndp;
pub mod offload;
pub mod payload;
pub mod segment;
pub mod stream;
pub mod tcp;
pub mod train;
pub mod udp;
pub mod verify;

/// IP protocol numbers of the parsed protocols (IANA "Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;

    /// The protocol number of ICMP for an IP version: IPv4 if `v4`.
    #[must_use]
    pub const fn icmp(v4: bool) -> u8 {
        if v4 { ICMP } else { ICMPV6 }
    }
}
