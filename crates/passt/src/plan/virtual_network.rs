//! The plan of a virtual network (behaviour §13.1). No interface of the host is a template: all addresses of the guest
//! follow from the configuration.

use std::net::{IpAddr, Ipv6Addr};

use engine::addr::{Settings, V4, V6};
use engine::neighbours::Neighbours;

use super::{
    Error, Ip, Note, Outbound, Plan, check_mtu, map_host_loopback,
    namespace::{self, NamespaceFamily},
    resolvers::set_resolvers,
    services,
    template::{is_valid, is_wide},
};
use crate::{
    config::{Config, DEFAULT_MTU, DNS_V6, Family, MapHostLoopback},
    host::{AddressFlags, AddressScope, Facts},
};

/// The gateway's address in the IPv6 network.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The address of the interface with `--configure`, which DHCPv6 offers as well. Router advertisements announce its network.
const OFFERED_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x64);
/// The source address of router advertisements.
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Makes the plan.
///
/// # Errors
/// An interface for outbound connections does not exist, or has no usable address.
pub(super) fn plan(config: &Config, facts: &Facts) -> Result<Plan, Error> {
    let mut notes = Vec::new();
    let v6_enabled = config.v6.enabled && facts.ipv6;
    if config.v6.enabled && !facts.ipv6 {
        notes.push(Note::warn("--enable-ipv6: this host has no IPv6, continuing without"));
    }
    check_mtu(config, v6_enabled, &mut notes)?;
    let (v4, v6) = (ipv4(config), v6_enabled.then(|| ipv6(config)));
    let given = &config.slirp4netns;
    let mut virtual_hosts: Vec<IpAddr> = vec![given.gateway().into(), given.dns().into()];
    if v6_enabled {
        virtual_hosts.extend([ROUTER_V6, GATEWAY_V6, DNS_V6].map(IpAddr::V6));
    }
    let on_v6 = v6.as_ref().map(|_| ipv6_on_interface());
    let namespace = namespace::plan(config, facts, [None, None], Some(ipv4_on_interface(config)), on_v6);
    let mut settings = Settings {
        our_mac: config.our_mac,
        mtu: config.mtu.unwrap_or(DEFAULT_MTU),
        v4: Some(v4),
        v6,
        neighbours: Neighbours::default(),
        virtual_hosts,
        services: services(config, facts, true),
    };
    set_resolvers(config, &facts.resolver, &mut settings);
    Ok(Plan {
        settings,
        template4: None,
        template6: None,
        gateway6: v6_enabled.then_some(ROUTER_V6),
        outbound4: outbound(&config.v4, facts, "--outbound-addr")?,
        outbound6: outbound(&config.v6, facts, "--outbound-addr6")?,
        namespace: Some(namespace),
        notes,
    })
}

fn ipv4(config: &Config) -> V4 {
    let given = &config.slirp4netns;
    V4 {
        assigned: given.offered(),
        prefix_len: given.network.prefix_len(),
        our_address: Some(given.gateway()),
        map_host_loopback: map_host_loopback(&config.v4, Some(given.gateway())),
        map_guest_address: None,
        dns_forward: None,
        dns_servers: Vec::new(),
        pinned: false,
        dns: Vec::new(),
    }
}

fn ipv6(config: &Config) -> V6 {
    V6 {
        assigned: Some(OFFERED_V6),
        our_link_local: ROUTER_V6,
        outbound_scope: 0,
        map_host_loopback: match config.v6.map_host_loopback {
            MapHostLoopback::None => None,
            MapHostLoopback::Gateway | MapHostLoopback::Addr(_) => Some(GATEWAY_V6),
        },
        map_guest_address: None,
        dns_forward: None,
        dns_servers: Vec::new(),
        pinned: false,
        dns: Vec::new(),
    }
}

/// IPv4 on the interface in the namespace, with `--configure`.
fn ipv4_on_interface(config: &Config) -> NamespaceFamily {
    let given = &config.slirp4netns;
    let mut address =
        namespace::address(given.configured().into(), given.network.prefix_len(), AddressScope::Universe);
    address.broadcast = Some(given.network.broadcast());
    let addresses = vec![address];
    let routes = vec![namespace::default_route(given.gateway(), &addresses)];
    NamespaceFamily { addresses, routes, copied: false }
}

/// IPv6 on the interface in the namespace, with `--configure`. Router advertisements add another address later. This
/// address is there at once, and forwarded ports lead to it.
fn ipv6_on_interface() -> NamespaceFamily {
    let mut address = namespace::address(OFFERED_V6.into(), 64, AddressScope::Universe);
    address.flags |= AddressFlags::Nodad;
    let addresses = vec![address];
    let routes = vec![namespace::default_route(ROUTER_V6, &addresses)];
    NamespaceFamily { addresses, routes, copied: false }
}

/// The source of outbound sockets. The name of an interface means its first address. Unlike in pasta, the routing tables
/// still choose the interface.
fn outbound<A: Ip>(asked: &Family<A>, facts: &Facts, option: &'static str) -> Result<Outbound<A>, Error> {
    let Some(name) = &asked.outbound_if else {
        return Ok(Outbound { address: asked.outbound, interface: None });
    };
    let link =
        facts.link_named(name).ok_or_else(|| Error::NoSuchInterface { option, name: name.to_string() })?;
    let mut usable = facts.addresses.iter().filter(|address| {
        address.interface == link.index && is_valid(address) && (A::BITS == 32 || is_wide(address))
    });
    let address = usable.find_map(|address| A::from_ip(address.local));
    let unusable = || Error::Unusable { option, name: link.name.clone(), family: A::FAMILY };
    Ok(Outbound { address: Some(address.ok_or_else(unusable)?), interface: None })
}
