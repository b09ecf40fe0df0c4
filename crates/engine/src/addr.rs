//! Addressing: what the guest was given, what we answer for, and what was learned from the guest's frames.

use alloc::{string::String, vec::Vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::ethernet::Mac;

/// Everything about addresses and services that is fixed at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our hardware address as the guest sees it.
    pub our_mac: Mac,
    /// MTU to advertise, in bytes; zero for none.
    pub mtu: u16,
    /// IPv4, unless disabled.
    pub v4: Option<V4>,
    /// IPv6, unless disabled.
    pub v6: Option<V6>,
    /// Which services are on, and what they tell.
    pub services: Services,
}

/// IPv4 addressing (SPEC §5.1).
#[derive(Clone, Debug)]
pub struct V4 {
    /// The guest's address.
    pub assigned: Ipv4Addr,
    /// Its prefix length, 0 to 32.
    pub prefix_len: u8,
    /// Our address on the link: the guest's gateway. None: no DHCP, no host-loopback mapping.
    pub our_address: Option<Ipv4Addr>,
    /// Guest traffic to this address goes to the host's loopback.
    pub map_host_loopback: Option<Ipv4Addr>,
    /// Guest traffic to this address goes to the host's own (assigned) address.
    pub map_guest_address: Option<Ipv4Addr>,
    /// DNS queries to this address go to `dns_host`.
    pub dns_match: Option<Ipv4Addr>,
    /// The resolver of the host.
    pub dns_host: Option<Ipv4Addr>,
    /// The address was given with `-a`: frames of the guest do not change it.
    pub pinned: bool,
    /// Resolvers to advertise.
    pub dns: Vec<Ipv4Addr>,
}

/// IPv6 addressing (SPEC §5.1).
#[derive(Clone, Debug)]
pub struct V6 {
    /// The guest's global address; none in local mode.
    pub assigned: Option<Ipv6Addr>,
    /// Our link-local address on the link.
    pub our_link_local: Ipv6Addr,
    /// Guest traffic to this address goes to the host's loopback.
    pub map_host_loopback: Option<Ipv6Addr>,
    /// Guest traffic to this address goes to the host's own (assigned) address.
    pub map_guest_address: Option<Ipv6Addr>,
    /// DNS queries to this address go to `dns_host`.
    pub dns_match: Option<Ipv6Addr>,
    /// The resolver of the host.
    pub dns_host: Option<Ipv6Addr>,
    /// The address was given with `-a`: frames of the guest do not change it.
    pub pinned: bool,
    /// Resolvers to advertise.
    pub dns: Vec<Ipv6Addr>,
}

/// Which services are on, and what they tell.
#[derive(Clone, Debug)]
pub struct Services {
    /// Carry TCP.
    pub tcp: bool,
    /// Carry UDP.
    pub udp: bool,
    /// Carry ping.
    pub icmp: bool,
    /// Answer DHCPv4.
    pub dhcp: bool,
    /// Answer DHCPv6.
    pub dhcpv6: bool,
    /// Answer NDP.
    pub ndp: bool,
    /// Send router advertisements.
    pub ra: bool,
    /// Advertise resolvers (DHCP, DHCPv6, RDNSS).
    pub advertise_dns: bool,
    /// Advertise the search list.
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

/// What is known of the guest: given at start, then learned from its frames (SPEC §5.4).
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its hardware address; broadcast until a frame was seen.
    pub mac: Mac,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its global IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Its link-local IPv6 address.
    pub link_local: Option<Ipv6Addr>,
}

impl Guest {
    /// Before any frame: the assigned addresses; `mac` if it is known already (pasta).
    #[must_use]
    pub fn new(settings: &Settings, mac: Option<Mac>) -> Self {
        Self {
            mac: mac.unwrap_or(Mac::BROADCAST),
            v4: settings.v4.as_ref().map(|v4| v4.assigned),
            v6: settings.v6.as_ref().and_then(|v6| v6.assigned),
            link_local: None,
        }
    }

    /// Learns from the source addresses of a frame (SPEC §5.4, R-48, R-49). `source` is none for ARP.
    pub fn learn(&mut self, settings: &Settings, mac: Mac, source: Option<IpAddr>) {
        if mac.is_unicast() {
            self.mac = mac;
        }
        match source {
            Some(IpAddr::V4(address)) => {
                let pinned = settings.v4.as_ref().is_none_or(|v4| v4.pinned);
                if !pinned && !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() {
                    self.v4 = Some(address);
                }
            }
            Some(IpAddr::V6(address)) if address.is_unicast_link_local() => self.link_local = Some(address),
            Some(IpAddr::V6(address)) => {
                let pinned = settings.v6.as_ref().is_none_or(|v6| v6.pinned);
                if !pinned && !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() {
                    self.v6 = Some(address);
                }
            }
            None => {}
        }
    }
}
