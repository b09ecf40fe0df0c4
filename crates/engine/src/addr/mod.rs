//! Addressing: the addresses that the guest was given, the addresses that the engine answers for, and the addresses
//! that the engine learned from the guest's frames.

mod guest;
mod senders;
mod set;

use alloc::{string::String, vec::Vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{ethernet::Mac, frame::Outgoing};

pub use guest::Guest;
pub use set::{AddressSet, Basis, Entry, Kind, MAX_CLAIMED};

use crate::{link::HOP_LIMIT, neighbours::Neighbours};

/// Default MTU of an Ethernet interface, in bytes.
const ETHERNET_MTU: u16 = 1500;

/// All settings of addresses and services that are fixed at start. Resolvers, search list and neighbours are
/// exceptions: they follow changes on the host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The engine's hardware address as the guest sees it.
    pub our_mac: Mac,
    /// MTU to advertise, in bytes. Zero: none is advertised.
    pub mtu: u16,
    /// IPv4 addressing. None: IPv4 is disabled.
    pub v4: Option<V4>,
    /// IPv6 addressing. None: IPv6 is disabled.
    pub v6: Option<V6>,
    /// The other hosts on the host's link.
    pub neighbours: Neighbours,
    /// The engine's addresses on a virtual network, which consists of the engine and the guest. The engine answers ARP,
    /// Neighbour Discovery and pings for these addresses only, and no other address of this network leads to the host.
    /// Empty: the guest's network is that of the host.
    pub virtual_hosts: Vec<IpAddr>,
    /// Which services are on, and what they advertise.
    pub services: Services,
}

/// IPv4 addressing (behaviour §5.1).
#[derive(Clone, Debug)]
pub struct V4 {
    /// The guest's address.
    pub assigned: Ipv4Addr,
    /// The prefix length, 0 to 32.
    pub prefix_len: u8,
    /// The engine's address on the link, which is the guest's gateway. None: no DHCP, no host-loopback mapping.
    pub our_address: Option<Ipv4Addr>,
    /// Guest traffic to this address goes to the host's loopback.
    pub map_host_loopback: Option<Ipv4Addr>,
    /// Guest traffic to this address goes to the host's own (assigned) address.
    pub map_guest_address: Option<Ipv4Addr>,
    /// DNS queries to this address go to `dns_servers`.
    pub dns_forward: Option<Ipv4Addr>,
    /// The host's resolvers, of both families, in the order in which to ask them. An empty list means that the host
    /// itself is the resolver.
    pub dns_servers: Vec<IpAddr>,
    /// The address was given with `-a`, so the guest's claims do not change it.
    pub pinned: bool,
    /// Resolvers to advertise.
    pub dns: Vec<Ipv4Addr>,
}

/// IPv6 addressing (behaviour §5.1).
#[derive(Clone, Debug)]
pub struct V6 {
    /// The guest's global address. None in local mode.
    pub assigned: Option<Ipv6Addr>,
    /// The engine's link-local address on the link.
    pub our_link_local: Ipv6Addr,
    /// Guest traffic to this address goes to the host's loopback.
    pub map_host_loopback: Option<Ipv6Addr>,
    /// Guest traffic to this address goes to the host's own (assigned) address.
    pub map_guest_address: Option<Ipv6Addr>,
    /// DNS queries to this address go to `dns_servers`.
    pub dns_forward: Option<Ipv6Addr>,
    /// The host's resolvers, of both families, in the order in which to ask them. An empty list means that the host
    /// itself is the resolver.
    pub dns_servers: Vec<IpAddr>,
    /// Index of the host's outbound interface: the scope of link-local destinations (behaviour §5.2). Zero: there is
    /// no such interface.
    pub outbound_scope: u32,
    /// The address was given with `-a`, so the guest's claims do not change it.
    pub pinned: bool,
    /// Resolvers to advertise.
    pub dns: Vec<Ipv6Addr>,
}

/// Which services are on, and what they advertise.
#[derive(Clone, Debug)]
pub struct Services {
    /// Whether TCP is forwarded.
    pub tcp: bool,
    /// Whether UDP is forwarded.
    pub udp: bool,
    /// Whether pings are forwarded.
    pub icmp: bool,
    /// Whether the engine follows the guest's membership of multicast groups.
    pub multicast: bool,
    /// Whether DHCPv4 is answered.
    pub dhcp: bool,
    /// Whether DHCPv6 is answered.
    pub dhcpv6: bool,
    /// Whether NDP is answered.
    pub ndp: bool,
    /// Whether router advertisements are sent.
    pub ra: bool,
    /// Whether resolvers are advertised (DHCP, DHCPv6, RDNSS).
    pub advertise_dns: bool,
    /// Whether the search list is advertised.
    pub advertise_search: bool,
    /// Domains to search, in order.
    pub search: Vec<String>,
    /// Host name for the guest (DHCP option 12).
    pub hostname: Option<String>,
    /// Fully qualified name for the guest (DHCP option 81, DHCPv6 option 39).
    pub fqdn: Option<String>,
    /// Seconds from 2000-01-01 00:00 UTC to the start of the process (DHCPv6 DUID-LLT).
    pub start_since_2000: u32,
}

