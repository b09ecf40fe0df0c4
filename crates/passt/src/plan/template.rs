//! The template interface of a family: its choice, its address and its gateway (behaviour §3.1 to §3.3).

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv6Addr},
};

use engine::forward::IfName;
use ipnet::IpNet;

use super::{Error, Ip, Note, TemplateLink};
use crate::{
    config::{Config, Family},
    host::{Address, AddressFlags, AddressScope, Facts, Link, LinkFlags, NextHop, Route},
};

/// Index of the loopback interface in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// The template of family `A`: an interface of the host, and the values that the guest gets from it.
pub(super) struct Template<A> {
    link: TemplateLink,
    /// The address for the guest. `None`: the interface has no usable address, so `--address` gives the address.
    pub(super) address: Option<A>,
    /// Prefix length of `address`.
    pub(super) prefix_len: u8,
    /// Router of the first default route that has a router.
    pub(super) gateway: Option<A>,
    /// The interface's own link-local address (IPv6).
    pub(super) link_local: Option<Ipv6Addr>,
}

impl<A> Template<A> {
    /// The template interface.
    pub(super) fn link(&self) -> &TemplateLink {
        &self.link
    }
}

/// Refuses names of interfaces that don't exist, even if an interface is not needed as a template (Q11).
pub(super) fn check_interfaces(config: &Config, facts: &Facts) -> Result<(), Error> {
    let names = [
        ("--interface", &config.interface),
        ("--outbound-if4", &config.v4.outbound_if),
        ("--outbound-if6", &config.v6.outbound_if),
    ];
    for (option, name) in names {
        if let Some(name) = name
            && facts.link_named(name).is_none()
        {
            return Err(Error::NoSuchInterface { option, name: name.to_string() });
        }
    }
    Ok(())
}

/// Finds the template of family `A`. Returns `None` if no interface is usable (behaviour §3.1).
pub(super) fn find<A: Ip>(
    config: &Config,
    asked: &Family<A>,
    facts: &Facts,
    notes: &mut Vec<Note>,
) -> Result<Option<Template<A>>, Error> {
    let named = |name: &IfName| facts.link_named(name);
    if let Some(link) = config.interface.as_ref().and_then(named) {
        return Ok(read(link, asked, facts));
    }
    if let Some(link) = asked.outbound_if.as_ref().and_then(named) {
        let unusable =
            || Error::Unusable { option: A::OUTBOUND_IF, name: link.name.clone(), family: A::FAMILY };
        return read(link, asked, facts).map(Some).ok_or_else(unusable);
    }
    Ok(pick::<A>(facts, notes).and_then(|link| read(link, asked, facts)))
}

/// The interface of the first default route. Without a default route: the interface of the first route (behaviour
/// §3.1.2, R-18, R-19).
fn pick<'a, A: Ip>(facts: &'a Facts, notes: &mut Vec<Note>) -> Option<&'a Link> {
    let candidates: Vec<(&Route, &Link)> = facts
        .routes
        .iter()
        .filter(|route| A::from_ip(route.destination.addr()).is_some() && !is_link_local(&route.destination))
        .filter_map(|route| Some((route, facts.link(route.next_hops.first()?.interface)?)))
        .filter(|(_, link)| link.index != LOOPBACK_INDEX && !link.flags.contains(LinkFlags::Loopback))
        .collect();
    let mut defaults = candidates.iter().filter(|(route, _)| route.is_default());
    let (found, several) = match defaults.next() {
        Some((_, link)) => (*link, defaults.next().map(|_| "Multiple default {} routes")),
        None => {
            let (_, link) = *candidates.first()?;
            let several = candidates.iter().any(|(_, other)| other.index != link.index);
            (link, several.then_some("Multiple interfaces with {} routes"))
        }
    };
    if let Some(several) = several {
        notes.push(Note::info(format!("{}, picked first", several.replace("{}", A::FAMILY))));
    }
    Some(found)
}

/// Whether `network` is within the link-local prefix.
fn is_link_local(network: &IpNet) -> bool {
    match network {
        IpNet::V4(network) => network.prefix_len() >= 16 && network.addr().is_link_local(),
        IpNet::V6(network) => network.prefix_len() >= 10 && network.addr().is_unicast_link_local(),
    }
}

