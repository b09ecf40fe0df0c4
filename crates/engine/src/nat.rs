//! Translates addresses between guest and host (behaviour §5). There is no other address translation.
//!
//! Everything in this module is a pure function of [`Settings`] and [`Guest`]. A flow stores the decision for its
//! first packet. Replies come from the address to which this packet was sent.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::{
    addr::{Guest, Settings, V4, V6},
    flow::Protocol,
};

/// The reason why traffic of the guest to a destination is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The destination's address family is disabled.
    #[error("address family is disabled")]
    FamilyDisabled,
    /// The destination is `0.0.0.0` or `::`.
    #[error("unspecified destination address")]
    Unspecified,
    /// The destination is a loopback address, which must not appear on a link (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3).
    #[error("loopback destination address on the link")]
    Loopback,
    /// The destination is an IPv4-mapped IPv6 address, which must not appear on a link (RFC 4038 §4.2). A socket of
    /// the host would treat the address as IPv4, and bypass every rule for IPv4.
    #[error("IPv4-mapped IPv6 destination address on the link")]
    Mapped,
    /// The destination port is 0.
    #[error("destination port 0")]
    PortZero,
    /// The protocol is TCP and the destination is a broadcast or multicast address (behaviour §5.6).
    #[error("TCP to an address that is not unicast")]
    NotUnicast,
    /// The destination is an address of a virtual network that is not mapped to the host.
    #[error("address of the virtual network that leads nowhere")]
    Virtual,
}

/// The addresses of an inbound flow of one family, as the guest will see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundAddresses {
    /// The peer's address as the guest sees it.
    pub source: IpAddr,
    /// The guest's address.
    pub destination: IpAddr,
}

impl Settings {
    /// The host's destination for traffic of the guest to `destination` (behaviour §5.2).
    ///
    /// A link-local result has the scope of the outbound interface. With [`Protocol::Icmp`], the result has the port
    /// of `destination`. For traffic to the host's resolvers, see [`Settings::resolvers`].
    ///
    /// # Errors
    /// Traffic to this destination is not forwarded.
    pub fn to_host(&self, protocol: Protocol, destination: SocketAddr) -> Result<SocketAddr, Refused> {
        refuse(protocol, destination)?;
        let port = destination.port();
        let translated: SocketAddr = match destination.ip() {
            IpAddr::V4(address) => {
                let v4 = self.v4.as_ref().ok_or(Refused::FamilyDisabled)?;
                SocketAddrV4::new(v4.to_host(address), port).into()
            }
            IpAddr::V6(address) => {
                let v6 = self.v6.as_ref().ok_or(Refused::FamilyDisabled)?;
                let address = v6.to_host(address);
                let scope = if is_link_scope(address) { v6.outbound_scope } else { 0 };
                SocketAddrV6::new(address, port, 0, scope).into()
            }
        };
        if self.is_virtual(translated.ip()) && !self.is_dns(destination) {
            return Err(Refused::Virtual);
        }
        Ok(translated)
    }

    /// Whether a packet with this source may come from the guest: the source must be unicast, and of an enabled family
    ///
    #[must_use]
    pub fn valid_guest_source(&self, source: IpAddr) -> bool {
        self.has_family_of(source) && is_link_unicast(source)
    }

    /// Whether `address` can't lead to the host, since it is an address of a virtual network.
    pub(crate) fn is_virtual(&self, address: IpAddr) -> bool {
        let on_link = || match address {
            IpAddr::V4(_) => self.is_local(address) || self.is_broadcast(address),
            IpAddr::V6(v6) => self.is_local(address) || is_link_scope(v6),
        };
        !self.virtual_hosts.is_empty() && on_link()
    }

