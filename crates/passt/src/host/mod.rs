//! The network configuration of the machine as plain values: links, addresses, routes, resolvers (behaviour §3).

use engine::forward::PortRange;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    time::SystemTime,
};

use netlink_packet_core::{NlasIterator, Parseable, parse_string, parse_u32};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkExtentMask, LinkHeader, LinkMessage},
};
use rustix::net::SocketType;
use wire::ethernet::Mac;

mod followed;
pub(crate) mod missing;
mod neighbours;
pub(crate) mod netlink;
mod own;
mod resolver;
mod route;

pub(crate) use neighbours::Neighbourhood;
pub use netlink::{Error, Refusal};
pub use netlink_packet_route::{
    address::{AddressFlags, AddressScope},
    link::LinkFlags,
    route::{RouteMetric, RoutePreference, RouteProtocol, RouteScope},
};
pub(crate) use own::OwnAddresses;
pub use resolver::Resolver;
pub(crate) use resolver::{News, PATH as RESOLV_CONF, Watch, read_file as read_resolv_conf};
pub(crate) use route::family_of;
pub use route::{NextHop, Route};

use netlink::Netlink;

/// Ephemeral ports, if the host's port range can't be read (RFC 6335).
pub const EPHEMERAL_PORTS: RangeInclusive<u16> = 49152..=65535;

/// The configuration of one network namespace at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Network interfaces.
    pub links: Vec<Link>,
    /// Addresses of all interfaces, in the kernel's order.
    pub addresses: Vec<Address>,
    /// Unicast routes of the main tables, IPv4 first, in the kernel's order.
    pub routes: Vec<Route>,
    /// The host's resolvers.
    pub resolver: Resolver,
    /// Whether the kernel can create IPv6 sockets.
    pub ipv6: bool,
    /// When the configuration was read.
    pub time: SystemTime,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index of the interface. Addresses and routes refer to the interface by this index.
    pub index: u32,
    /// Name of the interface.
    pub name: String,
    /// MAC address. `None`: the link layer has no address, or its addresses do not have 48 bits.
    pub mac: Option<Mac>,
    /// Flags of the interface: up, loopback and others.
    pub flags: LinkFlags,
    /// MTU in octets.
    pub mtu: u32,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub interface: u32,
    /// The interface's own address, also on a point-to-point link.
    pub local: IpAddr,
    /// The peer's address on a point-to-point link.
    pub peer: Option<IpAddr>,
    /// Prefix length of the network of `peer`, or of `local` if there is no peer.
    pub prefix_len: u8,
    /// Broadcast address (IPv4 only).
    pub broadcast: Option<Ipv4Addr>,
    /// Metric of the route that the kernel adds for the address's network. `None`: the kernel's default.
    pub route_priority: Option<u32>,
    /// Scope in which the address is valid.
    pub scope: AddressScope,
    /// Flags of the address: secondary, deprecated and others.
    pub flags: AddressFlags,
}

impl Facts {
    /// Reads the configuration over netlink, and resolv.conf. Needs no privilege.
    ///
    /// # Errors
    /// The kernel doesn't answer over netlink. There is no other source of the configuration.
    pub fn gather() -> Result<Self, Error> {
        let ipv6 = ipv6_available();
        let mut netlink = Netlink::open()?;
        let links = gather_links(&mut netlink)?;
        let addresses = gather_addresses(&mut netlink)?;
        let mut routes = route::gather(&mut netlink, AddressFamily::Inet)?;
        if ipv6 {
            routes.extend(route::gather(&mut netlink, AddressFamily::Inet6)?);
        }
        Ok(Self { links, addresses, routes, resolver: Resolver::gather(), ipv6, time: SystemTime::now() })
    }

    /// The interface called `name`.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The interface with index `index`.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }
}

fn gather_links(netlink: &mut Netlink) -> Result<Vec<Link>, Error> {
    let mut query = LinkMessage::default();
    query.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    netlink.dump("links", RouteNetlinkMessage::GetLink(query), parse_link)
}

/// A link has about a hundred attributes. The library would parse all of them, but this function parses only the
/// attributes that are needed.
fn parse_link(octets: &[u8]) -> Option<Link> {
    const HEADER_LEN: usize = 16;
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    let header = LinkHeader::parse(octets).ok()?;
    let mut link = Link { index: header.index, name: String::new(), mac: None, flags: header.flags, mtu: 0 };
    for attribute in NlasIterator::new(octets.get(HEADER_LEN..)?).map_while(Result::ok) {
        match attribute.kind() {
            IFLA_ADDRESS => link.mac = attribute.value().try_into().ok().map(Mac),
            IFLA_IFNAME => link.name = parse_string(attribute.value()).ok()?,
            IFLA_MTU => link.mtu = parse_u32(attribute.value()).ok()?,
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// The interface called `name` in the namespace of `netlink`.
pub(crate) fn find_link(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, Error> {
    Ok(gather_links(netlink)?.into_iter().find(|link| link.name == name))
}

fn gather_addresses(netlink: &mut Netlink) -> Result<Vec<Address>, Error> {
    let query = AddressMessage::default();
    netlink.dump("addresses", RouteNetlinkMessage::GetAddress(query), parse_address)
}

fn parse_address(octets: &[u8]) -> Option<Address> {
    let message = AddressMessage::parse(octets)
        .inspect_err(|error| log::debug!("an address of the kernel's list can't be parsed, skipped: {error}"))
        .ok()?;
    let header = &message.header;
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    let (mut address, mut local, mut broadcast, mut route_priority) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Broadcast(ip) => broadcast = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::RoutePriority(metric) => route_priority = Some(*metric),
            _ => {}
        }
    }
    let local = local.or(address)?;
    Some(Address {
        interface: header.index,
        local,
        peer: address.filter(|peer| *peer != local),
        prefix_len: header.prefix_len,
        broadcast,
        route_priority,
        scope: header.scope,
        flags,
    })
}

/// Whether the kernel has IPv6. A kernel that was started with `ipv6.disable=1` has no IPv6.
pub(crate) fn ipv6_available() -> bool {
    rustix::net::socket(rustix::net::AddressFamily::INET6, SocketType::DGRAM, None).is_ok()
}

/// The host's ephemeral ports: net.ipv4.ip_local_port_range. If it can't be read: the range of RFC 6335.
pub fn ephemeral_ports() -> RangeInclusive<u16> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = fs::read_to_string(PATH).inspect_err(|error| log::debug!("{PATH}: {error}"));
    let ports = text.ok().and_then(|text| PortRange::from_sysctl(&text));
    ports.map_or(EPHEMERAL_PORTS, |ports| ports.first()..=ports.last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_messages_are_skipped() {
        for length in 0..64 {
            assert_eq!(parse_link(&vec![0xff; length]), None);
            assert_eq!(parse_address(&vec![0xff; length]), None);
        }
    }

    /// Every machine has the interface lo. The test assumes nothing else.
    #[test]
    fn facts_of_this_machine_can_be_gathered() {
        let facts = Facts::gather().unwrap();
        let lo = facts.link_named("lo").unwrap();
        assert!(lo.flags.contains(LinkFlags::Loopback));
        assert_eq!(facts.link(lo.index), Some(lo));
        assert!(facts.routes.iter().all(|route| !route.next_hops.is_empty()));
    }
}
