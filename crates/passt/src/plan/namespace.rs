//! The plan for the guest's namespace (behaviour §3.6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::addr::{V4, V6};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use wire::ethernet::Mac;

use super::{
    Ip, LOCAL_V4_GATEWAY, MIN_MTU_V6, TemplateLink,
    template::{Template, is_valid, is_wide, network_of},
};
use crate::{
    config::{Config, DEFAULT_MTU, Family, Mode},
    host::{
        Address, AddressFlags, AddressScope, Facts, LinkFlags, NextHop, Route, RouteProtocol, RouteScope,
    },
};

/// Name of the tap device if there is no template (behaviour §3.5).
const DEFAULT_IFNAME: &str = "tap0";
/// Length of the tap device's transmit queue, in frames. The queue can hold more frames than all the receive windows
/// that the engine advertises (ARCHITECTURE.md).
pub const TX_QUEUE_LEN: u32 = 10_000;
/// Metric of the routes that the kernel adds for IPv6 addresses.
const PREFIX_ROUTE_METRIC_V6: u32 = 256;
/// Prefix length of IPv6 networks.
const PREFIX_LEN_V6: u8 = 64;

/// The plan for the guest's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacePlan {
    /// Name of the tap device.
    pub ifname: String,
    /// MAC address to set. `None`: keep the present address.
    pub mac: Option<Mac>,
    /// Length of the device's transmit queue, in frames.
    pub tx_queue_len: u32,
    /// Whether to bring the loopback interface up.
    pub loopback: bool,
    /// How to configure the interface. `None`: the interface stays down, and the guest configures it.
    pub interface: Option<InterfacePlan>,
}

/// How to configure the interface in the namespace (`--config-net`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePlan {
    /// MTU to set. `None`: keep the present MTU.
    pub mtu: Option<u16>,
    /// Configuration of IPv4. `None`: IPv4 is disabled.
    pub v4: Option<NamespaceFamily>,
    /// Configuration of IPv6. `None`: IPv6 is disabled.
    pub v6: Option<NamespaceFamily>,
}

/// The configuration of one family on the interface in the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFamily {
    /// Addresses. They must be added in this order.
    pub addresses: Vec<Address>,
    /// Routes, in the kernel's order. Routes to the networks of `addresses` are not included: the kernel adds these
    /// routes.
    pub routes: Vec<Route>,
    /// Whether the routes are copied from the template. A failure of a copied route is not fatal, but a failure of any
    /// other route is.
    pub copied: bool,
}

/// Makes the plan from the configurations of both families. `templates` are the template interfaces of IPv4 and IPv6.
pub(super) fn plan(
    config: &Config,
    facts: &Facts,
    templates: [Option<&TemplateLink>; 2],
    v4: Option<NamespaceFamily>,
    v6: Option<NamespaceFamily>,
) -> NamespacePlan {
    // The namespace has a loopback interface already, so the tap device can't have the name of the loopback interface.
    let template = templates.into_iter().flatten().find(|template| {
        facts.link(template.index).is_none_or(|link| !link.flags.contains(LinkFlags::Loopback))
    });
    let default_name = || template.map_or(DEFAULT_IFNAME, |template| &template.name).to_owned();
    let mtu = config.mtu.unwrap_or(DEFAULT_MTU);
    let small = (1..MIN_MTU_V6).contains(&mtu);
    NamespacePlan {
        ifname: config.pasta.ns_ifname.as_ref().map_or_else(default_name, ToString::to_string),
        mac: config.pasta.ns_mac,
        tx_queue_len: TX_QUEUE_LEN,
        loopback: config.mode == Mode::Pasta || config.pasta.config_net,
        interface: config.pasta.config_net.then(|| InterfacePlan {
            mtu: (mtu != 0).then_some(mtu),
            v4,
            // The kernel disables IPv6 on an interface with a smaller MTU.
            v6: v6.filter(|_| !small),
        }),
    }
}

/// The configuration of IPv4 on the interface in the namespace.
pub(super) fn ipv4(
    config: &Config,
    facts: &Facts,
    template: Option<&Template<Ipv4Addr>>,
    given: &V4,
) -> NamespaceFamily {
    let single = address(given.assigned.into(), given.prefix_len, AddressScope::Universe);
    family(&config.v4, facts, template, Some(single), given.our_address)
}