    const fn has_family_of(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4.is_some(),
            IpAddr::V6(_) => self.v6.is_some(),
        }
    }

    /// The address that the guest sees for a packet from `source` on the host's side (behaviour §5.3.4). None if there
    /// is no such address.
    ///
    /// All loopback addresses other than `127.0.0.1` become the engine's address (Q24): a guest drops packets from
    /// 127/8 on a link, and the engine has no second address to distinguish them. The source port stays the same. A
    /// guest would also drop packets from one of its own addresses. Such a source becomes the map-guest address if
    /// there is one, else the engine's address.
    #[must_use]
    pub fn source_to_guest(&self, guest: &Guest, source: IpAddr) -> Option<IpAddr> {
        let source = source.to_canonical();
        if is_group(source) {
            return None;
        }
        let own = guest.owns(source);
        match source {
            IpAddr::V4(source) => self.v4.as_ref()?.source_to_guest(own, source).map(IpAddr::V4),
            IpAddr::V6(source) => self.v6.as_ref()?.source_to_guest(own, source).map(IpAddr::V6),
        }
    }

    /// The guest's address for packets from `shown_source` (behaviour §5.4). It is `written_to`, the address to which
    /// the client sent, if the guest has this address and no address is pinned. Else it is the main address of the
    /// same family, and of link-local scope if the source is link-local. None if no such address is known.
    #[must_use]
    pub fn guest_destination(
        &self,
        guest: &Guest,
        shown_source: IpAddr,
        written_to: Option<IpAddr>,
    ) -> Option<IpAddr> {
        if !self.has_family_of(shown_source) {
            return None;
        }
        // The guest uses its own link-local address to answer a link-local peer, if the service is bound to all
        // addresses.
        let written_to = written_to.map(|written_to| written_to.to_canonical()).filter(|written_to| {
            written_to.is_ipv4() == shown_source.is_ipv4()
                && is_link_local(*written_to) == is_link_local(shown_source)
                && !guest.is_pinned(*written_to)
                && guest.addresses().contains(*written_to)
        });
        written_to.or_else(|| match shown_source {
            IpAddr::V4(_) => guest.v4().map(IpAddr::V4),
            IpAddr::V6(source) if source.is_unicast_link_local() => {
                guest.link_local().or(guest.v6()).map(IpAddr::V6)
            }
            IpAddr::V6(_) => guest.v6().or(guest.link_local()).map(IpAddr::V6),
        })
    }

    /// The addresses of a flow under a forwarding rule (behaviour §5.3.2, §5.3.4). `peer` opened the flow to
    /// `written_to`, an address of the host. The rule's `target` takes precedence over the guest's address. A
    /// multicast `written_to` is kept. None if the guest can't be reached this way: for example, if the target and the
    /// peer have different families.
    #[must_use]
    pub fn inbound(
        &self,
        guest: &Guest,
        peer: IpAddr,
        written_to: IpAddr,
        target: Option<IpAddr>,
    ) -> Option<InboundAddresses> {
        let source = self.source_to_guest(guest, peer)?;
        let written_to = written_to.to_canonical();
        let destination = match target {
            Some(target) => target.to_canonical(),
            None if written_to.is_multicast() => written_to,
            None => self.guest_destination(guest, source, Some(written_to))?,
        };
        (source.is_ipv4() == destination.is_ipv4()).then_some(InboundAddresses { source, destination })
    }
}

impl V4 {
    fn to_host(&self, destination: Ipv4Addr) -> Ipv4Addr {
        if self.map_host_loopback == Some(destination) {
            Ipv4Addr::LOCALHOST
        } else if self.map_guest_address == Some(destination) {
            self.assigned
        } else {
            destination
        }
    }

    /// See [`Settings::source_to_guest`]. `own`: `source` is one of the guest's addresses.
    fn source_to_guest(&self, own: bool, source: Ipv4Addr) -> Option<Ipv4Addr> {
        if let (Ipv4Addr::LOCALHOST, Some(mapped)) = (source, self.map_host_loopback) {
            return Some(mapped);
        }
        let own = own || source == self.assigned;
        if let (true, Some(mapped)) = (own, self.map_guest_address) {
            return Some(mapped);
        }
        if source.is_loopback() || source.is_unspecified() || own {
            return self.our_address;
        }
        Some(source)
    }
}

impl V6 {
    fn to_host(&self, destination: Ipv6Addr) -> Ipv6Addr {
        if self.map_host_loopback == Some(destination) {
            Ipv6Addr::LOCALHOST
        } else if self.map_guest_address == Some(destination) {
            self.assigned.unwrap_or(destination)
        } else {
            destination
        }
    }

