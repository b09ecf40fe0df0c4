//! Packet formats: bytes to typed views and back. No I/O, no clock, no allocation.
//!
//! [`frame::parse`] is the one way in: it walks Ethernet, IP and transport headers once and returns
//! views into the frame, or the reason it can't ([`frame::parse_head`] does it for a frame whose payload is not to be
//! seen). [`frame::Outgoing`] is the one way out: it writes headers in front of
//! a payload that is already in place.
//!
//! All multi-byte fields of the header structs are big-endian (network byte order) in memory; the
//! accessor types convert.
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

/// IP protocol numbers that the project tells apart (IANA "Protocol Numbers").
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
}
