//! Pings of the engine's own addresses on a virtual network. The host has no such addresses, so the engine answers.

use core::net::IpAddr;

use wire::{
    frame::Packet,
    icmp::{self, Header, v4, v6},
    payload::Payload,
};

use super::{LONGEST, Outcome, copied, headers, send_icmp};
use crate::{
    addr::{Guest, Settings},
    link::Link,
};

/// Answers an echo request to an address of the engine (RFC 792, RFC 4443 §4.2). Other messages are not consumed.
/// Requests that are longer than the MTU of the link are ignored.
pub(super) fn on_icmp(
    settings: &Settings,
    guest: &Guest,
    packet: &Packet<'_, impl Payload>,
    message: &icmp::Message<'_, impl Payload>,
    link: &mut impl Link,
) -> Outcome {
    let is_v4 = packet.destination.is_ipv4();
    let (request, reply) =
        if is_v4 { (v4::ECHO_REQUEST, v4::ECHO_REPLY) } else { (v6::ECHO_REQUEST, v6::ECHO_REPLY) };
    let header = message.header;
    if !settings.virtual_hosts.contains(&packet.destination) || (header.kind, header.code) != (request, 0) {
        return Outcome::NotLocal;
    }
    if !settings.services.icmp || !settings.valid_guest_source(packet.source) {
        return Outcome::Ignored;
    }
    let mut buffer = [0; LONGEST];
    let Ok(payload) = copied(message.payload, &mut buffer) else { return Outcome::Ignored };
    let headers = headers(settings, guest, packet.destination, packet.source);
    if headers.headroom(icmp::HEADER_LEN) + payload.len() > frame_len(settings, packet.source) {
        return Outcome::Ignored;
    }
    send_icmp(link, &headers, Header::new(reply, 0, header.rest.get()), payload.len(), |body| {
        body.get_mut(..payload.len())?.copy_from_slice(payload);
        Some(payload.len())
    })
}

/// The maximum length of a frame to `guest`, in bytes.
fn frame_len(settings: &Settings, guest: IpAddr) -> usize {
    wire::ethernet::HEADER_LEN + usize::from(settings.link_mtu(guest.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use wire::frame::Transport;

    use super::*;
    use crate::{
        local,
        testkit::{
            self,
            guest::{headers_of, ip},
            link::Capture,
            settings::{OUR_MAC, guest, settings},
        },
    };

    fn on_virtual_network() -> Settings {
        let mut settings = settings();
        settings.virtual_hosts = ["198.51.100.1", "fe80::1"].map(|address| address.parse().unwrap()).into();
        settings
    }

    fn ping(settings: &Settings, (source, destination): (&str, &str), len: usize) -> (Outcome, Capture) {
        let kind = if source.contains(':') { v6::ECHO_REQUEST } else { v4::ECHO_REQUEST };
        let body: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
        let frame =
            testkit::guest::icmp(&headers_of(source, destination), Header::new(kind, 0, 0x1234_0007), &body);
        let packet = ip(&frame);
        let Transport::Icmp(message) = packet.transport else { panic!() };
        let mut link = Capture::default();
        let outcome = local::on_icmp(settings, &mut guest(settings), &packet, &message, &mut link);
        (outcome, link)
    }

    #[test]
    fn pings_of_the_engine_are_answered_from_the_address_that_was_pinged() {
        let settings = on_virtual_network();
        for (source, destination, reply) in
            [("198.51.100.55", "198.51.100.1", v4::ECHO_REPLY), ("fe80::55", "fe80::1", v6::ECHO_REPLY)]
        {
            let (outcome, link) = ping(&settings, (source, destination), 56);
            assert_eq!(outcome, Outcome::Answered, "{destination}");
            assert_eq!(link.frame().source_mac, OUR_MAC);
            let (packet, _) = link.packet();
            let addresses = (destination.parse().unwrap(), source.parse().unwrap());
            assert_eq!((packet.source, packet.destination), addresses);
            let Transport::Icmp(message) = packet.transport else { panic!() };
            assert_eq!((message.header.kind, message.header.rest.get()), (reply, 0x1234_0007));
            assert!(message.payload.iter().copied().eq(0..56));
        }
    }

    #[test]
    fn other_pings_are_not_consumed() {
        let settings = on_virtual_network();
        assert_eq!(ping(&settings, ("198.51.100.55", "198.51.100.2"), 56).0, Outcome::NotLocal);
        assert_eq!(ping(&settings, ("198.51.100.55", "203.0.113.1"), 56).0, Outcome::NotLocal);
        let real = testkit::settings::settings();
        assert_eq!(ping(&real, ("198.51.100.55", "198.51.100.1"), 56).0, Outcome::NotLocal);
    }

    #[test]
    fn a_request_that_does_not_fit_in_the_mtu_is_ignored() {
        let mut settings = on_virtual_network();
        settings.mtu = 1500;
        assert_eq!(ping(&settings, ("198.51.100.55", "198.51.100.1"), 1472).0, Outcome::Answered);
        let (outcome, link) = ping(&settings, ("198.51.100.55", "198.51.100.1"), 1473);
        assert_eq!((outcome, link.frames.len()), (Outcome::Ignored, 0));
    }
}
