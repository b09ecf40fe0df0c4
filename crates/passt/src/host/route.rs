//! Unicast routes of the main table, as values that can be copied to another namespace.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_core::{NetlinkSerializable, NlasIterator, Parseable, parse_ip, parse_u32};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHop,
        RouteNextHopFlags, RoutePreference, RouteProtocol, RouteScope, RouteType, RouteVia,
    },
};

use super::netlink::{Error, Netlink};

/// Maximum number of next hops of a route. All next hops must fit into one attribute of a netlink message, and the
/// length field of an attribute has 16 bits.
const MAX_NEXT_HOPS: usize = 2048;

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination network. A default route has prefix length 0.
    pub destination: IpNet,
    /// Source addresses to which the route applies (IPv6 only).
    pub source: Option<IpNet>,
    /// Traffic class to which the route applies. 0: the route applies to all traffic classes.
    pub tos: u8,
    /// Origin of the route: the kernel, an administrator, a routing protocol.
    pub protocol: RouteProtocol,
    /// Scope of the destination (IPv4 only).
    pub scope: RouteScope,
    /// Metric. The route with the lowest metric is used. `None`: the kernel's default for the family.
    pub priority: Option<u32>,
    /// Source address that the host prefers on this route.
    pub preferred_source: Option<IpAddr>,
    /// Router preference of RFC 4191 (IPv6 only).
    pub preference: Option<RoutePreference>,
    /// MTU and other properties of the path.
    pub metrics: Vec<RouteMetric>,
    /// Next hops. A multipath route has several next hops.
    pub next_hops: Vec<NextHop>,
    /// Whether the route encapsulates packets (MPLS, SRv6 and others). Such a route works only in its own namespace.
    pub encapsulates: bool,
}

/// A next hop of a [`Route`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the output interface.
    pub interface: u32,
    /// Router. It may belong to the other family. `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Share of the traffic among the next hops of a route: 1 to 256 (65536 with nexthop objects).
    pub weight: u32,
    /// Whether the gateway is assumed to be on the link, even if no address or route shows this.
    pub onlink: bool,
}

impl Route {
    /// Whether the route applies to all destinations, from any source.
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0 && self.source.is_none() && self.tos == 0
    }

    /// Converts this route to a netlink message, through interface `interface`, without state flags and lifetimes.
    pub(crate) fn to_message(&self, interface: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family_of(self.destination.addr()),
            destination_prefix_length: self.destination.prefix_len(),
            source_prefix_length: self.source.map_or(0, |source| source.prefix_len()),
            tos: self.tos,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: self.protocol,
            scope: self.scope,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        let attributes = &mut message.attributes;
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.addr().into()));
        }
        attributes.extend(self.source.map(|source| RouteAttribute::Source(source.addr().into())));
        attributes.extend(self.preferred_source.map(|source| RouteAttribute::PrefSource(source.into())));
        attributes.extend(self.priority.map(RouteAttribute::Priority));
        attributes.extend(self.preference.map(RouteAttribute::Preference));
        if !self.metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(self.metrics.clone()));
        }
        match &self.next_hops[..] {
            [hop] => {
                attributes.push(RouteAttribute::Oif(interface));
                attributes.extend(self.gateway_attribute(hop));
                if hop.onlink {
                    message.header.flags |= RouteFlags::Onlink;
                }
            }
            hops => {
                let hops = hops.iter().map(|hop| self.hop_message(hop, interface)).collect();
                attributes.push(RouteAttribute::MultiPath(hops));
            }
        }
        message
    }

    fn hop_message(&self, hop: &NextHop, interface: u32) -> RouteNextHop {
        let mut message = RouteNextHop::default();
        message.interface_index = interface;
        message.hops = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
        if hop.onlink {
            message.flags = RouteNextHopFlags::Onlink;
        }
        message.attributes.extend(self.gateway_attribute(hop));
        message
    }

    fn gateway_attribute(&self, hop: &NextHop) -> Option<RouteAttribute> {
        let gateway = hop.gateway?;
        Some(match (self.destination, gateway) {
            (IpNet::V4(_), IpAddr::V6(address)) => RouteAttribute::Via(RouteVia::Inet6(address)),
            _ => RouteAttribute::Gateway(gateway.into()),
        })
    }
}