impl Settings {
    /// The MTU of the link for a family, in bytes: the MTU that the guest was given, else Ethernet's. The result is
    /// never less than the family's minimum (RFC 791 §3.2, RFC 8200 §5).
    #[must_use]
    pub(crate) fn link_mtu(&self, v4: bool) -> u16 {
        let mtu = if self.mtu == 0 { ETHERNET_MTU } else { self.mtu };
        mtu.max(if v4 { 68 } else { 1280 })
    }

    /// The hardware address at which the guest sees `address`, which is not the guest's own. If the host has learned
    /// hardware addresses, the result is the hardware address that `address` has on the host's link, else the
    /// router's. For addresses that mean the host itself, the result is the engine's own hardware address.
    #[must_use]
    pub fn mac_of(&self, address: IpAddr) -> Mac {
        if self.neighbours.is_empty() || self.is_mapped_to_host(address) {
            return self.our_mac;
        }
        let router = self.neighbours.router(address).filter(|router| !self.is_mapped_to_host(*router));
        let known = self.neighbours.get(address);
        known.or_else(|| self.neighbours.get(router?)).unwrap_or(self.our_mac)
    }

    /// The headers of a packet to the guest, with the hop limit of the engine's own packets.
    pub(crate) fn headers(&self, guest: &Guest, source: IpAddr, destination: IpAddr) -> Outgoing {
        Outgoing {
            source_mac: self.mac_of(source),
            destination_mac: Mac::of_multicast(destination).unwrap_or_else(|| guest.mac_of(destination)),
            source,
            destination,
            hop_limit: HOP_LIMIT,
            traffic_class: 0,
            flow_label: 0,
        }
    }

    /// Whether `address` means all hosts of the guest's network: IPv4's limited broadcast address, or the directed
    /// broadcast address of the guest's prefix.
    pub(crate) fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        let directed = self.v4.as_ref().filter(|v4| v4.prefix_len < 31).is_some_and(|v4| {
            let hosts = u32::MAX.checked_shr(v4.prefix_len.into()).unwrap_or(0);
            address.to_bits() == v4.assigned.to_bits() | hosts
        });
        address.is_broadcast() || directed
    }

    /// Whether the engine answers ARP and Neighbour Discovery for `address`, if the guest does not have it.
    pub(crate) fn is_reachable(&self, address: IpAddr) -> bool {
        self.virtual_hosts.is_empty() || self.virtual_hosts.contains(&address)
    }

    /// Whether `address` is in the guest's own network: its IPv4 prefix, or the /64 of its IPv6 address.
    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        let same = |one: u128, other: u128, shift: u32| (one ^ other).checked_shr(shift).unwrap_or(0) == 0;
        match address {
            IpAddr::V4(address) => self.v4.as_ref().is_some_and(|v4| {
                let (one, other) = (address.to_bits().into(), v4.assigned.to_bits().into());
                same(one, other, 32 - u32::from(v4.prefix_len).min(32))
            }),
            IpAddr::V6(address) => {
                let assigned = self.v6.as_ref().and_then(|v6| v6.assigned);
                assigned.is_some_and(|assigned| same(address.to_bits(), assigned.to_bits(), 64))
            }
        }
    }

    /// Whether no host of the guest's network can have `address`, since it is the engine's or is mapped to the host.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        let our_address = self.v4.as_ref().and_then(|v4| v4.our_address);
        our_address.is_some_and(|ours| address == ours) || self.is_mapped_to_host(address)
    }

    /// Whether `address` is the engine's, or is mapped to the host.
    pub(crate) fn is_mapped_to_host(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self
                .v4
                .as_ref()
                .is_some_and(|v4| [v4.map_host_loopback, v4.map_guest_address].contains(&Some(address))),
            IpAddr::V6(address) => self.v6.as_ref().is_some_and(|v6| {
                address == v6.our_link_local
                    || [v6.map_host_loopback, v6.map_guest_address].contains(&Some(address))
            }),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{neighbours::Neighbour, testkit::settings::settings};

    const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 20));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 21));
    const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ROUTERS_MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn known(address: IpAddr, mac: Mac) -> Neighbour {
        Neighbour { address, mac: Some(mac) }
    }

    #[test]
    fn hardware_addresses_of_neighbours_and_of_other_hosts() {
        let mut settings = settings();
        let ours = settings.our_mac;
        settings.neighbours = Neighbours::with_routers(Some(ROUTER), None);
        assert_eq!(settings.mac_of(NEAR), ours);
        settings.neighbours.note(known(NEAR, MAC));
        assert_eq!((settings.mac_of(NEAR), settings.mac_of(OTHER)), (MAC, ours));
        settings.neighbours.note(known(ROUTER.into(), ROUTERS_MAC));
        assert_eq!((settings.mac_of(NEAR), settings.mac_of(OTHER)), (MAC, ROUTERS_MAC));
        assert_eq!(settings.mac_of("2001:db8::1".parse().unwrap()), ours);
    }

    #[test]
    fn addresses_that_mean_the_host_have_our_hardware_address() {
        let mut settings = settings();
        let v4 = settings.v4.as_mut().unwrap();
        v4.map_host_loopback = Some(ROUTER);
        settings.neighbours = Neighbours::with_routers(Some(ROUTER), None);
        settings.neighbours.note(known(ROUTER.into(), ROUTERS_MAC));
        assert_eq!(
            (settings.mac_of(ROUTER.into()), settings.mac_of(NEAR)),
            (settings.our_mac, settings.our_mac)
        );
    }
}