    /// See [`Settings::source_to_guest`]. `own`: `source` is one of the guest's addresses.
    fn source_to_guest(&self, own: bool, source: Ipv6Addr) -> Option<Ipv6Addr> {
        if let (Ipv6Addr::LOCALHOST, Some(mapped)) = (source, self.map_host_loopback) {
            return Some(mapped);
        }
        let own = own || Some(source) == self.assigned;
        if let (true, Some(mapped)) = (own && !source.is_unicast_link_local(), self.map_guest_address) {
            return Some(mapped);
        }
        if source.is_loopback() || source.is_unspecified() || own {
            return Some(self.our_link_local);
        }
        Some(source)
    }
}

/// Refuses the destinations that are never allowed.
fn refuse(protocol: Protocol, destination: SocketAddr) -> Result<(), Refused> {
    let address = destination.ip();
    if address.is_unspecified() {
        Err(Refused::Unspecified)
    } else if address.is_loopback() {
        Err(Refused::Loopback)
    } else if is_mapped(address) {
        Err(Refused::Mapped)
    } else if destination.port() == 0 && protocol != Protocol::Icmp {
        Err(Refused::PortZero)
    } else if protocol == Protocol::Tcp && !is_link_unicast(address) {
        Err(Refused::NotUnicast)
    } else {
        Ok(())
    }
}

/// Whether a single host on a link can have this address.
fn is_link_unicast(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !is_group(address) && !is_mapped(address)
}

/// Whether packets to `address` may reach several hosts.
pub(crate) fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Whether the address needs a scope: link-local unicast, or interface- or link-local multicast.
pub(crate) fn is_link_scope(address: Ipv6Addr) -> bool {
    address.is_unicast_link_local()
        || matches!(address.octets(), [0xff, flags_scope, ..] if flags_scope & 0xf <= 2)
}