/// The address family of `address`, for netlink.
pub(crate) fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Reads the unicast routes of the main table of `family`.
pub(super) fn gather(netlink: &mut Netlink, family: AddressFamily) -> Result<Vec<Route>, Error> {
    let mut query = RouteMessage::default();
    query.header.address_family = family;
    query.header.table = RouteHeader::RT_TABLE_MAIN;
    query.header.kind = RouteType::Unicast;
    let what = if family == AddressFamily::Inet { "IPv4 routes" } else { "IPv6 routes" };
    let listed = netlink.dump(what, RouteNetlinkMessage::GetRoute(query), |octets| {
        Listed::parse(octets).filter(|listed| family_of(listed.route.destination.addr()) == family)
    })?;
    // The kernel also lists the next hops of nexthop objects, unless net.ipv4.nexthop_compat_mode is off.
    let unresolved = listed.iter().any(|listed| listed.route.next_hops.is_empty() && listed.object.is_some());
    let objects = if unresolved { NextHopObjects::gather(netlink)? } else { NextHopObjects::default() };
    Ok(listed.into_iter().filter_map(|listed| listed.resolve(&objects)).collect())
}

/// A route as the kernel lists it. Instead of next hops, it may have the ID of a nexthop object.
struct Listed {
    route: Route,
    object: Option<u32>,
}

impl Listed {
    fn parse(octets: &[u8]) -> Option<Self> {
        let message = RouteMessage::parse(octets)
            .inspect_err(|error| {
                log::debug!("a route of the kernel's list can't be parsed, skipped: {error}")
            })
            .ok()?;
        let header = &message.header;
        let unspecified = match header.address_family {
            AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut route = Route {
            destination: IpNet::new(unspecified, header.destination_prefix_length).ok()?,
            source: None,
            tos: header.tos,
            protocol: header.protocol,
            scope: header.scope,
            priority: None,
            preferred_source: None,
            preference: None,
            metrics: Vec::new(),
            next_hops: Vec::new(),
            encapsulates: false,
        };
        let mut table = u32::from(header.table);
        let (mut object, mut interface) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Destination(address) => {
                    route.destination = IpNet::new(ip(address)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Source(address) => {
                    route.source = Some(IpNet::new(ip(address)?, header.source_prefix_length).ok()?);
                }
                RouteAttribute::Priority(priority) => route.priority = Some(*priority),
                RouteAttribute::PrefSource(address) => route.preferred_source = ip(address),
                RouteAttribute::Preference(preference) => route.preference = Some(*preference),
                RouteAttribute::Metrics(metrics) => route.metrics.clone_from(metrics),
                RouteAttribute::NhId(id) => object = Some(*id),
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::EncapType(_) => route.encapsulates = true,
                RouteAttribute::MultiPath(hops) => {
                    route.encapsulates |= hops.iter().any(|hop| encapsulates(&hop.attributes));
                    route.next_hops.extend(hops.iter().map(|hop| NextHop {
                        interface: hop.interface_index,
                        gateway: gateway(&hop.attributes),
                        weight: u32::from(hop.hops) + 1,
                        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
                    }));
                }
                _ => {}
            }
        }
        if let Some(interface) = interface {
            let onlink = header.flags.contains(RouteFlags::Onlink);
            let gateway = gateway(&message.attributes);
            route.next_hops.push(NextHop { interface, gateway, weight: 1, onlink });
        }
        let wanted = table == u32::from(RouteHeader::RT_TABLE_MAIN) && header.kind == RouteType::Unicast;
        wanted.then_some(Self { route, object })
    }

    /// Returns the route with its next hops. Returns `None` if there are no next hops, or more than [`MAX_NEXT_HOPS`].
    /// Only a group of nexthop objects can have so many.
    fn resolve(self, objects: &NextHopObjects) -> Option<Route> {
        let mut route = self.route;
        if route.next_hops.is_empty()
            && let Some(object) = self.object
        {
            let (hops, encapsulates) = objects.hops(object);
            route.next_hops = hops;
            route.encapsulates |= encapsulates;
        }
        (1..=MAX_NEXT_HOPS).contains(&route.next_hops.len()).then_some(route)
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

fn encapsulates(attributes: &[RouteAttribute]) -> bool {
    attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::EncapType(_)))
}

/// Nexthop objects (`ip nexthop`) by their ID.
#[derive(Default)]
struct NextHopObjects(HashMap<u32, Object>);

enum Object {
    Hop { hop: NextHop, encapsulates: bool },
    Group(Vec<GroupEntry>),
}

struct GroupEntry {
    id: u32,
    weight: u32,
}

impl NextHopObjects {
    fn gather(netlink: &mut Netlink) -> Result<Self, Error> {
        let objects = netlink.dump("nexthop objects", GetNextHop, parse_object)?;
        Ok(Self(objects.into_iter().collect()))
    }