/// The configuration of IPv6 on the interface in the namespace, without its link-local address.
pub(super) fn ipv6(
    config: &Config,
    facts: &Facts,
    template: Option<&Template<Ipv6Addr>>,
    given: &V6,
    gateway: Option<Ipv6Addr>,
) -> NamespaceFamily {
    let single = given.assigned.map(|assigned| {
        let scope =
            if assigned.is_unicast_link_local() { AddressScope::Link } else { AddressScope::Universe };
        address(assigned.into(), PREFIX_LEN_V6, scope)
    });
    let mut family = family(&config.v6, facts, template, single, gateway);
    for address in &mut family.addresses {
        address.flags |= AddressFlags::Nodad;
    }
    // The kernel lists a new IPv6 address before older addresses.
    family.addresses.reverse();
    family
}

fn family<A: Ip>(
    asked: &Family<A>,
    facts: &Facts,
    template: Option<&Template<A>>,
    single: Option<Address>,
    gateway: Option<A>,
) -> NamespaceFamily {
    let template = template.map(|template| template.link().index);
    let mut addresses = match template.filter(|_| asked.copy_addrs && asked.address.is_none()) {
        Some(template) => copied_addresses::<A>(facts, template),
        None => Vec::new(),
    };
    if addresses.is_empty() {
        addresses.extend(single);
    }
    match template.filter(|_| asked.copy_routes && asked.gateway.is_none()) {
        Some(template) => {
            let routes = copied_routes::<A>(facts, template, &addresses);
            NamespaceFamily { addresses, routes, copied: true }
        }
        None => {
            let routes = gateway.map(|gateway| default_route(gateway, &addresses)).into_iter().collect();
            NamespaceFamily { addresses, routes, copied: false }
        }
    }
}

/// An address of the interface in the namespace.
pub(super) fn address(local: IpAddr, prefix_len: u8, scope: AddressScope) -> Address {
    Address {
        interface: 0,
        local,
        peer: None,
        prefix_len,
        broadcast: None,
        route_priority: None,
        scope,
        flags: AddressFlags::empty(),
    }
}

/// The template's addresses without lifetimes, state and labels.
fn copied_addresses<A: Ip>(facts: &Facts, template: u32) -> Vec<Address> {
    facts
        .addresses
        .iter()
        .filter(|address| address.interface == template && A::from_ip(address.local).is_some())
        .filter(|address| is_valid(address) && is_wide(address))
        .map(|address| Address { flags: address.flags & AddressFlags::Noprefixroute, ..address.clone() })
        .collect()
}

/// The template's routes, without two kinds: routes that also use another interface, and routes that the kernel
/// adds itself for `addresses`. A preferred source is kept if it is one of `addresses`.
fn copied_routes<A: Ip>(facts: &Facts, template: u32, addresses: &[Address]) -> Vec<Route> {
    facts
        .routes
        .iter()
        .filter(|route| A::from_ip(route.destination.addr()).is_some())
        .filter(|route| route.next_hops.iter().all(|hop| hop.interface == template))
        .filter(|route| !route.encapsulates && !is_made_by_kernel(route, addresses))
        .map(|route| {
            let has = |source: &IpAddr| addresses.iter().any(|address| address.local == *source);
            Route { preferred_source: route.preferred_source.filter(has), ..route.clone() }
        })
        .collect()
}

/// Whether the kernel adds `route` itself when the interface has `addresses` and, for IPv6, a link-local address.
fn is_made_by_kernel(route: &Route, addresses: &[Address]) -> bool {
    let plain = route.protocol == RouteProtocol::Kernel
        && route.source.is_none()
        && matches!(&route.next_hops[..], [NextHop { gateway: None, .. }]);
    let (default_metric, link_local) = match route.destination {
        IpNet::V4(_) => (0, false),
        IpNet::V6(net) => {
            (PREFIX_ROUTE_METRIC_V6, net.addr().is_unicast_link_local() && net.prefix_len() == PREFIX_LEN_V6)
        }
    };
    let metric = route.priority.unwrap_or(default_metric);
    plain
        && (link_local
            || addresses.iter().any(|address| {
                network_of(address) == Some(route.destination)
                    && !address.flags.contains(AddressFlags::Noprefixroute)
                    && address.route_priority.unwrap_or(default_metric) == metric
            }))
}

/// The only route if the template's routes are not copied.
pub(super) fn default_route<A: Ip>(gateway: A, addresses: &[Address]) -> Route {
    let gateway = gateway.into();
    let in_a_network = addresses.iter().filter_map(network_of).any(|network| network.contains(&gateway));
    Route {
        destination: match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        },
        source: None,
        tos: 0,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Universe,
        priority: None,
        preferred_source: None,
        preference: None,
        metrics: Vec::new(),
        next_hops: vec![NextHop {
            interface: 0,
            gateway: Some(gateway),
            weight: 1,
            // The gateway of local mode is always on the link, even if `--address` gives an address of another network.
            onlink: gateway == IpAddr::V4(LOCAL_V4_GATEWAY) && !in_a_network,
        }],
        encapsulates: false,
    }
}
