//! Neighbour Discovery (RFC 4861, behaviour §4.2): every IPv6 address except the guest's own has a hardware address
//! that leads to the engine. The engine is also the router.

use alloc::string::String;
use core::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use wire::{
    ethernet::Mac,
    frame::{Outgoing, Packet},
    icmp::{self, v6::*},
    ndp::{self, ALL_NODES, MAX_ADVERTISEMENT_LEN, RouterAdvertisement},
    payload::Payload,
};
use zerocopy::IntoBytes;

use super::{LONGEST, Outcome, copied, headers, send_icmp};
use crate::{
    addr::{Guest, Settings, V6},
    link::Link,
    timer::Instant,
};

/// Minimum and maximum time between two unsolicited router advertisements, in seconds.
const INTERVAL_SECS: (u32, u32) = (200, 600);

/// Prefix length of the link. It does not depend on the host's prefix length: with other lengths, autonomous
/// configuration does not work (RFC 4862 §5.5.3 d, RFC 4291 §2.5.1).
const PREFIX_LEN: u8 = 64;

/// Answers solicitations. Consumes all Neighbour Discovery messages, and no other messages.
///
/// Two kinds of solicitations get no answer: for the guest's own address, and from `::` (duplicate address detection).
/// A message whose hop limit is not 255 was routed and is invalid (Q4). The addresses of the guest that the messages
/// show are noted, even if the service is off.
pub(super) fn on_icmpv6(
    settings: &Settings,
    guest: &mut Guest,
    packet: &Packet<'_, impl Payload>,
    message: &icmp::Message<'_, impl Payload>,
    link: &mut impl Link,
) -> Outcome {
    let kind = message.header.kind;
    let IpAddr::V6(source) = packet.source else { return Outcome::NotLocal };
    if !matches!(kind, ROUTER_SOLICITATION..=REDIRECT) {
        return Outcome::NotLocal;
    }
    let Some(v6) = &settings.v6 else { return Outcome::Ignored };
    if packet.hop_limit != ndp::HOP_LIMIT || source.is_multicast() || source.is_loopback() {
        return Outcome::Invalid;
    }
    let mut buffer = [0; LONGEST];
    let message = match copied(message.payload, &mut buffer) {
        Ok(payload) => icmp::Message { header: message.header, payload },
        Err(outcome) => return outcome,
    };
    match kind {
        NEIGHBOUR_SOLICITATION => {
            let Some(target) = ndp::neighbour_target(&message) else { return Outcome::Invalid };
            on_solicitation(settings, guest, (source, target), link)
        }
        NEIGHBOUR_ADVERTISEMENT => {
            let Some(target) = ndp::neighbour_target(&message) else { return Outcome::Invalid };
            guest.shows(settings, target.into(), None);
            Outcome::Ignored
        }
        ROUTER_SOLICITATION if !ndp::is_valid_router_solicitation(&message) => Outcome::Invalid,
        ROUTER_SOLICITATION => {
            guest.shows(settings, source.into(), None);
            if !settings.services.ndp || !settings.services.ra {
                return Outcome::Ignored;
            }
            advertise(settings, v6, guest, if source.is_unspecified() { ALL_NODES } else { source }, link)
        }
        _ => Outcome::Ignored,
    }
}

/// Handles a solicitation from `source` for `target`. If `source` is `::`, the sender checks whether another host has
/// `target`, before it uses this address (RFC 4862 §5.4.2).
fn on_solicitation(
    settings: &Settings,
    guest: &mut Guest,
    (source, target): (Ipv6Addr, Ipv6Addr),
    link: &mut impl Link,
) -> Outcome {
    if source.is_unspecified() {
        guest.shows(settings, target.into(), None);
        return Outcome::Ignored;
    }
    guest.shows(settings, source.into(), None);
    if guest.owns(target.into()) {
        if source != target {
            guest.asks_for_its_own(settings, target.into(), None);
        }
        return Outcome::Ignored;
    }
    if !settings.services.ndp || !settings.is_reachable(target.into()) {
        return Outcome::Ignored;
    }
    let (mac, headers) = advertised(settings, guest, target, source);
    let (header, body) = ndp::solicited_advertisement(target, mac);
    send_neighbour(link, &headers, header, &body)
}

