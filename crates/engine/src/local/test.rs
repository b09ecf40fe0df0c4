//! Tests of properties that all local services have.

use alloc::vec::Vec;
use core::net::Ipv6Addr;

use proptest::prelude::*;
use wire::{
    checksum::Sum,
    ethernet::Mac,
    frame::{self, Body, Outgoing, Transport},
    icmp,
    offload::Offload,
    protocol,
};

use super::*;
use crate::{
    testkit::{
        self,
        guest::{dhcp_header, headers_of, ip},
        link::Capture,
        settings::{GUEST_MAC, OUR_MAC, guest, settings},
    },
    timer::Instant,
};

/// Passes an ICMPv6 message of the guest to its service.
pub(super) fn icmpv6(
    settings: &Settings,
    (source, destination, hop_limit): (&str, &str, u8),
    header: icmp::Header,
    body: &[u8],
    link: &mut Capture,
) -> Outcome {
    let headers = Outgoing { hop_limit, ..headers_of(source, destination) };
    let frame = testkit::guest::icmp(&headers, header, body);
    let packet = ip(&frame);
    let Transport::Icmp(message) = packet.transport else { panic!() };
    let mut guest = guest(settings);
    guest.learn(settings, GUEST_MAC, None, Instant::default());
    on_icmp(settings, &mut guest, &packet, &message, link)
}

/// Passes a datagram of the guest to its service.
pub(super) fn udp(
    settings: &Settings,
    guest: &mut Guest,
    (source, destination): (&str, &str),
    port: u16,
    payload: &[u8],
    link: &mut Capture,
) -> Outcome {
    let (frame, _) = testkit::guest::udp(&headers_of(source, destination), (1000, port), payload);
    let packet = ip(&frame);
    let Transport::Udp(datagram) = packet.transport else { panic!() };
    guest.learn(settings, GUEST_MAC, Some(packet.source), Instant::default());
    on_udp(settings, guest, &packet, &datagram, link)
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
fn the_start_of_the_link_sends_requests_for_the_guests_addresses() {
    // behaviour §4.1.3, §4.2
    let settings = settings();
    let mut guest = Guest::new(&settings, None);
    for address in ["198.51.100.55", "2001:db8:1::55"] {
        guest.give(address.parse().unwrap());
    }
    guest.forget("198.51.100.2".parse().unwrap());
    guest.forget("2001:db8:1::2".parse().unwrap());
    let mut link = Capture::default();
    announce_start(&settings, &guest, &mut link);
    let [(arp, _), (ndp, _)] = link.frames.as_slice() else { panic!() };
    let mut expected = [0xff; 6].to_vec();
    expected.extend(OUR_MAC.0);
    expected.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    expected.extend(OUR_MAC.0);
    expected.extend([198, 51, 100, 1]);
    expected.extend([0xff; 6]);
    expected.extend([198, 51, 100, 55]);
    expected.resize(60, 0);
    assert_eq!(arp, &expected);

    let frame = frame::parse(ndp).unwrap();
    assert_eq!(frame.destination_mac, Mac::BROADCAST);
    let Body::Ip(packet) = frame.body else { panic!() };
    assert_eq!((packet.source, packet.destination), (v6("fe80::1").into(), v6("2001:db8:1::55").into()));
    let Transport::Icmp(message) = packet.transport else { panic!() };
    assert_eq!(message.header.kind, icmp::v6::NEIGHBOUR_SOLICITATION);
    assert_eq!(wire::ndp::neighbour_target(&message), Some(v6("2001:db8:1::55")));
}

#[test]
fn no_requests_for_disabled_services_or_unknown_addresses_r45() {
    let mut settings = settings();
    settings.services.ndp = false;
    settings.v4.as_mut().unwrap().our_address = None;
    let mut link = Capture::default();
    announce_start(&settings, &guest(&settings), &mut link);
    (settings.v4, settings.v6) = (None, None);
    announce_start(&settings, &guest(&settings), &mut link);
    assert!(link.frames.is_empty());
}

#[test]
fn datagrams_to_other_ports_are_not_local() {
    let settings = settings();
    let mut guest = guest(&settings);
    let mut link = Capture::default();
    for (source, destination, port) in [
        ("198.51.100.2", "198.51.100.1", 68),
        ("198.51.100.2", "198.51.100.1", 547),
        ("fe80::55", "ff02::1:2", 67),
        ("fe80::55", "fe80::1", 547), // not multicast: behaviour §4.4.1
    ] {
        let outcome = udp(&settings, &mut guest, (source, destination), port, &[1; 300], &mut link);
        assert_eq!((outcome, outcome.consumed()), (Outcome::NotLocal, false), "{destination} {port}");
    }
    assert!(link.frames.is_empty());
}

/// Frames of DHCP, DHCPv6, ARP and NDP have complete checksums, so the guest does not have to complete them.
#[test]
fn every_frame_has_complete_checksums() {
    let settings = settings();
    let mut guest = guest(&settings);
    let mut link = Capture::default();
    announce_start(&settings, &guest, &mut link);
    announce_neighbour(&settings, &guest, v6("2001:db8:1::20").into(), &mut link);
    let discover = [&dhcp_header()[..], &[53, 1, 1, 255]].concat();
    let solicit = [1, 0xab, 0xcd, 0xef, 0, 1, 0, 3, 1, 2, 3, 0, 3, 0, 12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    for (source, destination, port, message) in
        [("0.0.0.0", "255.255.255.255", 67, &discover[..]), ("fe80::55", "ff02::1:2", 547, &solicit)]
    {
        let outcome = udp(&settings, &mut guest, (source, destination), port, message, &mut link);
        assert_eq!(outcome, Outcome::Answered);
    }
    for (kind, to, body) in [
        (icmp::v6::ROUTER_SOLICITATION, "ff02::2", &[][..]),
        (icmp::v6::NEIGHBOUR_SOLICITATION, "ff02::1:ff00:1", &v6("fe80::1").octets()),
    ] {
        let header = icmp::Header::new(kind, 0, 0);
        assert_eq!(icmpv6(&settings, ("fe80::55", to, 255), header, body, &mut link), Outcome::Answered);
    }
    assert_eq!(link.frames.len(), 7);
    for (frame, offload) in &link.frames {
        assert_eq!(*offload, Offload::default());
        let Body::Ip(packet) = frame::parse(frame).unwrap().body else { continue };
        let (protocol, len) = match packet.transport {
            Transport::Udp(datagram) => (protocol::UDP, usize::from(datagram.header.len.get())),
            Transport::Icmp(message) => (protocol::ICMPV6, 8 + message.payload.len()),
            other => panic!("{other:?}"),
        };
        let start = 14 + if packet.source.is_ipv4() { 20 } else { 40 };
        let sum = Sum::new().pseudo_header(packet.source, packet.destination, protocol, len);
        assert_eq!(sum.bytes(&frame[start..start + len]).finish(), 0, "{frame:x?}");
    }
}

#[test]
fn multicast_has_its_own_hardware_addresses() {
    // RFC 2464 §7
    let mac = Mac::of_multicast(v6("ff02::1:ff12:3456").into());
    assert_eq!(mac, Some(Mac([0x33, 0x33, 0xff, 0x12, 0x34, 0x56])));
}

/// Passes a frame to the services in the same way as the engine.
fn show(settings: &Settings, guest: &mut Guest, bytes: &[u8], link: &mut Capture) {
    let Ok(frame) = frame::parse(bytes) else { return };
    let source = match frame.body {
        Body::Ip(packet) => Some(packet.source),
        Body::Arp(_) => None,
    };
    guest.learn(settings, frame.source_mac, source, Instant::default());
    let _ = match frame.body {
        Body::Arp(packet) => on_arp(settings, guest, packet, link),
        Body::Ip(packet) => match packet.transport {
            Transport::Udp(datagram) => on_udp(settings, guest, &packet, &datagram, link),
            Transport::Icmp(message) => on_icmp(settings, guest, &packet, &message, link),
            _ => Outcome::NotLocal,
        },
    };
}

/// A frame from the guest to a service, with random payload.
fn any_question() -> impl Strategy<Value = Vec<u8>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..700);
    (0..4, 133..138u8, any::<bool>(), payload).prop_map(|(service, kind, hop_limit, payload)| {
        let hop_limit = if hop_limit { 255 } else { 64 };
        match service {
            0 => testkit::guest::udp(&headers_of("0.0.0.0", "255.255.255.255"), (68, 67), &payload).0,
            1 => testkit::guest::udp(&headers_of("fe80::55", "ff02::1:2"), (546, 547), &payload).0,
            _ => {
                let headers = Outgoing { hop_limit, ..headers_of("fe80::55", "ff02::1:2") };
                testkit::guest::icmp(&headers, icmp::Header::new(kind, 0, 0), &payload)
            }
        }
    })
}

