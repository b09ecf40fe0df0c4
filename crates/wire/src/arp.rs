//! ARP for IPv4 over Ethernet (RFC 826).

use core::net::Ipv4Addr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian::U16};

use crate::ethernet::Mac;

/// Length of [`Packet`] in bytes.
pub const LEN: usize = 28;
/// Value of [`Packet::operation`] in a request.
pub const REQUEST: u16 = 1;
/// Value of [`Packet::operation`] in a reply.
pub const REPLY: u16 = 2;

/// An ARP packet with the address lengths of IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Packet {
    /// Hardware address space: 1 for Ethernet.
    pub hardware_type: U16,
    /// Protocol address space: the EtherType of IPv4.
    pub protocol_type: U16,
    /// Length of a hardware address in bytes: 6.
    pub hardware_len: u8,
    /// Length of a protocol address in bytes: 4.
    pub protocol_len: u8,
    /// [`REQUEST`] or [`REPLY`].
    pub operation: U16,
    /// Sender hardware address.
    pub sender_mac: Mac,
    /// Sender protocol address.
    pub sender_ip: [u8; 4],
    /// Target hardware address.
    pub target_mac: Mac,
    /// Target protocol address.
    pub target_ip: [u8; 4],
}

impl Packet {
    /// A packet for IPv4 over Ethernet. `operation` is in host byte order.
    #[must_use]
    pub fn new(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Self {
        Self {
            hardware_type: U16::new(1),
            protocol_type: U16::new(crate::ethernet::ethertype::IPV4),
            hardware_len: 6,
            protocol_len: 4,
            operation: U16::new(operation),
            sender_mac: sender.0,
            sender_ip: sender.1.octets(),
            target_mac: target.0,
            target_ip: target.1.octets(),
        }
    }

    /// Whether types and lengths are those of IPv4 over Ethernet. Drop other packets.
    #[must_use]
    pub fn is_ipv4_over_ethernet(&self) -> bool {
        self.hardware_type.get() == 1
            && self.protocol_type.get() == crate::ethernet::ethertype::IPV4
            && self.hardware_len == 6
            && self.protocol_len == 4
    }
}