/// Sends a solicitation for the guest's `address`, as the router. The destination is `address` itself (behaviour
/// §4.2).
pub(super) fn ask_for(
    settings: &Settings,
    guest: &Guest,
    address: Ipv6Addr,
    link: &mut impl Link,
) -> Outcome {
    let Some(v6) = settings.v6.as_ref().filter(|_| settings.services.ndp) else {
        return Outcome::Ignored;
    };
    let headers = headers(settings, guest, v6.our_link_local.into(), address.into());
    let (header, body) = ndp::solicitation(address, settings.our_mac);
    send_neighbour(link, &headers, header, &body)
}

/// Announces the hardware address of a neighbour to all hosts on the link (RFC 4861 §7.2.6, behaviour §4.1.4).
pub(super) fn announce(
    settings: &Settings,
    guest: &Guest,
    neighbour: Ipv6Addr,
    link: &mut impl Link,
) -> Outcome {
    if settings.v6.is_none() || !settings.services.ndp {
        return Outcome::Ignored;
    }
    let (mac, headers) = advertised(settings, guest, neighbour, ALL_NODES);
    let (header, body) = ndp::unsolicited_advertisement(neighbour, mac);
    send_neighbour(link, &headers, header, &body)
}

/// The hardware address of `target`, and the headers of the advertisement for it. The source of the advertisement is
/// the target itself, as in Linux: some stacks (smoltcp) store the hardware address under the source.
fn advertised(
    settings: &Settings,
    guest: &Guest,
    target: Ipv6Addr,
    destination: Ipv6Addr,
) -> (Mac, Outgoing) {
    let headers = settings.headers(guest, target.into(), destination.into());
    (headers.source_mac, headers)
}

/// The timer of unsolicited router advertisements.
///
/// It must be created when the guest can receive advertisements. The first advertisement is due one interval later
///
#[derive(Clone, Copy, Debug)]
pub struct Advertiser {
    next: Option<Instant>,
    random: u32,
}

impl Advertiser {
    /// Starts the timer, if router advertisements are on. `random` may be any number.
    #[must_use]
    pub fn new(settings: &Settings, now: Instant, random: u32) -> Self {
        let on = settings.v6.is_some() && settings.services.ndp && settings.services.ra;
        Self { next: on.then(|| now + interval(random)), random }
    }

    /// The time at which [`Self::on_deadline`] must be called. None: never.
    #[must_use]
    pub const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Sends an advertisement to all nodes if one is due. If the link is full, this advertisement is skipped.
    pub fn on_deadline(&mut self, settings: &Settings, guest: &Guest, now: Instant, link: &mut impl Link) {
        if let Some(v6) = &settings.v6
            && self.next.is_some_and(|next| next <= now)
        {
            // The random number spreads the intervals. It need not be unpredictable.
            self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.next = Some(now + interval(self.random));
            let _ = advertise(settings, v6, guest, ALL_NODES, link);
        }
    }
}

fn interval(random: u32) -> Duration {
    let (least, most) = INTERVAL_SECS;
    let span = (most - least) * 1000 + 1;
    Duration::from_millis(u64::from(least * 1000 + random % span))
}

fn advertise(
    settings: &Settings,
    v6: &V6,
    guest: &Guest,
    destination: Ipv6Addr,
    link: &mut impl Link,
) -> Outcome {
    let services = &settings.services;
    let dns = services.advertise_dns && !v6.dns.is_empty();
    let advertisement = RouterAdvertisement::<String> {
        mac: settings.our_mac,
        prefix: v6.assigned.map(|address| (address, PREFIX_LEN)),
        mtu: (settings.mtu != 0).then_some(settings.mtu.into()),
        resolvers: if dns { &v6.dns } else { &[] },
        search: if dns && services.advertise_search { &services.search } else { &[] },
    };
    let headers = headers(settings, guest, v6.our_link_local.into(), destination.into());
    let header = RouterAdvertisement::<String>::header();
    send_icmp(link, &headers, header, MAX_ADVERTISEMENT_LEN, |body| advertisement.write(body))
}