/// Makes the template of family `A` from `link`. Returns `None` if the interface lacks an address (behaviour §3.2).
fn read<A: Ip>(link: &Link, asked: &Family<A>, facts: &Facts) -> Option<Template<A>> {
    let defaults: Vec<&Route> = facts
        .routes
        .iter()
        .filter(|route| route.is_default() && A::from_ip(route.destination.addr()).is_some())
        .filter(|route| route.next_hops.iter().any(|hop| hop.interface == link.index))
        .collect();
    let gateway = defaults.iter().find_map(|route| gateway_of::<A>(route, link.index));
    let preferred = defaults.iter().find_map(|route| route.preferred_source);
    let address = guest_address::<A>(link, facts, gateway, preferred);
    let link_local = facts.addresses.iter().find_map(|address| match address.local {
        IpAddr::V6(local) if address.interface == link.index && local.is_unicast_link_local() => Some(local),
        _ => None,
    });
    // The program's link-local address is that of the interface, or that of the gateway if the gateway's address is
    // link-local.
    let have_our_link_local = A::BITS == 32
        || link_local.is_some()
        || gateway.is_some_and(|gateway| is_link_local(&IpNet::from(gateway.into())));
    let usable = (asked.address.is_some() || address.is_some()) && have_our_link_local;
    usable.then(|| Template {
        link: TemplateLink { index: link.index, name: link.name.clone() },
        address: address.and_then(|address| A::from_ip(address.local)),
        prefix_len: address.map_or(A::BITS, |address| address.prefix_len),
        gateway,
        link_local,
    })
}

/// The gateway of a default route through `interface`. For a multipath route, the hop with the highest weight is used.
/// If several hops have this weight, the first of them is used (behaviour §3.3, R-20). A gateway of the other family is
/// skipped: it can't be advertised.
fn gateway_of<A: Ip>(route: &Route, interface: u32) -> Option<A> {
    let via = |hop: &NextHop| A::from_ip(hop.gateway?);
    route
        .next_hops
        .iter()
        .filter(|hop| hop.interface == interface && via(hop).is_some())
        .min_by_key(|hop| Reverse(hop.weight))
        .and_then(via)
}

/// Chooses the address of `link` for the guest. These criteria decide, in this order:
///
/// 1. a scope wider than the link (required for IPv6);
/// 2. the preferred source address of the default route, which the host itself uses;
/// 3. primary rather than secondary, permanent rather than temporary (RFC 8981);
/// 4. a prefix shorter than the address, rather than an alias of full length (Q12);
/// 5. IPv6: not a unique local address (RFC 4193), which is not routed on the Internet;
/// 6. the gateway is in the address's network;
/// 7. the longest prefix;
/// 8. the kernel's order.
fn guest_address<'a, A: Ip>(
    link: &Link,
    facts: &'a Facts,
    gateway: Option<A>,
    preferred: Option<IpAddr>,
) -> Option<&'a Address> {
    let usable = |address: &&Address| {
        address.interface == link.index
            && A::from_ip(address.local).is_some()
            && (A::BITS == 32 || is_wide(address))
            && is_valid(address)
    };
    facts.addresses.iter().filter(usable).min_by_key(|address| {
        Reverse((
            is_wide(address),
            preferred == Some(address.local),
            !address.flags.contains(AddressFlags::Secondary),
            address.prefix_len < A::BITS,
            !is_unique_local(address.local),
            gateway
                .is_some_and(|gateway| network_of(address).is_some_and(|net| net.contains(&gateway.into()))),
            address.prefix_len,
        ))
    })
}

/// Whether the guest can use an address.
pub(super) fn is_valid(address: &Address) -> bool {
    let unusable = AddressFlags::Deprecated | AddressFlags::Dadfailed;
    !address.flags.intersects(unusable) && !address.local.is_loopback() && !address.local.is_unspecified()
}

/// Whether the scope of an address is wider than its link. Site-local counts as wider.
pub(super) fn is_wide(address: &Address) -> bool {
    u8::from(address.scope) < u8::from(AddressScope::Link)
}

/// The network of an address. On a point-to-point link, this is the network of the peer's address.
pub(super) fn network_of(address: &Address) -> Option<IpNet> {
    IpNet::new(address.peer.unwrap_or(address.local), address.prefix_len).ok().map(|network| network.trunc())
}

fn is_unique_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unique_local(),
    }
}