/// Whether an IPv6 address is link-local. IPv4 link-local addresses are not special here.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::settings::{guest, settings};
    use alloc::string::ToString;
    use wire::ethernet::Mac;

    const GUEST_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x55]);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[track_caller]
    fn goes(settings: &Settings, protocol: Protocol, from: &str, to: &str) {
        assert_eq!(settings.to_host(protocol, socket(from)), Ok(socket(to)), "{protocol:?} to {from}");
    }

    #[track_caller]
    fn shown(settings: &Settings, source: &str, as_: Option<&str>) {
        let shown = settings.source_to_guest(&guest(settings), address(source));
        assert_eq!(shown, as_.map(address), "{source}");
    }

    use Protocol::{Icmp, Tcp, Udp};

    #[test]
    fn dns_to_a_gateway_that_is_the_resolver_wins_over_host_loopback_r36() {
        let mut settings = settings();
        let v4 = settings.v4.as_mut().unwrap();
        v4.dns_forward = v4.our_address;
        assert!(settings.is_dns(socket("198.51.100.1:53")));
        assert!(!settings.is_dns(socket("198.51.100.1:54")));
        goes(&settings, Udp, "198.51.100.1:54", "127.0.0.1:54");
        goes(&settings, Icmp, "198.51.100.1:0", "127.0.0.1:0");
    }

    #[test]
    fn map_host_loopback_goes_to_loopback_with_any_protocol() {
        // behaviour §5.2 row 2
        let settings = settings();
        for protocol in [Tcp, Udp, Icmp] {
            goes(&settings, protocol, "198.51.100.1:80", "127.0.0.1:80");
            goes(&settings, protocol, "[fe80::1]:80", "[::1]:80");
        }
    }

    #[test]
    fn without_host_loopback_mapping_the_gateway_is_like_any_address() {
        // behaviour §5.2 row 2, --no-map-gw
        let mut settings = settings();
        settings.v4.as_mut().unwrap().map_host_loopback = None;
        settings.v6.as_mut().unwrap().map_host_loopback = None;
        goes(&settings, Tcp, "198.51.100.1:80", "198.51.100.1:80");
        goes(&settings, Tcp, "[fe80::1]:80", "[fe80::1%7]:80");
    }

    #[test]
    fn map_guest_address_goes_to_the_assigned_one() {
        // behaviour §5.2 row 3
        let settings = settings();
        for protocol in [Tcp, Udp, Icmp] {
            goes(&settings, protocol, "198.51.100.77:80", "198.51.100.2:80");
            goes(&settings, protocol, "[2001:db8:1::77]:80", "[2001:db8:1::2]:80");
        }
    }

    #[test]
    fn anything_else_is_unchanged_and_link_local_gets_its_scope() {
        // behaviour §5.2 row 4; broadcast and multicast for UDP (Q10, R-91)
        let settings = settings();
        goes(&settings, Tcp, "203.0.113.9:65535", "203.0.113.9:65535");
        goes(&settings, Udp, "255.255.255.255:67", "255.255.255.255:67");
        goes(&settings, Udp, "239.255.255.250:1900", "239.255.255.250:1900");
        goes(&settings, Tcp, "[2001:db8::9]:1", "[2001:db8::9]:1");
        goes(&settings, Tcp, "[fe80::9]:1", "[fe80::9%7]:1");
        goes(&settings, Udp, "[ff02::fb]:5353", "[ff02::fb%7]:5353");
        goes(&settings, Udp, "[ff0e::fb]:5353", "[ff0e::fb]:5353");
    }

    #[test]
    fn addresses_of_a_virtual_network_do_not_lead_to_the_host() {
        let mut settings = settings();
        settings.virtual_hosts = ["198.51.100.1", "fe80::1"].map(address).into();
        goes(&settings, Tcp, "198.51.100.1:80", "127.0.0.1:80");
        goes(&settings, Tcp, "[fe80::1]:80", "[::1]:80");
        goes(&settings, Tcp, "198.51.100.53:53", "198.51.100.53:53"); // resolvers replace it
        goes(&settings, Tcp, "203.0.113.1:80", "203.0.113.1:80");
        for to in ["198.51.100.53:54", "198.51.100.9:80", "[2001:db8:1::9]:80", "[fe80::9]:80"] {
            assert_eq!(settings.to_host(Tcp, socket(to)), Err(Refused::Virtual), "{to}");
        }
        for to in ["198.51.100.255:1", "255.255.255.255:1", "[ff02::fb]:5353"] {
            assert_eq!(settings.to_host(Udp, socket(to)), Err(Refused::Virtual), "{to}");
        }
        settings.v4.as_mut().unwrap().map_host_loopback = None;
        assert_eq!(settings.to_host(Udp, socket("198.51.100.1:80")), Err(Refused::Virtual));
    }

    #[test]
    fn some_destinations_are_refused() {
        // behaviour §5.2 (c) and (d), §5.6, R-77, R-101
        let mut settings = settings();
        for protocol in [Tcp, Udp, Icmp] {
            for (to, why) in [
                ("0.0.0.0:1", Refused::Unspecified),
                ("[::]:1", Refused::Unspecified),
                ("127.0.0.1:1", Refused::Loopback),
                ("127.9.9.9:1", Refused::Loopback),
                ("[::1]:1", Refused::Loopback),
                ("[::ffff:127.0.0.1]:1", Refused::Mapped),
                ("[::ffff:203.0.113.1]:1", Refused::Mapped),
            ] {
                assert_eq!(settings.to_host(protocol, socket(to)), Err(why), "{protocol:?} to {to}");
            }
        }
        for protocol in [Tcp, Udp] {
            assert_eq!(settings.to_host(protocol, socket("203.0.113.1:0")), Err(Refused::PortZero));
            assert_eq!(settings.to_host(protocol, socket("[2001:db8::9]:0")), Err(Refused::PortZero));
        }
        for to in ["255.255.255.255:1", "224.0.0.1:1", "[ff02::1]:1"] {
            assert_eq!(settings.to_host(Tcp, socket(to)), Err(Refused::NotUnicast), "{to}");
        }
        settings.v4 = None;
        assert_eq!(settings.to_host(Tcp, socket("203.0.113.1:1")), Err(Refused::FamilyDisabled));
        settings.v6 = None;
        assert_eq!(settings.to_host(Tcp, socket("[2001:db8::9]:1")), Err(Refused::FamilyDisabled));
    }

    #[test]
    fn only_unicast_sources_of_an_enabled_family_come_from_the_guest_r100() {
        let mut settings = settings();
        for good in ["198.51.100.2", "203.0.113.1", "2001:db8::1", "fe80::1"] {
            assert!(settings.valid_guest_source(address(good)), "{good}");
        }
        let bad = [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:192.0.2.1",
        ];
        for bad in bad {
            assert!(!settings.valid_guest_source(address(bad)), "{bad}");
        }
        settings.v6 = None;
        assert!(!settings.valid_guest_source(address("2001:db8::1")));
    }

    #[test]
    fn the_hosts_loopback_is_shown_as_map_host_loopback() {
        // behaviour §5.3.4 row 1
        let settings = settings();
        shown(&settings, "127.0.0.1", Some("198.51.100.1"));
        shown(&settings, "::ffff:127.0.0.1", Some("198.51.100.1")); // dual-stack listener
        shown(&settings, "::1", Some("fe80::1"));
        let mut elsewhere = settings;
        elsewhere.v4.as_mut().unwrap().map_host_loopback = Some(Ipv4Addr::new(192, 0, 2, 99));
        shown(&elsewhere, "127.0.0.1", Some("192.0.2.99"));
        shown(&elsewhere, "127.0.0.3", Some("198.51.100.1"));
    }

    #[test]
    fn the_assigned_address_is_shown_as_map_guest_address() {
        // behaviour §5.3.4 row 2
        let settings = settings();
        shown(&settings, "198.51.100.2", Some("198.51.100.77"));
        shown(&settings, "2001:db8:1::2", Some("2001:db8:1::77"));
    }

    #[test]
    fn sources_that_a_guest_would_drop_become_our_address() {
        // behaviour §5.3.4 row 3
        let mut settings = settings();
        settings.v4.as_mut().unwrap().map_guest_address = None;
        settings.v4.as_mut().unwrap().map_host_loopback = None;
        settings.v6.as_mut().unwrap().map_guest_address = None;
        settings.v6.as_mut().unwrap().map_host_loopback = None;
        for source in ["127.0.0.1", "127.0.0.3", "0.0.0.0", "198.51.100.2", "198.51.100.55"] {
            shown(&settings, source, Some("198.51.100.1"));
        }
        for source in ["::1", "::", "2001:db8:1::2", "2001:db8:1::55", "fe80::55"] {
            shown(&settings, source, Some("fe80::1"));
        }
        settings.v4.as_mut().unwrap().our_address = None;
        shown(&settings, "127.0.0.1", None);
        shown(&settings, "203.0.113.1", Some("203.0.113.1"));
    }

    #[test]
    fn any_other_source_is_unchanged() {
        // behaviour §5.3.4 row 4
        let mut settings = settings();
        shown(&settings, "203.0.113.1", Some("203.0.113.1"));
        shown(&settings, "2001:db8::9", Some("2001:db8::9"));
        shown(&settings, "fe80::9", Some("fe80::9"));
        shown(&settings, "224.0.0.1", None);
        shown(&settings, "ff02::1", None);
        settings.v4 = None;
        shown(&settings, "203.0.113.1", None);
    }

    #[test]
    fn the_guests_address_fits_the_source() {
        // behaviour §5.4
        let settings = settings();
        let mut guest = guest(&settings);
        let destination = |guest: &Guest, source| settings.guest_destination(guest, address(source), None);
        assert_eq!(destination(&guest, "203.0.113.1"), Some(address("198.51.100.55")));
        assert_eq!(destination(&guest, "2001:db8::9"), Some(address("2001:db8:1::55")));
        assert_eq!(destination(&guest, "fe80::9"), Some(address("fe80::55")));
        guest.forget(address("2001:db8:1::2"));
        guest.forget(address("2001:db8:1::55")); // local mode: there is only the link-local address
        assert_eq!(destination(&guest, "2001:db8::9"), Some(address("fe80::55")));
        guest.forget(address("fe80::55"));
        assert_eq!(destination(&guest, "2001:db8::9"), None);
    }

    /// Inbound flows go to the address to which the client sent, if the guest has it (behaviour §5.3.2).
    #[test]
    fn inbound_flows_go_to_the_address_that_the_client_wrote_to_if_the_guest_has_it() {
        let mut settings = settings();
        let mut guest = guest(&settings);
        for second in ["198.51.100.66", "2001:db8:1::66"] {
            guest.shows(&settings, address(second), Some(GUEST_MAC));
        }
        let destination = |settings: &Settings, guest: &Guest, peer, written_to| {
            let inbound = settings.inbound(guest, address(peer), address(written_to), None);
            inbound.map(|inbound| inbound.destination.to_string()).unwrap_or_default()
        };
        let cases = [
            ("203.0.113.1", "198.51.100.66", "198.51.100.66"),
            ("::ffff:203.0.113.1", "::ffff:198.51.100.66", "198.51.100.66"),
            ("203.0.113.1", "198.51.100.55", "198.51.100.55"),
            ("203.0.113.1", "192.0.2.1", "198.51.100.55"),
            ("127.0.0.1", "198.51.100.66", "198.51.100.66"),
            ("2001:db8::9", "2001:db8:1::66", "2001:db8:1::66"),
            ("2001:db8::9", "2001:db8:7::1", "2001:db8:1::55"),
            ("fe80::9", "2001:db8:1::66", "fe80::55"),
            ("fe80::9", "fe80::77", "fe80::55"),
        ];
        for (peer, written_to, expected) in cases {
            assert_eq!(destination(&settings, &guest, peer, written_to), expected, "{peer} to {written_to}");
        }
        // With a pinned address, all flows go to this address.
        settings.v4.as_mut().unwrap().pinned = true;
        let mut guest = Guest::new(&settings, None);
        guest.shows(&settings, address("198.51.100.66"), Some(GUEST_MAC));
        assert_eq!(destination(&settings, &guest, "203.0.113.1", "198.51.100.66"), "198.51.100.2");
    }

    /// The guest would drop packets from one of its own addresses (behaviour §5.3.4 rows 2 and 3).
    #[test]
    fn no_address_of_the_guest_is_shown_as_a_source() {
        let mut settings = settings();
        let mut guest = guest(&settings);
        guest.shows(&settings, address("198.51.100.66"), Some(GUEST_MAC));
        let shown = |settings: &Settings, source| settings.source_to_guest(&guest, address(source));
        for own in ["198.51.100.2", "198.51.100.55", "198.51.100.66"] {
            assert_eq!(shown(&settings, own), Some(address("198.51.100.77")), "{own}");
        }
        settings.v4.as_mut().unwrap().map_guest_address = None;
        for own in ["198.51.100.2", "198.51.100.55", "198.51.100.66"] {
            assert_eq!(shown(&settings, own), Some(address("198.51.100.1")), "{own}");
        }
    }

    #[test]
    fn inbound_flows_go_to_the_rules_target_or_the_guest() {
        // behaviour §5.3.2, §8.6
        let settings = settings();
        let guest = guest(&settings);
        let inbound = |peer, written_to, target: Option<&str>| {
            settings
                .inbound(&guest, address(peer), address(written_to), target.map(address))
                .map(|inbound| (inbound.source.to_string(), inbound.destination.to_string()))
        };
        let ends = |source: &str, destination: &str| Some((source.into(), destination.into()));
        assert_eq!(inbound("203.0.113.1", "192.0.2.1", None), ends("203.0.113.1", "198.51.100.55"));
        assert_eq!(
            inbound("::ffff:203.0.113.1", "::ffff:192.0.2.1", None),
            ends("203.0.113.1", "198.51.100.55")
        );
        assert_eq!(inbound("::1", "::1", None), ends("fe80::1", "fe80::55"));
        assert_eq!(inbound("203.0.113.1", "239.1.2.3", None), ends("203.0.113.1", "239.1.2.3"));
        assert_eq!(inbound("203.0.113.1", "192.0.2.1", Some("10.1.1.1")), ends("203.0.113.1", "10.1.1.1"));
        assert_eq!(inbound("203.0.113.1", "192.0.2.1", Some("2001:db8::9")), None);
        assert_eq!(inbound("224.0.0.1", "192.0.2.1", None), None);
    }
}