fn send_neighbour(
    link: &mut impl Link,
    headers: &Outgoing,
    header: icmp::Header,
    body: &ndp::Neighbour,
) -> Outcome {
    let bytes = body.as_bytes();
    send_icmp(link, headers, header, bytes.len(), |place| {
        place.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(bytes.len())
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use wire::frame::{Body, Transport};

    use super::*;
    use crate::{
        local::test::icmpv6,
        neighbours::Neighbour,
        testkit::{
            link::Capture,
            settings::{GUEST_MAC, OUR_MAC, guest, settings},
        },
    };

    const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn solicit_neighbour(
        settings: &Settings,
        source: &str,
        target: &str,
        hop_limit: u8,
    ) -> (Outcome, Capture) {
        let mut link = Capture::default();
        let (header, body) = ndp::solicitation(v6(target), GUEST_MAC);
        let addresses = (source, "ff02::1:ff00:1", hop_limit);
        (icmpv6(settings, addresses, header, body.as_bytes(), &mut link), link)
    }

    fn solicit_router(settings: &Settings, source: &str) -> (Outcome, Capture) {
        let mut link = Capture::default();
        let header = icmp::Header::new(ROUTER_SOLICITATION, 0, 0);
        (icmpv6(settings, (source, "ff02::2", 255), header, &[], &mut link), link)
    }

    /// Codes of the options of a router advertisement.
    fn option_codes(link: &Capture) -> Vec<u8> {
        let Transport::Icmp(message) = link.packet().0.transport else { panic!() };
        let (mut options, mut codes) = (&message.payload[8..], Vec::new());
        while let [code, units, ..] = options {
            codes.push(*code);
            options = &options[usize::from(*units) * 8..];
        }
        codes
    }

    /// A neighbour's hardware address is announced to all nodes (behaviour §4.1.4, RFC 4861 §7.2.6).
    #[test]
    fn a_neighbour_is_announced_to_all_nodes() {
        let mut settings = settings();
        let (address, mac) = (v6("2001:db8:1::20"), Mac([2, 0, 0, 0, 0, 1]));
        settings.neighbours.note(Neighbour { address: address.into(), mac: Some(mac) });
        let mut link = Capture::default();
        assert_eq!(announce(&settings, &guest(&settings), address, &mut link), Outcome::Answered);
        let frame = link.frame();
        let Body::Ip(packet) = frame.body else { panic!() };
        assert_eq!((frame.source_mac, frame.destination_mac), (mac, ALL_NODES_MAC));
        assert_eq!((packet.source, packet.destination), (address.into(), ALL_NODES.into()));
        let Transport::Icmp(message) = packet.transport else { panic!() };
        let (header, body) = ndp::unsolicited_advertisement(address, mac);
        assert_eq!((message.header.kind, message.header.rest), (header.kind, header.rest));
        assert_eq!(message.payload, body.as_bytes());
        settings.services.ndp = false;
        assert_eq!(announce(&settings, &guest(&settings), address, &mut link), Outcome::Ignored);
    }

    #[test]
    fn on_a_virtual_network_only_the_engines_addresses_are_answered() {
        let mut settings = settings();
        settings.virtual_hosts = alloc::vec![v6("fe80::1").into()];
        assert_eq!(solicit_neighbour(&settings, "fe80::55", "fe80::1", 255).0, Outcome::Answered);
        assert_eq!(solicit_neighbour(&settings, "fe80::55", "2001:db8:1::1", 255).0, Outcome::Ignored);
    }

    #[test]
    fn solicitations_for_every_address_are_answered() {
        // behaviour §4.2
        let settings = settings();
        for target in ["fe80::1", "2001:db8:1::1", "2001:db8:99::1"] {
            let (outcome, link) = solicit_neighbour(&settings, "fe80::55", target, 255);
            assert_eq!(outcome, Outcome::Answered);
            let (packet, mac) = link.packet();
            assert_eq!((packet.source, packet.destination), (v6(target).into(), v6("fe80::55").into()));
            assert_eq!(mac, GUEST_MAC);
            let Transport::Icmp(message) = packet.transport else { panic!() };
            assert_eq!(
                (message.header.kind, message.header.rest.get()),
                (NEIGHBOUR_ADVERTISEMENT, 0xe000_0000)
            );
            assert_eq!(message.payload[..16], v6(target).octets());
            assert_eq!(message.payload[16..18], [2, 1]);
            assert_eq!(message.payload[18..], OUR_MAC.0);
        }
    }

    /// A neighbour's advertisement has the neighbour as its source (RFC 4861 §7.2.4). smoltcp learns the hardware
    /// address of the sender, not of the target.
    #[test]
    fn a_neighbour_answers_from_its_own_addresses() {
        let mut settings = settings();
        let (address, mac) = (v6("2001:db8:1::20"), Mac([2, 0, 0, 0, 0, 1]));
        settings.neighbours.note(Neighbour { address: address.into(), mac: Some(mac) });
        let (outcome, link) = solicit_neighbour(&settings, "fe80::55", "2001:db8:1::20", 255);
        assert_eq!(outcome, Outcome::Answered);
        let frame = link.frame();
        assert_eq!((frame.source_mac, frame.destination_mac), (mac, GUEST_MAC));
        let Body::Ip(packet) = frame.body else { panic!() };
        assert_eq!((packet.source, packet.destination), (address.into(), v6("fe80::55").into()));
        let Transport::Icmp(message) = packet.transport else { panic!() };
        assert_eq!(message.payload[18..], mac.0);
    }

    #[test]
    fn q4_solicitations_for_the_guests_own_addresses_get_no_answer() {
        let settings = settings();
        for target in ["2001:db8:1::2", "2001:db8:1::55", "fe80::55"] {
            let (outcome, link) = solicit_neighbour(&settings, "fe80::66", target, 255);
            assert_eq!((outcome, link.frames.len()), (Outcome::Ignored, 0), "{target}");
        }
        let (outcome, link) = solicit_neighbour(&settings, "::", "2001:db8:1::99", 255);
        assert_eq!((outcome, link.frames.len()), (Outcome::Ignored, 0));
    }

    #[test]
    fn q4_a_routed_message_is_invalid() {
        let (outcome, link) = solicit_neighbour(&settings(), "fe80::55", "fe80::1", 254);
        assert_eq!((outcome, link.frames.len()), (Outcome::Invalid, 0));
    }

    #[test]
    fn exactly_neighbour_discovery_is_consumed() {
        // behaviour §4.2
        let settings = settings();
        for (kind, expected) in [
            (ROUTER_ADVERTISEMENT, Outcome::Ignored),
            (NEIGHBOUR_ADVERTISEMENT, Outcome::Invalid), // without a target
            (REDIRECT, Outcome::Ignored),
            (NEIGHBOUR_SOLICITATION, Outcome::Invalid), // without a target
            (ECHO_REQUEST, Outcome::NotLocal),
            (143, Outcome::NotLocal), // a multicast listener report
        ] {
            let mut link = Capture::default();
            let header = icmp::Header::new(kind, 0, 0);
            assert_eq!(icmpv6(&settings, ("fe80::55", "ff02::1", 255), header, &[], &mut link), expected);
            assert!(link.frames.is_empty());
        }
    }

    #[test]
    fn a_router_solicitation_is_answered() {
        // behaviour §4.2, R-44
        let settings = settings();
        let (outcome, link) = solicit_router(&settings, "fe80::55");
        assert_eq!(outcome, Outcome::Answered);
        let (packet, mac) = link.packet();
        assert_eq!((packet.source, packet.destination), (v6("fe80::1").into(), v6("fe80::55").into()));
        assert_eq!(mac, GUEST_MAC);
        let Transport::Icmp(message) = packet.transport else { panic!() };
        assert_eq!(message.header.kind, ROUTER_ADVERTISEMENT);
        assert_eq!(message.header.rest.get(), 0xff80_ffff);
        assert_eq!(option_codes(&link), [3, 1, 5, 25, 31]);
        assert_eq!(message.payload[8 + 16..8 + 32], v6("2001:db8:1::").octets());
    }

    #[test]
    fn q4_without_an_address_yet_the_answer_goes_to_all_nodes() {
        let (outcome, link) = solicit_router(&settings(), "::");
        assert_eq!(outcome, Outcome::Answered);
        let (packet, mac) = link.packet();
        assert_eq!((packet.destination, mac), (ALL_NODES.into(), ALL_NODES_MAC));
    }

    #[test]
    fn advertisements_have_the_options_that_are_on() {
        // DNSSL is sent only with RDNSS. The MTU is sent unless it is 0. In local mode, no prefix is sent (behaviour
        // §4.2).
        let mut settings = settings();
        settings.mtu = 0;
        assert_eq!(option_codes(&solicit_router(&settings, "fe80::55").1), [3, 1, 25, 31]);
        settings.services.advertise_search = false;
        assert_eq!(option_codes(&solicit_router(&settings, "fe80::55").1), [3, 1, 25]);
        settings.services.advertise_search = true;
        settings.services.advertise_dns = false;
        assert_eq!(option_codes(&solicit_router(&settings, "fe80::55").1), [3, 1]);
        settings.services.advertise_dns = true;
        settings.v6.as_mut().unwrap().dns.clear();
        assert_eq!(option_codes(&solicit_router(&settings, "fe80::55").1), [3, 1]);
        settings.v6.as_mut().unwrap().assigned = None;
        assert_eq!(option_codes(&solicit_router(&settings, "fe80::55").1), [1]);
    }

    #[test]
    fn services_that_are_off_do_not_answer() {
        let mut settings = settings();
        settings.services.ra = false;
        assert_eq!(solicit_router(&settings, "fe80::55").0, Outcome::Ignored);
        assert_eq!(solicit_neighbour(&settings, "fe80::55", "fe80::1", 255).0, Outcome::Answered);
        settings.services.ndp = false;
        assert_eq!(solicit_neighbour(&settings, "fe80::55", "fe80::1", 255).0, Outcome::Ignored);
        settings.services.ndp = true;
        settings.v6 = None;
        assert_eq!(solicit_neighbour(&settings, "fe80::55", "fe80::1", 255).0, Outcome::Ignored);
    }

    #[test]
    fn unsolicited_advertisements_come_every_200_to_600_seconds() {
        // The first advertisement is not sent at once (behaviour §4.2, R-45).
        let settings = settings();
        let guest = guest(&settings);
        let start = Instant::from_micros(5);
        for random in [0, 1, 400_000, 400_001, u32::MAX] {
            let mut advertiser = Advertiser::new(&settings, start, random);
            let after = |advertiser: &Advertiser, last| {
                let secs = advertiser.next().unwrap().since(last).as_secs_f64();
                assert!((200.0..=600.0).contains(&secs), "{secs} s");
            };
            let first = advertiser.next().unwrap();
            after(&advertiser, start);

            let mut link = Capture::default();
            advertiser.on_deadline(&settings, &guest, start, &mut link);
            assert!(link.frames.is_empty());
            assert_eq!(advertiser.next(), Some(first));

            advertiser.on_deadline(&settings, &guest, first, &mut link);
            let (packet, mac) = link.packet();
            assert_eq!((packet.destination, mac), (ALL_NODES.into(), ALL_NODES_MAC));
            after(&advertiser, first);
        }
    }

    #[test]
    fn no_unsolicited_advertisements_when_off_r45() {
        let on = settings();
        let off: [fn(&mut Settings); 3] =
            [|all| all.services.ra = false, |all| all.services.ndp = false, |all| all.v6 = None];
        for switch in off {
            let mut settings = on.clone();
            switch(&mut settings);
            assert_eq!(Advertiser::new(&settings, Instant::default(), 0).next(), None);
        }
    }
}
