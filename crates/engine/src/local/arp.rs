//! ARP: every IPv4 address except the guest's own has a hardware address that leads to the engine (RFC 826, behaviour
//! §4.1).

use core::net::Ipv4Addr;

use wire::{
    arp,
    ethernet::{self, Mac, ethertype},
    frame::Written,
    offload::Offload,
};
use zerocopy::{IntoBytes, big_endian::U16};

use super::{Outcome, send};
use crate::{
    addr::{Guest, Settings},
    link::Link,
};

/// Answers a request for any address, including probes (RFC 5227). Requests for the guest's own address and
/// announcements get no answer. A request or reply is evidence that its sender has the sender protocol address (RFC
/// 826).
pub fn on_arp(settings: &Settings, guest: &mut Guest, packet: &arp::Packet, link: &mut impl Link) -> Outcome {
    let (sender, target) = (Ipv4Addr::from(packet.sender_ip), Ipv4Addr::from(packet.target_ip));
    if !packet.is_ipv4_over_ethernet() {
        return Outcome::Invalid;
    }
    if settings.v4.is_none() {
        return Outcome::Ignored;
    }
    if !sender.is_unspecified() {
        guest.shows(settings, sender.into(), Some(packet.sender_mac));
    }
    let announcement = sender == target && !sender.is_unspecified();
    if packet.operation.get() != arp::REQUEST || announcement {
        return Outcome::Ignored;
    }
    if guest.owns(target.into()) {
        if !sender.is_unspecified() {
            guest.asks_for_its_own(settings, target.into(), Some(packet.sender_mac));
        }
        return Outcome::Ignored;
    }
    if !settings.is_reachable(target.into()) {
        return Outcome::Ignored;
    }
    let asker = if packet.sender_mac.is_unicast() { packet.sender_mac } else { guest.mac_of(sender.into()) };
    let reply = arp::Packet::new(arp::REPLY, (settings.mac_of(target.into()), target), (asker, sender));
    send_arp(link, asker, &reply)
}

/// Broadcasts a request for the guest's `address` (behaviour §4.1.3). The sender is the gateway. If there is no
/// gateway, the request is a probe (RFC 5227 §2.1.1).
pub(super) fn ask_for(settings: &Settings, address: Ipv4Addr, link: &mut impl Link) -> Outcome {
    let Some(v4) = &settings.v4 else { return Outcome::Ignored };
    let sender = match v4.our_address {
        Some(ours) => (settings.mac_of(ours.into()), ours),
        None => (settings.our_mac, Ipv4Addr::UNSPECIFIED),
    };
    send_arp(link, Mac::BROADCAST, &arp::Packet::new(arp::REQUEST, sender, (Mac::BROADCAST, address)))
}

