//! The local services. Any request gets one reply or none.

use engine::{addr::Guest, local};
use testkit::{guest::headers_of, link::Capture};
use wire::{
    ethernet,
    frame::{self, Body, Frame, Outgoing, Transport},
    icmp,
};

use crate::receive_path::settings;

/// The answer, if there is one. There is at most one. The link has checked it.
fn answer(link: &Capture, outcome: local::Outcome) -> Option<Frame<'_>> {
    assert_eq!(usize::from(outcome == local::Outcome::Answered), link.frames.len());
    (!link.frames.is_empty()).then(|| link.frame())
}

/// Input: an ARP packet, without its Ethernet header.
pub fn arp(data: &[u8]) {
    let mut bytes = vec![0xff; 12];
    bytes.extend_from_slice(&ethernet::ethertype::ARP.to_be_bytes());
    bytes.extend_from_slice(data);
    let Ok(Frame { body: Body::Arp(packet), .. }) = frame::parse(&bytes) else { return };
    let settings = settings(0);
    let mut link = Capture::default();
    let outcome = local::on_arp(&settings, &mut Guest::new(&settings, None), packet, &mut link);
    assert!(matches!(answer(&link, outcome), None | Some(Frame { body: Body::Arp(_), .. })));
}

/// Input: an ICMPv6 message, from its type on.
pub fn ndp(data: &[u8]) {
    let settings = settings(0);
    let Some((&[kind, code], body)) = data.split_first_chunk() else { return };
    let headers = Outgoing { hop_limit: 255, ..headers_of("fe80::55", "ff02::2") };
    let bytes = testkit::guest::icmp(&headers, icmp::Header::new(kind, code, 0), body);
    let Ok(Frame { body: Body::Ip(packet), .. }) = frame::parse(&bytes) else { return };
    let Transport::Icmp(message) = packet.transport else { return };
    let mut link = Capture::default();
    let outcome = local::on_icmp(&settings, &mut Guest::new(&settings, None), &packet, &message, &mut link);
    answer(&link, outcome);
}

/// Input: a DHCP message.
pub fn dhcp(data: &[u8]) {
    let headers = headers_of("0.0.0.0", "255.255.255.255");
    udp(&headers, (68, 67), data, |reply| assert_eq!(reply.get(4..8), data.get(4..8), "transaction"));
}

/// Input: a DHCPv6 message.
pub fn dhcpv6(data: &[u8]) {
    let headers = headers_of("fe80::55", "ff02::1:2");
    udp(&headers, (546, 547), data, |reply| assert_eq!(reply.get(1..4), data.get(1..4), "transaction"));
}

fn udp(headers: &Outgoing, ports: (u16, u16), data: &[u8], check: impl FnOnce(&[u8])) {
    let settings = settings(data.first().map_or(0, |first| first & 1));
    let (bytes, _) = testkit::guest::udp(headers, ports, data);
    let Ok(Frame { body: Body::Ip(packet), .. }) = frame::parse(&bytes) else { return };
    let Transport::Udp(datagram) = packet.transport else { return };
    let mut link = Capture::default();
    let mut guest = Guest::new(&settings, None);
    let outcome = local::on_udp(&settings, &mut guest, &packet, &datagram, &mut link);
    let Some(frame) = answer(&link, outcome) else { return };
    let Body::Ip(packet) = frame.body else { panic!("no IP packet") };
    let Transport::Udp(datagram) = packet.transport else { panic!("no UDP datagram") };
    assert_eq!(datagram.header.source_port.get(), ports.1);
    check(datagram.payload);
}