    /// Returns the next hops of object `id`, and whether any of them encapsulates packets. The kernel does not nest
    /// groups.
    fn hops(&self, id: u32) -> (Vec<NextHop>, bool) {
        let single = [GroupEntry { id, weight: 1 }];
        let entries = match self.0.get(&id) {
            Some(Object::Group(entries)) => &entries[..],
            _ => &single,
        };
        let hops = entries.iter().filter_map(|entry| match self.0.get(&entry.id)? {
            Object::Hop { hop, encapsulates } => {
                Some((NextHop { weight: entry.weight, ..hop.clone() }, *encapsulates))
            }
            Object::Group(_) => None,
        });
        let (hops, encapsulates): (Vec<_>, Vec<_>) = hops.unzip();
        (hops, encapsulates.contains(&true))
    }
}

const RTM_GETNEXTHOP: u16 = 106;
/// `struct nhmsg`: family, scope, protocol, reserved, flags.
const NEXTHOP_HEADER_LEN: usize = 8;
const NEXTHOP_ONLINK: u32 = 4;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
/// `struct nexthop_grp`: ID (4 octets), low octet and high octet of the weight minus 1, 2 reserved octets.
const GROUP_ENTRY_LEN: usize = 8;

/// The request for all nexthop objects. The library does not have this request.
#[derive(Clone)]
struct GetNextHop;

impl NetlinkSerializable for GetNextHop {
    fn message_type(&self) -> u16 {
        RTM_GETNEXTHOP
    }