/// Announces the hardware address of a neighbour to all hosts on the link (RFC 5227 §3, behaviour §4.1.4).
pub(super) fn announce(settings: &Settings, neighbour: Ipv4Addr, link: &mut impl Link) -> Outcome {
    if settings.v4.is_none() {
        return Outcome::Ignored;
    }
    let sender = (settings.mac_of(neighbour.into()), neighbour);
    send_arp(link, Mac::BROADCAST, &arp::Packet::new(arp::REQUEST, sender, (Mac([0; 6]), neighbour)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        neighbours::Neighbour,
        testkit::{
            link::Capture,
            settings::{GUEST_MAC, OUR_MAC, guest, settings},
        },
    };
    use wire::frame::Body;

    fn ask(settings: &Settings, operation: u16, sender: [u8; 4], target: [u8; 4]) -> (Outcome, Capture) {
        let mut link = Capture::default();
        let packet = arp::Packet::new(operation, (GUEST_MAC, sender.into()), (Mac([0; 6]), target.into()));
        (on_arp(settings, &mut guest(settings), &packet, &mut link), link)
    }

    /// Other hosts of a virtual network may have the other addresses.
    #[test]
    fn on_a_virtual_network_only_the_engines_addresses_are_answered() {
        let mut settings = settings();
        settings.virtual_hosts = alloc::vec![Ipv4Addr::new(198, 51, 100, 1).into()];
        assert_eq!(ask(&settings, arp::REQUEST, [198, 51, 100, 55], [198, 51, 100, 1]).0, Outcome::Answered);
        for target in [[198, 51, 100, 200], [10, 0, 0, 1]] {
            assert_eq!(ask(&settings, arp::REQUEST, [198, 51, 100, 55], target).0, Outcome::Ignored);
        }
    }

    #[test]
    fn requests_for_every_address_are_answered() {
        // Requests on and off the subnet are answered, including probes (behaviour §4.1.2).
        let settings = settings();
        for target in [[198, 51, 100, 1], [198, 51, 100, 200], [10, 0, 0, 1]] {
            for sender in [[198, 51, 100, 55], [0, 0, 0, 0]] {
                let (outcome, link) = ask(&settings, arp::REQUEST, sender, target);
                assert_eq!(outcome, Outcome::Answered);
                let frame = link.frame();
                assert_eq!((frame.source_mac, frame.destination_mac), (OUR_MAC, GUEST_MAC));
                let Body::Arp(reply) = frame.body else { panic!() };
                assert!(reply.is_ipv4_over_ethernet());
                assert_eq!(reply.operation.get(), arp::REPLY);
                assert_eq!((reply.sender_mac, reply.sender_ip), (OUR_MAC, target));
                assert_eq!((reply.target_mac, reply.target_ip), (GUEST_MAC, sender));
                assert_eq!(link.frames[0].0.len(), 60);
                assert_eq!(link.frames[0].0[42..], [0; 18]);
            }
        }
    }

    /// behaviour §4.1.4, RFC 5227 §3.
    #[test]
    fn a_neighbour_is_announced_at_its_own_address() {
        let mut settings = settings();
        let (address, mac) = (Ipv4Addr::new(198, 51, 100, 20), Mac([2, 0, 0, 0, 0, 1]));
        settings.neighbours.note(Neighbour { address: address.into(), mac: Some(mac) });
        let mut link = Capture::default();
        assert_eq!(announce(&settings, address, &mut link), Outcome::Answered);
        let frame = link.frame();
        assert_eq!((frame.source_mac, frame.destination_mac), (mac, Mac::BROADCAST));
        let Body::Arp(packet) = frame.body else { panic!() };
        assert_eq!(packet.operation.get(), arp::REQUEST);
        assert_eq!((packet.sender_mac, packet.sender_ip), (mac, address.octets()));
        assert_eq!((packet.target_mac, packet.target_ip), (Mac([0; 6]), address.octets()));
        settings.v4 = None;
        assert_eq!(announce(&settings, address, &mut link), Outcome::Ignored);
    }

    #[test]
    fn requests_for_the_guests_own_address_and_announcements_get_no_answer() {
        // behaviour §4.1.2
        let settings = settings();
        for (sender, target) in [
            ([0, 0, 0, 0], [198, 51, 100, 2]),        // the assigned address
            ([0, 0, 0, 0], [198, 51, 100, 55]),       // an address of the guest that was seen
            ([198, 51, 100, 99], [198, 51, 100, 99]), // an announcement
        ] {
            let (outcome, link) = ask(&settings, arp::REQUEST, sender, target);
            assert_eq!((outcome, link.frames.len()), (Outcome::Ignored, 0));
        }
    }

    #[test]
    fn only_requests_for_ipv4_over_ethernet_are_answered() {
        // behaviour §4.1.1
        let mut settings = settings();
        let (outcome, _) = ask(&settings, arp::REPLY, [198, 51, 100, 55], [198, 51, 100, 1]);
        assert_eq!(outcome, Outcome::Ignored);
        let mut packet = arp::Packet::new(
            arp::REQUEST,
            (GUEST_MAC, [198, 51, 100, 55].into()),
            (GUEST_MAC, [10, 0, 0, 1].into()),
        );
        packet.protocol_len = 16;
        let outcome = on_arp(&settings, &mut guest(&settings), &packet, &mut Capture::default());
        assert_eq!(outcome, Outcome::Invalid);
        settings.v4 = None;
        let (outcome, link) = ask(&settings, arp::REQUEST, [198, 51, 100, 55], [198, 51, 100, 1]);
        assert_eq!((outcome, link.frames.len()), (Outcome::Ignored, 0));
    }
}
