//! The local services: any request gets one reply or none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::{
    addr::Guest,
    link::{Full, Layout, Link, Slot},
    local,
    memory::Plain,
};
use wire::{
    ethernet,
    frame::{self, Body, Frame, MAX_LEN, Outgoing, Transport},
    icmp,
    offload::Offload,
};

use crate::receive_path::{datagram_with, settings};

/// A link with room for one reply.
struct Answer {
    slot: Vec<u8>,
    len: usize,
}

impl Answer {
    fn none() -> Self {
        Self { slot: vec![0xa5; MAX_LEN], len: 0 }
    }

    fn frame(&self) -> Option<Frame<'_>> {
        (self.len > 0).then(|| match frame::parse(&self.slot[..self.len]) {
            Ok(frame) => frame,
            Err(reason) => panic!("an answer that is {reason:?}: {:02x?}", &self.slot[..self.len]),
        })
    }
}

impl Link for Answer {
    type Memory = Plain;

    fn prepare(&mut self, layout: Layout) -> bool {
        layout.len() <= self.slot.len()
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Plain> {
        Slot::in_buffer(&mut self.slot, layout)
    }

    fn send(&mut self, _: Layout, len: usize, _: &Offload) -> Result<(), Full> {
        assert_eq!(self.len, 0, "two answers");
        self.len = len;
        Ok(())
    }
}

/// An ARP packet, without its Ethernet header.
pub fn arp(data: &[u8]) {
    let mut bytes = vec![0xff; 12];
    bytes.extend_from_slice(&ethernet::ethertype::ARP.to_be_bytes());
    bytes.extend_from_slice(data);
    let Ok(Frame { body: Body::Arp(packet), .. }) = frame::parse(&bytes) else { return };
    let settings = settings(0);
    let mut answer = Answer::none();
    let outcome = local::on_arp(&settings, &mut Guest::new(&settings, None), packet, &mut answer);
    assert_eq!(outcome == local::Outcome::Answered, answer.len > 0);
    assert!(matches!(answer.frame(), None | Some(Frame { body: Body::Arp(_), .. })));
}

/// An ICMPv6 message, type first.
pub fn ndp(data: &[u8]) {
    let settings = settings(0);
    let headers = Outgoing {
        source_mac: settings.our_mac,
        destination_mac: settings.our_mac,
        source: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x55).into(),
        destination: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).into(),
        hop_limit: 255,
        traffic_class: 0,
        flow_label: 0,
    };
    let Some((&[kind, code], body)) = data.split_first_chunk() else { return };
    let mut bytes = vec![0; MAX_LEN];
    let start = headers.headroom(icmp::HEADER_LEN);
    let Some(place) = bytes.get_mut(start..start + body.len()) else { return };
    place.copy_from_slice(body);
    let header = icmp::Header::new(kind, code, 0);
    let Some(written) = headers.icmp(&mut bytes, header, body.len()) else { return };
    let Ok(Frame { body: Body::Ip(packet), .. }) = frame::parse(&bytes[..written.len]) else { return };
    let Transport::Icmp(message) = packet.transport else { return };
    let mut answer = Answer::none();
    let outcome =
        local::on_icmpv6(&settings, &mut Guest::new(&settings, None), &packet, &message, &mut answer);
    assert_eq!(outcome == local::Outcome::Answered, answer.len > 0);
    let _sound = answer.frame();
}

/// A DHCP message.
pub fn dhcp(data: &[u8]) {
    let ends = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
    udp(ends, (68, 67), data, |reply| assert_eq!(reply.get(4..8), data.get(4..8), "transaction"));
}

/// A DHCPv6 message.
pub fn dhcpv6(data: &[u8]) {
    let ends = (
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x55).into(),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2).into(),
    );
    udp(ends, (546, 547), data, |reply| assert_eq!(reply.get(1..4), data.get(1..4), "transaction"));
}

fn udp(ends: (IpAddr, IpAddr), ports: (u16, u16), data: &[u8], check: impl FnOnce(&[u8])) {
    let settings = settings(data.first().map_or(0, |first| first & 1));
    let bytes = datagram_with(ends, ports, data);
    let Ok(Frame { body: Body::Ip(packet), .. }) = frame::parse(&bytes) else { return };
    let Transport::Udp(datagram) = packet.transport else { return };
    let mut answer = Answer::none();
    let mut guest = Guest::new(&settings, None);
    let outcome = local::on_udp(&settings, &mut guest, &packet, &datagram, &mut answer);
    assert_eq!(outcome == local::Outcome::Answered, answer.len > 0);
    let Some(frame) = answer.frame() else { return };
    let Body::Ip(packet) = frame.body else { panic!("no IP packet") };
    let Transport::Udp(datagram) = packet.transport else { panic!("no UDP datagram") };
    assert_eq!(datagram.header.source_port.get(), ports.1);
    check(datagram.payload);
}
