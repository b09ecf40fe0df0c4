//! Neighbour Discovery: every IPv6 address but the guest's own is at our hardware address, and we are the
//! router (RFC 4861, SPEC §4.2).

use alloc::string::String;
use core::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use wire::{
    frame::Packet,
    icmp::{self, v6::*},
    ndp::{self, ALL_NODES, MAX_ADVERTISEMENT_LEN, RouterAdvertisement},
};
use zerocopy::IntoBytes;

use super::{Outcome, headers, is_guests_v6, send_icmpv6};
use crate::{
    addr::{Guest, Settings, V6},
    link::Link,
    timer::Instant,
};

/// Seconds between two unsolicited router advertisements, least and most.
const INTERVAL_SECS: (u32, u32) = (200, 600);

/// Prefix length of the link, whatever the host's is: other ones can't be used for autonomous configuration
/// (RFC 4862 §5.5.3 d, RFC 4291 §2.5.1).
const PREFIX_LEN: u8 = 64;

/// Answers solicitations. Takes all Neighbour Discovery, and nothing else.
///
/// Solicitations for the guest's own address, and those from `::` (duplicate address detection), get no answer;
/// what has another hop limit than 255 has been routed here and is invalid (Q4).
pub fn on_icmpv6(
    settings: &Settings,
    guest: &Guest,
    packet: &Packet<'_>,
    message: &icmp::Message<'_>,
    link: &mut impl Link,
) -> Outcome {
    let kind = message.header.kind;
    let IpAddr::V6(source) = packet.source else { return Outcome::NotLocal };
    if !matches!(kind, ROUTER_SOLICITATION..=REDIRECT) {
        return Outcome::NotLocal;
    }
    let Some(v6) = settings.v6.as_ref().filter(|_| settings.services.ndp) else {
        return Outcome::Ignored;
    };
    if packet.hop_limit != ndp::HOP_LIMIT || source.is_multicast() || source.is_loopback() {
        return Outcome::Invalid;
    }
    match kind {
        NEIGHBOUR_SOLICITATION => {
            let Some(target) = ndp::solicited_target(message) else { return Outcome::Invalid };
            if source.is_unspecified() || is_guests_v6(settings, guest, target) {
                return Outcome::Ignored;
            }
            let headers = headers(settings, guest, v6.our_link_local.into(), source.into());
            let (header, body) = ndp::solicited_advertisement(target, settings.our_mac);
            send_neighbour(link, &headers, header, &body)
        }
        ROUTER_SOLICITATION if !ndp::is_valid_router_solicitation(message) => Outcome::Invalid,
        ROUTER_SOLICITATION if settings.services.ra => {
            advertise(settings, v6, guest, if source.is_unspecified() { ALL_NODES } else { source }, link)
        }
        _ => Outcome::Ignored,
    }
}

/// Asks for the guest's global address at that very address, as the router (SPEC §4.2).
pub(super) fn ask_for_guest(settings: &Settings, guest: &Guest, link: &mut impl Link) -> Outcome {
    let Some(v6) = settings.v6.as_ref().filter(|_| settings.services.ndp) else {
        return Outcome::Ignored;
    };
    let Some(target) = guest.v6 else { return Outcome::Ignored };
    let headers = headers(settings, guest, v6.our_link_local.into(), target.into());
    let (header, body) = ndp::solicitation(target, settings.our_mac);
    send_neighbour(link, &headers, header, &body)
}

/// When to send the next unsolicited router advertisement.
///
/// To be made when the guest is there to hear them: the first one comes an interval later.
#[derive(Clone, Copy, Debug)]
pub struct Advertiser {
    next: Option<Instant>,
}

impl Advertiser {
    /// Starts the clock, if router advertisements are on at all. `random` is any random number.
    #[must_use]
    pub fn new(settings: &Settings, now: Instant, random: u32) -> Self {
        let on = settings.v6.is_some() && settings.services.ndp && settings.services.ra;
        Self { next: on.then(|| now + interval(random)) }
    }

    /// When [`Self::on_deadline`] wants to be called; never if none.
    #[must_use]
    pub const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Advertises to all nodes if it is time to. A full link skips this turn.
    pub fn on_deadline(
        &mut self,
        settings: &Settings,
        guest: &Guest,
        now: Instant,
        random: u32,
        link: &mut impl Link,
    ) {
        if let Some(v6) = &settings.v6
            && self.next.is_some_and(|next| next <= now)
        {
            self.next = Some(now + interval(random));
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
    send_icmpv6(link, &headers, header, MAX_ADVERTISEMENT_LEN, |body| advertisement.write(body))
}

fn send_neighbour(
    link: &mut impl Link,
    headers: &wire::frame::Outgoing,
    header: icmp::Header,
    body: &ndp::Neighbour,
) -> Outcome {
    let bytes = body.as_bytes();
    send_icmpv6(link, headers, header, bytes.len(), |place| {
        place.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(bytes.len())
    })
}
