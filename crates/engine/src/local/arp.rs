//! ARP: every IPv4 address but the guest's own is at our hardware address (RFC 826, SPEC §4.1).

use core::net::Ipv4Addr;

use wire::{
    arp,
    ethernet::{self, Mac, ethertype},
    frame::Written,
    offload::Offload,
};
use zerocopy::{IntoBytes, big_endian::U16};

use super::{Outcome, is_guests_v4, send};
use crate::{
    addr::{Guest, Settings},
    link::Link,
};

/// Answers a request for any address, probes (RFC 5227) included, except for the guest's own and for
/// announcements.
pub fn on_arp(settings: &Settings, guest: &Guest, packet: &arp::Packet, link: &mut impl Link) -> Outcome {
    let (sender, target) = (Ipv4Addr::from(packet.sender_ip), Ipv4Addr::from(packet.target_ip));
    if !packet.is_ipv4_over_ethernet() {
        return Outcome::Invalid;
    }
    let announcement = sender == target && !sender.is_unspecified();
    if settings.v4.is_none()
        || packet.operation.get() != arp::REQUEST
        || announcement
        || is_guests_v4(settings, guest, target)
    {
        return Outcome::Ignored;
    }
    let reply = arp::Packet::new(arp::REPLY, (settings.our_mac, target), (packet.sender_mac, sender));
    send_arp(link, guest.mac, &reply)
}

/// Asks for the guest's address in a broadcast, as the gateway (SPEC §4.1.3).
pub(super) fn ask_for_guest(settings: &Settings, guest: &Guest, link: &mut impl Link) -> Outcome {
    let our_address = settings.v4.as_ref().and_then(|v4| v4.our_address);
    let (Some(our_address), Some(target)) = (our_address, guest.v4) else { return Outcome::Ignored };
    let sender = (settings.our_mac, our_address);
    send_arp(link, Mac::BROADCAST, &arp::Packet::new(arp::REQUEST, sender, (Mac::BROADCAST, target)))
}

fn send_arp(link: &mut impl Link, destination: Mac, packet: &arp::Packet) -> Outcome {
    let header =
        ethernet::Header { destination, source: packet.sender_mac, ethertype: U16::new(ethertype::ARP) };
    send(link, ethernet::MIN_FRAME_LEN, |slot| {
        let frame = slot.first_chunk_mut::<{ ethernet::MIN_FRAME_LEN }>()?;
        let (head, rest) = frame.split_at_mut(ethernet::HEADER_LEN);
        let (body, padding) = rest.split_at_mut(arp::LEN);
        head.copy_from_slice(header.as_bytes());
        body.copy_from_slice(packet.as_bytes());
        padding.fill(0);
        Some(Written { len: frame.len(), offload: Offload::default() })
    })
}