    fn buffer_len(&self) -> usize {
        NEXTHOP_HEADER_LEN
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

/// Returns an object and its ID. `None`: the object is a black hole, or can't be parsed.
fn parse_object(octets: &[u8]) -> Option<(u32, Object)> {
    let header: &[u8; NEXTHOP_HEADER_LEN] = octets.first_chunk()?;
    let flags = parse_u32(&header[4..]).ok()?;
    let (mut id, mut interface, mut gateway, mut group) = (None, None, None, None);
    let mut encapsulates = false;
    for attribute in NlasIterator::new(&octets[NEXTHOP_HEADER_LEN..]).map_while(Result::ok) {
        match attribute.kind() {
            NHA_ID => id = parse_u32(attribute.value()).ok(),
            NHA_OIF => interface = parse_u32(attribute.value()).ok(),
            NHA_GATEWAY => gateway = parse_ip(attribute.value()).ok(),
            NHA_ENCAP_TYPE => encapsulates = true,
            NHA_GROUP => group = Some(parse_group(attribute.value())),
            _ => {}
        }
    }
    let object = match (group, interface) {
        (Some(entries), _) => Object::Group(entries),
        (None, Some(interface)) => {
            let hop = NextHop { interface, gateway, weight: 1, onlink: flags & NEXTHOP_ONLINK != 0 };
            Object::Hop { hop, encapsulates }
        }
        (None, None) => return None,
    };
    Some((id?, object))
}

fn parse_group(octets: &[u8]) -> Vec<GroupEntry> {
    let (entries, _) = octets.as_chunks::<GROUP_ENTRY_LEN>();
    entries
        .iter()
        .map(|[a, b, c, d, low, high, _, _]| GroupEntry {
            id: u32::from_ne_bytes([*a, *b, *c, *d]),
            weight: u32::from(*low) + (u32::from(*high) << 8) + 1,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;

    use super::*;

    fn emitted(route: &Route, interface: u32) -> Vec<u8> {
        let message = route.to_message(interface);
        let mut octets = vec![0; message.buffer_len()];
        message.emit(&mut octets);
        octets
    }

    fn hop(interface: u32, gateway: &str) -> NextHop {
        NextHop { interface, gateway: gateway.parse().ok(), weight: 1, onlink: false }
    }

    fn route(destination: &str, next_hops: Vec<NextHop>) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            source: None,
            tos: 0,
            protocol: RouteProtocol::Static,
            scope: RouteScope::Universe,
            priority: None,
            preferred_source: None,
            preference: None,
            metrics: Vec::new(),
            next_hops,
            encapsulates: false,
        }
    }

    fn read_back(octets: &[u8]) -> Route {
        Listed::parse(octets).unwrap().resolve(&NextHopObjects::default()).unwrap()
    }

    /// behaviour §3.6: all properties are copied except the interface index.
    #[test]
    fn a_route_is_the_same_after_a_round_trip_through_a_message() {
        let mut rich = route("192.0.2.0/24", vec![hop(4, "198.51.100.1")]);
        rich.tos = 0x10;
        rich.priority = Some(77);
        rich.protocol = RouteProtocol::Dhcp;
        rich.metrics = vec![RouteMetric::Mtu(1400), RouteMetric::CcAlgo("cubic".into())];
        rich.next_hops[0].onlink = true;
        let mut multipath = route("0.0.0.0/0", vec![hop(4, "198.51.100.1"), hop(4, "198.51.100.2")]);
        multipath.next_hops[1].weight = 9;
        multipath.next_hops[1].onlink = true;
        let mut six = route("2001:db8::/32", vec![hop(4, "fe80::1")]);
        six.preference = Some(RoutePreference::High);
        six.source = Some("2001:db8:1::/48".parse().unwrap());
        let other_family = route("192.0.2.0/24", vec![hop(4, "fe80::1")]);
        for original in [rich, multipath, six, other_family] {
            let mut wanted = original.clone();
            wanted.next_hops.iter_mut().for_each(|hop| hop.interface = 9);
            assert_eq!(read_back(&emitted(&original, 9)), wanted);
        }
    }

    #[test]
    fn preferred_sources_are_kept() {
        for (destination, source) in [("192.0.2.0/24", "198.51.100.9"), ("2001:db8::/32", "2001:db8:1::9")] {
            let mut original = route(destination, vec![hop(4, "fe80::1")]);
            original.preferred_source = Some(source.parse().unwrap());
            assert_eq!(read_back(&emitted(&original, 4)), original);
        }
    }

    /// state flags of next hops are ignored.
    #[test]
    fn dead_and_linkdown_are_dropped_r24() {
        let mut message =
            route("0.0.0.0/0", vec![hop(4, "198.51.100.1"), hop(4, "198.51.100.2")]).to_message(4);
        for attribute in &mut message.attributes {
            if let RouteAttribute::MultiPath(hops) = attribute {
                hops[0].flags = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
            }
        }
        let mut octets = vec![0; message.buffer_len()];
        message.emit(&mut octets);
        assert!(read_back(&octets).next_hops.iter().all(|hop| !hop.onlink));
    }

    #[test]
    fn other_tables_and_types_are_skipped() {
        for change in [
            |message: &mut RouteMessage| message.header.kind = RouteType::Unreachable,
            |message: &mut RouteMessage| message.header.table = 7,
            |message: &mut RouteMessage| message.attributes.push(RouteAttribute::Table(1000)),
            |message: &mut RouteMessage| message.header.destination_prefix_length = 33,
        ] {
            let mut message = route("192.0.2.0/24", vec![hop(4, "198.51.100.1")]).to_message(4);
            change(&mut message);
            let mut octets = vec![0; message.buffer_len()];
            message.emit(&mut octets);
            assert!(Listed::parse(&octets).is_none());
        }
        assert!(Listed::parse(&[]).is_none());
        assert!(Listed::parse(&[0; 12]).is_none());
    }

    /// nexthop objects whose next hops the kernel doesn't list with the route.
    #[test]
    fn nexthop_objects_resolve_r25() {
        let attribute = |kind: u16, value: &[u8]| {
            [&(4 + value.len() as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
        };
        let header = [&[2, 0, 0, 0][..], &NEXTHOP_ONLINK.to_ne_bytes()].concat();
        let one = [
            &header[..],
            &attribute(NHA_ID, &1u32.to_ne_bytes()),
            &attribute(NHA_OIF, &4u32.to_ne_bytes()),
            &attribute(NHA_GATEWAY, &[198, 51, 100, 1]),
        ]
        .concat();
        let entry = [&1u32.to_ne_bytes()[..], &[2, 1, 0, 0]].concat();
        let group =
            [&header[..], &attribute(NHA_ID, &2u32.to_ne_bytes()), &attribute(NHA_GROUP, &entry)].concat();
        let objects = NextHopObjects([one, group].iter().filter_map(|o| parse_object(o)).collect());

        let via = NextHop { onlink: true, ..hop(4, "198.51.100.1") };
        assert_eq!(objects.hops(1).0, std::slice::from_ref(&via));
        assert_eq!(objects.hops(2).0, [NextHop { weight: 259, ..via }]);
        assert_eq!(objects.hops(3).0, []);

        let grouped = |object| Listed { route: route("192.0.2.0/24", Vec::new()), object };
        assert_eq!(grouped(Some(2)).resolve(&objects).unwrap().next_hops.len(), 1);
        assert_eq!(grouped(Some(3)).resolve(&objects), None);
        assert_eq!(grouped(None).resolve(&objects), None);
        let too_many = (0..=MAX_NEXT_HOPS).map(|_| GroupEntry { id: 1, weight: 1 }).collect();
        let objects = NextHopObjects(objects.0.into_iter().chain([(9, Object::Group(too_many))]).collect());
        assert_eq!(grouped(Some(9)).resolve(&objects), None);

        assert!(parse_object(&[0; 7]).is_none());
        assert!(parse_object(&[0; 8]).is_none(), "a black hole has no hops");
    }
}