proptest! {
    #[test]
    fn no_frame_makes_us_panic_and_every_answer_parses(frames in proptest::collection::vec(any_question(), 1..8)) {
        let settings = settings();
        let mut guest = guest(&settings);
        for frame in frames {
            let mut link = Capture::default();
            show(&settings, &mut guest, &frame, &mut link);
            prop_assert!(link.frames.len() <= 1);
            if !link.frames.is_empty() {
                link.frame();
            }
        }
    }

    #[test]
    fn no_random_bytes_make_us_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3) {
        let mut bytes = bytes;
        if let Some(ethertype) = bytes.get_mut(12..14) {
            ethertype.copy_from_slice(&[[8, 0], [8, 6], [0x86, 0xdd]][kind as usize]);
        }
        let settings = settings();
        let mut link = Capture::default();
        show(&settings, &mut guest(&settings), &bytes, &mut link);
        prop_assert!(link.frames.len() <= 1);
    }
}

#[test]
fn a_full_link_loses_the_answer_only() {
    let settings = settings();
    let mut link = Capture::default();
    link.full = true;
    announce_start(&settings, &guest(&settings), &mut link);
    let mut advertiser = Advertiser::new(&settings, Instant::default(), 0);
    let due = advertiser.next().unwrap();
    advertiser.on_deadline(&settings, &guest(&settings), due, &mut link);
    assert!(advertiser.next() > Some(due));
    let header = icmp::Header::new(icmp::v6::ROUTER_SOLICITATION, 0, 0);
    let outcome = icmpv6(&settings, ("fe80::55", "ff02::2", 255), header, &[], &mut link);
    assert_eq!((outcome, outcome.consumed()), (Outcome::LinkFull, true));
}
